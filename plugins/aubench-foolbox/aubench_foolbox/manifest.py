"""What this distribution offers. Imports nothing heavy: listing plugins imports this module."""

from __future__ import annotations

from collections.abc import Iterator

from autoshield_bench.contracts import AttackSpec
from autoshield_bench.hookspecs import hookimpl

CONTRACT = 1

_HERE = "aubench_foolbox"


@hookimpl
def aubench_attacks() -> Iterator[AttackSpec]:
    """Yield the attacks."""
    yield from _fixed_budget()
    yield from _minimum_norm()
    yield from _decision_based()


def _fixed_budget() -> Iterator[AttackSpec]:
    yield AttackSpec(
        name="foolbox-fgsm",
        factory=f"{_HERE}.fixed_budget:FastGradient",
        summary="foolbox's fast gradient method: one step of the size of the ball.",
        norms=("linf", "l2"),
        libraries=("foolbox",),
        reference="Goodfellow et al. 2015, arXiv:1412.6572",
    )
    yield AttackSpec(
        name="foolbox-pgd",
        factory=f"{_HERE}.fixed_budget:ProjectedGradientDescent",
        summary="foolbox's projected gradient descent with a random start.",
        norms=("linf", "l2"),
        targeted=True,
        randomness="global",
        libraries=("foolbox",),
        reference="Madry et al. 2018, arXiv:1706.06083",
    )
    yield AttackSpec(
        name="foolbox-mim",
        factory=f"{_HERE}.fixed_budget:MomentumIterative",
        summary="foolbox's iterative fast gradient method with momentum.",
        norms=("linf", "l2"),
        targeted=True,
        libraries=("foolbox",),
        reference="Dong et al. 2018, arXiv:1710.06081",
    )


def _minimum_norm() -> Iterator[AttackSpec]:
    yield AttackSpec(
        name="foolbox-deepfool",
        factory=f"{_HERE}.minimum_norm:DeepFool",
        summary="foolbox's DeepFool: steps to the nearest boundary of the linearised classifier.",
        norms=("linf", "l2"),
        search="minimum-norm",
        libraries=("foolbox",),
        reference="Moosavi-Dezfooli et al. 2016, arXiv:1511.04599",
    )
    yield AttackSpec(
        name="foolbox-cw",
        factory=f"{_HERE}.minimum_norm:CarliniWagner",
        summary="foolbox's Carlini and Wagner attack: Adam on distance and margin, their weights searched.",
        norms=("l2",),
        search="minimum-norm",
        targeted=True,
        depends_on_batch=True,
        libraries=("foolbox",),
        reference="Carlini and Wagner 2017, arXiv:1608.04644",
    )
    yield AttackSpec(
        name="foolbox-ddn",
        factory=f"{_HERE}.minimum_norm:DecoupledDirectionNorm",
        summary="foolbox's decoupled direction and norm: gradient steps on a sphere that shrinks and grows.",
        norms=("l2",),
        search="minimum-norm",
        targeted=True,
        randomness="global",
        libraries=("foolbox",),
        reference="Rony et al. 2019, arXiv:1811.09600",
    )
    yield AttackSpec(
        name="foolbox-fmn",
        factory=f"{_HERE}.minimum_norm:FastMinimumNorm",
        summary="foolbox's fast minimum norm: gradient steps in a ball that shrinks and grows.",
        norms=("linf",),
        search="minimum-norm",
        targeted=True,
        libraries=("foolbox",),
        reference="Pintor et al. 2021, arXiv:2102.12827",
    )


def _decision_based() -> Iterator[AttackSpec]:
    yield AttackSpec(
        name="foolbox-boundary",
        factory=f"{_HERE}.decision_based:Boundary",
        summary="foolbox's boundary attack: a random walk along the boundary, on labels alone.",
        norms=("l2",),
        needs="labels",
        search="minimum-norm",
        targeted=True,
        randomness="global",
        depends_on_batch=True,
        linear_optimum=False,
        libraries=("foolbox",),
        reference="Brendel et al. 2018, arXiv:1712.04248",
    )
    yield AttackSpec(
        name="foolbox-hop-skip-jump",
        factory=f"{_HERE}.decision_based:HopSkipJump",
        summary="foolbox's HopSkipJump: gradients estimated at the boundary, on labels alone.",
        norms=("linf", "l2"),
        needs="labels",
        search="minimum-norm",
        targeted=True,
        randomness="global",
        depends_on_batch=True,
        linear_optimum=False,
        libraries=("foolbox",),
        reference="Chen et al. 2020, arXiv:1904.02144",
    )
