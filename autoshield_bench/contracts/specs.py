"""Specs: what a hook yields. The factory is a string, so listing a plugin imports none of its heavy code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from autoshield_bench.contracts.threat import Kind, Needs, Norm, Randomness, Search


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
    """True: it leaves fallen images alone wherever that is allowed, as if the suite said ``stop_on_success``. Under
    white-box access it then takes every gradient path through a chain, unless the suite says otherwise."""

    detector_aware: bool = False
    """True: it tries to be misclassified *and* not flagged. It is run against defenses that detect, once per nominal
    false-positive rate, and its target tells the ``excess`` over the threshold."""


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
