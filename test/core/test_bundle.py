from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from plain_bundles import plain_bundle

from anomseg_ros.core.bundle import CONTRACT_FILE, GRAPH_FILE, load_bundle, save_bundle
from anomseg_ros.core.thresholds import ThresholdTable
from anomseg_ros.errors import BundleError, ConfigError


@pytest.fixture()
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def edit(directory: Path, **changes: object) -> None:
    path = directory / CONTRACT_FILE
    data = yaml.safe_load(path.read_text())
    data.update(changes)
    path.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not None}))


def test_saved_bundle_is_loaded(tiny_bundle: Path) -> None:
    contract = load_bundle(tiny_bundle).contract
    assert contract.score_names[0] == "void"
    assert (contract.input.height_px, contract.input.width_px) == (64, 128)
    assert contract.classes[19].train_id == 255
    assert contract.temperature == 1.5


def test_damaged_graph_error_names_the_file(copy: Path) -> None:
    with (copy / GRAPH_FILE).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BundleError, match=r"model\.onnx does not match its digest"):
        load_bundle(copy)


def test_missing_graph_is_refused(copy: Path) -> None:
    (copy / GRAPH_FILE).unlink()
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        load_bundle(copy)


def test_missing_contract_or_directory_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(BundleError, match=r"has no bundle\.yaml; `anomseg export`"):
            load_bundle(folder)


def test_file_instead_of_a_bundle_is_refused(copy: Path) -> None:
    with pytest.raises(BundleError, match="is a file, not a bundle directory"):
        load_bundle(copy / GRAPH_FILE)


def test_newer_format_error_asks_to_upgrade(copy: Path) -> None:
    edit(copy, format_version=99, key_of_the_future=1)
    with pytest.raises(BundleError, match="bundle format 99, this anomseg_ros reads format 1; upgrade"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": None}, "missing or bad format_version None"),
        ({"temperatur": 2.0}, "unknown key 'temperatur'; did you mean 'temperature'"),
        ({"precision": "fp23"}, "precision 'fp23' is not one of fp32"),
        ({"temperature": 0.0}, "temperature 0.0 must be above 0"),
        ({"void_class": 20}, "void_class 20 is not one of 20 classes"),
        ({"input": {"height_px": 0, "width_px": 8}}, "input size 8x0 is not positive"),
        ({"input": {"height_px": 8, "width_px": 8, "resize": "bilinaer"}}, "resize 'bilinaer' is not one of bilinear"),
        ({"outputs": []}, "outputs must name 'labels' and at least one score"),
        ({"files": {}}, "files must list model.onnx"),
        (
            {"classes": [{"name": "a", "color": [0, 0, 0], "train_id": 256}], "void_class": 0},
            "train ids must be 0 to 255",
        ),
    ],
)
def test_invalid_contract_is_refused(copy: Path, changes: dict[str, object], message: str) -> None:
    edit(copy, **changes)
    with pytest.raises(BundleError, match=message):
        load_bundle(copy)


def test_invalid_yaml_is_refused(copy: Path) -> None:
    (copy / CONTRACT_FILE).write_text("a: [")
    with pytest.raises(BundleError, match="is not valid YAML"):
        load_bundle(copy)


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/passwd", "sub/model.pt2"])
def test_files_outside_the_bundle_are_refused(copy: Path, name: str) -> None:
    files = yaml.safe_load((copy / CONTRACT_FILE).read_text())["files"]
    edit(copy, files={**files, name: "0" * 64})
    with pytest.raises(BundleError, match="must be a plain file inside the bundle"):
        load_bundle(copy)


def test_link_out_of_the_bundle_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / GRAPH_FILE).rename(tmp_path / "elsewhere.onnx")
    (copy / GRAPH_FILE).symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match="must be a plain file inside the bundle"):
        load_bundle(copy)


def test_saving_does_not_overwrite_without_permission(copy: Path, tmp_path: Path) -> None:
    bundle = load_bundle(copy)
    files = {GRAPH_FILE: bundle.graph_path}
    with pytest.raises(BundleError, match="exists; choose another output"):
        save_bundle(bundle.contract, files, copy)
    (tmp_path / "home").mkdir()
    with pytest.raises(BundleError, match="is not a bundle: not overwriting it"):
        save_bundle(bundle.contract, files, tmp_path / "home", overwrite=True)
    assert save_bundle(bundle.contract, {GRAPH_FILE: bundle.graph_path}, tmp_path / "new").contract == bundle.contract
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "home", "new"]


def test_check_score_returns_default_or_refuses_unknown_names(copy: Path) -> None:
    bundle = load_bundle(copy)
    assert bundle.check_score("") == "void"
    assert bundle.check_score("msp") == "msp"
    with pytest.raises(ConfigError, match="unknown score 'mps'; known: msp"):
        bundle.check_score("mps")


def test_threshold_is_looked_up_in_the_table(copy: Path) -> None:
    edit(copy, thresholds={"max_logit": {"calibrated_on": "some frames", "by_target_fpr": {0.05: -3.0, 0.01: -2.0}}})
    bundle = load_bundle(copy)
    assert bundle.contract.thresholds["max_logit"] == ThresholdTable("some frames", {0.05: -3.0, 0.01: -2.0})
    for target, value in ((0.01, -2.0), (0.02, -2.0), (0.05, -3.0), (1.0, -3.0)):
        threshold = bundle.threshold("max_logit", target)
        assert threshold is not None and threshold.value == value and threshold.calibrated
    with pytest.raises(ConfigError, match=r"below every calibrated rate of score 'max_logit': 0\.01, 0\.05"):
        bundle.threshold("max_logit", 0.001)


def test_threshold_without_a_table_is_none(tiny_bundle: Path) -> None:
    assert load_bundle(tiny_bundle).threshold("void", 0.01) is None


def test_compression_is_stored_and_must_be_a_mapping(tiny_bundle: Path, copy: Path, tmp_path: Path) -> None:
    assert "compression" not in (tiny_bundle / CONTRACT_FILE).read_text()
    parent = load_bundle(tiny_bundle)
    done = {"method": "by hand", "drift": {"frames": 3}}
    contract = replace(parent.contract, precision="int8", compression=done)
    assert save_bundle(contract, {GRAPH_FILE: parent.graph_path}, tmp_path / "child").contract.compression == done
    edit(copy, compression="int8")
    with pytest.raises(BundleError, match="compression: expected a mapping"):
        load_bundle(copy)


@pytest.mark.parametrize("text", ["[" * 3000, "format_version: 1\nname: 2001-99-99", "a: &a {<<: *a}", "n: !!int ''"])
def test_hostile_yaml_is_refused(text: str, copy: Path) -> None:
    (copy / CONTRACT_FILE).write_text(text)
    with pytest.raises(BundleError, match="is not valid YAML"):
        load_bundle(copy)


def test_contract_with_exponential_references_is_refused(copy: Path) -> None:
    path = copy / CONTRACT_FILE
    lists = [f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 10)}]" for n in range(9)]
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("quality"))
    path.write_text("\n".join([text, "quality:", *lists]))
    with pytest.raises(BundleError, match="with its references it has"):
        load_bundle(copy)


def test_lfs_pointer_instead_of_a_graph_is_refused(tmp_path: Path) -> None:
    bundle = plain_bundle(tmp_path / "cloned")
    (bundle.directory / GRAPH_FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(BundleError, match=r"model\.onnx is a Git LFS pointer, not the file .* with `git lfs pull`"):
        load_bundle(bundle.directory)
