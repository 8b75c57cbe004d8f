"""What the processor can do that decides how int8 bundles are computed."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from pathlib import Path

from anomseg_ros.core.bundle import Contract

_CPUINFO = Path("/proc/cpuinfo")
_VNNI = {"avx512_vnni", "avx_vnni"}
_EXACT_BITS = 7
"""Bits of weights of which two products with an unsigned byte fit into 16 bits: 2 x 255 x 64 = 32640."""


def has_exact_int8_for(contract: Contract) -> bool:
    """Return whether this processor's int8 instructions compute a bundle's layers exactly.

    True for bundles without int8 layers, and for those with weights of 7 bits (`anomseg quantize --weight-bits`).
    """
    if contract.precision != "int8":
        return True
    settings = contract.compression.get("settings")
    bits = settings.get("weight_bits") if isinstance(settings, Mapping) else None
    return bits == _EXACT_BITS or has_exact_int8()


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
