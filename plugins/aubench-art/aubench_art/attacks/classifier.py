"""ART's view of a target: a classifier with gradients, or one that answers queries and nothing else.

Importing this module imports ART, so attacks import it when they run.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier
from autoshield_bench.balls import distance
from autoshield_bench.contracts import AttackRequest, Needs
from autoshield_bench.errors import CellError
from autoshield_bench.target_module import TargetModule
from torch import Tensor, nn

from aubench_art.attacks.requests import narrowed

_CERTAIN = 1e30
"""Score of the true class at a point that is not finite: as far from misclassified as can be."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep ART's log records and its warnings to itself, and give all settings back."""
    logger = logging.getLogger("art")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            # ART hands tensors to numpy in a way that numpy 2 deprecates.
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(art|numpy)\.")
            yield
    finally:
        logger.setLevel(level)


class Standing(nn.Module):
    """A TargetModule that follows ART where it goes on with the images that still stand and drops the others.

    ART asks about the whole batch, and then about those images alone that it found not yet fallen, in their order:
    ``follow`` takes note of them. So each point is asked about under its own image, whatever the threat.
    """

    def __init__(self, request: AttackRequest, needs: Needs) -> None:
        super().__init__()
        self._request = request
        self._needs = needs
        self._whole = TargetModule(request, needs)
        self._part = self._whole
        self.rows = torch.arange(len(request.images), device=request.images.device)
        """Rows of the images that stood when the whole batch was last asked about."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of points of all images, or of those that stand; of any points of an only image."""
        if len(self._request.images) in {1, len(x)}:
            return self._whole.forward(x)
        if len(x) == len(self.rows):
            return self._part.forward(x)
        raise CellError(
            f"ART asked about {len(x)} points, where the batch has {len(self._request.images)} images and "
            f"{len(self.rows)} of them stand"
        )

    def follow(self, logits: Tensor) -> None:
        """Take note of the images that stand by these logits of the whole batch; others are let pass."""
        if len(logits) != len(self._request.images) or len(logits) == 1:
            return
        request, predicted = self._request, logits.argmax(1)
        stand = predicted == request.labels if request.targets is None else predicted != request.targets
        self.rows = stand.nonzero()[:, 0]
        whole = len(self.rows) == len(logits)
        self._part = self._whole if whole else TargetModule(narrowed(request, self.rows), self._needs)


class GradientClassifier(PyTorchClassifier):  # type: ignore[misc]
    """ART's classifier around a target, with gradients.

    The loss is summed, since a mean would scale an image's gradient by the size of its batch. ``predict`` asks about
    all points at once, since ART's own goes through a DataLoader: that cuts batches at 128 where an attack names no
    size, and it draws from torch's global generator.
    """

    def __init__(self, request: AttackRequest) -> None:
        self.module = Standing(request, "gradients")
        super().__init__(
            model=self.module,
            loss=nn.CrossEntropyLoss(reduction="sum"),
            input_shape=tuple(request.images.shape[1:]),
            nb_classes=request.target.classes,
            clip_values=(0.0, 1.0),
            preprocessing=None,
            device_type="cpu" if request.images.device.type == "cpu" else "gpu",
        )
        # ART knows the CPU and the current CUDA device alone.
        self._device = request.images.device
        self.module.to(self._device)
        self.first = self.last = torch.empty(0, dtype=torch.int64)
        """Classes that ART was told the first and the last time that it asked; empty before."""
        self._closed = False

    @contextlib.contextmanager
    def unasked(self) -> Iterator[None]:
        """Answer without the target, for the block.

        APGD's constructor asks about an image of ones, which is none of ours, to see if outputs are probabilities.
        """
        self._closed = True
        try:
            yield
        finally:
            self._closed = False

    def predict(self, x: Any, batch_size: int = 128, training_mode: bool = False, **kwargs: Any) -> Any:
        """Return logits of points ``[N, C, H, W]`` as a float32 array ``[N, classes]``."""
        if self._closed:
            return np.full((len(x), self.nb_classes), -1.0, dtype=np.float32)  # no probabilities, whatever the sum
        with torch.no_grad():
            logits = self.module(torch.as_tensor(x, dtype=torch.float32).to(self._device))
        self.module.follow(logits)
        self.last = logits.argmax(1)
        if not len(self.first):
            self.first = self.last
        return logits.cpu().numpy()


class Enough(Exception):
    """Raised to end ART's search for one image: its budget is spent, or the same question comes over and over."""


class Questions:
    """What ART's black-box attacks ask.

    A point that is not finite is answered as classified right beyond doubt, so that it is never taken.
    """

    def __init__(self, request: AttackRequest, needs: Needs) -> None:
        self._request = request
        self._module = Standing(request, needs)

    def __call__(self, x: Any) -> Any:
        """Return scores of points ``[N, C, H, W]`` as a float32 array ``[N, classes]``."""
        point = torch.from_numpy(np.asarray(x, dtype=np.float32)).to(self._request.images.device)
        broken = ~torch.isfinite(point).flatten(1).all(1)
        if bool(broken.all()):
            scores = torch.zeros(len(point), self._request.target.classes, device=point.device)
        else:
            scores = self._module(torch.where(broken.view(-1, 1, 1, 1), 0.5, point))
        if bool(broken.any()):
            labels = self._request.labels
            true = labels.expand(len(point)) if len(labels) in {1, len(point)} else labels[self._module.rows]
            scores[broken] = 0.0
            scores[broken, true[broken]] = _CERTAIN
        self._module.follow(scores)
        self._seen(point, scores)
        return scores.cpu().numpy()

    def _seen(self, point: Tensor, scores: Tensor) -> None:
        """Take note of an answer."""


class QuestionsOfOne(Questions):
    """What ART asks about a single image: counted, and the nearest misclassified point is kept.

    The count ends the search of this image before the target would refuse to answer: BudgetSpent would end that of
    the images after it as well.
    """

    def __init__(self, request: AttackRequest, needs: Needs, *, patience: int) -> None:
        super().__init__(request, needs)
        self._clean, self._label, self._norm = request.images, request.labels, request.threat.norm
        self._left = torch.inf if request.queries is None else request.queries
        self._patience = patience
        self._misses = 0
        self._distance = torch.inf
        self.nearest = request.images.clone()
        """The nearest misclassified point that was asked about; the clean image while there is none."""

    def __call__(self, x: Any) -> Any:
        """Return scores of points ``[N, C, H, W]`` as a float32 array ``[N, classes]``.

        Raises Enough where the budget does not cover the question, and after ``patience`` answers in a row, of one
        point each, that were the true class.
        """
        if len(x) > self._left or self._misses > self._patience:
            raise Enough
        self._left -= len(x)
        return super().__call__(x)

    def _seen(self, point: Tensor, scores: Tensor) -> None:
        fallen = (scores.argmax(1) != self._label).cpu()
        away = torch.where(fallen, distance(point, self._clean.expand_as(point), self._norm).cpu(), torch.inf)
        best = int(away.argmin())
        if float(away[best]) < self._distance:
            self._distance, self.nearest = float(away[best]), point[best : best + 1].clone()
        self._misses = self._misses + 1 if len(point) == 1 and not bool(fallen) else 0


def query_classifier(questions: Questions, request: AttackRequest) -> BlackBoxClassifierNeuralNetwork:
    """Return ART's black-box classifier: it answers, and has no gradients to reach for."""
    return BlackBoxClassifierNeuralNetwork(
        questions,
        input_shape=tuple(request.images.shape[1:]),
        nb_classes=request.target.classes,
        clip_values=(0.0, 1.0),
    )
