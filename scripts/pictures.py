"""Pictures of a model card: curves, generated scenes, and a contact sheet of frames from several datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from card import HEADINGS, MeasuredBundle, best_score

from anomseg_ros import scores
from anomseg_ros.backends import open_detector
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.core.detector import Detector as Running
from anomseg_ros.core.image_files import image_files, read_image
from anomseg_ros.core.labels import palette
from anomseg_ros.core.overlay import anomaly_mask, overlay, panel
from anomseg_ros.core.types import RgbImage
from anomseg_ros.scenes.sequence import SyntheticConfig, SyntheticSequence

SCENES = ((3_000_004, 30), (3_000_011, 55))
"""Seed and number of the synthetic frames. The pictures of the benchmarks belong to their authors."""
COLORS = ((200, 60, 30), (120, 120, 120))
SQUARE_PX = 360
SHEET_FRAMES, SHEET_COLUMNS = 30, 5
TILE = (384, 216)
"""Width and height of a frame on the sheet, pixels."""


def draw_curves(path: Path, ours: MeasuredBundle, base: MeasuredBundle | None) -> None:
    """Draw precision over recall, one square per set. base: the bundle without outlier exposure, if it was measured."""
    squares = []
    for name in ours.sets:
        square = np.full((SQUARE_PX, SQUARE_PX, 3), 255, np.uint8)
        cv2.rectangle(square, (40, 30), (340, 330), (200, 200, 200), 1)
        drawn = [] if base is None else [(COLORS[1], base.result(name, best_score(base, name)))]
        for color, result in (*drawn, (COLORS[0], ours.result(name, ours.score))):
            recall, precision = np.array(result.curves.recall), np.array(result.curves.precision)
            points = np.stack([40 + 300 * recall, 330 - 300 * precision], 1).astype(np.int32)
            cv2.polylines(square, [points], False, color, 2, cv2.LINE_AA)
        cv2.putText(square, f"{HEADINGS[name]}: precision / recall", (40, 20), 0, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
        squares.append(square)
    legend = np.full((34, SQUARE_PX * len(squares), 3), 255, np.uint8)
    texts = (ours.score,) if base is None else (f"with outlier exposure, {ours.score}", "without, best score")
    for x, color, text in zip((40, 420), COLORS, texts, strict=False):
        cv2.line(legend, (x, 14), (x + 30, 14), color, 3)
        cv2.putText(legend, text, (x + 40, 19), 0, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    cv2.imwrite(str(path), np.vstack([np.hstack(squares), legend])[:, :, ::-1])


def draw_scenes(path: Path, bundle: Bundle, target_fpr: float) -> None:
    """Draw the outputs of a bundle for synthetic scenes."""
    detector, contract = open_detector(bundle), bundle.contract
    score = contract.score_names[0]
    tiles = []
    for seed, index in SCENES:
        image = SyntheticSequence(seed, SyntheticConfig(anomaly_probability=1.0)).frame(index).image
        outputs = detector.detect(image)
        mask = anomaly_mask(outputs.scores[score], threshold_of(bundle, target_fpr))
        drawn = scores.find_score(score).drawn_range(contract.known_count)
        tiles.append(panel(image, outputs.labels, outputs.scores[score], mask, contract.classes, drawn, score))
    picture = np.vstack([cv2.resize(tile, (1024, 512), interpolation=cv2.INTER_AREA) for tile in tiles])
    cv2.imwrite(str(path), picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])


def draw_sheet(path: Path, bundle: Bundle, folders: Sequence[Path], target_fpr: float) -> None:
    """Draw labels and anomaly mask over frames, which are spread evenly over the folders."""
    files = spread_evenly([image_files(folder) for folder in folders], SHEET_FRAMES)
    detector = open_detector(bundle)
    tiles = [draw_tile(detector, file, target_fpr) for file in files]
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % SHEET_COLUMNS)
    rows = [np.hstack(tiles[start : start + SHEET_COLUMNS]) for start in range(0, len(tiles), SHEET_COLUMNS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.vstack(rows)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])


def draw_tile(detector: Running, file: Path, target_fpr: float) -> RgbImage:
    """Return one frame of the sheet with its folder and name, uint8 (H, W, 3) RGB."""
    image = read_image(file)
    bundle = detector.bundle
    score = bundle.contract.score_names[0]
    outputs = detector.detect(image, (score,), source_size=True)
    mask = anomaly_mask(outputs.scores[score], threshold_of(bundle, target_fpr))
    assert outputs.labels is not None
    drawn = overlay(image, outputs.labels, mask, palette(bundle.contract.classes))
    tile = np.asarray(cv2.resize(drawn, TILE, interpolation=cv2.INTER_AREA), np.uint8)
    origin = f"{file.parent.parent.name}/{file.stem}"[:48]
    cv2.rectangle(tile, (0, TILE[1] - 14), (TILE[0], TILE[1]), (0, 0, 0), cv2.FILLED)
    cv2.putText(tile, origin, (4, TILE[1] - 4), 0, 0.35, (255, 255, 255), 1, cv2.LINE_AA)
    return tile


def spread_evenly(groups: Sequence[Sequence[Path]], count: int) -> list[Path]:
    """Return `count` files, or all if there are fewer, spread as evenly as possible over and within the groups."""
    shares = [0] * len(groups)
    while sum(shares) < min(count, sum(map(len, groups))):
        open_ones = [index for index, group in enumerate(groups) if shares[index] < len(group)]
        shares[min(open_ones, key=lambda index: shares[index])] += 1
    return [
        group[(2 * n + 1) * len(group) // (2 * share)]
        for group, share in zip(groups, shares, strict=True)
        for n in range(share)
    ]


def threshold_of(bundle: Bundle, target_fpr: float) -> float:
    """Return the default score's threshold. Raises SystemExit for a bundle without one."""
    found = scores.threshold_of(bundle, bundle.contract.score_names[0], target_fpr)
    if found is None:
        raise SystemExit(f"{bundle.contract.name} has no threshold; add one with `anomseg calibrate threshold`")
    return found.value
