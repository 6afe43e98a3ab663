"""What this distribution offers. Imports nothing heavy: listing plugins imports this module."""

from __future__ import annotations

from collections.abc import Iterator

from autoshield_bench.contracts import AttackSpec
from autoshield_bench.hookspecs import hookimpl

CONTRACT = 1

_HERE = "aubench_torchattacks"
_LIBRARIES = ("torchattacks",)


@hookimpl
def aubench_attacks() -> Iterator[AttackSpec]:
    """Yield the attacks."""
    yield AttackSpec(
        name="torchattacks-fgsm",
        factory=f"{_HERE}.fgsm:FGSM",
        summary="torchattacks' FGSM: one step of the size of the ball.",
        norms=("linf",),
        targeted=True,
        reference="Goodfellow et al. 2015, arXiv:1412.6572",
        libraries=_LIBRARIES,
    )
    yield AttackSpec(
        name="torchattacks-pgd",
        factory=f"{_HERE}.pgd:PGD",
        summary="torchattacks' PGD and PGDL2, with random start; the last point.",
        norms=("linf", "l2"),
        targeted=True,
        randomness="global",
        reference="Madry et al. 2018, arXiv:1706.06083",
        libraries=_LIBRARIES,
    )
    yield AttackSpec(
        name="torchattacks-eotpgd",
        factory=f"{_HERE}.pgd:EOTPGD",
        summary="torchattacks' EOTPGD: PGD along the mean of several gradients, for randomised defenses.",
        norms=("linf",),
        targeted=True,
        randomness="global",
        reference="Zimmermann 2019, arXiv:1907.00895",
        libraries=_LIBRARIES,
    )
    yield AttackSpec(
        name="torchattacks-mifgsm",
        factory=f"{_HERE}.pgd:MIFGSM",
        summary="torchattacks' MIFGSM: signed steps with momentum, made to transfer.",
        norms=("linf",),
        targeted=True,
        reference="Dong et al. 2018, arXiv:1710.06081",
        libraries=_LIBRARIES,
    )
    yield AttackSpec(
        name="torchattacks-jitter",
        factory=f"{_HERE}.pgd:Jitter",
        summary="torchattacks' Jitter: PGD on noisy, rescaled probabilities.",
        norms=("linf",),
        targeted=True,
        randomness="global",
        # Its noise turns the sign of small gradients, and it holds misclassified points near the image.
        linear_optimum=False,
        reference="Schwinn et al. 2021, arXiv:2105.10304",
        libraries=_LIBRARIES,
    )
    yield AttackSpec(
        name="torchattacks-apgd",
        factory=f"{_HERE}.apgd:APGD",
        summary="torchattacks' Auto-PGD on the cross-entropy or the DLR loss.",
        norms=("linf", "l2"),
        randomness="global",
        reference="Croce and Hein 2020, arXiv:2003.01690",
        libraries=_LIBRARIES,
    )
    yield AttackSpec(
        name="torchattacks-apgdt",
        factory=f"{_HERE}.apgd:APGDT",
        summary="torchattacks' Auto-PGD on the targeted DLR loss, towards every wrong class in turn.",
        norms=("linf", "l2"),
        randomness="global",
        # Its loss needs four classes; the model of known optimum has two.
        linear_optimum=False,
        reference="Croce and Hein 2020, arXiv:2003.01690",
        libraries=_LIBRARIES,
    )
    yield AttackSpec(
        name="torchattacks-square",
        factory=f"{_HERE}.square:Square",
        summary="torchattacks' Square: random search over squares of pixels, on scores alone.",
        norms=("linf", "l2"),
        needs="scores",
        targeted=True,
        randomness="global",
        # It stops at the first misclassified point.
        linear_optimum=False,
        reference="Andriushchenko et al. 2020, arXiv:1912.00049",
        libraries=_LIBRARIES,
    )
    yield AttackSpec(
        name="torchattacks-autoattack",
        factory=f"{_HERE}.autoattack:AutoAttack",
        summary="torchattacks' AutoAttack: APGD, targeted APGD, targeted FAB and Square in turn.",
        norms=("linf", "l2"),
        randomness="global",
        # Its losses need four classes; the model of known optimum has two.
        linear_optimum=False,
        strong=True,
        reference="Croce and Hein 2020, arXiv:2003.01690",
        libraries=_LIBRARIES,
    )
    yield AttackSpec(
        name="torchattacks-cw",
        factory=f"{_HERE}.cw:CW",
        summary="torchattacks' Carlini-Wagner: nearest point in L2 by Adam under a change of variables.",
        norms=("l2",),
        search="minimum-norm",
        targeted=True,
        # It stops early by the loss of the whole batch.
        depends_on_batch=True,
        reference="Carlini and Wagner 2017, arXiv:1608.04644",
        libraries=_LIBRARIES,
    )
    yield AttackSpec(
        name="torchattacks-deepfool",
        factory=f"{_HERE}.deepfool:DeepFool",
        summary="torchattacks' DeepFool: steps to the nearest linearised boundary, image by image.",
        norms=("l2",),
        search="minimum-norm",
        reference="Moosavi-Dezfooli et al. 2016, arXiv:1511.04599",
        libraries=_LIBRARIES,
    )
    yield AttackSpec(
        name="torchattacks-fab",
        factory=f"{_HERE}.fab:FAB",
        summary="torchattacks' FAB: projections onto the linearised boundary, drawn towards the image.",
        norms=("linf", "l2"),
        search="minimum-norm",
        randomness="global",
        reference="Croce and Hein 2020, arXiv:1907.02044",
        libraries=_LIBRARIES,
    )
