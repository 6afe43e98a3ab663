"""Auto-PGD: projected gradient ascent with momentum and a step size that halves itself when it stops paying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from autoshield_bench.balls import Ball
from autoshield_bench.builtin.attacks import losses
from autoshield_bench.builtin.attacks.best import Best
from autoshield_bench.builtin.attacks.narrowing import narrowed
from autoshield_bench.builtin.attacks.objectives import Objective, purified_decoys, raising, reconstruction
from autoshield_bench.builtin.attacks.steps import steepest
from autoshield_bench.contracts import Attack, AttackRequest, LossGradient
from autoshield_bench.errors import CellError, ParameterError

if TYPE_CHECKING:
    from torch import Tensor

LogitLossName = Literal["cross-entropy", "dlr", "margin", "targeted-dlr", "targeted-margin"]
LossName = Literal[LogitLossName, "reconstruction"]

_FEWEST_CLASSES: dict[LossName, int] = {"dlr": 3, "targeted-dlr": 4}
_MOMENTUM = 0.75
_SHARE = 0.75
"""A step size is kept while at least this share of its steps raised the loss."""


@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """APGD with a choice of losses; the targeted ones try the most likely wrong classes one after the other.

    Returns the best point seen: misclassified before not, then of higher loss, or of larger margin where the loss is
    ``reconstruction``.
    Source: Croce and Hein 2020, arXiv:2003.01690, algorithm 1.
    """

    loss: LossName = "cross-entropy"
    """Loss that is raised. ``reconstruction``, for purifiers: minus the distance between what the purifier makes of the
    point and what it makes of the nearest validation image of another class."""

    steps: int = 100
    """Gradient steps per run."""

    restarts: int = 1
    """Runs from different random starts, for each target class."""

    target_classes: int = 9
    """Wrong classes that a targeted loss tries, the most likely first; at most all of them."""

    def __post_init__(self) -> None:
        for key in ("steps", "restarts", "target_classes"):
            if getattr(self, key) < 1:
                raise ParameterError(key, f"{getattr(self, key)} is too small; give at least 1")

    def gradient_steps(self) -> int:
        """Return the gradient evaluations per image."""
        targets = self.target_classes if self.loss.startswith("targeted") else 1
        return self.steps * self.restarts * targets

    def run(self, request: AttackRequest) -> Tensor:
        """Return the best point over all restarts, targets and steps, each run from a random start.

        Raises CellError for too few classes, and where the reconstruction loss has no decoys.
        """
        return self._climbed(request, None)

    def run_from(self, request: AttackRequest, start: Tensor) -> Tensor:
        """Return the best point where every run starts at ``start``, one point in the ball per image.

        Raises CellError as ``run`` does.
        """
        return self._climbed(request, start)

    def _climbed(self, request: AttackRequest, start: Tensor | None) -> Tensor:
        import torch

        fewest = _FEWEST_CLASSES.get(self.loss, 2)
        if request.target.classes < fewest:
            raise CellError(f"the {self.loss} loss needs {fewest} classes, the data have {request.target.classes}")
        best = Best(request.images, request.labels)
        if not len(request.images):
            return best.x
        for number, objective_of in enumerate(self._objectives(request)):
            for restart in range(self.restarts):
                rows = torch.arange(len(best.x), device=best.x.device)
                if request.stop_on_success:
                    rows = rows[~best.wrong]
                if len(rows):
                    part = request if len(rows) == len(best.x) else narrowed(request, rows)
                    first = None if start is None else start[rows]
                    self._climb(part, best, objective_of(rows), rows, first, ("start", number, restart))
        return best.x

    def _objectives(self, request: AttackRequest) -> Sequence[Callable[[Tensor], Objective]]:
        """Return what is climbed, one after the other, each for the images at some rows."""
        import torch

        labels = request.labels
        if self.loss == "reconstruction":
            wanted = purified_decoys(request)
            return [lambda rows: reconstruction(labels[rows], wanted[rows])]
        name: LogitLossName = self.loss
        if not name.startswith("targeted"):
            return [lambda rows: raising(loss_of(name, labels[rows]))]
        with torch.no_grad():
            targets = wrong_classes(request.target.logits(request.images), labels)

        def towards(column: int) -> Callable[[Tensor], Objective]:
            return lambda rows: raising(loss_of(name, labels[rows], targets[rows, column]))

        return [towards(column) for column in range(min(self.target_classes, targets.shape[1]))]

    def _climb(
        self,
        request: AttackRequest,
        best: Best,
        objective: Objective,
        rows: Tensor,
        start: Tensor | None,
        purpose: tuple[str | int, ...],
    ) -> None:
        ball = Ball(request.images, request.threat)
        ascend(
            lambda x: objective.ask(request.target, x),
            ball,
            ball.random_start(request.rng, *purpose) if start is None else start,
            self.steps,
            lambda x, here: best.keep(x, objective.worth(here), here.logits, rows),
        )


def loss_of(name: LogitLossName, labels: Tensor, targets: Tensor | None = None) -> losses.Loss:
    """Return a loss by name."""
    if targets is not None:
        targeted = losses.targeted_dlr if name == "targeted-dlr" else losses.targeted_margin
        return targeted(labels, targets)
    untargeted = {"cross-entropy": losses.cross_entropy, "dlr": losses.dlr, "margin": losses.margin}
    return untargeted[name](labels)


def wrong_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the wrong classes of each image ``[N, classes - 1]``, the most likely first."""
    import torch

    order = logits.scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
    return order[:, :-1]


def checkpoints(steps: int) -> list[int]:
    """Return the steps at which step sizes are judged.

    Source: Croce and Hein 2020, section 4: p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06).
    """
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return [-(-int(share * steps * 1_000_000) // 1_000_000) for share in shares[1:] if share < 1]


def ascend(
    ask: Callable[[Tensor], LossGradient],
    ball: Ball,
    start: Tensor,
    steps: int,
    keep: Callable[[Tensor, LossGradient], object],
) -> Tensor:
    """Raise the loss that ``ask`` returns of points from ``start``, one per image of ``ball``.

    Every point goes to ``keep`` with what was asked of it. Return the points of highest loss.
    """
    import torch

    norm, eps = ball.threat.norm, ball.threat.eps
    shape = (-1, *[1] * (start.dim() - 1))
    size = torch.full((len(start),), 2.0 * eps, device=start.device)
    x, previous = start, start
    here = ask(x)
    keep(x, here)
    top, top_loss, top_gradient = x.clone(), here.loss.clone(), here.gradient.clone()
    gradient, value = here.gradient, here.loss
    judged = checkpoints(steps)
    since, rises = 0, torch.zeros_like(size)
    kept_size, kept_top = torch.zeros_like(size, dtype=torch.bool), top_loss.clone()
    for step in range(1, steps):
        length = size.view(shape)
        ahead = ball.project(x + length * steepest(gradient, norm))
        if step > 1:
            ahead = ball.project(x + _MOMENTUM * (ahead - x) + (1 - _MOMENTUM) * (x - previous))
        previous, x = x, ahead
        here = ask(x)
        keep(x, here)
        rises += here.loss > value
        gradient, value = here.gradient, here.loss
        higher = value > top_loss
        top = torch.where(higher.view(shape), x, top)
        top_gradient = torch.where(higher.view(shape), gradient, top_gradient)
        top_loss = torch.where(higher, value, top_loss)
        since += 1
        if step in judged:
            poor = rises < _SHARE * since
            stuck = ~kept_size & (top_loss <= kept_top)
            halve = poor | stuck
            size = torch.where(halve, size / 2, size)
            x = torch.where(halve.view(shape), top, x)
            previous = torch.where(halve.view(shape), top, previous)
            gradient = torch.where(halve.view(shape), top_gradient, gradient)
            value = torch.where(halve, top_loss, value)
            kept_size, kept_top = halve, top_loss.clone()
            since, rises = 0, torch.zeros_like(size)
    return top
