"""The protocols by which papers and benchmarks measure pixel figures. A figure is given with its protocol's name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomseg_ros.core.road_region import SURFACES
from anomseg_ros.core.types import LabelImage
from anomseg_ros.errors import ConfigError, unknown_name
from anomseg_ros.metrics.curve import FprRule
from anomseg_ros.metrics.pixel_curves import ANOMALY, PixelCurves
from anomseg_ros.metrics.smiyc_pixels import QuantileCurves

PixelAccumulator = PixelCurves | QuantileCurves


@dataclass(frozen=True)
class PixelMetrics:
    """The pixel figures of one protocol, fractions. Each `_bound` is the largest possible error, 0 for exact figures.

    best_f1_threshold: pixels with a score at or above it are called anomalous.
    """

    protocol: str
    auprc: float
    fpr95: float
    auroc: float
    best_f1: float
    best_f1_threshold: float
    auprc_bound: float
    fpr95_bound: float
    auroc_bound: float
    best_f1_bound: float
    frames: int
    known_px: int
    anomaly_px: int


@dataclass(frozen=True)
class Protocol:
    """How frames are prepared, counted and read.

    size_px: (height, width) to which image and labels are resized first, None for the frame's own size. The image is
    resized as by torchvision: Pillow's antialiased bilinear on uint8 RGB (OpenCV's INTER_LINEAR does not antialias and
    gives other figures); labels by Pillow's nearest. score_dtype: to which scores are rounded. skip_without_anomaly:
    leave out frames that have no anomalous pixel after the resize. quantile_bins: use SegmentMeIfYouCan's curve instead
    of the pooled one. road_region: outside this region of the detector's labels all scores become the lowest; None for
    the whole frame, as in all published figures.
    """

    name: str
    source: str
    fpr_rule: FprRule
    size_px: tuple[int, int] | None = None
    score_dtype: str = "float32"
    skip_without_anomaly: bool = False
    quantile_bins: bool = False
    road_region: str | None = None

    def new_accumulator(self, *, exact: bool = False) -> PixelAccumulator:
        """Return an empty accumulator; `exact` as in `PixelCurves` (quantile bins are exact as they are)."""
        return QuantileCurves() if self.quantile_bins else PixelCurves(exact=exact)

    def load_accumulator(self, path: str | Path) -> PixelAccumulator:
        """Read what an accumulator of this protocol saved. Raises MetricError."""
        return QuantileCurves.load(path) if self.quantile_bins else PixelCurves.load(path)

    def add(self, accumulator: PixelAccumulator, scores: npt.NDArray[np.floating], labels: LabelImage) -> bool:
        """Count a frame of the protocol's size: scores float (H, W), labels uint8 (H, W). Raises MetricError.

        Returns False if the protocol leaves the frame out.
        """
        if self.skip_without_anomaly and not (labels == ANOMALY).any():
            return False
        with np.errstate(over="ignore"):  # overflow becomes infinite, which `add` reports
            rounded = scores.astype(self.score_dtype, copy=False)
        accumulator.add(rounded, labels)
        return True

    def read(self, accumulator: PixelAccumulator) -> PixelMetrics:
        """Return the figures. Raises MetricError where no anomalous or no known pixel was counted."""
        curve = accumulator.curve()
        auprc, auroc, best = curve.average_precision(), curve.auroc(), curve.best_f1()
        fpr95 = curve.fpr_at_recall(0.95, self.fpr_rule)
        return PixelMetrics(
            protocol=self.name,
            auprc=auprc.value,
            fpr95=fpr95.value,
            auroc=auroc.value,
            best_f1=best.value,
            best_f1_threshold=best.threshold,
            auprc_bound=auprc.bound,
            fpr95_bound=fpr95.bound,
            auroc_bound=auroc.bound,
            best_f1_bound=best.bound,
            frames=accumulator.frames,
            known_px=curve.negatives,
            anomaly_px=curve.positives,
        )


PROTOCOLS: dict[str, Protocol] = {
    "seeds": Protocol(
        name="seeds",
        source="the course code behind ENet, ERFNet, BiSeNet and MiDE-Net's tables, and Mask2Anomaly: pooled pixels "
        "at 512x1024, scikit-learn's average precision, FPR95 by np.interp on the ROC",
        fpr_rule="interpolated",
        size_px=(512, 1024),
        skip_without_anomaly=True,
    ),
    "fishyscapes": Protocol(
        name="fishyscapes",
        source="Blum et al., IJCV 2021 (bdlb): pooled pixels at the frame's size, FPR at the first TPR >= 0.95",
        fpr_rule="first_at_least",
    ),
    "smiyc": Protocol(
        name="smiyc",
        source="Chan et al., NeurIPS 2021 (road-anomaly-benchmark): float16 scores at the frame's size, 768 quantile "
        "bins per image, FPR at the first TPR >= 0.95",
        fpr_rule="first_at_least",
        score_dtype="float16",
        quantile_bins=True,
    ),
    "rba": Protocol(
        name="rba",
        source="Nayal et al., ICCV 2023, and DenseHybrid (Grcic et al., ECCV 2022): pooled pixels, FPR at the first "
        "TPR > 0.95",
        fpr_rule="first_above",
    ),
    "pebal": Protocol(
        name="pebal",
        source="Tian et al., ECCV 2022: pooled pixels, FPR at the TPR nearest to 0.95 (Hendrycks' anomaly-seg rule)",
        fpr_rule="nearest",
    ),
}


def protocol(name: str) -> Protocol:
    """Return the protocol `name`, or `name+region` for one limited to a road region (`on_road`). Raises ConfigError."""
    base, plus, region = name.partition("+")
    if base not in PROTOCOLS or (plus and region not in SURFACES):
        known = (*PROTOCOLS, *(on_road(base, region) for region in SURFACES)) if base in PROTOCOLS else PROTOCOLS
        raise ConfigError(unknown_name("protocol", name, known))
    return replace(PROTOCOLS[base], name=name, road_region=region) if plus else PROTOCOLS[base]


def on_road(name: str, region: str) -> str:
    """Return the name of a protocol limited to a region of SURFACES."""
    return f"{name}+{region}"
