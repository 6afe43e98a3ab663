"""Keeps freed memory in the process, for a program whose every step allocates the same large tensors again.

By default glibc maps each large tensor anew and unmaps it afterwards, so a third and more of an attack's time goes into
page faults. The price is that memory once used is not given back before the program ends. Only the command line does
this; a library has no business changing its host's allocator.
"""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h
_LARGEST = 2**31 - 1
_STEP = 64 * 2**20


def keep_freed_memory() -> bool:
    """Tell glibc to serve large blocks from a heap that it does not shrink; return whether it understood."""
    if platform.system() != "Linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wishes = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, _STEP))
    return all(mallopt(option, value) == 1 for option, value in wishes)
