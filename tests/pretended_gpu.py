"""A device of its own for tests without a GPU: tensors on it compute on the processor, and mix with none there.

Tensors wrap one on the processor and say that they lie on ``meta``, the one device that torch lets anybody speak for.
What CUDA refuses is refused: arithmetic with tensors of the processor (but for single numbers, and indices), generators
of the processor, NumPy arrays of its memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

NAME = "meta"


class Away(Tensor):
    """A tensor on the device."""

    own: Tensor
    """The same on the processor."""

    @staticmethod
    def __new__(cls, own: Tensor) -> Away:
        about = {"strides": own.stride(), "storage_offset": own.storage_offset(), "dtype": own.dtype}
        tensor: Away = Tensor._make_wrapper_subclass(cls, own.shape, device=torch.device(NAME), **about)
        tensor.own = own
        return tensor

    def __repr__(self) -> str:
        return f"Away({self.own})"

    def tolist(self) -> Any:
        return self.own.tolist()

    def numpy(self, *_args: object, **_options: object) -> Any:
        raise TypeError("a tensor on the device has no NumPy array; bring it to the processor first")

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(operation, args, kwargs or {})


class _Everywhere(TorchDispatchMode):
    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(operation, args, kwargs or {})


def _compute(operation: Any, args: Any, kwargs: Any) -> Any:
    """Do an operation on the processor, and answer where CUDA would."""
    name = operation.overloadpacket.__name__
    values = list(tree_iter((args, kwargs)))
    away = [value for value in values if isinstance(value, Away)]
    wish = kwargs.get("device")
    goes_away = bool(away) if wish is None else torch.device(wish).type == NAME
    if name == "copy_":
        goes_away = isinstance(args[0], Away)
    if away and name not in ("copy_", "_to_copy"):
        for value in values:
            if isinstance(value, Tensor) and not isinstance(value, Away) and value.dim():
                index = "index" in name and value.dtype in (torch.int64, torch.bool)
                if not index:
                    raise RuntimeError(f"{operation}: expected all tensors to be on the same device")
    if goes_away and any(isinstance(value, torch.Generator) for value in values):
        raise RuntimeError(f"{operation}: the generator is of another device")
    args, kwargs = tree_map(lambda value: value.own if isinstance(value, Away) else value, (args, kwargs))
    if wish is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    known = {id(value.own): value for value in away}

    def answered(value: Any) -> Any:
        if not isinstance(value, Tensor) or not goes_away:
            return value
        return known[id(value)] if id(value) in known else Away(value)

    return tree_map(answered, operation(*args, **kwargs))


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Let ``tensor.to(NAME)`` and ``module.to(NAME)`` go to the device."""
    # Else a module keeps its parameters and swaps what they hold, which a wrapper does not survive.
    overwriting = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Everywhere():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwriting)
