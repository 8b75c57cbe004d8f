"""Changing bundles: what is kept, what is refused, and that a bundle is complete at every moment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from plain_bundles import BESIDE, contents, plain_bundle, plain_contract

from anomseg_ros.core import staging
from anomseg_ros.core.bundle import (
    CONTRACT_FILE,
    GRAPH_FILE,
    TORCH_FILE,
    Bundle,
    Contract,
    change_bundle,
    load_bundle,
    save_bundle,
)
from anomseg_ros.errors import BundleError, ExportError

BOTH = {GRAPH_FILE: b"the graph", TORCH_FILE: b"the program"}


@pytest.fixture(params=["exchange", "two steps"])
def exchange_or_two_steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Test file systems that can exchange two names and those that cannot."""
    if request.param == "two steps":
        monkeypatch.setattr(staging, "_exchanged", lambda one, other: False)
    return str(request.param)


def with_temperature_2(contract: Contract) -> Contract:
    return replace(contract, temperature=2.0)


def new_graph(folder: Path) -> dict[str, Path]:
    (folder / "graph").write_bytes(b"another graph")
    return {GRAPH_FILE: folder / "graph"}


def test_contract_change_keeps_all_other_files(tmp_path: Path) -> None:
    bundle = plain_bundle(tmp_path / "bundle", BOTH)
    (bundle.directory / CONTRACT_FILE).chmod(0o640)
    before, same_files = contents(bundle.directory), {path: path.stat().st_ino for path in bundle.directory.iterdir()}
    changed = change_bundle(bundle, with_temperature_2)
    after = contents(bundle.directory)
    assert changed == load_bundle(bundle.directory) and changed.contract.temperature == 2.0
    assert before.pop(CONTRACT_FILE) != after.pop(CONTRACT_FILE) and after == before
    assert all(same_files[path] == path.stat().st_ino for path in bundle.directory.iterdir() if path.suffix != ".yaml")
    assert (bundle.directory / CONTRACT_FILE).stat().st_mode & 0o777 == 0o640


def test_file_change_keeps_all_other_files(tmp_path: Path, exchange_or_two_steps: str) -> None:
    bundle = plain_bundle(tmp_path / "bundle", BOTH)
    bundle.directory.chmod(0o750)
    before = contents(bundle.directory)
    changed = change_bundle(bundle, with_temperature_2, files=new_graph(tmp_path))
    after = contents(bundle.directory)
    assert changed == load_bundle(bundle.directory) and changed.contract.temperature == 2.0
    assert after[GRAPH_FILE] == b"another graph"
    assert {name: after[name] for name in after if name not in (GRAPH_FILE, CONTRACT_FILE)} == {
        name: before[name] for name in before if name not in (GRAPH_FILE, CONTRACT_FILE)
    }
    assert bundle.directory.stat().st_mode & 0o777 == 0o750
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "bundle-sources", "graph"]


def test_replacing_a_bundle_removes_only_its_listed_files(tmp_path: Path, exchange_or_two_steps: str) -> None:
    bundle = plain_bundle(tmp_path / "bundle", BOTH)
    save_bundle(plain_contract(name="another"), new_graph(tmp_path), bundle.directory, overwrite=True)
    after = contents(bundle.directory)
    assert load_bundle(bundle.directory).contract.name == "another"
    assert set(after) == {CONTRACT_FILE, GRAPH_FILE, "curves/void.csv", "card", *BESIDE}
    assert {name: after[name] for name in BESIDE} == BESIDE
    # The list of files of a damaged bundle cannot be trusted, so nothing is removed.
    (bundle.directory / CONTRACT_FILE).write_text("files: [")
    save_bundle(plain_contract(name="third"), new_graph(tmp_path), bundle.directory, overwrite=True)
    assert set(contents(bundle.directory)) == set(after)


def test_changed_copy_has_all_files_and_shares_none(tmp_path: Path) -> None:
    bundle = plain_bundle(tmp_path / "bundle", BOTH)
    before = contents(bundle.directory)
    copy = change_bundle(bundle, with_temperature_2, tmp_path / "deep" / "copy")
    after = contents(copy.directory)
    assert copy == load_bundle(tmp_path / "deep" / "copy") and contents(bundle.directory) == before
    assert before.pop(CONTRACT_FILE) != after.pop(CONTRACT_FILE) and after == before
    first, second = ({path.stat().st_ino for path in one.directory.iterdir()} for one in (bundle, copy))
    assert not first & second
    card = {"README.md": tmp_path / "bundle-sources" / GRAPH_FILE}  # replaces the README.md of the copied folder
    assert (
        contents(change_bundle(bundle, with_temperature_2, tmp_path / "listed", files=card).directory)["README.md"]
        == b"the graph"
    )


def test_existing_output_is_kept_without_overwrite(tmp_path: Path) -> None:
    bundle = plain_bundle(tmp_path / "bundle")
    other = plain_bundle(tmp_path / "other", {GRAPH_FILE: b"x"}, name="other")
    (other.directory / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(BundleError, match=r"other exists; choose another output or pass --overwrite"):
        change_bundle(bundle, with_temperature_2, other.directory)
    (tmp_path / "home").mkdir()
    with pytest.raises(BundleError, match="home exists and is not a bundle"):
        change_bundle(bundle, with_temperature_2, tmp_path / "home", overwrite=True)
    with pytest.raises(BundleError, match=r"lies in the bundle .*; choose an output outside it"):
        change_bundle(bundle, with_temperature_2, bundle.directory / "copy")
    assert contents(tmp_path) == before
    change_bundle(bundle, with_temperature_2, other.directory, overwrite=True)
    assert contents(other.directory)[GRAPH_FILE] == b"the graph"
    assert (other.directory / "notes.txt").read_text() == "mine"
    # Another path to the same folder changes the bundle in place.
    change_bundle(bundle, lambda contract: replace(contract, temperature=3.0), tmp_path / "other" / ".." / "bundle")
    assert load_bundle(bundle.directory).contract.temperature == 3.0


def test_concurrent_file_change_is_refused(tmp_path: Path) -> None:
    bundle = plain_bundle(tmp_path / "bundle")
    change_bundle(bundle, lambda contract: replace(contract, name="renamed"))
    assert change_bundle(bundle, with_temperature_2).contract.name == "renamed"
    change_bundle(bundle, with_temperature_2, files=new_graph(tmp_path))
    before = contents(bundle.directory)
    with pytest.raises(BundleError, match=r"bundle were changed in the meantime; start again"):
        change_bundle(bundle, with_temperature_2)
    assert contents(bundle.directory) == before


def test_failed_change_leaves_everything_as_before(tmp_path: Path) -> None:
    bundle = plain_bundle(tmp_path / "bundle")
    files, before = new_graph(tmp_path), contents(tmp_path)

    def fails(staged: Bundle) -> Contract:
        assert staged.graph_path.read_bytes() == b"another graph" and load_bundle(staged.directory) == staged
        raise ExportError("too far off")

    with pytest.raises(ExportError, match="too far off"):
        change_bundle(bundle, with_temperature_2, files=files, finish=fails)
    with pytest.raises(BundleError, match=r"temperature 0\.0 must be above 0"):
        change_bundle(bundle, lambda contract: replace(contract, temperature=0.0))
    with pytest.raises(BundleError, match=r"cannot write the bundle .*bundle: No such file.*absent"):
        change_bundle(bundle, with_temperature_2, files={GRAPH_FILE: tmp_path / "absent"})
    assert contents(tmp_path) == before


def test_finish_can_add_measurements_to_the_contract(tmp_path: Path) -> None:
    def finish(staged: Bundle) -> Contract:
        return replace(staged.contract, quality={"a set": {"miou": 0.5}}, files={})

    bundle = save_bundle(plain_contract(), new_graph(tmp_path), tmp_path / "bundle", finish=finish)
    assert bundle == load_bundle(tmp_path / "bundle") and bundle.contract.quality == {"a set": {"miou": 0.5}}


def test_bundle_behind_a_link_is_changed_in_place(tmp_path: Path, exchange_or_two_steps: str) -> None:
    plain_bundle(tmp_path / "store" / "first")
    (tmp_path / "current").symlink_to("store/first")
    for files in ({}, new_graph(tmp_path)):
        changed = change_bundle(load_bundle(tmp_path / "current"), with_temperature_2, files=files)
        assert changed.directory == tmp_path / "current" and (tmp_path / "current").is_symlink()
    assert contents(tmp_path / "store" / "first")[GRAPH_FILE] == b"another graph"


def test_missing_permission_is_reported_in_one_line() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's folders are closed to all users but root
        folder = Path(name)
        folder.chmod(0o755)
        bundle = plain_bundle(folder / "locked" / "bundle")
        files = new_graph(folder)
        for path in (bundle.directory, bundle.directory.parent):
            path.chmod(0o555)
        before = contents(folder)
        with without_privileges():
            with pytest.raises(BundleError, match=r"^cannot write the bundle .*locked/bundle: Permission denied"):
                change_bundle(bundle, with_temperature_2)
            for change in (with_temperature_2, lambda contract: contract):
                with pytest.raises(BundleError, match=r"^cannot write to .*locked: permission denied; choose another"):
                    change_bundle(bundle, change, files=files)
            with pytest.raises(BundleError, match=r"^cannot write to .*locked: permission denied; choose another"):
                change_bundle(bundle, with_temperature_2, folder / "locked" / "new" / "copy")
        assert contents(folder) == before
        for path in (bundle.directory, bundle.directory.parent):
            path.chmod(0o755)


def test_output_below_a_file_is_refused(tmp_path: Path) -> None:
    bundle = plain_bundle(tmp_path / "bundle")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match=r"cannot write below .*file: it is a file; choose another output"):
        change_bundle(bundle, with_temperature_2, tmp_path / "file" / "copy")


@contextmanager
def without_privileges() -> Iterator[None]:
    """Switch to a user without privileges if root runs the tests."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.slow
def test_kill_leaves_the_old_or_the_new_bundle(tmp_path: Path) -> None:
    # In a separate process, because it forks and this process has threads.
    command = [sys.executable, str(Path(__file__).parent.parent / "killed_changes.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    checked, old, new = map(int, done.stdout.split())
    assert checked > 30 and old > 10 and new > 3


def test_bundle_is_saved_elsewhere_if_its_folder_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spare").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spare"))
    (tmp_path / "graph").write_bytes(b"the graph")

    def unplug(bundle: Bundle) -> Contract:
        shutil.rmtree(tmp_path / "disk", ignore_errors=True)
        return replace(bundle.contract, name="measured")

    place = tmp_path / "disk" / "new"
    with pytest.raises(
        BundleError, match=r"^cannot write the bundle .*disk/new: No such file.*The bundle is in"
    ) as raised:
        save_bundle(plain_contract(), {GRAPH_FILE: tmp_path / "graph"}, place, finish=unplug)
    spare = Path(re.findall(r"The bundle is in (.*)$", str(raised.value))[0])
    assert load_bundle(spare).contract.name == "measured" and tmp_path / "spare" in spare.parents
    assert not place.exists()
