"""`anomseg calibrate`: what is kept of a bundle, and which bundles are not changed."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from flat_dataset import write_flat_dataset
from plain_bundles import BESIDE, contents, plain_bundle

from anomseg_ros.cli import main
from anomseg_ros.core.bundle import (
    CONTRACT_FILE,
    GRAPH_FILE,
    Contract,
    change_bundle,
    load_bundle,
    sha256_of,
)
from anomseg_ros.core.resources import find_bundle, is_shipped, shipped_bundles
from anomseg_ros.core.thresholds import ThresholdTable
from anomseg_ros.errors import BundleError

ROOT = Path(__file__).resolve().parents[2]
CALIBRATED = {
    "void": ThresholdTable("camvid val", {0.001: 0.9, 0.01: 0.5, 0.02: 0.4, 0.05: 0.1}),
    "msp": ThresholdTable("camvid val", {0.01: 0.6}),
    "max_logit": ThresholdTable("camvid val", {0.01: -3.0}),
}


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A calibrated bundle with files beside it."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    change_bundle(load_bundle(folder), partial(replace, thresholds=CALIBRATED))
    for name, content in BESIDE.items():
        (folder / name).write_bytes(content)
    return folder


def threshold(bundle: Path | str, dataset: str, *more: str) -> int:
    words = ["calibrate", "threshold", str(bundle), "--dataset", dataset, "--allow-partial", "--score", "void"]
    return main([*words, "--target-fpr", "0.01,0.03", *more])


def check_calibrated(folder: Path, before: dict[str, bytes]) -> None:
    """Check that two rates of one score are new and everything else is what it was."""
    after = contents(folder)
    assert before.pop(CONTRACT_FILE) != after.pop(CONTRACT_FILE) and after == before
    tables = dict(load_bundle(folder).contract.thresholds)
    void = tables.pop("void")
    assert tables == {score: table for score, table in CALIBRATED.items() if score != "void"}
    assert list(void.by_target_fpr) == [0.001, 0.01, 0.02, 0.03, 0.05]
    new = [rate for rate in void.by_target_fpr if void.source(rate).startswith("road_anomaly_21 ")]
    assert new == [0.01, 0.03] and {void.source(rate) for rate in (0.001, 0.02, 0.05)} == {"camvid val"}
    kept = {rate: value for rate, value in void.by_target_fpr.items() if rate not in new}
    assert kept == {rate: CALIBRATED["void"].by_target_fpr[rate] for rate in (0.001, 0.02, 0.05)}


def test_threshold_keeps_other_thresholds_and_files(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, before = write_flat_dataset(tmp_path / "flat"), contents(bundle)
    assert threshold(bundle, dataset, "--output", str(tmp_path / "copy")) == 0
    assert contents(bundle) == before
    check_calibrated(tmp_path / "copy", dict(before))
    assert threshold(bundle, dataset) == 0
    check_calibrated(bundle, before)
    copied, changed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "the thresholds of void come from different frames and do not fall as the rate rises" in changed
    command = changed[changed.index("anomseg calibrate threshold ") :]
    assert command.startswith(f"anomseg calibrate threshold {bundle} ") and command.count("--target-fpr") == 1
    assert command.endswith("--target-fpr 0.001,0.01,0.02,0.03,0.05") and copied.endswith(" --overwrite")
    assert main(shlex.split(copied[copied.index("anomseg calibrate threshold ") :])[1:]) == 0
    assert "warning: " not in capsys.readouterr().err


def test_existing_output_needs_overwrite(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = plain_bundle(tmp_path / "other").directory
    (other / "notes.txt").write_text("mine")
    before = contents(other)
    for output, complaint in ((other, "exists; choose another output or pass --overwrite"), (tmp_path, "exists;")):
        assert threshold(bundle, "road_anomaly_21=absent", "--output", str(output)) == 1  # before it looks for frames
        assert f"anomseg: error: {output} {complaint}" in capsys.readouterr().err
    assert contents(other) == before
    dataset = write_flat_dataset(tmp_path / "flat")
    assert threshold(bundle, dataset, "--output", str(other), "--overwrite") == 0
    assert load_bundle(other).contract.name == "tiny" and (other / "notes.txt").read_text() == "mine"


def shipped_copy(place: Path, bundle: Path) -> Path:
    """Return a bundle in models/ of a copy of the sources, or of an installation: both have package.xml beside it."""
    (place / "models").mkdir(parents=True)
    shutil.copy(ROOT / "package.xml", place)
    return Path(shutil.copytree(bundle, place / "models" / "mine"))


def test_shipped_bundle_needs_separate_output(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_flat_dataset(tmp_path / "flat")
    shipped = shipped_copy(tmp_path / "share" / "anomseg_ros", bundle)
    before = contents(shipped)
    (tmp_path / "link").symlink_to(shipped)
    for given, more in ((shipped, ()), (tmp_path / "link", ()), (bundle, ("--output", str(shipped), "--overwrite"))):
        assert threshold(given, dataset, *more) == 1
        said = capsys.readouterr().err
        assert "ships with the package and is not changed; give --output FOLDER" in said and said.count("\n") == 1
    assert contents(shipped) == before
    assert threshold(shipped, dataset, "--output", str(tmp_path / "copy")) == 0
    assert contents(shipped) == before
    check_calibrated(tmp_path / "copy", before)


@pytest.mark.parametrize("command", ["threshold", "temperature"])
@pytest.mark.parametrize("name", sorted(shipped_bundles()))
def test_shipped_bundles_are_never_changed(command: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--checkpoint", "absent"] if command == "temperature" else []
    before = contents(find_bundle(name))
    assert main(["calibrate", command, name, "--dataset", "camvid=absent", *more]) == 1  # before it looks for frames
    assert f"{name} ships with the package and is not changed" in capsys.readouterr().err
    assert contents(find_bundle(name)) == before


def test_user_folder_named_models_is_not_shipped(bundle: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(bundle, tmp_path / "models" / "mine"))
    assert not is_shipped(mine)
    (tmp_path / "package.xml").write_text("<package><name>my_robot</name></package>")
    assert not is_shipped(mine)


def test_bundle_left_by_killed_change_is_reported(bundle: Path) -> None:
    left = bundle.rename(bundle.with_name(f".{bundle.name}.a1b2.host.12.part.replaced"))
    message = r"bundle does not exist: a change of it was killed; the old bundle is .*\.replaced: rename it back"
    with pytest.raises(BundleError, match=message):
        find_bundle(bundle)
    assert load_bundle(left)


def int8(contract: Contract) -> Contract:
    return replace(contract, precision="int8")


def test_temperature_is_refused_for_int8_bundles(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_bundle(load_bundle(bundle), int8)
    before = contents(bundle)
    assert main(["calibrate", "temperature", str(bundle), "--checkpoint", "absent", "--dataset", "camvid=absent"]) == 1
    assert "is int8, the checkpoint's graph is not; fit the temperature of the float bundle" in capsys.readouterr().err
    assert contents(bundle) == before


@pytest.mark.slow
def test_temperature_keeps_tables_of_unaffected_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from labelled_by_itself import write_own_labels
    from pruning_place import CLASSES, make_place

    from anomseg_ros.networks.checkpoints import load_checkpoint

    place = make_place(tmp_path)
    folder, checkpoint = place / "whole", place / "whole.safetensors"
    tables = {score: CALIBRATED[score] for score in ("msp", "max_logit")}
    quality = {"camvid": {"miou": 0.6}, "a": {"score": "msp", "auprc": 0.2}, "b": {"score": "max_logit", "auprc": 0.3}}
    change_bundle(load_bundle(folder), lambda one: _described(one, tables, quality))
    for name, content in BESIDE.items():
        (folder / name).write_bytes(content)
    before, graph = load_bundle(folder).contract, sha256_of(folder / GRAPH_FILE)
    dataset = write_own_labels(load_checkpoint(checkpoint, "mide_net", CLASSES), place / "own")
    words = ["calibrate", "temperature", str(folder), "--checkpoint", str(checkpoint), "--dataset", dataset]
    assert main([*words, "--allow-partial"]) == 0
    said = capsys.readouterr().out
    assert "the thresholds of msp depended" in said and "the quality on a depended" in said
    after = load_bundle(folder).contract
    assert after.temperature != before.temperature and sha256_of(folder / GRAPH_FILE) != graph
    assert after.thresholds == {"max_logit": tables["max_logit"]}
    assert set(after.quality) == {"camvid", "b"} and after.compression == before.compression
    assert after.provenance.training_data == "a drive"
    assert after.provenance.command == f"anomseg train it; anomseg {' '.join(words)} --allow-partial"
    assert {name: contents(folder)[name] for name in BESIDE} == BESIDE


def _described(contract: Contract, tables: dict[str, ThresholdTable], quality: dict[str, object]) -> Contract:
    provenance = replace(contract.provenance, command="anomseg train it", training_data="a drive")
    compression = {"method": "channels removed"}
    return replace(contract, thresholds=tables, quality=quality, provenance=provenance, compression=compression)
