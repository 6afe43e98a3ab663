"""What every plugin of a process shares: settings of torch and of the process, read before its turn and put back."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch


class SharedState:
    """The state of the process that plugins share."""

    def __init__(self) -> None:
        self._before = [read() for _name, read, _write in _SETTINGS]
        self._folder = Path.cwd()
        self._environment = dict(os.environ)

    def restore(self) -> list[str]:
        """Put everything back and return what was changed, in words."""
        changed = []
        for (name, read, write), before in zip(_SETTINGS, self._before, strict=True):
            if read() != before:
                write(before)
                changed.append(name)
        if not self._folder.is_dir() or _folder() != self._folder:
            with contextlib.suppress(OSError):
                os.chdir(self._folder)
            changed.append("the working directory")
        if dict(os.environ) != self._environment:
            names = sorted(
                name
                for name in {*os.environ, *self._environment}
                if os.environ.get(name) != self._environment.get(name)
            )
            os.environ.clear()
            os.environ.update(self._environment)
            changed.append(f"the environment ({', '.join(names[:3])})")
        return changed


_GUARDS: list[torch.inference_mode] = []
"""Kept for as long as the process lives: a guard that is forgotten gives back what was there before it."""


def _set_inference(on: bool) -> None:
    # There is no way to end a guard that somebody else holds; one within it has the last word.
    _GUARDS.append(torch.inference_mode(on))
    _GUARDS[-1].__enter__()


def _set_device(device: torch.device) -> None:
    torch.set_default_device(None if device == torch.device("cpu") else device)


def _determinism() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_determinism(own: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(own[0], warn_only=own[1])


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _hooks() -> list[dict[int, Any]]:
    return [dict(own) for own in _global_hooks()]


def _set_hooks(before: list[dict[int, Any]]) -> None:
    for own, hooks in zip(_global_hooks(), before, strict=True):
        own.clear()
        own.update(hooks)


_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGUSR1") if hasattr(signal, name)]


def _handlers() -> list[Any]:
    return [signal.getsignal(number) for number in _SIGNALS]


def _set_handlers(before: list[Any]) -> None:
    with contextlib.suppress(ValueError, TypeError):  # not the main thread's, or set by what is no Python
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)


def _timer() -> bool:
    return hasattr(signal, "getitimer") and signal.getitimer(signal.ITIMER_REAL)[0] > 0


def _set_timer(_before: bool) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)


_SETTINGS: tuple[tuple[str, Callable[[], Any], Callable[[Any], object]], ...] = (
    ("inference mode", torch.is_inference_mode_enabled, _set_inference),
    ("the grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
    *(
        (f"autocast on {kind}", partial(torch.is_autocast_enabled, kind), partial(torch.set_autocast_enabled, kind))
        for kind in ("cpu", "cuda")
    ),
    ("the default device", torch.get_default_device, _set_device),
    ("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
    ("the precision of matrix products", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    ("the use of oneDNN", lambda: torch.backends.mkldnn.enabled, partial(setattr, torch.backends.mkldnn, "enabled")),
    ("the number of threads", torch.get_num_threads, torch.set_num_threads),
    ("deterministic algorithms", _determinism, _set_determinism),
    ("anomaly mode", torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    ("hooks of all modules", _hooks, _set_hooks),
    ("NumPy's treatment of errors", np.geterr, lambda before: np.seterr(**before)),
    ("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    ("the umask", _umask, os.umask),
    ("a timer", _timer, _set_timer),
    ("signal handlers", _handlers, _set_handlers),
)
"""What is read before a plugin's code runs and put back after it: a name, and how."""


def _global_hooks() -> list[dict[int, Any]]:
    from torch.nn.modules import module

    names = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    return [getattr(module, f"_global_{name}") for name in names]


def _folder() -> Path | None:
    try:
        return Path.cwd()
    except OSError:
        return None
