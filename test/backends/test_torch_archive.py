"""Which model.pt2 is read: what `anomseg quantize` writes, and nothing that runs code or touches files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anomseg_ros.backends import open_backend
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.backends.torch_archive import OPERATORS, PROGRAM, SAMPLE_INPUTS, TENSORS, WORDS, read_plain_program
from anomseg_ros.compression.quantize_torch import save_program
from anomseg_ros.compression.reexport import export_config_of
from anomseg_ros.core.bundle import TORCH_FILE, Contract, load_bundle, save_bundle
from anomseg_ros.core.detector import Backend
from anomseg_ros.errors import BackendError
from anomseg_ros.export import DetectorGraph, ExportConfig
from anomseg_ros.networks import build_network

WEIGHTS, CONSTANTS = TENSORS
Members = dict[str, bytes]


def float_program(config: ExportConfig, path: Path) -> Path:
    torch.manual_seed(0)
    graph = DetectorGraph(build_network("mide_net", config.num_classes).eval(), config).eval()
    image = torch.zeros((1, config.height_px, config.width_px, 3), dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return save_program(torch.export.export(graph, (image,)), path)


@pytest.fixture(scope="module")
def contract(tiny_bundle: Path) -> Contract:
    return load_bundle(tiny_bundle).contract


@pytest.fixture(scope="module")
def program(contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with weights and constants."""
    return float_program(export_config_of(contract), tmp_path_factory.mktemp("program") / TORCH_FILE)


def members_of(program: Path | io.BytesIO) -> Members:
    with zipfile.ZipFile(program) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def archive_of(members: Members, to: Path, **options: Any) -> Path:
    with zipfile.ZipFile(to, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(f"model/{name}", content)
    return to


def rewritten(program: Path, to: Path, change: Callable[[Members], object]) -> Path:
    """Copy the program with its members changed."""
    members = members_of(program)
    change(members)
    return archive_of(members, to)


def edit(members: Members, name: str, change: Callable[[Any], object]) -> None:
    content = json.loads(members[name])
    change(content)
    members[name] = json.dumps(content).encode()


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return exec, (leaves(self.sign),)


def leaves(sign: Path) -> str:
    """Return an expression that leaves a file behind."""
    return f"open({str(sign)!r}, 'w').close()"


def pickled(sign: Path) -> bytes:
    stream = io.BytesIO()
    torch.save(Evil(sign), stream, pickle_module=pickle)
    return stream.getvalue()


def mark_pickled(members: Members, config_name: str, member: str, content: bytes) -> None:
    """Have the first tensor of a list read from a member as a pickle."""

    def change(config: Any) -> None:
        next(iter(config["config"].values())).update(use_pickle=True, path_name=member)

    edit(members, config_name, change)
    members[f"{config_name.rpartition('/')[0]}/{member}"] = content


def first_node(program: Any) -> Any:
    return next(node for node in program["graph_module"]["graph"]["nodes"] if node["outputs"])


def call_signature(program: Any) -> Any:
    return next(call["signature"] for call in program["graph_module"]["module_call_graph"] if call["signature"])


def symbolic_size(program: Any, sign: Path) -> None:
    value = first_node(program)["outputs"][0]["as_tensor"]["name"]
    text = f"exec({leaves(sign)!r})"
    program["graph_module"]["graph"]["tensor_values"][value]["sizes"][0] = {"as_expr": {"expr_str": text}}


def input_name(program: Any, sign: Path) -> None:
    """Give the input a default value, which Python computes when the function is made."""
    old = call_signature(program)["forward_arg_names"][0]
    new = json.dumps(f"image={leaves(sign)}")
    text = json.dumps(program["graph_module"])
    text = text.replace(f'"name": "{old}"', f'"name": {new}').replace(f'"{old}": {{', f"{new}: {{")
    program["graph_module"] = json.loads(text)


def weight_name(program: Any, sign: Path) -> None:
    """Name a weight by the end of a quoted text, and what follows it."""
    inputs = program["graph_module"]["signature"]["input_specs"]
    spec = next(spec["parameter"] for spec in inputs if "parameter" in spec)
    spec["parameter_name"] = f'a"), {leaves(sign)}, getattr(self, "a'


def imports(program: Any, sign: Path) -> None:
    """Have torch import a module that lies there, in words that are not written out."""
    (sign.parent / "foreign_module.py").write_text(leaves(sign))
    text = r'{"__en\u0075m__": true, "fqn": "foreign_module:A", "name": "B"}'
    spec = [1, {"type": "builtins.tuple", "context": text, "children_spec": []}]
    call_signature(program)["in_spec"] = json.dumps(spec)


ATTACKS: dict[str, tuple[Callable[[Members, Path], object], str]] = {
    "sample inputs": (lambda m, sign: m.update({SAMPLE_INPUTS: pickled(sign)}), "sample inputs, which torch unpickles"),
    "a pickled weight": (lambda m, sign: mark_pickled(m, WEIGHTS, "weight_0", pickled(sign)), "a pickled object"),
    "a pickled constant": (lambda m, sign: mark_pickled(m, CONSTANTS, "tensor_0", pickled(sign)), "a pickled object"),
    "an opaque object": (
        lambda m, sign: mark_pickled(m, CONSTANTS, "opaque_obj_0", pickle.dumps(Evil(sign))),
        "opaque_obj_0",
    ),
    "old weights": (lambda m, sign: m.update({"data/weights/model.pt": pickled(sign)}), "weights/model.pt"),
    "old constants": (lambda m, sign: m.update({"data/constants/model.pt": pickled(sign)}), "constants/model.pt"),
    "a symbolic size": (
        lambda m, sign: edit(m, PROGRAM, lambda d: symbolic_size(d, sign)),
        r"as_expr.*expected a value of kind as_int",
    ),
    "an input's name": (
        lambda m, sign: edit(m, PROGRAM, lambda d: input_name(d, sign)),
        "expected a plain name, for it becomes Python source",
    ),
    "an import": (lambda m, sign: edit(m, PROGRAM, lambda d: imports(d, sign)), "no classes of their own"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_runs_code_is_refused(attack: str, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, words = ATTACKS[attack]
    sign = tmp_path / "was-run"
    bad = rewritten(program, tmp_path / "bad.pt2", lambda members: plant(members, sign))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError, match=rf"bad\.pt2 is not loaded.*{words}.*write it anew with that command"):
        read_plain_program(bad)
    assert not sign.exists()
    if torch.__version__.startswith("2.13."):
        # What is refused is a danger, not a formality: torch itself runs the code.
        with contextlib.suppress(Exception):
            torch.export.load(bad).module()
        assert sign.exists()


def test_the_old_layout_of_a_program_is_refused(tmp_path: Path) -> None:
    sign, bad = tmp_path / "was-run", tmp_path / "old.pt2"
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("version", "8.0")
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", pickled(sign))
    with pytest.raises(BackendError, match="the archive holds 'version'"):
        read_plain_program(bad)
    assert not sign.exists()


def test_torch_reads_what_was_checked_though_the_file_changes(program: Path, tmp_path: Path) -> None:
    sign, path = tmp_path / "was-run", tmp_path / "changing.pt2"
    path.write_bytes(program.read_bytes())
    checked = read_plain_program(path)
    rewritten(program, path, lambda members: members.update({SAMPLE_INPUTS: pickled(sign)}))
    assert torch.export.load(checked).graph_signature.user_outputs
    assert not sign.exists()


def one_operator(target: str) -> Callable[[Members], object]:
    return lambda members: edit(members, PROGRAM, lambda d: first_node(d).update(target=target))


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "torch.ops.load_library",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.as_strided.default",
        "torch.ops.aten.set_.source_Tensor_storage_offset",
        "torch.ops.aten.add.Tensor.__class__",
        "torch.ops.quantized_decomposed.choose_qparams.tensor",
        "torch.ops.higher_order.cond",
        "_operator.getitem",
        "math.sqrt",
        "#aoti:f",
        "torch.ops.aten.add.Tensor\n",
        7,
        None,
        ["torch.ops.aten.add.Tensor"],
    ],
)
def test_other_operators_are_refused(target: Any, program: Path, tmp_path: Path) -> None:
    bad = rewritten(program, tmp_path / "bad.pt2", one_operator(target))
    with pytest.raises(BackendError, match=r"the program calls .*, which is none of .*; expected the program"):
        read_plain_program(bad)


def test_the_operators_only_compute() -> None:
    """Each exists here, and takes and gives tensors, numbers and kinds of tensors."""
    from torch.ao.quantization.fx import _decomposed  # noqa: F401

    plain = {"Tensor", "int", "float", "bool", "number", "Device", "Optional", "List"}
    for target in OPERATORS:
        namespace, name, overload = target.split(".")[2:]
        schema = getattr(getattr(getattr(torch.ops, namespace), name), overload)._schema
        kinds = {word for item in (*schema.arguments, *schema.returns) for word in re.findall(r"\w+", str(item.type))}
        assert kinds - plain == ({"str"} if target in WORDS else set()), target


def text_argument(members: Members, of: str) -> None:
    def change(content: Any) -> None:
        node = next(node for node in content["graph_module"]["graph"]["nodes"] if node["target"] == of)
        node["inputs"].append({"name": "other", "arg": {"as_string": "/etc/passwd"}, "kind": 2})

    edit(members, PROGRAM, change)


def graph(change: Callable[[Any], object]) -> Callable[[Members], object]:
    return lambda members: edit(members, PROGRAM, lambda d: change(d["graph_module"]["graph"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update({"data/aotinductor/model/a.so": b"code"}), "holds 'model/data/aotinductor/model/a.so'"),
        (lambda m: m.update({"data/constants/custom_obj_0": b"code"}), "custom_obj_0"),
        (lambda m: m.update({"models/other.json": m[PROGRAM]}), "other.json"),
        (lambda m: m.update({"extra/a.txt": b""}), "a.txt"),
        (lambda m: edit(m, WEIGHTS, lambda d: d["config"].update({'a"b': {}})), "a plain name"),
        (lambda m: edit(m, PROGRAM, lambda d: d["guards_code"].append("print(1)")), r"guards_code is \['print\(1\)'\]"),
        (lambda m: edit(m, PROGRAM, lambda d: d["range_constraints"].update(s0={"min_val": 1})), "range_constraints"),
        (lambda m: edit(m, PROGRAM, lambda d: d["verifiers"].append("os")), "verifiers"),
        (
            lambda m: edit(m, PROGRAM, lambda d: call_signature(d).update(forward_arg_names=["a=print(1)"])),
            "forward_arg_names.0. is 'a=print.1.', expected a plain name",
        ),
        (lambda m: edit(m, PROGRAM, lambda d: weight_name(d, Path("a"))), r"parameter_name.*becomes Python source"),
        (lambda m: text_argument(m, "torch.ops.aten.relu.default"), "'/etc/passwd', expected a number or tensor"),
        (graph(lambda g: g["sym_int_values"].update(s={"as_expr": {"expr_str": "1"}})), "sym_int_values"),
        (graph(lambda g: g["custom_obj_values"].update(s={"name": "a", "class_fqn": "b"})), "custom_obj_values"),
        (graph(lambda g: g["nodes"][0].update(name="a):\n import os")), "nodes.0..name.*becomes Python source"),
        (graph(lambda g: g["inputs"][0]["as_tensor"].update(name="a=print(1)")), "becomes Python source"),
        (graph(lambda g: g["outputs"].append({"as_string": "a"})), "a value of kind as_tensor"),
        (graph(lambda g: g["nodes"][0].update(metadata={"source_fn_stack": "a,torch.load"})), "metadata"),
        (graph(lambda g: g["nodes"][0]["inputs"][0].update(arg={"as_operator": "torch.load"})), "as_operator"),
        (graph(lambda g: g["nodes"][0]["inputs"][0].update(arg={"as_sym_int": {"as_name": "a"}})), "as_sym_int"),
        (graph(lambda g: g["nodes"][0]["inputs"][0].update(arg={"as_int": "text"})), "expected int"),
        (graph(lambda g: g["nodes"][0]["inputs"][0].update(arg={"as_graph": {"name": "a", "graph": {}}})), "as_graph"),
        (graph(lambda g: g["nodes"][0]["inputs"][0].update(arg={"as_device": {"type": "cuda"}})), "cpu"),
        (lambda m: edit(m, PROGRAM, lambda d: d.update(a_later_field=["text"])), "a_later_field"),
    ],
)
def test_what_our_programs_do_not_hold_is_refused(
    change: Callable[[Members], object], words: str, program: Path, tmp_path: Path
) -> None:
    bad = rewritten(program, tmp_path / "bad.pt2", change)
    with pytest.raises(BackendError, match=rf"is not loaded, since that could run code(?s:.*){words}"):
        read_plain_program(bad)


def test_archives_that_torch_does_not_write(program: Path, tmp_path: Path) -> None:
    members = members_of(program)
    packed = archive_of(members, tmp_path / "packed.pt2", compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(BackendError, match="compressed, which torch does not write"):
        read_plain_program(packed)
    twice = archive_of(members, tmp_path / "twice.pt2")
    with warnings.catch_warnings(), zipfile.ZipFile(twice, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(f"model/{PROGRAM}", members[PROGRAM])
    with pytest.raises(BackendError, match=r"holds 'model/models/model\.json' twice"):
        read_plain_program(twice)
    apart = archive_of(members, tmp_path / "apart.pt2")
    with zipfile.ZipFile(apart, "a") as archive:
        archive.writestr("other/byteorder", "little")
    with pytest.raises(BackendError, match="the archive holds"):
        read_plain_program(apart)
    del members[SAMPLE_INPUTS]
    with pytest.raises(BackendError, match=r"cannot be loaded: there is no 'data/sample_inputs/model\.pt' in it"):
        read_plain_program(archive_of(members, tmp_path / "less.pt2"))


def test_our_own_program_is_read_whole(program: Path) -> None:
    assert members_of(program)[SAMPLE_INPUTS] == b""
    assert members_of(read_plain_program(program)) == members_of(program)


@pytest.mark.parametrize(("void_class", "num_classes"), [(None, 19), (0, 20), (19, 20)])
def test_every_score_and_place_of_void_is_read(void_class: int | None, num_classes: int, tmp_path: Path) -> None:
    """At sizes that are padded, which takes the one word that programs hold."""
    scores = ("msp", "max_logit", "max_entropy", "energy", *(("void",) if void_class is not None else ()))
    config = ExportConfig("small", num_classes, void_class, height_px=70, width_px=130, scores=scores, temperature=1.5)
    path = float_program(config, tmp_path / TORCH_FILE)
    assert b"replicate" in path.read_bytes()
    assert torch.export.load(read_plain_program(path)).graph_signature.user_outputs


def test_damaged_archives_are_errors_of_ours(program: Path, tmp_path: Path) -> None:
    # Without the weights, so that the damage is where it is read.
    small = archive_of(
        {name: content for name, content in members_of(program).items() if "/weight_" not in name},
        tmp_path / "small.pt2",
    ).read_bytes()
    random_bytes = random.Random(0)
    refused = 0
    for _ in range(150):
        content = bytearray(small)
        for _ in range(random_bytes.choice((1, 4))):
            # Half of them in the list of members at the end.
            first = len(content) - 1500 if random_bytes.random() < 0.5 else 0
            content[random_bytes.randrange(first, len(content))] = random_bytes.randrange(256)
        bad = tmp_path / "bad.pt2"
        bad.write_bytes(content[: random_bytes.choice((len(content), random_bytes.randrange(len(content))))])
        try:
            read_plain_program(bad)
        except BackendError:
            refused += 1
    assert refused > 75


def opened_with(contract: Contract, program: Path, change: Callable[[Members], object], folder: Path) -> Backend:
    """Open a bundle with its program changed, as somebody else would make it: digests and all."""
    changed = rewritten(program, folder / TORCH_FILE, change)
    bundle = save_bundle(contract, {TORCH_FILE: changed}, folder / "foreign")
    return open_backend("torch", bundle, BackendOptions(provider="eager"))


def test_a_foreign_bundle_runs_no_pickle(contract: Contract, program: Path, tmp_path: Path) -> None:
    sign = tmp_path / "was-run"
    with pytest.raises(BackendError, match=r"sample inputs, which torch unpickles.*write it anew with that command"):
        opened_with(contract, program, lambda members: members.update({SAMPLE_INPUTS: pickled(sign)}), tmp_path)
    assert not sign.exists()


def test_a_foreign_bundle_touches_no_file(contract: Contract, program: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"

    def from_file(content: Any) -> None:
        given = {"filename": {"as_string": os.fspath(victim)}, "shared": {"as_bool": True}, "size": {"as_int": 4}}
        inputs = [{"name": name, "arg": value, "kind": 1} for name, value in given.items()]
        first_node(content).update(target="torch.ops.aten.from_file.default", inputs=inputs)

    with pytest.raises(BackendError, match=r"the program calls 'torch\.ops\.aten\.from_file\.default'"):
        opened_with(contract, program, lambda members: edit(members, PROGRAM, from_file), tmp_path)
    assert not victim.exists()


def test_a_copy_of_a_program_runs(contract: Contract, program: Path, tmp_path: Path) -> None:
    backend = opened_with(contract, program, lambda members: None, tmp_path)
    height_px, width_px = contract.input.height_px, contract.input.width_px
    (labels,) = backend.run(np.zeros((1, height_px, width_px, 3), np.uint8), ["labels"])
    assert labels.shape == (1, height_px, width_px)


@pytest.mark.parametrize("content", [b"{}", b"\xff", b"null", b"[", b'{"graph_module": {}}', b"[" * 100_000])
def test_a_damaged_program(content: bytes, contract: Contract, program: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"(cannot be|is not) loaded.*write it anew"):
        opened_with(contract, program, lambda members: members.update({PROGRAM: content}), tmp_path)
