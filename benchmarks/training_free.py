"""Training-free scores side by side on the same features: clusters, SML, cDNP and plain scores, in training_free.md.

Each network runs once per frame, in torch, and every score is computed of that one prediction. Networks are the
published checkpoints in ANOMSEG_WEIGHTS that load and the shipped bundles that hold their checkpoint; the others cannot
be fitted. Scores are fitted on frames of CamVid's training split, without labels. Sets are those in ANOMSEG_DATA, with
protocol `seeds`: AuPRC is the average precision of the named score's map itself.

--own adds sets of pasted objects (`anomseg datasets cut-paste`), on which the default of `cluster_mix` is chosen: the
candidate of the largest mean gain over the plain score that loses on none of them. The table has every candidate on
these sets, and the chosen one alone on the benchmark's. Finished parts stay in --work, so a killed run goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DATA, WEIGHTS, write_result
from training_free_table import as_markdown

from anomseg_ros.core.bundle import CHECKPOINT_FILE, Contract, Provenance, load_bundle
from anomseg_ros.core.preprocess import resized_scores, tensor_from_frame
from anomseg_ros.core.resources import shipped_bundles
from anomseg_ros.core.types import ScoreMap
from anomseg_ros.datasets import open_named
from anomseg_ros.datasets.dataset import Dataset
from anomseg_ros.deploy import fit_scores
from anomseg_ros.evaluation.machine import describe_machine
from anomseg_ros.evaluation.views import View, make_view
from anomseg_ros.export import ExportConfig, contract_of
from anomseg_ros.metrics.protocols import protocol
from anomseg_ros.networks.checkpoints import load_checkpoint
from anomseg_ros.networks.network import SegmentationNetwork, pixels_to_input
from anomseg_ros.networks.score_head import ScoreHead
from anomseg_ros.scores import start_fits

TABLE = Path(__file__).resolve().parent / "training_free.md"
SCORES = (
    *("max_logit", "msp", "sml", "cdnp", "cluster_ratio"),
    *("cluster_binary", "cluster_mean", "cluster_mix", "cluster_guided"),
)
SETS = {"road_anomaly_21": "RoadAnomaly21", "road_obstacle_21": "RoadObstacle21", "fs_static": "fs_static"}
CANDIDATES = tuple({"T": share, "strength": strength} for share in (0.5, 0.7, 0.8, 0.9) for strength in (1.0, 2.0))
"""Options of cluster_mix to choose from."""
CHECKPOINTS = {
    "ENet": ("enet", "enet_560_epochs.pth"),
    "ERFNet (void)": ("erfnet", "erfnet_void20_dequantized.safetensors"),
    "MiDE-Net": ("mide_net", "midenet_distilled.pth"),
    "ESPNetv2 s 1.0": ("espnetv2", "espnetv2/espnetv2_s_1.0_city_1024x512.pth"),
    "ESPNetv2 s 2.0": ("espnetv2", "espnetv2/espnetv2_s_2.0_city_1024x512.pth"),
}
"""Title -> network and file. Each has 20 outputs, the last of which is no known class."""


@dataclass(frozen=True)
class Model:
    """A network that is measured: its checkpoint, and a contract with its classes and its input size."""

    title: str
    checkpoint: Path
    contract: Contract


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    models, missing = available_models(args.only)
    sets = {name: f"{name}={DATA / folder}" for name, folder in SETS.items() if (DATA / folder).is_dir()}
    own = {Path(folder).name: f"cut_paste={folder}" for folder in args.own}
    rows = []
    for model in models:
        fitted: list[SegmentationNetwork] = []  # for the first part that is not there yet
        for name, spec in {**sets, **own}.items():
            part = args.work / f"{model.title} {name} {args.frames} {args.fit_frames}.json"
            if not part.is_file() and args.table_only:
                missing[f"{model.title}, {name}"] = "not finished"
                continue
            if not part.is_file():
                fitted = fitted or [fitted_network(model, args.fit_frames)]
                measured = measure(fitted[0], model.contract, open_named(spec), args.frames)
                part.parent.mkdir(parents=True, exist_ok=True)
                part.write_text(json.dumps(measured))
                print(model.title, name, measured["scores"], flush=True)
            rows.append({"model": model.title, "set": name, "own": name in own, **json.loads(part.read_text())})
    result = {"fit_frames": args.fit_frames, "frames_per_set": args.frames, "missing": missing, "rows": rows}
    print(write_result("training_free", result))
    TABLE.write_text(as_markdown(result, describe_machine()))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("training_free_work"), help="folder for finished parts")
    parser.add_argument("--only", nargs="*", metavar="TITLE", help="models to measure (default: all)")
    parser.add_argument("--own", nargs="*", default=[], metavar="DIR", help="cut-paste datasets to choose on")
    parser.add_argument("--frames", type=int, default=0, help="most frames per set, evenly spread; 0: all (default)")
    parser.add_argument("--fit-frames", type=int, default=100, help="training frames to fit on (default: 100)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--table-only", action="store_true", help="write the table of the finished parts")
    return parser.parse_args()


def available_models(only: Sequence[str] | None) -> tuple[list[Model], dict[str, str]]:
    """Return the models, and title -> reason of those that cannot be measured."""
    models, missing = [], {}
    for title, (network, file) in CHECKPOINTS.items():
        if (WEIGHTS / file).is_file():
            config = ExportConfig(title, 20, 19, scores=SCORES)
            models.append(Model(title, WEIGHTS / file, contract_of(network, config, Provenance())))
        else:
            missing[title] = f"no {file} in ANOMSEG_WEIGHTS"
    for name, directory in shipped_bundles().items():
        bundle = load_bundle(directory)
        if (directory / CHECKPOINT_FILE).is_file():
            models.append(Model(name, directory / CHECKPOINT_FILE, bundle.contract))
        else:
            missing[name] = "the bundle has no checkpoint, so no score can be fitted to it"
    return [model for model in models if only is None or model.title in only], missing


def fitted_network(model: Model, frames: int) -> SegmentationNetwork:
    """Return a model's network, with every score fitted on frames of CamVid's training split."""
    network = load_checkpoint(model.checkpoint, model.contract.network, len(model.contract.classes))
    fits = start_fits([name for name in SCORES if name not in ("max_logit", "msp")], model.contract.known_count)
    training = open_named(f"camvid={DATA / 'CamVid'}:train")
    chosen = spread(len(training), frames)
    network.fitted_scores = fit_scores(network, model.contract, fits, training, chosen, lambda what, done, total: None)
    return network


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` indices of `count` frames, evenly spread; all of them if `most` is 0."""
    return np.linspace(0, count - 1, min(most or count, count)).round().astype(int).tolist()


def measure(network: SegmentationNetwork, contract: Contract, dataset: Dataset, frames: int) -> dict[str, Any]:
    """Return AuPRC and FPR95 of each score and of each candidate for cluster_mix, per cent."""
    seeds = protocol("seeds")
    head = ScoreHead(network, SCORES, contract.void_class, contract.temperature)
    curves: dict[str, Any] = {}
    for index in spread(len(dataset), frames):
        frame = dataset.load(index)
        view = make_view(frame.image, frame.labels, frame.anomaly, seeds.size_px)
        if view.counts_in(seeds):
            for name, scores in score_maps(head, network, contract, view).items():
                seeds.add(curves.setdefault(name, seeds.new_accumulator()), scores, view.anomaly)
    figures = {name: seeds.read(curve) for name, curve in curves.items()}
    pairs = {name: (round(100 * one.auprc, 2), round(100 * one.fpr95, 2)) for name, one in figures.items()}
    return {
        "frames": next(iter(figures.values())).frames,
        "scores": {name: pair for name, pair in pairs.items() if name in SCORES},
        "candidates": {name: pair for name, pair in pairs.items() if name not in SCORES},
    }


def score_maps(head: ScoreHead, network: SegmentationNetwork, contract: Contract, view: View) -> dict[str, ScoreMap]:
    """Return every score of a frame, and every candidate, at the protocol's size."""
    with torch.inference_mode():
        tensor = torch.from_numpy(tensor_from_frame(view.image, contract.input).copy())
        prediction = network.predict(pixels_to_input(tensor), head.features)
        pixel_maps = head.pixel_maps(prediction.pixel_logits())
        found = dict(zip(SCORES, head.frame_scores(pixel_maps, prediction), strict=True))
    height, width = view.image.shape[:2]
    maps = {name: resized_scores(one[0].numpy(), height, width) for name, one in found.items()}
    return {**maps, **candidates(maps, network)}


def candidates(maps: dict[str, ScoreMap], network: SegmentationNetwork) -> dict[str, ScoreMap]:
    """Return cluster_mix with the options of each candidate."""
    fitted = network.fitted_scores["cluster_mix"]
    deviation = fitted.tensors["w"][0] / fitted.facts["strength"]
    made = {}
    for options in CANDIDATES:
        excess = np.maximum(maps["cluster_ratio"] - np.float32(options["T"]), 0)
        weight = np.float32(options["strength"] * deviation / (1 - options["T"]))
        made[", ".join(f"{key} {value:g}" for key, value in options.items())] = maps["max_logit"] + weight * excess
    return made


if __name__ == "__main__":
    main()
