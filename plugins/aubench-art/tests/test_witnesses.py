"""What the defenses return is what ART's own classes return."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from art.defences import preprocessor
from autoshield_bench.contracts import Defense
from autoshield_bench.seeding import ImageRandom
from torch import Tensor

from aubench_art.defenses.feature_squeezing import FeatureSqueezing
from aubench_art.defenses.jpeg import Jpeg
from aubench_art.defenses.spatial_smoothing import SpatialSmoothing
from aubench_art.defenses.total_variation import TotalVariation

RANGE = (0.0, 1.0)


class Drawn(ImageRandom):
    """Hands out numbers that were drawn elsewhere."""

    def __init__(self, numbers: np.ndarray) -> None:
        super().__init__(0, range(len(numbers)))
        self._numbers = numbers

    def uniform(self, shape, *purpose, low=0.0, high=1.0):
        """Return the numbers; ``shape`` must be theirs."""
        assert tuple(shape) == self._numbers.shape[1:]
        return torch.from_numpy(self._numbers)


@pytest.mark.parametrize("quality", [1, 10, 50, 75, 100])
def test_jpeg(images: Tensor, quality: int) -> None:
    art = preprocessor.JpegCompression(clip_values=RANGE, quality=quality, channels_first=True)
    _same(Jpeg(quality=quality), images, art(images.numpy())[0])


@pytest.mark.parametrize("bit_depth", [1, 2, 4, 8, 64])
def test_feature_squeezing(images: Tensor, bit_depth: int) -> None:
    art = preprocessor.FeatureSqueezing(clip_values=RANGE, bit_depth=bit_depth)
    # ART returns float64 here, on numpy 2: what is compared is the nearest float32.
    _same(FeatureSqueezing(bit_depth=bit_depth), images, art(images.numpy())[0].astype(np.float32))


@pytest.mark.parametrize("window_size", [1, 2, 3, 4, 5, 30])
def test_spatial_smoothing(images: Tensor, window_size: int) -> None:
    art = preprocessor.SpatialSmoothing(clip_values=RANGE, window_size=window_size, channels_first=True)
    _same(SpatialSmoothing(window_size=window_size), images, art(images.numpy())[0])


@pytest.mark.parametrize(
    "parameters",
    [{}, {"norm": 1, "lamb": 0.1}, {"prob": 0.5, "lamb": 0.03}, {"prob": 1.0}, {"prob": 0.0}, {"solver": "CG"}],
    ids=str,
)
def test_total_variation_under_the_same_mask(
    images: Tensor, parameters: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    channels_last = images.permute(0, 2, 3, 1).numpy()
    # ART draws one mask for each image, in order: the numbers of one generator are the numbers of all masks.
    drawn = np.stack([np.random.RandomState(3).rand(*channels_last.shape)])[0]
    monkeypatch.setattr(np.random, "rand", np.random.RandomState(3).rand)
    art = preprocessor.TotalVarMin(clip_values=RANGE, **parameters)
    expected = art(channels_last)[0].transpose(0, 3, 1, 2)
    _same(TotalVariation(**parameters), images, expected, Drawn(drawn))


def test_total_variation_draws_one_mask_for_each_image_and_value(images: Tensor) -> None:
    rng = ImageRandom(5, range(len(images)))
    twins = images[:1].expand(len(images), -1, -1, -1).contiguous()
    smoothed = TotalVariation().purify(twins, rng)
    assert all(not torch.equal(smoothed[0], other) for other in smoothed[1:])
    assert not torch.equal(smoothed, TotalVariation().purify(twins, rng.child("again")))


def test_the_papers_values_leave_images_as_they_are_in_art(images: Tensor) -> None:
    smoothed = TotalVariation(prob=0.5, lamb=0.03).purify(images[:, :1], ImageRandom(0, range(len(images))))
    assert float((smoothed - images[:, :1]).abs().max()) < 1e-6


def test_arts_gradient_of_the_total_variation_is_twice_that_of_its_loss() -> None:
    """The reason for the factor in the surrogate; ART's own bug, so a release that mends it must show up here."""
    source = np.random.default_rng(0)
    z, x, mask = source.random(30), source.random((6, 5)), np.zeros((6, 5), dtype=int)
    art = preprocessor.TotalVarMin
    slopes = art._deri_loss_func(z, x, mask, 2, 1.0)
    step = 1e-6 * np.eye(30)
    differences = [
        (art._loss_func(z + d, x, mask, 2, 1.0) - art._loss_func(z - d, x, mask, 2, 1.0)) / 2e-6 for d in step
    ]
    np.testing.assert_allclose(slopes, 2 * np.array(differences), rtol=1e-4, atol=1e-6)


def _same(defense: Defense, images: Tensor, expected: np.ndarray, rng: ImageRandom | None = None) -> None:
    purified = defense.purify(images.clone(), rng or ImageRandom(0, range(len(images))))
    assert purified.dtype == torch.float32
    assert np.array_equal(purified.numpy(), expected)
    assert float(purified.min()) >= 0
    assert float(purified.max()) <= 1
