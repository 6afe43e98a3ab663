"""The stand-ins for the backward pass lead an attack where the defenses really go."""

from __future__ import annotations

import pytest
import torch
from autoshield_bench.contracts import Defense
from autoshield_bench.seeding import ImageRandom
from torch import Tensor

from aubench_art.defenses.feature_squeezing import FeatureSqueezing
from aubench_art.defenses.jpeg import Jpeg
from aubench_art.defenses.jpeg_transform import compressed
from aubench_art.defenses.rounding import soft_round
from aubench_art.defenses.spatial_smoothing import SpatialSmoothing, median_filter
from aubench_art.defenses.total_variation import TotalVariation

LENGTH = 0.2
"""L2 length of the step taken, about that of one step of an attack."""


def gains(defense: Defense, images: Tensor, direction: Tensor, gradient: Tensor) -> Tensor:
    """Return by how much a step along ``gradient`` moves the purified images ``[N]`` along ``direction``."""
    rng = ImageRandom(0, range(len(images)))
    lengths = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    stepped = (images + LENGTH * gradient / lengths).clamp(0, 1)
    change = defense.purify(stepped, rng).double() - defense.purify(images.clone(), rng).double()
    return (change * direction).flatten(1).sum(1)


def backward(defense: Defense, images: Tensor, direction: Tensor) -> Tensor:
    """Return the gradient of the purified images along ``direction``, as BPDA has it."""
    point = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(defense.surrogate(point), point, direction)
    return gradient


@pytest.mark.parametrize(
    "defense",
    [
        Jpeg(quality=10),
        Jpeg(quality=50),
        FeatureSqueezing(bit_depth=1),
        FeatureSqueezing(bit_depth=3),
        SpatialSmoothing(),
        SpatialSmoothing(window_size=2),
    ],
    ids=str,
)
def test_a_step_along_the_surrogate_gains_more_than_one_along_the_identity(defense: Defense, images: Tensor) -> None:
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(9))
    ours = gains(defense, images, direction, backward(defense, images, direction))
    identity = gains(defense, images, direction, direction)
    assert float((ours > 0).double().mean()) >= 0.9
    assert float(ours.mean()) > 1.1 * float(identity.mean())


@pytest.mark.parametrize("parameters", [{}, {"lamb": 0.1}, {"norm": 1, "lamb": 0.2}], ids=str)
def test_the_surrogate_of_total_variation_points_where_the_defense_goes(
    parameters: dict[str, float], images: Tensor
) -> None:
    """Over a longer way, since ten iterations of a solver that stops early do not move smoothly."""
    defense, rng = TotalVariation(**parameters), ImageRandom(0, range(24))
    offset = 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(9))
    above, below = (images + offset).clamp(0, 1), (images - offset).clamp(0, 1)
    moved = (defense.purify(above, rng) - defense.purify(below, rng)).flatten(1)
    # The surrogate's matrix is symmetric: its backward pass is its forward pass.
    predicted = backward(defense, images, above - below).flatten(1)
    ours = torch.cosine_similarity(moved, predicted)
    identity = torch.cosine_similarity(moved, (above - below).flatten(1))
    assert float(ours.mean()) > float(identity.mean()) + 0.05


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_the_jpeg_transform_is_pillows_but_for_roundings_of_pixels(images: Tensor, quality: int) -> None:
    whole = (images * 255).floor() / 255  # as ART cuts them
    decoded = Jpeg(quality=quality).purify(images, ImageRandom(0, range(len(images))))
    ours = compressed(whole, quality, lambda coefficients, _step: coefficients.round()).clamp(0, 1)
    error = float((ours - decoded).abs().mean())
    assert error < 3 / 255
    assert error < 0.25 * float((decoded - images).abs().mean())


def test_the_jpeg_surrogate_knows_that_fine_colour_is_lost() -> None:
    images = torch.full((1, 3, 16, 16), 0.5)
    chequered = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    fine_colour = torch.stack([chequered, -chequered, torch.zeros(16, 16)])[None]
    fine_grey = chequered.expand(1, 3, 16, 16)
    assert float(backward(Jpeg(), images, fine_colour).norm()) < 0.02 * float(fine_colour.norm())
    assert float(backward(Jpeg(), images, fine_grey).norm()) > 0.2 * float(fine_grey.norm())


@pytest.mark.parametrize(("step", "flattest"), [(1.0, 0.25), (0.125, 0.25), (0.0625, 0.625), (0.0, 1.0)])
def test_soft_round_rises_through_the_whole_numbers_and_the_points_halfway(step: float, flattest: float) -> None:
    x = torch.linspace(-3, 3, 601, dtype=torch.float64).requires_grad_()
    y = soft_round(x, step)
    assert torch.allclose(y[::50], torch.arange(-6, 7).double() / 2, atol=1e-9)
    (slopes,) = torch.autograd.grad(y.sum(), x)
    assert float(slopes.min()) == pytest.approx(flattest)
    assert bool((y.detach().diff() > 0).all())


@pytest.mark.parametrize("window_size", [1, 2, 3, 5, 30])
def test_the_median_filter_is_the_defense_itself(images: Tensor, window_size: int) -> None:
    purified = SpatialSmoothing(window_size=window_size).purify(images, ImageRandom(0, range(len(images))))
    assert torch.equal(median_filter(images, window_size), purified)


@pytest.mark.parametrize("window_size", [2, 3])
def test_the_median_filter_has_the_gradient_of_finite_differences(window_size: int) -> None:
    source = torch.Generator().manual_seed(4)
    x = torch.rand((2, 3, 7, 6), generator=source, dtype=torch.float64)  # no two values are equal
    assert torch.autograd.gradcheck(lambda image: median_filter(image, window_size), x.requires_grad_())


def test_equal_values_share_the_gradient_of_their_median() -> None:
    x = torch.zeros((1, 1, 9, 9), requires_grad=True)
    (gradient,) = torch.autograd.grad(median_filter(x, 3)[0, 0, 4, 4], x)
    assert torch.allclose(gradient[0, 0, 3:6, 3:6], torch.full((3, 3), 1 / 9))
    assert float(gradient.sum()) == pytest.approx(1)


def test_the_surrogate_of_total_variation_keeps_edges_and_smooths_the_rest() -> None:
    image = torch.zeros((1, 1, 16, 16))
    image[..., 8:] = 1.0
    noisy = image + 0.02 * torch.randn(image.shape, generator=torch.Generator().manual_seed(2))
    smoothed = TotalVariation(lamb=0.1).surrogate(noisy)
    assert float(smoothed.std(dim=2).mean()) < 0.5 * float(noisy.std(dim=2).mean())
    assert float(smoothed[..., 8].mean() - smoothed[..., 7].mean()) > 0.8
