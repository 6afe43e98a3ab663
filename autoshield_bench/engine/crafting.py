"""The attack stage: one attack on one subset, over every gradient route that it takes.

With several routes, what each of them finds is judged on the whole pipeline, and the best point is kept. Where fallen
images may leave, a route gets those that the routes before it left standing. The declared route is attacked in full. An
attack that has a cheaper form (``Attack.first_look``) takes the others with it, and then each image's most promising
one in full: what a wrong declaration hides shows in a few steps, and the restarts go where they help.
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
from autoshield_bench.engine.integrity import check_untouched
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
    again: int = 0
    """Images that came closest to falling along it and were attacked along it in full, after a first look."""

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


class _Hunt:
    """What several routes have found of a batch so far."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.best = batch.images.clone()
        self.value = torch.full((len(batch.rng),), -torch.inf, device=batch.images.device)
        """By how much the whole pipeline is misled."""
        self.by = torch.zeros(len(batch.rng), dtype=torch.int64)
        """Number of the route that found it."""
        self.spent = torch.zeros(len(batch.rng), dtype=torch.int64)
        self.cut: GradientCut | None = None


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
            found, spent = self._search(self._runner, *self._searched[0], batch, torch.arange(len(batch.rng)))
            self.counts[self._searched[0][0].name].tried += len(batch.rng)
            return found, spent
        hunt = _Hunt(batch)
        look = self._runner.first_look()
        for number, (route, _pipeline) in enumerate(self._searched):
            rows = self._alive(hunt)
            runner = self._runner if number == 0 or look is None else look
            if self._follow(hunt, number, runner, rows, batch.rng):
                self.counts[route.name].tried += len(rows)
            else:
                self.counts[route.name].cut += len(rows)
        if look is not None:
            # An image gets the rest of the attack on the route that brought it closest to falling.
            for number, (route, _pipeline) in enumerate(self._searched[1:], 1):
                alive = self._alive(hunt)
                rows = alive[hunt.by[alive] == number]
                self._follow(hunt, number, self._runner, rows, batch.rng.child("again"))
                self.counts[route.name].again += len(rows)
        if hunt.cut is not None and not bool(hunt.value.isfinite().any()):
            raise hunt.cut
        return hunt.best, hunt.spent

    def _alive(self, hunt: _Hunt) -> Tensor:
        """Return the rows that are still to be attacked."""
        if self._attack.stop_on_success:
            return (hunt.value <= 0).cpu().nonzero()[:, 0]
        return torch.arange(len(hunt.spent))

    def _follow(self, hunt: _Hunt, number: int, runner: Attack, rows: Tensor, rng: ImageRandom) -> bool:
        """Attack the images at some rows along one route, and keep what misleads the whole pipeline more.

        Return whether gradients came through.
        """
        if not len(rows):
            return True
        route, pipeline = self._searched[number]
        batch = dataclasses.replace(hunt.batch, rng=rng)
        try:
            found, own = self._search(runner, route, pipeline, batch, rows)
        except GradientCut as error:
            hunt.cut = error
            return False
        reached = self._judge(found, batch, rows, number)
        hunt.spent[rows] += own + self._draws()
        place = rows.to(hunt.value.device)
        better = reached > hunt.value[place]
        self.counts[route.name].fell += int(((reached > 0) & (hunt.value[place] <= 0)).sum())
        hunt.best[place[better]], hunt.value[place[better]] = found[better], reached[better]
        hunt.by[rows[better.cpu()]] = number
        return True

    def _search(
        self, runner: Attack, route: Route, pipeline: Pipeline, batch: Batch, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
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
            precision=attack.precision,
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
            returned = attempt(runner, request)
        check_untouched({"images": (request.images, images), "labels": (request.labels, labels)}, self._who)
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
