"""What the processor can do that decides how int8 bundles are computed."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_VNNI = {"avx512_vnni", "avx_vnni"}


@functools.cache
def has_exact_int8() -> bool:
    """Return whether products of unsigned and signed bytes are added exactly.

    x86 processors without VNNI (2019 to 2021 at Intel, 2022 at AMD) add pairs of them in 16 bits (VPMADDUBSW), which
    overflows: 2 x 255 x 127 = 64770 becomes 32767. Other processors have no such instruction. False where unknown.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not _VNNI.isdisjoint(flags)
