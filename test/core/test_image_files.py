from __future__ import annotations

import io
import os
import resource
import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from anomseg_ros.core.image_files import decode_rgb, image_files, read_image
from anomseg_ros.core.pixel_files import read_picture
from anomseg_ros.errors import FrameError


def write(path: Path, value: int) -> Path:
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[..., 0] = value  # blue, as OpenCV writes BGR
    assert cv2.imwrite(str(path), pixels)
    return path


def test_image_files_are_in_natural_order(tmp_path: Path) -> None:
    for name in ("10.png", "2.png", "1.png", "a3.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"") if name.endswith("txt") else write(tmp_path / name, 1)
    assert [path.name for path in image_files(tmp_path)] == ["1.png", "2.png", "10.png", "a3.png"]


def test_image_is_read_as_rgb(tmp_path: Path) -> None:
    assert read_image(write(tmp_path / "a.png", 200))[0, 0].tolist() == [0, 0, 200]


def test_invalid_files_and_folders_are_refused(tmp_path: Path) -> None:
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
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    whole = write(tmp_path / f"whole{suffix}", 100)
    assert read_image(whole).shape == (60, 80, 3)
    (tmp_path / f"cut{suffix}").write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(FrameError, match=r"cut.*(truncated|corrupt)"):
        read_image(tmp_path / f"cut{suffix}")


def test_16_bit_images_keep_the_upper_byte(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((4, 4, 3), 0x8055, np.uint16))
    assert (read_image(tmp_path / "deep.png") == 0x80).all()


def chunk(kind: bytes, content: bytes, size: int | None = None) -> bytes:
    """Return a chunk of a PNG file. size: a wrong size to state, or None."""
    stated = len(content) if size is None else size
    return struct.pack(">I", stated) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = chunk(b"IEND", b"")
HUGE = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
SMALL = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        # Each of these took OpenCV gigabytes of memory and up to a minute.
        (b"GIF89a0u0u\xf0" + bytes(8) + b"," + bytes(4) + b"0u0u\x00\x02\x02L\x01\x00;", "not an image"),
        (SIGNATURE + chunk(b"IHDR", SMALL) + chunk(b"IDAT", bytes(20), 0x7FFFFFFF) + END, "truncated PNG"),
        (SIGNATURE + chunk(b"IHDR", HUGE) + chunk(b"IDAT", zlib.compress(bytes(20))) + END, "MAX_IMAGE_PIXELS|decoded"),
        (b"P6 30000 30000 255\n" + bytes(40), "MAX_IMAGE_PIXELS|decoded"),
    ],
)
def test_small_file_of_a_huge_image_is_refused_at_once(data: bytes, said: str) -> None:
    peak_kib, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(FrameError, match=said):
        decode_rgb(np.frombuffer(data, np.uint8), "it")
    assert time.process_time() - started < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib < 300 * 1024


def test_png_with_trailing_data_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", 200)
    path.write_bytes(path.read_bytes() + b"and more")
    assert read_image(path).shape == (60, 80, 3)


def encode_with_orientation(rgb: np.ndarray, kind: str, orientation: int | None) -> np.ndarray:
    """Return an image file with an orientation tag, or without one for None."""
    stream, said = io.BytesIO(), Image.Exif()
    if orientation is not None:
        said[ORIENTATION] = orientation
    if kind == "TIFF":
        Image.fromarray(rgb).save(stream, kind, tiffinfo=said)
    else:
        Image.fromarray(rgb).save(stream, kind, exif=said, lossless=True)
    return np.frombuffer(stream.getvalue(), np.uint8)


ORIENTATION = 274
"""Tag number in EXIF and TIFF."""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_tag_is_ignored(kind: str, tmp_path: Path) -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (24, 40, 3), np.uint8)
    plain = decode_rgb(encode_with_orientation(rgb, kind, None), "it")
    assert plain.shape == rgb.shape
    for orientation in range(1, 9):
        data = encode_with_orientation(rgb, kind, orientation)
        np.testing.assert_array_equal(decode_rgb(data, "it"), plain)
        path = tmp_path / f"{orientation}.{kind}"
        path.write_bytes(data.tobytes())
        np.testing.assert_array_equal(read_picture(path), plain)


def test_unreadable_file_error_names_it(tmp_path: Path) -> None:
    write(tmp_path / "b.png", 1)
    (tmp_path / "a.png").symlink_to("nowhere.png")
    (tmp_path / "c.png").mkdir()
    assert [path.name for path in image_files(tmp_path)] == ["a.png", "b.png"]
    with pytest.raises(FrameError, match=r"a\.png' is a symbolic link to 'nowhere\.png', which does not exist"):
        read_image(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(FrameError, match=r"pipe\.png' is no ordinary file"):
        read_image(tmp_path / "pipe.png")
    with pytest.raises(FrameError, match=r"mem': .*; "):
        read_image(Path("/proc/self/mem"))
    (tmp_path / "page.png").write_text("<html>not found</html>")
    with pytest.raises(FrameError, match=r"page\.png' \(22 bytes\) is an HTML or XML page of 22 bytes, not an image"):
        read_image(tmp_path / "page.png")
