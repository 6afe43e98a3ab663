"""What a plugin may not change while it has its turn: networks, inputs, and the state of the process.

Checked around every stage, not around every step of an attack, which would cost it its speed. Three answers:

- inputs are handed over as copies; a plugin that writes into them fails the cell;
- weights, buffers, training flags, hooks and ``requires_grad`` of the networks under test are put back as they were,
  and the cell's record says what was changed, which costs the rank (check ``live``);
- what the process shares (``shared_state``: default dtype, grad mode, threads, working directory and so on) is put back
  and said in a warning. Global random state belongs to the host, which seeds and restores it (``seeding.global_seed``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autoshield_bench.engine.pipeline import FittedStage
from autoshield_bench.engine.shared_state import SharedState
from autoshield_bench.errors import CellError

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


_TORCHS = {"_parameters", "_buffers", "_modules", *_HOOKS}


def held_modules(stage: FittedStage) -> list[nn.Module]:
    """Return every network that a stage holds in its fields, whether it lists it in ``modules`` or not."""
    return held_modules_of(stage.defense)


def held_modules_of(defense: object) -> list[nn.Module]:
    """Return the networks among an object's fields, in lists, tuples, dictionaries and plain objects too."""
    found: dict[int, nn.Module] = {}
    waiting: list[Any] = [defense]
    met: set[int] = set()
    while waiting and len(met) < 10_000:
        value = waiting.pop()
        if id(value) in met:
            continue
        met.add(id(value))
        if isinstance(value, nn.Module):
            found[id(value)] = value
            # What a network keeps in a plain list or dictionary, torch does not know of.
            own = [each for module in value.modules() for name, each in vars(module).items() if name not in _TORCHS]
            waiting += [each for each in own if isinstance(each, list | tuple | set | dict)]
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value
        elif hasattr(value, "__dict__") and not isinstance(value, type | Tensor):
            waiting += vars(value).values()
    modules = getattr(defense, "modules", None)
    if callable(modules):
        found |= {id(module): module for module in modules()}
    return list(found.values())


def networks_of(classifier: nn.Module, stages: Sequence[FittedStage]) -> dict[str, nn.Module]:
    """Return the networks that take part, by name."""
    found = {"the classifier": classifier}
    for stage in stages:
        for number, module in enumerate(held_modules(stage)):
            found[stage.component if number == 0 else f"{stage.component} ({number})"] = module
    return found


@contextlib.contextmanager
def kept(networks: Mapping[str, nn.Module], report: Callable[[str], None]) -> Iterator[None]:
    """Put networks back as they were; ``report`` hears of each thing that was changed, such as ``weight of ...``."""
    before = {name: _Picture(network) for name, network in networks.items()}
    try:
        yield
    finally:
        for name, picture in before.items():
            for change in picture.restore():
                report(f"{change} of {name}")


_HELD = {"_parameters": "parameters", "_buffers": "buffers", "_modules": "layers"}
"""What a module holds by name, in words."""


class _Picture:
    """A network as it was: what its modules hold, and the values of it."""

    def __init__(self, network: nn.Module) -> None:
        self._modules = dict(network.named_modules())
        self._kinds = {name: type(module) for name, module in self._modules.items()}
        self._forwards = {name: vars(module).get("forward") for name, module in self._modules.items()}
        self._held = {
            (name, kind): dict(vars(module)[kind]) for name, module in self._modules.items() for kind in _HELD
        }
        self._flags = {name: module.training for name, module in self._modules.items()}
        self._hooks = {
            (name, kind): dict(getattr(module, kind, {})) for name, module in self._modules.items() for kind in _HOOKS
        }
        self._tensors = dict(_tensors(network))
        self._values = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}
        self._gradients = {name: tensor.requires_grad for name, tensor in self._tensors.items()}

    def restore(self) -> Iterator[str]:
        """Put everything back, and yield what was changed."""
        yield from self._restore_structure()
        for name, flag in self._flags.items():
            module = self._modules[name]
            if module.training != flag:
                module.training = flag
                yield f"training flag of {name or 'the network'}"
        for (name, kind), hooks in self._hooks.items():
            now = getattr(self._modules[name], kind, {})
            if list(now) != list(hooks):
                now.clear()
                now.update(hooks)
                yield f"hooks of {name or 'the network'}"
        for name, tensor in self._tensors.items():
            if tensor.requires_grad != self._gradients[name]:
                tensor.requires_grad_(self._gradients[name])
                yield f"requires_grad of {name}"
            if not _same(tensor, self._values[name]):
                if tensor.shape == self._values[name].shape and tensor.dtype == self._values[name].dtype:
                    with torch.no_grad():
                        tensor.copy_(self._values[name])
                else:
                    tensor.data = self._values[name].clone()
                yield name

    def _restore_structure(self) -> Iterator[str]:
        for name, module in self._modules.items():
            where = name or "the network"
            if type(module) is not self._kinds[name]:
                module.__class__ = self._kinds[name]  # as parametrizations replace it
                yield f"class of {where}"
            if vars(module).get("forward") is not self._forwards[name]:
                module.__dict__.pop("forward", None)
                if self._forwards[name] is not None:
                    module.__dict__["forward"] = self._forwards[name]
                yield f"forward of {where}"
        for (name, kind), before in self._held.items():
            now = vars(self._modules[name])[kind]
            if list(now) != list(before) or any(now[own] is not value for own, value in before.items()):
                now.clear()
                now.update(before)
                yield f"{_HELD[kind]} of {name or 'the network'}"


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


@contextlib.contextmanager
def fenced(who: str, report: Callable[[str], None]) -> Iterator[None]:
    """Put the state of the process back as it was; ``report`` hears in a sentence what ``who`` had changed."""
    before = SharedState()
    try:
        yield
    finally:
        changed = before.restore()
        if changed:
            report(f"{who} changed {', '.join(changed)}; put back")


def check_untouched(handed: Mapping[str, tuple[Tensor, Tensor]], who: str) -> None:
    """Raise CellError where one of the tensors handed over, by name, differs from the original beside it."""
    for name, (copy, original) in handed.items():
        if copy.shape != original.shape or not torch.equal(copy, original):
            raise CellError(f"{who} wrote into the {name} that it was handed; it must work on a copy")
