"""Program files of `anomseg quantize` are read. Files that would run code or access files are refused."""

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
from fitted_networks import PIXEL_SCORES, float_program
from torch_archives import Members, archive_of, edit, first_node, members_of, rewrite_program

from anomseg_ros.backends import open_backend
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.backends.torch_archive import PROGRAM, SAMPLE_INPUTS, TENSORS, read_plain_program
from anomseg_ros.compression.reexport import export_config_of
from anomseg_ros.core.bundle import TORCH_FILE, Contract, load_bundle, save_bundle
from anomseg_ros.core.detector import Backend
from anomseg_ros.errors import BackendError
from anomseg_ros.export import ExportConfig
from anomseg_ros.scores import find_score

WEIGHTS, CONSTANTS = TENSORS


@pytest.fixture(scope="module")
def contract(tiny_bundle: Path) -> Contract:
    return load_bundle(tiny_bundle).contract


@pytest.fixture(scope="module")
def program(contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with weights and constants."""
    return float_program(export_config_of(contract), tmp_path_factory.mktemp("program") / TORCH_FILE)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return exec, (leaves(self.sign),)


def leaves(sign: Path) -> str:
    """Return a Python expression that writes a file."""
    return f"open({str(sign)!r}, 'w').close()"


def pickled(sign: Path) -> bytes:
    stream = io.BytesIO()
    torch.save(Evil(sign), stream, pickle_module=pickle)
    return stream.getvalue()


def mark_pickled(members: Members, config_name: str, member: str, content: bytes) -> None:
    """Make torch read the first tensor of a list from a pickle."""

    def change(config: Any) -> None:
        next(iter(config["config"].values())).update(use_pickle=True, path_name=member)

    edit(members, config_name, change)
    members[f"{config_name.rpartition('/')[0]}/{member}"] = content


def call_signature(program: Any) -> Any:
    return next(call["signature"] for call in program["graph_module"]["module_call_graph"] if call["signature"])


def add_symbolic_size(program: Any, sign: Path) -> None:
    value = first_node(program)["outputs"][0]["as_tensor"]["name"]
    text = f"exec({leaves(sign)!r})"
    program["graph_module"]["graph"]["tensor_values"][value]["sizes"][0] = {"as_expr": {"expr_str": text}}


def rename_input(program: Any, sign: Path) -> None:
    """Give the input a default value, which Python evaluates when it defines the function."""
    old = call_signature(program)["forward_arg_names"][0]
    new = json.dumps(f"image={leaves(sign)}")
    text = json.dumps(program["graph_module"])
    text = text.replace(f'"name": "{old}"', f'"name": {new}').replace(f'"{old}": {{', f"{new}: {{")
    program["graph_module"] = json.loads(text)


def rename_weight(program: Any, sign: Path) -> None:
    """Give a weight a name that closes a string literal and continues with code."""
    inputs = program["graph_module"]["signature"]["input_specs"]
    spec = next(spec["parameter"] for spec in inputs if "parameter" in spec)
    spec["parameter_name"] = f'a"), {leaves(sign)}, getattr(self, "a'


def add_import(program: Any, sign: Path) -> None:
    """Make torch import an existing module whose name is escaped."""
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
        lambda m, sign: edit(m, PROGRAM, lambda d: add_symbolic_size(d, sign)),
        r"as_expr.*expected a value of kind as_int",
    ),
    "an input's name": (
        lambda m, sign: edit(m, PROGRAM, lambda d: rename_input(d, sign)),
        "expected a plain name, for it becomes Python source",
    ),
    "an import": (lambda m, sign: edit(m, PROGRAM, lambda d: add_import(d, sign)), "no classes of their own"),
}


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_program_that_runs_code_is_refused(
    attack: str, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, words = ATTACKS[attack]
    sign = tmp_path / "was-run"
    bad = rewrite_program(program, tmp_path / "bad.pt2", lambda members: plant(members, sign))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError, match=rf"bad\.pt2 is not loaded.*{words}.*write it anew with that command"):
        read_plain_program(bad)
    assert not sign.exists()
    if torch.__version__.startswith("2.13."):
        # The attack works: torch runs the code.
        with contextlib.suppress(Exception):
            torch.export.load(bad).module()
        assert sign.exists()


def test_old_program_layout_is_refused(tmp_path: Path) -> None:
    sign, bad = tmp_path / "was-run", tmp_path / "old.pt2"
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("version", "8.0")
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", pickled(sign))
    with pytest.raises(BackendError, match="the archive holds 'version'"):
        read_plain_program(bad)
    assert not sign.exists()


@pytest.mark.slow
def test_file_change_after_the_check_has_no_effect(program: Path, tmp_path: Path) -> None:
    sign, path = tmp_path / "was-run", tmp_path / "changing.pt2"
    path.write_bytes(program.read_bytes())
    checked = read_plain_program(path)
    rewrite_program(program, path, lambda members: members.update({SAMPLE_INPUTS: pickled(sign)}))
    assert torch.export.load(checked).graph_signature.user_outputs
    assert not sign.exists()


def add_text_argument(members: Members, of: str) -> None:
    def change(content: Any) -> None:
        node = next(node for node in content["graph_module"]["graph"]["nodes"] if node["target"] == of)
        node["inputs"].append({"name": "other", "arg": {"as_string": "/etc/passwd"}, "kind": 2})

    edit(members, PROGRAM, change)


def in_graph(change: Callable[[Any], object]) -> Callable[[Members], object]:
    return lambda members: edit(members, PROGRAM, lambda d: change(d["graph_module"]["graph"]))


def on_device(device: Any) -> Callable[[Members], object]:
    return in_graph(lambda graph: graph["nodes"][0]["inputs"][0].update(arg={"as_device": device}))


def move(members: Members, name: str, device: Any) -> None:
    """Change all devices that a member names."""
    members[name] = re.sub(rb'\{"type": "cpu", "index": null\}', json.dumps(device).encode(), members[name])


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
        (lambda m: edit(m, PROGRAM, lambda d: rename_weight(d, Path("a"))), r"parameter_name.*becomes Python source"),
        (lambda m: add_text_argument(m, "torch.ops.aten.relu.default"), "'/etc/passwd', expected a number or tensor"),
        (in_graph(lambda g: g["sym_int_values"].update(s={"as_expr": {"expr_str": "1"}})), "sym_int_values"),
        (in_graph(lambda g: g["custom_obj_values"].update(s={"name": "a", "class_fqn": "b"})), "custom_obj_values"),
        (in_graph(lambda g: g["nodes"][0].update(name="a):\n import os")), "nodes.0..name.*becomes Python source"),
        (in_graph(lambda g: g["inputs"][0]["as_tensor"].update(name="a=print(1)")), "becomes Python source"),
        (in_graph(lambda g: g["outputs"].append({"as_string": "a"})), "a value of kind as_tensor"),
        (in_graph(lambda g: g["nodes"][0].update(metadata={"source_fn_stack": "a,torch.load"})), "metadata"),
        (in_graph(lambda g: g["nodes"][0]["inputs"][0].update(arg={"as_operator": "torch.load"})), "as_operator"),
        (in_graph(lambda g: g["nodes"][0]["inputs"][0].update(arg={"as_sym_int": {"as_name": "a"}})), "as_sym_int"),
        (in_graph(lambda g: g["nodes"][0]["inputs"][0].update(arg={"as_int": "text"})), "expected int"),
        (
            in_graph(lambda g: g["nodes"][0]["inputs"][0].update(arg={"as_graph": {"name": "a", "graph": {}}})),
            "as_graph",
        ),
        (on_device({"type": "meta", "index": None}), "expected one of cpu, cuda"),
        (on_device({"type": "privateuseone", "index": 0}), "expected one of cpu, cuda"),
        (on_device({"type": ["cuda"], "index": 0}), "expected one of cpu, cuda"),
        (on_device({"type": "cuda", "index": "0"}), "index is '0', expected the index of a GPU"),
        (on_device({"type": "cuda", "index": -1}), "index is -1, expected the index of a GPU"),
        (on_device({"type": "cuda", "index": 10**9}), "expected the index of a GPU"),
        (on_device({"type": "cuda", "index": True}), "expected the index of a GPU"),
        (on_device({"type": "cuda", "index": 0, "path": "a"}), "path is 'a', expected nothing"),
        (lambda m: move(m, WEIGHTS, {"type": "xla", "index": 0}), "expected one of cpu, cuda"),
        (lambda m: edit(m, PROGRAM, lambda d: d.update(a_later_field=["text"])), "a_later_field"),
    ],
)
def test_program_with_unexpected_content_is_refused(
    change: Callable[[Members], object], words: str, program: Path, tmp_path: Path
) -> None:
    bad = rewrite_program(program, tmp_path / "bad.pt2", change)
    with pytest.raises(BackendError, match=rf"is not loaded, since that could run code(?s:.*){words}"):
        read_plain_program(bad)


def test_program_of_a_gpu_is_data_as_well(program: Path, tmp_path: Path) -> None:
    def to_gpu(members: Members) -> None:
        before = dict(members)
        for name in (WEIGHTS, CONSTANTS, PROGRAM):
            move(members, name, {"type": "cuda", "index": 0})
        assert all(members[name] != before[name] for name in (WEIGHTS, PROGRAM))

    moved = rewrite_program(program, tmp_path / "gpu.pt2", to_gpu)
    assert members_of(read_plain_program(moved)) == members_of(moved)


def test_unusual_archives_are_refused(program: Path, tmp_path: Path) -> None:
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


def test_our_program_is_read_completely(program: Path) -> None:
    assert members_of(program)[SAMPLE_INPUTS] == b""
    assert members_of(read_plain_program(program)) == members_of(program)


@pytest.mark.slow
@pytest.mark.parametrize(("void_class", "num_classes"), [(None, 19), (0, 20), (19, 20)])
def test_programs_of_all_scores_and_void_classes_are_read(
    void_class: int | None, num_classes: int, tmp_path: Path
) -> None:
    """Use padded sizes, because padding has the only string argument in programs."""
    scores = tuple(name for name in PIXEL_SCORES if void_class is not None or not find_score(name).needs_void)
    config = ExportConfig("small", num_classes, void_class, height_px=70, width_px=130, scores=scores, temperature=1.5)
    path = float_program(config, tmp_path / TORCH_FILE)
    assert b"replicate" in path.read_bytes()
    assert torch.export.load(read_plain_program(path)).graph_signature.user_outputs


def test_damaged_archives_raise_backend_error(program: Path, tmp_path: Path) -> None:
    # Without the weights, so that the damage hits bytes that are parsed.
    small = archive_of(
        {name: content for name, content in members_of(program).items() if "/weight_" not in name},
        tmp_path / "small.pt2",
    ).read_bytes()
    random_bytes = random.Random(0)
    refused = 0
    for _ in range(150):
        content = bytearray(small)
        for _ in range(random_bytes.choice((1, 4))):
            # Half of the damage is in the list of members at the end.
            first = len(content) - 1500 if random_bytes.random() < 0.5 else 0
            content[random_bytes.randrange(first, len(content))] = random_bytes.randrange(256)
        bad = tmp_path / "bad.pt2"
        bad.write_bytes(content[: random_bytes.choice((len(content), random_bytes.randrange(len(content))))])
        try:
            read_plain_program(bad)
        except BackendError:
            refused += 1
    assert refused > 75


def open_changed(contract: Contract, program: Path, change: Callable[[Members], object], folder: Path) -> Backend:
    """Open a bundle with a changed program and matching digests."""
    changed = rewrite_program(program, folder / TORCH_FILE, change)
    bundle = save_bundle(contract, {TORCH_FILE: changed}, folder / "foreign")
    return open_backend("torch", bundle, BackendOptions(provider="eager"))


def test_foreign_bundle_is_not_unpickled(contract: Contract, program: Path, tmp_path: Path) -> None:
    sign = tmp_path / "was-run"
    with pytest.raises(BackendError, match=r"sample inputs, which torch unpickles.*write it anew with that command"):
        open_changed(contract, program, lambda members: members.update({SAMPLE_INPUTS: pickled(sign)}), tmp_path)
    assert not sign.exists()


def test_foreign_bundle_cannot_access_files(contract: Contract, program: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"

    def from_file(content: Any) -> None:
        given = {"filename": {"as_string": os.fspath(victim)}, "shared": {"as_bool": True}, "size": {"as_int": 4}}
        inputs = [{"name": name, "arg": value, "kind": 1} for name, value in given.items()]
        first_node(content).update(target="torch.ops.aten.from_file.default", inputs=inputs)

    with pytest.raises(BackendError, match=r"the program calls 'torch\.ops\.aten\.from_file\.default'"):
        open_changed(contract, program, lambda members: edit(members, PROGRAM, from_file), tmp_path)
    assert not victim.exists()


def test_copied_program_runs(contract: Contract, program: Path, tmp_path: Path) -> None:
    backend = open_changed(contract, program, lambda members: None, tmp_path)
    height_px, width_px = contract.input.height_px, contract.input.width_px
    (labels,) = backend.run(np.zeros((1, height_px, width_px, 3), np.uint8), ["labels"])
    assert labels.shape == (1, height_px, width_px)


@pytest.mark.parametrize("content", [b"{}", b"\xff", b"null", b"[", b'{"graph_module": {}}', b"[" * 100_000])
def test_damaged_program_is_refused(content: bytes, contract: Contract, program: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"(cannot be|is not) loaded.*write it anew"):
        open_changed(contract, program, lambda members: members.update({PROGRAM: content}), tmp_path)
