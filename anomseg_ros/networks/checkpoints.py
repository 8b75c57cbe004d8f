"""Strict loading of published checkpoints and our own, and saving of our own.

A checkpoint is data, never code: `.safetensors`, or a pickle read by torch.load(weights_only=True). Nothing is loaded
in part: an error names what does not fit.
"""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from anomseg_ros.core.file_kinds import foreign_file
from anomseg_ros.core.schema import from_plain
from anomseg_ros.core.staging import replace_bytes
from anomseg_ros.core.untrusted_text import parse_json
from anomseg_ros.errors import CheckpointError
from anomseg_ros.networks import NETWORKS, build_network, network_class
from anomseg_ros.networks.layout import Layout, State
from anomseg_ros.networks.layouts import LAYOUTS
from anomseg_ros.networks.network import FittedScore, SegmentationNetwork
from anomseg_ros.networks.widths import fit_widths, pruned_description, widths_are_consistent

_log = logging.getLogger(__name__)

FORMAT = "anomseg_ros.network"
FORMAT_VERSION = 1
FITTED = "fitted."
"""Prefix of the tensors of fitted scores: `fitted.SCORE.TENSOR`."""
NAMED_KEYS = 3
"""Number of missing, unexpected and misshapen keys that an error names."""

_TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".ckpt")
_WRAPPERS = ("state_dict", "model_state_dict", "model")

# Published files hold figures such as their mIoU as numpy numbers, which are plain data.
_scalar = np.float64().__reduce__()[0]  # its module changes between versions of numpy
_NUMPY_NUMBERS: list[Any] = [
    (_scalar, "numpy._core.multiarray.scalar"),
    (_scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    type(np.dtype("f8")),
    type(np.dtype("f4")),
]


@dataclass(frozen=True)
class _Description:
    """What our own files say beside the tensors, as save_checkpoint writes it."""

    version: int
    network: str
    options: Mapping[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source_layout: str | None
    metadata: Mapping[str, Any]
    pruned: _Pruned | None = None
    fitted: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Pruned:
    """groups: of each grouped convolution of a pruned network."""

    groups: Mapping[str, int]


@dataclass(frozen=True)
class _Misfit:
    """The keys of a checkpoint that do not fit a layout."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    def __str__(self) -> str:
        return "; ".join(f"{len(keys)} {word} ({_first(keys)})" for word, keys in asdict(self).items() if keys)


def _first(keys: tuple[str, ...]) -> str:
    return ", ".join(keys[:NAMED_KEYS]) + (", ..." if len(keys) > NAMED_KEYS else "")


def load_checkpoint(
    path: str | os.PathLike[str], network_name: str, num_classes: int, *, encoder_only: bool = False
) -> SegmentationNetwork:
    """Return the network with the checkpoint's weights and normalisation, in evaluation mode, on the CPU.

    Reads our own files (save_checkpoint) and every layout in layouts.LAYOUTS, bare or wrapped in "state_dict",
    "model_state_dict" or "model", with or without modules around the network that all names begin with, such as
    "module." of torch.nn.DataParallel, "_orig_mod." of torch.compile or "model." in Lightning. `source_layout` of the
    result names the layout. A pruned network gets the widths of its file. encoder_only: read layouts of pretrained
    encoders instead, after which the other parts have fresh weights.

    Raises CheckpointError, which names missing, unexpected and misshapen keys, unless the weights fit exactly;
    ConfigError for an unknown network.
    """
    network_class(network_name)
    path = Path(path)
    state, description = _read(path)
    fitted = _take_fitted(path, state, description)
    layouts = [one for one in LAYOUTS if one.network == network_name and bool(one.fresh) == encoder_only]
    if not layouts and not description:
        kind = "an encoder's weights alone" if encoder_only else "a whole published network"
        raise CheckpointError(f"{path}: no layout of {kind} is known for network {network_name!r}")
    if description:
        layouts, stored = [_own_layout(path, description)], description["network"]
        if stored != network_name:
            raise CheckpointError(f"{path} holds network {stored!r}, not {network_name!r}; ask for that one")
    state, layout, misfit = _unwrapped_closest(state, layouts, num_classes)
    if misfit:
        raise CheckpointError(_explain(path, state, layout, misfit, num_classes))
    if layout.note is not None:
        _log.warning("%s: %s", path, layout.note)
    network = _fill(layout, state, num_classes, description)
    if layout.pruned_groups is not None and not widths_are_consistent(network):
        raise CheckpointError(f"{path} holds a pruned network whose layers do not fit together; prune it again")
    network.fitted_scores = fitted
    return network


def save_checkpoint(path: str | os.PathLike[str], network: SegmentationNetwork, metadata: Mapping[str, Any]) -> None:
    """Write weights, options, normalisation and `metadata` (JSON types) to a `.safetensors` file in one step.

    Raises CheckpointError for another suffix, metadata that JSON cannot hold, or a folder that cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} must end in .safetensors, the only format that checkpoints are saved in")
    description = {
        "version": FORMAT_VERSION,
        "network": network.name,
        "options": network.options(),
        "mean": network.mean,
        "std": network.std,
        "source_layout": network.source_layout,
        "metadata": dict(metadata),
    }
    pruned = pruned_description(network)
    if pruned is not None:
        description["pruned"] = pruned
    if network.fitted_scores:
        description["fitted"] = {name: dict(fitted.facts) for name, fitted in network.fitted_scores.items()}
    try:
        header = {FORMAT: json.dumps(description)}
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"metadata for {path} holds what JSON cannot: {error}; use str, numbers, lists") from None
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    for score, fitted in network.fitted_scores.items():
        tensors |= {f"{FITTED}{score}.{name}": torch.from_numpy(value) for name, value in fitted.tensors.items()}
    try:
        replace_bytes(path, safetensors.torch.save(tensors, header))
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error


def _read(path: Path) -> tuple[State, dict[str, Any]]:
    """Return the file's tensors under their published names, and our own description, which published files lack."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file at {path}; give the path of a .safetensors, .pth, .pt or .tar file")
    if path.suffix not in (".safetensors", *_TORCH_SUFFIXES):
        raise CheckpointError(f"{path} ends in {path.suffix!r}; expected .safetensors or {', '.join(_TORCH_SUFFIXES)}")
    kind = foreign_file(path, "a checkpoint")
    if kind is not None:
        raise CheckpointError(f"{path} {kind}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _unwrap(path, _read_torch(path)), {}


def _read_safetensors(path: Path) -> tuple[State, dict[str, Any]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}); copy or download it again"
        ) from error
    if FORMAT not in header:
        return _unwrap(path, state), {}
    return state, _described(path, header[FORMAT])


def _described(path: Path, text: str) -> dict[str, Any]:
    """Return our description of a file, its values checked and its network built once."""
    try:
        plain = parse_json(text)
        version = plain["version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise CheckpointError(f"{path} has format {version}, newer than {FORMAT_VERSION}; update anomseg_ros")
        description = asdict(from_plain(_Description, plain, "description"))
        with torch.device("meta"):
            _build(_own_layout(path, description), num_classes=1)
    except CheckpointError:
        raise
    except Exception as error:  # what a network makes of options that are not its own is not limited
        raise CheckpointError(f"{path} has a damaged {FORMAT} description ({error!r}); save it again") from error
    return description


def _take_fitted(path: Path, state: State, description: Mapping[str, Any]) -> dict[str, FittedScore]:
    """Remove the tensors of fitted scores from a file's tensors and return them by score."""
    facts = description.get("fitted", {})
    tensors: dict[str, dict[str, Any]] = {}
    for key in [key for key in state if description and key.startswith(FITTED)]:
        score, _, name = key.removeprefix(FITTED).partition(".")
        tensors.setdefault(score, {})[name] = state.pop(key).to(torch.float32).numpy()
    if tensors.keys() != facts.keys():
        raise CheckpointError(
            f"{path} describes fitted scores {sorted(facts)} but holds {sorted(tensors)}; fit them again"
        )
    return {name: FittedScore(tensors[name], facts[name]) for name in facts}


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # Quantized tensors and old storages cause deprecation warnings that the reader cannot act on.
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals(_NUMPY_NUMBERS):
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can fail in any way
        raise CheckpointError(
            f"{path} cannot be loaded as weights only ({_short(error)}); it is damaged or holds Python objects, which "
            "are never run here: where you trust it, save model.state_dict() alone with torch.save or safetensors"
        ) from error


def _short(error: Exception) -> str:
    """Return the cause in torch's message without its advice, which is to run the file."""
    text = str(error)
    text = text.partition("WeightsUnpickler error:")[2] or text
    cause = re.search(r"Unsupported \w+: [^\n]*?(?= was not| not allowed|\n|$)|Trying to [^\n]*", text)
    first = (text.strip().splitlines() or [type(error).__name__])[0]
    return cause[0] if cause else re.split(r"\. ", first)[0][:200]


def _unwrap(path: Path, content: Any) -> State:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a mapping of names to tensors; save model.state_dict()"
        )
    foreign = tuple(str(key) for key, value in content.items() if not isinstance(value, Tensor))
    if foreign:
        raise CheckpointError(f"{path} holds more than tensors ({_first(foreign)}); save model.state_dict() alone")
    return {str(key): value.detach() for key, value in content.items()}


def _unwrapped_closest(state: State, layouts: list[Layout], num_classes: int) -> tuple[State, Layout, _Misfit]:
    """Return _closest, and the state without as many of the modules that all its keys begin with as make it fit best.

    Trainers wrap a network in modules of their own: torch.compile in _orig_mod, Lightning in what its user calls it.
    Where nothing fits, one is taken off, so that an error speaks of the network's own names.
    """
    split = [key.split(".") for key in state]
    shared = 0
    while all(len(parts) > shared + 1 and parts[shared] == split[0][shared] for parts in split):
        shared += 1
    tried = []
    for depth in (*range(1, shared + 1), 0):
        bare = {".".join(key.split(".")[depth:]): value for key, value in state.items()} if depth else state
        tried.append((bare, *_closest(bare, layouts, num_classes)))
    return min(tried, key=lambda one: len(one[2]))


def _own_layout(path: Path, description: Mapping[str, Any]) -> Layout:
    """Return the layout of our own files, in which keys keep their names, from a file's description."""
    network = description["network"]
    if network not in NETWORKS:
        raise CheckpointError(f"{path} holds network {network!r}, unknown here; known: {', '.join(NETWORKS)}")
    pruned = description["pruned"]
    return Layout(
        FORMAT,
        network,
        str,
        dict(description["options"]),
        mean=description["mean"],
        std=description["std"],
        pruned_groups=None if pruned is None else pruned["groups"],
    )


def _build(layout: Layout, num_classes: int, state: State | None = None) -> SegmentationNetwork:
    """Return a fresh network for a prepared `state`, as narrow as it where the layout is that of a pruned one."""
    options = layout.options if state is None else layout.options_of(state)
    network = build_network(layout.network, num_classes, **options)
    network.set_normalisation(layout.mean, layout.std)
    if state is not None and layout.pruned_groups is not None:
        fit_widths(network, state, layout.pruned_groups)
    return network


def _published(layout: Layout, network: SegmentationNetwork) -> dict[str, tuple[str, Tensor]]:
    """Return published key -> (our key, our tensor) for all tensors of the network."""
    return {layout.published_key(key): (key, value) for key, value in network.state_dict().items()}


def _misfit(layout: Layout, state: State, num_classes: int) -> _Misfit:
    with torch.device("meta"):
        expected = _published(layout, _build(layout, num_classes, state))
    # Files from before PyTorch 0.4.1 lack the counter of training steps, which is not used.
    needed = [
        key
        for key, (own, _) in expected.items()
        if not key.endswith(".num_batches_tracked") and not own.startswith(layout.fresh)
    ]
    return _Misfit(
        tuple(key for key in needed if key not in state),
        tuple(key for key in state if key not in expected and key not in layout.unused),
        tuple(
            f"{key} {tuple(state[key].shape)} where {tuple(expected[key][1].shape)} is expected"
            for key in needed
            if key in state and state[key].shape != expected[key][1].shape
        ),
    )


def _closest(state: State, layouts: list[Layout], num_classes: int) -> tuple[Layout, _Misfit]:
    """Return the layout with the fewest keys that do not fit, and these keys."""
    quantized = any(value.is_quantized for value in state.values())
    same_kind = [layout for layout in layouts if layout.quantized == quantized] or layouts
    misfits = [(layout, _misfit(layout, layout.prepare(state), num_classes)) for layout in same_kind]
    return min(misfits, key=lambda pair: len(pair[1]))


def _explain(path: Path, state: State, layout: Layout, misfit: _Misfit, num_classes: int) -> str:
    count = _class_count(layout, state)
    if count and count != num_classes and not _misfit(layout, layout.prepare(state), count):
        return f"{path} was trained for {count} classes, not {num_classes}; ask for num_classes={count}"
    message = f"{path} does not fit network {layout.network!r} (closest layout {layout.name!r}): {misfit}"
    for other in LAYOUTS:
        count = _class_count(other, state)
        if other.network != layout.network and count and not _misfit(other, other.prepare(state), count):
            return f"{message}; it fits network {other.network!r} with num_classes={count}: ask for that one"
    return (
        f"{message}; check that the file belongs to this network, and train or convert it for one of the known layouts"
    )


def _class_count(layout: Layout, state: State) -> int:
    """Return the number of classes of the checkpoint's classifier, 0 if it has no such parameter."""
    network = network_class(layout.network)
    our_key, dimension = network.class_parameter
    prepared = layout.prepare(state)
    weight = prepared.get(layout.published_key(our_key))
    if weight is None or weight.dim() <= dimension:
        return 0
    return network.class_count(int(weight.shape[dimension]), layout.options_of(prepared))


def _fill(layout: Layout, state: State, num_classes: int, description: Mapping[str, Any]) -> SegmentationNetwork:
    prepared = layout.prepare(state)
    network = _build(layout, num_classes, prepared)
    ours = {key: prepared.get(name, value) for name, (key, value) in _published(layout, network).items()}
    network.load_state_dict(ours, strict=True)
    network.source_layout = description["source_layout"] if description else layout.name
    network.checkpoint_metadata = dict(description["metadata"]) if description else {}
    return network.eval()
