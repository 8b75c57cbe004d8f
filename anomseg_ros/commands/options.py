"""Command-line options that several subcommands share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from anomseg_ros.backends import BACKENDS
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.core.bundle import Bundle, check_target
from anomseg_ros.core.image_files import read_image
from anomseg_ros.core.resources import is_shipped
from anomseg_ros.core.road_region import SURFACES
from anomseg_ros.core.staging import check_writable
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BundleError
from anomseg_ros.metrics.protocols import on_road


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but none where there is nothing to show, or where the help text says it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        empty = action.default is False or action.default in (None, (), [])  # 0 is something to show
        return action.help if empty or "(default" in (action.help or "") else super()._get_help_string(action)


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of `anomseg COMMAND`, which shows every default."""
    return argparse.ArgumentParser(prog=f"anomseg {command}", description=description, formatter_class=_HelpFormatter)


PROVIDER_HELP = (
    "what the backend runs on: cpu; cuda, tensorrt, openvino (of onnxruntime); gpu (of openvino); eager (of torch)"
)


def add_backend_options(target: argparse.ArgumentParser) -> None:
    """Add the backend and the fields of BackendOptions."""
    defaults = BackendOptions()
    target.add_argument("--backend", default="onnxruntime", choices=sorted(BACKENDS), help="engine that runs the graph")
    target.add_argument("--provider", default=defaults.provider, help=PROVIDER_HELP)
    target.add_argument("--threads", type=int, default=defaults.threads, help="processor threads; 0 = one per core")
    target.add_argument("--no-arena", action="store_true", help="give memory back after each frame: slower, smaller")
    target.add_argument("--spin", action="store_true", help="let idle threads spin: lower latency, cores never rest")


def backend_options(args: argparse.Namespace) -> BackendOptions:
    """Return the BackendOptions of parsed arguments."""
    return BackendOptions(threads=args.threads, provider=args.provider, arena=not args.no_arena, spin=args.spin)


def add_changed_bundle(target: argparse.ArgumentParser) -> None:
    """Add where a bundle goes that a command changes."""
    target.add_argument("--output", type=Path, help="where to write a changed copy (default: the bundle is changed)")
    target.add_argument("--overwrite", action="store_true", help="replace a bundle that is at --output")


def check_changed_bundle(args: argparse.Namespace, bundle: Bundle) -> None:
    """Refuse, before anything is measured, a place where the changed bundle cannot go. Raises BundleError."""
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


MEASURED_ON_ROAD = (
    "measure a second time, as protocol NAME+REGION, with alarms limited to the road (and sidewalk) and what stands on "
    "it"
)


def add_road_region(target: argparse.ArgumentParser, text: str) -> None:
    """Add --road-region, the name of a region or None."""
    target.add_argument("--road-region", choices=tuple(SURFACES), help=text)


def with_road(protocols: Iterable[str], region: str | None) -> tuple[str, ...]:
    """Return the protocols, and each of them again as limited to a region, if one is given."""
    plain = tuple(protocols)
    return plain if region is None else (*plain, *(on_road(name, region) for name in plain))


def names(text: str) -> tuple[str, ...]:
    """Argument type: a comma-separated list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def several(values: Iterable[str]) -> tuple[str, ...]:
    """Return the names of an option that takes several: `a,b c` is a, b and c; each once, in order."""
    return tuple(dict.fromkeys(name for value in values for name in names(value)))


def full_width(table: Table, console: Console) -> int:
    """Return the columns of the terminal that a table needs if nothing in it is cut."""
    unlimited = console.options.update(max_width=10_000)
    return Measurement.get(console, unlimited, table).maximum


def progress_bar() -> Progress:
    """Return a progress bar with counts and time left, on standard error."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True))


def read_frames(paths: list[Path]) -> list[RgbImage]:
    """Read image files as uint8 (H, W, 3) RGB."""
    return [read_image(path) for path in paths]
