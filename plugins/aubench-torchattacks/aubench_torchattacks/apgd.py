"""APGD and its targeted variant, as torchattacks has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoshield_bench.contracts import Attack, AttackRequest

from aubench_torchattacks.library import NORMS, called, drawn_seed, require_classes, verified
from aubench_torchattacks.parameters import at_least, between, one_of
from aubench_torchattacks.standing import Standing, of_apgd

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class _Adaptive(Attack):
    """What both variants share: steps that shrink by themselves, run on the images that still stand.

    Source: Croce and Hein 2020, arXiv:2003.01690.
    """

    steps: int = 100
    """Gradient steps per restart, as in the paper. With the library's 10 it falls behind PGD of 40 steps."""

    restarts: int = 1
    """Runs from different random starts, each on the images that still stand."""

    eot_iterations: int = 1
    """Gradients per step, averaged, for randomised defenses."""

    rho: float = 0.75
    """Share of steps that must raise the loss, lest the step size be halved."""

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, restarts=self.restarts, eot_iterations=self.eot_iterations)
        between(0.0, 1.0, rho=self.rho)

    def run(self, request: AttackRequest) -> Tensor:
        """Return misclassified points where there are some, elsewhere the points of highest loss."""
        if not len(request.images):
            return request.images.clone()
        from autoshield_bench.target_module import TargetModule

        network, standing = TargetModule(request), Standing(request.images)
        attack = self._attack(network, request)
        standing.watch(attack, network, of_apgd)
        points = standing.instead_of_clean(called(attack, request))
        return verified(points, request, f"torchattacks.{attack.attack}")

    def _attack(self, network: nn.Module, request: AttackRequest) -> Any:
        raise NotImplementedError

    def _shared(self, request: AttackRequest) -> dict[str, Any]:
        return {
            "norm": NORMS[request.threat.norm],
            "eps": request.threat.eps,
            "steps": self.steps,
            "n_restarts": self.restarts,
            "seed": drawn_seed(),
            "eot_iter": self.eot_iterations,
            "rho": self.rho,
        }


@dataclass(frozen=True, kw_only=True)
class APGD(_Adaptive):
    """Auto-PGD on the cross-entropy or on the difference of logits ratio (DLR)."""

    loss: str = "ce"
    """``ce`` (cross-entropy) or ``dlr``, which does not vanish on confident images and needs three classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("ce", "dlr", loss=self.loss)

    def gradient_steps(self) -> int:
        """Return the gradient evaluations per image, at most."""
        return (self.steps + 1) * self.eot_iterations * self.restarts

    def _attack(self, network: nn.Module, request: AttackRequest) -> Any:
        import torchattacks

        if self.loss == "dlr":
            require_classes(request, 3, "the DLR loss of torchattacks.APGD")
        return torchattacks.APGD(network, **self._shared(request), loss=self.loss)


@dataclass(frozen=True, kw_only=True)
class APGDT(_Adaptive):
    """Auto-PGD on the targeted DLR loss, towards each wrong class in turn, the likeliest first."""

    def _attack(self, network: nn.Module, request: AttackRequest) -> Any:
        import torchattacks

        require_classes(request, 4, "the targeted DLR loss of torchattacks.APGDT")
        return torchattacks.APGDT(network, **self._shared(request), n_classes=request.target.classes)
