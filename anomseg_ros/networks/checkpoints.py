"""Load published and own checkpoints strictly, and save our own.

A checkpoint is data, never code: `.safetensors`, or pickles read by torch.load(weights_only=True). Whatever does not
fit is named: nothing is loaded in part.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from anomseg_ros.errors import CheckpointError, ConfigError
from anomseg_ros.networks import NETWORKS, network_class
from anomseg_ros.networks.base import SegmentationNetwork
from anomseg_ros.networks.layouts import LAYOUTS, Layout, State
from anomseg_ros.networks.widths import fit_widths, pruned_description, widths_are_consistent

FORMAT = "anomseg_ros.network"
FORMAT_VERSION = 1
NAMED_KEYS = 3
"""How many of the missing, unexpected and misshapen keys an error names."""

_TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".ckpt")
_WRAPPERS = ("state_dict", "model_state_dict", "model")


# Published files keep figures such as their mIoU beside the weights as numpy numbers: plain data, like the weights.
_scalar = (np._core if hasattr(np, "_core") else np.core).multiarray.scalar
_NUMPY_NUMBERS: list[Any] = [
    (_scalar, "numpy._core.multiarray.scalar"),
    (_scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    type(np.dtype("f8")),
    type(np.dtype("f4")),
]


@dataclass(frozen=True)
class _Misfit:
    """What keeps a checkpoint from fitting a layout."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    def __str__(self) -> str:
        found = (("missing", self.missing), ("unexpected", self.unexpected), ("misshapen", self.misshapen))
        return "; ".join(f"{len(keys)} {word} ({_first(keys)})" for word, keys in found if keys)


def _first(keys: tuple[str, ...]) -> str:
    return ", ".join(keys[:NAMED_KEYS]) + (", ..." if len(keys) > NAMED_KEYS else "")


def load_checkpoint(path: str | os.PathLike[str], network_name: str, num_classes: int) -> SegmentationNetwork:
    """Return the network with the checkpoint's weights and normalisation, in evaluation mode, on the CPU.

    Takes our own files (save_checkpoint) and every layout in layouts.LAYOUTS, bare or wrapped in "state_dict",
    "model_state_dict" or "model", with or without the "module." of torch.nn.DataParallel. `source_layout` of the
    result names the layout. A pruned network is as narrow as its file says. The weights fit exactly or CheckpointError
    says which keys are missing, unexpected or misshapen and what to do; ConfigError for an unknown network.
    """
    network_class(network_name)
    path = Path(path)
    state, own = _read(path)
    layouts = [_own_layout(path, own)] if own else [layout for layout in LAYOUTS if layout.network == network_name]
    if own and own["network"] != network_name:
        raise CheckpointError(f"{path} holds network {own['network']!r}, not {network_name!r}; ask for that one")
    layout, misfit = _closest(state, layouts, num_classes)
    if misfit:
        raise CheckpointError(_explain(path, state, layout, misfit, num_classes))
    network = _fill(layout, state, num_classes, own)
    if layout.pruned_groups is not None and not widths_are_consistent(network):
        raise CheckpointError(f"{path} holds a pruned network whose layers do not fit together; prune it again")
    return network


def save_checkpoint(path: str | os.PathLike[str], network: SegmentationNetwork, metadata: Mapping[str, Any]) -> None:
    """Write weights, options, normalisation and `metadata` (JSON types) to a `.safetensors` file, all or nothing.

    Raises CheckpointError for another suffix, for metadata that JSON cannot hold, or where the folder cannot be
    written.
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
    try:
        header = {FORMAT: json.dumps(description)}
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"metadata for {path} holds what JSON cannot: {error}; use str, numbers, lists") from None
    content = safetensors.torch.save(
        {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}, header
    )
    _write_beside_and_rename(path, content)


def _write_beside_and_rename(path: Path, content: bytes) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error


def _read(path: Path) -> tuple[State, dict[str, Any]]:
    """Return the file's tensors under their published names, and our own description, empty for published files."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file at {path}; give the path of a .safetensors, .pth, .pt or .tar file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in _TORCH_SUFFIXES:
        return _unwrap(path, _read_torch(path)), {}
    raise CheckpointError(f"{path} ends in {path.suffix!r}; expected .safetensors or {', '.join(_TORCH_SUFFIXES)}")


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
    try:
        own = json.loads(header[FORMAT])
        version = int(own["version"])
        if version <= FORMAT_VERSION:
            with torch.device("meta"):
                _build(_own_layout(path, own), num_classes=1)
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{path} has a damaged {FORMAT} description ({error!r}); save it again") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{path} has format {version}, newer than {FORMAT_VERSION}; update anomseg_ros")
    return state, own


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # Quantized tensors and old storages load with deprecation notes that the reader can do nothing about.
            warnings.simplefilter("ignore")
            with torch.serialization.safe_globals(_NUMPY_NUMBERS):
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can fail in any way
        raise CheckpointError(
            f"{path} cannot be loaded as weights only ({_short(error)}); it is damaged or holds Python objects, which "
            "are never run here: where you trust it, save model.state_dict() alone with torch.save or safetensors"
        ) from error


def _short(error: Exception) -> str:
    """Return the fact in torch's message without its advice, which is to run the file."""
    text = str(error)
    fact = re.search(r"Unsupported \w+: [^\n]*?(?= was not| not allowed|\n|$)|Trying to [^\n]*", text)
    return fact[0] if fact else (text.strip().splitlines() or [type(error).__name__])[0][:200]


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
    prefix = "module." if all(str(key).startswith("module.") for key in content) else ""
    return {str(key)[len(prefix) :]: value.detach() for key, value in content.items()}


def _own_layout(path: Path, own: Mapping[str, Any]) -> Layout:
    """Return the layout in which every key keeps its name, with what the description says of the network."""
    if own["network"] not in NETWORKS:
        raise CheckpointError(f"{path} holds network {own['network']!r}, unknown here; known: {', '.join(NETWORKS)}")
    (r, g, b), (std_r, std_g, std_b) = own["mean"], own["std"]
    return Layout(
        FORMAT,
        own["network"],
        str,
        dict(own["options"]),
        mean=(float(r), float(g), float(b)),
        std=(float(std_r), float(std_g), float(std_b)),
        pruned_groups=None if own.get("pruned") is None else {k: int(v) for k, v in own["pruned"]["groups"].items()},
    )


def _build(layout: Layout, num_classes: int, state: State | None = None) -> SegmentationNetwork:
    """Return a fresh network, as narrow as `state` where the layout is that of a pruned one."""
    network = network_class(layout.network)(num_classes, **layout.options)
    network.set_normalisation(layout.mean, layout.std)
    if state is not None and layout.pruned_groups is not None:
        fit_widths(network, state, layout.pruned_groups)
    return network


def _published(layout: Layout, network: SegmentationNetwork) -> dict[str, tuple[str, Tensor]]:
    """Return published key -> (our key, our tensor), for everything the network has."""
    return {layout.published_key(key): (key, value) for key, value in network.state_dict().items()}


def _misfit(layout: Layout, state: State, num_classes: int) -> _Misfit:
    with torch.device("meta"):
        expected = _published(layout, _build(layout, num_classes, state))
    # A counter of training steps, which files from before PyTorch 0.4.1 lack and nothing here reads.
    needed = [key for key in expected if not key.endswith(".num_batches_tracked")]
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
    """Return the layout with the fewest keys that do not fit, and those."""
    quantized = any(value.is_quantized for value in state.values())
    fitting_kind = [layout for layout in layouts if layout.quantized == quantized] or layouts
    found = [(layout, _misfit(layout, layout.prepare(state), num_classes)) for layout in fitting_kind]
    return min(found, key=lambda pair: len(pair[1]))


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
    """Return the number of classes that the checkpoint's classifier has, 0 where there is no such parameter."""
    our_key, dimension = network_class(layout.network).class_parameter
    weight = state.get(layout.published_key(our_key))
    return int(weight.shape[dimension]) if weight is not None and weight.dim() > dimension else 0


def _fill(layout: Layout, state: State, num_classes: int, own: Mapping[str, Any]) -> SegmentationNetwork:
    prepared = layout.prepare(state)
    network = _build(layout, num_classes, prepared)
    ours = {key: prepared.get(name, value) for name, (key, value) in _published(layout, network).items()}
    network.load_state_dict(ours, strict=True)
    network.source_layout = own["source_layout"] if own else layout.name
    network.checkpoint_metadata = dict(own["metadata"]) if own else {}
    return network.eval()
