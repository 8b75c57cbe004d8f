"""Image files: listing a folder's in natural order and reading their pixels. Truncated files are refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.file_kinds import SNIFFED_BYTES, foreign_content
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import FrameError, describe_os_error

# OpenCV reads more formats than these, some of them at the cost of gigabytes for a few bytes (GIF).
_SIGNATURES = re.compile(
    rb"\xff\xd8|\x89PNG\r\n\x1a\n|RIFF....WEBP|BM|II\*\0|MM\0\*|P[1-6]\s",  # JPEG, PNG, WebP, BMP, TIFF, PNM
    re.DOTALL,
)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")

_AS_STORED = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
_TIFF_ORIENTATION = 274


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that compares runs of digits by value: frame2 comes before frame10."""
    parts = re.findall(r"\d+|\D+", name.casefold())
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


def image_files(folder: Path) -> list[Path]:
    """Return the image files directly inside a folder, in natural order of their names.

    Every entry that is named like an image and is no folder is among them: of a symbolic link that leads nowhere,
    reading says so.

    Raises:
        FrameError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise FrameError(f"{str(folder)!r} is not a folder; give the folder that holds the images")
    images = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()]
    if not images:
        raise FrameError(f"{str(folder)!r} holds no image; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return sorted(images, key=lambda path: natural_key(path.name))


def read_image(path: Path) -> RgbImage:
    """Return the pixels of an image file; see decode_rgb. Raises FrameError naming the file."""
    return decode_rgb(file_bytes(path), f"image {str(path)!r}")


def file_bytes(path: Path) -> npt.NDArray[np.uint8]:
    """Return a file's content, flat uint8. Raises FrameError that names it: missing, no ordinary file, unreadable."""
    if not path.is_file():  # a pipe would be waited for, for ever
        if path.exists():
            raise FrameError(f"image {str(path)!r} is no ordinary file")
        link = f"is a symbolic link to {os.readlink(path)!r}, which " if path.is_symlink() else ""
        raise FrameError(f"image {str(path)!r} {link}does not exist")
    try:
        return np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise FrameError(f"image cannot be read: {describe_os_error(error, path)}") from error


def decode_rgb(data: npt.NDArray[np.uint8], what: str) -> RgbImage:
    """Return the pixels of a JPEG, PNG or WebP file as (height_px, width_px, 3) uint8 RGB; see decode_stored.

    16-bit files keep their upper 8 bits; grey is repeated.
    """
    pixels = decode_stored(data, what)
    if pixels.dtype == np.uint16:
        pixels = np.right_shift(pixels, 8).astype(np.uint8)
    code = cv2.COLOR_GRAY2RGB if pixels.ndim == 2 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(pixels, code), np.uint8)


def decode_stored(data: npt.NDArray[np.uint8], what: str) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Return the pixels of a JPEG, PNG or WebP file as it stores them: (H, W) grey or (H, W, 3) BGR, 8 or 16 bits.

    They are not turned by the orientation that a camera wrote beside them (EXIF): nothing else of a frame, its
    camera_info, its labels, its ego mask, would be turned along. data: the file, flat. what: names it in errors. Alpha
    is left out.

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
        pixels = cv2.imdecode(_unturned_tiff(data), _AS_STORED)
    except cv2.error as error:
        raise FrameError(f"{what} cannot be decoded: {error.err}; expected a JPEG, PNG or WebP file") from None
    if pixels is None:
        raise FrameError(
            f"{what} is corrupt, or states more than OPENCV_IO_MAX_IMAGE_PIXELS; expected a JPEG, PNG or WebP file"
        )
    if pixels.dtype not in (np.uint8, np.uint16):
        raise FrameError(f"{what} holds {pixels.dtype} pixels; expected 8 or 16 bit unsigned ones")
    return pixels  # type: ignore[return-value]


def _require_complete(data: npt.NDArray[np.uint8], what: str) -> None:
    start = data[:12].tobytes()
    if not _SIGNATURES.match(start):
        kind = foreign_content(data[:SNIFFED_BYTES].tobytes(), data.size, "an image")
        raise FrameError(f"{what} {kind or 'is not an image; expected a JPEG, PNG or WebP file'}")
    if start.startswith(b"\xff\xd8") and not _jpeg_has_end(data.tobytes()):
        raise FrameError(f"{what} is a truncated JPEG: it has no end marker FFD9")
    if start.startswith(b"\x89PNG\r\n\x1a\n") and not _png_has_end(data):
        raise FrameError(f"{what} is a truncated PNG: it has no IEND chunk where its chunks lead to")
    if start.startswith(b"RIFF") and start.endswith(b"WEBP"):
        stated = int.from_bytes(start[4:8], "little") + 8
        if stated > data.size:
            raise FrameError(f"{what} is a truncated WebP: its header states {stated} bytes")


def _png_has_end(data: npt.NDArray[np.uint8]) -> bool:
    """Whether the lengths of the chunks lead to the last one; OpenCV makes room for what a length states."""
    position = 8
    while position + 12 <= data.size:
        head = data[position : position + 8].tobytes()
        position += 12 + int.from_bytes(head[:4], "big")
        if head[4:] == b"IEND":
            return position <= data.size
    return False


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


def _unturned_tiff(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return a TIFF with its orientation set to "as stored", which OpenCV does not ignore when told to; others as is.

    TIFF 6.0, section 2: the byte order, 42, the offset of the first directory; there a count and entries of 12 bytes.
    """
    start = data[:8].tobytes()
    order: Literal["little", "big"] = "little" if start.startswith(b"II") else "big"
    if start[:4] not in (b"II*\0", b"MM\0*"):
        return data
    directory = int.from_bytes(start[4:8], order)
    count = int.from_bytes(data[directory : directory + 2].tobytes(), order)
    entries = data[directory + 2 : directory + 2 + 12 * count].tobytes()
    for place in range(0, len(entries) - 11, 12):
        if int.from_bytes(entries[place : place + 2], order) == _TIFF_ORIENTATION:
            unturned: npt.NDArray[np.uint8] = data.copy()
            value = directory + 2 + place + 8
            unturned[value : value + 2] = np.frombuffer((1).to_bytes(2, order), np.uint8)
            return unturned
    return data
