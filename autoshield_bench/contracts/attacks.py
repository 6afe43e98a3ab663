"""What an attack is handed and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from autoshield_bench.contracts.threat import ThreatModel

if TYPE_CHECKING:
    from torch import Tensor

    from autoshield_bench.seeding import ImageRandom


@dataclass(frozen=True)
class LossGradient:
    """What ``Target.loss_gradient`` returns, all without history."""

    loss: Tensor
    """Loss per image ``[N]``, the mean over draws where the pipeline is stochastic."""

    gradient: Tensor
    """Gradient of each image's loss with respect to that image, of the shape of the images."""

    logits: Tensor
    """Logits ``[N, classes]``, the mean over draws where the pipeline is stochastic."""

    excess: Tensor | None = None
    """Of ``output_gradient`` on a pipeline that detects: see ``TargetOutput.excess``."""


@dataclass(frozen=True)
class TargetOutput:
    """Everything that a defended pipeline makes of a batch; differentiable with respect to the images."""

    logits: Tensor
    """``[N, classes]``."""

    purified: Tensor
    """The images that reached the classifier, of the shape of the images."""

    excess: Tensor | None = None
    """How far the anomaly score lies above the threshold ``[N]``: an image is flagged where it is positive. The largest
    over the stages that detect, each in units of its own scores' interquartile range on clean validation images. None
    where the attack is not aware of a detector, or there is none."""


class Target(Protocol):
    """What an attack may see: what its spec says it ``needs``, as far as its access level permits. Every pass is
    counted; asking for more raises AccessError, and asking past the query budget raises BudgetSpent."""

    @property
    def classes(self) -> int:
        """Number of classes."""

    def logits(self, x: Tensor) -> Tensor:
        """Return logits ``[N, classes]``; differentiable with respect to ``x`` where gradients are permitted."""

    def labels(self, x: Tensor) -> Tensor:
        """Return the predicted classes ``[N]``, int64."""

    def loss_gradient(self, x: Tensor, loss: Callable[[Tensor], Tensor]) -> LossGradient:
        """Return loss, gradient and logits at ``x``; ``loss`` maps logits to one value per image, and higher is worse
        for the defense. Averages over draws where the pipeline is stochastic (EOT, Athalye et al. 2018)."""

    @property
    def detects(self) -> bool:
        """Whether ``output`` tells the ``excess``: a detector is there and the attack declares to be aware of it."""

    def output(self, x: Tensor) -> TargetOutput:
        """Return logits, purified images and excess, averaged over draws where the pipeline is stochastic; for attacks
        that need gradients."""

    def output_gradient(self, x: Tensor, loss: Callable[[TargetOutput], Tensor]) -> LossGradient:
        """Return the same as ``loss_gradient`` for a loss of the whole output."""

    def select(self, rows: Tensor) -> Target:
        """Return the target for the images at ``rows`` of this one's batch; needed as soon as a batch shrinks. An image
        may stand there more than once, to ask about several points of it in one batch."""


@dataclass(frozen=True, kw_only=True)
class AttackRequest:
    """One batch to attack."""

    images: Tensor
    """Clean images; do not change them."""

    labels: Tensor
    """True labels; the attack wants any other class."""

    threat: ThreatModel
    """The ball to stay in; for a minimum-norm attack one that holds every image, so that only its norm matters."""

    target: Target
    """The only door to the network under attack."""

    rng: ImageRandom
    """The only source of randomness: keyed per image, so results depend on neither batch order nor split."""

    targets: Tensor | None = None
    """Classes ``[N]`` to drive the images to, none of them true; None where any wrong class will do."""

    queries: int | None = None
    """Queries per image under black-box access, each image of each call counting as one; None: without limit. At the
    end the target raises BudgetSpent: let it pass, the host keeps the best point that it saw. An attack that goes image
    by image catches it instead, takes the image's row of ``BudgetSpent.best`` and goes on with the next image."""

    stop_on_success: bool = False
    """True: an image that has fallen may be left alone, since it is scored on this very pipeline."""

    decoys: Callable[[], Tensor] | None = None
    """Returns for each image the nearest one of another class (of ``targets``, where there are any) in the validation
    part: what a purifier can be made to take the image for."""


class Attack(ABC):
    """Base class of attacks; a dataclass whose keyword-only fields are its parameters.

    Gray-box examples are scored on other pipelines than they were crafted on, so an attack runs its full budget and
    returns the point of highest loss.
    """

    @abstractmethod
    def run(self, request: AttackRequest) -> Tensor:
        """Return adversarial images of the shape of ``request.images``, inside the ball and inside [0, 1]."""

    def gradient_steps(self) -> int | None:
        """Return the gradient evaluations per image that a run will make, for cost estimates; None if unknown."""
        return None

    def forward_passes(self) -> int:
        """Return the forward passes per image beside those of gradients, such as queries, for cost estimates."""
        return 0

    def first_look(self) -> Attack | None:
        """Return a cheaper form of this attack, for gradient routes beside the one that the stages declare; None where
        there is none. An image that comes closest to falling along such a route is attacked along it in full."""
        return None
