"""Keep the memory that a training step frees, instead of giving it back to the system after every layer."""

from __future__ import annotations

import ctypes
import platform

# malloc.h of glibc
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEPT_BYTES = 2**31 - 1
_GROWTH_BYTES = 256 * 2**20


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep freed blocks; return whether it was told (False with another C library).

    By default each tensor of more than some MiB is a mapping of its own, made, zeroed page by page and unmapped again
    in every layer: half of the processor's time in training went there (ERFNet, 288x384, batch 4: 0.29 to 0.18 s a
    frame on one core).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEPT_BYTES), (_TOP_PAD, _GROWTH_BYTES))
    return all(library.mallopt(name, value) == 1 for name, value in settings)
