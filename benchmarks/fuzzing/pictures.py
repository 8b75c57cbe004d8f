"""Encoded pictures: valid ones of every format that OpenCV writes, damaged ones, and headers that promise too much."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import cv2
import numpy as np

from fuzzing.odd_values import damaged, odd_integer

SIZES = (0, 1, 2, 16, 65_535, 65_536, 30_000, 32_767, 100_000, 2**20, 2**31 - 1)


def valid_pictures() -> dict[str, bytes]:
    """Return name -> file of small pictures: colour, grey, 16 bit, with alpha, progressive, of several formats."""
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)
    deep = rng.integers(0, 65536, (9, 7), dtype=np.uint16)
    alpha = rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    encodings: dict[str, tuple[str, Any, list[int]]] = {
        "jpeg": (".jpg", colour, []),
        "jpeg grey": (".jpg", colour[:, :, 0], []),
        "jpeg progressive": (".jpg", colour, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2]),
        "png": (".png", colour, []),
        "mono16; png": (".png", deep, []),
        "png alpha": (".png", alpha, []),
        "webp": (".webp", colour, [cv2.IMWRITE_WEBP_QUALITY, 80]),
        "webp lossless": (".webp", colour, [cv2.IMWRITE_WEBP_QUALITY, 101]),
        "bmp": (".bmp", colour, []),
        "tiff": (".tiff", colour, []),
        "tiff float": (".tiff", colour.astype(np.float32), []),
        "ppm": (".ppm", colour, []),
        "hdr": (".hdr", colour.astype(np.float32), []),
        "ras": (".ras", colour, []),
    }
    found = {}
    for name, (suffix, pixels, options) in encodings.items():
        try:
            done, data = cv2.imencode(suffix, pixels, options)
        except cv2.error:  # this build lacks the format
            continue
        if done:
            found[name] = data.tobytes()
    return found


def hostile_picture(rng: Random, pictures: dict[str, bytes]) -> tuple[str, bytes]:
    """Return the name and bytes of a picture: valid, damaged anywhere or in its header, or of a false size."""
    name = rng.choice(tuple(pictures))
    data, kind = pictures[name], rng.random()
    if kind < 0.1:
        return name, data
    if kind < 0.5:
        return name, damaged(rng, data)
    if kind < 0.75:
        return name, damaged(rng, data[:64], 3) + data[64:]
    if kind < 0.8:
        return name, rng.randbytes(rng.choice((0, 1, 4, 12, 100)))
    return name, rng.choice(_FALSE_SIZES)(rng, pictures)


def _png(rng: Random, pictures: dict[str, bytes]) -> bytes:
    """A PNG of another size, depth or colour type whose checksums are right."""
    data = bytearray(pictures["png"])
    struct.pack_into(">II", data, 16, rng.choice(SIZES), rng.choice(SIZES))
    if rng.random() < 0.3:
        data[24:29] = bytes(rng.choice((0, 1, 2, 3, 4, 6, 8, 16)) for _ in range(5))
    struct.pack_into(">I", data, 29, zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def _jpeg(rng: Random, pictures: dict[str, bytes]) -> bytes:
    """A JPEG whose frame header states another size or number of components."""
    data = bytearray(pictures[rng.choice(("jpeg", "jpeg grey", "jpeg progressive"))])
    frame = next(place for place in range(len(data)) if data[place] == 0xFF and data[place + 1] in (0xC0, 0xC2))
    struct.pack_into(">HH", data, frame + 5, rng.choice(SIZES) % 65_536, rng.choice(SIZES) % 65_536)
    if rng.random() < 0.2:
        data[frame + 9] = rng.randrange(256)
    return bytes(data)


def _bmp(rng: Random, pictures: dict[str, bytes]) -> bytes:
    data = bytearray(pictures["bmp"])
    struct.pack_into("<ii", data, 18, rng.choice(SIZES) * rng.choice((1, -1)), rng.choice(SIZES) * rng.choice((1, -1)))
    return bytes(data)


def _ppm(rng: Random, pictures: dict[str, bytes]) -> bytes:
    kind = rng.choice(("P1", "P2", "P3", "P4", "P5", "P6"))
    most = rng.choice((0, 1, 255, 65_535, odd_integer(rng)))
    return f"{kind} {rng.choice(SIZES)} {rng.choice(SIZES)} {most}\n".encode() + rng.randbytes(40)


def _pam(rng: Random, pictures: dict[str, bytes]) -> bytes:
    size = f"WIDTH {rng.choice(SIZES)}\nHEIGHT {rng.choice(SIZES)}\nDEPTH {rng.choice((0, 1, 3, 4, 100_000))}"
    return f"P7\n{size}\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n".encode() + rng.randbytes(40)


def _pfm(rng: Random, pictures: dict[str, bytes]) -> bytes:
    return f"PF\n{rng.choice(SIZES)} {rng.choice(SIZES)}\n-1.0\n".encode() + rng.randbytes(48)


def _hdr(rng: Random, pictures: dict[str, bytes]) -> bytes:
    size = f"-Y {rng.choice(SIZES)} +X {rng.choice(SIZES)}"
    return f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n{size}\n".encode() + rng.randbytes(40)


def _webp(rng: Random, pictures: dict[str, bytes]) -> bytes:
    """An extended WebP whose canvas is large, with the picture's own chunk behind it."""
    canvas = (rng.choice(SIZES) % 2**24).to_bytes(3, "little") + (rng.choice(SIZES) % 2**24).to_bytes(3, "little")
    chunks = b"VP8X" + struct.pack("<I", 10) + bytes([rng.choice((0, 2, 16)), 0, 0, 0]) + canvas
    chunks += pictures["webp lossless"][12:] if "webp lossless" in pictures else b""
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def _tiff(rng: Random, pictures: dict[str, bytes]) -> bytes:
    """A TIFF with one of the values in its directory replaced."""
    data = bytearray(pictures["tiff"])
    (directory,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, directory)
    for _ in range(rng.choice((1, 2, 3))):
        struct.pack_into("<I", data, directory + 2 + 12 * rng.randrange(entries) + 8, rng.choice(SIZES))
    return bytes(data)


def _gif(rng: Random, pictures: dict[str, bytes]) -> bytes:
    size = struct.pack("<HH", rng.choice(SIZES) % 65_536, rng.choice(SIZES) % 65_536)
    return b"GIF89a" + size + b"\xf0\x00\x00" + bytes(6) + b"," + bytes(4) + size + b"\x00\x02\x02L\x01\x00;"


def _sun(rng: Random, pictures: dict[str, bytes]) -> bytes:
    size = (rng.choice(SIZES), rng.choice(SIZES))
    return struct.pack(">8I", 0x59A66A95, *size, rng.choice((1, 8, 24, 32)), 0, rng.choice((0, 1, 2)), 0, 0) + bytes(40)


_FALSE_SIZES: tuple[Callable[[Random, dict[str, bytes]], bytes], ...] = (
    _png,
    _jpeg,
    _bmp,
    _ppm,
    _pam,
    _pfm,
    _hdr,
    _webp,
    _tiff,
    _gif,
    _sun,
)
