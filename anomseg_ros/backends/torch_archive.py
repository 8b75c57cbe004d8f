"""Read a model.pt2 only if it is data: known members, plain tensors, and a graph of operators that only compute.

torch.export.load (torch 2.13) reads more than plain data. From an archive it
- unpickles sample inputs, weights and constants marked as pickled, legacy members (data/weights/model.pt), custom and
  opaque objects, and, when the new layout fails to load, the old one, which is all pickles;
- loads machine code (data/aotinductor);
- evaluates symbolic sizes (sympy.sympify) and guards, and imports modules named in the tree of inputs;
- pastes the names of values, tensors and arguments into Python source that it executes;
- looks up anything under `torch.` that a node names, such as aten.from_file, which maps any file for writing.
`anomseg export` and `quantize` write none of these. So this module lists what an archive may contain, down to each
field, and refuses everything else. torch gets the checked bytes in a new archive: its reader may understand a strange
archive differently from zipfile, and a file may change between two readings.

This keeps a program from running code and from accessing files. It may still take much time or memory.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

from anomseg_ros.backends.backend_options import MAX_DEVICE
from anomseg_ros.core.untrusted_text import parse_json
from anomseg_ros.errors import BackendError

SAMPLE_INPUTS = "data/sample_inputs/model.pt"
PROGRAM = "models/model.json"
TENSORS = {
    "data/weights/model_weights_config.json": r"weight_\d{1,9}",
    "data/constants/model_constants_config.json": r"tensor_\d{1,9}",
}
"""List of tensors -> pattern of its members' names. torch unpickles members with other names."""
MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
    r"|models/model\.json|data/weights/(weight_\d{1,9}|model_weights_config\.json)"
    r"|data/constants/(tensor_\d{1,9}|model_constants_config\.json)|data/sample_inputs/model\.pt",
    re.ASCII,
)

_WRITTEN = """
__and__.Tensor __or__.Tensor _assert_tensor_metadata.default abs.default add.Tensor alias.default amax.default
arange.default arange.start argmax.default argmin.default avg_pool2d.default batch_norm.default bitwise_not.default
cat.default conv2d.default conv_transpose2d.input detach_.default div.Tensor dropout.default eq.Scalar eq.Tensor
exp.default feature_dropout.default floor_divide.default ge.Tensor gelu.default grid_sampler.default
group_norm.default gt.Tensor hardtanh.default index.Tensor index_select.default layer_norm.default
lift_fresh_copy.default linear.default log.default lt.Tensor masked_fill.Scalar max_pool2d.default maximum.default
mean.dim minimum.default mul.Tensor narrow.default ne.Tensor neg.default new_zeros.default numpy_T.default
ones_like.default pad.default permute.default prelu.default reciprocal.default relu.default repeat.default
repeat_interleave.self_int reshape.default rsub.Scalar scaled_dot_product_attention.default select.int
sigmoid.default slice.Tensor sqrt.default stack.default sub.Tensor sum.dim_IntList t.default tanh.default to.dtype
topk.default unflatten.int upsample_bicubic2d.vec upsample_bilinear2d.vec upsample_nearest2d.vec where.self
"""
"""Operators in the programs of our networks and scores."""
_ALIKE = """
adaptive_avg_pool2d.default amin.default bitwise_and.Tensor bitwise_or.Tensor clamp.default clone.default
contiguous.default detach.default expand.default flatten.using_ints ge.Scalar gt.Scalar le.Scalar logical_and.default
logical_not.default logical_or.default lt.Scalar matmul.default max.dim mul.Scalar ne.Scalar ones.default
relu_.default softmax.int squeeze.dim transpose.int unsqueeze.default view.default
"""
"""Operators that other versions of torch or of this package may write instead: arithmetic and shapes only."""
_INT8 = "quantize_per_tensor quantize_per_channel dequantize_per_tensor dequantize_per_channel"
OPERATORS = frozenset(
    [f"torch.ops.aten.{name}" for name in (_WRITTEN + _ALIKE).split()]
    + [f"torch.ops.quantized_decomposed.{name}.default" for name in _INT8.split()]
)
WORDS = {
    "torch.ops.aten.gelu.default": ("none", "tanh"),
    "torch.ops.aten.pad.default": ("constant", "reflect", "replicate", "circular"),
}
"""Operator -> allowed string arguments. Other operators take none: a string could be a file's name."""
EXPECTED = (
    "expected a program that `anomseg export --torch-program` or `anomseg quantize --backend torch` wrote; write it "
    "anew with that command, from weights that you trust"
)

Check = Callable[[str, Any], None]
"""Called with the place of a value and the value; raises _Foreign."""


class _Foreign(Exception):
    """Something in an archive that is not allowed."""


def read_plain_program(path: Path) -> io.BytesIO:
    """Return a copy of the archive that is safe for torch.export.load.

    Raises BackendError if it cannot be read, or holds more than plain tensors and a graph of the operators above.
    """
    try:
        members = _read_members(path)
        for name, members_name in TENSORS.items():
            _tensors(members_name)(name, _parsed(members, name))
        _PROGRAM(PROGRAM, _parsed(members, PROGRAM))
    except _Foreign as foreign:
        raise BackendError(
            f"{path} is not loaded, since that could run code of whoever made it: {foreign}; {EXPECTED}"
        ) from foreign
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError) as error:
        raise BackendError(f"{path} cannot be loaded: {' '.join(str(error).split())}; {EXPECTED}") from error
    return _written(members)


def _read_members(path: Path) -> dict[str, bytes]:
    """Return name -> content. The names are without the folder that all members are in."""
    with zipfile.ZipFile(path) as archive:
        entries = [(*info.filename.partition("/")[::2], info) for info in archive.infolist()]
        roots = {root for root, _, _ in entries}
        for name, count in Counter(info.filename for _, _, info in entries).items():
            if count > 1:
                raise _Foreign(f"the archive holds {name!r} twice")
        for _, name, info in entries:
            if not MEMBERS.fullmatch(name) or len(roots) != 1:
                raise _Foreign(f"the archive holds {info.filename!r}")
            if info.compress_type != zipfile.ZIP_STORED:
                raise _Foreign(f"the archive holds {info.filename!r} compressed, which torch does not write")
            if name == SAMPLE_INPUTS and info.file_size:
                raise _Foreign(
                    f"sample inputs, which torch unpickles ({name!r}: {info.file_size} bytes, expected none)"
                )
        members = {name: archive.read(info) for _, name, info in entries}
    for name in (PROGRAM, SAMPLE_INPUTS, *TENSORS):
        if name not in members:
            raise ValueError(f"there is no {name!r} in it")
    return members


def _parsed(members: dict[str, bytes], name: str) -> Any:
    # Decoded first, as torch does: json.loads would guess other encodings.
    return parse_json(members[name].decode("utf-8"))


def _written(members: dict[str, bytes]) -> io.BytesIO:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(f"model/{name}", content)
    stream.seek(0)
    return stream


def _refuse(where: str, value: Any, expected: str) -> NoReturn:
    raise _Foreign(f"{where} is {value!r:.100}, expected {expected}")


def _nothing(where: str, value: Any) -> None:
    """Accept an empty field."""
    if value not in (None, False, "", [], {}):
        _refuse(where, value, "nothing there")


def _record(**fields: Check) -> Check:
    """Accept an object with these fields. Others, of another version of torch, must be empty."""

    def check(where: str, value: Any) -> None:
        if not isinstance(value, dict):
            _refuse(where, value, "an object")
        for key, item in value.items():
            fields.get(key, _nothing)(f"{where}: {key}" if where == PROGRAM else f"{where}.{key}", item)

    return check


def _one_of(**kinds: Check) -> Check:
    """Accept an object with one field, which names the kind of the value."""

    def check(where: str, value: Any) -> None:
        if not isinstance(value, dict) or len(value) != 1:
            _refuse(where, value, "one value")
        ((kind, item),) = value.items()
        if kind not in kinds:
            _refuse(where, value, f"a value of kind {' or '.join(kinds)}")
        kinds[kind](f"{where}.{kind}", item)

    return check


def _list(check_item: Check) -> Check:
    def check(where: str, value: Any) -> None:
        if not isinstance(value, list):
            _refuse(where, value, "a list")
        for index, item in enumerate(value):
            check_item(f"{where}[{index}]", item)

    return check


def _map(check_key: Check, check_item: Check) -> Check:
    def check(where: str, value: Any) -> None:
        if not isinstance(value, dict):
            _refuse(where, value, "an object")
        for key, item in value.items():
            check_key(where, key)
            check_item(f"{where}.{key}", item)

    return check


def _optional(check_value: Check) -> Check:
    return lambda where, value: None if value is None else check_value(where, value)


def _text(pattern: str, expected: str) -> Check:
    compiled = re.compile(pattern, re.ASCII)

    def check(where: str, value: Any) -> None:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            _refuse(where, value, expected)

    return check


def _among(values: Collection[str]) -> Check:
    def check(where: str, value: Any) -> None:
        if not isinstance(value, str) or value not in values:
            _refuse(where, value, f"one of {', '.join(sorted(values))}")

    return check


def _typed(*types: type) -> Check:
    def check(where: str, value: Any) -> None:
        if type(value) not in types:  # not isinstance: True is an int
            _refuse(where, value, " or ".join(kind.__name__ for kind in types))

    return check


def _operator(where: str, value: Any) -> None:
    if not isinstance(value, str) or value not in OPERATORS:
        raise _Foreign(f"the program calls {value!r:.100}, which is none of the operators that only compute")


def _not_pickled(where: str, value: Any) -> None:
    if value is not False:
        raise _Foreign(f"a pickled object in place of a plain tensor, {where}")


def _device_index(where: str, value: Any) -> None:
    if type(value) is not int or not 0 <= value <= MAX_DEVICE:
        _refuse(where, value, f"the index of a GPU, 0 to {MAX_DEVICE}")


def _node(where: str, value: Any) -> None:
    _NODE(where, value)
    words = WORDS.get(value.get("target"), ())
    for argument in value.get("inputs", ()):
        word = argument.get("arg", {}).get("as_string")
        if word is not None and word not in words:
            _refuse(
                where, word, f"a number or tensor as the argument {argument.get('name')!r} of {value.get('target')}"
            )


def _tree(where: str, value: Any) -> None:
    """Accept the JSON text of a nesting of inputs or outputs: tuples and lists, without keywords."""
    parsed = parse_json(value) if isinstance(value, str) else None
    if not isinstance(parsed, list) or len(parsed) != 2 or parsed[0] != 1:
        _refuse(where, value, "a tree of tuples")
    stack = [parsed[1]]
    while stack:
        item = stack.pop()
        if not isinstance(item, dict) or not isinstance(item.get("children_spec"), list):
            _refuse(where, value, "a tree of tuples")
        given, children = (item.get("type"), item.get("context")), item["children_spec"]
        if given not in _NESTED and not (given in _EMPTY and not children):
            _refuse(where, value, "a tree of tuples, no classes of their own")
        stack += children


_NESTED = (("builtins.tuple", "null"), ("builtins.list", "null"))
_EMPTY = ((None, None), ("builtins.dict", "[]"))
"""A value, and empty keyword arguments."""
_PART = r"(?!__)\w{1,200}"
_NAME = _text(r"(?!__)[A-Za-z_]\w{0,500}", "a plain name, for it becomes Python source")
_QUALIFIED_NAME = _text(rf"{_PART}(\.{_PART})*", "a plain name, for it becomes Python source")
_MODULE_NAME = _text(rf"({_PART}(\.{_PART})*)?", "a plain name")
_INT, _BOOL, _NUMBER, _STR = _typed(int), _typed(bool), _typed(int, float), _typed(str)
_TENSOR = _record(name=_NAME)
_SIZE = _one_of(as_int=_INT)
_DEVICE = _record(type=_among(("cpu", "cuda")), index=_optional(_device_index))
_TENSOR_META = _record(
    dtype=_INT,
    sizes=_list(_SIZE),
    requires_grad=_BOOL,
    device=_DEVICE,
    strides=_list(_SIZE),
    storage_offset=_SIZE,
    layout=_INT,
)
_ARGUMENT = _one_of(
    as_none=_BOOL,
    as_tensor=_TENSOR,
    as_tensors=_list(_TENSOR),
    as_optional_tensors=_list(_one_of(as_none=_BOOL, as_tensor=_TENSOR)),
    as_int=_INT,
    as_ints=_list(_INT),
    as_float=_NUMBER,
    as_floats=_list(_NUMBER),
    as_bool=_BOOL,
    as_string=_STR,  # see _node
    as_scalar_type=_INT,
    as_memory_format=_INT,
    as_layout=_INT,
    as_device=_DEVICE,
)
_VALUE = _one_of(as_tensor=_TENSOR)
_NODE = _record(
    target=_operator,
    inputs=_list(_record(name=_NAME, arg=_ARGUMENT, kind=_optional(_INT))),
    outputs=_list(_VALUE),
    name=_optional(_NAME),
)
_CALL = _record(
    in_spec=_tree, out_spec=_tree, forward_arg_names=_optional(_list(_NAME)), inputs=_nothing, outputs=_nothing
)
_INPUT = _one_of(
    user_input=_record(arg=_VALUE),
    parameter=_record(arg=_TENSOR, parameter_name=_QUALIFIED_NAME),
    buffer=_record(arg=_TENSOR, buffer_name=_QUALIFIED_NAME, persistent=_BOOL),
    tensor_constant=_record(arg=_TENSOR, tensor_constant_name=_QUALIFIED_NAME),
)
_PROGRAM = _record(
    graph_module=_record(
        graph=_record(
            inputs=_list(_VALUE), outputs=_list(_VALUE), nodes=_list(_node), tensor_values=_map(_NAME, _TENSOR_META)
        ),
        signature=_record(input_specs=_list(_INPUT), output_specs=_list(_one_of(user_output=_record(arg=_VALUE)))),
        module_call_graph=_list(_record(fqn=_MODULE_NAME, signature=_optional(_CALL))),
    ),
    opset_version=_map(_among(("aten",)), _INT),
    schema_version=_record(major=_INT, minor=_INT),
    verifiers=_list(_among(("TRAINING", "ATEN"))),
    torch_version=_STR,
)


def _tensors(members_name: str) -> Check:
    payload = _record(
        path_name=_text(members_name, "the member of a plain tensor"),
        is_param=_BOOL,
        use_pickle=_not_pickled,
        tensor_meta=_TENSOR_META,
    )
    return _record(config=_map(_QUALIFIED_NAME, payload))
