"""foolbox's minimum-norm attacks on gradients. Each returns the point that foolbox returns, or the clean image where it
found none."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from autoshield_bench.contracts import Attack, AttackRequest, Norm
from autoshield_bench.errors import ParameterError

from aubench_foolbox.parameters import at_least, not_negative, positive
from aubench_foolbox.quiet import quiet

if TYPE_CHECKING:
    from torch import Tensor


class _MinimumNorm(Attack):
    """Runs a foolbox attack with ``run``, and learns which points are adversarial by watching its own questions."""

    @abstractmethod
    def _made(self, norm: Norm) -> Any:
        """Return foolbox's attack."""

    def _found(self, points: Tensor, model: Any, goal: Any) -> Tensor:
        """Return for which images foolbox found a point ``[N]``: it keeps the nearest that it saw."""
        found: Tensor = goal.ever
        return found

    def run(self, request: AttackRequest) -> Tensor:
        """Return foolbox's points; the clean image where it found none, or none that is finite."""
        if not len(request.images):
            return request.images.clone()
        from aubench_foolbox import library, returned

        model, goal = library.model_of(request), library.goal_of(request)
        with quiet():
            points = self._made(request.threat.norm).run(model, request.images, goal)
            found = self._found(points, model, goal)
        return returned.nearest(request, points, found)


@dataclass(frozen=True, kw_only=True)
class DeepFool(_MinimumNorm):
    """Steps to the nearest boundary of the linearised classifier: LinfDeepFoolAttack, or L2DeepFoolAttack.

    An image moves until it is misclassified. Where that takes all steps, the last point is asked about once more:
    foolbox's ``run`` does not look at it.
    """

    steps: int = 50
    """Largest number of steps."""

    candidates: int = 10
    """Classes that are looked at, the most likely ones first; a step costs one gradient for each but the true one."""

    overshoot: float = 0.02
    """How far to go past the boundary, as a share of the distance."""

    loss: Literal["logits", "crossentropy"] = "logits"
    """What is linearised."""

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)
        at_least(2, candidates=self.candidates)
        not_negative(overshoot=self.overshoot)

    def _made(self, norm: Norm) -> Any:
        from aubench_foolbox.library import attacks

        kind = attacks.LinfDeepFoolAttack if norm == "linf" else attacks.L2DeepFoolAttack
        return kind(steps=self.steps, candidates=self.candidates, overshoot=self.overshoot, loss=self.loss)

    def _found(self, points: Tensor, model: Any, goal: Any) -> Tensor:
        if not bool(goal.latest.all()):
            goal(points, model(points))
        found: Tensor = goal.latest
        return found


@dataclass(frozen=True, kw_only=True)
class CarliniWagner(_MinimumNorm):
    """Adam on squared distance plus weighted margin, the weight found by bisection: L2CarliniWagnerAttack.

    ``abort_early`` looks at the loss of the whole batch, so an image's result depends on its neighbours.
    """

    binary_search_steps: int = 9
    """Weights tried."""

    steps: int = 1000
    """Gradient steps per weight; foolbox's own default of 10000 asks for 90000 gradients per image."""

    step_size: float = 1e-2
    """Learning rate of Adam, in the space of arctanh."""

    confidence: float = 0.0
    """Margin by which a point must be misclassified, in logits."""

    initial_const: float = 1e-3
    """Weight of the margin to begin with."""

    abort_early: bool = True
    """End the descent for a weight when a tenth of the steps brought no progress."""

    def __post_init__(self) -> None:
        at_least(1, binary_search_steps=self.binary_search_steps, steps=self.steps)
        positive(step_size=self.step_size, initial_const=self.initial_const)
        not_negative(confidence=self.confidence)

    def _made(self, norm: Norm) -> Any:
        from aubench_foolbox.library import attacks

        return attacks.L2CarliniWagnerAttack(
            binary_search_steps=self.binary_search_steps,
            steps=self.steps,
            stepsize=self.step_size,
            confidence=self.confidence,
            initial_const=self.initial_const,
            abort_early=self.abort_early,
        )

    def gradient_steps(self) -> int:
        """Return the gradient evaluations per image, at most."""
        return self.binary_search_steps * self.steps


@dataclass(frozen=True, kw_only=True)
class DecoupledDirectionNorm(_MinimumNorm):
    """Gradient steps, each scaled to a length that shrinks inside the wrong class and grows outside: DDNAttack.

    foolbox draws a random direction in every step and uses it for images whose gradient is zero alone.
    """

    init_epsilon: float = 1.0
    """Length to begin with."""

    steps: int = 100
    """Gradient steps."""

    gamma: float = 0.05
    """Share by which the length changes in a step."""

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)
        positive(init_epsilon=self.init_epsilon, gamma=self.gamma)
        if self.gamma >= 1:
            raise ParameterError("gamma", f"{self.gamma:g} is too large; give less than 1")

    def _made(self, norm: Norm) -> Any:
        from aubench_foolbox.library import attacks

        return attacks.DDNAttack(init_epsilon=self.init_epsilon, steps=self.steps, gamma=self.gamma)

    def gradient_steps(self) -> int:
        """Return the gradient evaluations per image."""
        return self.steps


@dataclass(frozen=True, kw_only=True)
class FastMinimumNorm(_MinimumNorm):
    """Gradient steps projected onto a ball that shrinks inside the wrong class and grows outside: LInfFMNAttack.

    L-infinity alone: the projection of foolbox 3.3.4's L2FMNAttack divides a length by itself and projects nothing, so
    the ball never holds it back.
    """

    steps: int = 100
    """Gradient steps."""

    max_step_size: float = 1.0
    """Euclidean length of the first step."""

    min_step_size: float | None = None
    """Euclidean length of the last step; a hundredth of the first where none is given."""

    gamma: float = 0.05
    """Share by which the radius changes in the first step; it shrinks to 0.001."""

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)
        positive(max_step_size=self.max_step_size, min_step_size=self.min_step_size, gamma=self.gamma)
        if self.gamma >= 1:
            raise ParameterError("gamma", f"{self.gamma:g} is too large; give less than 1")

    def _made(self, norm: Norm) -> Any:
        from aubench_foolbox.library import attacks

        return attacks.LInfFMNAttack(
            steps=self.steps, max_stepsize=self.max_step_size, min_stepsize=self.min_step_size, gamma=self.gamma
        )

    def gradient_steps(self) -> int:
        """Return the gradient evaluations per image."""
        return self.steps
