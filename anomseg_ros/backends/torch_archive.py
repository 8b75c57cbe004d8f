"""Says whether a model.pt2 is data only, before torch reads it.

torch.export.load (torch 2.13) is no reader of plain data. It unpickles without restriction the tensors that an archive
marks as pickled and objects of other classes, loads machine code (data/aotinductor), evaluates symbolic sizes and
guards as Python, and imports modules that the tree of inputs names. `anomseg quantize` writes none of these: constant
sizes, plain tensors and operators of torch. An archive that holds anything else is refused here.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anomseg_ros.errors import BackendError

MEMBERS = re.compile(
    r"[^/]+/("
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
    r"|models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt)"
)
OPERATORS = re.compile(r"torch\.ops\.(aten|quantized_decomposed)\.\w+\.\w+|_operator\.getitem")
EVALUATED = ("as_expr", "expr_str", "as_custom_obj", "as_graph", "as_sym_int", "as_sym_float", "as_sym_bool")
"""Keys of values that torch evaluates or builds objects from. A list of sizes may be called as_sym_ints: see below."""
IMPORTED = ("__enum__", "default_factory_module")
"""Words in the description of inputs and outputs that make torch import a module."""
EXPECTED = "expected the program that `anomseg quantize --backend torch` wrote"


def require_plain_program(path: Path) -> None:
    """Raise BackendError unless the archive holds plain tensors and a graph of torch's own operators."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            _check_members(path, names)
            root = names[0].split("/")[0]
            for kind in ("weights", "constants"):
                _check_payload(path, json.loads(archive.read(f"{root}/data/{kind}/model_{kind}_config.json")))
            _check_program(path, json.loads(archive.read(f"{root}/models/model.json")))
    except (zipfile.BadZipFile, KeyError, IndexError, OSError, ValueError, TypeError, RecursionError) as error:
        raise BackendError(f"{path} cannot be loaded: {' '.join(str(error).split())}; {EXPECTED}") from error


def _check_members(path: Path, names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    foreign = [name for name in names if not MEMBERS.fullmatch(name)]
    roots = {name.split("/")[0] for name in names}
    if twice or foreign or len(roots) != 1:
        _refuse(path, f"the archive holds {(twice or foreign or sorted(roots))[0]!r}")


def _check_payload(path: Path, config: dict[str, Any]) -> None:
    for name, payload in config["config"].items():
        if payload["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", payload["path_name"]):
            _refuse(path, f"tensor {name!r} is a pickled object")


def _check_program(path: Path, program: dict[str, Any]) -> None:
    if program["guards_code"] or program["range_constraints"]:
        _refuse(path, "the program has guards, which are Python code")
    for node in program["graph_module"]["graph"]["nodes"]:
        if not OPERATORS.fullmatch(node["target"]):
            _refuse(path, f"the program calls {node['target']!r}")
    for key, value in _items(program):
        if key in EVALUATED:
            _refuse(path, f"the program has a value of kind {key!r}")
        if isinstance(value, str) and any(word in value for word in IMPORTED):
            _refuse(path, "its inputs or outputs are of classes of their own")


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, at any depth."""
    stack = [("", value)]
    while stack:
        key, item = stack.pop()
        yield key, item
        if isinstance(item, dict):
            stack += item.items()
        elif isinstance(item, list):
            stack += (("", entry) for entry in item)


def _refuse(path: Path, reason: str) -> None:
    raise BackendError(f"{path} is not loaded, since that could run code of whoever made it: {reason}; {EXPECTED}")
