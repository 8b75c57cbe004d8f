"""`anomseg build`: make engines of a bundle for this machine, by TensorRT or torch, or check that they can be made."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from anomseg_ros.backends.backend_options import MAX_DEVICE
from anomseg_ros.backends.built_engines import EVERYTHING, LABELS
from anomseg_ros.backends.engine_cache import Found
from anomseg_ros.backends.tensorrt_build import MEBIBYTE, BuildOptions
from anomseg_ros.commands import options
from anomseg_ros.commands.graph_form import tell_cpu_form
from anomseg_ros.commands.progress_lines import ProgressLines
from anomseg_ros.compression.argmax_choice import ARGMAX_CHOICES, EXPORTED, FACT
from anomseg_ros.compression.checked_engines import (
    SYNTHETIC_FRAMES,
    EngineRequest,
    cache_of,
    check_graph_builds,
    engine_states,
    provide_engines,
)
from anomseg_ros.compression.engine_machines import Machine, ThisMachine, TorchMachine
from anomseg_ros.core.bundle import TORCH_FILE, load_bundle
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.errors import ConfigError

TENSORRT, TORCH = "tensorrt", "torch"
TORCH_PROVIDERS = ("aot", "cuda-aot")
"""Of the backend torch, those that are compiled ahead of time."""
MOST_WORKSPACE_MIB = 1 << 20
"""More than any GPU has."""


def main(argv: Sequence[str]) -> int:
    """Build, check or list the engines of a bundle; returns 0."""
    args = argument_parser().parse_args(argv)
    request = _request(args)
    tell_cpu_form(request.bundle)
    if args.check:
        _check(request)
        return 0
    with _machine(args, request) as machine:
        if args.dry_run:
            _list(request, machine, read_frames=args.frames is not None)
        else:
            _build(request, machine)
    return 0


@contextmanager
def _machine(args: argparse.Namespace, request: EngineRequest) -> Iterator[Machine]:
    """Yield what builds and runs the engines, and release its device afterwards. Raises BackendError."""
    if args.backend == TORCH:
        request.bundle.require_program(TORCH_FILE)
        yield TorchMachine(args.provider or TORCH_PROVIDERS[0], args.device or 0)
        return
    with closing(ThisMachine(args.device or 0)) as machine:
        yield machine


def _refuse_foreign_options(args: argparse.Namespace) -> None:
    """Raise ConfigError for an option that the backend, or --check, does not use."""
    foreign: dict[str, object] = {"--provider": args.provider}
    if args.backend == TORCH:
        foreign = {"--check": args.check or None, "--workspace": args.workspace, "--dla": args.dla}
        foreign["--argmax"] = args.argmax
    for option, value in foreign.items():
        if value is not None:
            raise ConfigError(f"{option} is not an option of --backend {args.backend}; leave it out")
    unused = {"--device": args.device, "--frames": args.frames, "--output": args.output, "--argmax": args.argmax}
    for option, value in unused.items():
        if args.check and value is not None:
            raise ConfigError(f"--check uses no GPU and no frames, and writes nothing: leave out {option}")


def _request(args: argparse.Namespace) -> EngineRequest:
    workspace, device = args.workspace, args.device
    _refuse_foreign_options(args)
    if workspace is not None and not 1 <= workspace <= MOST_WORKSPACE_MIB:
        expected = f"expected MiB, 1 to {MOST_WORKSPACE_MIB}; leave it out for no limit"
        raise ConfigError(f"--workspace {workspace}: {expected}")
    if device is not None and not 0 <= device <= MAX_DEVICE:
        raise ConfigError(f"--device {device}: expected the number of a GPU, 0 to {MAX_DEVICE}")
    return EngineRequest(
        load_bundle(find_bundle(args.bundle)),
        tuple(args.outputs),
        BuildOptions(workspace_bytes=None if workspace is None else workspace * MEBIBYTE, dla_core=args.dla),
        tuple(args.frames or SYNTHETIC_FRAMES),
        args.output,
        argmax=args.argmax or EXPORTED,
    )


def _check(request: EngineRequest) -> None:
    with ProgressLines() as lines:
        library, built = check_graph_builds(request, lines)
    contract = request.bundle.contract
    title = f"{library.title} parses and builds {contract.name} ({contract.precision}); nothing was written"
    _print_engines(title, {name: one.facts for name, one in built.items()})


def _list(request: EngineRequest, machine: Machine, *, read_frames: bool) -> None:
    console = Console()
    where = f"{machine.title} on {machine.device_name}, cache {cache_of(request, machine).root}"
    console.print(where, soft_wrap=True, highlight=False, markup=False)
    for one in engine_states(request, machine):
        state = "is in the cache" if isinstance(one.state, Found) else f"would be built: {one.state.reason}"
        console.print(f"{one.name} ({one.key.digest[:12]}) {state}", soft_wrap=True, highlight=False, markup=False)
    if read_frames:  # so that a folder that is not there is an error now
        text = f"engines are checked on {len(request.read_frames())} frame(s) of {', '.join(request.frames)}"
        console.print(text, soft_wrap=True, highlight=False, markup=False)


def _build(request: EngineRequest, machine: Machine) -> None:
    with ProgressLines() as lines:
        for one in engine_states(request, machine):
            if not isinstance(one.state, Found):
                lines.tell(f"{one.name}: {one.state.reason}")
        provided = provide_engines(request, machine, lines)
    title = f"{machine.title}: engines of {request.bundle.contract.name} on {machine.device_name}"
    _print_engines(title, provided)
    Console().print(f"in {cache_of(request, machine).root}", soft_wrap=True, highlight=False)


def _print_engines(title: str, engines: Mapping[str, Mapping[str, Any]]) -> None:
    headings = {"built in": _seconds, "size": _size}
    if any("layers_by_device" in facts for facts in engines.values()):
        headings |= {"layers of the graph": _layers}
    if any(FACT in facts for facts in engines.values()):
        headings |= {"argmax": _argmax_form}
    if any("check" in facts for facts in engines.values()):
        headings |= {"labels that agree": _agreement, "least rank correlation": _correlation}
    table = Table()
    table.add_column("engine")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, facts in engines.items():
        table.add_row(name, *(text(facts) for text in headings.values()))
    console = Console()
    console.print(title, soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    for name, facts in engines.items():
        if "DLA" in facts.get("layers_by_device", ()):
            rest = ", ".join(f"{count} {kind}" for kind, count in facts["layers_by_device"].get("GPU", {}).items())
            console.print(f"{name}: layers that stay on the GPU: {rest or 'none'}", soft_wrap=True, highlight=False)


def _seconds(facts: Mapping[str, Any]) -> str:
    return f"{facts['build_s']:.1f} s"


def _size(facts: Mapping[str, Any]) -> str:
    return f"{facts['plan_bytes'] / MEBIBYTE:.1f} MiB"


def _layers(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{device} {sum(kinds.values())}" for device, kinds in facts["layers_by_device"].items())


def _argmax_form(facts: Mapping[str, Any]) -> str:
    measured = facts.get(FACT)
    if measured is None:
        return "as exported"
    times = ", ".join(f"{form} {time_ms:.3g} ms" for form, time_ms in measured["medians_ms"].items())
    return f"{measured['form']} ({times})" if times else str(measured["form"])


def _agreement(facts: Mapping[str, Any]) -> str:
    return f"{facts['check']['drift']['label_agreement']:.2%}"


def _correlation(facts: Mapping[str, Any]) -> str:
    return f"{min(score['rank_correlation'] for score in facts['check']['drift']['scores'].values()):.4f}"


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg build`."""
    parser = options.parser(
        "build",
        "Build engines of a bundle for this machine and put them into the cache that the backends tensorrt and torch "
        "read. An engine is kept only if it computes what the bundle does.",
    )
    parser.add_argument("bundle", help="bundle directory or name of a shipped bundle, exported with --processor gpu")
    backend_help = "what runs the engines; torch compiles model.pt2 ahead of time"
    parser.add_argument("--backend", default=TENSORRT, choices=(TENSORRT, TORCH), help=backend_help)
    provider_help = "of --backend torch: for the processor, or for the GPU (default: aot)"
    parser.add_argument("--provider", choices=TORCH_PROVIDERS, help=provider_help)
    what = parser.add_mutually_exclusive_group()
    check_help = "only parse and build, with TensorRT or TensorRT-RTX, on any computer; nothing is written"
    what.add_argument("--check", action="store_true", help=check_help)
    what.add_argument("--dry-run", action="store_true", help="only say which engines are in the cache, and why not")
    outputs_help = "engines to build: labels with the default score, or all scores (default: both)"
    parser.add_argument("--outputs", nargs="+", default=(), choices=(LABELS, EVERYTHING), help=outputs_help)
    workspace_help = "most scratch memory of a layer (default: no limit)"
    parser.add_argument("--workspace", type=int, metavar="MIB", help=workspace_help)
    dla_help = "core of a Jetson's DLA that runs what it can, the GPU the rest; run it with the provider dla0 or dla1"
    parser.add_argument("--dla", type=int, choices=(0, 1), metavar="CORE", help=dla_help)
    argmax_help = "form of the labels: as exported, or the faster one of argmax and comparisons, timed on this device"
    parser.add_argument("--argmax", choices=ARGMAX_CHOICES, help=f"{argmax_help} (default: {EXPORTED})")
    parser.add_argument("--device", type=int, metavar="N", help="number of the GPU (default: 0)")
    output_help = "folder of the cache (default: $XDG_CACHE_HOME/anomseg_ros/ and the backend)"
    parser.add_argument("--output", type=options.output_folder, metavar="FOLDER", help=output_help)
    frames_help = "what the camera sees, to check the engines on: folders of images, videos, bags, or datasets as "
    frames_help += "NAME=PATH (default: generated scenes)"
    parser.add_argument("--frames", nargs="+", metavar="PATH|NAME=PATH", help=frames_help)
    return parser
