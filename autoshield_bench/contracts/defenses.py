"""What a defense is handed and what it gives: stages and chains of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from autoshield_bench.seeding import ImageRandom


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """What a defense may learn from: the fitting and the validation part of the training data, never the test set."""

    images: Tensor
    """Fitting images."""

    labels: Tensor
    """Labels of the fitting images."""

    validation_images: Tensor
    """Validation images: every choice (hyper-parameters, thresholds) is made on these."""

    validation_labels: Tensor
    """Labels of the validation images."""

    upstream: Callable[[Tensor], Tensor]
    """Purifies a batch by the stages before this one (the identity for the first), without gradients."""

    classifier: nn.Module | None
    """The trained classifier, frozen, where the spec says ``needs_classifier``; else None."""

    generator: Generator
    """Source of randomness on the CPU. The global torch generator is seeded from the same seed as well."""

    device: str
    """Where to compute; the images above lie on the CPU."""

    progress: Callable[[int, int], None]
    """Report ``progress(done, total)`` in images; shown to the user."""


class Defense:
    """Base class of defenses; a dataclass whose keyword-only fields are its parameters.

    Override ``purify`` for an input transformation, ``defend`` for a defense that changes the classifier, and
    ``anomaly_score`` for a detector.
    """

    def fit(self, request: FitRequest) -> None:
        """Learn from the training data. The default learns nothing."""

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Map images to images in [0, 1] of the same shape. The default returns ``x``."""
        return x

    def surrogate(self, x: Tensor) -> Tensor:
        """Return a differentiable stand-in for ``purify``, used for the backward pass alone (BPDA, Athalye et al.
        2018, arXiv:1802.00420). The default is the identity."""
        return x

    def anomaly_score(self, x: Tensor, classify: Callable[[Tensor], Tensor], rng: ImageRandom) -> Tensor | None:
        """Return how suspicious each image looks: finite floats ``[N]``, the higher the more so. A detector overrides
        it; the default is None. ``x`` is what reaches this stage, ``classify`` gives the classifier's logits of images.
        """
        return None

    def defend(self, classifier: nn.Module) -> nn.Module:
        """Return the classifier to use in place of the undefended one. The default returns it as it is."""
        return classifier

    def state(self) -> dict[str, Tensor]:
        """Return everything that ``fit`` has learnt. The default is empty."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``state`` returned. Raises ValueError if it does not fit."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, got {sorted(state)}")

    def modules(self) -> Sequence[nn.Module]:
        """Return the networks inside, so that the host can freeze them, move them and put them in evaluation mode."""
        return ()


@dataclass(frozen=True, kw_only=True)
class StageRequest:
    """One stage of a chain: a defense by name, with its parameters."""

    use: str
    """Name of the defense."""

    params: Mapping[str, Any] = field(default_factory=dict)
    """Its parameters."""


class Chain(ABC):
    """Base class of defenses made of others, in sequence; each is fitted on the output of those before it."""

    @abstractmethod
    def sequence(self) -> Sequence[StageRequest]:
        """Return the stages, in the order in which an image passes them; a stage may be a chain itself."""
