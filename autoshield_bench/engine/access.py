"""What an attack may see: a target holds the pipeline that its access level permits, and nothing else.

A gray-box target is built on the bare classifier, so the defense is not reachable from it; a white-box or black-box
target is built on the whole defended pipeline, and a transfer target on a surrogate of it. An attack that declares to
need scores or labels gets a target without gradients, and under black-box access one that counts queries. Nothing here
is enforced by a label.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from autoshield_bench.contracts import (
    Access,
    Attack,
    AttackRequest,
    AttackSpec,
    LossGradient,
    Needs,
    Norm,
    Precision,
    TargetOutput,
    ThreatModel,
)
from autoshield_bench.engine.pipeline import Pipeline
from autoshield_bench.engine.queries import QueryLog
from autoshield_bench.errors import AccessError, BudgetSpent, CellError, GradientCut
from autoshield_bench.seeding import ImageRandom


class _PipelineTarget:
    """What targets of every access level share."""

    def __init__(self, pipeline: Pipeline, rng: ImageRandom, *, classes: int, draws: int) -> None:
        self._pipeline = pipeline
        self._rng = rng
        self._classes = classes
        self._samples = draws if pipeline.stochastic else 1
        self._rows = torch.arange(len(rng))
        self.spent = torch.zeros(len(rng), dtype=torch.int64)
        """Passes through the pipeline per image, forward and backward, of this target and its selections."""
        # Shared with selections, so that draws stay fresh when an attack selects in every step.
        self._calls = [0]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self._classes

    def select(self, rows: Tensor) -> Any:
        """Return the target for some of the images."""
        chosen = type(self).__new__(type(self))
        chosen.__dict__.update(self.__dict__)
        chosen._rng = self._rng.select(rows)
        chosen._rows = self._rows[rows.cpu()]
        return chosen

    def _spend(self, passes: int) -> None:
        self.spent.index_add_(0, self._rows, torch.full_like(self._rows, passes))

    def _fresh_draws(self) -> list[ImageRandom]:
        self._calls[0] += 1
        return [self._rng.child("eot", self._calls[0], sample) for sample in range(self._samples)]


class GradientTarget(_PipelineTarget):
    """A target with gradients; see ``contracts.Target``."""

    def __init__(
        self,
        pipeline: Pipeline,
        rng: ImageRandom,
        *,
        classes: int,
        eot: int,
        detector_aware: bool = False,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(pipeline, rng, classes=classes, draws=eot)
        self._low = precision == "bf16"
        self._detects = detector_aware and bool(pipeline.thresholds)

    @property
    def detects(self) -> bool:
        """Whether outputs hold the excess over the detectors' thresholds."""
        return self._detects

    def output(self, x: Tensor) -> TargetOutput:
        """Return the whole output, averaged over draws where the pipeline is stochastic; differentiable."""
        if x.requires_grad and torch.is_grad_enabled():
            # Where all paths back meet: a loss may be made of any part of the output.
            x = x.view_as(x)
            x.register_hook(lambda _gradient: self._spend(self._samples))  # type: ignore[no-untyped-call]
        drawn = [self._once(x, rng) for rng in self._fresh_draws()]
        output = drawn[0]
        if len(drawn) > 1:
            excess = torch.stack([own.excess for own in drawn if own.excess is not None]) if self._detects else None
            output = TargetOutput(
                torch.stack([own.logits for own in drawn]).mean(0),
                torch.stack([own.purified for own in drawn]).mean(0),
                None if excess is None else excess.mean(0),
            )
        self._spend(self._samples)
        return output

    def logits(self, x: Tensor) -> Tensor:
        """Return logits, averaged over draws where the pipeline is stochastic; differentiable."""
        return self.output(x).logits

    def labels(self, x: Tensor) -> Tensor:
        """Return the class of the highest logit."""
        with torch.no_grad():
            return self.logits(x).argmax(1)

    def loss_gradient(self, x: Tensor, loss: Callable[[Tensor], Tensor]) -> LossGradient:
        """Return per-image loss, its gradient and the logits, each averaged over draws (EOT)."""
        return self.output_gradient(x, lambda output: loss(output.logits))

    def output_gradient(self, x: Tensor, loss: Callable[[TargetOutput], Tensor]) -> LossGradient:
        """Return the same for a loss of the whole output. Raises GradientCut where nothing connects it to ``x``."""
        point = x.detach().requires_grad_()
        sums: list[Tensor] = []
        for rng in self._fresh_draws():
            with torch.enable_grad():
                output = self._once(point, rng)
                losses = loss(output)
                if losses.shape != (len(x),):
                    raise CellError(f"a loss returned shape {tuple(losses.shape)} where ({len(x)},) belongs")
                gradient = self._gradient(losses, point)
            drawn = [losses.detach(), gradient, output.logits.detach()]
            if output.excess is not None:
                drawn.append(output.excess.detach())
            sums = [total + value for total, value in zip(sums, drawn, strict=True)] if sums else drawn
        self._spend(2 * self._samples)
        if self._samples > 1:
            sums = [total / self._samples for total in sums]
        return LossGradient(*sums)

    def _gradient(self, losses: Tensor, point: Tensor) -> Tensor:
        gradient = None
        try:
            if losses.requires_grad:
                (gradient,) = torch.autograd.grad(losses.sum(), point, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if self._pipeline.as_declared:
                raise
            raise GradientCut(f"a stage that declares no gradient has none: {error}") from error
        if gradient is None:
            raise GradientCut(
                "no gradient reaches the images: the defense cuts the graph, as detach() and no_grad() do; "
                "declare differentiable=False and give a surrogate"
            )
        return gradient

    def _once(self, x: Tensor, rng: ImageRandom) -> TargetOutput:
        # Passes that no gradient is asked of tell whether a point is adversarial: in float32, as the scoring will.
        low = self._low and x.requires_grad and torch.is_grad_enabled()
        with torch.autocast(x.device.type, torch.bfloat16) if low else contextlib.nullcontext():
            output = self._pipeline(x, rng, detect=self._detects)
        excess = self._pipeline.excess(output.anomaly) if self._detects else None
        return TargetOutput(output.logits, output.purified, excess)


class QueryTarget(_PipelineTarget):
    """A target without gradients: scores, or labels alone. One query is one image once through the pipeline."""

    def __init__(self, pipeline: Pipeline, rng: ImageRandom, *, classes: int, needs: Needs, log: QueryLog) -> None:
        # One draw per query: nobody can ask a deployed defense for the mean of its noise.
        super().__init__(pipeline, rng, classes=classes, draws=1)
        self._needs = needs
        self.log = log

    def logits(self, x: Tensor) -> Tensor:
        """Return logits without gradients. Raises AccessError where the attack declared to need labels alone."""
        if self._needs == "labels":
            raise AccessError("the attack declares needs='labels' and asked for logits; declare needs='scores'")
        return self._ask(x)

    def labels(self, x: Tensor) -> Tensor:
        """Return the class of the highest logit."""
        return self._ask(x).argmax(1)

    def loss_gradient(self, x: Tensor, loss: Callable[[Tensor], Tensor]) -> LossGradient:
        """Raise AccessError."""
        raise AccessError(
            f"the attack declares needs={self._needs!r} and asked for a gradient; declare needs='gradients'"
        )

    @property
    def detects(self) -> bool:
        """Return False: without gradients there is no excess to be had."""
        return False

    def output(self, x: Tensor) -> TargetOutput:
        """Raise AccessError."""
        raise AccessError(
            f"the attack declares needs={self._needs!r} and asked for the whole output; declare needs='gradients'"
        )

    def output_gradient(self, x: Tensor, loss: Callable[[TargetOutput], Tensor]) -> LossGradient:
        """Raise AccessError."""
        raise AccessError(
            f"the attack declares needs={self._needs!r} and asked for a gradient; declare needs='gradients'"
        )

    def _ask(self, x: Tensor) -> Tensor:
        if len(x) != len(self._rows):
            raise CellError(f"asked about {len(x)} images where the target is for {len(self._rows)}; use select()")
        self.log.charge(self._rows)
        self._spend(1)
        point = x.detach()
        with torch.no_grad():
            logits = self._pipeline(point, self._fresh_draws()[0]).logits
        self.log.see(self._rows, point, logits, scores=self._needs != "labels")
        return logits


def target_for(
    spec: AttackSpec,
    access: Access,
    pipeline: Pipeline,
    rng: ImageRandom,
    *,
    classes: int,
    eot: int,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    targets: Tensor | None = None,
    queries: int | None = None,
    precision: Precision = "float32",
) -> GradientTarget | QueryTarget:
    """Return what an attack of this spec is handed at this access level. Raises AccessError where they do not fit."""
    if spec.needs == "gradients":
        if access == "black-box":
            raise AccessError(f"attack {spec.name!r} needs gradients, which black-box access does not give")
        return GradientTarget(
            pipeline, rng, classes=classes, eot=eot, detector_aware=spec.detector_aware, precision=precision
        )
    log = QueryLog(images, labels, threat, targets=targets, budget=queries, nearest=spec.search == "minimum-norm")
    return QueryTarget(pipeline, rng, classes=classes, needs=spec.needs, log=log)


def attempt(attack: Attack, request: AttackRequest) -> Tensor:
    """Run an attack; where its query budget ends, return the best point that was seen."""
    try:
        return attack.run(request)
    except BudgetSpent as spent:
        return spent.best


def searched(spec: AttackSpec, threat: ThreatModel, image_shape: Sequence[int]) -> ThreatModel:
    """Return the ball that an attack is asked to search: for minimum-norm attacks, the one that holds all images."""
    return whole_range(threat.norm, image_shape) if spec.search == "minimum-norm" else threat


def whole_range(norm: Norm, image_shape: Sequence[int]) -> ThreatModel:
    """Return the smallest ball that holds all of [0, 1] around any image."""
    return ThreatModel(norm=norm, eps=1.0 if norm == "linf" else math.prod(image_shape) ** 0.5)
