"""The data of a run: one split of the training data, a test set that only scores, and the same subset for every row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoshield_bench import load_suite, run
from autoshield_bench.builtin.datasets.digits import Digits
from autoshield_bench.contracts import (
    Chain,
    Dataset,
    DatasetInfo,
    DatasetSpec,
    Defense,
    DefenseSpec,
    FitRequest,
    Model,
    ModelSpec,
    Recipe,
    Split,
    StageRequest,
)
from autoshield_bench.engine.cost import fitting_size
from autoshield_bench.engine.data import Data
from autoshield_bench.hookspecs import hookimpl
from autoshield_bench.results import ResultSet
from autoshield_bench.seeding import ImageRandom

TRAIN_SIZES, TEST_SIZES = (132, 72, 36), (50, 30, 20)
TEST_IDS = 1000
"""Every image holds its own number; those of the test set begin here."""

MNIST_TRAIN = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
MNIST_TEST = (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
LONG_TAILED = (900, *[10] * 10)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Images this small are computed faster by one thread, and many times faster where others use the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def labels_of(sizes: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return labels in ascending order: the worst order for whoever takes the first n."""
    return np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)


def ids_of(images: Tensor) -> list[int]:
    """Return the numbers that images hold."""
    values = (images.flatten(1)[:, :2] * 255).round().long()
    return (values[:, 0] * 256 + values[:, 1]).tolist()


# The plugins ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Numbered(Dataset):
    """Images of 4x4 whose first two values hold the image's number, sorted by label."""

    def info(self) -> DatasetInfo:
        return DatasetInfo(
            image_shape=(1, 4, 4), classes=len(TRAIN_SIZES), train_size=sum(TRAIN_SIZES), test_size=sum(TEST_SIZES)
        )

    def fetch(self, data_dir: Path) -> Path:
        return data_dir

    def fingerprint(self, data_dir: Path) -> str:
        return "numbered"

    def load(self, split: Literal["train", "test"], data_dir: Path) -> Split:
        labels = labels_of(TRAIN_SIZES if split == "train" else TEST_SIZES)
        ids = np.arange(len(labels)) + (TEST_IDS if split == "test" else 0)
        images = np.zeros((len(labels), 16), dtype=np.uint8)
        images[:, 0], images[:, 1] = ids // 256, ids % 256
        images[np.arange(len(labels)), 4 + labels] = 200
        return Split(images=images.reshape(-1, 1, 4, 4), labels=labels)


@dataclass(frozen=True)
class Sized(Dataset):
    """Images of one pixel, in the numbers per class that the test asks for."""

    train: tuple[int, ...]
    test: tuple[int, ...]

    def info(self) -> DatasetInfo:
        return DatasetInfo(
            image_shape=(1, 1, 1), classes=len(self.train), train_size=sum(self.train), test_size=sum(self.test)
        )

    def fetch(self, data_dir: Path) -> Path:
        return data_dir

    def fingerprint(self, data_dir: Path) -> str:
        return ""

    def load(self, split: Literal["train", "test"], data_dir: Path) -> Split:
        labels = labels_of(self.train if split == "train" else self.test)
        images = (np.arange(len(labels), dtype=np.float32) / len(labels)).reshape(-1, 1, 1, 1)
        return Split(images=images, labels=labels)


class RecordingNetwork(nn.Sequential):
    """A linear classifier that writes down the images on which it is trained."""

    TRAINED_ON: ClassVar[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.TRAINED_ON.extend(ids_of(x))
        return super().forward(x)


@dataclass(frozen=True, kw_only=True)
class RecordingModel(Model):
    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        return RecordingNetwork(nn.Flatten(), nn.Linear(16, classes))

    def recipe(self) -> Recipe:
        return Recipe(epochs=2, batch_size=32)


@dataclass(frozen=True)
class Handed:
    """A copy of what a defense was handed to learn from."""

    images: Tensor
    labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    upstream: Tensor
    """What the stages before make of the fitting images."""
    upstream_has_history: bool
    classifier: nn.Module | None


@dataclass(kw_only=True)
class Recorder(Defense):
    """Halves images, and writes down what it was handed."""

    tag: str = ""

    HANDED: ClassVar[dict[str, Handed]] = {}

    def fit(self, request: FitRequest) -> None:
        upstream = request.upstream(request.images)
        self.HANDED[self.tag] = Handed(
            request.images.clone(),
            request.labels.clone(),
            request.validation_images.clone(),
            request.validation_labels.clone(),
            upstream.clone(),
            upstream.requires_grad,
            request.classifier,
        )

    def load(self, state: Mapping[str, Tensor]) -> None: ...

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return x / 2


@dataclass(kw_only=True)
class Scribbler(Recorder):
    """Writes over everything that it was handed."""

    def fit(self, request: FitRequest) -> None:
        for part in (request.images, request.labels, request.validation_images, request.validation_labels):
            part.zero_()


@dataclass(frozen=True, kw_only=True)
class Twice(Chain):
    """Two recorders in sequence."""

    def sequence(self) -> tuple[StageRequest, ...]:
        return tuple(StageRequest(use="recorder", params={"tag": tag}) for tag in ("first", "second"))


class Plugins:
    """The manifest."""

    CONTRACT = 1

    @hookimpl
    def aubench_datasets(self) -> Iterator[DatasetSpec]:
        yield DatasetSpec(name="numbered", factory=f"{__name__}:Numbered", summary="Images with a number.")

    @hookimpl
    def aubench_models(self) -> Iterator[ModelSpec]:
        yield ModelSpec(name="recording", factory=f"{__name__}:RecordingModel", summary="Remembers.")

    @hookimpl
    def aubench_defenses(self) -> Iterator[DefenseSpec]:
        yield DefenseSpec(name="recorder", factory=f"{__name__}:Recorder", summary="Remembers.")
        yield DefenseSpec(name="scribbler", factory=f"{__name__}:Scribbler", summary="Scribbles.")
        yield DefenseSpec(name="twice", factory=f"{__name__}:Twice", summary="Two in sequence.")
        yield DefenseSpec(
            name="needy", factory=f"{__name__}:Recorder", summary="Wants the classifier.", needs_classifier=True
        )


Runner = Callable[..., ResultSet]


@pytest.fixture
def run_suite(tmp_path: Path) -> Runner:
    RecordingNetwork.TRAINED_ON.clear()
    Recorder.HANDED.clear()

    def run_it(
        defenses: Sequence[str], attacks: Sequence[str] = (), *, seeds: str = "[0]", **options: Any
    ) -> ResultSet:
        lines = ["schema = 1", 'name = "split"', f"seeds = {seeds}", '[dataset]\nuse = "numbered"']
        lines += ['[model]\nuse = "recording"', '[[threats]]\nnorm = "linf"\neps = [0.1]']
        lines += [f"[[defenses]]\n{entry}" for entry in defenses]
        lines += [f"[[attacks]]\n{entry}" for entry in attacks or ['use = "fgsm"\naccess = "gray-box"']]
        file = tmp_path / "split.toml"
        file.write_text("\n".join(lines), encoding="utf-8")
        options = {"results_dir": tmp_path / "results", "cache_dir": tmp_path / "cache", **options}
        results = run(
            load_suite(file, plugins=[Plugins()]), data_dir=tmp_path / "data", device="cpu", batch_size=32, **options
        )
        assert all(own.status == "ok" for own in results.records), [own.error for own in results.records]
        return results

    return run_it


def assert_whole_split(handed: Handed) -> None:
    """The two parts are disjoint, make up the training data, and hold each image with its own label."""
    fitting, validation = ids_of(handed.images), ids_of(handed.validation_images)
    assert len(fitting) == 220
    assert len(validation) == 20
    assert sorted(fitting + validation) == list(range(240))
    labels = labels_of(TRAIN_SIZES)
    assert handed.labels.tolist() == labels[fitting].tolist()
    assert handed.validation_labels.tolist() == labels[validation].tolist()
    assert np.bincount(handed.validation_labels).tolist() == [11, 6, 3]


# The training data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "fitting"), [(60_000, 55_000), (50_000, 45_833), (1437, 1317), (240, 220), (12, 11), (6, 6), (1, 1)]
)
def test_one_twelfth_of_the_training_data_is_for_validation(train: int, fitting: int) -> None:
    info = DatasetInfo(image_shape=(1, 1, 1), classes=2, train_size=train, test_size=1)
    assert fitting_size(info) == fitting


@pytest.mark.parametrize("sizes", [MNIST_TRAIN, TRAIN_SIZES, (40, 40)])
def test_both_parts_are_disjoint_and_stratified(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    data = Data(Sized(sizes, sizes), tmp_path)
    (images, labels), (validation_images, validation_labels) = data.parts
    total = sum(sizes)
    assert len(images) == len(labels) == fitting_size(data.info)
    assert len(validation_images) == len(validation_labels) == total - len(images)
    assert torch.equal(torch.cat([images, validation_images]).flatten().sort().values, torch.arange(total) / total)
    expected = torch.tensor(sizes) * len(validation_labels) / total
    assert float((torch.bincount(validation_labels) - expected).abs().max()) <= 1
    # Neither is the first n of a class: the order of a data set is not exchangeable.
    first = validation_images.flatten()[validation_labels == 0] * total
    assert float(first.max()) > sizes[0] / 2


def test_mnist_is_split_into_55000_and_5000(tmp_path: Path) -> None:
    (images, _), (validation, _) = Data(Sized(MNIST_TRAIN, MNIST_TEST), tmp_path).parts
    assert (len(images), len(validation)) == (55_000, 5_000)


def test_the_built_in_digits_keep_test_images_out_of_training(tmp_path: Path) -> None:
    data = Data(Digits(), tmp_path)
    (fitting, _), (validation, _) = data.parts
    test = data.test_images(torch.arange(data.info.test_size))
    assert (len(fitting), len(validation), len(test)) == (1317, 120, 360)
    images = torch.cat([fitting, validation, test]).flatten(1)
    assert len(torch.unique(images, dim=0)) == len(images)


def test_a_defense_and_the_classifier_learn_from_the_fitting_part_and_never_see_the_test_set(
    run_suite: Runner,
) -> None:
    run_suite(['use = "none"', 'use = "recorder"\nparams = { tag = "one" }'])
    handed = Recorder.HANDED["one"]
    assert_whole_split(handed)
    assert sorted(RecordingNetwork.TRAINED_ON) == sorted(2 * ids_of(handed.images))  # two epochs
    assert handed.classifier is None
    assert torch.equal(handed.upstream, handed.images)


def test_every_stage_of_a_chain_learns_from_the_same_part_seen_through_the_stages_before(run_suite: Runner) -> None:
    run_suite(['use = "twice"'])
    for tag, factor in (("first", 1.0), ("second", 0.5)):
        handed = Recorder.HANDED[tag]
        assert_whole_split(handed)
        assert torch.equal(handed.upstream, handed.images * factor)
        assert not handed.upstream_has_history


def test_the_split_is_the_same_for_every_seed(run_suite: Runner) -> None:
    defenses = ['use = "recorder"\nparams = { tag = "one" }']
    found = []
    for seeds in ("[0]", "[7]"):
        run_suite(defenses, seeds=seeds)
        found.append(Recorder.HANDED.pop("one"))
    assert torch.equal(found[0].validation_images, found[1].validation_images)
    assert torch.equal(found[0].images, found[1].images)


def test_a_defense_gets_the_classifier_only_where_it_says_so_and_frozen(run_suite: Runner) -> None:
    run_suite(['use = "needy"\nparams = { tag = "needy" }'])
    classifier = Recorder.HANDED["needy"].classifier
    assert isinstance(classifier, RecordingNetwork)
    assert not classifier.training
    assert not [weight for weight in classifier.parameters() if weight.requires_grad]


def test_a_defense_that_writes_over_its_training_data_spoils_them_for_nobody_else(run_suite: Runner) -> None:
    run_suite(['use = "scribbler"', 'use = "recorder"\nparams = { tag = "one" }'])
    assert_whole_split(Recorder.HANDED["one"])


# Subsets of the test set ------------------------------------------------------------------------------------------


def shares(order: Tensor, sizes: Sequence[int]) -> float:
    """Return by how many images the count of a class in any prefix is off its proportion, at worst."""
    labels = torch.from_numpy(labels_of(sizes))[order]
    counts = torch.nn.functional.one_hot(labels, len(sizes)).cumsum(0).double()
    proportion = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    expected = torch.arange(1, len(labels) + 1).double().unsqueeze(1) * proportion
    return float((counts - expected).abs().max())


@pytest.mark.parametrize(
    "sizes", [MNIST_TEST, (1000,) * 10, TEST_SIZES, LONG_TAILED], ids=["mnist", "balanced", "three", "long-tailed"]
)
def test_every_subset_holds_each_class_in_proportion_to_one_image(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    data = Data(Sized(sizes, sizes), tmp_path)
    assert shares(data.test_order, sizes) <= 1
    assert sorted(data.test_order.tolist()) == list(range(sum(sizes)))


def test_subsets_are_nested_ascending_and_not_the_first_n(tmp_path: Path) -> None:
    data = Data(Sized(MNIST_TEST, MNIST_TEST), tmp_path)
    inner: set[int] = set()
    for images in (1, 10, 500, 1000, 9999, 10_000):
        subset = data.test_subset(images).tolist()
        assert len(set(subset)) == images
        assert subset == sorted(subset)
        assert inner <= set(subset)
        inner = set(subset)
    thousand = data.test_subset(1000)
    assert float(thousand.double().mean()) == pytest.approx(5000, abs=500)
    gaps = thousand.diff()
    assert len(gaps.unique()) > 10, "a random draw, not every tenth"


def test_a_subset_depends_on_neither_global_randomness_nor_place(tmp_path: Path) -> None:
    data = Data(Sized(TEST_SIZES, TEST_SIZES), tmp_path)
    again = Data(Sized(TEST_SIZES, TEST_SIZES), tmp_path / "elsewhere")
    torch.manual_seed(5)
    assert torch.equal(data.test_subset(20), again.test_subset(20))


def test_every_row_and_every_attack_is_evaluated_on_the_same_fixed_subset(run_suite: Runner) -> None:
    attacks = [
        'use = "fgsm"\naccess = ["gray-box", "white-box"]\nimages = 40',
        'use = "pgd"\naccess = ["gray-box", "white-box"]\nimages = 17\nparams = { steps = 2 }',
    ]
    defenses = ['use = "none"', 'use = "recorder"', 'use = "twice"']
    results = run_suite(defenses, attacks, seeds="[0, 1]")
    seen: dict[str | None, set[tuple[int, ...]]] = {}
    for own in results.records:
        index = results.arrays(own)["index"].tolist()
        assert own.outcomes is not None
        assert sum(1 << image for image in index) == own.outcomes.evaluated
        assert results.arrays(own)["label"].tolist() == labels_of(TEST_SIZES)[index].tolist()
        seen.setdefault(own.cell.attack, set()).add(tuple(index))
    assert {attack: len(subsets) for attack, subsets in seen.items()} == {None: 1, "fgsm": 1, "pgd": 1}
    (everything,), (forty,), (seventeen,) = seen[None], seen["fgsm"], seen["pgd"]
    assert everything == tuple(range(100))
    assert (len(forty), len(seventeen)) == (40, 17)
    assert set(seventeen) < set(forty)
    assert np.bincount(labels_of(TEST_SIZES)[list(forty)]).tolist() == [20, 12, 8]
    assert forty != tuple(range(40))


def test_a_limited_run_evaluates_part_of_what_the_whole_one_does(run_suite: Runner, tmp_path: Path) -> None:
    attacks = ['use = "fgsm"\naccess = "gray-box"\nimages = 40']
    whole = run_suite(['use = "none"'], attacks)
    limited = run_suite(['use = "none"'], attacks, limit=20, results_dir=tmp_path / "limited")
    for results, size in ((whole, 40), (limited, 20)):
        (own,) = [each for each in results.records if each.cell.attack]
        assert own.outcomes is not None
        assert own.outcomes.n == size
    masks = [each.outcomes.evaluated for results in (whole, limited) for each in results.records if each.cell.attack]
    assert masks[1] & ~masks[0] == 0
