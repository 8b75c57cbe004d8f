from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from anomseg_ros.core.image_files import image_files, read_image
from anomseg_ros.errors import FrameError


def write(path: Path, value: int) -> Path:
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[..., 0] = value  # blue, as OpenCV writes BGR
    assert cv2.imwrite(str(path), pixels)
    return path


def test_natural_order(tmp_path: Path) -> None:
    for name in ("10.png", "2.png", "1.png", "a3.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"") if name.endswith("txt") else write(tmp_path / name, 1)
    assert [path.name for path in image_files(tmp_path)] == ["1.png", "2.png", "10.png", "a3.png"]


def test_read_image_is_rgb(tmp_path: Path) -> None:
    assert read_image(write(tmp_path / "a.png", 200))[0, 0].tolist() == [0, 0, 200]


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    for name in ("empty.png", "text.png", "absent.png"):
        with pytest.raises(FrameError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(FrameError, match="holds no image"):
        (tmp_path / "folder").mkdir()
        image_files(tmp_path / "folder")
    with pytest.raises(FrameError, match="is not a folder"):
        image_files(tmp_path / "absent")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_files_that_end_early_are_refused(tmp_path: Path, suffix: str) -> None:
    whole = write(tmp_path / f"whole{suffix}", 100)
    assert read_image(whole).shape == (60, 80, 3)
    (tmp_path / f"cut{suffix}").write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(FrameError, match=r"cut.*(truncated|corrupt)"):
        read_image(tmp_path / f"cut{suffix}")


def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((4, 4, 3), 0x8055, np.uint16))
    assert (read_image(tmp_path / "deep.png") == 0x80).all()
