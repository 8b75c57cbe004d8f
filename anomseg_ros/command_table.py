"""Every command of `anomseg`: where it is, what it does, and an example, in the order in which a person needs them."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """One command. place: module:function; summary: for the overview; example: a command line to adapt.

    Beside the function `main`, its module has a function `argument_parser`; beside `main_list`, `argument_parser_list`.
    """

    place: str
    summary: str
    example: str

    def main(self) -> Callable[[list[str]], int]:
        """Return the function that runs the command. Raises ModuleNotFoundError for an extra that is not installed."""
        main: Callable[[list[str]], int] = self._attribute("main")
        return main

    def argument_parser(self) -> argparse.ArgumentParser:
        """Return the command's parser. Raises ModuleNotFoundError like main."""
        parser: argparse.ArgumentParser = self._attribute("argument_parser")()
        return parser

    def _attribute(self, name: str) -> Any:
        module, _, main = self.place.partition(":")
        return getattr(importlib.import_module(module), main.replace("main", name))


_COMMANDS = "anomseg_ros.commands"
GROUPS: dict[str, dict[str, Command]] = {
    "look": {
        "run": Command(
            f"{_COMMANDS}.run:main",
            "detect anomalies in images, folders, videos or bags",
            "anomseg run bisenet_lite-world-int8 frames --output results",
        ),
        "demo": Command(
            f"{_COMMANDS}.demo:main",
            "play a drive through the node and write an HTML page of the results",
            "anomseg demo drive.mp4 --output drive_demo",
        ),
        "doctor": Command(
            f"{_COMMANDS}.doctor:main", "examine this installation: what works, and what to do", "anomseg doctor"
        ),
        "models list": Command(
            f"{_COMMANDS}.models:main_list", "list the shipped bundles and published checkpoints", "anomseg models list"
        ),
        "models show": Command(
            f"{_COMMANDS}.models:main_show",
            "show the facts about a bundle or checkpoint",
            "anomseg models show bisenet_lite-world-int8",
        ),
        "models verify": Command(
            f"{_COMMANDS}.models_verify:main",
            "check digests and run one frame through each graph",
            "anomseg models verify my-erfnet",
        ),
        "models fetch": Command(
            f"{_COMMANDS}.models_fetch:main",
            "download a published checkpoint",
            "anomseg models fetch espnetv2-cityscapes --output checkpoints",
        ),
    },
    "measure": {
        "evaluate": Command(
            f"{_COMMANDS}.evaluate:main",
            "measure bundles on datasets: table, JSON and HTML report",
            "anomseg evaluate my-erfnet --dataset fs_static=/data/fs_static --json results.json --html report.html",
        ),
        "compare": Command(
            f"{_COMMANDS}.compare:main",
            "list the changes between two evaluations",
            "anomseg compare before.json after.json --html changes.html",
        ),
        "bag evaluate": Command(
            f"{_COMMANDS}.bag_evaluate:main",
            "measure a bundle, or recorded outputs, on bags",
            "anomseg bag evaluate my-erfnet drive --html drive.html",
        ),
        "bag write": Command(
            f"{_COMMANDS}.bag_write:main",
            "write a folder of images or a dataset as a ROS 2 bag",
            "anomseg bag write --images frames --output drive --fps 10",
        ),
        "bag play": Command(
            f"{_COMMANDS}.bag_play:main",
            "publish a bag's messages through ROS 2",
            "anomseg bag play drive --clock --rate 0.5",
        ),
        "datasets list": Command(
            f"{_COMMANDS}.datasets_check:main_list",
            "list the datasets, their splits and layouts",
            "anomseg datasets list",
        ),
        "datasets check": Command(
            f"{_COMMANDS}.datasets_check:main",
            "check datasets for missing or invalid files",
            "anomseg datasets check fs_static=/data/fs_static",
        ),
    },
    "train": {
        "train": Command(
            f"{_COMMANDS}.train:main",
            "train a network from a configuration; write a checkpoint and bundle",
            "anomseg train erfnet-camvid --data /data/CamVid --output runs/mine",
        ),
        "datasets import": Command(
            f"{_COMMANDS}.datasets_import:main",
            "turn the export of a labelling tool into a dataset of your own classes",
            "anomseg datasets import cvat export --output my_road --map pick-up=car --outliers debris",
        ),
        "adapt": Command(
            f"{_COMMANDS}.adapt:main",
            "adapt a bundle to the road of an unlabelled drive",
            "anomseg adapt enet-camvid --frames drive.mp4 --output enet-mine",
        ),
        "datasets cut-paste": Command(
            f"{_COMMANDS}.datasets_cut_paste:main",
            "paste outliers into labelled frames",
            "anomseg datasets cut-paste camvid=/data/CamVid --output pasted --seed 1",
        ),
        "datasets pseudo-label": Command(
            f"{_COMMANDS}.datasets_pseudo_label:main",
            "label frames with Cityscapes' classes by teacher networks",
            "anomseg datasets pseudo-label --frames folder=frames --teacher my-erfnet --output labelled",
        ),
        "export": Command(
            f"{_COMMANDS}.export:main",
            "export a checkpoint as a bundle",
            "anomseg export --network erfnet --checkpoint e.pth --num-classes 20 --void-class 19 --output my-erfnet",
        ),
        "calibrate threshold": Command(
            f"{_COMMANDS}.calibrate_threshold:main",
            "write thresholds for given false-positive rates into a bundle, from labelled frames or a drive",
            "anomseg calibrate threshold my-erfnet --frames drive.mp4 --page frames.html",
        ),
        "calibrate temperature": Command(
            f"{_COMMANDS}.calibrate_temperature:main",
            "fit the softmax temperature on labelled frames, and export the bundle again",
            "anomseg calibrate temperature my-erfnet --checkpoint erfnet.pth --dataset camvid=/data/CamVid",
        ),
        "calibrate score": Command(
            f"{_COMMANDS}.calibrate_score:main",
            "fit scores that have their own tensors on training frames, and export the bundle again",
            "anomseg calibrate score my-erfnet --score sml --dataset camvid=/data/CamVid:train --output my-erfnet-sml",
        ),
    },
    "shrink": {
        "quantize": Command(
            f"{_COMMANDS}.quantize:main",
            "quantize a float bundle to 8 bits and measure the loss",
            "anomseg quantize my-erfnet --frames frames --output my-erfnet-int8",
        ),
        "prune": Command(
            f"{_COMMANDS}.prune:main",
            "remove channels of a network, or zero its weights, and fine-tune it",
            "anomseg prune my-erfnet --checkpoint erfnet.pth --fraction 0.3 --frames frames --output my-erfnet-pruned",
        ),
        "compress": Command(
            f"{_COMMANDS}.compress:main",
            "prune, fine-tune and quantize with one recipe",
            "anomseg compress prune30-int8 my-erfnet --checkpoint erfnet.pth --frames frames --output my-erfnet-small",
        ),
        "convert": Command(
            f"{_COMMANDS}.convert:main",
            "convert a float bundle to half precision, for GPUs",
            "anomseg convert my-erfnet-gpu --precision fp16 --frames frames --output my-erfnet-fp16",
        ),
        "bench": Command(
            f"{_COMMANDS}.bench:main",
            "compare latency, memory and size of bundles",
            "anomseg bench my-erfnet my-erfnet-int8 --backend onnxruntime openvino --plot bench.svg",
        ),
        "tune": Command(
            f"{_COMMANDS}.tune:main",
            "find the best bundle for a latency or accuracy on this machine",
            "anomseg tune my-erfnet --max-latency-ms 50 --frames frames --output my-erfnet-tuned",
        ),
    },
    "deploy": {
        "node": Command(
            "anomseg_ros.node.main:main",
            "start the ROS 2 detector node",
            "anomseg node --bundle my-erfnet-int8 --image-topic /camera/image",
        ),
        "build": Command(
            f"{_COMMANDS}.build:main",
            "build engines of a bundle, by TensorRT or torch, or check the graph",
            "anomseg build my-erfnet-fp16 --frames frames",
        ),
        "policy": Command(
            f"{_COMMANDS}.policy:main",
            "print the SROS 2 policy of the node for its cameras",
            "anomseg policy --cameras cameras.yaml --output policy.xml",
        ),
    },
    "more": {
        "completion": Command(
            f"{_COMMANDS}.completion:main",
            "print the completion script of a shell",
            "anomseg completion bash > ~/.local/share/bash-completion/completions/anomseg",
        ),
        "share": Command(
            f"{_COMMANDS}.share:main",
            "print the path of a file that ships with the package",
            "anomseg share config/fastdds.xml",
        ),
        "report": Command(
            f"{_COMMANDS}.report:main",
            "write the HTML page of an evaluation's JSON",
            "anomseg report results.json --html report.html",
        ),
        "papers": Command(
            f"{_COMMANDS}.papers:main",
            "measure the published checkpoints and write benchmarks/papers.md",
            "anomseg papers --weights /data/weights --data /data --output papers.md",
        ),
    },
}
"""What a person wants to do -> its commands."""
COMMANDS: dict[str, Command] = {name: command for group in GROUPS.values() for name, command in group.items()}


def example_of(name: str) -> str:
    """Return the epilog of a command's help."""
    return f"example:\n  {COMMANDS[name].example}"
