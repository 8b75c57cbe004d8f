"""Pixels of dataset files as the benchmarks' own code (Pillow) reads them. Damaged files are refused.

OpenCV alone would silently change results: it replaces the indices of a palette PNG, which are the labels, by colours.
Pictures are read as stored, see image_files.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from anomseg_ros.core.image_files import decode_rgb
from anomseg_ros.core.problems import FrameProblem
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import FrameError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, PALETTE = 0, 3
"""Colour types of a PNG (PNG specification, 11.2.2)."""


def read_picture(path: Path) -> RgbImage:
    """Return the pixels of an image file as stored, (H, W, 3) uint8 RGB. Raises FrameProblem."""
    data = _read_bytes(path)
    if data.startswith(PNG_SIGNATURE):
        _png_chunks(data, path)
    try:
        return decode_rgb(np.frombuffer(data, np.uint8), path.name)
    except FrameError as error:
        raise FrameProblem("unreadable", path, str(error)) from None


def read_label(path: Path) -> npt.NDArray[np.uint8]:
    """Return the values of a label PNG, (H, W) uint8: palette indices, or grey values. Raises FrameProblem."""
    data = _read_bytes(path)
    if not data.startswith(PNG_SIGNATURE):
        raise FrameProblem("unreadable", path, "not a PNG file; labels must be stored without loss")
    chunks = _png_chunks(data, path)
    depth, color = chunks[0].payload[8], chunks[0].payload[9]
    try:
        pixels = cv2.imdecode(np.frombuffer(_as_grey(chunks, data), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise FrameProblem("unreadable", path, "cannot be decoded as a PNG")
    values = _one_channel(pixels, path)
    if values.dtype != np.uint8:
        if int(values.max()) > 255:
            raise FrameProblem("unknown label values", path, f"16-bit values up to {int(values.max())}")
        values = values.astype(np.uint8)
    if depth < 8 and color in (GREY, PALETTE):
        # The decoder stretches 1, 2 and 4 bits over 0 to 255; the labels are the bits.
        values = values // np.uint8(255 // (2**depth - 1))
    return np.ascontiguousarray(values, np.uint8)


@dataclass(frozen=True)
class _Chunk:
    kind: bytes
    payload: bytes


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FrameProblem("unreadable", path, error.strerror or "cannot be opened") from None


def _png_chunks(data: bytes, path: Path) -> list[_Chunk]:
    """Return the chunks of a PNG; verify the checksums of the critical ones, since decoders accept damaged files."""
    chunks: list[_Chunk] = []
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        kind, end = data[position + 4 : position + 8], position + 8 + size
        if end + 4 > len(data):
            break
        if kind[:1].isupper() and zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise FrameProblem("unreadable", path, f"the checksum of its chunk {kind!r} is wrong")
        chunks.append(_Chunk(kind, data[position + 8 : end]))
        if kind == b"IEND" and chunks[0].kind == b"IHDR" and len(chunks[0].payload) == 13:
            return chunks
        position = end + 4
    raise FrameProblem("unreadable", path, f"a PNG cut short at {len(data)} bytes")


def _as_grey(chunks: list[_Chunk], data: bytes) -> bytes:
    """Return a palette PNG as a grey one whose values are the indices: both store pixel data in the same way."""
    header = chunks[0].payload
    if header[9] != PALETTE:
        return data
    kept = [_Chunk(b"IHDR", header[:9] + bytes([GREY]) + header[10:])]
    kept += [chunk for chunk in chunks if chunk.kind in (b"IDAT", b"IEND")]
    return PNG_SIGNATURE + b"".join(map(_chunk_bytes, kept))


def _chunk_bytes(chunk: _Chunk) -> bytes:
    body = chunk.kind + chunk.payload
    return len(chunk.payload).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


def _one_channel(pixels: npt.NDArray[np.generic], path: Path) -> npt.NDArray[np.generic]:
    if pixels.ndim == 2:
        return pixels
    colors = pixels[:, :, : 3 if pixels.shape[2] >= 3 else 1]
    if bool((colors != colors[:, :, :1]).any()):
        raise FrameProblem("unknown label values", path, "a colour image; expected one channel of label values")
    return colors[:, :, 0]
