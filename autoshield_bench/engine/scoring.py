"""The score stage: what the clean float32 pipeline makes of a cell's images, and every metric taken on that."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoshield_bench.contracts import MetricValues, PairMetric, PredictionMetric
from autoshield_bench.engine.guard import check_aggregate, check_logits, check_text, check_values
from autoshield_bench.engine.integrity import fenced, kept, networks_of
from autoshield_bench.engine.pipeline import PassCounter, Pipeline
from autoshield_bench.engine.stages import Passes, Workshop
from autoshield_bench.errors import Unavailable
from autoshield_bench.outcomes import Detection, Draws, Outcomes, mask_of
from autoshield_bench.plan import Cell, Use, metric_spec
from autoshield_bench.results import MetricResult
from autoshield_bench.seeding import ImageRandom, derive_seed, global_seed
from autoshield_bench.statistics import auroc

CHUNK = 500
"""Images handed to a metric at once."""

DRAWS = 20
"""Fresh draws per image by which a stochastic pipeline is scored, and as many others by which the worst attack is
chosen. Metrics and image quality are taken on the first."""


@dataclass(frozen=True)
class Score:
    """What scoring a cell came to."""

    outcomes: Outcomes
    metrics: Mapping[str, MetricResult]
    passes: Mapping[str, Passes]
    samples: Mapping[str, Tensor]
    detection: Detection | None
    """None where the defense does not detect."""
    routes: Mapping[str, Mapping[str, int]]
    """What became of each gradient route of the attack; empty in a clean cell."""
    changed: Sequence[str]
    """What the plugins changed in the networks meanwhile, and was put back."""


class _Counts:
    """Counts draws per image, under several names."""

    def __init__(self, images: int) -> None:
        self._images = images
        self.of: dict[str, Tensor] = {}

    def add(self, name: str, rows: Tensor, happened: Tensor) -> None:
        """Count one draw of the images at ``rows``."""
        counts = self.of.setdefault(name, torch.zeros(self._images, dtype=torch.int64))
        counts[rows] += happened

    def draws(self) -> Draws:
        """Return both sets of draws of a stochastic pipeline."""
        return Draws(n=DRAWS, **{name: bytes(self.of[name].tolist()) for name in ("selection", "scored")})


@dataclass(frozen=True)
class _Seen:
    """What a pipeline made of the images at ``indices``."""

    indices: Tensor
    logits: Tensor
    purified: Tensor | None
    """None where the defense does not transform images."""
    anomaly: Mapping[str, Tensor]
    """Anomaly scores by component, for stages that detect; of the first draw."""
    flags: Mapping[str, Tensor]
    """By nominal false-positive rate: how many of the scored draws flag each image ``[N]``, int64."""
    won: Mapping[str, Draws]
    """See ``Detection.won``."""
    right: _Counts | None
    """Where the pipeline is stochastic: how many of the draws for ``selection`` and of those ``scored`` classify each
    image correctly."""
    passes: Passes
    changed: Sequence[str] = ()
    """What was changed in the networks, and was put back."""


class Scorer:
    """Scores cells. Keeps what several cells share: predictions on clean images, metrics of gray-box examples."""

    def __init__(self, workshop: Workshop, clean_images: int) -> None:
        self._workshop = workshop
        self._clean_images = clean_images
        self._clean: dict[tuple[str, ...], _Seen] = {}
        self._pairs: dict[tuple[str, str], tuple[Tensor, Tensor, Tensor]] = {}
        self._ready: dict[str, str | None] = {}

    def score(self, cell: Cell) -> Score:
        """Score one cell: craft or fetch its images, classify them, take the metrics."""
        workshop = self._workshop
        subset = workshop.data.test_subset(cell.images)
        attack_passes: Passes = {}
        clean = self._on_clean(cell)
        rows = torch.searchsorted(clean.indices, subset)
        if cell.attack is None:
            images, seen = None, clean
        else:
            images, attack_passes = workshop.adversarial(cell, cell.attack)
            seen = self._classify(cell, subset, images)
        labels = workshop.data.test_labels[subset]
        predictions = seen.logits.argmax(1)
        correct = predictions == labels if seen.right is None else 2 * seen.right.of["scored"] > DRAWS
        samples: dict[str, Tensor] = {
            "index": subset,
            "label": labels,
            "clean_prediction": clean.logits[rows].argmax(1),
            "prediction": predictions,
            "correct": correct,
        }
        for component, scores in seen.anomaly.items():
            samples[f"anomaly/{component}"] = scores
        for name, counts in ({} if seen.right is None else seen.right.of).items():
            samples[f"draws/{name}"] = counts
        if cell.attack is not None:
            samples |= workshop.per_image(cell, cell.attack)
        metrics = {}
        for use in cell.metrics:
            with fenced(f"metric {use.label!r}", workshop.progress.warn):
                metrics[use.label] = self._metric(cell, use, clean.logits[rows], seen, images, samples)
        draws = None if seen.right is None else seen.right.draws()
        size = workshop.data.info.test_size
        return Score(
            Outcomes.from_indices(size, subset.tolist(), subset[correct].tolist(), draws),
            metrics,
            {"attack": attack_passes, "score": seen.passes},
            samples,
            self._detection(cell, clean, rows, seen, correct, size),
            {} if cell.attack is None else workshop.routes_taken(cell, cell.attack),
            sorted({*seen.changed, *(() if cell.attack is None else workshop.changed_by(cell, cell.attack))}),
        )

    def _detection(
        self, cell: Cell, clean: _Seen, rows: Tensor, seen: _Seen, correct: Tensor, size: int
    ) -> Detection | None:
        if not seen.anomaly:
            return None
        subset = seen.indices
        draws = 1 if seen.right is None else DRAWS
        was_right = clean.logits[rows].argmax(1) == self._workshop.data.test_labels[subset]
        fooled = was_right & ~correct
        return Detection(
            flagged={rate: mask_of(size, subset[2 * flags > draws].tolist()) for rate, flags in seen.flags.items()},
            thresholds={
                rate: {name: threshold.value for name, threshold in own.items()}
                for rate, own in self._workshop.thresholds(cell).items()
            },
            not_applicable=self._workshop.no_thresholds(cell),
            won=seen.won,
            auroc={name: _auroc(scores[fooled], clean.anomaly[name][rows]) for name, scores in seen.anomaly.items()},
        )

    # -- predictions ---------------------------------------------------------------------------------------------

    def _on_clean(self, cell: Cell) -> _Seen:
        key = (cell.model.key, *(stage.key for stage in cell.stages))
        if key not in self._clean:
            subset = self._workshop.data.test_subset(self._clean_images)
            self._clean[key] = self._classify(cell, subset, None)
        return self._clean[key]

    def _classify(self, cell: Cell, subset: Tensor, images: Tensor | None) -> _Seen:
        workshop, changed = self._workshop, list[str]()
        networks = networks_of(workshop.classifier(cell), workshop.stages(cell))
        with kept(networks, changed.append), fenced(f"defense {cell.id.defense!r}", workshop.progress.warn):
            seen = self._look(cell, subset, images)
        return dataclasses.replace(seen, changed=tuple(changed))

    def _look(self, cell: Cell, subset: Tensor, images: Tensor | None) -> _Seen:
        workshop = self._workshop
        # A count of its own: what a record says must not depend on which cells ran before it.
        counter = PassCounter()
        pipeline = Pipeline(workshop.classifier(cell), workshop.stages(cell), counter)
        thresholds = workshop.thresholds(cell) if pipeline.detectors else {}
        logits, purified = [], []
        anomaly: dict[str, list[Tensor]] = {}
        right, flags = _Counts(len(subset)), _Counts(len(subset))
        won = {rate: _Counts(len(subset)) for rate in thresholds}
        purposes = ("selection", "scored") if pipeline.stochastic else ("scored",)
        # Draws of its own, which no attack has seen.
        purpose = ("score", cell.key) if images is not None else ("score", "clean")
        for part in torch.split(torch.arange(len(subset)), workshop.batch_size):
            indices = subset[part]
            batch = (workshop.data.test_images(indices) if images is None else images[part]).to(workshop.device)
            rng = ImageRandom(derive_seed(*purpose, cell.id.seed), indices.tolist())
            who = f"defense {cell.id.defense!r}"
            labels = workshop.data.test_labels[indices]
            for name in purposes:
                for draw in range(DRAWS if pipeline.stochastic else 1):
                    own = rng if name == "scored" and draw == 0 else rng.child(name, draw)
                    with torch.no_grad(), global_seed(*purpose, *indices[:1].tolist(), name, draw):
                        output = pipeline(batch, own, detect=bool(pipeline.detectors))
                    drawn = check_logits(output.logits, len(batch), workshop.data.info.classes, who).cpu()
                    hit = drawn.argmax(1) == labels
                    right.add(name, part, hit)
                    for rate, known in thresholds.items():
                        pipeline.thresholds = known
                        raised = (pipeline.excess(output.anomaly) > 0).cpu()
                        won[rate].add(name, part, hit & ~raised if images is None else hit | raised)
                        if name == "scored":
                            flags.add(rate, part, raised)
                    if name == "scored" and draw == 0:
                        logits.append(drawn)
                        if pipeline.stages:
                            purified.append(output.purified.cpu())
                        for component, scores in output.anomaly.items():
                            anomaly.setdefault(component, []).append(scores.cpu())
        return _Seen(
            subset,
            torch.cat(logits),
            torch.cat(purified) if purified else None,
            {component: torch.cat(parts) for component, parts in anomaly.items()},
            flags.of,
            {rate: counts.draws() for rate, counts in won.items()} if pipeline.stochastic else {},
            right if pipeline.stochastic else None,
            counter.to_json(),
        )

    # -- metrics -------------------------------------------------------------------------------------------------

    def _metric(
        self, cell: Cell, use: Use, clean_logits: Tensor, seen: _Seen, images: Tensor | None, samples: dict[str, Tensor]
    ) -> MetricResult:
        spec = metric_spec(use)
        metric: PairMetric | PredictionMetric = self._workshop.registry.make(use.plugin, use.params)
        who = f"metric {use.label!r} of {use.plugin.distribution}"
        notes = check_text(metric.notes(), f"{who}: notes()")
        header: dict[str, Any] = {"direction": spec.direction, "unit": spec.unit, "notes": notes}
        reason = self._unavailable(use, metric)
        pairs: dict[str, dict[str, Any]] = {}
        try:
            if reason is not None:
                raise Unavailable(reason)
            for name, (rows, values, defined) in self._values(
                cell, use, metric, clean_logits, seen, images, who
            ).items():
                pairs[name] = {
                    "value": check_aggregate(metric.aggregate(values[defined].tolist(), int((~defined).sum())), who),
                    "n": len(rows),
                    "undefined": int((~defined).sum()),
                }
                placed = torch.full((len(seen.indices),), torch.nan)
                placed[rows] = torch.where(defined, values.float(), torch.nan)
                samples[f"{use.label}/{name}"] = placed
        except Unavailable as error:
            why = check_text(str(error), f"{who}: why it is unavailable")
            return MetricResult(pairs={}, unavailable=why, retry=reason is not None, **header)
        return MetricResult(pairs=pairs, **header)

    def _unavailable(self, use: Use, metric: PairMetric | PredictionMetric) -> str | None:
        if use.label not in self._ready:
            try:
                metric.prepare()
                self._ready[use.label] = None
            except Unavailable as error:
                self._ready[use.label] = str(error)
                self._workshop.progress.warn(f"metric {use.label!r} is unavailable: {error}")
        return self._ready[use.label]

    def _values(
        self,
        cell: Cell,
        use: Use,
        metric: PairMetric | PredictionMetric,
        clean_logits: Tensor,
        seen: _Seen,
        images: Tensor | None,
        who: str,
    ) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Return (rows of the cell's subset, values, defined) by what the metric looked at."""
        data = self._workshop.data
        rows = self._metric_rows(seen.indices, metric.images)
        found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        if isinstance(metric, PredictionMetric):
            labels = data.test_labels[seen.indices[rows]]
            values = check_values(metric.per_image(labels, clean_logits[rows], seen.logits[rows]), len(rows), who)
            found["predictions"] = (rows, values.values, _defined(values))
            return found
        if images is not None and cell.attack is not None:
            # The key of a minimum-norm attack holds no eps, and the images differ by it.
            crafted = f"{cell.attack.key}/{cell.attack.threat.eps}"
            found["clean-adversarial"] = self._shared_pair(crafted, use, metric, seen.indices, rows, images, who)
        if seen.purified is not None:
            found["clean-purified"] = self._pair(metric, seen.indices, rows, seen.purified, who)
        return found

    def _shared_pair(
        self, crafted: str, use: Use, metric: PairMetric, indices: Tensor, rows: Tensor, images: Tensor, who: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Gray-box examples are scored against every defense, and the pair (clean, adversarial) is the same each time.
        key = (crafted, use.label)
        if key not in self._pairs:
            self._pairs[key] = self._pair(metric, indices, rows, images, who)
        return self._pairs[key]

    def _pair(
        self, metric: PairMetric, indices: Tensor, rows: Tensor, others: Tensor, who: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        values, defined = [], []
        for part in torch.split(rows, CHUNK):
            reference = self._workshop.data.test_images(indices[part])
            checked = check_values(metric.per_image(reference, others[part].clone()), len(part), who)
            values.append(checked.values)
            defined.append(_defined(checked))
        return rows, torch.cat(values), torch.cat(defined)

    def _metric_rows(self, indices: Tensor, images: int | None) -> Tensor:
        """Return the rows of a subset that a metric looks at: all, or the first in the fixed stratified order."""
        if images is None or images >= len(indices):
            return torch.arange(len(indices))
        order = self._workshop.data.test_order
        chosen = order[torch.isin(order, indices)][:images].sort().values
        return torch.searchsorted(indices, chosen)


def _auroc(positives: Tensor, negatives: Tensor) -> float | None:
    if not len(positives) or not len(negatives):
        return None
    return auroc(positives.double().tolist(), negatives.double().tolist())


def _defined(values: MetricValues) -> Tensor:
    return values.defined if values.defined is not None else torch.ones(len(values.values), dtype=torch.bool)
