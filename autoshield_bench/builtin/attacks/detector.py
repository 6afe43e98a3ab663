"""Gradient attacks that want an image misclassified and not flagged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING, Literal

from autoshield_bench.balls import Ball
from autoshield_bench.builtin.attacks.apgd import ascend
from autoshield_bench.builtin.attacks.joint import Joint, balance, excess_of, gradient_below, without
from autoshield_bench.builtin.attacks.losses import Loss, margin, targeted_margin
from autoshield_bench.builtin.attacks.pgd import PGD
from autoshield_bench.builtin.attacks.square import REFINING_SHARE, search
from autoshield_bench.builtin.attacks.steps import steepest
from autoshield_bench.contracts import Attack, AttackRequest, LossGradient, Target, TargetOutput
from autoshield_bench.errors import ParameterError
from autoshield_bench.margins import margins

if TYPE_CHECKING:
    from torch import Tensor

Variant = Literal["lagrangian", "selective", "orthogonal"]
VARIANTS: tuple[Variant, ...] = ("selective", "orthogonal", "lagrangian")
"""In the order in which they are run, cheap ones first."""

_WIDEN = 4.0
"""Factor by which a weight is raised or lowered while it is bounded on one side alone."""


@dataclass(frozen=True, kw_only=True)
class DetectorPGD(Attack):
    """Projected gradient ascent towards a point that is misclassified and stays under the detector's threshold.

    ``lagrangian`` raises margin - weight * max(0, excess), with a weight of its own for each image that grows where the
    result is flagged and shrinks where it is not (Carlini and Wagner 2017, arXiv:1705.07263, section 2, with the search
    of arXiv:1608.04644). ``selective`` raises the margin until the point is misclassified and lowers the excess where
    it is, and ``orthogonal`` does so with each gradient rid of its part along the other one's (Bryniarski et al. 2021,
    arXiv:2106.15023, section 4). ``all`` runs one after the other.

    The best point seen is returned: misclassified and not flagged before not, then by the smaller of the margin, in
    units of the clean image's, and the excess below the threshold. Where no detector is to be seen it is PGD on the
    margin.
    """

    variant: Literal[Variant, "all"] = "all"
    """How margin and excess are traded."""

    steps: int = 40
    """Gradient steps per run."""

    restarts: int = 2
    """Runs of ``selective`` and of ``orthogonal`` from different random starts. For L-infinity every second one steps
    along the gradient itself in place of its signs, which cannot weigh one pixel against another."""

    relative_step_size: float = 0.5
    """Length of the first step of ``selective`` and of ``orthogonal`` in units of eps; it falls to zero as a cosine."""

    rounds: int = 10
    """Weights that ``lagrangian`` tries for an image, each from a random start; every second one raises the margin
    towards a single wrong class, the most likely first."""

    refinements: int = 3
    """Times that ``all`` goes on from the best points: squares are redrawn at random, which asks for no gradient of a
    detector that may have none, and then what a point is worth is climbed."""

    queries: int = 500
    """Points that each of them asks for at random."""

    def __post_init__(self) -> None:
        for key, least in (("steps", 1), ("restarts", 1), ("rounds", 1), ("refinements", 0), ("queries", 1)):
            if getattr(self, key) < least:
                raise ParameterError(key, f"{getattr(self, key)} is too small; give at least {least}")
        if not 0 < self.relative_step_size < float("inf"):
            raise ParameterError(
                "relative_step_size", f"{self.relative_step_size:g} is not positive; give a positive length"
            )

    def gradient_steps(self) -> int:
        """Return the gradient evaluations of an image that nothing breaks, on a pipeline that detects."""
        each = {
            "selective": self.steps * self.restarts,
            "orthogonal": 2 * self.steps * self.restarts,
            "lagrangian": 2 + self.steps * self.rounds,
        }
        if self.variant != "all":
            return each[self.variant]
        return sum(each.values()) + self.steps * self.refinements

    def forward_passes(self) -> int:
        """Return the queries of an image that nothing breaks."""
        return self.queries * self.refinements if self.variant == "all" else 0

    def first_look(self) -> Attack:
        """Return the attack with one run of each kind, at most four weights and no refinement."""
        return dataclasses.replace(self, restarts=1, rounds=min(self.rounds, 4), refinements=0)

    def run(self, request: AttackRequest) -> Tensor:
        """Return the best point over all variants, runs and steps."""
        import torch

        if not request.target.detects:
            return PGD(loss="margin", steps=self.steps, restarts=self.restarts).run(request)
        joint = Joint(request)
        alive = torch.arange(len(request.images), device=request.images.device)
        runs: dict[Variant, Callable[[AttackRequest, Joint, Tensor], Tensor]] = {
            "selective": self._selective,
            "orthogonal": self._orthogonal,
            "lagrangian": self._lagrangian,
        }
        for variant in VARIANTS:
            if self.variant in (variant, "all"):
                alive = runs[variant](request, joint, joint.standing(alive))
        if self.variant == "all":
            self._refine(request, joint, alive)
        return joint.best.x

    def _refine(self, request: AttackRequest, joint: Joint, alive: Tensor) -> None:
        for number in range(self.refinements):
            rows = joint.standing(alive)
            if not len(rows):
                return
            part = dataclasses.replace(request, rng=request.rng.child("refinement", number))
            search(part, joint.best, joint.look, self.queries, REFINING_SHARE, rows, joint.best.x)
            rows = joint.standing(rows)
            if len(rows):
                _climb(request, joint, rows, self.steps)

    def _selective(self, request: AttackRequest, joint: Joint, alive: Tensor) -> Tensor:
        import torch

        def direction(target: Target, x: Tensor, rows: Tensor) -> tuple[LossGradient, Tensor]:
            labels = request.labels[rows]

            def loss(output: TargetOutput) -> Tensor:
                wrong = output.logits.argmax(1) != labels
                return torch.where(wrong, -excess_of(output), margins(output.logits, labels))

            here = target.output_gradient(x, loss)
            return here, here.gradient

        return self._walk(request, joint, alive, "selective", direction)

    def _orthogonal(self, request: AttackRequest, joint: Joint, alive: Tensor) -> Tensor:
        import torch

        def direction(target: Target, x: Tensor, rows: Tensor) -> tuple[LossGradient, Tensor]:
            labels = request.labels[rows]
            here = target.output_gradient(x, lambda output: margins(output.logits, labels))
            below = gradient_below(target, x)
            wrong = (here.logits.argmax(1) != labels).view(-1, *[1] * (x.dim() - 1))
            return here, torch.where(wrong, without(below, here.gradient), without(here.gradient, below))

        return self._walk(request, joint, alive, "orthogonal", direction)

    def _walk(
        self,
        request: AttackRequest,
        joint: Joint,
        alive: Tensor,
        name: Variant,
        direction: Callable[[Target, Tensor, Tensor], tuple[LossGradient, Tensor]],
    ) -> Tensor:
        """Take steps whose length falls to zero; images that reach the goal leave where the request permits."""
        import torch

        norm, eps = request.threat.norm, request.threat.eps
        whole = Ball(request.images, request.threat)
        for restart in range(self.restarts):
            rows = joint.standing(alive)
            x = whole.random_start(request.rng, name, restart)[rows]
            signs = norm == "linf" and restart % 2 == 0
            room = 1.0 if norm == "l2" or signs else x[:1].numel() ** 0.5
            for step in range(self.steps + 1):
                left = joint.standing(rows)
                if step == 0 or len(left) < len(rows):
                    x = x[torch.isin(rows, left)]
                    rows = left
                    target = request.target.select(rows)
                    ball = Ball(request.images[rows], request.threat)
                if not len(rows):
                    break
                if step == self.steps:
                    joint.look(target, x, rows)
                    break
                here, ahead = direction(target, x, rows)
                joint.keep(x, here, rows)
                length = eps * self.relative_step_size * room * (1 + cos(pi * step / self.steps)) / 2
                x = ball.project(x + length * steepest(ahead, "linf" if signs else "l2"))
        return joint.standing(alive)

    def _lagrangian(self, request: AttackRequest, joint: Joint, alive: Tensor) -> Tensor:
        import torch

        whole = Ball(request.images, request.threat)
        rows = joint.standing(alive)
        if not len(rows):
            return rows
        labels, target = request.labels, request.target.select(rows)
        weight = torch.zeros(len(labels), device=request.images.device)
        weight[rows] = balance(target, request.images[rows], labels[rows])
        low, high = torch.zeros_like(weight), torch.full_like(weight, torch.inf)
        for number in range(self.rounds):
            rows = joint.standing(rows)
            if not len(rows):
                break
            target = request.target.select(rows)
            start = whole.random_start(request.rng, "lagrangian", number)[rows]
            ball = Ball(request.images[rows], request.threat)
            goal = _goal(number, labels[rows], joint.wrong_classes[rows])
            found = _ascend(target, ball, start, self.steps, joint, rows, goal, weight[rows])
            flagged = joint.look(target, found, rows)
            own = weight[rows]
            low[rows] = torch.where(flagged, own, low[rows])
            high[rows] = torch.where(flagged, high[rows], own)
            below, above = low[rows], high[rows]
            middle = torch.where(below > 0, (below * above).sqrt(), own / _WIDEN)
            weight[rows] = torch.where(above.isinf(), own * _WIDEN, middle)
        return joint.standing(alive)


def _climb(request: AttackRequest, joint: Joint, rows: Tensor, steps: int) -> None:
    """Raise what the best points of the images at ``rows`` are worth."""
    target, ball = request.target.select(rows), Ball(request.images[rows], request.threat)

    def ask(x: Tensor) -> LossGradient:
        return target.output_gradient(x, lambda output: joint.worth(output, rows))

    ascend(ask, ball, joint.best.x[rows], steps, lambda x, here: joint.keep(x, here, rows))


def _goal(number: int, labels: Tensor, wrong: Tensor) -> Loss:
    """Return what a round raises: towards any wrong class and, every second time, towards one of them in turn."""
    if number % 2 == 0:
        return margin(labels)
    return targeted_margin(labels, wrong[:, number // 2 % wrong.shape[1]])


def _ascend(
    target: Target,
    ball: Ball,
    start: Tensor,
    steps: int,
    joint: Joint,
    rows: Tensor,
    goal: Loss,
    weight: Tensor,
) -> Tensor:
    def loss(output: TargetOutput) -> Tensor:
        return goal(output.logits) - weight * excess_of(output).clamp_min(0)

    return ascend(
        lambda x: target.output_gradient(x, loss), ball, start, steps, lambda x, here: joint.keep(x, here, rows)
    )
