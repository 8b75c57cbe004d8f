"""The bundles that `anomseg tune` makes: other sizes, pruned ones, and int8 of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anomseg_ros.backends import BACKENDS, check_usable
from anomseg_ros.bench.candidate_runs import LeftOut
from anomseg_ros.bench.candidates import PROGRAM_FILES
from anomseg_ros.bench.measure import MAX_FRAMES
from anomseg_ros.core.bundle import CHECKPOINT_FILE, CONTRACT_FILE, GRAPH_FILE, Bundle, load_bundle, sha256_of
from anomseg_ros.core.image_files import image_files
from anomseg_ros.core.schema import from_plain
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import AnomsegError, BackendError, CompressionError, ConfigError, FrameError
from anomseg_ros.tuning.bench import resized
from anomseg_ros.tuning.request import Listener, TuneRequest

if TYPE_CHECKING:  # torch takes seconds to import, so functions import it
    from anomseg_ros.compression.drift import Tolerance
    from anomseg_ros.compression.pruned_bundle import PruneRequest

CALIBRATION_FRAMES, HELD_OUT_FRAMES = 16, 16
"""Most frames to calibrate on, and most other frames to measure on."""

Claim = Callable[[str], Path]
"""Returns the path of a folder by its name; called before anything is written there."""


def check_making(request: TuneRequest, source: Bundle) -> None:
    """Raise ConfigError, CompressionError or CheckpointError for requests that cannot be fulfilled."""
    makes_graphs = request.sizes or request.prune or request.quantize
    if makes_graphs and not runs_graphs(request.backends):
        raise ConfigError(
            f"other sizes, pruned networks and int8 are ONNX graphs, which {', '.join(request.backends or ())} does "
            "not run; add onnxruntime or openvino to the backends"
        )
    if request.sizes and request.checkpoint is None:
        raise ConfigError("other sizes need the `checkpoint`: a bundle has one, another is exported from the weights")
    if request.checkpoint is not None and not request.sizes and not request.prune:
        raise ConfigError("the `checkpoint` is for other sizes and for pruning; give some of these")
    if request.quantize and request.frames is None:
        raise ConfigError("int8 needs `frames`: ranges are found on camera frames")
    if request.quantize and (reason := _why_no_int8(request)):
        raise CompressionError(reason)
    if request.fine_tune is not None and not request.prune:
        raise ConfigError("`fine_tune` is for pruned networks; give a share to `prune` as well")
    if request.data is not None and request.fine_tune is None:
        raise ConfigError("`data` is for fine-tuning; give `fine_tune` as well")
    if request.prune:
        _check_pruning(request, source)
    if request.checkpoint is not None:
        from anomseg_ros.compression.reexport import require_same_checkpoint  # imports torch

        require_same_checkpoint(source, request.checkpoint)


def runs_graphs(backends: Sequence[str] | None) -> bool:
    """Return whether one of these backends runs ONNX graphs, which all made bundles are. None: all backends."""
    return backends is None or any(PROGRAM_FILES.get(name, GRAPH_FILE) == GRAPH_FILE for name in backends)


def _check_pruning(request: TuneRequest, source: Bundle) -> None:
    from anomseg_ros.compression.prune import PruneConfig
    from anomseg_ros.compression.pruned_bundle import find_checkpoint
    from anomseg_ros.training.chain import find_config

    for fraction in request.prune:
        PruneConfig(fraction=fraction)
    if request.frames is None:
        raise ConfigError("pruning needs `frames`: what it loses is measured on camera frames")
    if source.contract.precision != "fp32":
        raise CompressionError(
            f"{source.contract.name!r} is {source.contract.precision} and cannot be pruned; give the float bundle"
        )
    find_checkpoint(request.checkpoint, source)
    if request.fine_tune is not None:
        find_config(request.fine_tune)


def usable_backends(bundles: Sequence[Path], making: bool) -> tuple[tuple[str, ...], list[LeftOut]]:
    """Return the installed backends that run one of the bundles, and the others that could, with the reason.

    making: whether ONNX graphs will be made.
    """
    files = {file for directory in bundles for file in load_bundle(directory).contract.files}
    files |= {GRAPH_FILE} if making else set()
    usable, missing = [], []
    for name in BACKENDS:
        if PROGRAM_FILES.get(name, GRAPH_FILE) not in files:
            continue
        try:
            check_usable(name)
            usable.append(name)
        except BackendError as error:
            missing.append(LeftOut(f"backend {name}", str(error)))
    return tuple(usable), missing


class Maker:
    """Makes bundles in folders that it claims. A bundle that an earlier run left there is reused.

    Each run judges anew, by its own tolerance, whether a bundle lost too much.
    """

    def __init__(self, request: TuneRequest) -> None:
        """Plan the bundles; nothing is made yet."""
        self._request = request
        self._done = 0
        self.left_out: list[LeftOut] = []
        source = load_bundle(request.bundle).contract.input
        self._sizes = [size for size in dict.fromkeys(request.sizes) if size != (source.height_px, source.width_px)]
        self._fractions = sorted(set(request.prune))
        self._quantize = self._quantizes()
        self._frames = [] if request.frames is None else [sha256_of(file) for file in image_files(request.frames)]

    @property
    def total(self) -> int:
        """Number of bundles that will be made if all succeed."""
        floats = sum(load_bundle(directory).contract.precision == "fp32" for directory in self._request.bundles)
        others = len(self._sizes) + len(self._fractions) * (1 + len(self._sizes))
        return others + (floats + others if self._quantize else 0)

    def make(self, claim: Claim, listener: Listener) -> list[Path]:
        """Return the directories of the bundles. `left_out` lists those that failed, with the reason.

        Raises FrameError for an unreadable frame, which all of them need.
        """
        self._claim, self._listener = claim, listener
        sized = {size: bundle for size in self._sizes if (bundle := self._sized(size))}
        pruned = [bundle for fraction in self._fractions for bundle in self._all_pruned(fraction, sized)]
        floats = [*sized.values(), *pruned]
        int8 = []
        if self._quantize:
            for parent in map(load_bundle, [*self._request.bundles, *floats]):
                if parent.contract.precision == "fp32" and (bundle := self._int8(parent)):
                    int8.append(bundle)
        return floats + int8

    def unseen_frames(self) -> list[RgbImage]:
        """Return frames, uint8 (H, W, 3) RGB, that int8 bundles are not calibrated on; none without int8."""
        if not self._quantize:
            return []
        from anomseg_ros.compression.calibration_frames import draw_split, read_split

        drawn = draw_split([str(self._request.frames)], CALIBRATION_FRAMES, HELD_OUT_FRAMES)
        return list(read_split(drawn).held_out[:MAX_FRAMES])

    def _quantizes(self) -> bool:
        """Return whether to make int8 bundles: as requested, or if that is possible."""
        request = self._request
        if not runs_graphs(request.backends):
            return False
        if request.quantize is not None or request.frames is None:
            return bool(request.quantize)
        reason = _why_no_int8(request)
        try:
            from anomseg_ros.compression import quantize  # noqa: F401
        except ModuleNotFoundError as error:
            reason = reason or f"{error}: pip install 'anomseg_ros[offline]'"
        if reason:
            self.left_out.append(LeftOut("int8", reason))
        return not reason

    def _sized(self, size: tuple[int, int]) -> Path | None:
        source, checkpoint = load_bundle(self._request.bundle), self._request.checkpoint
        assert checkpoint is not None

        def make() -> Path:
            folder = self._place(source, [sha256_of(checkpoint), *map(str, size)])
            (bundle,) = resized([self._request.bundle], {self._request.bundle: checkpoint}, [size], folder)
            return bundle

        return self._attempt(f"{source.contract.name} at {size[0]}x{size[1]}", make)

    def _all_pruned(self, fraction: float, sized: dict[tuple[int, int], Path]) -> list[Path]:
        """Prune and fine-tune once, then export the result at the other sizes."""
        source = load_bundle(self._request.bundle)
        whole = self._attempt(_pruned_name(source, fraction), partial(self._pruned, source, fraction))
        others = []
        for directory in sized.values():
            parent = load_bundle(directory)
            what = _pruned_name(parent, fraction)
            if whole is None:
                self._done += 1
                self.left_out.append(LeftOut(what, f"there is no {_pruned_name(source, fraction)}"))
            elif bundle := self._attempt(what, partial(self._pruned_at_size, whole, parent, fraction)):
                others.append(bundle)
        return others if whole is None else [whole, *others]

    def _pruned(self, source: Bundle, fraction: float) -> Path:
        from anomseg_ros.compression.pruned_bundle import PRUNED_TOLERANCE, find_checkpoint, prune_bundle

        checkpoint = find_checkpoint(self._request.checkpoint, source)
        folder = self._place(source, [sha256_of(checkpoint), f"{fraction:g}", *self._fine_tuning_key()])
        output = folder / _pruned_name(source, fraction)
        if not output.is_dir():
            prune_bundle(self._pruning(source, fraction, output), self._listener, self._listener.training)
        return self._close_enough(output, PRUNED_TOLERANCE)

    def _pruned_at_size(self, pruned: Path, parent: Bundle, fraction: float) -> Path:
        from anomseg_ros.compression.calibration_frames import drawn_frames
        from anomseg_ros.compression.pruned_bundle import PRUNED_TOLERANCE, write_pruned_bundle
        from anomseg_ros.networks.checkpoints import load_checkpoint

        contract, checkpoint = load_bundle(pruned).contract, pruned / CHECKPOINT_FILE
        output = self._place(parent, [sha256_of(checkpoint)]) / _pruned_name(parent, fraction)
        if not output.is_dir():
            network = load_checkpoint(checkpoint, contract.network, len(contract.classes))
            request = self._pruning(parent, fraction, output)
            frames = drawn_frames(request.frames, request.held_out_frames)
            settings = {key: value for key, value in contract.compression["settings"].items() if key == "fine_tune"}
            write_pruned_bundle(request, network, frames, settings, self._listener)
        return self._close_enough(output, PRUNED_TOLERANCE)

    def _pruning(self, parent: Bundle, fraction: float, output: Path) -> PruneRequest:
        """Return the request to prune. Drift is accepted and judged later, so that other runs can use the bundle."""
        from anomseg_ros.compression.drift import Guard
        from anomseg_ros.compression.fine_tune import FineTune
        from anomseg_ros.compression.prune import PruneConfig
        from anomseg_ros.compression.pruned_bundle import PRUNED_TOLERANCE, PruneRequest

        request = self._request
        return PruneRequest(
            bundle=parent,
            output=output,
            frames=(str(request.frames),),
            config=PruneConfig(fraction=fraction),
            checkpoint=request.checkpoint,
            fine_tune=None if request.fine_tune is None else FineTune(request.fine_tune, data=request.data),
            guard=Guard(PRUNED_TOLERANCE, accept_drift=True),
            held_out_frames=HELD_OUT_FRAMES,
            command=request.command,
        )

    def _int8(self, parent: Bundle) -> Path | None:
        from anomseg_ros.compression.drift import Guard, Tolerance
        from anomseg_ros.compression.quantize import QuantizeRequest, quantize_bundle

        def make() -> Path:
            output = self._place(parent, ["int8"]) / f"{parent.contract.name}-int8"
            if not output.is_dir():
                request = QuantizeRequest(
                    bundle=parent,
                    output=output,
                    frames=(str(self._request.frames),),
                    guard=Guard(accept_drift=True),
                    calibration_frames=CALIBRATION_FRAMES,
                    held_out_frames=HELD_OUT_FRAMES,
                )
                quantize_bundle(request, self._listener)
            return self._close_enough(output, Tolerance())

        return self._attempt(f"{parent.contract.name} in int8", make)

    def _attempt(self, what: str, make: Callable[[], Path]) -> Path | None:
        self._done += 1
        self._listener.tell(f"bundle {self._done} of {self.total}: {what}")
        try:
            return make()
        except FrameError:
            raise
        except AnomsegError as error:
            self.left_out.append(LeftOut(what, str(error)))
            return None

    def _close_enough(self, directory: Path, limits: Tolerance) -> Path:
        """Return a bundle's directory. Raises CompressionError if it lost too much and drift is not accepted."""
        from anomseg_ros.compression.drift import Drift

        drift = from_plain(Drift, load_bundle(directory).contract.compression["drift"], str(directory))
        excesses = replace(drift, tolerance=limits).excesses()
        if excesses and not self._request.accept_drift:
            raise CompressionError(
                f"too far from its parent: {'; '.join(excesses)}; `accept_drift` has it measured all the same"
            )
        return directory

    def _place(self, parent: Bundle, depends_on: Sequence[str]) -> Path:
        """Return the folder of a bundle. Its name follows from parent, frames and `depends_on`."""
        words = [sha256_of(parent.directory / CONTRACT_FILE), *self._frames, *depends_on]
        folder = self._claim(f"bundles/{hashlib.sha256(' '.join(words).encode()).hexdigest()[:12]}")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _fine_tuning_key(self) -> list[str]:
        """Return the facts that fine-tuning depends on."""
        if self._request.fine_tune is None:
            return []
        from anomseg_ros.training.chain import find_config

        return [sha256_of(find_config(self._request.fine_tune)), str(self._request.data)]


def _pruned_name(parent: Bundle, fraction: float) -> str:
    return f"{parent.contract.name}-pruned{100 * fraction:g}"


def _why_no_int8(request: TuneRequest) -> str:
    """Return why these frames cannot be used to quantize, or an empty string."""
    from anomseg_ros.compression.calibration_frames import FEWEST_CALIBRATION, FEWEST_HELD_OUT, draw_split

    frames = request.frames
    assert frames is not None
    count, needed = len(image_files(frames)), FEWEST_CALIBRATION + FEWEST_HELD_OUT
    if count < needed:
        return f"{frames} holds {count} frame(s); int8 needs at least {needed}, better 32"
    try:
        # Frames of the datasets must not be calibrated on: figures on them would be too good.
        draw_split([str(frames)], CALIBRATION_FRAMES, HELD_OUT_FRAMES, measured=request.datasets)
    except CompressionError as error:
        return str(error)
    return ""
