"""Settings of the process that computes: how it keeps memory and how its threads wait for each other.

Only the command line and workers make them, before torch is loaded; a library does not change its host's process.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import platform

from autoshield_bench.engine.options import RunOptions
from autoshield_bench.numeric import Device

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h
_LARGEST = 2**31 - 1
_STEP = 64 * 2**20
_SPINS = "5000"
"""Beside nothing else a step takes 7 % less than with 1,000; beside a busy process 10 % more, and half of what it takes
with the default."""


def prepare_process() -> None:
    """Prepare this process for long tensor work. Changes no result; the environment's own settings go first."""
    _wait_without_spinning()
    _keep_freed_memory()


def for_workers(options: RunOptions, jobs: int | str, device: Device) -> RunOptions:
    """Return the options for so many worker processes, or ``auto``, whose threads do not fight for the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Training takes two threads (see engine.stages); an accelerator is one, whatever the cores.
    number = max(1, cores // 2) if jobs == "auto" and device == "cpu" else 1 if jobs == "auto" else int(jobs)
    threads = options.threads
    if threads is None and number > 1:
        threads = max(1, cores // number)
    return dataclasses.replace(options, jobs=number, threads=threads)


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
