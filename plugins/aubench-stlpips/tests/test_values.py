"""The metric against the library that it wraps, against the value that the library publishes, and its treatment of
images that are gray or small."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from autoshield_bench.contracts import MetricSpec
from autoshield_bench.errors import ParameterError, Unavailable
from PIL import Image
from stlpips_pytorch import stlpips as library
from torch.nn.functional import interpolate

from aubench_stlpips import manifest, metric, pretrained
from aubench_stlpips.metric import Stlpips

PHOTOGRAPHS = Path(os.environ.get("AUBENCH_WEIGHTS", "")) / "ex_ref.png"
BACKBONES = ["alex", "vgg"]


def random_images(count: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def smooth_images(count: int, channels: int, side: int, seed: int = 0) -> torch.Tensor:
    coarse = random_images(count, channels, side // 4, side // 4, seed)
    return interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)


def noisy(images: torch.Tensor, scale: float = 0.1) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (images + scale * noise).clamp(0, 1)


def by_the_library(backbone: str, reference: torch.Tensor, other: torch.Tensor) -> list[float]:
    """As the library's README does it, with its own loading, on images in [-1, 1]."""
    network = library.LPIPS(net=backbone, variant="shift_tolerant", verbose=False)
    with torch.no_grad():
        return network(2 * reference - 1, 2 * other - 1).flatten().tolist()


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("size", [(64, 64), (70, 91)])
def test_values_are_those_of_the_library(backbone, size: tuple[int, int]) -> None:
    reference = random_images(3, 3, *size)
    for other in (noisy(reference, 0.3), random_images(3, 3, *size, seed=2), 1 - reference):
        values = Stlpips(network=backbone).per_image(reference, other).values
        assert (values > 0.001).all()
        assert values.tolist() == pytest.approx(by_the_library(backbone, reference, other), abs=1e-6)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_network_is_bit_by_bit_what_the_library_loads(backbone: str) -> None:
    ours = pretrained.load(backbone).state_dict()
    theirs = library.LPIPS(net=backbone, variant="shift_tolerant", verbose=False).state_dict()
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert value.device == ours[name].device
        assert value.dtype == ours[name].dtype
        assert torch.equal(value, ours[name]), name


@pytest.mark.skipif(not PHOTOGRAPHS.is_file(), reason="AUBENCH_WEIGHTS names no directory with LPIPS' example images")
def test_the_value_published_by_the_library_is_met() -> None:
    pair = [
        torch.from_numpy(np.asarray(Image.open(PHOTOGRAPHS.with_name(name)).convert("RGB")) / 255)
        .float()
        .permute(2, 0, 1)[None]
        for name in ("ex_p0.png", "ex_ref.png")
    ]
    # From the library's README, also in the METADATA of its wheel.
    assert Stlpips().per_image(*pair).values.item() == pytest.approx(0.7777554988861084, abs=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_identical_images_are_at_distance_zero_exactly(backbone) -> None:
    images = torch.cat([smooth_images(3, 3, 64), torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)])
    assert Stlpips(network=backbone).per_image(images, images.clone()).values.tolist() == [0.0] * 5


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_shift_by_a_pixel_weighs_less_in_the_mean_than_noise_of_the_same_mse(backbone) -> None:
    large = smooth_images(12, 3, 80)
    images, shifted = large[..., 8:72, 8:72], large[..., 8:72, 9:73]
    deviation = (shifted - images).square().mean((1, 2, 3), keepdim=True).sqrt()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    noise *= deviation / noise.square().mean((1, 2, 3), keepdim=True).sqrt()
    with_noise = images + noise
    torch.testing.assert_close((with_noise - images).square().mean(), (shifted - images).square().mean())
    by_shift, by_noise = (Stlpips(network=backbone).per_image(images, other).values for other in (shifted, with_noise))
    assert 2 * by_shift.mean() < by_noise.mean()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_declared_range_follows_from_the_weights(backbone: str) -> None:
    """Features are the output of a ReLU, scaled to a length of at most 1: sum w (a - b)^2 <= 2 max w for w >= 0."""
    spec = next(iter(manifest.aubench_metrics()))
    assert isinstance(spec, MetricSpec)
    network = pretrained.load(backbone)
    with torch.no_grad():
        features = network.net(network.scaling_layer(random_images(2, 3, 64, 64)))
    assert all(bool((layer >= 0).all()) for layer in features)
    layers = [network.get_parameter(f"lin{index}.model.1.weight") for index in range(5)]
    assert all(bool((weights >= 0).all()) for weights in layers)
    bound = 2 * sum(weights.max().item() for weights in layers)
    assert spec.range[0] == 0
    assert spec.range[1] is not None
    assert bound < spec.range[1]


# Gray, small and many images --------------------------------------------------------------------------------------


def test_gray_is_repeated_to_three_channels_and_small_images_are_resized() -> None:
    gray = smooth_images(4, 1, 28)
    other = noisy(gray, 0.2)
    enlarged = [
        interpolate(images.repeat(1, 3, 1, 1), size=(64, 64), mode="bilinear", align_corners=False)
        for images in (gray, other)
    ]
    values = Stlpips().per_image(gray, other).values
    assert (values > 0.005).all()
    torch.testing.assert_close(values, Stlpips().per_image(*enlarged).values, rtol=0, atol=1e-6)
    assert values.tolist() == pytest.approx(by_the_library("alex", *enlarged), abs=1e-6)
    wide = random_images(2, 1, 28, 56)
    stretched = [
        interpolate(images.repeat(1, 3, 1, 1), size=(64, 128), mode="bilinear", align_corners=False)
        for images in (wide, noisy(wide))
    ]
    measured = Stlpips().per_image(wide, noisy(wide)).values.tolist()
    assert measured == pytest.approx(by_the_library("alex", *stretched), abs=1e-6)


def test_values_do_not_depend_on_chunks_or_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = smooth_images(9, 1, 28)
    other = noisy(clean)
    whole = Stlpips().per_image(clean, other).values
    alone = torch.cat([Stlpips().per_image(clean[i : i + 1], other[i : i + 1]).values for i in range(9)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-6)
    for pixels in (1, 4 * 64 * 64):  # a chunk holds an image at least, however large the image
        monkeypatch.setattr(metric, "CHUNK_PIXELS", pixels)
        torch.testing.assert_close(whole, Stlpips().per_image(clean, other).values, rtol=0, atol=1e-6)


def test_images_of_two_channels_are_refused() -> None:
    images = random_images(1, 2, 64, 64)
    with pytest.raises(Unavailable, match="1 or 3 channels, not 2"):
        Stlpips().per_image(images, images)


def test_parameters_are_checked() -> None:
    with pytest.raises(ParameterError, match="network: 'squeeze' is not one of alex, vgg"):
        Stlpips(network="squeeze")
    with pytest.raises(ParameterError, match="images: 0 is not at least 1"):
        Stlpips(images=0)
    assert Stlpips().images == 500
    assert Stlpips(images=None).images is None


def test_notes_name_backbone_version_and_calibration() -> None:
    notes = Stlpips(network="vgg").notes()
    assert "backbone vgg, stlpips-pytorch 0.0.2" in notes
    assert "images under 64 px are resized to 64 px (bilinear) and uncalibrated there" in notes
