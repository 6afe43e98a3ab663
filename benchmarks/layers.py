"""How long layers at the grey image's end of a network take beside torch's own: ``python benchmarks/layers.py``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from tabulate import tabulate
from torch import Tensor, nn

from autoshield_bench.builtin.layers import InputConvolution, OutputConvolution

PAIRS: list[tuple[str, nn.Module, nn.Module, tuple[int, ...]]] = [
    ("small-cnn, first", InputConvolution(1, 24, 5, 2, 2), nn.Conv2d(1, 24, 5, 2, 2), (1, 28, 28)),
    ("adversarial-training, first", InputConvolution(1, 16, 4, 2, 1), nn.Conv2d(1, 16, 4, 2, 1), (1, 28, 28)),
    ("autoencoder, first", InputConvolution(1, 32, 3, 2, 1), nn.Conv2d(1, 32, 3, 2, 1), (1, 28, 28)),
    ("autoencoder, last", OutputConvolution(32, 1, 4, 2, 1), nn.ConvTranspose2d(32, 1, 4, 2, 1), (32, 14, 14)),
]


def forward_and_back(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    """Return a pass through a frozen layer and the gradient of what went in."""
    layer.to(memory_format=torch.channels_last).requires_grad_(requires_grad=False)
    point = x.to(memory_format=torch.channels_last).requires_grad_()
    weigh = torch.rand_like(layer(point))
    return lambda: torch.autograd.grad(layer(point), point, weigh)


def main() -> None:
    """Time each pair in turn."""
    rows = []
    for name, ours, theirs, shape in PAIRS:
        runs = [forward_and_back(layer, torch.rand(250, *shape)) for layer in (ours, theirs)]
        taken: list[list[float]] = [[], []]
        for _ in range(31):
            for times, run in zip(taken, runs, strict=True):
                before = time.perf_counter()
                run()
                times.append(time.perf_counter() - before)
        one, other = (statistics.median(times[1:]) for times in taken)
        ratio = statistics.median(b / a for a, b in zip(*taken, strict=True))
        rows.append([name, f"{1000 * one:.2f}", f"{1000 * other:.2f}", f"{ratio:.2f}"])
    headers = ["layer, 250 images", "ms here", "ms in torch", "ratio"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    print(f"\n{torch.get_num_threads()} threads, forward and back, medians of 30 in turn")


if __name__ == "__main__":
    main()
