"""The built-in metrics against scikit-image, numpy and the published values of LPIPS."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import pickle
import subprocess
import sys
import threading
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pytest
import skimage.metrics
import torch
from PIL import Image
from sklearn.datasets import load_digits

from autoshield_bench.builtin.metrics import backbone_weights, perceptual, ssim
from autoshield_bench.builtin.metrics.backbone_weights import BACKBONES
from autoshield_bench.builtin.metrics.perceptual import Lpips
from autoshield_bench.builtin.metrics.pixels import L2Distance, LinfDistance, Mse, Psnr
from autoshield_bench.builtin.metrics.predictions import Accuracy, AttackSuccess
from autoshield_bench.builtin.metrics.ssim import Ssim
from autoshield_bench.errors import ParameterError, Unavailable

WEIGHTS = os.environ.get("AUBENCH_WEIGHTS")
LPIPS_FILES = Path(WEIGHTS) if WEIGHTS else None
needs_weights = pytest.mark.skipif(
    LPIPS_FILES is None or not (LPIPS_FILES / "reference_values.json").is_file(),
    reason="AUBENCH_WEIGHTS names no directory with the LPIPS weights and reference_values.json",
)
PAIR_METRICS = [Mse(), Psnr(), Ssim(), Ssim(gaussian=True), LinfDistance(), L2Distance()]


def noisy(images: torch.Tensor, scale: float = 0.1, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (images + scale * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def random_images(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))


def smooth_images(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    coarse = random_images(count, channels, 4, 4)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)


def digit_images(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    digits = torch.from_numpy(load_digits().images[: count * channels] / 16).float().view(count, channels, 8, 8)
    return torch.nn.functional.interpolate(digits, size=(height, width), mode="bilinear").clamp(0, 1)


# Predictions -----------------------------------------------------------------------------------------------------


def test_accuracy_is_the_share_of_right_predictions() -> None:
    labels = torch.tensor([0, 1, 2, 1])
    logits = torch.tensor([[9.0, 0, 0], [9, 0, 0], [-3, -2, -1], [0, 1, 0]])
    result = Accuracy().per_image(labels, torch.zeros(4, 3), logits)
    assert result.values.tolist() == [1, 0, 1, 1]
    assert result.defined is None
    assert Accuracy().aggregate(result.values.tolist(), 0) == 0.75


def test_attack_success_counts_only_images_that_were_right_when_clean() -> None:
    labels = torch.tensor([0, 0, 0, 0])
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    clean = torch.tensor([right, right, wrong, wrong])
    attacked = torch.tensor([right, wrong, right, wrong])
    result = AttackSuccess().per_image(labels, clean, attacked)
    assert result.defined is not None
    assert result.defined.tolist() == [True, True, False, False]
    assert result.values[result.defined].tolist() == [0, 1]
    assert result.values.isfinite().all()
    assert AttackSuccess().aggregate([0.0, 1.0], 2) == 0.5
    assert AttackSuccess().aggregate([], 2) is None


def test_attack_success_is_zero_on_the_clean_image_itself() -> None:
    logits = torch.randn(20, 10, generator=torch.Generator().manual_seed(0))
    result = AttackSuccess().per_image(logits.argmax(1), logits, logits)
    assert not result.values.any()


# Pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_mse_and_psnr_agree_with_scikit_image(channels: int) -> None:
    clean = digit_images(6, channels, 28, 28)
    other = noisy(clean)
    mse, psnr = Mse().per_image(clean, other), Psnr().per_image(clean, other)
    for index in range(6):
        pair = clean[index].double().numpy(), other[index].double().numpy()
        assert float(mse.values[index]) == pytest.approx(skimage.metrics.mean_squared_error(*pair), rel=1e-12)
        reference = skimage.metrics.peak_signal_noise_ratio(*pair, data_range=1.0)
        assert float(psnr.values[index]) == pytest.approx(reference, rel=1e-12)


def test_psnr_of_identical_images_is_undefined_not_infinite() -> None:
    clean = random_images(3, 1, 8, 8)
    other = clean.clone()
    other[1] = 1 - other[1]
    result = Psnr().per_image(clean, other)
    assert result.defined is not None
    assert result.defined.tolist() == [False, True, False]
    assert result.values.isfinite().all()
    assert Psnr().aggregate([], 3) is None


def test_psnr_tells_the_smallest_change_from_none() -> None:
    clean = torch.full((1, 1, 8, 8), 0.5)
    other = clean.clone()
    other[0, 0, 0, 0] = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))
    result = Psnr().per_image(clean, other)
    assert result.defined is not None
    assert result.defined.all()
    assert result.values.isfinite().all()


def test_psnr_of_many_images_comes_from_the_mean_mse_of_all() -> None:
    clean = random_images(5, 1, 16, 16)
    other = torch.cat([clean[:2], noisy(clean[2:3], 0.01), noisy(clean[3:4], 0.1), noisy(clean[4:5], 0.5)])
    result = Psnr().per_image(clean, other)
    assert result.defined is not None
    defined = result.values[result.defined].tolist()
    whole = skimage.metrics.peak_signal_noise_ratio(clean.double().numpy(), other.double().numpy(), data_range=1.0)
    assert Psnr().aggregate(defined, 2) == pytest.approx(whole, rel=1e-12)
    assert abs(whole - sum(defined) / len(defined)) > 1  # the mean of decibels is another figure


def test_distances_agree_with_numpy() -> None:
    clean = random_images(7, 3, 9, 11)
    other = noisy(clean)
    difference = (clean.double() - other.double()).numpy().reshape(7, -1)
    linf, l2 = LinfDistance().per_image(clean, other), L2Distance().per_image(clean, other)
    np.testing.assert_allclose(linf.values.numpy(), np.linalg.norm(difference, np.inf, axis=1), rtol=1e-12)
    np.testing.assert_allclose(l2.values.numpy(), np.linalg.norm(difference, 2, axis=1), rtol=1e-12)


# Structure -------------------------------------------------------------------------------------------------------


def scikit_image_ssim(a: torch.Tensor, b: torch.Tensor, window: int, gaussian: bool, dtype: type) -> float:
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False} if gaussian else {}
    pair = a.numpy().astype(dtype), b.numpy().astype(dtype)
    return float(
        skimage.metrics.structural_similarity(*pair, win_size=window, data_range=1.0, channel_axis=0, **options)
    )


@pytest.mark.parametrize("make", [random_images, smooth_images, digit_images])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("window", [3, 7, 11, 15])
def test_ssim_agrees_with_scikit_image(make, channels: int, gaussian: bool, window: int) -> None:
    clean = make(4, channels, 28, 33)
    metric = Ssim(window=window, gaussian=gaussian)
    for other in (noisy(clean, 0.02), noisy(clean, 0.3), 1 - clean):
        values = metric.per_image(clean, other).values
        for index in range(4):
            pair = clean[index], other[index]
            exact = scikit_image_ssim(*pair, window, gaussian, np.float64)
            assert float(values[index]) == pytest.approx(exact, abs=1e-10)
            single = scikit_image_ssim(*pair, window, gaussian, np.float32)
            assert float(values[index]) == pytest.approx(single, abs=1e-4)


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("window", [3, 7])
def test_ssim_of_images_no_larger_than_the_window_agrees(gaussian: bool, window: int) -> None:
    clean = random_images(3, 1, window, window)  # the Gaussian of 11 is mirrored more than once at a side of 3
    other = noisy(clean)
    values = Ssim(window=window, gaussian=gaussian).per_image(clean, other).values
    exact = [scikit_image_ssim(a, b, window, gaussian, np.float64) for a, b in zip(clean, other, strict=True)]
    assert values.tolist() == pytest.approx(exact, abs=1e-10)


@pytest.mark.parametrize("gaussian", [False, True])
def test_ssim_of_identical_images_is_exactly_one(gaussian: bool) -> None:
    clean = torch.cat([random_images(3, 1, 28, 28), torch.zeros(1, 1, 28, 28), torch.ones(1, 1, 28, 28)])
    assert Ssim(gaussian=gaussian).per_image(clean, clean.clone()).values.tolist() == [1.0] * 5


def test_ssim_does_not_depend_on_chunks_or_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = random_images(150, 1, 28, 28)
    other = noisy(clean)
    whole = Ssim().per_image(clean, other).values
    alone = torch.cat([Ssim().per_image(clean[i : i + 1], other[i : i + 1]).values for i in range(150)])
    monkeypatch.setattr(ssim, "CHUNK_VALUES", 28 * 28 * 7)
    chunked = Ssim().per_image(clean, other).values
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(whole, chunked, rtol=0, atol=1e-12)


def test_ssim_names_the_window_and_the_image_that_do_not_fit() -> None:
    small = random_images(2, 1, 8, 12)
    with pytest.raises(Unavailable, match=r"window of 9 px does not fit images of 8x12 px; set window to 7 or less"):
        Ssim(window=9).per_image(small, small)
    with pytest.raises(Unavailable, match="leave this metric out"):
        Ssim().per_image(small[..., :2], small[..., :2])


@pytest.mark.parametrize("window", [-1, 0, 1, 8])
def test_ssim_refuses_a_window_without_centre_or_variance(window: int) -> None:
    with pytest.raises(ParameterError, match=f"window: {window} is not an odd number"):
        Ssim(window=window)


def test_ssim_notes_name_window_and_data_range() -> None:
    assert Ssim(window=9).notes() == "uniform 9x9 window, sample covariance, data range 1.0"
    assert "Gaussian 11x11" in Ssim(gaussian=True, window=11).notes()
    assert "border of 5 px" in Ssim(gaussian=True, window=11).notes()
    assert "data range 1.0" in Ssim(gaussian=True).notes()


# All pair metrics ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", PAIR_METRICS, ids=repr)
def test_pair_metrics_leave_their_inputs_alone_and_return_one_value_each(metric) -> None:
    clean = random_images(5, 3, 12, 12)
    other = noisy(clean)
    kept = clean.clone(), other.clone()
    result = metric.per_image(clean, other)
    assert result.values.shape == (5,)
    assert result.values.is_floating_point()
    assert torch.equal(clean, kept[0])
    assert torch.equal(other, kept[1])


@pytest.mark.parametrize("metric", [*PAIR_METRICS, Lpips()], ids=repr)
def test_pair_metrics_of_no_images_are_empty(metric) -> None:
    nothing = torch.empty(0, 1, 28, 28)
    assert metric.per_image(nothing, nothing).values.shape == (0,)
    assert metric.aggregate([], 0) is None


@pytest.mark.parametrize("metric", [Accuracy(), AttackSuccess()], ids=repr)
def test_prediction_metrics_of_no_images_are_empty(metric) -> None:
    result = metric.per_image(torch.empty(0, dtype=torch.int64), torch.empty(0, 10), torch.empty(0, 10))
    assert result.values.shape == (0,)


def test_importing_the_metrics_and_asking_for_weights_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from autoshield_bench.builtin.metrics import predictions, pixels, ssim, perceptual\n"
        "predictions.Accuracy(); pixels.Psnr().notes(); ssim.Ssim().notes()\n"
        "metric = perceptual.Lpips(); metric.notes(); assert metric.unavailable()\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'lpips', 'skimage', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)\n"
    )
    environment = {**os.environ, "AUBENCH_WEIGHTS": str(tmp_path), "TORCH_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Perception: values ----------------------------------------------------------------------------------------------


def reference_values() -> dict:
    assert LPIPS_FILES is not None
    return json.loads((LPIPS_FILES / "reference_values.json").read_text())


def from_signed(images: torch.Tensor) -> torch.Tensor:
    return (images + 1) / 2  # the published cases are given in [-1, 1]


@needs_weights
@pytest.mark.parametrize(("seed", "count", "case"), [(123, 10, 0), (42, 2, 1), (42, 10, 2)])
def test_lpips_meets_the_published_values(seed: int, count: int, case: int) -> None:
    published = reference_values()["published"][case]
    assert str(seed) in published["input"]
    assert f"torch.rand({count},3,100,100" in published["input"]
    generator = torch.Generator().manual_seed(seed)
    pair = [from_signed(torch.rand(count, 3, 100, 100, generator=generator) * 2 - 1) for _ in range(2)]
    values = Lpips().per_image(*pair).values
    measured = values.tolist() if published["reduction"] == "none" else values.mean().item()
    assert measured == pytest.approx(published["value"], abs=2e-4)


@needs_weights
def test_lpips_meets_the_values_computed_from_photographs() -> None:
    cases = [case for case in reference_values()["computed_here_not_published"] if "pair" in case]
    assert len(cases) == 3
    assert LPIPS_FILES is not None
    for case in cases:
        pictures = [np.asarray(Image.open(LPIPS_FILES / name).convert("RGB")) for name in case["pair"]]
        pair = [torch.from_numpy(picture / 255).float().permute(2, 0, 1)[None] for picture in pictures]
        assert Lpips().per_image(*pair).values.item() == pytest.approx(case["value"], abs=2e-4)


@needs_weights
def test_lpips_repeats_gray_to_three_channels_and_resizes_small_images() -> None:
    gray = digit_images(4, 1, 28, 28)
    other = noisy(gray, 0.2)
    enlarged = [
        torch.nn.functional.interpolate(images.repeat(1, 3, 1, 1), size=(64, 64), mode="bilinear", align_corners=False)
        for images in (gray, other)
    ]
    values = Lpips().per_image(gray, other).values
    assert (values > 0.01).all()
    torch.testing.assert_close(values, Lpips().per_image(*enlarged).values, rtol=0, atol=1e-6)
    wide = Lpips().per_image(digit_images(2, 1, 28, 56), noisy(digit_images(2, 1, 28, 56))).values
    assert wide.isfinite().all()
    identical = Lpips().per_image(gray, gray.clone()).values
    assert identical.tolist() == pytest.approx([0.0] * 4, abs=1e-9)


@needs_weights
def test_lpips_grows_with_the_change() -> None:
    clean = digit_images(8, 1, 32, 32)
    means = [Lpips().per_image(clean, noisy(clean, scale)).values.mean().item() for scale in (0.02, 0.1, 0.4)]
    assert means == sorted(means)


@needs_weights
def test_lpips_does_not_depend_on_chunks_or_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = digit_images(9, 1, 28, 28)
    other = noisy(clean)
    whole = Lpips().per_image(clean, other).values
    alone = torch.cat([Lpips().per_image(clean[i : i + 1], other[i : i + 1]).values for i in range(9)])
    monkeypatch.setattr(perceptual, "CHUNK_IMAGES", 4)
    chunked = Lpips().per_image(clean, other).values
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(whole, chunked, rtol=0, atol=1e-6)


@needs_weights
def test_lpips_is_quiet_and_touches_neither_inputs_generators_nor_threads(capfd: pytest.CaptureFixture[str]) -> None:
    perceptual._network.cache_clear()
    clean = digit_images(3, 1, 28, 28)
    other = noisy(clean)
    kept = clean.clone(), other.clone()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = Lpips().per_image(clean.requires_grad_(), other).values
    assert not values.requires_grad
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.get_num_threads() == before[2]
    assert torch.equal(clean.detach(), kept[0])
    assert torch.equal(other, kept[1])
    assert capfd.readouterr() == ("", "")


@needs_weights
def test_lpips_network_is_frozen_and_in_evaluation_mode() -> None:
    network = perceptual._network("squeeze", backbone_weights.find(BACKBONES["squeeze"]), "cpu")
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_lpips_refuses_images_of_two_channels() -> None:
    images = random_images(1, 2, 64, 64)
    with pytest.raises(Unavailable, match="1 or 3 channels, not 2"):
        Lpips().per_image(images, images)


def test_lpips_parameters_are_checked() -> None:
    with pytest.raises(ParameterError, match="backbone: 'resnet' is not one of squeeze, alex, vgg"):
        Lpips(backbone="resnet")
    with pytest.raises(ParameterError, match="images: 0 is not at least 1"):
        Lpips(images=0)
    assert Lpips().images == 500
    assert Lpips(images=None).images is None
    assert Ssim().images is None


def test_lpips_notes_name_backbone_and_calibration() -> None:
    notes = Lpips(backbone="vgg").notes()
    assert "backbone vgg" in notes
    assert "images under 64 px are resized to 64 px (bilinear) and uncalibrated there" in notes


# Perception: where the weights come from -------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """An empty weights directory and an empty hub cache; any download fails."""
    named, hub = tmp_path / "weights", tmp_path / "torch" / "hub" / "checkpoints"
    named.mkdir()
    monkeypatch.setenv("AUBENCH_WEIGHTS", str(named))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def no_network(*args: object, **kwargs: object) -> None:
        raise urllib.request.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    return named, hub


def untrained_features() -> dict[str, torch.Tensor]:
    from torchvision.models import squeezenet1_1

    with torch.random.fork_rng():
        return squeezenet1_1(weights=None).features.state_dict()


@pytest.mark.parametrize("backbone", ["squeeze", "alex", "vgg"])
def test_unavailable_is_one_line_with_the_remedy(backbone, places: tuple[Path, Path]) -> None:
    named, hub = places
    reason = Lpips(backbone=backbone).unavailable()
    assert reason is not None
    assert "\n" not in reason
    assert backbone in reason
    assert str(named) in reason
    assert str(hub) in reason
    assert "set AUBENCH_WEIGHTS to a directory holding" in reason
    assert all(name in reason for name in BACKBONES[backbone].names)
    assert reason.endswith("or run with network")
    images = random_images(1, 1, 28, 28)
    with pytest.raises(Unavailable, match="set AUBENCH_WEIGHTS"):
        Lpips(backbone=backbone).per_image(images, images)


def test_prepare_without_network_says_why_and_what_to_do(places: tuple[Path, Path]) -> None:
    with pytest.raises(Unavailable, match=r"set AUBENCH_WEIGHTS .*no network in tests") as caught:
        Lpips().prepare()
    assert "\n" not in str(caught.value)
    assert not [path for path in places[1].glob("*") if path.is_file()]


def test_the_hub_directory_is_that_of_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variables in ({}, {"XDG_CACHE_HOME": str(tmp_path)}, {"TORCH_HOME": str(tmp_path / "t")}):
        for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert backbone_weights.hub_directory() == Path(torch.hub.get_dir()) / "checkpoints"


def test_the_named_directory_is_searched_before_the_hub_cache(places: tuple[Path, Path]) -> None:
    named, hub = places
    weights = BACKBONES["squeeze"]
    hub.mkdir(parents=True)
    (hub / weights.file).touch()
    assert backbone_weights.find(weights) == hub / weights.file
    (named / weights.file).touch()
    assert backbone_weights.find(weights) == named / weights.file
    (named / weights.features_file).touch()
    assert backbone_weights.find(weights) == named / weights.features_file
    assert Lpips().unavailable() is None


@needs_weights
def test_both_forms_of_the_file_give_the_same_values(places: tuple[Path, Path]) -> None:
    assert LPIPS_FILES is not None
    features = torch.load(LPIPS_FILES / "squeezenet1_1_features.pth", weights_only=True)
    whole = {f"features.{name}": value for name, value in features.items()}
    whole |= {"classifier.1.weight": torch.zeros(1000, 512, 1, 1), "classifier.1.bias": torch.zeros(1000)}
    clean = digit_images(2, 1, 28, 28)
    values = []
    for name, state in (("squeezenet1_1-b8a52dc0.pth", whole), ("squeezenet1_1_features.pth", features)):
        torch.save(state, places[0] / name)
        Lpips().prepare()
        assert backbone_weights.find(BACKBONES["squeeze"]) == places[0] / name
        values.append(Lpips().per_image(clean, noisy(clean)).values)
    assert torch.equal(*values)


@pytest.mark.parametrize("name", ["squeezenet1_1_features.pth", "squeezenet1_1-b8a52dc0.pth"])
def test_weights_of_another_training_are_refused(name: str, places: tuple[Path, Path]) -> None:
    torch.save(untrained_features(), places[0] / name)
    images = random_images(1, 1, 28, 28)
    for use in (Lpips().prepare, lambda: Lpips().per_image(images, images)):
        with pytest.raises(Unavailable, match=f"{name}: is not the published network"):
            use()


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_a_torchvision_file_with_another_hash_is_refused(backbone, places: tuple[Path, Path]) -> None:
    weights = BACKBONES[backbone]
    torch.save({"features.0.weight": torch.zeros(1)}, places[0] / weights.file)
    with pytest.raises(Unavailable, match=f"{weights.file}: not the published file") as caught:
        Lpips(backbone=backbone).prepare()
    assert "replace or remove it" in str(caught.value)


class Payload:
    """Would write a file while it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_weights_file_cannot_run_code(places: tuple[Path, Path], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for save in (lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2)), torch.save):
        save({"0.weight": Payload(trace)}, places[0] / "squeezenet1_1_features.pth")
        with pytest.raises(Unavailable, match="cannot be read as weights") as caught:
            Lpips().prepare()
        assert "\n" not in str(caught.value)
        assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_a_broken_weights_file_is_refused(content: bytes, places: tuple[Path, Path]) -> None:
    (places[0] / "squeezenet1_1_features.pth").write_bytes(content)
    with pytest.raises(Unavailable, match="cannot be read as weights"):
        Lpips().prepare()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"0.weight": "text"}])
def test_a_weights_file_of_something_else_is_refused(content, places: tuple[Path, Path]) -> None:
    torch.save(content, places[0] / "squeezenet1_1_features.pth")
    with pytest.raises(Unavailable, match="something else than named tensors"):
        Lpips().prepare()


def test_content_hash_sees_names_shapes_and_values_but_not_order() -> None:
    state = {"a": torch.arange(6.0), "b": torch.ones(2)}
    same = backbone_weights.content_hash(state)
    assert backbone_weights.content_hash(dict(reversed(state.items()))) == same
    changed = state["a"].clone()
    changed[3] = torch.nextafter(changed[3], torch.tensor(9.0))
    for other in (
        {"c": state["a"], "b": state["b"]},
        {"a": state["a"].view(2, 3), "b": state["b"]},
        {"a": changed, "b": state["b"]},
        {"a": state["a"]},
    ):
        assert backbone_weights.content_hash(other) != same


@pytest.fixture
def served(tmp_path: Path):
    """Serve ``tmp_path / "served"`` on this machine; yields the directory and its URL."""
    directory = tmp_path / "served"
    directory.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, directory=str(directory), **kwargs)

        def log_message(self, *args) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield directory, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_a_download_is_verified_and_appears_whole(served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, url = served
    content = b"weights" * 300_000
    digest = hashlib.sha256(content).hexdigest()
    weights = backbone_weights.BackboneWeights(file=f"net-{digest[:8]}.pth")
    (directory / weights.file).write_bytes(content)
    monkeypatch.delenv("AUBENCH_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(backbone_weights, "TORCHVISION", url)
    path = backbone_weights.fetch(weights)
    assert path == tmp_path / "torch" / "hub" / "checkpoints" / weights.file
    assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == [weights.file]
    (directory / weights.file).unlink()
    assert backbone_weights.fetch(weights) == path  # found, not downloaded again


def test_a_download_of_other_content_leaves_nothing_behind(
    served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, url = served
    (directory / "net-00000000.pth").write_bytes(b"a captive portal's page")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    destination = tmp_path / "cache" / "net-00000000.pth"
    with pytest.raises(Unavailable, match="not the published file"):
        backbone_weights.download(url + "net-00000000.pth", destination, "00000000")
    with pytest.raises(OSError, match="404"):
        backbone_weights.download(url + "net-11111111.pth", destination, "11111111")
    assert list(destination.parent.iterdir()) == []
