"""The stages of a cell: train, fit and attack, whose outputs are artifacts, so that nothing is computed twice."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autoshield_bench.balls import distance
from autoshield_bench.contracts import Defense, FitRequest, Model
from autoshield_bench.engine.access import searched
from autoshield_bench.engine.calibration import Calibration, calibrate
from autoshield_bench.engine.cost import fit_passes, training_passes
from autoshield_bench.engine.crafting import Batch, Crafting, Networks
from autoshield_bench.engine.data import Data
from autoshield_bench.engine.decoys import decoys
from autoshield_bench.engine.guard import check_images, check_logits
from autoshield_bench.engine.integrity import fenced, kept, networks_of
from autoshield_bench.engine.journal import Journal
from autoshield_bench.engine.pipeline import FittedStage, PassCounter, Pipeline, Threshold, frozen
from autoshield_bench.engine.progress import Progress
from autoshield_bench.engine.training import load_weights, read_checkpoint, train_classifier
from autoshield_bench.errors import CellError, CheckpointError, StoreError, WriteError
from autoshield_bench.plan import AttackPlan, Cell, ModelPlan, StagePlan
from autoshield_bench.registry import Registry
from autoshield_bench.seeding import ImageRandom, derive_seed, generator, global_seed
from autoshield_bench.store import ArtifactStore, content_key

TRAINING_THREADS = 2
"""Threads of every training, whatever attacks and scoring use. Sums over a batch depend on the thread count in their
last bits, and thousands of steps make other networks of that; a result must not depend on it."""

Passes = Mapping[str, Mapping[str, int]]

Routes = Mapping[str, Mapping[str, int]]

Crafted = tuple[Tensor, Tensor, Passes, Routes, Sequence[str]]
"""Adversarial images, passes spent per image, passes by component, what became of each gradient route, and what was
changed in the networks meanwhile."""


class Workshop:
    """Makes what a cell needs, or takes it from the cache: classifier, fitted stages, adversarial images.

    With ``read_only``, what is not in the cache raises StoreError instead of being made.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        store: ArtifactStore,
        data: Data,
        device: str,
        batch_size: int,
        journal: Journal,
        progress: Progress,
        force: bool,
        read_only: bool = False,
    ) -> None:
        self.data = data
        self.device = device
        self.batch_size = batch_size
        self.progress = progress
        self.registry = registry
        self._store = store
        self._journal = journal
        self._force = force
        self._read_only = read_only
        self.made_now: set[str] = set()
        self._failed: dict[str, str] = {}
        self._classifiers: dict[str, nn.Module] = {}
        self._fitted: dict[str, FittedStage] = {}
        self._latest_attack: tuple[str, Crafted] | None = None
        self._calibrations: dict[str, Calibration] = {}

    # -- train ---------------------------------------------------------------------------------------------------

    def classifier(self, cell: Cell, model: ModelPlan | None = None) -> nn.Module:
        """Return the cell's undefended classifier, or a surrogate for it: trained, frozen and on the device."""
        model = model or cell.model
        if model.key not in self._classifiers:
            with self._once(model.key):
                self._classifiers[model.key] = self._make_classifier(cell, model)
        return self._classifiers[model.key]

    def _make_classifier(self, cell: Cell, model: ModelPlan) -> nn.Module:
        maker: Model = self.registry.make(model.use.plugin, model.use.params)
        info = self.data.info
        with global_seed("train", model.seed), fenced(f"building {model.use.label}", self.progress.warn):
            network = maker.build(info.image_shape, info.classes)
        if model.checkpoint is not None and not self._read_only:
            load_weights(network, read_checkpoint(model.checkpoint), str(model.checkpoint))
            # Kept by content as well: images can be exported later, wherever the file has gone by then.
            if not self._store.has("train", model.key):
                self._save("train", model.key, network.state_dict(), {})
        elif model.checkpoint is not None or model.trained_by_harness:
            found = self._cached("train", model.key)
            if found is None:
                self._train(cell, model, maker, network)
            else:
                load_weights(network, found[0], f"artifact {model.key[:12]}")
        network = frozen(_placed(network, self.device))
        probe = self.data.test_images(torch.arange(2)).to(self.device)
        check_logits(network(probe), 2, info.classes, f"model {model.use.label!r}")
        return network

    def _train(self, cell: Cell, model: ModelPlan, maker: Model, network: nn.Module) -> None:
        (images, labels), _validation = self.data.parts
        recipe = maker.recipe()
        passes = training_passes(len(images), recipe.epochs)
        title = f"train {model.use.label} (seed {model.seed})"
        with self._stage("train", title, cell, len(images) * recipe.epochs, passes):
            fence = fenced(f"training {model.use.label}", self.progress.warn)
            with global_seed("train", model.seed, "steps"), _threads(TRAINING_THREADS), fence:
                train_classifier(
                    network,
                    images,
                    labels,
                    recipe,
                    generator("train", model.seed, "order"),
                    self.device,
                    lambda done, _total: self.progress.advance(done),
                )
        self._save("train", model.key, network.state_dict(), {})

    # -- fit -----------------------------------------------------------------------------------------------------

    def stages(self, cell: Cell) -> tuple[FittedStage, ...]:
        """Return the cell's defense, each stage fitted on the output of those before it."""
        return self._fit_all(cell, cell.model, cell.stages)

    def _fit_all(self, cell: Cell, model: ModelPlan, stages: Sequence[StagePlan]) -> tuple[FittedStage, ...]:
        fitted: list[FittedStage] = []
        for stage in stages:
            if stage.key not in self._fitted:
                with self._once(stage.key):
                    self._fitted[stage.key] = self._make_stage(cell, model, stage, tuple(fitted))
            fitted.append(self._fitted[stage.key])
        return tuple(fitted)

    def _make_stage(self, cell: Cell, model: ModelPlan, stage: StagePlan, before: Sequence[FittedStage]) -> FittedStage:
        defense: Defense = self.registry.make(stage.use.plugin, stage.use.params)
        if type(defense).fit is not Defense.fit:
            found = self._cached("fit", stage.key)
            if found is None:
                self._fit(cell, model, stage, defense, before)
                self._save("fit", stage.key, defense.state(), {})
            else:
                defense.load(found[0])
        for module in defense.modules():
            frozen(_placed(module, self.device))
        return FittedStage(
            component=stage.component,
            defense=defense,
            differentiable=stage.spec.differentiable,
            stochastic=stage.spec.stochastic,
        )

    def _fit(
        self, cell: Cell, model: ModelPlan, stage: StagePlan, defense: Defense, before: Sequence[FittedStage]
    ) -> None:
        (images, labels), (validation_images, validation_labels) = self.data.parts
        seed = stage.seed
        title = f"fit {stage.component} (seed {seed})"
        passes = fit_passes(defense, len(before), len(images))
        with (
            self._stage("fit", title, cell, len(images), passes),
            global_seed("fit", seed, stage.component),
            _threads(TRAINING_THREADS),
            fenced(f"fitting {stage.component}", self.progress.warn),
        ):
            # Copies: what a defense does to them is its own affair.
            defense.fit(
                FitRequest(
                    images=images.clone(),
                    labels=labels.clone(),
                    validation_images=validation_images.clone(),
                    validation_labels=validation_labels.clone(),
                    upstream=_upstream(before, seed),
                    classifier=copy.deepcopy(self.classifier(cell, model)) if stage.spec.needs_classifier else None,
                    generator=generator("fit", seed, stage.component, "generator"),
                    device=self.device,
                    progress=lambda done, total: self._rescaled(done, total, len(images)),
                )
            )

    def _rescaled(self, done: int, total: int, images: int) -> None:
        self.progress.advance(round(images * done / max(total, 1)))

    # -- attack --------------------------------------------------------------------------------------------------

    def adversarial(self, cell: Cell, attack: AttackPlan) -> tuple[Tensor, Passes]:
        """Return adversarial images for the cell's subset, on the CPU, and the passes that they cost.

        A point that a minimum-norm attack found outside the cell's ball is no attack of that size: the clean image
        stands there.
        """
        images, _spent, passes, *_ = self._crafted(cell, attack)
        if attack.spec.search == "minimum-norm":
            clean = self.data.test_images(self.data.test_subset(cell.images))
            beyond = distance(images, clean, attack.threat.norm) > attack.threat.eps
            images = torch.where(beyond.view(-1, 1, 1, 1), clean, images)
        return images, passes

    def per_image(self, cell: Cell, attack: AttackPlan) -> dict[str, Tensor]:
        """Return per image how far away the point lies that the attack found, wherever that is, and what it spent.

        ``distance`` is float64 ``[N]``; ``passes`` counts passes through the target, forward and backward.
        """
        clean = self.data.test_images(self.data.test_subset(cell.images))
        images, spent, *_ = self._crafted(cell, attack)
        return {"distance": distance(images, clean, attack.threat.norm), "passes": spent}

    def routes_taken(self, cell: Cell, attack: AttackPlan) -> Routes:
        """Return by gradient route on how many images it was tried, and how many fell to it."""
        return self._crafted(cell, attack)[3]

    def changed_by(self, cell: Cell, attack: AttackPlan) -> Sequence[str]:
        """Return what was changed in the networks while the attack ran, and put back afterwards."""
        return self._crafted(cell, attack)[4]

    def _crafted(self, cell: Cell, attack: AttackPlan) -> Crafted:
        if self._latest_attack is None or self._latest_attack[0] != attack.key:
            found = self._cached("attack", attack.key)
            if found is None:
                with self._once(attack.key):
                    crafted = self._run_attack(cell, attack)
                images, spent, passes, routes, changed = crafted
                about = {"passes": passes, "routes": routes, "changed": list(changed)}
                self._save("attack", attack.key, {"adversarial": images, "spent": spent}, about)
            else:
                tensors, facts = found
                crafted = tensors["adversarial"], tensors["spent"], facts["passes"], facts["routes"], facts["changed"]
            self._latest_attack = (attack.key, crafted)
        return self._latest_attack[1]

    def _run_attack(self, cell: Cell, attack: AttackPlan) -> Crafted:
        counter = PassCounter()
        subset = self.data.test_subset(cell.images)
        crafting = self.crafting(cell, attack, counter)
        batches, spent = [], []
        changed: list[str] = []
        networks = networks_of(self.classifier(cell, attack.model), self._fit_all(cell, attack.model, attack.seen))
        with (
            self._stage("attack", attack.title(cell.id.defense), cell, len(subset), counter),
            kept(networks, changed.append),
            fenced(f"attack {attack.use.label!r} or a stage", self.progress.warn),
        ):
            done = 0
            for indices in torch.split(subset, self.batch_size):
                rng = ImageRandom(derive_seed("attack", cell.id.seed), indices.tolist())
                images, own = crafting.craft(self.batch(cell, attack, indices, rng))
                batches.append(images.cpu())
                spent.append(own)
                done += len(indices)
                self.progress.advance(done)
        routes: Routes = {name: count.to_json() for name, count in crafting.counts.items()}
        return torch.cat(batches), torch.cat(spent), counter.to_json(), routes, changed

    def crafting(self, cell: Cell, attack: AttackPlan, counter: PassCounter) -> Crafting:
        """Return what crafts an attack's images on the networks that it may see."""
        stages = self._fit_all(cell, attack.model, attack.seen)
        networks = Networks(
            classifier=self.classifier(cell, attack.model),
            stages=stages,
            thresholds=self._faced(cell, attack.rate),
            counter=counter,
        )
        return Crafting(
            self.registry.make(attack.use.plugin, attack.use.params),
            attack,
            networks,
            self.data.info.classes,
            searched(attack.spec, attack.threat, self.data.info.image_shape),
            f"attack {attack.use.label!r} of {attack.use.plugin.distribution}",
        )

    def _faced(self, cell: Cell, rate: float | None) -> Mapping[str, Threshold]:
        if rate is None:
            return {}
        known, missing = self._calibrated(cell)
        if str(rate) not in known:
            raise CellError(f"no threshold at a false-positive rate of {rate:g}: {missing[str(rate)]}")
        return known[str(rate)]

    def batch(self, cell: Cell, attack: AttackPlan, indices: Tensor, rng: ImageRandom) -> Batch:
        """Return test images to attack."""
        images = self.data.test_images(indices).to(self.device)
        labels = self.data.test_labels[indices].to(self.device)
        targets = None
        if attack.goal == "targeted":
            targets = other_classes(labels, self.data.info.classes, rng.child("targets"))

        def nearest(rows: Tensor) -> Tensor:
            chosen = rows.to(images.device)
            own = None if targets is None else targets[chosen]
            return decoys(self.data, images[chosen], labels[chosen], own)

        return Batch(images=images, labels=labels, targets=targets, rng=rng, decoys=nearest)

    # -- calibrate -----------------------------------------------------------------------------------------------

    def thresholds(self, cell: Cell) -> dict[str, dict[str, Threshold]]:
        """Return by nominal false-positive rate, then component, where the cell's detecting stages flag.

        Fixed on the clean validation images, as they reach each stage. A rate for which there can be none is left out;
        ``no_thresholds`` says why.
        """
        return self._calibrated(cell)[0]

    def no_thresholds(self, cell: Cell) -> dict[str, str]:
        """Return by rate why there are no thresholds."""
        return self._calibrated(cell)[1]

    def _calibrated(self, cell: Cell) -> Calibration:
        detecting = [stage.component for stage in cell.stages if stage.detects]
        if not detecting:
            return {}, {}
        stages = [stage.key for stage in cell.stages]
        key = content_key({"stage": "calibrate", "model": cell.model.key, "stages": stages, "seed": cell.id.seed})
        if key not in self._calibrations:
            found = self._cached("calibrate", key)
            if found is None:
                scores = self._validation_scores(cell)
                self._save("calibrate", key, scores, {})
            else:
                scores = found[0]
            self._calibrations[key] = calibrate({name: scores[name] for name in detecting})
        return self._calibrations[key]

    def _validation_scores(self, cell: Cell) -> dict[str, Tensor]:
        pipeline = Pipeline(self.classifier(cell), self.stages(cell), PassCounter())
        _fitting, (images, _labels) = self.data.parts
        parts: dict[str, list[Tensor]] = {}
        for rows in torch.split(torch.arange(len(images)), self.batch_size):
            rng = ImageRandom(derive_seed("calibrate", cell.id.seed), rows.tolist())
            with torch.no_grad(), global_seed("calibrate", *rows[:1].tolist()):
                output = pipeline(images[rows].to(self.device), rng, detect=True)
            for component, scores in output.anomaly.items():
                parts.setdefault(component, []).append(scores.cpu())
        return {component: torch.cat(own) for component, own in parts.items()}

    def has_networks(self, cell: Cell) -> bool:
        """Return whether the cell needs no training: its networks are in memory, in the cache, or need none."""
        models, stages = [cell.model], list(cell.stages)
        if cell.attack is not None:
            models, stages = [*models, cell.attack.model], [*stages, *cell.attack.seen]
        trained = all(self._store.has("train", model.key) or model.key in self._classifiers for model in models)
        return trained and all(stage.key in self._fitted for stage in stages)

    # -- artifacts -----------------------------------------------------------------------------------------------

    @contextmanager
    def _once(self, key: str) -> Iterator[None]:
        """Let what failed fail again at once: other cells that need it would wait as long for the same error."""
        if key in self._failed:
            raise CellError(self._failed[key])
        try:
            yield
        except (CheckpointError, WriteError):
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._failed[key] = describe_failure(error)
            raise

    def _cached(self, stage: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if self._force and key not in self.made_now:
            return None
        found = self._store.load(stage, key)
        if found is None and self._read_only:
            raise StoreError(
                f"{self._store.directory(stage, key)}: no longer in the cache; run the suite again with --force"
            )
        return found

    def _save(self, stage: str, key: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        self._store.save(stage, key, tensors, facts)
        self.made_now.add(key)

    def _stage(self, stage: str, title: str, cell: Cell, images: int, passes: int | PassCounter) -> _Timed:
        self.progress.stage(title, images)
        return _Timed(self._journal, stage, cell, images, passes)


class _Timed:
    """Writes a stage's time and image-passes to the journal, also when it fails."""

    def __init__(self, journal: Journal, stage: str, cell: Cell, images: int, passes: int | PassCounter) -> None:
        self._journal = journal
        self._fields = {"cell": str(cell.id), "stage": stage, "images": images}
        self._passes = passes

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        seconds = round(time.perf_counter() - self._began, 4)
        passes = self._passes if isinstance(self._passes, int) else self._passes.total()
        self._journal.event("cell", ok=kind is None, seconds=seconds, passes=passes, **self._fields)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def other_classes(labels: Tensor, classes: int, rng: ImageRandom) -> Tensor:
    """Return a wrong class per image ``[N]``, drawn uniformly: what a targeted attack drives it to."""
    steps = 1 + (rng.uniform((), "class") * (classes - 1)).long().clamp_(max=classes - 2)
    return (labels + steps.to(labels.device)) % classes


def _placed(module: nn.Module, device: str) -> nn.Module:
    return module.to(device).to(memory_format=torch.channels_last)


def _upstream(before: Sequence[FittedStage], seed: int) -> Callable[[Tensor], Tensor]:
    """Return the purification by earlier stages; each batch draws fresh noise where a stage is stochastic."""
    position = 0

    def purify(x: Tensor) -> Tensor:
        nonlocal position
        rng = ImageRandom(derive_seed("fit", seed, "upstream"), range(position, position + len(x)))
        position += len(x)
        with torch.no_grad():
            for stage in before:
                if stage.transforms:
                    x = check_images(stage.defense.purify(x, rng.child(stage.component)), x, stage.component)
        return x

    return purify


def describe_failure(error: BaseException) -> str:
    """Return a failure as one line: a broken promise as it stands, anything else with its type."""
    try:
        said = str(error)
    except Exception:  # its own code, and as likely to fail
        said = "its message cannot be read"
    text = " ".join(said.split())[:500].encode("utf-8", "backslashreplace").decode()
    return text if isinstance(error, CellError) else f"{type(error).__name__}: {text}" if text else type(error).__name__
