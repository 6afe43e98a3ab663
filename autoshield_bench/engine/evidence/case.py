"""One worst-case estimate under judgement: its cells, its networks, its images, and what may be spent on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property, reduce
from operator import and_
from typing import Any

import torch
from torch import Tensor

from autoshield_bench.contracts import Attack, ThreatModel
from autoshield_bench.detection import RANKED_RATE
from autoshield_bench.engine.crafting import Batch, Crafting, Networks
from autoshield_bench.engine.decoys import decoys
from autoshield_bench.engine.guard import check_logits
from autoshield_bench.engine.pipeline import FittedStage, PassCounter, Pipeline, Threshold
from autoshield_bench.engine.stages import Workshop
from autoshield_bench.errors import CellError
from autoshield_bench.joint import won
from autoshield_bench.outcomes import Outcomes, mask_of
from autoshield_bench.plan import AttackPlan, Cell, EvidencePlan, Use
from autoshield_bench.results import CellRecord
from autoshield_bench.routes import Route, declared_route
from autoshield_bench.seeding import ImageRandom, derive_seed, global_seed
from autoshield_bench.standing import indices
from autoshield_bench.statistics import clopper_pearson
from autoshield_bench.verdicts import SHARE_OF_COST, Level, Verdict

DRAWS = 20
"""Draws by which a stochastic defense is judged wherever an image counts as fallen."""

CLEAR = 0.75
"""Share of the draws that must agree before an image of a stochastic defense counts as standing, or as fallen.

One that is right in half of its draws under any attack stands under one and falls under the next by chance; that it
does both clearly, in 15 of 20 draws each, happens to fewer than one in 2,000 (binomial, at most 0.021 squared)."""


@dataclasses.dataclass(frozen=True)
class Images:
    """Images with labels, on the CPU, and the numbers under which their randomness is drawn."""

    images: Tensor
    labels: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: Tensor) -> Images:
        """Return some of them."""
        return Images(self.images[rows], self.labels[rows], self.indices[rows])


class Case:
    """What the checks see."""

    def __init__(
        self, plan: EvidencePlan, records: Mapping[str, CellRecord], workshop: Workshop, level: Level, judged: int
    ) -> None:
        self.plan = plan
        self.level = level
        self.workshop = workshop
        self.records = records
        self.counter = PassCounter()
        self.budget = int(judged * SHARE_OF_COST[level])
        self.clean = plan.cells[0]
        self.attacked = [cell for cell in plan.cells if cell.attack is not None]
        self.white = [cell for cell in self.attacked if cell.id.access == "white-box"]

    # -- what was measured -----------------------------------------------------------------------------------------

    def record(self, cell: Cell) -> CellRecord | None:
        """Return a cell's record if it is well."""
        found = self.records.get(cell.key)
        return found if found is not None and found.outcomes is not None else None

    def outcomes(self, cell: Cell) -> Outcomes:
        """Return what a cell came to. Raises CellError where it failed."""
        record = self.record(cell)
        if record is None or record.outcomes is None:
            raise CellError(f"{cell.id} has no result")
        return record.outcomes

    def well(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells that did not fail."""
        return [cell for cell in cells if self.record(cell) is not None]

    def changed(self, cell: Cell) -> list[str]:
        """Return what plugins changed in the networks while the cell was computed."""
        record = self.records.get(cell.key)
        return [] if record is None else [str(name) for name in record.facts.get("changed", [])]

    def game(self, cell: Cell) -> Outcomes:
        """Return what a cell came to in the joint game where the defense detects: flags count. Raises CellError."""
        self.outcomes(cell)
        found = won(self.records[cell.key], self.rate)
        assert found is not None
        return found

    def stands(self, cell: Cell) -> int:
        """Return the mask of images that clearly stand in a cell; see ``CLEAR``."""
        found = self.game(cell)
        if found.draws is None:
            return found.correct
        return _mask(found, [CLEAR * found.draws.n <= own for own in found.draws.scored])

    def fell(self, cell: Cell) -> int:
        """Return the mask of images that clearly fell in a cell."""
        found = self.game(cell)
        if found.draws is None:
            return found.evaluated & ~found.correct
        return _mask(found, [own <= (1 - CLEAR) * found.draws.n for own in found.draws.scored])

    def counted(self) -> list[Cell]:
        """Return the cells that the worst case is taken over: no detector-aware ones of another rate."""
        return [cell for cell in self.well(self.plan.cells) if cell.id.fpr in (None, self.rate)]

    @cached_property
    def easier(self) -> list[Cell]:
        """The cells at smaller eps that belong to the worst case: what fell there lies in this ball too."""
        return [cell for cell in self.well(self.plan.easier) if cell.id.fpr in (None, self.rate)]

    @cached_property
    def evaluated(self) -> int:
        """Mask of the images that every counted cell evaluated."""
        own = [
            record.outcomes.evaluated for cell in self.counted() if (record := self.record(cell)) and record.outcomes
        ]
        return reduce(and_, own) if own else 0

    @cached_property
    def standing(self) -> int:
        """Mask of those that clearly stand under all of them, and under the attacks at smaller eps."""
        own = [self.stands(cell) for cell in self.counted()]
        own += [self.stands(cell) | ~self.outcomes(cell).evaluated for cell in self.easier]
        return reduce(and_, own, self.evaluated)

    @cached_property
    def rate(self) -> float | None:
        """Nominal false-positive rate of the joint game that ranks a defense that detects; None for any other."""
        detects = any(stage.detects for stage in self.clean.stages)
        return RANKED_RATE if detects and str(RANKED_RATE) in self.workshop.thresholds(self.clean) else None

    # -- images ------------------------------------------------------------------------------------------------------

    def test(self, mask: int) -> Images:
        """Return the test images of a mask."""
        data = self.workshop.data
        indices = torch.tensor([i for i in range(data.info.test_size) if mask >> i & 1], dtype=torch.int64)
        return Images(data.test_images(indices), data.test_labels[indices], indices)

    def sample(self, images: Images, most: int, purpose: str) -> Images:
        """Return at most so many of them, drawn at random, the same ones each time."""
        most = max(most, 0)
        if len(images) <= most:
            return images
        source = torch.Generator().manual_seed(derive_seed("evidence", purpose, self.plan.id.seed))
        return images.at(torch.randperm(len(images), generator=source)[:most].sort().values)

    # -- networks ----------------------------------------------------------------------------------------------------

    @cached_property
    def stages(self) -> tuple[FittedStage, ...]:
        """The fitted stages."""
        return self.workshop.stages(self.clean)

    @cached_property
    def thresholds(self) -> Mapping[str, Threshold]:
        """Where stages flag at the ranked rate."""
        return {} if self.rate is None else self.workshop.thresholds(self.clean)[str(self.rate)]

    @cached_property
    def networks(self) -> Networks:
        """What attacks are let loose on."""
        return Networks(
            classifier=self.workshop.classifier(self.clean),
            stages=self.stages,
            thresholds=self.thresholds,
            counter=self.counter,
        )

    @cached_property
    def pipeline(self) -> Pipeline:
        """The whole defended pipeline."""
        return self.networks.along(declared_route([stage.link for stage in self.clean.stages]))

    @cached_property
    def bare(self) -> Pipeline:
        """The undefended classifier."""
        return Pipeline(self.networks.classifier, (), self.counter)

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits of images that reach the classifier, as a detector may ask for them."""
        self.counter.forward("classifier", len(x))
        logits: Tensor = self.pipeline.classifier(x)
        return logits

    @property
    def device(self) -> str:
        """Where to compute."""
        return self.workshop.device

    @cached_property
    def eot(self) -> int:
        """Draws per gradient of the judged white-box attacks."""
        return max((cell.attack.eot for cell in self.white if cell.attack), default=1)

    @cached_property
    def forward(self) -> int:
        """Passes that one image costs, once through the pipeline; measured, since a detector may ask the classifier as
        often as it likes."""
        one, before = self.sample(self.test(self.evaluated), 1, "forward"), self.counter.total()
        with torch.no_grad(), global_seed("evidence", "forward"):
            self.pipeline(one.images.to(self.device), self.rng(one, "forward"), detect=bool(self.thresholds))
        return max(self.counter.total() - before, 1)

    @property
    def unit(self) -> int:
        """Passes that one gradient of one image costs."""
        return 2 * self.forward * self.eot

    @property
    def scoring(self) -> int:
        """Passes that it costs to see whether one image has fallen."""
        return self.forward * (DRAWS if self.pipeline.stochastic else 1)

    def price(self, attack: str, params: Mapping[str, Any]) -> int:
        """Return the passes that a built-in gradient attack costs at most for an image that never falls.

        Of several routes the first is attacked in full; each of the others too, or, where the attack has a cheaper form
        for a first look, by that, and the best of them in full. What a route finds is judged on the whole pipeline.
        """
        registry = self.workshop.registry
        runner: Attack = registry.make(registry.find("attack", f"autoshield-bench/{attack}"), params)
        look, beside = runner.first_look(), len(self.routes) - 1
        # A run looks at its last point too, or at its first.
        restarts = int(params.get("restarts", 0))
        full, quick = ((own.gradient_steps() or 1) + restarts for own in (runner, look or runner))
        if not beside:
            return self.unit * full
        follows = full + beside * quick + (full if look is not None else 0)
        judgements = 1 + beside * (2 if look is not None else 1)
        return self.unit * follows + judgements * self.forward * self.eot

    @property
    def left(self) -> int:
        """Passes that may still be spent; 0 where more were."""
        return max(self.budget - self.counter.total(), 0)

    # -- attacks -----------------------------------------------------------------------------------------------------

    def crafting(
        self,
        attack: str,
        params: Mapping[str, Any],
        *,
        threat: ThreatModel | None = None,
        routes: tuple[Route, ...] | None = None,
        bare: bool = False,
    ) -> Crafting:
        """Return a built-in attack on the whole pipeline, by the routes that the judged attacks took."""
        registry = self.workshop.registry
        plugin = registry.find("attack", f"autoshield-bench/{attack}")
        use = Use(attack, plugin, registry.filled_params(plugin, params))
        model = next(cell.attack for cell in self.white if cell.attack is not None)
        plan: AttackPlan = dataclasses.replace(
            model,
            use=use,
            threat=threat or model.threat,
            routes=(declared_route([]),) if bare else routes or self.routes,
            rate=self.rate if use.plugin.spec.detector_aware else None,  # type: ignore[attr-defined]
            goal="untargeted",
            eot=self.eot,
            queries=None,
            stop_on_success=not bare and not self.pipeline.stochastic,
            key=f"evidence {self.plan.key} {attack}",
        )
        networks = dataclasses.replace(self.networks, stages=()) if bare else self.networks
        who = f"evidence's attack {attack!r}"
        classes = self.workshop.data.info.classes
        return Crafting(registry.make(plugin, params), plan, networks, classes, plan.threat, who)

    @cached_property
    def routes(self) -> tuple[Route, ...]:
        """The gradient routes of the judged attack that takes most of them."""
        return max((cell.attack.routes for cell in self.white if cell.attack), key=len)

    def attack(self, crafting: Crafting, images: Images, purpose: str) -> Tensor:
        """Return adversarial images, on the CPU."""
        found = []
        for rows in torch.split(torch.arange(len(images)), self.workshop.batch_size):
            if not len(rows):
                break  # nothing stands: an empty batch says nothing, and not every network takes one
            found.append(crafting.craft(self._batch(images.at(rows), purpose))[0].cpu())
        return torch.cat(found) if found else images.images

    def _batch(self, part: Images, purpose: str) -> Batch:
        images, labels = part.images.to(self.device), part.labels.to(self.device)

        def nearest(rows: Tensor) -> Tensor:
            return decoys(self.workshop.data, images[rows.to(images.device)], labels[rows.to(labels.device)], None)

        return Batch(images=images, labels=labels, targets=None, rng=self.rng(part, purpose), decoys=nearest)

    def fallen(self, x: Tensor, images: Images, purpose: str, *, share: float = CLEAR) -> Tensor:
        """Return which images ``[N]`` are misclassified and not flagged, in at least this share of their draws."""
        count = torch.zeros(len(images), dtype=torch.int64)
        draws = DRAWS if self.pipeline.stochastic else 1
        for rows in torch.split(torch.arange(len(images)), self.workshop.batch_size):
            part = images.at(rows)
            for draw in range(draws if len(rows) else 0):
                with torch.no_grad(), global_seed("evidence", purpose, draw):
                    rng = self.rng(part, purpose).child("score", draw)
                    output = self.pipeline(x[rows].to(self.device), rng, detect=bool(self.thresholds))
                classes = self.workshop.data.info.classes
                logits = check_logits(output.logits, len(part), classes, "the defended pipeline").cpu()
                down = logits.argmax(1) != part.labels
                if self.thresholds:
                    down &= (self.pipeline.excess(output.anomaly) <= 0).cpu()
                count[rows] += down
        return count >= share * draws

    def rng(self, images: Images, purpose: str) -> ImageRandom:
        """Return the images' randomness."""
        return ImageRandom(derive_seed("evidence", purpose, self.plan.id.seed), images.indices.tolist())


class TooFew(Exception):
    """The budget does not buy what a check needs; the message says what it buys."""


def poor(case: Case, check: str, what: str) -> Verdict:
    """Return the verdict of a check that its budget buys too little for."""
    more = "attack more images" if case.level == "full" else "take --evidence full, or attack more images"
    text = f"its share of what the attacks cost buys {what} only; {more}"
    return Verdict(check=check, ruling="unproven", text=text, numbers={})


def beyond(count: int, n: int, share: float) -> bool:
    """Return whether a count of images shows, at 99 %, that more than a share of all such images would be counted."""
    return clopper_pearson(count, n, confidence=0.98)[0] > share


def _mask(outcomes: Outcomes, chosen: Sequence[bool]) -> int:
    """Return the mask of the evaluated images that are chosen, which come in ascending order."""
    places = zip(indices(outcomes.evaluated), chosen, strict=True)
    return mask_of(outcomes.size, (image for image, taken in places if taken))
