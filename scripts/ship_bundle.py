#!/usr/bin/env python3
"""Turn a trained run, and the run without outlier exposure if there is one, into models/NAME: bundle, checkpoint,
pictures, model card; with --int8 also models/NAME-int8.

anomseg train erfnet-camvid-void --data ../shared/data/CamVid
R=runs/erfnet-camvid-void; python scripts/ship_bundle.py erfnet-camvid $R $R/initial --data ../shared/data

python scripts/ship_bundle.py lite-cityscapes runs/lite --int8 runs/lite-int8 --data ../shared/data --sheet sheet.jpg

The card's figures come from the files of the runs and from measuring the bundles on whatever is in --data: mIoU on
CamVid (Cityscapes' classes mapped to its 11) and on held-out Cityscapes frames, the anomaly sets, the rates at the
bundle's own threshold. Only the card's judgements are kept from the one that is there (everything from the heading
"What it is good for" on).
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path
from typing import Any

from card import Detector, card_text, int8_text
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
"""Name of a dataset -> its folder in --data, and its split."""
NATIVE = "fishyscapes"
"""Protocol at the frames' own size: of mIoU, and of the rates at a threshold, which a camera's frames will have."""
TARGET_FPR = 0.01
OPINIONS = "## What it is good for"


def main() -> None:
    args = parsed()
    card = MODELS / args.name / "README.md"
    opinions = card.read_text().partition(OPINIONS)[2] if card.is_file() else "\n\nTo be written.\n"
    run = load_bundle(args.bundle or args.run / "bundle")
    checkpoint = args.checkpoint or args.run / "best.safetensors"
    without = None if args.base is None else measured(load_bundle(args.base / "bundle"), args.data)
    ours = measured(run, args.data)
    ours = dataclasses.replace(ours, bundle=ship(args.name, ours))
    shutil.copyfile(checkpoint, ours.bundle.directory / "checkpoint.safetensors")
    int8 = None if args.int8 is None else measured(load_bundle(args.int8), args.data)
    if int8 is not None:
        int8 = dataclasses.replace(int8, bundle=ship(f"{args.name}-int8", int8))
        (int8.bundle.directory / "README.md").write_text(int8_text(int8, ours, args.name))
    draw_curves(ours.bundle.directory / "curves.png", ours, without)
    draw_scenes(ours.bundle.directory / "scenes.jpg", ours.bundle, TARGET_FPR)
    card.write_text(card_text(ours, int8, without, args.run, args.base) + OPINIONS + opinions)
    if args.sheet is not None:
        draw_sheet(args.sheet, ours.bundle, args.sheet_frames or sheet_folders(args.data), TARGET_FPR)
    print(card.read_text())


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the shipped bundle")
    parser.add_argument("run", type=Path, help="folder of the run: bundle, best.safetensors, config.yaml, result.json")
    parser.add_argument(
        "base", type=Path, nargs="?", help="folder of the run without outliers; it needs its bundle, too"
    )
    parser.add_argument("--bundle", type=Path, help="bundle to ship (default: RUN/bundle)")
    parser.add_argument("--checkpoint", type=Path, help="its weights (default: RUN/best.safetensors)")
    parser.add_argument("--int8", type=Path, help="8-bit bundle made of it, shipped as NAME-int8")
    parser.add_argument("--data", type=Path, required=True, help="folder of CamVid, RoadAnomaly21 and the others")
    sheet_help = "also draw a picture of 30 frames of varied origin, to look at: their pictures belong to their authors"
    parser.add_argument("--sheet", type=Path, metavar="FILE.jpg", help=sheet_help)
    frames_help = "folders of images for the sheet, as many frames of each (default: all that --data has)"
    parser.add_argument("--sheet-frames", type=Path, nargs="+", metavar="FOLDER", help=frames_help)
    return parser.parse_args()


def measured(bundle: Bundle, data: Path) -> Detector:
    """Return a bundle with every score on every anomaly set of `data`, its default score at the frames' own size, and
    its mIoU on every labelled set whose classes its own can be compared with."""
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
    return Detector(bundle, seeds.results, native.results)


def ship(name: str, detector: Detector) -> Bundle:
    """Write models/NAME with what was measured of its default score beside what its `quality` says already."""
    source = detector.bundle
    quality: dict[str, Any] = dict(source.contract.quality)
    for one in detector.native:
        if one.miou is not None:
            iou = {name: r4(value) for name, value in (one.iou or {}).items()}
            semantic = {"frames": one.frames, "protocol": NATIVE, "miou": r4(one.miou), "iou": iou}
            quality.setdefault(SEMANTIC_TITLES.get(one.dataset, one.dataset), semantic)
    for one in (one for one in detector.seeds if one.score == detector.score):
        figures = {"protocol": one.protocol, "score": one.score, "auprc": r4(one.auprc), "fpr95": r4(one.fpr95)}
        quality[one.dataset] = {**figures, **rate_of(detector, one)}
    contract = dataclasses.replace(source.contract, name=name, quality=quality)
    files = {file: source.directory / file for file in contract.files}
    return save_bundle(contract, files, MODELS / name, overwrite=True)


SEMANTIC_TITLES = {"camvid": "camvid val", "cityscapes": "cityscapes_aachen"}
"""Name of a result's dataset -> what `quality` calls it, as `anomseg train` does."""


def rate_of(detector: Detector, result: Result) -> dict[str, float | None]:
    """Return the real false-positive rate at the shipped threshold on a result's set, if there is a threshold."""
    found = detector.at_threshold(result.dataset)
    return {} if found is None else {f"fpr_at_threshold_{TARGET_FPR:g}": r4(found.fpr)}


def r4(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def sheet_folders(data: Path) -> list[Path]:
    """Return folders of frames of different cameras, countries and weather: those of `data` that are there."""
    places = [*SETS.values(), "CamVid", "cityscapes_aachen", "driving_video"]
    inside = [data / place / part for place in places for part in ("images", "val")]
    return [folder for folder in inside if folder.is_dir()]


if __name__ == "__main__":
    main()
