"""The contract between the host and its plugins: specs, requests and base classes.

Importing this module imports neither torch nor numpy, so a plugin's manifest stays light. Fields are only ever
added, with defaults; a change that breaks a plugin raises ``CONTRACT``.

Images are float32 tensors ``[N, C, H, W]`` in [0, 1]; labels are int64 tensors ``[N]``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    import numpy
    from torch import Generator, Tensor, nn

    from autoshield_bench.seeding import ImageRandom

CONTRACT = 1
"""Version of this contract. A manifest module states the version it was written for as its own ``CONTRACT``."""

Norm = Literal["linf", "l2"]
Access = Literal["gray-box", "transfer", "black-box", "white-box"]
Needs = Literal["gradients", "scores", "labels"]
Search = Literal["fixed-budget", "minimum-norm"]
Randomness = Literal["rng", "global", "irreproducible"]
Goal = Literal["untargeted", "targeted"]
Kind = Literal["attack", "defense", "metric", "dataset", "model"]

NORMS: tuple[Norm, ...] = ("linf", "l2")
ACCESS_LEVELS: tuple[Access, ...] = ("gray-box", "transfer", "black-box", "white-box")


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """How far an attack may move an image. It belongs to the suite, not to an attack."""

    norm: Norm
    """``linf`` (largest change of any value) or ``l2`` (Euclidean length over all values of one image)."""

    eps: float
    """Radius of the ball, in the units of the images: [0, 1]."""

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm: {self.norm!r} is not one of {', '.join(NORMS)}")
        if not math.isfinite(self.eps) or self.eps < 0:
            raise ValueError(f"eps: {self.eps!r} is not a finite number of at least 0")

    def __str__(self) -> str:
        return f"{self.norm} eps {self.eps:g}"


# ---------------------------------------------------------------------------------------------------------------
# Specs: what a hook yields. The factory is a string, so listing a plugin imports none of its heavy code.
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every plugin declares about itself."""

    kind: ClassVar[Kind]

    name: str
    """Name used in suites: lower-case letters, digits and hyphens."""

    factory: str
    """``"package.module:Class"``: a dataclass whose keyword-only fields are the plugin's parameters."""

    summary: str
    """One line for ``aubench plugins list``."""

    version: int = 1
    """Raise it when the same parameters give other results: it is part of every key."""

    reference: str = ""
    """Paper or source, such as ``Madry et al. 2018, arXiv:1706.06083``."""

    libraries: tuple[str, ...] = ()
    """Distributions that do the work underneath, such as ``("foolbox",)``: their versions are part of every key."""


@dataclass(frozen=True, kw_only=True)
class AttackSpec(Spec):
    """Declares an attack. The factory is a subclass of ``Attack``."""

    kind: ClassVar[Kind] = "attack"

    norms: tuple[Norm, ...]
    """Norms of the balls it can search."""

    needs: Needs = "gradients"
    """What it asks of its target: ``gradients``, ``scores`` (logits without gradients) or ``labels`` (the predicted
    class alone). It is handed that and no more, whatever the access level would permit."""

    search: Search = "fixed-budget"
    """``fixed-budget``: the worst point within eps. ``minimum-norm``: the nearest misclassified point, wherever it
    lies; the host scores it by distance, at every eps of the suite."""

    targeted: bool = False
    """True: it honours ``AttackRequest.targets``."""

    randomness: Randomness = "rng"
    """``rng``: every draw comes from ``AttackRequest.rng``. ``global``: the wrapped library draws from the global state
    of torch, numpy or random, which the host seeds and restores around each batch; the size of a batch joins the key.
    ``irreproducible``: it cannot be seeded, and tables say so."""

    depends_on_batch: bool = False
    """True: an image's result depends on the images that it travels with, so the size of a batch joins the key."""

    linear_optimum: bool = True
    """It finds the best point of a linear model, which is known in closed form; False where it cannot promise that."""

    strong: bool = False
    """True for an attack believed to come close to the true worst case; without one a table says "upper bound"."""

    cascade: bool = False
    """True: it leaves fallen images alone wherever that is allowed, as if the suite said ``stop_on_success``."""


@dataclass(frozen=True, kw_only=True)
class DefenseSpec(Spec):
    """Declares a defense. The factory is a subclass of ``Defense``, or of ``Chain`` for one made of others."""

    kind: ClassVar[Kind] = "defense"

    differentiable: bool = True
    """False: white-box attacks pass the stage by BPDA, through ``Defense.surrogate``."""

    stochastic: bool = False
    """True: the output depends on the ``rng`` handed in; white-box gradients are averaged over draws (EOT)."""

    needs_classifier: bool = False
    """True: ``fit`` is handed the trained classifier, and the fitted stage belongs to that classifier alone."""

    trained_on: Literal["nothing", "clean", "noise", "attacks"] = "nothing"
    """What the defense saw while it was fitted, shown beside its numbers."""


@dataclass(frozen=True, kw_only=True)
class MetricSpec(Spec):
    """Declares a metric. The factory is a subclass of ``PredictionMetric`` or of ``PairMetric``."""

    kind: ClassVar[Kind] = "metric"

    looks_at: Literal["predictions", "pair"]
    """``predictions``: labels and logits. ``pair``: two images, the clean one first."""

    direction: Literal["higher", "lower"]
    """Which values are better for the defense."""

    range: tuple[float, float | None]
    """Smallest and largest possible value; None where there is no largest."""

    unit: str = ""
    """Unit of the value, such as ``dB``; empty where it has none."""

    monotone: bool = True
    """A pair metric moves one way under growing noise; False for one that is no distance by design."""


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(Spec):
    """Declares a data set. The factory is a subclass of ``Dataset``."""

    kind: ClassVar[Kind] = "dataset"


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Spec):
    """Declares a classifier. The factory is a subclass of ``Model``."""

    kind: ClassVar[Kind] = "model"

    trained: bool = False
    """True: ``Model.build`` returns a network that is trained already; the harness does not train it."""


# ---------------------------------------------------------------------------------------------------------------
# Attacks
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossGradient:
    """What ``Target.loss_gradient`` returns, all without history."""

    loss: Tensor
    """Loss per image ``[N]``, the mean over draws where the pipeline is stochastic."""

    gradient: Tensor
    """Gradient of each image's loss with respect to that image, of the shape of the images."""

    logits: Tensor
    """Logits ``[N, classes]``, the mean over draws where the pipeline is stochastic."""


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


# ---------------------------------------------------------------------------------------------------------------
# Defenses
# ---------------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------------
# Metrics
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MetricValues:
    """One value per image."""

    values: Tensor
    """Float tensor ``[N]``; finite wherever ``defined``."""

    defined: Tensor | None = None
    """Boolean tensor ``[N]``, False where the value does not exist (PSNR of identical images); None: all defined."""


class _Metric:
    """What both kinds of metric share."""

    images: int | None = None
    """Largest number of images it is taken on (a fixed stratified subset); None: all of them."""

    def prepare(self) -> None:
        """Fetch what is needed, such as weights. Raises ``Unavailable``, with the remedy, where it cannot be had."""

    def unavailable(self) -> str | None:
        """Return why the metric cannot be taken here at this moment, without touching a network; None if it can."""
        return None

    def notes(self) -> str:
        """Return what a reader must know about the value, such as window, data range or backbone."""
        return ""

    def aggregate(self, values: Sequence[float], undefined: int) -> float | None:
        """Return the value over many images from the defined ones, None where it does not exist. Default: the mean."""
        return math.fsum(values) / len(values) if values else None


class PredictionMetric(_Metric, ABC):
    """Base class of metrics that look at predictions."""

    @abstractmethod
    def per_image(self, labels: Tensor, clean_logits: Tensor, logits: Tensor) -> MetricValues:
        """Return one value per image from its label ``[N]`` and the defended pipeline's logits ``[N, classes]`` on the
        clean image and on the image that is scored (the same one in a clean cell)."""


class PairMetric(_Metric, ABC):
    """Base class of metrics that compare two images."""

    @abstractmethod
    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        """Return one value per image; ``reference`` is the clean image, both are ``[N, C, H, W]`` in [0, 1]."""


# ---------------------------------------------------------------------------------------------------------------
# Datasets and models
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known of a data set before it is read."""

    image_shape: tuple[int, int, int]
    """Channels, height, width."""

    classes: int
    """Number of classes."""

    train_size: int
    """Number of training images, before they are split into a fitting and a validation part."""

    test_size: int
    """Number of test images."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images and labels of one split, in the data set's own order."""

    images: numpy.ndarray[Any, Any]
    """``[N, C, H, W]``: uint8 (the host divides by 255) or float32 in [0, 1]."""

    labels: numpy.ndarray[Any, Any]
    """``[N]``, int64."""


class Dataset(ABC):
    """Base class of data sets; a dataclass whose keyword-only fields are its parameters."""

    @abstractmethod
    def info(self) -> DatasetInfo:
        """Return shape and sizes, without reading the data."""

    @abstractmethod
    def fetch(self, data_dir: Path) -> Path:
        """Make sure the data lie below ``data_dir``, and return where. Verifies them.

        Raises ``DataError`` naming the places looked in and the remedy.
        """

    @abstractmethod
    def fingerprint(self, data_dir: Path) -> str:
        """Return a hash of the content, the same wherever the data came from; cheap, and called after ``fetch``."""

    @abstractmethod
    def load(self, split: Literal["train", "test"], data_dir: Path) -> Split:
        """Return one split; called after ``fetch``."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the harness trains a classifier: cross-entropy, AdamW, one-cycle learning rate, shuffled each epoch."""

    epochs: int = 4
    batch_size: int = 128
    learning_rate: float = 2e-3
    """Peak of the one-cycle schedule (Smith and Topin 2019, arXiv:1708.07120)."""
    weight_decay: float = 1e-2


class Model(ABC):
    """Base class of classifiers; a dataclass whose keyword-only fields are its parameters."""

    @abstractmethod
    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Return a network from images in [0, 1] to logits. Its input normalisation is part of it."""

    def recipe(self) -> Recipe:
        """Return how the harness trains it."""
        return Recipe()

    def fingerprint(self) -> str:
        """Return a hash of the weights of a model that comes trained; empty for one that the harness trains."""
        return ""
