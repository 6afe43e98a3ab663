"""A classifier of digits, trained once, and one thread: images this small are computed faster by one."""

from __future__ import annotations

import os

# Before torch is loaded: threads that wait must not spin, or tests crawl on a machine that does anything else.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from collections.abc import Iterator

import pytest
import torch
from autoshield_bench.builtin.models.networks import small_cnn
from autoshield_bench.contracts import Recipe
from autoshield_bench.engine.pipeline import frozen
from autoshield_bench.engine.training import train_classifier
from autoshield_bench.seeding import generator, global_seed
from cases import Case
from sklearn.datasets import load_digits


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits(_one_thread: None) -> Case:
    """The trained classifier and 60 digits that it gets right, of every class."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images / 16).float().unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    with global_seed("digits"):
        network = small_cnn(1, 8, 8, 10, features=8)
        recipe = Recipe(epochs=10, batch_size=64, learning_rate=5e-3)
        train_classifier(network, images, labels, recipe, generator("digits"), "cpu", lambda _done, _total: None)
    network = frozen(network)
    chosen = (network(images).argmax(1) == labels).nonzero()[:60, 0]
    return Case(network, images[chosen], labels[chosen])
