"""Exact robustness of small two-layer ReLU networks, by mixed-integer programming: a witness no attack can flatter.

Source of the formulation: Tjeng et al. 2019, arXiv:1711.07356, section 4.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn
from torch.nn import functional

Truth = Literal["fallen", "robust", "unknown"]
_ROOM = 1e-6
"""A margin smaller than this is not told from zero."""


def small_network(
    images: Tensor, labels: Tensor, *, hidden: int = 24, eps: float = 0.1, seed: int = 0
) -> nn.Sequential:
    """Return a network trained against a few steps of PGD, so that some of its images are robust and some are not."""
    source = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), hidden), nn.ReLU(), nn.Linear(hidden, 10))
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(40):
        for rows in torch.randperm(len(images), generator=source).split(64):
            x, target = images[rows], labels[rows]
            delta = (torch.rand(x.shape, generator=source) * 2 - 1) * eps
            for _ in range(4):
                delta.requires_grad_()
                (gradient,) = torch.autograd.grad(
                    functional.cross_entropy(network((x + delta).clamp(0, 1)), target), delta
                )
                delta = (delta.detach() + eps / 2 * gradient.sign()).clamp(-eps, eps)
            optimiser.zero_grad()
            functional.cross_entropy(network((x + delta).clamp(0, 1)), target).backward()
            optimiser.step()
    return network.eval().requires_grad_(requires_grad=False)  # type: ignore[return-value]


def truth_in_linf(network: nn.Sequential, image: Tensor, label: int, eps: float, *, seconds: float = 10) -> Truth:
    """Return whether some point within ``eps`` of the image, in [0, 1], is classified otherwise."""
    first, second = ((_array(layer.weight), _array(layer.bias)) for layer in (network[1], network[3]))
    x = _array(image.flatten())
    low, high = np.clip(x - eps, 0, 1), np.clip(x + eps, 0, 1)
    problem = _Problem(*first, low, high)
    found: Truth = "robust"
    for other in range(len(second[1])):
        if other == label:
            continue
        verdict = problem.above_zero(second[0][other] - second[0][label], second[1][other] - second[1][label], seconds)
        if verdict == "fallen":
            return verdict
        found = "unknown" if verdict == "unknown" else found
    return found


class _Problem:
    """Variables: the image, the hidden layer after its ReLU, and one binary per hidden unit (is it active?)."""

    def __init__(self, weight: Any, bias: Any, low: Any, high: Any) -> None:
        self.images, self.hidden = len(low), len(bias)
        least = np.minimum(weight * low, weight * high).sum(1) + bias
        most = np.maximum(weight * low, weight * high).sum(1) + bias
        one, none = np.eye(self.hidden), np.zeros((self.hidden, self.hidden))
        rows = [
            (np.hstack([weight, -one, none]), -bias),  # a >= z
            (np.hstack([-weight, one, -np.diag(least)]), bias - least),  # a <= z - least (1 - d)
            (np.hstack([0 * weight, one, -np.diag(most)]), 0 * bias),  # a <= most d
        ]
        matrix = sparse.csr_matrix(np.vstack([row for row, _ in rows]))
        self.constraint = LinearConstraint(matrix, -np.inf, np.concatenate([bound for _, bound in rows]))
        self.most = np.maximum(most, 0)
        self.bounds = Bounds(
            np.concatenate([low, 0 * bias, (least >= 0).astype(float)]),
            np.concatenate([high, self.most, (most > 0).astype(float)]),
        )
        self.integrality = np.concatenate([np.zeros(self.images + self.hidden), np.ones(self.hidden)])

    def above_zero(self, gap: Any, offset: float, seconds: float) -> Truth:
        """Return whether ``gap @ a + offset`` can be positive: the margin of one other class."""
        if (np.maximum(gap, 0) * self.most).sum() + offset < 0:
            return "robust"
        solved = milp(
            np.concatenate([np.zeros(self.images), -gap, np.zeros(self.hidden)]),
            constraints=self.constraint,
            bounds=self.bounds,
            integrality=self.integrality,
            options={"time_limit": seconds},
        )
        if solved.x is not None and -solved.fun + offset > _ROOM:
            return "fallen"
        if solved.status == 0:
            return "robust" if -solved.fun + offset < -_ROOM else "unknown"
        return "unknown"


def _array(tensor: Tensor) -> Any:
    return tensor.detach().double().numpy()
