"""The bundles that `anomseg tune` makes to measure: other sizes, pruned ones, and int8 of all of them."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from anomseg_ros.backends import BACKENDS, known_providers
from anomseg_ros.bench.candidates import PROGRAM_FILES
from anomseg_ros.bench.measure import MAX_FRAMES
from anomseg_ros.bench.tune_state import LeftOut
from anomseg_ros.commands.bench import backends, resized, size_of
from anomseg_ros.core.bundle import CONTRACT_FILE, GRAPH_FILE, Bundle, load_bundle, sha256_of
from anomseg_ros.core.image_files import image_files
from anomseg_ros.core.schema import from_plain
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import AnomsegError, BackendError, CompressionError, ConfigError, FrameError

CALIBRATION_FRAMES, HELD_OUT_FRAMES = 16, 16
"""Of --frames, to calibrate on and others to measure on, at most."""

Claim = Callable[[str], Path]
"""Called with the name of a folder before anything is written there; returns its path."""


def add_making_options(parser: argparse.ArgumentParser) -> None:
    """Add what bundles to make."""
    group = parser.add_argument_group(
        "candidates that are made", "kept in the state folder meanwhile; what cannot be made is left out and named"
    )
    checkpoint_help = "what BUNDLE was exported from, to export it at other sizes or prune it"
    group.add_argument("--checkpoint", type=Path, metavar="FILE", help=checkpoint_help)
    size_help = "BUNDLE at those sizes (with --checkpoint)"
    group.add_argument("--size", nargs="+", default=[], type=size_of, metavar="HxW", help=size_help)
    prune_help = (
        "BUNDLE, and each of its sizes, without this share of the channels, as `anomseg prune` removes them (with "
        "--frames, and --checkpoint unless it is in the bundle)"
    )
    group.add_argument("--prune", nargs="+", default=[], type=float, metavar="FRACTION", help=prune_help)
    tune_help = "training configuration to fine-tune pruned networks by: YAML file or name of a shipped one"
    group.add_argument("--fine-tune", metavar="CONFIG", help=tune_help)
    group.add_argument("--data", metavar="DIR", help="folder of the fine-tuning configuration's dataset (data.path)")
    quantize_help = (
        "also int8 of every float bundle, as `anomseg quantize` makes it from --frames (default: if --frames holds "
        "enough and anomseg_ros[offline] is installed)"
    )
    group.add_argument("--quantize", action=argparse.BooleanOptionalAction, help=quantize_help)
    accept_help = "measure bundles too that `anomseg prune` and `anomseg quantize` would refuse for what they lose"
    group.add_argument("--accept-drift", action="store_true", help=accept_help)


def check_making(args: argparse.Namespace, source: Bundle) -> None:
    """Refuse options that cannot work before anything is made."""
    _check_engines(args)
    if args.size and args.checkpoint is None:
        raise ConfigError(
            "--size needs --checkpoint: a bundle has one input size, another is exported from the weights"
        )
    if args.checkpoint is not None and not args.size and not args.prune:
        raise ConfigError("--checkpoint is for other sizes and for pruning; give them as --size HxW, --prune FRACTION")
    if args.quantize and args.frames is None:
        raise ConfigError("--quantize needs --frames: ranges are calibrated on camera frames")
    if args.quantize and (reason := _why_no_int8(args)):
        raise CompressionError(reason)
    if args.fine_tune is not None and not args.prune:
        raise ConfigError("--fine-tune is for pruned networks; give --prune FRACTION as well")
    if args.data is not None and args.fine_tune is None:
        raise ConfigError("--data is for fine-tuning; give --fine-tune CONFIG as well")
    if args.prune:
        _check_pruning(args, source)
    if args.checkpoint is not None:
        from anomseg_ros.compression.reexport import require_same_checkpoint  # imports torch

        require_same_checkpoint(source, args.checkpoint)


def _check_engines(args: argparse.Namespace) -> None:
    """Make no graphs for backends of which none runs one."""
    chosen = () if args.backend is None else backends(args.backend)
    if not chosen or any(PROGRAM_FILES.get(name, GRAPH_FILE) == GRAPH_FILE for name in chosen):
        return
    if args.size or args.prune or args.quantize:
        raise ConfigError(
            f"--size, --prune and --quantize make ONNX graphs, which {', '.join(chosen)} does not run; add "
            "onnxruntime or openvino to --backend"
        )
    args.quantize = False


def _check_pruning(args: argparse.Namespace, source: Bundle) -> None:
    # torch takes seconds to import.
    from anomseg_ros.commands.prune import find_checkpoint
    from anomseg_ros.commands.train import find_config
    from anomseg_ros.compression.prune import PruneConfig

    for fraction in args.prune:
        PruneConfig(fraction=fraction)
    if args.frames is None:
        raise ConfigError("--prune needs --frames: what pruning loses is measured on camera frames")
    if source.contract.precision != "fp32":
        raise CompressionError(
            f"--prune: {source.contract.name!r} is {source.contract.precision}; give the float bundle"
        )
    find_checkpoint(args.checkpoint, source)
    if args.fine_tune is not None:
        find_config(args.fine_tune)


def usable_backends(bundles: Sequence[Path], making: bool) -> tuple[tuple[str, ...], list[LeftOut]]:
    """Return the installed backends that run one of the bundles, and those that would but are not installed.

    making: whether ONNX graphs will be made.
    """
    files = {file for directory in bundles for file in load_bundle(directory).contract.files}
    files |= {GRAPH_FILE} if making else set()
    found, missing = [], []
    for name in BACKENDS:
        if PROGRAM_FILES.get(name, GRAPH_FILE) not in files:
            continue
        try:
            known_providers(name)
            found.append(name)
        except BackendError as error:
            missing.append(LeftOut(f"backend {name}", str(error)))
    return tuple(found), missing


class Maker:
    """Makes bundles below the folders that it claims; one that an earlier run has left there is taken as it is.

    What a bundle lost is judged anew in each run, by what is accepted in that run.
    """

    def __init__(self, args: argparse.Namespace, source: Path, given: Sequence[Path]) -> None:
        """args: of add_making_options, frames and dataset. given: all bundles that are there, the source among them."""
        self._args = args
        self._source = source
        self._given = list(given)
        self._done = 0
        self._console = Console(stderr=True)
        self.left_out: list[LeftOut] = []
        bundle = load_bundle(source)
        own = (bundle.contract.input.height_px, bundle.contract.input.width_px)
        self._sizes = [size for size in dict.fromkeys(args.size) if size != own]
        self._fractions = sorted(set(args.prune))
        self._quantize = self._quantizes()
        self._frames = [] if args.frames is None else [sha256_of(file) for file in image_files(args.frames)]

    @property
    def total(self) -> int:
        """How many bundles will be made, if all can be."""
        floats = sum(load_bundle(directory).contract.precision == "fp32" for directory in self._given)
        made = len(self._sizes) + len(self._fractions) * (1 + len(self._sizes))
        return made + (floats + made if self._quantize else 0)

    def make(self, claim: Claim) -> list[Path]:
        """Return the directories of what could be made; `left_out` says what could not, and why.

        Raises FrameError for a frame that cannot be read, which spoils all of them.
        """
        sized = {size: made for size in self._sizes if (made := self._sized(size, claim))}
        pruned = [made for fraction in self._fractions for made in self._all_pruned(fraction, sized, claim)]
        floats = [*sized.values(), *pruned]
        int8 = []
        if self._quantize:
            for parent in map(load_bundle, [*self._given, *floats]):
                if parent.contract.precision == "fp32" and (made := self._int8(parent, claim)):
                    int8.append(made)
        return floats + int8

    def unseen_frames(self) -> list[RgbImage]:
        """Return frames that no int8 bundle made here is calibrated on, uint8 (H, W, 3) RGB; none without int8."""
        if not self._quantize:
            return []
        from anomseg_ros.compression.frames import split_frames

        return list(split_frames([str(self._args.frames)], CALIBRATION_FRAMES, HELD_OUT_FRAMES).held_out[:MAX_FRAMES])

    def _quantizes(self) -> bool:
        """Whether to make int8 bundles: as was asked, or where that is possible."""
        if self._args.quantize is not None or self._args.frames is None:
            return bool(self._args.quantize)
        reason = _why_no_int8(self._args)
        try:
            from anomseg_ros.commands import quantize  # noqa: F401
        except ModuleNotFoundError as error:
            reason = reason or f"{error}: pip install 'anomseg_ros[offline]'"
        if reason:
            self.left_out.append(LeftOut("int8", reason))
        return not reason

    def _sized(self, size: tuple[int, int], claim: Claim) -> Path | None:
        args, source = self._args, load_bundle(self._source)

        def make() -> Path:
            folder = self._place(claim, source, [sha256_of(args.checkpoint), *map(str, size)])
            (made,) = resized([self._source], {self._source: args.checkpoint}, [size], folder)
            return made

        return self._attempt(f"{source.contract.name} at {size[0]}x{size[1]}", make)

    def _all_pruned(self, fraction: float, sized: dict[tuple[int, int], Path], claim: Claim) -> list[Path]:
        """Prune, and fine-tune, once; then export what came out at the other sizes."""
        source = load_bundle(self._source)
        whole = self._attempt(_pruned_name(source, fraction), partial(self._pruned, source, fraction, claim))
        others = []
        for directory in sized.values():
            parent = load_bundle(directory)
            what = _pruned_name(parent, fraction)
            if whole is None:
                self._leave_out(what, f"there is no {_pruned_name(source, fraction)}")
            elif made := self._attempt(what, partial(self._pruned_at_size, whole, parent, fraction, claim)):
                others.append(made)
        return others if whole is None else [whole, *others]

    def _pruned(self, source: Bundle, fraction: float, claim: Claim) -> Path:
        from anomseg_ros.commands import prune
        from anomseg_ros.compression.pruned_bundle import PRUNED_TOLERANCE

        args = self._args
        checkpoint = prune.find_checkpoint(args.checkpoint, source)
        folder = self._place(claim, source, [sha256_of(checkpoint), f"{fraction:g}", *self._tuning()])
        output = folder / _pruned_name(source, fraction)
        if not output.is_dir():
            words = [str(source.directory), f"--checkpoint={checkpoint}", "--frames", str(args.frames)]
            words += [f"--output={output}", f"--fraction={fraction!r}", "--rounds=0", "--accept-drift"]
            words += [f"--held-out-frames={HELD_OUT_FRAMES}"]
            words += [] if args.fine_tune is None else [f"--fine-tune={args.fine_tune}"]
            prune.main(words + ([] if args.data is None else [f"--data={args.data}"]))
        return self._close_enough(output, PRUNED_TOLERANCE)

    def _pruned_at_size(self, pruned: Path, parent: Bundle, fraction: float, claim: Claim) -> Path:
        from anomseg_ros.compression.frames import drawn_frames
        from anomseg_ros.compression.prune import PruneConfig
        from anomseg_ros.compression.pruned_bundle import CHECKPOINT_FILE, PRUNED_TOLERANCE, Guard, write_pruned_bundle
        from anomseg_ros.networks.checkpoints import load_checkpoint

        own, checkpoint = load_bundle(pruned).contract, pruned / CHECKPOINT_FILE
        output = self._place(claim, parent, [sha256_of(checkpoint)]) / _pruned_name(parent, fraction)
        if not output.is_dir():
            network = load_checkpoint(checkpoint, own.network, len(own.classes))
            frames = drawn_frames([str(self._args.frames)], HELD_OUT_FRAMES)
            kept = {key: value for key, value in own.compression["settings"].items() if key == "fine_tune"}
            config, guard = PruneConfig(fraction=fraction), Guard(frames, accept=True)
            write_pruned_bundle(parent, network, config, guard, own.provenance, output, settings=kept)
        return self._close_enough(output, PRUNED_TOLERANCE)

    def _int8(self, parent: Bundle, claim: Claim) -> Path | None:
        from anomseg_ros.commands import quantize
        from anomseg_ros.compression.drift import Tolerance

        def make() -> Path:
            output = self._place(claim, parent, ["int8"]) / f"{parent.contract.name}-int8"
            if not output.is_dir():
                words = [str(parent.directory), "--frames", str(self._args.frames), f"--output={output}"]
                words += [f"--calibration-frames={CALIBRATION_FRAMES}", f"--held-out-frames={HELD_OUT_FRAMES}"]
                quantize.main([*words, "--accept-drift"])
            return self._close_enough(output, Tolerance())

        return self._attempt(f"{parent.contract.name} in int8", make)

    def _attempt(self, what: str, make: Callable[[], Path]) -> Path | None:
        self._done += 1
        self._console.print(f"bundle {self._done} of {self.total}: {what}", soft_wrap=True, highlight=False)
        try:
            return make()
        except FrameError:
            raise
        except AnomsegError as error:
            self.left_out.append(LeftOut(what, str(error)))
            return None

    def _leave_out(self, what: str, reason: str) -> None:
        self._done += 1
        self.left_out.append(LeftOut(what, reason))

    def _close_enough(self, directory: Path, limits: Any) -> Path:
        """Return a bundle's directory. Raises CompressionError for one that lost too much and was not to be accepted.

        All are made with --accept-drift, so that a run with other bounds finds them.
        """
        from anomseg_ros.compression.drift import Drift

        drift = from_plain(Drift, load_bundle(directory).contract.compression["drift"], str(directory))
        excesses = replace(drift, tolerance=limits).excesses()
        if excesses and not self._args.accept_drift:
            raise CompressionError(
                f"too far from its parent: {'; '.join(excesses)}; --accept-drift has it measured all the same"
            )
        return directory

    def _place(self, claim: Claim, parent: Bundle, depends_on: Sequence[str]) -> Path:
        """Return the folder of what is made of a parent with these frames; of others, it is another one."""
        words = [sha256_of(parent.directory / CONTRACT_FILE), *self._frames, *depends_on]
        folder = claim(f"bundles/{hashlib.sha256(' '.join(words).encode()).hexdigest()[:12]}")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _tuning(self) -> list[str]:
        """Return what fine-tuning depends on."""
        if self._args.fine_tune is None:
            return []
        from anomseg_ros.commands.train import find_config

        return [sha256_of(find_config(self._args.fine_tune)), str(self._args.data)]


def _pruned_name(parent: Bundle, fraction: float) -> str:
    return f"{parent.contract.name}-pruned{100 * fraction:g}"


def _why_no_int8(args: argparse.Namespace) -> str:
    """Return why the frames are none to quantize by, "" where they are."""
    from anomseg_ros.compression.frames import FEWEST_CALIBRATION, FEWEST_HELD_OUT, draw_split

    found, needed = len(image_files(args.frames)), FEWEST_CALIBRATION + FEWEST_HELD_OUT
    if found < needed:
        return f"{args.frames} holds {found} frame(s); --quantize needs at least {needed}, better 32"
    try:
        # What a dataset says of frames that were calibrated on is not what others would.
        draw_split([str(args.frames)], CALIBRATION_FRAMES, HELD_OUT_FRAMES, measured=args.dataset)
    except CompressionError as error:
        return str(error)
    return ""
