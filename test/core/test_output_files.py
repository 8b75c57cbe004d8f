from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from anomseg_ros.core.output_files import (
    check_output_file,
    check_output_folder,
    write_file,
    write_image,
    write_results,
)
from anomseg_ros.errors import OutputError, describe_os_error

LONGEST = "n" * 255


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "a_file").write_text("old")
    (tmp_path / "a_folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a_folder", "Is a directory"),
        ("a_file/x.json", "Not a directory"),
        ("a_file/new/x.json", "Not a directory"),
        (f"{LONGEST}n", "File name too long"),
        (f"new/{LONGEST}n/x.json", "File name too long"),
        ("loop/x.json", "Not a directory"),
    ],
)
def test_unwritable_files_are_refused_by_check_and_write(name: str, reason: str, place: Path) -> None:
    for write in (check_output_file, lambda path: write_file(path, "new")):
        with pytest.raises(OutputError, match=rf"^cannot write '{re.escape(str(place / name))}': .*; "):
            write(place / name)
    with pytest.raises(OutputError, match=reason):
        check_output_file(place / name)
    assert not list(place.rglob("*.part"))


def test_unwritable_folders_are_refused(place: Path) -> None:
    for name in ("a_file", "a_file/new", f"new/{LONGEST}n"):
        with pytest.raises(OutputError, match="cannot write"):
            check_output_folder(place / name)
    check_output_folder(place / "new" / "folder")
    check_output_folder(place / "a_folder")
    assert sorted(path.name for path in place.iterdir()) == ["a_file", "a_folder", "loop"]


def test_file_is_written_and_its_folder_created(place: Path) -> None:
    for path in (place / "new" / "x.json", place / "new" / LONGEST):
        check_output_file(path)
        write_file(path, "caf\udce9")
        assert path.read_text() == "caf\\udce9" and [one.name for one in path.parent.glob(".*")] == []


def test_writing_through_a_link_keeps_the_link(place: Path) -> None:
    (place / "link").symlink_to("a_folder/target")
    check_output_file(place / "link")
    write_file(place / "link", "new")
    assert (place / "link").is_symlink() and (place / "a_folder" / "target").read_text() == "new"


def test_device_is_written_to_but_not_replaced(place: Path) -> None:
    for _ in range(2):
        check_output_file(Path("/dev/full"))
        with pytest.raises(OutputError, match=r"'/dev/full': No space left on device; make room"):
            write_file(Path("/dev/full"), "text")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_full_disk_keeps_the_old_file_and_saves_results_elsewhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spare = place / "spare"
    spare.mkdir()
    monkeypatch.setenv("TMPDIR", str(spare))
    code = """
import resource, signal, sys
from pathlib import Path
from anomseg_ros.core.output_files import write_results
from anomseg_ros.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    write_results(Path(sys.argv[1]), "results")
except OutputError as error:
    print(error)
"""
    path = str(place / "a_file")
    full = subprocess.run([sys.executable, "-c", code, path, "3"], capture_output=True, text=True)
    assert (
        "File too large" in full.stdout and "in no file: the temporary folder cannot be written either" in full.stdout
    )
    full = subprocess.run([sys.executable, "-c", code, "/dev/full", "100"], capture_output=True, text=True)
    said = re.search(r"cannot write '/dev/full': No space left .*The results are in '(.*)'$", full.stdout.strip())
    assert said and Path(said[1]).read_text() == "results" and spare in Path(said[1]).parents
    assert (place / "a_file").read_text() == "old" and not list(place.glob(".*"))


def test_temporary_file_of_a_killed_process_is_removed(place: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = place / f".a_file.{os.uname().nodename}.{ended.pid}.part"
    left.write_text("half")
    write_results(place / "a_file", "new")
    assert not left.exists() and (place / "a_file").read_text() == "new"


def test_images_can_have_any_name(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    write_image(path, rgb)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), 1)[..., ::-1], rgb)
    write_image(tmp_path / "labels.png", rgb[..., 0])
    assert cv2.imread(str(tmp_path / "labels.png"), cv2.IMREAD_UNCHANGED).shape == (4, 6)


def test_refusal_names_path_and_remedy() -> None:
    assert describe_os_error(OSError(28, "No space left on device")).startswith("No space left on device; make room")
    assert describe_os_error(FileNotFoundError(2, "No such file or directory", "a")).startswith("'a': No such file")
    cross_device = OSError(18, "Cross-device link", "a", None, "b")
    assert describe_os_error(cross_device).startswith("'a' and 'b': Cross-device link; check")
