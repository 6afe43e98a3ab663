"""foolbox's attacks on labels alone. An image without an adversarial start comes back clean; the others are attacked as
a batch, with as many steps as the query budget holds."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoshield_bench.contracts import Attack, AttackRequest
from autoshield_bench.errors import ParameterError

from aubench_foolbox.parameters import at_least, positive
from aubench_foolbox.quiet import quiet

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class _DecisionBased(Attack):
    """Finds starts, then runs a foolbox attack from them."""

    steps: int | None = None
    """Largest number of steps; None: what the query budget holds, and foolbox's default where there is no budget."""

    start_directions: int = 25
    """Noise images, and then other images of the batch, that are tried as an image's start."""

    start_steps: int = 50
    """Steps from the image to the noise image in the search for a start."""

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, start_directions=self.start_directions, start_steps=self.start_steps)

    @abstractmethod
    def _made(self, request: AttackRequest, left: int | None) -> Any:
        """Return foolbox's attack, which starts with ``left`` queries per image; None: without limit."""

    def _held(self, left: int | None, cost: Callable[[int], int], default: int) -> int:
        """Return the number of steps that ``left`` queries hold, where so many steps ``cost`` so many queries."""
        if left is None:
            return self.steps or default
        steps = 0
        while (self.steps is None or steps < self.steps) and cost(steps + 1) <= left:
            steps += 1
        return steps

    def run(self, request: AttackRequest) -> Tensor:
        """Return foolbox's points; images that are adversarial as they are, or have no start, come back clean."""
        if not len(request.images):
            return request.images.clone()
        from aubench_foolbox import library, returned, starts

        result = request.images.clone()
        with quiet():
            found = starts.find_starts(request, directions=self.start_directions, steps=self.start_steps)
            if len(found.rows):
                part, begin = starts.some(request, found.rows), found.points[found.rows]
                goal = library.remembering_goal_of(part, begin)
                left = None if request.queries is None else request.queries - found.spent
                model = library.model_of(part, "labels")
                points = self._made(part, left).run(model, part.images, goal, starting_points=begin)
                result[found.rows] = returned.nearest(part, points, goal.ever)
        return result


@dataclass(frozen=True, kw_only=True)
class Boundary(_DecisionBased):
    """A random walk along the boundary, with steps towards the image: BoundaryAttack."""

    spherical_step: float = 1e-2
    """Length of the first step along the boundary, relative to the distance."""

    source_step: float = 1e-2
    """Length of the first step towards the image, relative to the distance."""

    source_step_convergence: float = 1e-7
    """An image is done when its step towards the image is shorter than this."""

    step_adaptation: float = 1.5
    """Factor by which lengths grow and shrink."""

    update_stats_every_k: int = 10
    """Steps between two adaptations of the lengths; each costs one query more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, update_stats_every_k=self.update_stats_every_k)
        positive(
            spherical_step=self.spherical_step,
            source_step=self.source_step,
            source_step_convergence=self.source_step_convergence,
        )
        if not 1 < self.step_adaptation < float("inf"):
            raise ParameterError("step_adaptation", f"{self.step_adaptation:g} does not adapt; give more than 1")

    def _made(self, request: AttackRequest, left: int | None) -> Any:
        from aubench_foolbox.library import attacks

        return attacks.BoundaryAttack(
            # One query for the start, one for each step, and one more at each adaptation.
            steps=self._held(left, lambda steps: 1 + steps + steps // self.update_stats_every_k, default=25000),
            spherical_step=self.spherical_step,
            source_step=self.source_step,
            source_step_convergance=self.source_step_convergence,
            step_adaptation=self.step_adaptation,
            update_stats_every_k=self.update_stats_every_k,
        )


_HALVINGS = 4
"""Queries planned for the search of a step's length: one is the least, and more than four are rare."""


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(_DecisionBased):
    """Estimates the gradient at the boundary from labels, steps along it and bisects back: HopSkipJumpAttack.

    With one correction: foolbox's steps shrink with the square root of the size of the batch, and these do not
    (``library.PerImageHopSkipJump``).
    """

    initial_gradient_eval_steps: int = 100
    """Queries of the first estimate; that of step t takes sqrt(t) times as many. Fewer where the query budget does not
    hold one step."""

    max_gradient_eval_steps: int = 10000
    """Largest number of queries of an estimate."""

    gamma: float = 1.0
    """The bisection ends at gamma / d^1.5 of the distance (L2) or gamma / d^2 (L-infinity), for d values per image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(
            1,
            initial_gradient_eval_steps=self.initial_gradient_eval_steps,
            max_gradient_eval_steps=self.max_gradient_eval_steps,
        )
        positive(gamma=self.gamma)

    def _made(self, request: AttackRequest, left: int | None) -> Any:
        from aubench_foolbox.library import PerImageHopSkipJump

        first, bisection = self.initial_gradient_eval_steps, self._bisection(request)
        around = _HALVINGS + 2 + bisection  # a step's queries besides the estimate: two confirm what is known
        most = self.max_gradient_eval_steps

        def cost(steps: int) -> int:
            estimates = sum(int(min(first * math.sqrt(step + 1), most)) for step in range(steps))
            return 2 + bisection + estimates + steps * around

        steps = self._held(left, cost, default=64)
        if left is not None and steps == 0:
            # Too few for a whole step: one with a coarser estimate, or bisection alone.
            first = left - (2 + bisection + around)
            steps = 1 if first >= 1 else 0
        return PerImageHopSkipJump(
            steps=steps,
            initial_gradient_eval_steps=first,
            max_gradient_eval_steps=most,
            gamma=self.gamma,
            constraint=request.threat.norm,
        )

    def _bisection(self, request: AttackRequest) -> int:
        """Return the queries of a bisection, about."""
        finest = self.gamma / request.images[0].numel() ** (1.5 if request.threat.norm == "l2" else 2.0)
        # float32 ends a bisection after about as many halvings as it has bits.
        return min(max(math.ceil(-math.log2(finest)), 1), 24)
