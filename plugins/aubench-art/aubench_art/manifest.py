"""What this distribution offers. Imports nothing heavy: listing plugins imports this module."""

from __future__ import annotations

from collections.abc import Iterator

from autoshield_bench.contracts import AttackSpec, DefenseSpec
from autoshield_bench.hookspecs import hookimpl

from aubench_art.attack_specs import attack_specs

CONTRACT = 1

_ART = "adversarial-robustness-toolbox"


@hookimpl
def aubench_attacks() -> Iterator[AttackSpec]:
    """Yield the attacks."""
    yield from attack_specs()


@hookimpl
def aubench_defenses() -> Iterator[DefenseSpec]:
    """Yield ART's preprocessor defenses; none is differentiable at real images, so each has a surrogate."""
    yield DefenseSpec(
        name="art-jpeg",
        factory="aubench_art.defenses.jpeg:Jpeg",
        summary="ART's JpegCompression: encodes and decodes each image as JPEG.",
        reference="Dziugaite et al. 2016, arXiv:1608.00853; Das et al. 2017, arXiv:1705.02900",
        differentiable=False,
        libraries=(_ART, "pillow"),
    )
    yield DefenseSpec(
        name="art-feature-squeezing",
        factory="aubench_art.defenses.feature_squeezing:FeatureSqueezing",
        summary="ART's FeatureSqueezing: rounds each value to a few bits.",
        reference="Xu et al. 2018, arXiv:1704.01155, section 3.1",
        differentiable=False,
        libraries=(_ART,),
    )
    yield DefenseSpec(
        name="art-spatial-smoothing",
        factory="aubench_art.defenses.spatial_smoothing:SpatialSmoothing",
        summary="ART's SpatialSmoothing: the median of each pixel's neighbourhood.",
        reference="Xu et al. 2018, arXiv:1704.01155, section 3.2",
        differentiable=False,
        libraries=(_ART, "scipy"),
    )
    yield DefenseSpec(
        name="art-total-variation",
        factory="aubench_art.defenses.total_variation:TotalVariation",
        summary="ART's TotalVarMin: smooths each image, held to a random part of its pixels.",
        reference="Guo et al. 2018, arXiv:1711.00117, section 4",
        differentiable=False,
        stochastic=True,
        libraries=(_ART, "scipy"),
    )
