"""The attack stage: one attack on one subset, over every gradient route that it takes.

With several routes, what each of them finds is judged on the whole pipeline, and the best point is kept. Where fallen
images may leave, a route gets those that the routes before it left standing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoshield_bench.contracts import Attack, AttackRequest, ThreatModel
from autoshield_bench.engine.access import attempt, target_for
from autoshield_bench.engine.guard import check_adversarial
from autoshield_bench.engine.pipeline import FittedStage, PassCounter, Pipeline, Threshold
from autoshield_bench.errors import GradientCut
from autoshield_bench.margins import margins
from autoshield_bench.plan import AttackPlan
from autoshield_bench.routes import Route
from autoshield_bench.seeding import ImageRandom, global_seed


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images to attack, on the device."""

    images: Tensor
    labels: Tensor
    targets: Tensor | None
    rng: ImageRandom
    decoys: Callable[[Tensor], Tensor]
    """Of the images at some rows."""


@dataclass
class RouteCount:
    """What became of one route."""

    tried: int = 0
    """Images that it was tried on."""
    fell: int = 0
    """Of them, those that stood before and fell to it."""
    cut: int = 0
    """Images for which no gradient came through."""

    def to_json(self) -> dict[str, int]:
        """Return the counts."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Networks:
    """What attacks may be let loose on."""

    classifier: nn.Module
    stages: Sequence[FittedStage]
    thresholds: Mapping[str, Threshold]
    counter: PassCounter

    def along(self, route: Route) -> Pipeline:
        """Return the pipeline that a route searches on."""
        taking_part = [stage for stage in self.stages if stage.component in route.components]
        known = {name: own for name, own in self.thresholds.items() if name in route.components}
        return Pipeline(self.classifier, taking_part, self.counter, paths=dict(route.paths), thresholds=known)


class Crafting:
    """Crafts adversarial images batch by batch."""

    def __init__(
        self, runner: Attack, attack: AttackPlan, networks: Networks, classes: int, threat: ThreatModel, who: str
    ) -> None:
        self._runner = runner
        self._attack = attack
        self._classes = classes
        self._threat = threat
        self._who = who
        self._searched = [(route, networks.along(route)) for route in attack.routes]
        self._whole = self._searched[0][1]
        self.counts = {route.name: RouteCount() for route in attack.routes}

    def craft(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return adversarial images, on the device, and the passes spent per image, int64 ``[N]`` on the CPU.

        Raises GradientCut where no route lets a gradient through.
        """
        if len(self._searched) == 1:
            found, spent = self._search(*self._searched[0], batch, torch.arange(len(batch.rng)))
            self.counts[self._searched[0][0].name].tried += len(batch.rng)
            return found, spent
        best, value = batch.images.clone(), torch.full((len(batch.rng),), -torch.inf, device=batch.images.device)
        spent = torch.zeros(len(batch.rng), dtype=torch.int64)
        alive = torch.arange(len(batch.rng))
        cut: GradientCut | None = None
        for number, (route, pipeline) in enumerate(self._searched):
            count = self.counts[route.name]
            try:
                found, own = self._search(route, pipeline, batch, alive)
            except GradientCut as error:
                cut = error
                count.cut += len(alive)
                continue
            spent[alive] += own
            count.tried += len(alive)
            reached = self._judge(found, batch, alive, number)
            spent[alive] += self._draws()
            place = alive.to(value.device)
            better = reached > value[place]
            count.fell += int(((reached > 0) & (value[place] <= 0)).sum())
            best[place[better]], value[place[better]] = found[better], reached[better]
            if self._attack.stop_on_success:
                alive = (value <= 0).cpu().nonzero()[:, 0]
                if not len(alive):
                    break
        if cut is not None and not bool(value.isfinite().any()):
            raise cut
        return best, spent

    def _search(self, route: Route, pipeline: Pipeline, batch: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
        attack = self._attack
        place = rows.to(batch.images.device)
        images, labels = batch.images[place], batch.labels[place]
        targets = None if batch.targets is None else batch.targets[place]
        rng = batch.rng if len(rows) == len(batch.rng) else batch.rng.select(rows)
        target = target_for(
            attack.spec,
            attack.access,
            pipeline,
            rng.child("target"),
            classes=self._classes,
            eot=attack.eot,
            images=images,
            labels=labels,
            threat=self._threat,
            targets=targets,
            queries=attack.queries,
        )
        request = AttackRequest(
            images=images.clone(),
            labels=labels.clone(),
            threat=self._threat,
            target=target,
            rng=rng.child("attack"),
            targets=targets,
            queries=attack.queries,
            # What falls on a part of the pipeline need not fall on the whole.
            stop_on_success=attack.stop_on_success and route.whole,
            decoys=lambda: batch.decoys(rows),
        )
        # What an attack draws from global state depends on its key and on the batch alone.
        with global_seed("attack", attack.key, *batch.rng.indices[:1]):
            returned = attempt(self._runner, request)
        return check_adversarial(returned, images, self._threat, self._who), target.spent

    def _draws(self) -> int:
        return self._attack.eot if self._whole.stochastic else 1

    def _judge(self, found: Tensor, batch: Batch, rows: Tensor, number: int) -> Tensor:
        """Return per image by how much the whole pipeline is misled: positive where it is, flags included."""
        aware = self._attack.rate is not None
        rng = batch.rng.select(rows).child("judge", number)
        labels = batch.labels[rows.to(found.device)]
        logits, excess = [], []
        with torch.no_grad():
            for draw in range(self._draws()):
                output = self._whole(found, rng.child("draw", draw), detect=aware)
                logits.append(output.logits)
                if aware:
                    excess.append(self._whole.excess(output.anomaly))
        misled = margins(torch.stack(logits).mean(0), labels)
        # Just below zero counts as standing: a tie is decided by argmax, which the scoring uses.
        wrong = torch.stack(logits).mean(0).argmax(1) != labels
        misled = torch.where(wrong, misled.clamp_min(_TINY), misled.clamp_max(0.0))
        if not aware:
            return misled
        flagged = torch.stack(excess).mean(0)
        return torch.where(flagged > 0, -flagged - 1.0, misled)


_TINY = 1e-30
