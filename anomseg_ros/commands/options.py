"""Command-line options that several subcommands share."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from anomseg_ros.backends import BACKENDS
from anomseg_ros.backends.backend_options import PROVIDERS_IN_WORDS, BackendOptions
from anomseg_ros.bench.power import PowerRequest
from anomseg_ros.command_table import example_of
from anomseg_ros.core.bundle import CHECKPOINT_FILE, Bundle, check_target
from anomseg_ros.core.image_files import read_image
from anomseg_ros.core.output_files import check_output_file, check_output_folder
from anomseg_ros.core.resources import is_shipped
from anomseg_ros.core.road_region import SURFACES
from anomseg_ros.core.staging import check_writable
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BundleError, ConfigError
from anomseg_ros.metrics.protocols import on_road

T = TypeVar("T")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends defaults, unless they are empty or the help text mentions them, and leaves the example as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("example:") else super()._fill_text(text, width, indent)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        is_empty = default is False or default in (None, (), [])  # a default of 0 is shown
        if is_empty or "(default" in (action.help or ""):
            return action.help
        if isinstance(default, (list, tuple)):
            return f"{action.help} (default: {' '.join(map(str, default))})"
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """A parser that also accepts old names of options, and says what their names are now.

    Errors name the right form of a positional argument that is given as an option, such as --bundle.

    old_names: old name -> name. They are not in the help.
    """

    old_names: Mapping[str, str] = {}
    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = self._words = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._with_new_name(word) for word in words], namespace)

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit with status 2."""
        positional = [action for action in self._actions if not action.option_strings]
        names = {part.lower() for one in positional for part in (one.dest, *str(one.metavar or "").split())}
        for word in self._words:
            name = word.partition("=")[0]
            if name.startswith("--") and {name[2:], f"{name[2:]}s"} & names:
                form = str(self.epilog or "").partition("\n")[2].strip()
                message += f"; {name[2:]} is given without {name}" + (f", as in: {form}" if form else "")
        super().error(message)

    def _with_new_name(self, word: str) -> str:
        name, equals, value = word.partition("=")
        if name not in self.old_names:
            return word
        _note_new_name(name, self.old_names[name])
        return f"{self.old_names[name]}{equals}{value}"


def _note_new_name(old: str, new: str) -> None:
    print(f"anomseg: the option {old} is now {new}", file=sys.stderr)


def parser(
    command: str, description: str, old_names: Mapping[str, str] = MappingProxyType({})
) -> argparse.ArgumentParser:
    """Return the parser of `anomseg COMMAND`, whose help shows every default and ends with an example.

    old_names: earlier names of options -> their names; they still work, with a note.
    """
    new_parser = _Parser(
        prog=f"anomseg {command}",
        description=description,
        epilog=example_of(command),
        formatter_class=_HelpFormatter,
    )
    new_parser.old_names = old_names
    return new_parser


class _SideOfSize(argparse.Action):
    """--height or --width, the earlier names of the two sides of --size."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        _note_new_name(str(option_string), "a side of --size HEIGHTxWIDTH")
        sides = list(getattr(namespace, self.dest))
        sides[option_string == "--width"] = values
        setattr(namespace, self.dest, tuple(sides))


def input_size(text: str) -> tuple[int, int]:
    """Argument type: HxW in pixels."""
    height, cross, width = text.lower().partition("x")
    if not cross or not height.isdecimal() or not width.isdecimal() or not int(height) or not int(width):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; expected HEIGHTxWIDTH in pixels, such as 512x1024")
    return int(height), int(width)


def add_input_size(target: argparse._ActionsContainer, default: tuple[int, int]) -> None:
    """Add --size, the size of a network's input: (height, width) in pixels."""
    size_help = f"size of the network's input in pixels (default: {default[0]}x{default[1]})"
    target.add_argument("--size", type=input_size, default=default, metavar="HEIGHTxWIDTH", help=size_help)
    for side in ("--height", "--width"):
        target.add_argument(
            side, dest="size", type=int, action=_SideOfSize, default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


def output_file(text: str) -> Path:
    """Argument type: a file to write. Raises OutputError, before any other work, if it cannot be written."""
    check_output_file(Path(text))
    return Path(text)


def output_folder(text: str) -> Path:
    """Argument type: a folder to write. Raises OutputError like output_file."""
    check_output_folder(Path(text))
    return Path(text)


def number(text: str) -> float:
    """Argument type: a finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def fraction(text: str) -> float:
    """Argument type: a number from 0 to 1."""
    value = number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def positive(text: str) -> float:
    """Argument type: a finite number above 0."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


EXACT_HELP = "do not round scores, whatever memory that takes"
JSON_HELP = "JSON file for all results and settings"
HTML_HELP = "HTML file for the report, one self-contained page"
CHECKPOINT_FILE_HELP = ".pth, .pt, .tar or .safetensors file"
NUM_CLASSES_HELP = "number of outputs of the network, including the void class"
VOID_CLASS_HELP = "index of the void (anomaly) output of a void classifier"
ALLOW_PARTIAL_HELP = "accept datasets with fewer or more frames than published"
CHECKPOINT_HELP = f"file that the bundle was exported from (default: {CHECKPOINT_FILE} in the bundle)"
NO_MEMORY_HELP = "do not measure memory, which needs a process for each candidate"
BUILD_ENGINE_HELP = (
    "build and check missing TensorRT engines before measuring, as `anomseg build` does (default: candidates without "
    "an engine are left out)"
)
TIMED_SCORE_HELP = "score to compute besides the labels (default: the bundle's first)"
PROVIDER_HELP = f"device or mode of the backend: {PROVIDERS_IN_WORDS}"


def add_power_seconds(target: argparse._ActionsContainer) -> None:
    """Add --power-seconds."""
    text = "measure power for this long on each candidate, if there is a sensor; 0 = do not measure it"
    target.add_argument("--power-seconds", type=number, default=PowerRequest().seconds, metavar="S", help=text)


def add_backend_options(target: argparse.ArgumentParser) -> None:
    """Add --backend and the fields of BackendOptions."""
    defaults = BackendOptions()
    target.add_argument("--backend", default="onnxruntime", choices=sorted(BACKENDS), help="engine that runs the graph")
    target.add_argument("--provider", default=defaults.provider, help=PROVIDER_HELP)
    target.add_argument("--device", type=int, default=defaults.device, metavar="N", help="index of the NVIDIA GPU")
    target.add_argument("--threads", type=int, default=defaults.threads, help="processor threads; 0 = one per core")
    target.add_argument("--no-arena", action="store_true", help="free memory after each frame: slower, less memory")
    target.add_argument("--spin", action="store_true", help="let idle threads spin: lower latency, constant load")


def backend_options(args: argparse.Namespace) -> BackendOptions:
    """Return the BackendOptions of parsed arguments."""
    return BackendOptions(
        threads=args.threads,
        provider=args.provider,
        arena=not args.no_arena,
        spin=args.spin,
        device=args.device,
    )


def add_changed_bundle(target: argparse.ArgumentParser) -> None:
    """Add --output and --overwrite for a command that changes a bundle."""
    target.add_argument(
        "--output", type=output_folder, help="directory for a changed copy (default: the bundle itself is changed)"
    )
    target.add_argument("--overwrite", action="store_true", help="replace an existing bundle at --output")


def check_changed_bundle(args: argparse.Namespace, bundle: Bundle) -> None:
    """Raise BundleError if the changed bundle cannot be written; called before anything is measured."""
    target = args.output or bundle.directory
    if is_shipped(target):
        raise BundleError(
            f"{target} ships with the package and is not changed; give --output FOLDER for a changed copy, outside the "
            "package's models/"
        )
    if target.resolve() == bundle.directory.resolve():
        check_writable(bundle.directory.resolve())
    else:
        check_target(target, args.overwrite)


ROAD_PROTOCOLS_HELP = (
    "also measure with alarms limited to the road (and sidewalk) and objects on it; these results have the protocol "
    "NAME+REGION"
)


def add_road_region(target: argparse._ActionsContainer, text: str) -> None:
    """Add --road-region, the name of a region or None."""
    target.add_argument("--road-region", choices=tuple(SURFACES), help=text)


def with_road_protocols(protocols: Iterable[str], region: str | None) -> tuple[str, ...]:
    """Return the protocols and, if a region is given, each protocol again limited to the region."""
    protocols = tuple(protocols)
    return protocols if region is None else (*protocols, *(on_road(name, region) for name in protocols))


def names(text: str) -> tuple[str, ...]:
    """Argument type: a comma-separated list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def split_names(values: Iterable[str]) -> tuple[str, ...]:
    """Return the unique names, in order, of an option with several values, each a comma-separated list."""
    return tuple(dict.fromkeys(name for value in values for name in names(value)))


def thread_counts(values: Iterable[str]) -> tuple[int, ...]:
    """Return the unique numbers, in order, of an option with several values. Raises ConfigError for other texts."""
    for text in split_names(values):
        if not text.isdecimal():
            raise ConfigError(f"threads {text!r} is not a whole number; expected 1, 2, … or 0 for one per core")
    return tuple(dict.fromkeys(map(int, split_names(values))))


def request_of(kind: type[T], args: argparse.Namespace, **values: Any) -> T:
    """Return a dataclass `kind` with the given field values; the arguments of the same name fill the other fields."""
    fields = [one.name for one in dataclasses.fields(kind) if one.name not in values and hasattr(args, one.name)]  # type: ignore[arg-type]
    parsed = {name: getattr(args, name) for name in fields}
    parsed = {name: tuple(value) if isinstance(value, list) else value for name, value in parsed.items()}
    return kind(**parsed, **values)


def print_whole(table: Table) -> None:
    """Print a table on standard output without cutting its content, however narrow the terminal is."""
    console = Console()
    Console(width=max(console.width, full_width(table, console))).print(table)


def full_width(table: Table, console: Console) -> int:
    """Return the terminal columns that a table needs without cutting its content."""
    unlimited = console.options.update(max_width=10_000)
    return Measurement.get(console, unlimited, table).maximum


def read_frames(paths: list[Path]) -> list[RgbImage]:
    """Read image files as uint8 (H, W, 3) RGB."""
    return [read_image(path) for path in paths]
