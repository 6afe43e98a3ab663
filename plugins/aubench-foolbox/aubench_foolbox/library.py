"""What every attack needs of foolbox. Importing this module imports foolbox, so attacks import it when they run."""

from __future__ import annotations

from typing import Any

import torch
from autoshield_bench.contracts import AttackRequest, Needs
from autoshield_bench.target_module import TargetModule
from torch import Tensor

from aubench_foolbox.quiet import quiet_import

with quiet_import():
    import eagerpy
    import foolbox
    from foolbox.criteria import Misclassification, TargetedMisclassification

attacks: Any = foolbox.attacks
"""foolbox's attack classes."""


def model_of(request: AttackRequest, needs: Needs = "gradients") -> Any:
    """Return the request's target as a foolbox model; every call of it is a call of the target."""
    return foolbox.PyTorchModel(TargetModule(request, needs), bounds=(0, 1), device=request.images.device)


class _Watched:
    """Notes the verdicts on the points that foolbox asks about: what its ``run`` finds out and does not return.

    foolbox's ``__call__`` would evaluate the model once more to learn them.
    """

    ever: Tensor
    """Whether any point of an image was adversarial so far ``[N]``."""

    latest: Tensor
    """Whether the point asked about last was adversarial ``[N]``."""

    asked: int = 0
    """How often it was asked: queries per image, for an attack on labels."""

    def __call__(self, perturbed: Any, outputs: Any) -> Any:
        verdict = super().__call__(perturbed, outputs)  # type: ignore[misc]
        self.latest = eagerpy.astensor(verdict).raw
        self.ever = self.latest if self.asked == 0 else self.ever | self.latest
        self.asked += 1
        return verdict


class _Remembering(_Watched):
    """Keeps the last adversarial point of each image, and calls that very point adversarial ever after.

    foolbox asks again about points that it knows to be adversarial, and asserts that they are: a randomised pipeline,
    which may answer otherwise, would end the attack on the whole batch.
    """

    point: Tensor
    """The last adversarial point of each image; NaN where there was none."""

    def __call__(self, perturbed: Any, outputs: Any) -> Any:
        verdict = super().__call__(perturbed, outputs)
        points = eagerpy.astensor(perturbed).raw
        self.latest = self.latest | (points == self.point).flatten(1).all(1)
        self.ever = self.ever | self.latest
        self.point = torch.where(self.latest.view(-1, *[1] * (points.dim() - 1)), points, self.point)
        return eagerpy.astensor(self.latest) if isinstance(verdict, eagerpy.Tensor) else self.latest


class _WatchedMisclassification(_Watched, Misclassification):  # type: ignore[misc]
    pass


class _WatchedTargetedMisclassification(_Watched, TargetedMisclassification):  # type: ignore[misc]
    pass


class _RememberingMisclassification(_Remembering, Misclassification):  # type: ignore[misc]
    pass


class _RememberingTargetedMisclassification(_Remembering, TargetedMisclassification):  # type: ignore[misc]
    pass


def goal_of(request: AttackRequest) -> _Watched:
    """Return what foolbox calls a criterion: any wrong class, or the target class where the request has targets."""
    if request.targets is None:
        return _WatchedMisclassification(request.labels)
    return _WatchedTargetedMisclassification(request.targets)


def remembering_goal_of(request: AttackRequest, known: Tensor | None = None) -> _Remembering:
    """Return the criterion of an attack on labels; ``known`` are points that are adversarial to begin with."""
    goal: _Remembering
    if request.targets is None:
        goal = _RememberingMisclassification(request.labels)
    else:
        goal = _RememberingTargetedMisclassification(request.targets)
    goal.point = torch.full_like(request.images, torch.nan) if known is None else known.clone()
    return goal


class PerImageHopSkipJump(attacks.HopSkipJumpAttack):  # type: ignore[misc]
    """HopSkipJump whose steps do not shrink with the size of the batch.

    foolbox 3.3.4 divides random directions and the estimated gradient by their length over the whole batch, where the
    paper has the length of one image's (Chen et al. 2020, equations 9 and 14): with N images both are about sqrt(N) too
    short. For a batch of one this is foolbox's own attack, bit by bit.
    """

    def approximate_gradients(self, is_adversarial: Any, x_advs: Any, steps: int, delta: Any) -> Any:
        """Return the estimated directions, each of length one."""
        images = len(x_advs)
        if images == 1:
            return super().approximate_gradients(is_adversarial, x_advs, steps, delta)
        found = super().approximate_gradients(is_adversarial, x_advs, steps, delta * images**0.5).raw
        lengths = found.flatten(1).norm(dim=1).view(-1, *[1] * (found.dim() - 1))
        return eagerpy.astensor(found / (lengths + 1e-12))
