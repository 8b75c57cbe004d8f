"""The commands that kill.py kills: how to call each, check its files, and compare its figures.

Networks and datasets are tiny. The process that forks must not use torch or an inference engine, except in checks.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from anomseg_ros.cli import main as anomseg
from anomseg_ros.commands.adapt import NOT_BETTER
from anomseg_ros.core.bundle import CONTRACT_FILE, load_bundle
from anomseg_ros.evaluation.results import load_evaluation

TIMES = ("inference_ms", "network_ms", "wall_ms", "processing_ms", "latency_ms")
SIZE = (32, 48)
CLASSES = 11


@dataclass(frozen=True)
class Place:
    """Folder that one run writes to, and folder of its inputs."""

    folder: Path
    inputs: Path

    @property
    def output(self) -> Path:
        """Output of the command."""
        return self.folder / "out"


class Command:
    """One command of `anomseg`. module: imported before forking."""

    module = ""

    def words(self, place: Place) -> list[str]:
        """Return the words of the command, the same for the first call and for those that resume."""
        raise NotImplementedError

    def prepare(self, place: Place) -> None:
        """Create the folder of a run."""
        place.folder.mkdir(parents=True)

    def run(self, place: Place) -> int:
        """Run the command; return its exit status."""
        return anomseg(self.words(place))

    def check(self, place: Place) -> None:
        """Raise an error unless every file with a final name is complete."""
        raise NotImplementedError

    def figures(self, place: Place) -> Any:
        """Return the values that must equal those of the undisturbed run."""
        raise NotImplementedError


class Train(Command):
    """A training of a few seconds that saves its state at every step and exports a bundle at the end."""

    module = "anomseg_ros.commands.train"

    def words(self, place: Place) -> list[str]:
        return ["train", str(place.inputs / "train.yaml"), "--output", str(place.output), "--resume"]

    def check(self, place: Place) -> None:
        import torch

        from anomseg_ros.networks.checkpoints import load_checkpoint

        if (state := place.output / "state.pt").is_file():
            torch.load(state, weights_only=True)
        for name in ("best", "last"):
            if (path := place.output / f"{name}.safetensors").is_file():
                load_checkpoint(path, "mide_net", CLASSES)
        if (log := place.output / "log.jsonl").is_file():
            whole = log.read_text().rpartition("\n")[0]
            for line in whole.splitlines():
                json.loads(line)
        check_bundles(place.output)

    def figures(self, place: Place) -> Any:
        checkpoints = {name: (place.output / f"{name}.safetensors").read_bytes() for name in ("best", "last")}
        return checkpoints, [bundle_figures(path.parent) for path in sorted(place.output.rglob(CONTRACT_FILE))]


class Evaluate(Command):
    """Two scores on synthetic scenes; the counts are saved after every frame."""

    module = "anomseg_ros.commands.evaluate"

    def words(self, place: Place) -> list[str]:
        words = ["evaluate", str(place.inputs / "bundle"), "--dataset", "synthetic=3:6", "--score", "void,msp"]
        files = ["--json", str(place.folder / "out.json"), "--html", str(place.folder / "out.html")]
        return [*words, "--save-every", "0", "--threads", "1", *files]

    def check(self, place: Place) -> None:
        if (path := place.folder / "out.json").is_file():
            load_evaluation(path)
        if (page := place.folder / "out.html").is_file():
            assert page.read_text(encoding="utf-8").rstrip().endswith("</html>"), "incomplete page"

    def figures(self, place: Place) -> Any:
        return without_times(json.loads((place.folder / "out.json").read_text())["results"])


class BagEvaluate(Evaluate):
    """The same figures on a bag."""

    module = "anomseg_ros.commands.bag_evaluate"

    def words(self, place: Place) -> list[str]:
        words = ["bag", "evaluate", str(place.inputs / "bundle"), str(place.inputs / "bag"), "--score", "void,msp"]
        files = ["--json", str(place.folder / "out.json"), "--html", str(place.folder / "out.html")]
        return [*words, "--threshold", "0.05", "--threads", "1", *files]


class Quantize(Command):
    """An 8-bit bundle; a second call overwrites it. It must be complete or absent."""

    module = "anomseg_ros.commands.quantize"

    def words(self, place: Place) -> list[str]:
        words = ["quantize", str(place.inputs / "bundle"), "--frames", str(place.inputs / "frames"), "--threads", "1"]
        words += ["--keep-float", "none", "--label-agreement", "0.1", "--rank-correlation", "0", "--allow-few"]
        return [*words, "--calibration-frames", "4", "--output", str(place.output), "--overwrite"]

    def check(self, place: Place) -> None:
        check_bundles(place.folder)

    def figures(self, place: Place) -> Any:
        return bundle_figures(place.output)


class Export(Quantize):
    """A bundle exported from a checkpoint."""

    module = "anomseg_ros.commands.export"

    def words(self, place: Place) -> list[str]:
        words = ["export", "--network", "mide_net", "--checkpoint", str(place.inputs / "checkpoint.safetensors")]
        words += ["--num-classes", "20", "--void-class", "19", "--size", "64x128"]
        return [*words, "--output", str(place.output), "--overwrite"]


class Calibrate(Quantize):
    """Thresholds, written into an existing bundle."""

    module = "anomseg_ros.commands.calibrate_threshold"

    def prepare(self, place: Place) -> None:
        super().prepare(place)
        shutil.copytree(place.inputs / "bundle", place.output)

    def words(self, place: Place) -> list[str]:
        words = ["calibrate", "threshold", str(place.output), "--dataset", "synthetic=3:4", "--score", "void,msp"]
        return [*words, "--target-fpr", "0.01,0.05"]

    def check(self, place: Place) -> None:
        assert load_bundle(place.output).contract.score_names, "the bundle is missing"


class Adapt(Quantize):
    """A bundle whose norms follow a drive. What is done lies beside the output until that is in place."""

    module = "anomseg_ros.commands.adapt"

    def words(self, place: Place) -> list[str]:
        words = ["adapt", str(place.inputs / "bundle"), "--frames", str(place.inputs / "drive"), "--threads", "1"]
        words += ["--checkpoint", str(place.inputs / "checkpoint.safetensors"), "--stages", "bn", "--min-alarm-px", "4"]
        return [*words, "--output", str(place.output), "--overwrite"]

    def run(self, place: Place) -> int:
        status = super().run(place)
        return 0 if status == NOT_BETTER else status


COMMANDS: dict[str, Command] = {
    "train": Train(),
    "evaluate": Evaluate(),
    "bag evaluate": BagEvaluate(),
    "quantize": Quantize(),
    "export": Export(),
    "calibrate": Calibrate(),
    "adapt": Adapt(),
}


def check_bundles(folder: Path) -> None:
    """Raise BundleError unless every bundle with a final name below a folder is complete."""
    for contract in folder.rglob(CONTRACT_FILE):
        if not any(part.startswith(".") for part in contract.relative_to(folder).parts):
            load_bundle(contract.parent)


def bundle_figures(folder: Path) -> Any:
    """Return file names, contract and digests of a bundle, without the command and times of the run."""
    contract = load_bundle(folder).contract
    plain = yaml.safe_load((folder / CONTRACT_FILE).read_text(encoding="utf-8"))
    plain["provenance"] = {key: value for key, value in plain["provenance"].items() if key != "command"}
    return sorted(contract.files), without_times(plain), contract.files


def without_times(plain: Any) -> Any:
    """Return plain data without times."""
    if isinstance(plain, dict):
        return {key: without_times(value) for key, value in plain.items() if key not in TIMES}
    return [without_times(value) for value in plain] if isinstance(plain, list) else plain


def make_inputs(folder: Path) -> None:
    """Write a checkpoint and its bundle, frames, a drive, a labelled bag, labelled frames, a training configuration."""
    import torch

    from anomseg_ros.bags.write import BagWriter, write_labelled_frames
    from anomseg_ros.core.bundle import Provenance
    from anomseg_ros.export import ExportConfig, export_network
    from anomseg_ros.networks import build_network
    from anomseg_ros.networks.checkpoints import save_checkpoint
    from anomseg_ros.scenes.sequence import SyntheticConfig, SyntheticSequence

    (folder / "frames").mkdir(parents=True)
    torch.manual_seed(0)
    network = build_network("mide_net", 20).eval()
    save_checkpoint(folder / "checkpoint.safetensors", network, {})
    config = ExportConfig("tiny", 20, 19, height_px=64, width_px=128, scores=("void", "msp"))
    export_network(network, "mide_net", config, folder / "bundle", Provenance())
    scenes = SyntheticConfig(width_px=256, height_px=128, anomaly_probability=1.0, anomaly_size_m=(1.0, 2.0))
    frames = list(SyntheticSequence(7, scenes).frames(8))
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / "frames" / f"{number}.png"), frame.image[:, :, ::-1])
    (folder / "drive").mkdir()
    for number, frame in enumerate(SyntheticSequence(8, SyntheticConfig(width_px=128, height_px=64)).frames(20)):
        cv2.imwrite(str(folder / "drive" / f"{number:02d}.png"), frame.image[:, :, ::-1])
    with BagWriter(folder / "bag") as bag:
        write_labelled_frames(bag, frames, 10.0, 100.0)
    _write_training(folder)


def _write_training(folder: Path) -> None:
    """Write labelled frames in CamVid's layout, and a configuration that trains on them for a few seconds."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for name in (split, f"{split}annot"):
            (folder / "camvid" / name).mkdir(parents=True)
        for number in range(count):
            labels = np.repeat(np.sort(rng.integers(0, CLASSES, SIZE[0])).astype(np.uint8), SIZE[1]).reshape(SIZE)
            noise = rng.integers(0, 30, (*SIZE, 3), dtype=np.uint8)
            image = (20 * labels[:, :, np.newaxis] + noise).astype(np.uint8)
            cv2.imwrite(str(folder / "camvid" / split / f"{number:03d}.png"), image)
            cv2.imwrite(str(folder / "camvid" / f"{split}annot" / f"{number:03d}.png"), labels)
    plain = {
        "name": "tiny",
        "network": {"name": "mide_net"},
        "data": {
            "dataset": "camvid",
            "path": str(folder / "camvid"),
            "height_px": SIZE[0],
            "width_px": SIZE[1],
            "allow_partial": True,
            "workers": 0,
            "cache": "memory",
        },
        "augment": {"crop_height_px": 32, "crop_width_px": 32, "scale": [0.8, 1.4]},
        "run": {"epochs": 5, "batch_size": 2, "checkpoint_every": 1, "accelerator": "cpu", "threads": 1},
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
