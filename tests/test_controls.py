"""The defenses that stand beside autoencoders in a table: they do what their papers say, and hide no gradient."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn

from autoshield_bench import load_suite, run
from autoshield_bench.balls import Ball
from autoshield_bench.builtin.attacks.pgd import PGD
from autoshield_bench.builtin.defenses.adversarial import AdversarialTraining
from autoshield_bench.builtin.defenses.autoencoder import Autoencoder
from autoshield_bench.builtin.defenses.detector import AutoencoderDetector, divergence
from autoshield_bench.builtin.defenses.matching import MatchedPurifier, closest
from autoshield_bench.builtin.defenses.purifiers import BitDepth, GaussianBlur, Jpeg, Median
from autoshield_bench.builtin.manifest import aubench_defenses
from autoshield_bench.builtin.metrics.pixels import Psnr
from autoshield_bench.builtin.models.convolutional import DeepCNN, SmallCNN
from autoshield_bench.contracts import AttackRequest, Defense, FitRequest, ThreatModel
from autoshield_bench.engine.access import GradientTarget
from autoshield_bench.engine.pipeline import FittedStage, PassCounter, Pipeline, frozen
from autoshield_bench.errors import ParameterError
from autoshield_bench.registry import Registry
from autoshield_bench.seeding import ImageRandom, generator, global_seed
from autoshield_bench.testing import run_checks
from autoshield_bench.testing.subject import Subject

SPECS = {spec.name: spec for spec in aubench_defenses()}
PURIFIERS: dict[str, type[MatchedPurifier]] = {
    "gaussian-blur": GaussianBlur,
    "median": Median,
    "bit-depth": BitDepth,
    "jpeg": Jpeg,
}
every_purifier = pytest.mark.parametrize("kind", PURIFIERS.values(), ids=PURIFIERS.keys())


def photographs(count: int = 6, channels: int = 1, size: int = 28) -> Tensor:
    """Images with smooth areas, edges, noise, and areas of exactly 0 and 1."""
    source = torch.Generator().manual_seed(3)
    coarse = torch.randn((count, channels, 5, 5), generator=source)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    return (0.5 + 0.6 * smooth + 0.05 * torch.randn(smooth.shape, generator=source)).clamp(0, 1)


def stripes(count: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images of 8x8 with a bright column pair: four classes that are easy to tell apart, also with some noise."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=source)
    columns = torch.arange(8)[None, :] // 2 == labels[:, None]
    images = 0.1 + 0.8 * columns[:, None, None, :] + 0.1 * torch.randn((count, 1, 8, 8), generator=source)
    return images.clamp(0, 1), labels


def classifier(kind: type[SmallCNN | DeepCNN] = SmallCNN) -> nn.Module:
    with global_seed("classifier"):
        return frozen(kind(features=4).build((1, 8, 8), 4))


def request_of(images: Tensor, labels: Tensor | None = None, seed: int = 0, **fields: Any) -> FitRequest:
    labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    defaults: dict[str, Any] = {
        "images": images,
        "labels": labels,
        "validation_images": images,
        "validation_labels": labels,
        "upstream": lambda x: x,
        "classifier": None,
        "generator": generator("test", seed),
        "device": "cpu",
        "progress": lambda _done, _total: None,
    }
    return FitRequest(**defaults | fields)


def fitted(defense: Any, request: FitRequest, seed: int = 0) -> Any:
    with global_seed("fit", seed):
        defense.fit(request)
    return defense


def purified(defense: Defense, x: Tensor) -> Tensor:
    return defense.purify(x, ImageRandom(0, range(len(x))))


# -- purifiers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.5])
def test_blur_is_scipys(sigma):
    x = photographs(channels=3)
    expected = ndimage.gaussian_filter(x.double().numpy(), sigma, axes=(2, 3), mode="mirror", truncate=4.0)
    torch.testing.assert_close(
        purified(GaussianBlur(sigma=sigma), x).double(), torch.from_numpy(expected), atol=2e-6, rtol=0
    )


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_median_is_scipys(size):
    x = photographs(channels=3)
    expected = ndimage.median_filter(x.numpy(), size=size, axes=(2, 3), mode="nearest")
    assert torch.equal(purified(Median(size=size), x), torch.from_numpy(expected))


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_bit_depth_leaves_the_nearest_of_so_many_levels(bits):
    x = torch.linspace(0, 1, 999).view(1, 1, 27, 37)
    result = purified(BitDepth(bits=bits), x)
    levels = torch.linspace(0, 1, 2**bits)
    assert len(result.unique()) == 2**bits
    nearest = (x.view(-1, 1) - levels).abs().amin(1)
    torch.testing.assert_close((result - x).abs().flatten(), nearest, atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 33])
def test_jpeg_is_what_a_file_gives_back(channels, size):
    x = (photographs(channels=channels, size=size) * 255).round() / 255
    result = purified(Jpeg(quality=40), x)
    assert torch.equal(result, purified(Jpeg(quality=40), x))
    for image, found in zip(x, result, strict=True):
        array = (image * 255).round().byte().permute(1, 2, 0).squeeze(2).numpy()
        file = io.BytesIO()
        Image.fromarray(array).save(file, format="jpeg", quality=40)
        read = np.asarray(Image.open(file)).reshape(size, size, channels)
        assert np.array_equal((found * 255).round().byte().permute(1, 2, 0).numpy(), read)
    assert clean_psnr(Jpeg(quality=95), x) > clean_psnr(Jpeg(quality=40), x) + 1


def test_jpeg_says_what_it_cannot_store():
    with pytest.raises(ValueError, match="one channel or three, not of 2"):
        purified(Jpeg(), torch.rand(1, 2, 8, 8))


@every_purifier
@pytest.mark.parametrize("size", [8, 28])
def test_purified_images_stay_in_range_and_keep_their_shape(kind, size):
    for x in (
        photographs(size=size),
        torch.zeros(2, 1, size, size),
        torch.ones(2, 1, size, size),
        torch.rand(0, 1, 8, 8),
    ):
        for strength in (kind().strengths(size, size)[0], kind.default_strength, kind().strengths(size, size)[-1]):
            result = kind().transform(x, strength)
            assert result.shape == x.shape
            assert result.dtype == torch.float32
            assert bool(((result >= 0) & (result <= 1)).all())


@pytest.mark.parametrize("defense", [GaussianBlur(sigma=0.8), GaussianBlur(sigma=5.0)])
def test_the_blurs_gradient_is_whole_at_black_and_white_pixels(defense):
    x = (photographs(2, size=8) > 0.5).double().requires_grad_()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    (gradient,) = torch.autograd.grad((purified(defense, x) * weights).sum(), x)
    inner = (x.detach() * 0.5 + 0.25).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: purified(defense, y), inner)
    (expected,) = torch.autograd.grad((purified(defense, inner) * weights).sum(), inner)
    torch.testing.assert_close(gradient, expected)  # it is linear: the same gradient everywhere


def test_the_medians_surrogate_has_its_value_and_where_nothing_ties_its_gradient():
    x = torch.rand((1, 1, 7, 7), generator=torch.Generator().manual_seed(2)).double()
    defense = Median(size=3)
    torch.testing.assert_close(defense.surrogate(x), purified(defense, x))
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((defense.surrogate(point) * weights).sum(), point)
    numeric = torch.zeros_like(x)
    for place in range(x.numel()):
        step = torch.zeros_like(x).view(-1)
        step[place] = 1e-7
        change = purified(defense, x + step.view_as(x)) - purified(defense, x - step.view_as(x))
        numeric.view(-1)[place] = (change * weights).sum() / 2e-7
    torch.testing.assert_close(gradient, numeric, atol=1e-6, rtol=1e-6)
    assert float(gradient.abs().sum()) > 0


def test_every_pixel_of_a_flat_image_has_a_gradient_through_the_median():
    flat = torch.zeros((1, 1, 9, 9)).requires_grad_()
    (gradient,) = torch.autograd.grad(Median(size=3).surrogate(flat).sum(), flat)
    assert bool((gradient > 0).all())


# -- matched clean quality -----------------------------------------------------------------------------------------


def clean_psnr(defense: Defense, x: Tensor) -> float:
    """The PSNR that a leaderboard shows between clean and purified images, by the metric itself."""
    values = Psnr().per_image(x, purified(defense, x))
    defined = values.values[values.defined]
    return Psnr().aggregate(defined.tolist(), len(x) - len(defined)) or math.inf


@every_purifier
@pytest.mark.parametrize("wanted", [15.0, 25.1, 32.0])
def test_no_other_strength_comes_closer_to_the_clean_psnr(kind, wanted):
    x = photographs(40)
    defense = fitted(kind(clean_psnr=wanted), request_of(photographs(3, size=28) * 0, validation_images=x))
    gap = abs(clean_psnr(defense, x) - wanted)
    name = kind.strength_parameter
    ladder = kind().strengths(28, 28)
    ladder = ladder if len(ladder) < 100 else [*ladder[:2000:23], *ladder[2000::500]]
    given = [kind(**{name: strength}) for strength in ladder]
    gaps = [abs(clean_psnr(other, x) - wanted) for other in given]
    # JPEG's quality is not quite monotone in its setting; a neighbour may be a few hundredths closer.
    assert gap <= min(gaps) + (0.1 if kind is Jpeg else 0.0)
    if kind is GaussianBlur:
        assert gap < 0.05
    copy = kind(clean_psnr=wanted)
    copy.load(defense.state())
    assert copy.strength == defense.strength
    assert torch.equal(purified(copy, x), purified(defense, x))


def test_behind_other_stages_the_quality_is_that_of_both_together():
    x = photographs(40)
    before = GaussianBlur(sigma=0.4)
    request = request_of(x, upstream=lambda images: purified(before, images))
    behind = fitted(GaussianBlur(clean_psnr=25.1), request)
    values = Psnr().per_image(x, purified(behind, purified(before, x))).values
    assert Psnr().aggregate(values.tolist(), 0) == pytest.approx(25.1, abs=0.05)
    assert behind.strength < fitted(GaussianBlur(clean_psnr=25.1), request_of(x)).strength


def test_a_purifier_that_changes_nothing_is_the_furthest_from_any_quality():
    bits = torch.randint(256, (5, 1, 8, 8), generator=torch.Generator().manual_seed(1)) / 255
    assert fitted(BitDepth(clean_psnr=200.0), request_of(bits)).strength == 7


@pytest.mark.parametrize("wanted", [-1.0, 0.0, 0.4, 3.5, 8.6, 9.0, 30.0])
@pytest.mark.parametrize("length", [1, 2, 10, 17, 100])
def test_bisection_finds_the_closest_of_a_falling_sequence(length, wanted):
    qualities = [9.0 - position for position in range(length)]
    found = closest(range(length), lambda strength: qualities[int(strength)], wanted)
    assert abs(qualities[int(found)] - wanted) == min(abs(quality - wanted) for quality in qualities)


@every_purifier
def test_a_strength_that_is_given_needs_no_fit_and_keeps_no_state(kind):
    x = photographs(2)
    strength = kind.default_strength
    given = kind(**{kind.strength_parameter: strength})
    assert given.state() == {}
    assert torch.equal(purified(given, x), purified(kind(), x))
    with pytest.raises(ValueError, match="the state holds"):
        given.load({kind.strength_parameter: torch.tensor(1.0)})
    matched = kind(clean_psnr=20.0)
    with pytest.raises(RuntimeError, match=f"{kind.strength_parameter} has been neither chosen"):
        purified(matched, x)
    with pytest.raises(ValueError, match="the state holds"):
        matched.load({})


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: GaussianBlur(sigma=1.0, clean_psnr=25.0), "clean_psnr"),
        (lambda: GaussianBlur(sigma=0.0), "sigma"),
        (lambda: GaussianBlur(clean_psnr=0.0), "clean_psnr"),
        (lambda: Median(size=3, clean_psnr=25.0), "clean_psnr"),
        (lambda: Median(size=1), "size"),
        (lambda: BitDepth(bits=4, clean_psnr=25.0), "clean_psnr"),
        (lambda: BitDepth(bits=9), "bits"),
        (lambda: Jpeg(quality=50, clean_psnr=25.0), "clean_psnr"),
        (lambda: Jpeg(quality=96), "quality"),
        (lambda: Autoencoder(times=0), "times"),
        (lambda: AutoencoderDetector(temperature=0.0), "temperature"),
        (lambda: AutoencoderDetector(width=0), "width"),
        (lambda: AdversarialTraining(eps=0.0), "eps"),
        (lambda: AdversarialTraining(steps=0), "steps"),
        (lambda: AdversarialTraining(warmup=1.5), "warmup"),
        (lambda: AdversarialTraining(averaging=1.0), "averaging"),
        (lambda: AdversarialTraining(relative_step_size=0.0), "relative_step_size"),
    ],
)
def test_a_parameter_that_cannot_be_used_is_named(make: Callable[[], Defense], key: str):
    with pytest.raises(ParameterError) as caught:
        make()
    assert caught.value.key == key


# -- the same autoencoder, applied more than once ------------------------------------------------------------------


def test_times_changes_what_an_image_passes_and_not_what_is_learnt():
    images, _labels = stripes(100)
    once, thrice = (fitted(Autoencoder(width=4, times=times), request_of(images)) for times in (1, 3))
    first, other = once.state(), thrice.state()
    assert first.keys() == other.keys()
    assert all(torch.equal(first[name], other[name]) for name in first)
    x = images[:5]
    expected = purified(once, purified(once, purified(once, x)))
    assert torch.equal(purified(thrice, x), expected)
    assert not torch.allclose(expected, purified(once, x), atol=1e-3)


# -- the detector --------------------------------------------------------------------------------------------------


def test_divergence_is_the_square_of_scipys_distance():
    source = torch.Generator().manual_seed(5)
    first, second = (20 * torch.randn((50, 10), generator=source) for _ in range(2))
    second[:5] = first[:5]
    first[5:10] *= 100  # outputs that are exactly 0 and 1 in float32
    distances = jensenshannon(
        first.double().softmax(1).numpy(), second.double().softmax(1).numpy(), base=math.e, axis=1
    )
    expected = torch.from_numpy(np.nan_to_num(distances) ** 2).float()
    torch.testing.assert_close(divergence(first, second), expected, atol=1e-7, rtol=1e-5)


@pytest.fixture(scope="module")
def detector() -> AutoencoderDetector:
    """One that has learnt to give stripes back."""
    found: AutoencoderDetector = fitted(
        AutoencoderDetector(width=4, epochs=20, batch_size=32), request_of(stripes()[0])
    )
    return found


def scored(detector: AutoencoderDetector, **params: Any) -> AutoencoderDetector:
    """Return the detector's autoencoder with another score."""
    other = AutoencoderDetector(width=4, **params)
    other.load(detector.state())
    return other


def scores(detector: AutoencoderDetector, x: Tensor, classify: nn.Module) -> Tensor:
    return detector.anomaly_score(x, classify, ImageRandom(0, range(len(x))))


def test_scores_are_those_of_the_paper(detector):
    x, network = stripes(20, seed=1)[0], classifier()
    other = purified(detector, x)
    mean_absolute = (x - other).abs().mean((1, 2, 3))
    torch.testing.assert_close(scores(detector, x, network), mean_absolute)
    root_mean_square = (x - other).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(scores(scored(detector, score="reconstruction-l2"), x, network), root_mean_square)
    for temperature in (10.0, 40.0):
        softened = [(network(images) / temperature).softmax(1).double() for images in (x, other)]
        expected = jensenshannon(*(each.detach().numpy() for each in softened), base=math.e, axis=1) ** 2
        found = scores(scored(detector, score="divergence", temperature=temperature), x, network)
        torch.testing.assert_close(found.double(), torch.from_numpy(expected), atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("score", ["reconstruction-l1", "reconstruction-l2", "divergence"])
def test_an_attack_may_follow_the_gradient_of_every_score(detector, score):
    chosen, network = scored(detector, score=score), classifier()
    x = stripes(8, seed=2)[0].requires_grad_()
    before = scores(chosen, x, network)
    (gradient,) = torch.autograd.grad(before.sum(), x)
    assert bool(torch.isfinite(gradient).all())
    length = gradient.flatten(1).norm(dim=1)
    assert bool((length > 0).all())
    step = 1e-3 * gradient / length.view(-1, 1, 1, 1)
    after = scores(chosen, (x + step).detach(), network)
    torch.testing.assert_close(after - before.detach(), 1e-3 * length, atol=1e-6, rtol=0.1)


@pytest.mark.parametrize("score", ["reconstruction-l1", "reconstruction-l2", "divergence"])
def test_a_perfect_reconstruction_scores_nothing_and_has_a_finite_gradient(detector, score, monkeypatch):
    chosen, network = scored(detector, score=score), classifier()
    monkeypatch.setattr(chosen, "reconstruct", lambda x: x)
    x = stripes(3)[0].requires_grad_()
    found = scores(chosen, x, network)
    assert float(found.detach().abs().max()) <= 1e-6
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("score", ["reconstruction-l1", "reconstruction-l2"])
def test_noise_looks_more_suspicious_than_what_it_was_trained_on(detector, score):
    x = stripes(100, seed=3)[0]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    chosen, network = scored(detector, score=score), classifier()
    clean, noisy = (scores(chosen, images, network).detach() for images in (x, (x + 0.3 * noise).clamp(0, 1)))
    assert float((noisy[:, None] > clean[None, :]).double().mean()) > 0.95


def test_a_detector_purifies_unless_it_is_told_not_to(detector):
    x = stripes(4)[0]
    plain = Autoencoder(width=4)
    plain.load(detector.state())
    assert torch.equal(purified(detector, x), purified(plain, x))
    assert torch.equal(purified(scored(detector, purifies=False), x), x)
    assert [type(module) for module in detector.modules()] == [type(module) for module in plain.modules()] != []


# -- adversarial training ------------------------------------------------------------------------------------------

TINY = {"width": 4, "epochs": 6, "batch_size": 32, "eps": 0.3}


def robust_accuracy(network: nn.Module, images: Tensor, labels: Tensor, eps: float) -> float:
    pipeline = Pipeline(network, (), PassCounter())
    rng = ImageRandom(1, range(len(images)))
    target = GradientTarget(pipeline, rng.child("target"), classes=4, eot=1)
    threat = ThreatModel(norm="linf", eps=eps)
    request = AttackRequest(images=images, labels=labels, threat=threat, target=target, rng=rng, stop_on_success=True)
    found = PGD(steps=20).run(request)
    with torch.no_grad():
        return float((network(found).argmax(1) == labels).double().mean())


@pytest.mark.parametrize("network", ["small", "classifier"])
def test_adversarial_training_makes_robust_what_plain_training_does_not(network):
    images, labels = stripes(600)
    test_images, test_labels = stripes(200, seed=9)
    progress: list[tuple[int, int]] = []
    accuracy = {}
    for eps in (1e-6, 0.3):
        request = request_of(
            images, labels, classifier=classifier(), progress=lambda done, total: progress.append((done, total))
        )
        defense = fitted(AdversarialTraining(**TINY | {"eps": eps}, network=network), request)
        defended = frozen(defense.defend(classifier()))
        accuracy[eps] = robust_accuracy(defended, test_images, test_labels, 0.3)
        assert robust_accuracy(defended, test_images, test_labels, 0.0) > 0.95
    assert accuracy[0.3] > accuracy[1e-6] + 0.3, accuracy
    assert progress[-1] == (114, 114)
    assert len(progress) == 2 * 12


@pytest.mark.parametrize(("network", "kind"), [("small", SmallCNN), ("classifier", SmallCNN), ("classifier", DeepCNN)])
def test_adversarial_training_is_drawn_from_its_generator_alone_and_comes_back_from_its_state(network, kind):
    images, labels = stripes(64)
    handed = classifier(kind)
    before = {name: tensor.clone() for name, tensor in handed.state_dict().items()}
    defenses = [
        fitted(AdversarialTraining(**TINY, network=network), request_of(images, labels, seed, classifier=handed), other)
        for seed, other in ((0, 0), (0, 1), (1, 0))
    ]
    first, again, another = (frozen(defense.defend(handed))(images) for defense in defenses)
    assert torch.equal(first, again)
    assert not torch.equal(first, another)
    copy = AdversarialTraining(**TINY, network=network)
    copy.load(defenses[0].state())
    drawn = torch.random.get_rng_state()
    assert torch.equal(frozen(copy.defend(handed))(images), first)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(torch.equal(tensor, before[name]) for name, tensor in handed.state_dict().items())
    assert not any(parameter.requires_grad for parameter in handed.parameters())
    other = AdversarialTraining(**TINY, network="classifier" if network == "small" else "small")
    with pytest.raises(ValueError, match="not one of network"):
        other.load(defenses[0].state())


def test_weights_of_another_width_are_refused():
    images, labels = stripes(64)
    defense = fitted(AdversarialTraining(**TINY), request_of(images, labels, classifier=classifier()))
    with pytest.raises(ValueError, match="the state does not fit"):
        AdversarialTraining(**TINY | {"width": 5}).load(defense.state())
    with pytest.raises(RuntimeError, match="neither been trained nor loaded"):
        AdversarialTraining().defend(classifier())


def test_its_attack_stays_in_the_ball_and_raises_the_loss():
    images, labels = stripes(50)
    network = classifier()
    found = AdversarialTraining()._attack(network, images, labels, 0.2, torch.Generator().manual_seed(0))
    assert torch.equal(Ball(images, ThreatModel(norm="linf", eps=0.2)).project(found), found)
    loss = nn.functional.cross_entropy
    assert float(loss(network(found), labels)) > float(loss(network(images), labels))


def test_a_loss_that_is_not_finite_is_said():
    images, labels = stripes(64)
    request = request_of(images, labels, classifier=classifier())
    with pytest.raises(FloatingPointError, match="training loss is nan at step 1"):
        fitted(AdversarialTraining(**TINY, learning_rate=1e38), request)


# -- the contract --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params"),
    [
        *((name, {"clean_psnr": 20.0}) for name in PURIFIERS),
        ("autoencoder", {"width": 4, "times": 2}),
        ("autoencoder-detector", {"width": 4, "score": "divergence", "purifies": False}),
        ("autoencoder-detector", {"width": 4, "score": "reconstruction-l2"}),
        ("adversarial-training", {"width": 4, "network": "classifier"}),
        ("chain", {"stages": [{"use": "jpeg"}, {"use": "adversarial-training", "params": {"width": 4}}]}),
    ],
)
def test_with_parameters_they_keep_the_contract_too(name, params):
    registry = Registry.discover()
    subject = Subject.named(registry, registry.find("defense", name), params)
    assert [outcome for outcome in run_checks(subject) if outcome.verdict == "failed"] == []


@every_purifier
def test_a_white_box_attack_passes_through(kind):
    """Through the pipeline as the host builds it, the loss grows beyond what random noise in the ball does to it."""
    name = next(name for name, each in PURIFIERS.items() if each is kind)
    images, labels = stripes(60)
    network = fitted(AdversarialTraining(**TINY | {"eps": 1e-6}), request_of(*stripes(300), classifier=classifier()))
    stage = FittedStage(component=name, defense=kind(), differentiable=SPECS[name].differentiable, stochastic=False)
    pipeline = Pipeline(network.defend(classifier()), (stage,), PassCounter())
    rng = ImageRandom(1, range(len(images)))
    target = GradientTarget(pipeline, rng, classes=4, eot=1)
    threat = ThreatModel(norm="linf", eps=0.4)
    loss = lambda x: nn.functional.cross_entropy(pipeline(x, rng).logits, labels).item()  # noqa: E731
    noise = Ball(images, threat).random_start(rng, "noise")
    found = PGD(steps=10).run(AttackRequest(images=images, labels=labels, threat=threat, target=target, rng=rng))
    assert loss(found) > loss(noise) + 0.2


@pytest.mark.slow
def test_an_adversarially_trained_classifier_is_the_real_thing_on_mnist(tmp_path):
    """At least 0.85 under ``strong`` at L-infinity 0.3, on real images and from the command that users run."""
    if not (Path(os.environ.get("AUBENCH_DATA", "")) / "MNIST").is_dir():
        pytest.skip("needs MNIST below AUBENCH_DATA")
    suite = tmp_path / "robust.toml"
    suite.write_text(
        'schema = 1\nname = "robust"\n[dataset]\nuse = "mnist"\n[model]\nuse = "small-cnn"\nparams = { epochs = 1 }\n'
        '[[threats]]\nnorm = "linf"\neps = 0.3\n[[defenses]]\nuse = "adversarial-training"\n'
        '[[attacks]]\nuse = "strong"\naccess = "white-box"\nimages = 250\n',
        encoding="utf-8",
    )
    results = run(load_suite(suite), results_dir=tmp_path, cache_dir=tmp_path / "cache", evidence="off")
    shares = {record.cell.attack: record.outcomes.hits / record.outcomes.n for record in results}
    assert shares[None] >= 0.97
    assert shares["strong"] >= 0.85
