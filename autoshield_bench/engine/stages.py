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
from autoshield_bench.contracts import Attack, AttackRequest, Defense, FitRequest, Model
from autoshield_bench.engine.access import attempt, searched, target_for
from autoshield_bench.engine.cost import fit_passes, training_passes
from autoshield_bench.engine.data import Data
from autoshield_bench.engine.guard import check_adversarial, check_images, check_logits
from autoshield_bench.engine.journal import Journal
from autoshield_bench.engine.pipeline import FittedStage, PassCounter, Pipeline, frozen
from autoshield_bench.engine.progress import Progress
from autoshield_bench.engine.training import load_weights, read_checkpoint, train_classifier
from autoshield_bench.errors import CellError, CheckpointError, StoreError, WriteError
from autoshield_bench.plan import AttackPlan, Cell, ModelPlan, StagePlan
from autoshield_bench.registry import Registry
from autoshield_bench.seeding import ImageRandom, derive_seed, generator, global_seed
from autoshield_bench.store import ArtifactStore

TRAINING_THREADS = 2
"""Threads of every training, whatever attacks and scoring use. Sums over a batch depend on the thread count in their
last bits, and thousands of steps make other networks of that; a result must not depend on it."""

Passes = Mapping[str, Mapping[str, int]]


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
        self._made_now: set[str] = set()
        self._failed: dict[str, str] = {}
        self._classifiers: dict[str, nn.Module] = {}
        self._fitted: dict[str, FittedStage] = {}
        self._latest_attack: tuple[str, Tensor, Tensor, Passes] | None = None

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
        with global_seed("train", model.seed):
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
            with global_seed("train", model.seed, "steps"), _threads(TRAINING_THREADS):
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
        images, _spent, passes = self._crafted(cell, attack)
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
        images, spent, _passes = self._crafted(cell, attack)
        return {"distance": distance(images, clean, attack.threat.norm), "passes": spent}

    def _crafted(self, cell: Cell, attack: AttackPlan) -> tuple[Tensor, Tensor, Passes]:
        if self._latest_attack is None or self._latest_attack[0] != attack.key:
            found = self._cached("attack", attack.key)
            if found is None:
                with self._once(attack.key):
                    images, spent, passes = self._run_attack(cell, attack)
                self._save("attack", attack.key, {"adversarial": images, "spent": spent}, {"passes": passes})
            else:
                images, spent, passes = found[0]["adversarial"], found[0]["spent"], found[1]["passes"]
            self._latest_attack = (attack.key, images, spent, passes)
        return self._latest_attack[1:]

    def _run_attack(self, cell: Cell, attack: AttackPlan) -> tuple[Tensor, Tensor, Passes]:
        runner: Attack = self.registry.make(attack.use.plugin, attack.use.params)
        counter = PassCounter()
        seen = self._fit_all(cell, attack.model, attack.seen)
        pipeline = Pipeline(self.classifier(cell, attack.model), seen, counter)
        subset = self.data.test_subset(cell.images)
        who = f"attack {attack.use.label!r} of {attack.use.plugin.distribution}"
        classes = self.data.info.classes
        threat = searched(attack.spec, attack.threat, self.data.info.image_shape)
        batches, spent = [], []
        with self._stage("attack", attack.title(cell.id.defense), cell, len(subset), counter):
            done = 0
            for indices in torch.split(subset, self.batch_size):
                rng = ImageRandom(derive_seed("attack", cell.id.seed), indices.tolist())
                clean = self.data.test_images(indices).to(self.device)
                labels = self.data.test_labels[indices].to(self.device)
                targets = other_classes(labels, classes, rng.child("targets")) if attack.goal == "targeted" else None
                target = target_for(
                    attack.spec,
                    attack.access,
                    pipeline,
                    rng.child("target"),
                    classes=classes,
                    eot=attack.eot,
                    images=clean,
                    labels=labels,
                    threat=threat,
                    targets=targets,
                    queries=attack.queries,
                )
                request = AttackRequest(
                    images=clean.clone(),
                    labels=labels.clone(),
                    threat=threat,
                    target=target,
                    rng=rng.child("attack"),
                    targets=targets,
                    queries=attack.queries,
                    stop_on_success=attack.stop_on_success,
                )
                # What an attack draws from global state depends on its key and on the batch alone.
                with global_seed("attack", attack.key, *indices[:1].tolist()):
                    returned = attempt(runner, request)
                batches.append(check_adversarial(returned, clean, threat, who).cpu())
                spent.append(target.spent)
                done += len(indices)
                self.progress.advance(done)
        return torch.cat(batches), torch.cat(spent), counter.to_json()

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
        except (Exception, SystemExit) as error:
            self._failed[key] = describe_failure(error)
            raise

    def _cached(self, stage: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if self._force and key not in self._made_now:
            return None
        found = self._store.load(stage, key)
        if found is None and self._read_only:
            raise StoreError(
                f"{self._store.directory(stage, key)}: no longer in the cache; run the suite again with --force"
            )
        return found

    def _save(self, stage: str, key: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        self._store.save(stage, key, tensors, facts)
        self._made_now.add(key)

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
    text = " ".join(str(error).split())[:500].encode("utf-8", "backslashreplace").decode()
    return text if isinstance(error, CellError) else f"{type(error).__name__}: {text}" if text else type(error).__name__
