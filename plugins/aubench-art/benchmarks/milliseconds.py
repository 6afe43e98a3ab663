"""Milliseconds per image of each defense, forward and with a gradient as a white-box attack takes it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from autoshield_bench.places import data_dir
from autoshield_bench.registry import Registry
from autoshield_bench.seeding import ImageRandom
from torch import Tensor

DEFENSES = ["art-jpeg", "art-feature-squeezing", "art-spatial-smoothing", "art-total-variation"]


def fastest(work: Callable[[], object], images: int, repeats: int) -> float:
    """Return the milliseconds per image of the fastest run; the first one, which imports ART, does not count."""
    work()
    times = []
    for _repeat in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * min(times) / images


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    registry = Registry.discover()
    mnist = registry.make(registry.find("dataset", "mnist"), {})
    mnist.fetch(data_dir())
    images = torch.from_numpy(mnist.load("test", data_dir()).images[: given.images].copy()).float() / 255
    rng = ImageRandom(0, range(len(images)))
    print(f"{'defense':24}{'purify':>9}{'+ gradient':>12}   ms per image, {len(images)} MNIST images, one thread")
    for name in DEFENSES:
        defense = registry.make(registry.find("defense", f"aubench-art/{name}"), {})

        def forward(defense: object = defense) -> Tensor:
            return defense.purify(images, rng)  # type: ignore[attr-defined]

        def both(defense: object = defense) -> Tensor:
            point = images.clone().requires_grad_()
            purified = defense.purify(images, rng)  # type: ignore[attr-defined]
            return torch.autograd.grad(defense.surrogate(point), point, purified)[0]  # type: ignore[attr-defined]

        plain, adaptive = (fastest(work, len(images), given.repeats) for work in (forward, both))
        print(f"{name:24}{plain:9.3f}{adaptive:12.3f}")


if __name__ == "__main__":
    main()
