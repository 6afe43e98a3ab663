"""PGD and its relatives by steps of one length, as torchattacks has them: PGD, PGDL2, EOTPGD, MIFGSM, Jitter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoshield_bench.contracts import AttackRequest

from aubench_torchattacks.library import called, verified
from aubench_torchattacks.parameters import Stepped, at_least, positive

if TYPE_CHECKING:
    from torch import Tensor, nn

SMALLEST_NORM = 1e-30
"""Added to the length of a gradient before PGDL2 divides by it. The library's 1e-10 is no smaller than the gradients of
confident images, averaged over a batch: those would not move."""


@dataclass(frozen=True, kw_only=True)
class _StepsOfTheLibrary(Stepped):
    """What the attacks below share: they differ in the library's class and its arguments."""

    def run(self, request: AttackRequest) -> Tensor:
        """Return the last point."""
        if not len(request.images):
            return request.images.clone()
        from autoshield_bench.target_module import TargetModule

        attack = self._attack(TargetModule(request), request)
        return verified(called(attack, request), request, f"torchattacks.{attack.attack}")

    def _attack(self, network: nn.Module, request: AttackRequest) -> Any:
        raise NotImplementedError

    def _shared(self, eps: float) -> dict[str, Any]:
        return {"eps": eps, "alpha": self.length(eps), "steps": self.steps}


@dataclass(frozen=True, kw_only=True)
class PGD(_StepsOfTheLibrary):
    """Projected gradient descent on the cross-entropy; the last point is returned.

    Source: Madry et al. 2018, arXiv:1706.06083.
    """

    random_start: bool = True
    """Start at a random point of the ball; else at the image itself."""

    def _attack(self, network: nn.Module, request: AttackRequest) -> Any:
        import torchattacks

        arguments = {**self._shared(request.threat.eps), "random_start": self.random_start}
        if request.threat.norm == "linf":
            return torchattacks.PGD(network, **arguments)
        return torchattacks.PGDL2(network, **arguments, eps_for_division=SMALLEST_NORM)


@dataclass(frozen=True, kw_only=True)
class EOTPGD(_StepsOfTheLibrary):
    """PGD along the mean of several gradients, for randomised defenses.

    The target of a stochastic pipeline averages its logits over draws already (``eot`` of the suite); this one adds up
    the gradients of several such answers. Source: Zimmermann 2019, arXiv:1907.00895.
    """

    eot_iterations: int = 2
    """Gradients per step."""

    random_start: bool = True
    """Start at a random point of the ball; else at the image itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, eot_iterations=self.eot_iterations)

    def gradient_steps(self) -> int:
        """Return the gradient evaluations per image."""
        return self.steps * self.eot_iterations

    def _attack(self, network: nn.Module, request: AttackRequest) -> Any:
        import torchattacks

        return torchattacks.EOTPGD(
            network,
            **self._shared(request.threat.eps),
            eot_iter=self.eot_iterations,
            random_start=self.random_start,
        )


@dataclass(frozen=True, kw_only=True)
class MIFGSM(_StepsOfTheLibrary):
    """Steps along the sign of a running sum of gradients, each divided by its mean absolute value.

    Where a gradient is exactly zero the library divides by zero, and the image stands as it was.
    Source: Dong et al. 2018, arXiv:1710.06081.
    """

    decay: float = 1.0
    """Share of the sum that is carried into the next step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(decay=self.decay)

    def _attack(self, network: nn.Module, request: AttackRequest) -> Any:
        import torchattacks

        return torchattacks.MIFGSM(network, **self._shared(request.threat.eps), decay=self.decay)


@dataclass(frozen=True, kw_only=True)
class Jitter(_StepsOfTheLibrary):
    """Steps on a squared error of rescaled, noisy probabilities, so that more classes than one are aimed at.

    Source: Schwinn et al. 2021, arXiv:2105.10304.
    """

    scale: float = 10.0
    """Factor on the logits, which are divided by the largest of them first."""

    noise: float = 0.1
    """Standard deviation of the noise on the probabilities (the library's ``std``)."""

    random_start: bool = True
    """Start at a random point of the ball; else at the image itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(scale=self.scale)
        if self.noise:
            positive(noise=self.noise)

    def _attack(self, network: nn.Module, request: AttackRequest) -> Any:
        import torchattacks

        return torchattacks.Jitter(
            network,
            **self._shared(request.threat.eps),
            scale=self.scale,
            std=self.noise,
            random_start=self.random_start,
        )
