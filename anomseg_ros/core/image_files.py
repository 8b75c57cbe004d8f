"""Image files: which ones a folder holds, in which order, and their pixels, with files that end early refused."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import FrameError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that compares runs of digits by value: frame2 comes before frame10."""
    parts = re.findall(r"\d+|\D+", name.casefold())
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


def image_files(folder: Path) -> list[Path]:
    """Return the image files directly inside a folder, in natural order of their names.

    Raises:
        FrameError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise FrameError(f"{str(folder)!r} is not a folder; give the folder that holds the images")
    images = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if not images:
        raise FrameError(f"{str(folder)!r} holds no image; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return sorted(images, key=lambda path: natural_key(path.name))


def read_image(path: Path) -> RgbImage:
    """Return the pixels of an image file; see decode_rgb. Raises FrameError naming the file."""
    if not path.is_file():
        raise FrameError(f"image {str(path)!r} does not exist")
    return decode_rgb(np.fromfile(path, np.uint8), f"image {str(path)!r}")


def decode_rgb(data: npt.NDArray[np.uint8], what: str) -> RgbImage:
    """Return the pixels of a JPEG, PNG or WebP file as (height_px, width_px, 3) uint8 RGB.

    data: the file, flat. what: names it in errors. 16-bit files keep their upper 8 bits; grey is repeated, alpha left
    out.

    Raises:
        FrameError: empty, not an image, or ending early. OpenCV fills the missing part of a truncated JPEG with grey
            and reports success, so the end marker is checked here. Flipped bits inside the entropy-coded data of a
            complete JPEG cannot be recognised.
    """
    if data.size == 0:
        raise FrameError(f"{what} is empty; expected a JPEG, PNG or WebP file")
    what = f"{what} ({data.size} bytes)"
    _require_complete(data, what)
    try:
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise FrameError(f"{what} cannot be decoded: {error.err}; expected a JPEG, PNG or WebP file") from None
    if bgr is None:
        raise FrameError(f"{what} is corrupt or not an image; expected a JPEG, PNG or WebP file")
    if bgr.dtype == np.uint16:
        bgr = np.right_shift(bgr, 8).astype(np.uint8)
    if bgr.dtype != np.uint8:
        raise FrameError(f"{what} holds {bgr.dtype} pixels; expected 8 or 16 bit unsigned ones")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _require_complete(data: npt.NDArray[np.uint8], what: str) -> None:
    start = data[:12].tobytes()
    if start.startswith(b"\xff\xd8") and not _jpeg_has_end(data.tobytes()):
        raise FrameError(f"{what} is a truncated JPEG: it has no end marker FFD9")
    # The last chunk of a PNG is always the same: IEND, no data, and the checksum of that.
    if start.startswith(b"\x89PNG\r\n\x1a\n") and b"IEND\xaeB`\x82" not in data[-4096:].tobytes():
        raise FrameError(f"{what} is a truncated PNG: it has no IEND chunk")
    if start.startswith(b"RIFF") and start.endswith(b"WEBP"):
        stated = int.from_bytes(start[4:8], "little") + 8
        if stated > data.size:
            raise FrameError(f"{what} is a truncated WebP: its header states {stated} bytes")


def _jpeg_has_end(data: bytes) -> bool:
    """Whether an end marker follows the first scan; one before it belongs to a thumbnail inside an EXIF segment."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        if data[position + 1] == 0xFF:  # fill byte before a marker
            position += 1
        elif data[position + 1] == 0xDA:
            return data.find(b"\xff\xd9", position) >= 0
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False
