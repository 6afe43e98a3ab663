"""What the attacks declare. Imports neither torch nor ART."""

from __future__ import annotations

from collections.abc import Iterator

from autoshield_bench.contracts import AttackSpec

LIBRARY = ("adversarial-robustness-toolbox",)
"""The distribution that does the work."""


def attack_specs() -> Iterator[AttackSpec]:
    """Yield the spec of every attack."""
    yield AttackSpec(
        name="art-fgsm",
        factory="aubench_art.attacks.gradient:FGSM",
        summary="ART's FastGradientMethod: one step of the size of the ball.",
        norms=("linf", "l2"),
        targeted=True,
        reference="Goodfellow et al. 2015, arXiv:1412.6572",
        libraries=LIBRARY,
    )
    yield AttackSpec(
        name="art-pgd",
        factory="aubench_art.attacks.gradient:PGD",
        summary="ART's ProjectedGradientDescent: gradient steps from random starts, the last point.",
        norms=("linf", "l2"),
        targeted=True,
        randomness="global",
        reference="Madry et al. 2018, arXiv:1706.06083",
        libraries=LIBRARY,
    )
    yield AttackSpec(
        name="art-apgd",
        factory="aubench_art.attacks.gradient:APGD",
        summary="ART's AutoProjectedGradientDescent: momentum, and steps that halve where they stall.",
        norms=("linf", "l2"),
        targeted=True,
        randomness="global",
        depends_on_batch=True,
        reference="Croce and Hein 2020, arXiv:2003.01690",
        libraries=LIBRARY,
    )
    yield AttackSpec(
        name="art-deepfool",
        factory="aubench_art.attacks.minimum_norm:DeepFool",
        summary="ART's DeepFool: steps to the nearest face of the linearised decision boundary.",
        norms=("l2",),
        search="minimum-norm",
        reference="Moosavi-Dezfooli et al. 2016, arXiv:1511.04599",
        libraries=LIBRARY,
    )
    yield AttackSpec(
        name="art-cw",
        factory="aubench_art.attacks.minimum_norm:CarliniWagner",
        summary="ART's CarliniL2Method: distance and margin minimised together, weights by binary search.",
        norms=("l2",),
        search="minimum-norm",
        targeted=True,
        reference="Carlini and Wagner 2017, arXiv:1608.04644",
        libraries=LIBRARY,
    )
    yield AttackSpec(
        name="art-square",
        factory="aubench_art.attacks.black_box:Square",
        summary="ART's SquareAttack: random squares, kept where the scores improve.",
        norms=("linf", "l2"),
        needs="scores",
        randomness="global",
        depends_on_batch=True,
        linear_optimum=False,
        reference="Andriushchenko et al. 2020, arXiv:1912.00049",
        libraries=LIBRARY,
    )
    yield AttackSpec(
        name="art-hop-skip-jump",
        factory="aubench_art.attacks.decision_based:HopSkipJump",
        summary="ART's HopSkipJump: gradients estimated at the decision boundary from labels alone.",
        norms=("l2", "linf"),
        needs="labels",
        search="minimum-norm",
        linear_optimum=False,
        reference="Chen et al. 2020, arXiv:1904.02144",
        libraries=LIBRARY,
    )
    yield AttackSpec(
        name="art-boundary",
        factory="aubench_art.attacks.decision_based:Boundary",
        summary="ART's BoundaryAttack: a random walk along the decision boundary, from labels alone.",
        norms=("l2",),
        needs="labels",
        search="minimum-norm",
        linear_optimum=False,
        reference="Brendel et al. 2018, arXiv:1712.04248",
        libraries=LIBRARY,
    )
