"""Odd values and damaged bytes, made of a generator: what structured and mutated inputs of every target share."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

INTEGERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 1023, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-320, 1e-30, 1e30, 1.7e308, -1.7e308, math.inf, -math.inf, math.nan)
TEXTS = (
    "",
    " ",
    "\n",
    "a/b",
    "../outside",
    "/tmp/outside",
    "name\x00end",
    "Straße",
    "日本",
    "\U0001f697",
    "x" * 5000,
    "{0}",
    "%s%n",
    "null",
    "-1",
    "nan",
    "1e999",
)


def odd_integer(rng: Random, most: int = 2**32 - 1) -> int:
    """Return an integer from 0 to `most`, often at an edge of a type."""
    if rng.random() < 0.5:
        return min(rng.choice(INTEGERS), most)
    return rng.randrange(min(most, 4096) + 1)


def odd_float(rng: Random) -> float:
    """Return any double: edges, infinities, NaN, plain ones."""
    return rng.choice(FLOATS) if rng.random() < 0.6 else rng.uniform(-2000.0, 2000.0)


def odd_text(rng: Random) -> str:
    """Return a short text, often one that a careless reader trips over."""
    if rng.random() < 0.8:
        return rng.choice(TEXTS)
    return "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(0xD7FF)))) for _ in range(rng.randrange(12)))


def odd_plain(rng: Random, depth: int = 0) -> Any:
    """Return a value as YAML and JSON have them, of any type."""
    kind = rng.randrange(9 if depth < 3 else 7)
    if kind == 7:
        return [odd_plain(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 8:
        return {odd_text(rng): odd_plain(rng, depth + 1) for _ in range(rng.randrange(4))}
    makers: Sequence[Callable[[], Any]] = (
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: odd_integer(rng) * rng.choice((1, -1)),
        lambda: 10 ** rng.randrange(25),
        lambda: odd_float(rng),
        lambda: odd_text(rng),
        lambda: [],
    )
    return makers[kind]()


def changed_plain(rng: Random, value: Any) -> Any:
    """Return plain data with one or a few of its parts replaced, removed, renamed or doubled."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = _changed_once(rng, value)
    return value


def _changed_once(rng: Random, value: Any) -> Any:
    """Go down to a random part and change that; the containers on the way are copied."""
    inner = isinstance(value, (dict, list)) and len(value) > 0 and rng.random() < 0.85
    if not inner:
        return odd_plain(rng)
    if isinstance(value, list):
        copy, place = list(value), rng.randrange(len(value))
        action = rng.random()
        if action < 0.1:
            del copy[place]
        elif action < 0.2:
            copy.insert(place, copy[place])
        else:
            copy[place] = _changed_once(rng, copy[place])
        return copy
    key = rng.choice(list(value))
    mapping = dict(value)
    action = rng.random()
    if action < 0.1:
        del mapping[key]
    elif action < 0.2:
        mapping[rng.choice((odd_text(rng), odd_integer(rng), None, True))] = mapping.pop(key)
    else:
        mapping[key] = _changed_once(rng, mapping[key])
    return mapping


def damaged(rng: Random, data: bytes, most: int = 8) -> bytes:
    """Return bytes with up to `most` changes: bits, bytes and numbers overwritten, stretches cut, moved or doubled."""
    content = bytearray(data)
    for _ in range(rng.randrange(1, most + 1)):
        if not content:
            break
        rng.choice(_DAMAGES)(rng, content)
    return bytes(content)


def _flip_bit(rng: Random, content: bytearray) -> None:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _set_byte(rng: Random, content: bytearray) -> None:
    content[rng.randrange(len(content))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _set_number(rng: Random, content: bytearray) -> None:
    code = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
    size = struct.calcsize(code)
    if len(content) >= size:
        place = rng.randrange(len(content) - size + 1)
        struct.pack_into(code, content, place, rng.choice((*INTEGERS, 2**63, 2**64 - 1)) % 256**size)


def _cut_end(rng: Random, content: bytearray) -> None:
    del content[rng.randrange(len(content)) :]


def _cut_out(rng: Random, content: bytearray) -> None:
    place = rng.randrange(len(content))
    del content[place : place + rng.choice((1, 2, 4, 16, 256))]


def _double(rng: Random, content: bytearray) -> None:
    place = rng.randrange(len(content))
    content[place:place] = content[place : place + rng.choice((1, 2, 4, 16, 256))]


def _add_noise(rng: Random, content: bytearray) -> None:
    place = rng.randrange(len(content) + 1)
    content[place:place] = rng.randbytes(rng.choice((1, 4, 32)))


_DAMAGES = (
    _flip_bit,
    _flip_bit,
    _set_byte,
    _set_byte,
    _set_number,
    _set_number,
    _cut_end,
    _cut_out,
    _double,
    _add_noise,
)
