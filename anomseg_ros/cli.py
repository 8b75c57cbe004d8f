"""The `anomseg` command. Subcommands are imported when used, so torch and ROS remain optional."""

from __future__ import annotations

import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence

from anomseg_ros import __version__
from anomseg_ros.errors import AnomsegError, closest_first, describe_os_error

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("anomseg_ros.commands.run:main", "detect anomalies in images, folders or videos"),
    "node": ("anomseg_ros.node.main:main", "start the ROS 2 detector node"),
    "policy": ("anomseg_ros.commands.policy:main", "print the SROS 2 policy of the node for its cameras"),
    "demo": ("anomseg_ros.commands.demo:main", "play a drive through the node and write an HTML page of the results"),
    "bag write": ("anomseg_ros.commands.bag_write:main", "write a folder of images or a dataset as a ROS 2 bag"),
    "bag evaluate": ("anomseg_ros.commands.bag_evaluate:main", "measure a bundle, or recorded outputs, on bags"),
    "bag play": ("anomseg_ros.commands.bag_play:main", "publish a bag's messages through ROS 2"),
    "datasets list": ("anomseg_ros.commands.datasets_check:main_list", "list the datasets, their splits and layouts"),
    "datasets check": ("anomseg_ros.commands.datasets_check:main", "check datasets for missing or invalid files"),
    "models list": ("anomseg_ros.commands.models:main_list", "list the shipped bundles and published checkpoints"),
    "models show": ("anomseg_ros.commands.models:main_show", "show the facts about a bundle or checkpoint"),
    "models verify": ("anomseg_ros.commands.models_verify:main", "check digests and run one frame through each graph"),
    "models fetch": ("anomseg_ros.commands.models_fetch:main", "download a published checkpoint"),
    "datasets cut-paste": ("anomseg_ros.commands.datasets_cut_paste:main", "paste outliers into labelled frames"),
    "datasets pseudo-label": (
        "anomseg_ros.commands.datasets_pseudo_label:main",
        "label frames with Cityscapes' classes by teacher networks",
    ),
    "share": ("anomseg_ros.commands.share:main", "print the path of a file that ships with the package"),
    "export": ("anomseg_ros.commands.export:main", "export a checkpoint as a bundle"),
    "evaluate": ("anomseg_ros.commands.evaluate:main", "measure bundles on datasets: table, JSON and HTML report"),
    "calibrate threshold": (
        "anomseg_ros.commands.calibrate_threshold:main",
        "write thresholds for given false-positive rates into a bundle, from labelled frames or a drive without labels",
    ),
    "calibrate score": (
        "anomseg_ros.commands.calibrate_score:main",
        "fit scores that have their own tensors on training frames, and export the bundle again",
    ),
    "calibrate temperature": (
        "anomseg_ros.commands.calibrate_temperature:main",
        "fit the softmax temperature on labelled frames, and export the bundle again",
    ),
    "train": ("anomseg_ros.commands.train:main", "train a network from a configuration; write a checkpoint and bundle"),
    "papers": ("anomseg_ros.commands.papers:main", "measure the published checkpoints and write benchmarks/papers.md"),
    "report": ("anomseg_ros.commands.report:main", "write the HTML page of an evaluation's JSON"),
    "quantize": ("anomseg_ros.commands.quantize:main", "quantize a float bundle to 8 bits and measure the loss"),
    "convert": ("anomseg_ros.commands.convert:main", "convert a float bundle to half precision, for GPUs"),
    "build": ("anomseg_ros.commands.build:main", "build engines of a bundle, by TensorRT or torch, or check the graph"),
    "prune": ("anomseg_ros.commands.prune:main", "remove channels of a network, or zero its weights, and fine-tune it"),
    "compress": ("anomseg_ros.commands.compress:main", "prune, fine-tune and quantize with one recipe"),
    "bench": ("anomseg_ros.commands.bench:main", "compare latency, memory and size of bundles"),
    "tune": ("anomseg_ros.commands.tune:main", "find the best bundle for a latency or accuracy on this machine"),
    "compare": ("anomseg_ros.commands.compare:main", "list the changes between two evaluations"),
}

_ROS = "needs ROS 2: source your ROS installation, or pip install 'anomseg_ros[ros]'"
_OFFLINE = "needs the packages for training and export: pip install 'anomseg_ros[offline]'"
_OFFLINE_MODULES = ("torch", "onnx", "onnxscript", "lightning_fabric", "tensorboard", "safetensors", "torch_pruning")
REMEDIES = {
    "rclpy": _ROS,
    "sensor_msgs": _ROS,
    "rosbags": "needs the rosbags library: pip install 'anomseg_ros[bags]'",
    "ray": "needs Ray: pip install 'anomseg_ros[cluster]'",
    "timm": "needs timm: pip install 'anomseg_ros[backbones]'",
    **dict.fromkeys(_OFFLINE_MODULES, _OFFLINE),
}
"""Name of a missing top-level module -> how to install it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; return the exit status: 0 for success, 1 for an error, 2 for a wrong command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _escape_undecodable_names()
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except AnomsegError as error:
        return _fail(str(error))
    except BrokenPipeError:
        return _closed_output_status()
    except OSError as error:
        return _fail(describe_os_error(error))
    except KeyboardInterrupt:
        return 130


def _dispatch(arguments: list[str]) -> int:
    """Run the subcommand or show help; return the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"anomseg {__version__}")
        return 0
    name = _command_name(arguments)
    if name is None:
        return _unknown_command(arguments)
    try:
        return _load(name)(arguments[len(name.split()) :])
    except ModuleNotFoundError as error:
        if error.name not in REMEDIES:
            raise
        return _fail(f"`anomseg {name}` {REMEDIES[error.name]} (no module named {error.name!r})")


def usage() -> str:
    """Return the overview of all subcommands."""
    width = max(map(len, COMMANDS)) + 2
    rows = [f"  {name:<{width}}{summary}" for name, (_, summary) in COMMANDS.items()]
    head = "usage: anomseg COMMAND [OPTION]…\n\nRoad-anomaly detection for ROS 2.\n\ncommands:"
    return "\n".join(
        [head, *rows, "", "`anomseg COMMAND --help` describes a command; `anomseg --version` prints the version."]
    )


def _command_name(arguments: list[str]) -> str | None:
    for length in (2, 1):
        name = " ".join(arguments[:length])
        if name in COMMANDS:
            return name
    return None


def _unknown_command(arguments: list[str]) -> int:
    family = [name for name in COMMANDS if name.split()[0] == arguments[0]]
    if family:
        asks_for_help = arguments[1:2] == ["--help"]
        message = usage() if asks_for_help else f"anomseg: {arguments[0]} has: {', '.join(family)}"
        print(message, file=sys.stderr)
        return 0 if asks_for_help else 2
    closest = closest_first(" ".join(arguments[:2]), COMMANDS)[0]
    print(f"anomseg: unknown command {arguments[0]!r}; did you mean {closest!r}?", file=sys.stderr)
    return 2


def _load(name: str) -> Callable[[list[str]], int]:
    module, _, attribute = COMMANDS[name][0].partition(":")
    command: Callable[[list[str]], int] = getattr(importlib.import_module(module), attribute)
    return command


def as_options(message: str) -> str:
    """Return a message with argument names such as `keep_float` replaced by options such as --keep-float."""
    return re.sub(r"`([a-z]+(?:_[a-z]+)+)`", lambda match: "--" + match[1].replace("_", "-"), message)


def _fail(message: str) -> int:
    print(f"anomseg: error: {as_options(' '.join(message.split()))}", file=sys.stderr)
    return 1


def _escape_undecodable_names() -> None:
    """Print file names that are not UTF-8 with backslash escapes; otherwise printing them fails."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _closed_output_status() -> int:
    """Return the exit status for a closed output pipe, as in `anomseg ... | head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python fails again when it flushes
    return 128 + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(main())
