"""Suite -> Plan of Cells, each with the keys of everything that could change its outcome. Computes nothing.

Keys are SHA-256 over canonical JSON, in a chain: data -> train -> fit -> attack -> cell -> score. A gray-box attack
sees the bare classifier alone, so its key holds no defense and one artifact serves all of them. Not in a key: paths,
thread count and evaluation batch size, which change nothing but the order of floating-point sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from autoshield_bench.contracts import (
    ACCESS_LEVELS,
    CONTRACT,
    Access,
    AttackSpec,
    Dataset,
    Defense,
    DefenseSpec,
    Goal,
    Kind,
    MetricSpec,
    ModelSpec,
    Precision,
    ThreatModel,
)
from autoshield_bench.detection import RATES, too_small
from autoshield_bench.errors import DataError, PluginError
from autoshield_bench.numeric import Device, numeric_class
from autoshield_bench.registry import Plugin, speaking_for
from autoshield_bench.results import PLAN_SCHEMA, CellId
from autoshield_bench.routes import Link, Route, all_routes, declared_route
from autoshield_bench.seeding import derive_seed
from autoshield_bench.source import evidence_hash, harness_hash
from autoshield_bench.store import content_key, file_sha256
from autoshield_bench.suite import DEFAULT_QUERIES, Suite
from autoshield_bench.suite_check import SCORED_WHERE_MADE, LoadedSuite, flatten, takes_routes
from autoshield_bench.verdicts import EvidenceId, Level
from autoshield_bench.version import __version__


@dataclass(frozen=True)
class Use:
    """One plugin with its parameters, every default filled in."""

    label: str
    plugin: Plugin
    params: Mapping[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """What of it goes into keys."""
        return self.plugin.identity(self.params)


@dataclass(frozen=True)
class ModelPlan:
    """A classifier for one training seed."""

    use: Use
    seed: int
    key: str
    checkpoint: Path | None

    @property
    def trained_by_harness(self) -> bool:
        """Whether the harness trains it, rather than taking weights that came from elsewhere."""
        return self.checkpoint is None and not cast("ModelSpec", self.use.plugin.spec).trained


@dataclass(frozen=True)
class StagePlan:
    """One stage of a defense, for one training seed."""

    use: Use
    key: str
    component: str
    """Name under which passes are counted: position and plugin name."""
    seed: int
    link: Link
    """What of it matters to gradients."""
    detects: bool
    """Whether it scores anomalies."""

    @property
    def spec(self) -> DefenseSpec:
        """Its declarations."""
        return cast("DefenseSpec", self.use.plugin.spec)


@dataclass(frozen=True)
class AttackPlan:
    """One attack at one access level within one ball."""

    use: Use
    access: Access
    threat: ThreatModel
    model: ModelPlan
    """The classifier that it is made on: the cell's own, or a surrogate's."""
    seen: tuple[StagePlan, ...]
    """The stages that it looks through: none, the cell's own, or a surrogate's."""
    routes: tuple[Route, ...]
    """The gradient routes that it takes; the declared one first."""
    rate: float | None
    """Nominal false-positive rate whose thresholds it tries to stay under; None where it is aware of no detector."""
    goal: Goal
    eot: int
    eot_idle: bool
    """Whether the suite asks for ``eot`` where nothing that the attack sees is stochastic."""
    queries: int | None
    """Budget per image under black-box access."""
    stop_on_success: bool
    precision: Precision
    """In which gradients are taken."""
    key: str

    @property
    def spec(self) -> AttackSpec:
        """Its declarations."""
        return cast("AttackSpec", self.use.plugin.spec)

    def title(self, defense: str) -> str:
        """Return what it does to which defense, in words."""
        against = {"gray-box": "the bare classifier", "transfer": f"a surrogate of {defense}"}.get(self.access, defense)
        where = self.threat.norm if self.spec.search == "minimum-norm" else str(self.threat)
        rate = "" if self.rate is None else f" at a false-positive rate of {self.rate:g}"
        return f"{self.use.label} {self.access} {where} against {against}{rate}"


@dataclass(frozen=True)
class Cell:
    """One number of the leaderboard and everything that leads to it."""

    id: CellId
    key: str
    score_key: str
    model: ModelPlan
    stages: tuple[StagePlan, ...]
    attack: AttackPlan | None
    images: int
    """Size of the subset of test images that it evaluates."""
    metrics: tuple[Use, ...]


@dataclass(frozen=True)
class EvidencePlan:
    """One worst-case estimate to be judged."""

    id: EvidenceId
    key: str
    cells: tuple[Cell, ...]
    """The cells that it is taken over, the clean one first."""
    easier: tuple[Cell, ...]
    """Cells of the same defense and norm at smaller eps: what falls there falls here."""


@dataclass(frozen=True)
class Plan:
    """The cells of a suite, in the order in which tables show them."""

    suite: Suite
    dataset: Use
    data_dir: Path
    device: Device
    numeric_class: str
    cells: tuple[Cell, ...]
    checkpoints: Mapping[str, str]
    """SHA-256 of each checkpoint that the suite names."""
    level: Level
    """How much evidence is taken."""
    evidence: tuple[EvidencePlan, ...]
    """What is judged; nothing where ``level`` is off."""
    fingerprint: str
    """Hash of the data set's content."""

    def matching(self, pattern: str | None) -> tuple[Cell, ...]:
        """Return the cells whose id matches a shell pattern; all of them for None."""
        return tuple(cell for cell in self.cells if pattern is None or fnmatchcase(str(cell.id), pattern))

    def to_json(self) -> dict[str, Any]:
        """Return what ``plan.json`` holds: the resolved suite, its plugins and its cells."""
        used: dict[str, dict[str, Any]] = {}
        for use in [self.dataset, *(use for cell in self.cells for use in _uses(cell))]:
            identity = use.identity
            name = f"{identity.pop('kind')}:{identity.pop('distribution')}/{identity.pop('name')}"
            identity.pop("params")
            used[name] = identity
        suite = self.suite.to_json()
        return {
            "schema": PLAN_SCHEMA,
            "suite": suite,
            "suite_sha256": content_key(suite),
            "data": self.fingerprint,
            "harness": {"version": __version__, "contract": CONTRACT, "source": harness_hash()},
            "numeric_class": self.numeric_class,
            "checkpoints": dict(self.checkpoints),
            "plugins": used,
            "cells": [{"key": cell.key, "cell": cell.id.__dict__} for cell in self.cells],
            "evidence": {
                "level": self.level,
                "records": [{"key": own.key, "where": own.id.__dict__} for own in self.evidence],
            },
        }


def _uses(cell: Cell) -> list[Use]:
    attack = [cell.attack.use] if cell.attack else []
    return [cell.model.use, *(stage.use for stage in cell.stages), *attack, *cell.metrics]


def make_plan(
    loaded: LoadedSuite,
    *,
    data_dir: Path,
    device: Device,
    batch_size: int,
    limit: int | None = None,
    checkpoints: Mapping[str, str] | None = None,
    level: Level = "off",
) -> Plan:
    """Lay out the cells of a suite. Makes sure that the data are there, since their content is part of every key.

    ``batch_size`` is part of the keys of those attacks alone that declare to depend on it.

    ``checkpoints`` gives the SHA-256 of checkpoints by name, as an earlier plan recorded them, so that the plan of a
    finished run can be made again where the files are not at hand. Raises DataError where data or a checkpoint are
    missing.
    """
    return _Planner(loaded, data_dir, device, batch_size, limit, checkpoints or {}, level).plan()


class _Planner:
    def __init__(
        self,
        loaded: LoadedSuite,
        data_dir: Path,
        device: Device,
        batch_size: int,
        limit: int | None,
        checkpoints: Mapping[str, str],
        level: Level,
    ) -> None:
        self._loaded = loaded
        self._level = level
        self._checkpoints = dict(checkpoints)
        self._suite = loaded.suite
        self._registry = loaded.registry
        self._data_dir = data_dir
        self._device = device
        self._batch_size = batch_size
        self._numeric = numeric_class(device)
        self._limit = limit
        self._base = {
            "harness": harness_hash(),
            "harness_version": __version__,
            "contract": CONTRACT,
            "numeric": self._numeric,
            "precision": "float32",
        }

    def plan(self) -> Plan:
        suite = self._suite
        dataset_use = self._use("dataset", suite.dataset.use, suite.dataset.use, suite.dataset.params)
        dataset: Dataset = self._registry.make(dataset_use.plugin, suite.dataset.params)
        with speaking_for(dataset_use.plugin):
            dataset.fetch(self._data_dir)
            info, fingerprint = dataset.info(), dataset.fingerprint(self._data_dir)
        size, self._validation = info.test_size, info.validation_size
        self._test_size = min(size, self._limit or size)
        self._data_key = self._key("data", identity=dataset_use.identity, fingerprint=fingerprint)
        metrics = tuple(
            self._use("metric", entry.use, entry.label or entry.use, entry.params) for entry in suite.metrics
        )
        cells = [
            cell
            for model in suite.models
            for defense in suite.defenses
            for seed in suite.seeds
            for cell in self._cells_of(dataset_use.label, model, defense, seed, metrics)
        ]
        return Plan(
            suite,
            dataset_use,
            self._data_dir,
            self._device,
            self._numeric,
            tuple(cells),
            self._checkpoints,
            self._level,
            () if self._level == "off" else tuple(self._evidence(cells)),
            fingerprint,
        )

    def _evidence(self, cells: Sequence[Cell]) -> Iterator[EvidencePlan]:
        """Yield one plan per defense, threat and seed with a white-box attack."""
        groups: dict[tuple[Any, ...], list[Cell]] = {}
        for cell in cells:
            groups.setdefault((cell.id.dataset, cell.id.model, cell.id.defense, cell.id.seed), []).append(cell)
        for (dataset, model, defense, seed), own in groups.items():
            clean = [cell for cell in own if cell.attack is None]
            for threat in self._suite.threat_models:
                here = [cell for cell in own if cell.attack is not None and cell.attack.threat == threat]
                if not any(cell.id.access == "white-box" for cell in here):
                    continue
                easier = [
                    cell
                    for cell in own
                    if cell.attack is not None
                    and cell.attack.threat.norm == threat.norm
                    and cell.attack.threat.eps < threat.eps
                ]
                where = EvidenceId(
                    dataset=dataset, model=model, defense=defense, seed=seed, norm=threat.norm, eps=threat.eps
                )
                key = content_key(
                    {
                        "stage": "evidence",
                        "source": evidence_hash(),
                        "level": self._level,
                        "cells": [cell.key for cell in (*clean, *here, *easier)],
                    }
                )
                yield EvidencePlan(where, key, (*clean, *here), tuple(easier))

    def _use(self, kind: Kind, use: str, label: str, params: Mapping[str, Any]) -> Use:
        plugin = self._registry.find(kind, use)
        return Use(label, plugin, self._registry.filled_params(plugin, params))

    def _key(self, stage: str, **parts: Any) -> str:
        return content_key({"stage": stage, **self._base, **parts})

    def _cells_of(self, dataset: str, model: Any, defense: Any, seed: int, metrics: tuple[Use, ...]) -> list[Cell]:
        model_plan = self._model(model, seed)
        stages = self._stages(defense, model_plan, seed)
        where = CellId(dataset=dataset, model=model.label, defense=defense.label, seed=seed)
        cells = [self._cell(where, model_plan, stages, None, self._test_size, metrics)]
        for threat in self._suite.threat_models:
            for access in ACCESS_LEVELS:
                for entry in self._suite.attacks:
                    if access not in entry.access or (entry.norms and threat.norm not in entry.norms):
                        continue
                    images = min(entry.images or self._test_size, self._test_size)
                    seen_model, seen = model_plan, stages
                    if access == "gray-box":
                        seen = ()
                    elif access == "transfer":
                        # The same design from another seed: what somebody without the weights would train.
                        other = derive_seed("surrogate", seed) % 2**31
                        seen_model = self._model(model, other)
                        seen = self._stages(defense, seen_model, other)
                    for rate in self._rates(entry, stages):
                        attack = self._attack(entry, access, threat, seen_model, seen, images, seed, rate)
                        here = replace(
                            where, attack=entry.label, access=access, norm=threat.norm, eps=threat.eps, fpr=rate
                        )
                        cells.append(self._cell(here, model_plan, stages, attack, images, metrics))
        return cells

    def _rates(self, entry: Any, stages: tuple[StagePlan, ...]) -> list[float | None]:
        """Return the false-positive rates for which an attack is run once each; none for what there is no detector."""
        if not cast("AttackSpec", self._registry.find("attack", entry.use).spec).detector_aware:
            return [None]
        detecting = sum(stage.detects for stage in stages)
        return [rate for rate in RATES if detecting and too_small(self._validation, rate, detecting) is None]

    def _checkpoint(self, name: str, form: str) -> tuple[Path, str]:
        path = self._loaded.folder / name
        if (path.suffix == ".safetensors") != (form == "safetensors"):
            raise DataError(
                f"{path}: a checkpoint is a .safetensors file, or what torch.save wrote with another ending and "
                'checkpoint_format = "torch" in the suite; better convert it with safetensors.torch.save_file'
            )
        if name not in self._checkpoints:
            if not path.is_file():
                raise DataError(f"{path}: no such checkpoint; `checkpoint` is relative to the suite file")
            self._checkpoints[name] = file_sha256(path)
        return path, self._checkpoints[name]

    def _model(self, entry: Any, seed: int) -> ModelPlan:
        use = self._use("model", entry.use, entry.label, entry.params)
        path, digest = self._checkpoint(entry.checkpoint, entry.checkpoint_format) if entry.checkpoint else (None, "")
        trained_elsewhere = bool(digest) or cast("ModelSpec", use.plugin.spec).trained
        with speaking_for(use.plugin):
            weights = digest or self._registry.make(use.plugin, entry.params).fingerprint()
        if trained_elsewhere and not weights:
            raise PluginError(
                f"model {use.label!r} comes trained, but has no fingerprint of its weights to tell them by"
            )
        key = self._key(
            "train",
            data=self._data_key,
            identity=use.identity,
            weights=weights,
            # Weights that came from elsewhere are the same for every seed, and so is their key.
            seed=None if trained_elsewhere else seed,
        )
        return ModelPlan(use, seed, key, path)

    def _stages(self, entry: Any, model: ModelPlan, seed: int) -> tuple[StagePlan, ...]:
        params = dict(entry.params)
        if entry.stages:
            params["stages"] = [stage.model_dump(mode="json") for stage in entry.stages]
        plans: list[StagePlan] = []
        opened = flatten(self._registry, self._registry.find("defense", entry.use), params)
        for position, (plugin, filled) in enumerate(opened, start=1):
            use = Use(plugin.name, plugin, filled)
            key = self._key(
                "fit",
                data=self._data_key,
                identity=use.identity,
                upstream=[plan.key for plan in plans],
                classifier=model.key if cast("DefenseSpec", plugin.spec).needs_classifier else None,
                seed=seed,
            )
            component = f"{position}:{plugin.name}"
            plans.append(StagePlan(use, key, component, seed, *self._facts(plugin, component)))
        return tuple(plans)

    def _facts(self, plugin: Plugin, component: str) -> tuple[Link, bool]:
        """Return what a stage's class says about gradients and detection."""
        factory: type[Defense] = self._registry.load(plugin)
        link = Link(
            component=component,
            transforms=factory.purify is not Defense.purify,
            replaces=factory.defend is not Defense.defend,
            differentiable=cast("DefenseSpec", plugin.spec).differentiable,
        )
        return link, factory.anomaly_score is not Defense.anomaly_score

    def _attack(
        self,
        entry: Any,
        access: Access,
        threat: ThreatModel,
        model: ModelPlan,
        seen: tuple[StagePlan, ...],
        images: int,
        seed: int,
        rate: float | None,
    ) -> AttackPlan:
        use = self._use("attack", entry.use, entry.label, entry.params)
        stochastic = any(stage.spec.stochastic for stage in seen)
        eot = entry.eot if stochastic and access != "black-box" else 1
        queries = entry.queries or DEFAULT_QUERIES if access == "black-box" else None
        spec = cast("AttackSpec", use.plugin.spec)
        # A stochastic pipeline is misled now and then by accident: what left at the first accident would stand later.
        stop = (entry.stop_on_success or spec.cascade) and access in SCORED_WHERE_MADE and not stochastic
        links = [stage.link for stage in seen]
        every = entry.paths == "all" or (entry.paths is None and spec.cascade)
        adaptive = every and access == "white-box" and takes_routes(spec) and entry.goal == "untargeted"
        routes = all_routes(links) if adaptive else (declared_route(links),)
        batched = spec.depends_on_batch or spec.randomness != "rng"
        key = self._key(
            "attack",
            identity=use.identity,
            classifier=model.key,
            stages=[stage.key for stage in seen],
            routes=[route.to_json() for route in routes],
            rate=rate,
            eot=eot,
            access=access,
            norm=threat.norm,
            # A minimum-norm attack finds the same points whatever the eps they are judged by.
            eps=None if spec.search == "minimum-norm" else threat.eps,
            declared=[spec.needs, spec.search, spec.randomness],
            goal=entry.goal,
            queries=queries,
            stop_on_success=stop,
            precision=entry.precision,
            batch=self._batch_size if batched else None,
            images=images,
            seed=seed,
        )
        asked = "eot" in entry.model_fields_set and entry.eot > 1
        idle = asked and not stochastic and access in ("white-box", "transfer")
        return AttackPlan(
            use, access, threat, model, seen, routes, rate, entry.goal, eot, idle, queries, stop, entry.precision, key
        )

    def _cell(
        self,
        where: CellId,
        model: ModelPlan,
        stages: tuple[StagePlan, ...],
        attack: AttackPlan | None,
        images: int,
        metrics: tuple[Use, ...],
    ) -> Cell:
        key = self._key(
            "score",
            attack=attack.key if attack else None,
            classifier=model.key,
            stages=[stage.key for stage in stages],
            images=images,
            where=where.__dict__,
        )
        score_key = content_key({"cell": key, "metrics": [[use.label, use.identity] for use in metrics]})
        return Cell(where, key, score_key, model, stages, attack, images, metrics)


def metric_spec(use: Use) -> MetricSpec:
    """Return the declarations of a metric."""
    return cast("MetricSpec", use.plugin.spec)
