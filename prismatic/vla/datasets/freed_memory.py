"""Memory that a process keeps once it was freed."""

from __future__ import annotations

import ctypes
import sys

# Names and numbers of glibc's malloc.h; sizes in bytes.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK, _KEPT = 32 * 2**20, 64 * 2**20  # glibc allows no larger block


def keep_freed_memory() -> None:
    """Makes glibc's malloc keep up to 64 MB of freed memory, in this process and those forked later; does nothing with other systems.

    Else the memory of a batch may go back to the system and come anew, page by page, for the next batch: 0.3 to 0.6 ms a sample.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
