"""What tests attack, and how: requests as the host makes them, the library called without the adapter, counts."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import torch
from autoshield_bench.contracts import AttackRequest, AttackSpec, Norm, ThreatModel
from autoshield_bench.engine.access import target_for, whole_range
from autoshield_bench.engine.pipeline import PassCounter, Pipeline
from autoshield_bench.registry import Registry
from autoshield_bench.seeding import ImageRandom, global_seed
from torch import Tensor, nn

from aubench_foolbox.quiet import quiet_import

with quiet_import():
    import foolbox

registry = functools.cache(Registry.discover)


@dataclass(frozen=True)
class Case:
    """A classifier, images and labels."""

    network: nn.Module
    images: Tensor
    labels: Tensor

    def part(self, rows: slice | list[int]) -> Case:
        return Case(self.network, self.images[rows], self.labels[rows])

    def wrong(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(images).argmax(1) != self.labels

    def request(
        self,
        name: str,
        norm: Norm,
        eps: float | None = None,
        *,
        targets: Tensor | None = None,
        queries: int | None = None,
    ) -> tuple[AttackRequest, PassCounter]:
        """Return a request as the host makes it, and the count of what it will cost."""
        spec: AttackSpec = registry().find("attack", name).spec
        counter, rng = PassCounter(), ImageRandom(0, range(len(self.images)))
        threat = whole_range(norm, self.images.shape[1:]) if eps is None else ThreatModel(norm=norm, eps=eps)
        shared: dict[str, Any] = {"images": self.images, "labels": self.labels, "threat": threat, "targets": targets}
        target = target_for(
            spec,
            "white-box" if spec.needs == "gradients" else "black-box",
            Pipeline(self.network, (), counter),
            rng.child("target"),
            classes=self.network(self.images[:1]).shape[1],
            eot=1,
            queries=queries,
            **shared,
        )
        return AttackRequest(target=target, rng=rng.child("attack"), queries=queries, **shared), counter

    def model(self) -> foolbox.PyTorchModel:
        """Return the classifier as a user of foolbox would hand it in."""
        return foolbox.PyTorchModel(self.network, bounds=(0, 1), device="cpu")


def attack(name: str, **params: Any) -> Any:
    return registry().make(registry().find("attack", name), params)


def run(name: str, request: AttackRequest, **params: Any) -> Tensor:
    """Run the adapter as the host does: global state is seeded around it."""
    with global_seed("test"):
        return attack(name, **params).run(request)


class Counting(nn.Module):
    """Counts images forward and backward, for the library called without the adapter."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.forwards, self.backwards = network, 0, 0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        self.forwards += len(x)
        if logits.requires_grad:
            logits.register_hook(functools.partial(self._count, len(x)))
        return logits

    def _count(self, images: int, _gradient: Tensor) -> None:
        self.backwards += images


class TwoClasses(nn.Module):
    """A linear classifier: the distance to its boundary is known in closed form."""

    def __init__(self, values: int = 64) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(2, values, generator=source), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.weight.T

    def shortest(self, x: Tensor, norm: Norm) -> Tensor:
        gap, logits = self.weight[1] - self.weight[0], self(x)
        dual = gap.abs().sum() if norm == "linf" else gap.norm()
        return (logits[:, 1] - logits[:, 0]).abs() / dual


def linear_case() -> Case:
    """Gray images, so that no bound of [0, 1] is in the way."""
    network = TwoClasses()
    images = 0.4 + 0.2 * torch.rand((12, 1, 8, 8), generator=torch.Generator().manual_seed(4))
    return Case(network, images, network(images).argmax(1))


def replaced(request: AttackRequest, **changes: Any) -> AttackRequest:
    return dataclasses.replace(request, **changes)
