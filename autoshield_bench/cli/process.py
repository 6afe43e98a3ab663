"""Settings of the process that computes: how it keeps memory and how its threads wait for each other.

Only the command line makes them, before torch is loaded; a library has no business changing its host's process.
"""

from __future__ import annotations

import ctypes
import os
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h
_LARGEST = 2**31 - 1
_STEP = 64 * 2**20
_SPINS = "1000"


def prepare_process() -> None:
    """Prepare this process for long tensor work. Changes no result; the environment's own settings go first."""
    _wait_without_spinning()
    _keep_freed_memory()


def _wait_without_spinning() -> None:
    # A thread that waits for another spins by default, and takes the core from whatever the other waits for as soon as
    # the machine has anything else to do: a training step then takes several times as long.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def _keep_freed_memory() -> None:
    # By default glibc maps each large tensor anew and unmaps it afterwards, so a third and more of an attack's time
    # goes into page faults. The price: memory once used is not given back before the program ends.
    if platform.system() != "Linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc
    for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, _STEP)):
        mallopt(option, value)
