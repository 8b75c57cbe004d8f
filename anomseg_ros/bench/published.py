"""Figures from papers: the accuracy of their models and, for two papers on compression, the time on their machines.

PTQ: tables 4 to 7. MiDE: tables 4 and 5. The times cannot be compared with those of other machines. PTQ's tables 4 to 6
estimate inference times from effective FLOPs (the text says that no time was saved) and do not name the processor;
everything ran on Google Colab's CPU and TPU v4 runtimes. PTQ's table 7 has a speed-up in percent only; the time here is
the unpruned one of table 5 or 6, less that share. MiDE's table 5 has frames per second on the Cityscapes validation set
and does not name the machine.

Accuracy alone: MiDE tables 1 and 3, and two large systems, EoMT with LoRA and an outlier class (Ziccardi et al., table
4) and DSA-Tiny (Dual-Stream Adapters, table 2 with outlier exposure).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean

DATASETS = ("cityscapes", "road_anomaly_21", "road_obstacle_21", "fs_lost_found", "fs_static", "road_anomaly")
"""Datasets of the columns below: mIoU has the first, AuPRC and FPR95 the others."""


@dataclass(frozen=True)
class PublishedRow:
    """A row of a table: percent as printed, None for figures that are not printed; parameters in millions."""

    label: str
    table: str
    miou: float | None
    auprc: tuple[float | None, ...]
    fpr95: tuple[float | None, ...]
    parameters_m: float | None = None

    def figure(self, metric: str, dataset: str) -> float | None:
        """Return a metric on a dataset as a fraction, or its mean over `A, B, …`; None if it is not printed."""
        values = [self._one_figure(metric, name) for name in dataset.split(", ")]
        known = [value for value in values if value is not None]
        return mean(known) if len(known) == len(values) else None

    def _one_figure(self, metric: str, dataset: str) -> float | None:
        # The name of a split may follow.
        base = dataset.partition(":")[0].split(" ")[0]
        if base not in DATASETS or metric not in ("miou", "auprc", "fpr95"):
            return None
        place = DATASETS.index(base)
        if (metric == "miou") != (place == 0):
            return None
        value: float | None = self.miou if metric == "miou" else getattr(self, metric)[place - 1]
        return None if value is None else value / 100


@dataclass(frozen=True, kw_only=True)
class PublishedPoint(PublishedRow):
    """A row with a time. estimated: the time was computed, not measured."""

    hardware: str
    latency_ms: float
    estimated: bool


_COLAB = "Google Colab CPU or TPU v4 (not said which)"
_UNNAMED = "machine not named"

# label, seconds, mIoU, then (AuPRC, FPR95) for RA-21, RO-21, FS L&F, FS Static, RoadAnomaly.
_PTQ = {
    "PTQ table 4": """
ENet|0.0068|38.06|14.18 85.49|1.49 51.67|3.71 75.11|5.17 43.00|8.32 79.48
ENet, 10 % pruned|0.0059|44.90|14.20 84.45|1.28 43.28|3.83 73.67|5.21 42.46|8.42 80.53
ENet, 20 % pruned|0.0053|41.94|13.31 90.08|0.55 88.03|3.57 62.03|5.26 47.73|7.62 89.16
ENet, 30 % pruned|0.0047|21.24|12.43 93.77|0.40 98.90|2.04 70.53|4.24 59.37|7.35 94.72
ENet, 40 % pruned|0.0040|4.15|15.43 85.85|0.55 94.27|1.15 94.13|2.25 89.78|8.30 94.90
ENet, 50 % pruned|0.0034|4.90|13.48 89.97|0.57 91.64|0.32 94.69|2.74 84.52|7.30 97.52
""",
    "PTQ table 5": """
ERFNet|0.0420|68.08|24.94 82.88|2.01 44.23|4.40 46.32|17.25 34.85|11.26 84.46
ERFNet, 10 % pruned|0.0380|68.08|25.04 82.78|2.04 44.31|4.39 46.92|17.31 34.38|11.29 84.18
ERFNet, 20 % pruned|0.0340|68.01|24.42 82.40|1.95 44.10|4.39 45.52|16.27 34.18|11.54 84.06
ERFNet, 30 % pruned|0.0300|66.03|23.41 80.87|2.34 42.12|3.83 41.93|19.18 31.56|9.33 86.12
ERFNet, 40 % pruned|0.0260|20.87|22.27 81.52|1.18 65.98|1.07 53.19|21.82 35.80|7.61 87.58
ERFNet, 50 % pruned|0.0220|2.80|16.35 89.56|0.74 90.25|0.54 73.96|3.12 86.35|4.12 91.33
""",
    "PTQ table 6": """
BiSeNet|0.0477|60.74|22.74 69.62|4.66 22.25|10.05 31.62|5.39 49.77|13.80 82.75
BiSeNet, 10 % pruned|0.0429|60.81|22.65 69.61|4.70 21.53|9.96 31.86|5.48 49.15|13.71 82.95
BiSeNet, 20 % pruned|0.0382|60.83|21.34 68.86|4.23 23.70|9.69 33.60|4.66 51.53|13.34 83.06
BiSeNet, 30 % pruned|0.0334|60.20|20.94 71.88|4.34 21.09|8.96 37.01|4.69 50.97|12.85 86.06
BiSeNet, 40 % pruned|0.0286|56.24|19.32 83.57|3.07 27.49|3.73 42.28|5.33 54.65|11.46 88.74
BiSeNet, 50 % pruned|0.0239|36.41|12.72 86.23|1.08 79.97|1.36 70.65|2.61 88.08|10.08 89.37
""",
}

# label, speed-up in percent, seconds of the unpruned float network in table 5 or 6, then as above.
_PTQ_QUANTIZED = """
ERFNet, int8|94.40|0.0420|41.40|21.57 86.26|0.77 80.97|1.55 68.07|14.08 35.92|10.83 86.33
BiSeNet, int8|85.98|0.0477|60.73|31.67 73.39|8.08 31.38|8.51 42.62|5.02 54.70|15.94 78.31
"""

# label, frames per second (table 5), then mIoU and the rest (table 4).
_MIDE = """
ERFNet|0.22|64.31|19.31 78.29|1.41 99.79|10.16 18.18|20.77 23.87|9.71 91.20
ERFNet, 30 % pruned|0.67|58.61|15.61 86.81|0.60 95.41|2.84 34.92|9.37 52.57|7.73 90.77
ERFNet, int8|1.62|44.80|18.53 82.67|2.08 99.82|5.36 31.06|16.78 26.69|12.00 91.63
ERFNet, pruned, int8|1.76|41.06|17.78 82.12|0.62 95.31|3.35 57.48|3.12 69.86|8.92 89.39
ENet|1.87|43.91|13.29 90.85|1.39 76.90|8.07 72.21|11.26 67.53|10.18 89.43
MiDE-Net|2.30|25.17|18.50 79.20|0.69 98.02|1.54 38.86|5.55 93.66|11.78 85.86
MiDE-Net, pruned, int8|3.14|14.03|10.64 99.61|0.41 99.75|0.57 62.98|2.62 82.25|7.99 94.39
"""


# label, millions of parameters, mIoU, then as above; - where a figure is not printed.
_ACCURACY = {
    # The printed table exchanges RoadAnomaly's rows of MSP and maximum entropy, and its 62.67 for the latter's FPR95 on
    # FS Static is wrong. Both are corrected from its table 2 and PTQ's table 1, which show the same experiment.
    "MiDE table 1": """
ERFNet, MSP|2.06|72.20|29.10 62.56|2.71 65.27|1.75 50.62|7.47 41.83|12.42 82.58
ERFNet, max logit|2.06|72.20|38.31 59.35|4.63 48.48|3.30 45.52|9.50 40.29|15.58 73.26
ERFNet, maximum entropy|2.06|72.20|30.96 62.67|3.04 65.96|2.58 50.19|8.84 41.50|12.67 82.75
""",
    "MiDE table 3": """
ENet, void, 340 epochs|0.354|41.76|15.12 91.62|4.14 91.81|5.75 32.90|10.60 65.14|12.89 80.53
ENet, void, 560 epochs|0.354|43.91|13.29 90.85|1.39 76.90|8.07 72.21|11.26 67.53|10.18 89.43
ERFNet, void|2.06|64.31|19.31 78.29|1.41 99.79|10.16 18.18|20.77 23.87|9.71 91.20
BiSeNet, void|-|66.18|28.11 67.69|1.82 39.71|12.13 43.22|18.84 25.31|13.12 74.84
""",
    "Ziccardi et al., table 4": """
EoMT-B, LoRA, outlier class|93|-|39.96 63.80|80.92 68.19|- -|41.97 65.03|42.69 74.99
""",
    "DSA, table 2": """
DSA-Tiny, outlier exposure|28.5|-|72.1 35.0|77.9 2.6|49.5 17.4|80.3 8.6|52.3 65.6
""",
}


def published_rows() -> list[PublishedRow]:
    """Return the rows of _ACCURACY, then those with times that are neither pruned nor printed twice."""
    rows = [
        _row(label, table, cells, None if size == "-" else float(size))
        for table, text in _ACCURACY.items()
        for label, (size, *cells) in _rows(text)
    ]
    seen = {row.auprc for row in rows}
    return [*rows, *(p for p in published_points() if "pruned" not in p.label and p.auprc not in seen)]


def published_points() -> list[PublishedPoint]:
    """Return every row of the tables named above."""
    points = []
    for table, rows in _PTQ.items():
        for label, (seconds, *cells) in _rows(rows):
            points.append(_point(_row(label, table, cells), _COLAB, 1e3 * float(seconds), True))
    for label, (percent, whole, *cells) in _rows(_PTQ_QUANTIZED):
        latency_ms = 1e3 * float(whole) * (1 - float(percent) / 100)
        points.append(_point(_row(label, "PTQ table 7", cells), _COLAB, latency_ms, True))
    for label, (rate, *cells) in _rows(_MIDE):
        points.append(_point(_row(label, "MiDE tables 4 and 5", cells), _UNNAMED, 1e3 / float(rate), False))
    return points


def _rows(text: str) -> Iterator[tuple[str, list[str]]]:
    for line in text.strip().splitlines():
        label, *cells = line.split("|")
        yield label, cells


def _point(row: PublishedRow, hardware: str, latency_ms: float, estimated: bool) -> PublishedPoint:
    return PublishedPoint(**vars(row), hardware=hardware, latency_ms=latency_ms, estimated=estimated)


def _row(label: str, table: str, cells: list[str], parameters_m: float | None = None) -> PublishedRow:
    miou, *pairs = (tuple(None if text == "-" else float(text) for text in cell.split()) for cell in cells)
    auprc, fpr95 = zip(*pairs, strict=True)
    return PublishedRow(label, table, miou[0], auprc, fpr95, parameters_m)
