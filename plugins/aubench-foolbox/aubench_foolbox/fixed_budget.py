"""foolbox's gradient descents within a ball: FGSM, PGD and MI-FGSM. Each returns its last point, as foolbox does."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoshield_bench.contracts import Attack, AttackRequest, Norm
from autoshield_bench.errors import ParameterError

from aubench_foolbox.parameters import at_least, not_negative, positive
from aubench_foolbox.quiet import quiet

if TYPE_CHECKING:
    from torch import Tensor


class _FixedBudget(Attack):
    """Runs a foolbox attack with ``run(..., epsilon)``: nothing is asked beyond its gradient steps."""

    @abstractmethod
    def _made(self, norm: Norm) -> Any:
        """Return foolbox's attack."""

    def run(self, request: AttackRequest) -> Tensor:
        """Return foolbox's last point, its rounding projected away. Raises CellError if it lies outside the ball."""
        if not len(request.images):
            return request.images.clone()
        from aubench_foolbox import library, returned

        with quiet():
            points = self._made(request.threat.norm).run(
                library.model_of(request), request.images, library.goal_of(request), epsilon=request.threat.eps
            )
        return returned.in_ball(request, points)


@dataclass(frozen=True, kw_only=True)
class FastGradient(_FixedBudget):
    """One step of the size of the ball: LinfFastGradientAttack, or L2FastGradientAttack."""

    def _made(self, norm: Norm) -> Any:
        from aubench_foolbox.library import attacks

        return (attacks.LinfFastGradientAttack if norm == "linf" else attacks.L2FastGradientAttack)()

    def gradient_steps(self) -> int:
        """Return 1."""
        return 1


@dataclass(frozen=True, kw_only=True)
class _Iterative(_FixedBudget):
    """What descents of several steps share: how long a step is."""

    steps: int
    """Gradient steps."""

    step_size: float | None = None
    """Length of a step in the units of the images; not together with ``relative_step_size``."""

    relative_step_size: float | None = None
    """Length of a step in units of eps."""

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)
        positive(step_size=self.step_size, relative_step_size=self.relative_step_size)
        if self.step_size is not None and self.relative_step_size is not None:
            raise ParameterError("step_size", "give either step_size or relative_step_size, not both")

    def gradient_steps(self) -> int:
        """Return the gradient evaluations per image."""
        return self.steps

    def _lengths(self, default: float) -> dict[str, Any]:
        return {"rel_stepsize": self.relative_step_size or default, "abs_stepsize": self.step_size, "steps": self.steps}


@dataclass(frozen=True, kw_only=True)
class ProjectedGradientDescent(_Iterative):
    """Steps along the gradient, projected back: LinfProjectedGradientDescentAttack, or the L2 one.

    A step has 2.5 / steps of eps by default, as that of the built-in ``pgd``; foolbox's own defaults are 1/30 of eps at
    40 steps (L-infinity) and 0.025 at 50 (L2).
    """

    steps: int = 40
    """Gradient steps."""

    random_start: bool = True
    """Start at a random point of the ball; else at the image."""

    def _made(self, norm: Norm) -> Any:
        from aubench_foolbox.library import attacks

        kind = (
            attacks.LinfProjectedGradientDescentAttack if norm == "linf" else attacks.L2ProjectedGradientDescentAttack
        )
        return kind(**self._lengths(2.5 / self.steps), random_start=self.random_start)


@dataclass(frozen=True, kw_only=True)
class MomentumIterative(_Iterative):
    """Steps along an accumulated gradient: LinfMomentumIterativeFastGradientMethod, or the L2 one.

    foolbox accumulates gradients that it has normalised for the norm (signs, or vectors of length one), where equation
    6 of the paper divides them by their L1 length. A step has 2 / steps of eps by default: foolbox's 0.2 at its 10.
    """

    steps: int = 10
    """Gradient steps."""

    momentum: float = 1.0
    """Weight of what was accumulated before."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(momentum=self.momentum)

    def _made(self, norm: Norm) -> Any:
        from aubench_foolbox.library import attacks

        linf, l2 = attacks.LinfMomentumIterativeFastGradientMethod, attacks.L2MomentumIterativeFastGradientMethod
        kind = linf if norm == "linf" else l2
        return kind(**self._lengths(2 / self.steps), momentum=self.momentum)
