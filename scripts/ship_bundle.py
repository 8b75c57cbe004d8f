#!/usr/bin/env python3
"""Write models/NAME from a trained run: bundle, checkpoint, pictures and model card; with --int8 also models/NAME-int8.

The card also compares a run without outlier exposure, if it is given.

anomseg train erfnet-camvid-void --data ../shared/data/CamVid
R=runs/erfnet-camvid-void; python scripts/ship_bundle.py erfnet-camvid $R $R/initial --data ../shared/data

python scripts/ship_bundle.py lite-cityscapes runs/lite --int8 runs/lite-int8 --data ../shared/data --sheet sheet.jpg

The figures of the card come from the files of the runs and from measuring the bundles on the datasets in --data: mIoU
on CamVid (Cityscapes' classes mapped to its 11) and on held-out Cityscapes frames, figures on the anomaly sets, and
rates at the bundle's threshold. From an existing card, the text from the heading "What it is good for" on is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path
from typing import Any

from card import MeasuredBundle, card_text, int8_text
from pictures import draw_curves, draw_scenes, draw_sheet

from anomseg_ros.core.bundle import Bundle, load_bundle, save_bundle
from anomseg_ros.errors import DatasetError
from anomseg_ros.evaluation.evaluate import Request, evaluate
from anomseg_ros.evaluation.results import Result

MODELS = Path(__file__).resolve().parents[1] / "models"
SETS = {
    "road_anomaly_21": "RoadAnomaly21",
    "road_obstacle_21": "RoadObstacle21",
    "fs_static": "fs_static",
    "fs_lost_found": "FS_LostFound_full",
    "road_anomaly": "RoadAnomaly",
}
SEMANTIC = {"camvid": "CamVid:val", "cityscapes": "cityscapes_aachen"}
"""Name of a dataset -> its folder in --data and its split."""
NATIVE = "fishyscapes"
"""Protocol at the frames' own size, for mIoU and for the rates at the threshold. The node uses this size as well."""
TARGET_FPR = 0.01
TEXT_HEADING = "## What it is good for"


def main() -> None:
    args = parse_arguments()
    card = MODELS / args.name / "README.md"
    text = card.read_text().partition(TEXT_HEADING)[2] if card.is_file() else "\n\nTo be written.\n"
    run = load_bundle(args.bundle or args.run / "bundle")
    checkpoint = args.checkpoint or args.run / "best.safetensors"
    without = None if args.base is None else measure(load_bundle(args.base / "bundle"), args.data)
    ours = measure(run, args.data)
    ours = dataclasses.replace(ours, bundle=ship(args.name, ours))
    shutil.copyfile(checkpoint, ours.bundle.directory / "checkpoint.safetensors")
    int8 = None if args.int8 is None else measure(load_bundle(args.int8), args.data)
    if int8 is not None:
        int8 = dataclasses.replace(int8, bundle=ship(f"{args.name}-int8", int8))
        (int8.bundle.directory / "README.md").write_text(int8_text(int8, ours, args.name))
    draw_curves(ours.bundle.directory / "curves.png", ours, without)
    draw_scenes(ours.bundle.directory / "scenes.jpg", ours.bundle, TARGET_FPR)
    card.write_text(card_text(ours, int8, without, args.run, args.base) + TEXT_HEADING + text)
    if args.sheet is not None:
        draw_sheet(args.sheet, ours.bundle, args.sheet_frames or sheet_folders(args.data), TARGET_FPR)
    print(card.read_text())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the shipped bundle")
    parser.add_argument("run", type=Path, help="folder of the run: bundle, best.safetensors, config.yaml, result.json")
    parser.add_argument("base", type=Path, nargs="?", help="folder of the run without outliers, with its bundle")
    parser.add_argument("--bundle", type=Path, help="bundle to ship (default: RUN/bundle)")
    parser.add_argument("--checkpoint", type=Path, help="its weights (default: RUN/best.safetensors)")
    parser.add_argument("--int8", type=Path, help="8-bit bundle made from it, shipped as NAME-int8")
    parser.add_argument("--data", type=Path, required=True, help="folder with CamVid, RoadAnomaly21 and the other sets")
    sheet_help = "also draw 30 frames of all sets for inspection only; the frames belong to their authors"
    parser.add_argument("--sheet", type=Path, metavar="FILE.jpg", help=sheet_help)
    frames_help = "folders of images for the sheet (default: all sets in --data)"
    parser.add_argument("--sheet-frames", type=Path, nargs="+", metavar="FOLDER", help=frames_help)
    return parser.parse_args()


def measure(bundle: Bundle, data: Path) -> MeasuredBundle:
    """Return a bundle with its results on the sets in `data`.

    Every score is measured on the anomaly sets, the default score also at the frames' own size, and mIoU on every
    labelled set with comparable classes.
    """
    sets = tuple(f"{name}={data / folder}" for name, folder in SETS.items() if (data / folder).is_dir())
    semantic = tuple(
        f"{name}={data / folder}" for name, folder in SEMANTIC.items() if (data / folder.partition(":")[0]).is_dir()
    )
    if not sets:
        raise DatasetError(f"--data {str(data)!r} has none of {', '.join(SETS.values())}")
    default = bundle.contract.score_names[:1]
    seeds = evaluate(Request((bundle.directory,), sets, target_fpr=TARGET_FPR, allow_partial=True))
    request = Request((bundle.directory,), (*sets, *semantic), default, (NATIVE,), target_fpr=TARGET_FPR)
    native = evaluate(dataclasses.replace(request, allow_partial=True))
    unexpected = [text for text in (*seeds.errors, *native.errors) if "mIoU is not measured" not in text]
    if unexpected:
        raise SystemExit("\n".join(unexpected))
    return MeasuredBundle(bundle, seeds.results, native.results)


def ship(name: str, detector: MeasuredBundle) -> Bundle:
    """Write models/NAME. The results of the default score are added to `quality` in the contract."""
    source = detector.bundle
    quality: dict[str, Any] = dict(source.contract.quality)
    for one in detector.native:
        if one.miou is not None:
            iou = {name: round4(value) for name, value in (one.iou or {}).items()}
            semantic = {"frames": one.frames, "protocol": NATIVE, "miou": round4(one.miou), "iou": iou}
            quality.setdefault(SEMANTIC_TITLES.get(one.dataset, one.dataset), semantic)
    for one in (one for one in detector.seeds if one.score == detector.score):
        figures = {"protocol": one.protocol, "score": one.score, "auprc": round4(one.auprc), "fpr95": round4(one.fpr95)}
        quality[one.dataset] = {**figures, **rate_at_threshold(detector, one)}
    contract = dataclasses.replace(source.contract, name=name, quality=quality)
    files = {file: source.directory / file for file in contract.files}
    return save_bundle(contract, files, MODELS / name, overwrite=True)


SEMANTIC_TITLES = {"camvid": "camvid val", "cityscapes": "cityscapes_aachen"}
"""Name of a result's dataset -> its key in `quality`, the same as in `anomseg train`."""


def rate_at_threshold(detector: MeasuredBundle, result: Result) -> dict[str, float | None]:
    """Return the actual false-positive rate at the shipped threshold on a result's set; empty without a threshold."""
    found = detector.at_threshold(result.dataset)
    return {} if found is None else {f"fpr_at_threshold_{TARGET_FPR:g}": round4(found.fpr)}


def round4(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def sheet_folders(data: Path) -> list[Path]:
    """Return the folders of frames in `data`, which differ in camera, country and weather."""
    places = [*SETS.values(), "CamVid", "cityscapes_aachen", "driving_video"]
    inside = [data / place / part for place in places for part in ("images", "val")]
    return [folder for folder in inside if folder.is_dir()]


if __name__ == "__main__":
    main()
