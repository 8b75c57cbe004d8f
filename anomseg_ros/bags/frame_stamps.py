"""The stamps of frames at a fixed rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from anomseg_ros.errors import BagError

_STAMPS_END_S = 2**31
"""builtin_interfaces/msg/Time stores seconds as int32."""


def frame_stamps_ns(rate_hz: float, start_time_s: float | None) -> Callable[[int], int]:
    """Return a function that maps a frame number to its stamp in nanoseconds.

    rate_hz: frames per second, above 0. start_time_s: stamp of frame 0 in seconds since 1970; None: now. Both this
    function and the returned one raise BagError for values outside the range of stamps.
    """
    if not (math.isfinite(rate_hz) and rate_hz > 0):
        raise BagError(f"got a rate of {rate_hz!r} Hz; expected a number above 0")
    if start_time_s is not None and not 0 <= start_time_s < _STAMPS_END_S:
        raise BagError(
            f"got a start time of {start_time_s!r} s; stamps range from 0 to {_STAMPS_END_S - 1} s after 1970"
        )
    start_ns = time.time_ns() if start_time_s is None else round(start_time_s * 1e9)

    def stamp_ns(index: int) -> int:
        elapsed_s = index / rate_hz
        if start_ns / 1e9 + elapsed_s >= _STAMPS_END_S:
            raise BagError(
                f"at {rate_hz!r} Hz frame {index} is {elapsed_s:g} s after the first; stamps end {_STAMPS_END_S - 1} s "
                "after 1970: give a higher rate or an earlier start time"
            )
        return start_ns + round(index * 1e9 / rate_hz)

    return stamp_ns
