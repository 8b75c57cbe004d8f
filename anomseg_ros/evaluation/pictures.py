"""Small overlays of the frames on which a detector does worst, for the report."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.bags.stamped_topics import seconds
from anomseg_ros.core.bundle import Contract
from anomseg_ros.core.detector import Detector
from anomseg_ros.core.labels import UNLABELLED, palette
from anomseg_ros.core.overlay import anomaly_mask, overlay
from anomseg_ros.core.picture_legend import class_legend, score_bar
from anomseg_ros.core.preprocess import resized_labels
from anomseg_ros.core.score_scale import ScoreScale, score_scale
from anomseg_ros.core.types import Outputs, RgbImage
from anomseg_ros.datasets.bag import BagDataset
from anomseg_ros.datasets.dataset import ANOMALY, Dataset, LabelledFrame
from anomseg_ros.evaluation.cluster_panels import cluster_panels
from anomseg_ros.evaluation.measures import road_of, scores_in_protocol
from anomseg_ros.evaluation.readout import worst_first
from anomseg_ros.evaluation.results import Drive, Result
from anomseg_ros.scores import scale_of, score_facts

WIDTH_PX = 640
WORST_FRAMES = 12
JPEG_QUALITY = 80
SCORE_WEIGHT = 0.7

PictureKey = tuple[str, str, str, str, str]
"""A result's key and the frame's id."""


def draw_worst(
    detector: Detector, dataset: Dataset, results: Sequence[Result], count: int = WORST_FRAMES
) -> dict[PictureKey, bytes]:
    """Return JPEG overlays of the `count` worst frames of each result on this dataset, each frame detected once more.

    The score's colours over the frame, 640 px wide, above its colour bar; true anomalies are outlined in white. Scores
    of clusters get the four panels of cluster_panels.py where the bundle has a map that is constant in each cluster.
    Results without anomaly pixels get their first frames with the predicted classes and their names instead.
    """
    road = road_of(detector.bundle.contract, [result.protocol for result in results])
    wanted: dict[str, list[Result]] = {}
    for result in results:
        for frame_id in _chosen(result, dataset, count):
            wanted.setdefault(frame_id, []).append(result)
    pictures: dict[PictureKey, bytes] = {}
    for index in range(len(dataset)):
        frame_id = dataset.frame_id(index)
        if frame_id in wanted:
            frame = dataset.load(index)
            outputs = detector.detect(frame.image, road=road)
            for result in wanted[frame_id]:
                picture = _draw(frame, outputs, result, detector.bundle.contract)
                bundle, name, score, protocol = result.key
                pictures[bundle, name, score, protocol, frame_id] = picture
    return pictures


def draw_moments(detector: Detector, dataset: BagDataset, result: Result, drive: Drive) -> dict[PictureKey, bytes]:
    """Return JPEG overlays of the worst moments of a drive, in their order: the pixels above the threshold are marked.

    Frames are named by the seconds since the first one. drive: of this dataset. A mask is that of a single frame, also
    where an alarm needs several.
    """
    road = road_of(detector.bundle.contract, [result.protocol])
    pictures: dict[PictureKey, bytes] = {}
    for moment in drive.worst:
        frame = dataset.load(dataset.stamps_ns.index(moment.stamp_ns))
        outputs = detector.detect(frame.image, [result.score], labels=False, road=road)
        height = max(1, round(WIDTH_PX * frame.image.shape[0] / frame.image.shape[1]))
        scores = scores_in_protocol(outputs, (result.score, result.protocol), frame.image.shape[:2])
        mask = resized_labels(anomaly_mask(scores, drive.threshold), height, WIDTH_PX)
        small = np.asarray(cv2.resize(frame.image, (WIDTH_PX, height), interpolation=cv2.INTER_AREA), np.uint8)
        unlabelled = np.full((height, WIDTH_PX), UNLABELLED, np.uint8)
        key = (*result.key, _moment(dataset, moment.stamp_ns))
        pictures[key] = jpeg(overlay(small, unlabelled, mask, palette(detector.bundle.contract.classes)))
    return pictures


def _moment(dataset: BagDataset, stamp_ns: int) -> str:
    after_s = (stamp_ns - dataset.stamps_ns[0]) / 1e9
    return f"{dataset.prefix}{after_s:.1f} s into the drive (stamp {seconds(stamp_ns)})"


def _chosen(result: Result, dataset: Dataset, count: int) -> list[str]:
    worst = [frame.frame_id for frame in worst_first(result.per_frame)[:count]]
    return worst or [dataset.frame_id(index) for index in range(min(count, len(dataset)))]


def _draw(frame: LabelledFrame, outputs: Outputs, result: Result, contract: Contract) -> bytes:
    if score_facts(result.score).of_clusters:
        panels = cluster_panels(
            frame.image, frame.anomaly, outputs.scores, result.score, _scale(result, contract), WIDTH_PX
        )
        if panels is not None:
            return jpeg(panels)
    height = round(WIDTH_PX * frame.image.shape[0] / frame.image.shape[1])
    small = np.asarray(cv2.resize(frame.image, (WIDTH_PX, height), interpolation=cv2.INTER_AREA), np.uint8)
    if result.auprc is None:
        assert outputs.labels is not None
        canvas = overlay(small, outputs.labels, None, palette(contract.classes))
        legend = class_legend(contract.classes, WIDTH_PX, anomalies=False)
    else:
        scores = scores_in_protocol(outputs, (result.score, result.protocol), (height, WIDTH_PX))
        scale = _scale(result, contract)
        canvas = np.asarray(cv2.addWeighted(small, 1 - SCORE_WEIGHT, scale.colored(scores), SCORE_WEIGHT, 0), np.uint8)
        threshold = None if result.at_threshold is None else result.at_threshold.threshold
        legend = score_bar(scale, result.score, WIDTH_PX, threshold)
    if frame.anomaly is not None:
        outline_truth(canvas, resized_labels(frame.anomaly, height, WIDTH_PX) == ANOMALY)
    return jpeg(np.vstack([canvas, legend]))


def outline_truth(canvas: RgbImage, anomalies: npt.NDArray[np.bool_]) -> None:
    """Outline true anomalies in white with a dark edge; canvas: uint8 (H, W, 3) RGB, anomalies: bool (H, W)."""
    contours, _ = cv2.findContours(anomalies.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(canvas, contours, -1, (0, 0, 0), 3)
    cv2.drawContours(canvas, contours, -1, (255, 255, 255), 1)


def jpeg(image: RgbImage) -> bytes:
    """Return uint8 (H, W, 3) RGB as a JPEG file; empty where OpenCV cannot encode it."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    encoded, buffer = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return buffer.tobytes() if encoded else b""


def _scale(result: Result, contract: Contract) -> ScoreScale:
    """Return the score's colours; where there are neither thresholds nor a usual range, over the scores met."""
    scale, edges = scale_of(contract, result.score), result.curves.histogram_edges
    if scale.ticks or score_facts(result.score).bounded or not edges:
        return scale
    return score_scale({}, (edges[0], edges[-1]), bounded=False)
