"""The one thing that attacks and scoring see of a model and its defense, and the count of what they spent on it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoshield_bench.contracts import Defense
from autoshield_bench.engine.guard import check_anomaly, check_images, check_shape
from autoshield_bench.engine.lean import lean
from autoshield_bench.errors import GradientCut
from autoshield_bench.routes import GradientPath
from autoshield_bench.seeding import ImageRandom
from autoshield_bench.straight_through import straight_through


class PassCounter:
    """Image-passes, forward and backward, per component."""

    def __init__(self) -> None:
        self._forward: dict[str, int] = {}
        self._backward: dict[str, int] = {}

    def forward(self, component: str, images: int) -> None:
        """Count a forward pass over ``images`` images."""
        self._forward[component] = self._forward.get(component, 0) + images

    def backward(self, component: str, images: int) -> None:
        """Count a backward pass over ``images`` images."""
        self._backward[component] = self._backward.get(component, 0) + images

    def total(self) -> int:
        """Return all passes together."""
        return sum(self._forward.values()) + sum(self._backward.values())

    def to_json(self) -> dict[str, dict[str, int]]:
        """Return the counts by component."""
        return {
            name: {"forward": self._forward.get(name, 0), "backward": self._backward.get(name, 0)}
            for name in sorted({*self._forward, *self._backward})
        }


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Where a detecting stage flags an image."""

    value: float
    """The image is flagged where its anomaly score is larger."""
    scale: float
    """Unit in which attacks are told how far a score lies above the threshold; positive."""


@dataclass(frozen=True, kw_only=True)
class FittedStage:
    """A fitted defense and what its spec declares of it."""

    component: str
    """Name under which its passes are counted, such as ``1:autoencoder``."""
    defense: Defense
    differentiable: bool
    stochastic: bool

    @property
    def transforms(self) -> bool:
        """Whether it maps images; a defense that only replaces the classifier does not."""
        return type(self.defense).purify is not Defense.purify

    @property
    def replaces(self) -> bool:
        """Whether it puts another classifier in the place of the undefended one."""
        return type(self.defense).defend is not Defense.defend

    @property
    def detects(self) -> bool:
        """Whether it scores anomalies."""
        return type(self.defense).anomaly_score is not Defense.anomaly_score


@dataclass(frozen=True)
class Output:
    """What a pipeline makes of a batch."""

    logits: Tensor
    """``[N, classes]``."""
    purified: Tensor
    """The images that reached the classifier."""
    anomaly: Mapping[str, Tensor]
    """Scores ``[N]`` of every stage that detects, by component; empty where they were not asked for."""


class Pipeline:
    """Stages in sequence, then the classifier; frozen, in evaluation mode, every pass counted.

    A stage that declares itself not differentiable runs forward as it is and backward through its surrogate (BPDA,
    Athalye et al. 2018, arXiv:1802.00420); ``paths`` says otherwise, stage by stage. ``thresholds`` by component say
    where stages flag.
    """

    def __init__(
        self,
        classifier: nn.Module,
        stages: Sequence[FittedStage],
        counter: PassCounter,
        *,
        paths: Mapping[str, GradientPath] | None = None,
        thresholds: Mapping[str, Threshold] | None = None,
    ) -> None:
        for stage in stages:
            if stage.replaces:
                # A copy: whatever the defense does to it, the undefended classifier stays what it was.
                classifier = stage.defense.defend(copy.deepcopy(classifier))
        self.classifier = lean(frozen(classifier))
        self.stochastic = any(stage.stochastic for stage in stages)
        self.stages = tuple(stage for stage in stages if stage.transforms)
        self.detectors = tuple(stage.component for stage in stages if stage.detects)
        self.thresholds = dict(thresholds or {})
        self._all_stages = tuple(stages)
        self._paths = dict(paths or {})
        for stage in stages:
            for module in stage.defense.modules():
                frozen(module)
        self.counter = counter

    def __call__(self, x: Tensor, rng: ImageRandom, *, detect: bool = False) -> Output:
        """Return what becomes of the images; with ``detect`` the anomaly scores too, each on the image as it reaches
        that stage. Whether somebody looks at the scores does not change what is purified."""
        anomaly: dict[str, Tensor] = {}
        if self.stages:
            x = x.clone()  # a stage may work in place; the caller's images are not its to change
        position = 0
        for stage in self._all_stages:
            if detect and stage.detects:
                draws = rng.child("anomaly", stage.component)
                returned = stage.defense.anomaly_score(x.clone(), self._classify, draws)
                anomaly[stage.component] = check_anomaly(returned, len(x), stage.component)
                self._count(stage.component, anomaly[stage.component], len(x))
            if stage.transforms:
                x = self._pass_stage(stage, x, rng.child("stage", position))
                position += 1
        return Output(self._classify(x), x, anomaly)

    @property
    def as_declared(self) -> bool:
        """Whether no stage is driven by its own gradient that declares to have none."""
        return not any(
            self._paths.get(stage.component) == "exact" and not stage.differentiable for stage in self.stages
        )

    def excess(self, anomaly: Mapping[str, Tensor]) -> Tensor:
        """Return how far scores lie above their thresholds ``[N]``, the largest over stages, each in its own unit."""
        above = [(anomaly[name] - own.value) / own.scale for name, own in self.thresholds.items()]
        return torch.stack(above).amax(0)

    def _classify(self, x: Tensor) -> Tensor:
        logits: Tensor = _in_full(self.classifier(x), x)
        self._count("classifier", logits, len(x))
        return logits

    def _pass_stage(self, stage: FittedStage, x: Tensor, rng: ImageRandom) -> Tensor:
        path = self._paths.get(stage.component, "exact" if stage.differentiable else "bpda")
        if x.requires_grad and torch.is_grad_enabled() and path == "bpda":
            with torch.no_grad():
                purified = stage.defense.purify(x.detach().clone(), rng)
            purified = straight_through(purified, stage.defense.surrogate(x))
        elif path == "exact" and not stage.differentiable and x.requires_grad:
            purified = _against_declaration(stage, x, rng)
        else:
            purified = stage.defense.purify(x, rng)
        purified = _in_full(purified, x)
        if torch.is_grad_enabled():
            check_shape(purified, x, stage.component)  # in every step of an attack: what costs nothing
        else:
            check_images(purified, x, stage.component)
        self._count(stage.component, purified, len(x))
        return purified

    def _count(self, component: str, output: Tensor, images: int) -> None:
        self.counter.forward(component, images)
        if output.requires_grad:
            # Counted when a gradient really flows, so that an attack pays for what it did and for nothing else.
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda _gradient: self.counter.backward(component, images)
            )


def _in_full(output: Tensor, x: Tensor) -> Tensor:
    """Return what came out of networks that autocast runs in bfloat16, in the precision of what went in."""
    if torch.is_autocast_enabled(x.device.type) and isinstance(output, Tensor):
        return output.to(x.dtype)
    return output


def _against_declaration(stage: FittedStage, x: Tensor, rng: ImageRandom) -> Tensor:
    """Return what a stage makes of images that want a gradient, which its spec never promised to bear.

    Raises GradientCut where it does not, as ``x.numpy()`` does: that is no defect of the defense.
    """
    try:
        return stage.defense.purify(x, rng)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise GradientCut(f"{stage.component} computes without gradients: {error}") from error


def frozen(module: nn.Module) -> nn.Module:
    """Put a network in evaluation mode and stop gradients of its weights; those of its input still flow."""
    return module.eval().requires_grad_(requires_grad=False)
