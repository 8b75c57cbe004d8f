"""Plays a newcomer with a drive and twenty labelled frames, and writes times and figures into docs/tutorial.md.

The commands are those of the page. The drive is two clips of cityscapes_clips in ANOMSEG_DATA, without labels. The
ego mask is drawn by hand. Twenty frames of the other clips, whose labels are painted in five classes, stand for what
somebody labels by hand.
`--small` plays the same on drawn frames with a small network; it takes two minutes, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from common import DATA, run, write_result

from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.image_files import image_files
from anomseg_ros.datasets import open_dataset
from anomseg_ros.datasets.dataset import Dataset
from anomseg_ros.evaluation.results import load_evaluation
from anomseg_ros.export import ExportConfig, export_checkpoint
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import save_checkpoint
from anomseg_ros.scenes.sequence import SyntheticSequence

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tutorial.md"
BEGIN, END = "<!-- figures: benchmarks/tutorial.py -->", "<!-- end of the figures -->"
DRIVE_CLIPS = ("seq0000", "seq0003")
"""Clips of 30 frames at 17 Hz."""
BONNET = (
    *((280, 1023), (600, 980), (816, 955), (1095, 932), (1085, 890), (1100, 850), (1136, 834)),
    *((1176, 834), (1208, 850), (1222, 900), (1205, 930), (1660, 965), (2030, 1023)),
)
"""Bonnet and star in these clips: x and y of the corners of a polygon, pixels of 2048x1024."""
RARE_FPR = "0.001"
"""At 1 % of the pixels, something is marked in every frame."""
LASTING = ("--alarm-frames-n", "3", "--alarm-frames-m", "5")
"""An alarm is a region that is above the threshold in 3 of 5 frames."""
LABELLED_CLIPS = ("aachen_000001", "aachen_000002", "aachen_000004", "aachen_000005")
LABELLED = 20
CLASSES = {
    "drivable": ("road", "parking"),
    "walkway": ("sidewalk",),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
    "green": ("vegetation", "terrain"),
    "sky": ("sky",),
}
"""One's own classes, of Cityscapes' classes; all other pixels stay unlabelled."""
COLORS = {
    "drivable": (128, 64, 128),
    "walkway": (244, 35, 232),
    "vehicle": (0, 0, 142),
    "green": (107, 142, 35),
    "sky": (70, 130, 180),
}
SMALL_TRAINING = (
    *("network.name=mide_net", "network.initial=null", "optimizer.rates={}", "loss.auxiliary_weight=0"),
    *("data.height_px=64", "data.width_px=128", "augment.crop_height_px=64", "augment.crop_width_px=128"),
    "run.epochs=2",
)


@dataclass(frozen=True)
class Step:
    """A command of the page. name: in words; words: after `anomseg`; figure: what came out, in words."""

    name: str
    words: Sequence[object]
    figure: Callable[[], str]
    accepted: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Place:
    """Where the newcomer works: drive/ has the frames, ego.png the ego mask, exported/ the labelled frames.

    bundle: to start from. fps: of the drive. training: changes of the recipe for one's own classes. adapt_options: of
    `anomseg adapt`.
    """

    folder: Path
    bundle: str
    fps: float
    training: Sequence[str] = ()
    adapt_options: Sequence[str] = ()

    def path(self, name: str) -> Path:
        """Return a path in the folder."""
        return self.folder / name


def main() -> None:
    """Prepare the frames, run every step that is not done, and write the page and the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("tutorial_work"), help="folder; finished steps stay in it")
    parser.add_argument("--small", action="store_true", help="drawn frames and a small network")
    parser.add_argument("--page", type=Path, help=f"page to write into (default: docs/{PAGE.name}; none with --small)")
    parser.add_argument(
        "--json", type=Path, help="result (default: benchmarks/results/tutorial.json; none with --small)"
    )
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    place = small_place(args.work) if args.small else real_place(args.work)
    rows = [played(step, place) for step in steps(place)]
    if not args.small or args.page:
        write_page(args.page or PAGE, rows)
    if not args.small or args.json:
        write_result("tutorial", {"steps": rows}, args.json)


def real_place(folder: Path) -> Place:
    """Return the drive of cityscapes_clips with twenty of its frames labelled in CLASSES."""
    clips = DATA / "cityscapes_clips"
    if not clips.is_dir():
        raise SystemExit(f"{clips} does not exist; set ANOMSEG_DATA, or use --small")
    # The default bundle has learned frames of this town; the drive of a newcomer is on a road that the bundle has not.
    place = Place(folder, "enet-camvid", 17.0)
    if not place.path("drive").exists():
        place.path("drive").mkdir()
        for clip in DRIVE_CLIPS:
            for picture in image_files(clips / "images" / clip):
                shutil.copy(picture, place.path("drive") / f"{clip}_{picture.name}")
    write_ego_mask(place, BONNET, 2048, 1024)
    write_labelled(open_dataset("cityscapes", str(clips), "train"), place.path("exported"), LABELLED_CLIPS)
    return place


def small_place(folder: Path) -> Place:
    """Return a drawn drive of 40 frames, of which some are labelled, and a small random network."""
    place = Place(folder, str(folder / "start"), 10.0, SMALL_TRAINING, ("--stages", "bn"))
    if not place.path("drive").exists():
        place.path("drive").mkdir()
        for frame in SyntheticSequence(20).frames(40):
            image = cv2.resize(frame.image, (256, 128), interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(place.path("drive") / f"{frame.index:03d}.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    write_ego_mask(place, ((64, 127), (80, 120), (176, 120), (192, 127)), 256, 128)
    write_labelled(open_dataset("synthetic", f"20:{LABELLED}"), place.path("exported"), ("",))
    if not place.path("start").exists():
        write_small_bundle(place)
    return place


def write_small_bundle(place: Place) -> None:
    """Write the bundle `start`: MiDE-Net with random weights, calibrated on the drive."""
    checkpoint = place.path("start.safetensors")
    save_checkpoint(checkpoint, build_network("mide_net", 20).eval(), {})
    config = ExportConfig("start", 20, 19, height_px=64, width_px=128)
    bundle, _ = export_checkpoint("mide_net", checkpoint, config, place.path("start"))
    shutil.copy(checkpoint, bundle.directory / "checkpoint.safetensors")


def write_ego_mask(place: Place, corners: Sequence[tuple[int, int]], width_px: int, height_px: int) -> None:
    """Write ego.png: white inside a polygon, given by its corners x and y."""
    mask = np.zeros((height_px, width_px), np.uint8)
    cv2.fillPoly(mask, [np.array(corners, np.int32)], 255)
    cv2.imwrite(str(place.path("ego.png")), mask)


def write_labelled(dataset: Dataset, folder: Path, drives: Sequence[str]) -> None:
    """Write LABELLED frames, evenly spread over those of some drives, with masks in the colours of CLASSES."""
    if (folder / "labelmap.txt").exists():
        return
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    indices = [index for index in range(len(dataset)) if dataset.frame_id(index).startswith(tuple(drives))]
    for index in np.linspace(0, len(indices) - 1, LABELLED).astype(int):
        frame = dataset.load(indices[index])
        mask = np.zeros((*frame.labels.shape, 3), np.uint8)
        for info in dataset.classes or ():
            for name, parts in CLASSES.items():
                mask[(frame.labels == info.train_id) & (info.name in parts)] = COLORS[name]
        stem = frame.id.replace("/", "_")
        for kind, picture in (("images", frame.image), ("masks", mask)):
            cv2.imwrite(str(folder / kind / f"{stem}.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    lines = [f"{name}:{','.join(map(str, color))}::" for name, color in COLORS.items()]
    (folder / "labelmap.txt").write_text("\n".join(["background:0,0,0::", *lines]) + "\n")


def steps(place: Place) -> list[Step]:
    """Return the commands of the page, in order."""
    return [*drive_steps(place), *label_steps(place), *vehicle_steps(place)]


def drive_steps(place: Place) -> list[Step]:
    """Return what an unlabelled drive alone is enough for."""
    drive, path = place.path("drive"), place.path
    frames = ["--frames", drive, "--ego-mask", path("ego.png")]
    return [
        Step(
            "look at a few frames",
            ["run", place.bundle, *image_files(drive)[:5], "--output", path("look"), "--score-files", "none"],
            lambda: masked(path("look")),
        ),
        Step(
            "thresholds from the drive",
            [
                "calibrate",
                "threshold",
                place.bundle,
                *frames,
                "--target-fpr",
                "0.01",
                "--fps",
                place.fps,
                "--page",
                path("frames.html"),
                "--output",
                path("calibrated"),
            ],
            lambda: usual_threshold(path("calibrated"), 0.01),
        ),
        Step(
            "adapt the bundle to the drive",
            ["adapt", place.bundle, *frames, *place.adapt_options, "--fps", place.fps, "--output", path("adapted")],
            lambda: adapted(path("adapted")),
            (0, 3),
        ),
    ]


def label_steps(place: Place) -> list[Step]:
    """Return the way from labelled frames to a bundle with the drive's thresholds."""
    path, own = place.path, place.path("runs") / "bundle"
    frames = ["--frames", path("drive"), "--ego-mask", path("ego.png")]
    changes = [word for change in (f"name={place.folder.name}", *place.training) for word in ("--set", change)]
    trained = ["folder-bisenet_lite", "--data", path("my_road"), "--output", path("runs"), *changes]
    return [
        Step(
            "import 20 labelled frames",
            ["datasets", "import", "colors", path("exported"), "--output", path("my_road")],
            lambda: f"{LABELLED} frames, {len(CLASSES)} classes",
        ),
        Step(
            "check them",
            ["datasets", "check", f"folder={path('my_road')}:train", f"folder={path('my_road')}:val"],
            lambda: "nothing to complain of",
        ),
        Step("train on them", ["train", *trained], lambda: f"mIoU {100 * miou(own):.1f} % on frames held out"),
        Step(
            "thresholds from the drive",
            [
                "calibrate",
                "threshold",
                own,
                *frames,
                "--target-fpr",
                RARE_FPR,
                "--fps",
                place.fps,
                "--output",
                path("mine"),
            ],
            lambda: usual_threshold(path("mine"), float(RARE_FPR)),
        ),
    ]


def vehicle_steps(place: Place) -> list[Step]:
    """Return the way from the bundle to the node."""
    drive, path = place.path("drive"), place.path
    frames = ["--frames", drive]
    return [
        Step(
            "quantize",
            ["quantize", path("mine"), *frames, "--output", path("mine-int8")],
            lambda: agreement(path("mine-int8")),
        ),
        Step(
            "make a bag of the drive",
            ["bag", "write", "--images", drive, "--fps", place.fps, "--output", path("bag")],
            lambda: f"{len(image_files(drive))} frames",
        ),
        Step(
            "run the node on the bag, report",
            [
                "bag",
                "evaluate",
                path("mine-int8"),
                path("bag"),
                "--ego-mask",
                path("ego.png"),
                *("--target-fpr", RARE_FPR, *LASTING),
                "--live",
                "--json",
                path("drive.json"),
                "--html",
                path("drive.html"),
            ],
            lambda: live(path("drive.json")),
        ),
    ]


def played(step: Step, place: Place) -> dict[str, Any]:
    """Run a step, unless it is done, and return its row. Raises SystemExit if it fails."""
    done_file = place.path("steps.json")
    done: dict[str, Any] = json.loads(done_file.read_text()) if done_file.exists() else {}
    words = [str(word) for word in step.words]
    command = "anomseg " + " ".join(words).replace(f"{place.folder}/", "").replace(str(place.folder), ".")
    if command not in done:
        begin_s = time.monotonic()
        run(words, step.accepted)
        seconds = round(time.monotonic() - begin_s, 1)
        done[command] = {"step": step.name, "command": command, "seconds": seconds, "figure": step.figure()}
        done_file.write_text(json.dumps(done, indent=2))
    row: dict[str, Any] = done[command]
    return row


def masked(folder: Path) -> str:
    """Return the share of marked pixels in the masks of a folder, in words."""
    masks = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(folder.glob("*_mask.png"))]
    return f"{100 * np.mean([(mask > 0).mean() for mask in masks]):.2f} % of the pixels are marked"


def usual_threshold(directory: Path, rate: float) -> str:
    """Return the calibrated threshold of the default score for a rate, in words."""
    bundle = load_bundle(directory)
    score = bundle.contract.score_names[0]
    found = bundle.threshold(score, rate)
    assert found is not None
    return f"`{score}` above {found.value:.3g} for {100 * rate:g} % of the pixels"


def adapted(directory: Path) -> str:
    """Return what adapting changed on the frames held back, in words."""
    stages = load_bundle(directory).contract.adaptation["stages"]
    first, *others = [stage for stage in stages if stage["name"] == "given" or stage["kept"]]
    rate = f"false-positive rate for 1 %, held back: {100 * first['held_back_fpr']:.2f} %"
    if not others:
        return f"no stage was better; thresholds of the drive; {rate}"
    before, after = first["figures"], others[-1]["figures"]
    return (
        f"alarms held back: {before['alarms']} before, {after['alarms']} after, at {after['detected']} of "
        f"{after['objects']} pasted objects detected; {rate} before, {100 * others[-1]['held_back_fpr']:.2f} % after"
    )


def miou(directory: Path) -> float:
    """Return the mIoU that training measured."""
    (figures,) = load_bundle(directory).contract.quality.values()
    return float(figures["miou"])


def agreement(directory: Path) -> str:
    """Return how much of the labels 8 bits keep, in words."""
    drift = load_bundle(directory).contract.compression["drift"]
    return f"{100 * drift['label_agreement']:.1f} % of the labels are the same"


def live(path: Path) -> str:
    """Return the alarms and the latency through the node, in words."""
    result = next(one for one in load_evaluation(path).results if one.live is not None)
    assert result.drive is not None and result.live is not None
    rate, seen = result.drive.alarms_per_minute, result.live
    alarms = "" if rate is None else f"{rate:.0f} alarms per minute through the node, "
    latency = f"stamp to output {seen.latency_ms['p50']:.0f} ms (median)"
    return f"{alarms}{seen.dropped} of {seen.frames} frames dropped, {latency}"


def write_page(page: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the table between the marks of the page."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    lines = ["| step | seconds | what came out |", "|---|---|---|"]
    lines += [f"| {row['step']} | {row['seconds']:.0f} | {row['figure']} |" for row in rows]
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
