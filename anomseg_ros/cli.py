"""The `anomseg` command. Subcommands are imported when used, so torch and ROS remain optional."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from collections.abc import Sequence

from anomseg_ros import __version__
from anomseg_ros.command_table import COMMANDS, GROUPS
from anomseg_ros.commands.startup import announce_if_slow, announced
from anomseg_ros.errors import AnomsegError, closest_first, describe_os_error

_ROS = "needs ROS 2: source your ROS installation, or pip install 'anomseg_ros[ros]'"
_OFFLINE = "needs the packages for training and export: pip install 'anomseg_ros[offline]'"
_OFFLINE_MODULES = ("torch", "onnx", "onnxscript", "lightning_fabric", "tensorboard", "safetensors", "torch_pruning")
REMEDIES = {
    "rclpy": _ROS,
    "sensor_msgs": _ROS,
    "rosbags": "needs the rosbags library: pip install 'anomseg_ros[bags]'",
    "ray": "needs Ray: pip install 'anomseg_ros[cluster]'",
    "shtab": "needs shtab: pip install 'anomseg_ros[completion]'",
    "timm": "needs timm: pip install 'anomseg_ros[backbones]'",
    **dict.fromkeys(_OFFLINE_MODULES, _OFFLINE),
}
"""Name of a missing top-level module -> how to install it."""
_SIGNALS_BEFORE_THREADS = ("node", "bag play")
"""Commands that decide about signals before any thread is started."""


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
    if name not in _SIGNALS_BEFORE_THREADS:
        announce_if_slow(name)
    try:
        return COMMANDS[name].main()(arguments[len(name.split()) :])
    except ModuleNotFoundError as error:
        if error.name not in REMEDIES:
            raise
        return _fail(f"`anomseg {name}` {REMEDIES[error.name]} (no module named {error.name!r})")
    finally:
        announced()


def usage() -> str:
    """Return the overview of all subcommands."""
    width = max(map(len, COMMANDS)) + 2
    lines = ["usage: anomseg COMMAND [OPTION]…", "", "Road-anomaly detection for ROS 2."]
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:<{width}}{command.summary}" for name, command in commands.items())]
    lines += ["", "`anomseg COMMAND --help` describes a command; `anomseg --version` prints the version."]
    return "\n".join(lines)


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
