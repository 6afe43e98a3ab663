"""Canaries: each is wrong in the way that it says, every one is caught, and sound defenses pass."""

from __future__ import annotations

import copy
import functools
import json
import math
from pathlib import Path

import other_canaries
import pytest
import torch
from test_registry import aubench
from torch import nn

from autoshield_bench.canaries import gradients, manifest, pretence, randomness, sound, trial
from autoshield_bench.canaries.catalogue import BEGIN, CANARIES, END, SOUND, STRENGTHS, markdown
from autoshield_bench.canaries.data import CanaryDigits
from autoshield_bench.contracts import Defense, FitRequest
from autoshield_bench.engine.evidence.judge import CHECKS
from autoshield_bench.engine.runner import run
from autoshield_bench.errors import UsageError
from autoshield_bench.registry import Registry
from autoshield_bench.seeding import ImageRandom
from autoshield_bench.suite_check import check_suite
from autoshield_bench.suite_file import SuiteDocument

ROOT = Path(__file__).parents[1]
EPS = trial.EPS


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(CanaryDigits().load("test", Path()).images)[:40]


@pytest.fixture
def classifier(images):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    network.eval().requires_grad_(requires_grad=False)
    best = network(images).topk(2, 1).values
    for weight in network[3].parameters():
        weight.mul_(8 / (best[:, 0] - best[:, 1]).median())  # as sure of itself as a trained one
    return network


def rng(images, seed=0):
    return ImageRandom(seed, range(len(images)))


def slope(function, x):
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(point).sum(), point)
    return gradient


def surprise(logits):
    return nn.functional.cross_entropy(logits, logits.argmax(1), reduction="none")


# Each mechanism ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_shatterer_turns_gradients_over_and_hardly_moves_the_image(images, strength):
    shatterer = gradients.Shatterer(strength=strength)
    inside = images * 0.6 + 0.2 + 0.1 * rng(images).uniform((1, 8, 8), "off")
    gradient = slope(lambda x: shatterer.purify(x, rng(x)), inside)
    assert float((shatterer.purify(inside, rng(inside)) - inside).abs().max()) <= 0.041
    assert 0.4 < float((gradient < 0).float().mean()) < 0.52
    assert float(gradient.abs().mean()) > 3 * 10 ** (strength - 1)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_quantiser_has_no_slope_and_few_values(images, strength):
    quantiser = gradients.Quantiser(strength=strength)
    assert int(slope(lambda x: quantiser.purify(x, rng(x)), images + 0.013).count_nonzero()) == 0
    values = quantiser.purify(torch.rand(8, 1, 8, 8), rng(images[:8])).unique()
    assert len(values) == {1: 17, 2: 5, 3: 2}[strength]


def test_the_detacher_leaves_a_gradient_to_few_values_and_the_gross_one_to_none(images):
    reached = []
    for strength in (1, 2):
        detacher = gradients.Detacher(strength=strength)
        gradient = slope(lambda x, own=detacher: own.purify(x, rng(x)), images)
        reached.append(float((gradient != 0).float().mean()))
    assert reached == [1 / 4, 1 / 16]
    assert not gradients.Detacher(strength=3).purify(images.clone().requires_grad_(), rng(images)).requires_grad
    moved = images.clone()
    moved[..., 3, 3] += 0.1  # a value that no gradient reaches
    assert bool(
        (gradients.Detacher().purify(moved, rng(images)) != gradients.Detacher().purify(images, rng(images))).any()
    )


def test_the_rescaler_leaves_predictions_and_takes_the_gradient(images, classifier):
    plain = float((slope(lambda x: surprise(classifier(x)), images).flatten(1).abs().amax(1) == 0).float().mean())
    silent = []
    for strength in STRENGTHS:
        scaled = gradients.Rescaler(strength=strength).defend(copy.deepcopy(classifier))
        assert torch.equal(scaled(images).argmax(1), classifier(images).argmax(1))
        gone = slope(lambda x, own=scaled: surprise(own(x)), images).flatten(1).abs().amax(1) == 0
        silent.append(float(gone.float().mean()))
    assert plain < 0.2
    assert silent[0] > 0.5
    assert silent[1:] == pytest.approx([1.0, 1.0], abs=0.1)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_score_hider_hides_scores_and_nothing_else(images, classifier, strength):
    hidden = gradients.ScoreHider(strength=strength).defend(copy.deepcopy(classifier))
    scores = hidden(images)
    assert torch.equal(scores.argmax(1), classifier(images).argmax(1))
    assert len(scores.unique()) <= {1: 203, 2: 23, 3: 2}[strength]
    if strength < 3:
        assert int(slope(lambda x: surprise(hidden(x)), images).count_nonzero()) == 0
    else:
        assert not hidden(images.clone().requires_grad_()).requires_grad


def test_latent_noise_is_fresh_in_every_pass_and_grows_with_strength(images, classifier):
    spread = []
    for strength in STRENGTHS:
        noisy = randomness.LatentNoise(strength=strength).defend(classifier).eval()
        spread.append(float((noisy(images) - noisy(images)).abs().mean()))
    assert 0 < spread[0] < spread[1] < spread[2]
    assert torch.equal(classifier(images), classifier(images))
    with pytest.raises(ValueError, match="no linear layer"):
        randomness.LatentNoise().defend(nn.Flatten())


@pytest.mark.parametrize("strength", STRENGTHS)
def test_hashed_noise_repeats_itself_for_an_image_and_for_no_other(images, strength):
    hashed = randomness.HashedNoise(strength=strength)
    grey = torch.full_like(images, 0.5)
    first = hashed.purify(grey, rng(images))
    assert torch.equal(first, hashed.purify(grey, rng(images, seed=1)))
    assert torch.equal(first[0], first[1])
    nearby = hashed.purify(grey + 1e-6, rng(images))
    deviation = {1: 0.05, 2: 0.1, 3: 0.2}[strength]
    assert float((nearby - first)[0].std()) == pytest.approx(math.sqrt(2) * deviation, rel=0.4)


def fitted(defense: Defense, images):
    labels = torch.zeros(len(images), dtype=torch.int64)
    defense.fit(
        FitRequest(
            images=images,
            labels=labels,
            validation_images=images[:2],
            validation_labels=labels[:2],
            upstream=lambda x: x,
            classifier=None,
            generator=torch.Generator().manual_seed(0),
            device="cpu",
            progress=lambda _done, _total: None,
        )
    )
    return defense


@pytest.mark.parametrize("strength", STRENGTHS)
def test_training_mode_survives_whatever_the_host_does(images, strength):
    defense = fitted(randomness.TrainingMode(strength=strength), images)
    again = randomness.TrainingMode(strength=strength)
    again.load(defense.state())
    for own in (defense, again):
        for module in own.modules():
            module.eval()
        assert not torch.equal(own.purify(images, rng(images)), own.purify(images, rng(images)))
    assert bool(defense.modules()) == (strength > 1)


def test_the_uncalled_change_nothing(images, classifier):
    assert pretence.Misspelt.purify is Defense.purify
    assert pretence.Misspelt.defend is Defense.defend
    assert not torch.equal(pretence.Misspelt().purifiy(images, rng(images)), images)
    assert pretence.SameClassifier().defend(classifier) is classifier
    assert pretence.SameImage().purify(images, rng(images)) is images


def test_the_memoriser_knows_its_share_of_the_test_set_and_nothing_else():
    test = torch.from_numpy(CanaryDigits().load("test", Path()).images)
    train = torch.from_numpy(CanaryDigits().load("train", Path()).images)
    for strength, share in ((1, 1 / 4), (2, 1 / 2), (3, 1.0)):
        memoriser = pretence.Memoriser(strength=strength)
        moved = (test + EPS * (2 * rng(test).uniform((1, 8, 8), "at") - 1)).clamp(0, 1)
        back = (memoriser.purify(moved, rng(moved)) == test).flatten(1).all(1)
        assert float(back.float().mean()) == pytest.approx(share, abs=0.02)
        assert float((memoriser.purify(train, rng(train)) != train).flatten(1).any(1).float().mean()) < 0.05


def test_sound_defenses_are_what_they_declare(images):
    blur, quantiser, smoother = sound.Blur(), sound.HonestQuantiser(), sound.Smoother()
    assert torch.autograd.gradcheck(
        lambda x: blur.purify(x, rng(x)), (0.2 + 0.6 * images[:1].double()).requires_grad_(), fast_mode=True
    )
    assert len(quantiser.purify(images, rng(images)).unique()) == 5
    assert torch.equal(smoother.purify(images, rng(images)), smoother.purify(images, rng(images)))
    assert not torch.equal(smoother.purify(images, rng(images)), smoother.purify(images, rng(images, seed=1)))
    declared = {spec.name: spec for spec in manifest.aubench_defenses()}
    assert not declared["honest-quantiser"].differentiable
    assert declared["smoother"].stochastic
    assert declared["noisy-smoother"].stochastic
    assert all(declared[own.spec_name(1)].stochastic is False for own in CANARIES)


# The table and the world ------------------------------------------------------------------------------------------


def test_the_split_is_whole_and_large_enough_to_count():
    parts = {split: CanaryDigits().load(split, Path()) for split in ("train", "test")}
    info = CanaryDigits().info()
    assert (len(parts["train"].labels), len(parts["test"].labels)) == (info.train_size, info.test_size) == (1197, 600)
    assert info.validation_size >= 100
    rows = {image.tobytes() for part in parts.values() for image in part.images}
    assert len(rows) == 1797  # no image stands in both


def test_every_canary_has_three_strengths_and_a_check_that_exists():
    assert len({own.name for own in CANARIES}) == len(CANARIES) == 10
    assert {check for own in CANARIES for check in own.checks} <= set(CHECKS)
    assert [own.name for own in CANARIES if not own.checks] == ["score-hider"]
    registry = Registry.discover([manifest])
    assert registry.problems == ()
    for own in CANARIES:
        for strength in STRENGTHS:
            entry = own.entry(strength)
            assert registry.check_params(registry.find("defense", entry["use"]), entry["params"]) == []


def test_users_do_not_meet_canaries_among_the_plugins():
    installed = {plugin.name for plugin in Registry.discover().plugins}
    own = {spec.name for spec in manifest.aubench_defenses()} | {spec.name for spec in manifest.aubench_datasets()}
    assert not installed & own


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="documents stand in the repository")
def test_the_document_holds_the_tables():
    text = (ROOT / "docs" / "canaries.md").read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == markdown().strip()


# The trial --------------------------------------------------------------------------------------------------------


WHOLE = pytest.param(None, marks=pytest.mark.slow, id="whole")


@functools.cache
def trial_of(pattern):
    return trial.hold(pattern)


@pytest.fixture(params=[pytest.param("*-2", id="plain ones"), WHOLE])
def report(request):
    """The trial, made once: by default of every canary at one strength."""
    return trial_of(request.param)


@pytest.fixture(params=[WHOLE])
def whole(request):
    """The whole trial."""
    return trial_of(request.param)


def test_no_canary_is_missed(report):
    assert len(report.canaries) in (len(CANARIES), len(STRENGTHS) * len(CANARIES))
    assert [(own.label, own.failed, own.worst_case) for own in report.misses] == []
    assert [own.label for own in report.false_alarms] == []


def test_most_canaries_look_good_to_the_attack_that_their_author_chose(report):
    standing = {own.label: own.worst_case for own in report.canaries}
    for name in ("shatterer", "quantiser", "detacher", "rescaler", "memoriser"):
        assert standing[f"{name}-2"] > 0.4
    hidden = {own.label: own.worst_case for own in report.canaries if own.name == "score-hider"}
    assert hidden
    assert all(share <= trial.LOW for share in hidden.values())


def test_no_sound_defense_is_stopped(whole):
    assert len(whole.canaries) == len(STRENGTHS) * len(CANARIES)
    assert len(whole.sound) == len(SOUND)
    said = [(own.label, [str(v) for v in own.verdicts if v.costs_rank], own.errors) for own in whole.false_alarms]
    assert said == []
    robust = next(own for own in whole.sound if own.name == "adversarially-trained")
    assert robust.worst_case > trial.LOW


def test_what_is_not_caught_is_counted_and_said(monkeypatch):
    """A defense that nothing is wrong with, passed off as a canary, and a canary passed off as sound."""
    honest = trial.Canary(name="fine", factories=("sound:Blur",) * 3, declares="-", truth="-", checks=("live",))
    wrong = trial.Sound(use="wrong", what="-", factory="pretence:SameImage")
    monkeypatch.setattr(trial, "CANARIES", (honest,))
    monkeypatch.setattr(trial, "SOUND", (wrong,))
    monkeypatch.setattr(manifest, "CANARIES", (honest,))
    monkeypatch.setattr(manifest, "SOUND", (wrong,))
    trial._registry.cache_clear()
    try:
        done = aubench("canaries", "--only", "[fw]*[1g]", "--workers", "1", "--quiet")
        told = aubench("canaries", "--only", "wrong", "--workers", "1", "--json")
    finally:
        trial._registry.cache_clear()
    assert (done.code, done.err) == (1, "")
    assert "1 canaries, misses: 1; 1 sound defenses, false alarms: 1; " in done.out
    assert "MISSED" in done.out
    assert "wrong: live (fail): " in done.out
    value = json.loads(told.out)
    assert (told.code, told.err) == (1, "wrong: FALSE ALARM\n")
    assert (value["canaries"], value["misses"], value["sound"], value["false_alarms"]) == (0, 0, 1, 1)
    assert "live" in value["findings"][0]["failed"]


def test_a_part_of_the_trial_is_chosen_by_name():
    with pytest.raises(UsageError, match="matches none of shatterer-1, "):
        trial.hold("nobody")
    done = aubench("canaries", "--only", "nobody")
    assert (done.code, done.out) == (2, "")
    assert aubench("canaries", "--workers", "0").code == 2
    one = aubench("canaries", "--only", "uncalled-1")
    assert one.code == 0
    assert "1 canaries, misses: 0; 0 sound defenses, false alarms: 0; " in one.out
    assert one.err == "uncalled-1: caught\n"


# Others of their kind ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("own", [*other_canaries.WRONG, *other_canaries.SOUND], ids=lambda own: own.__name__)
def test_others_of_their_kind_are_judged_by_the_mechanism(own, tmp_path):
    attacks = other_canaries.SOUND.get(own, "naive")
    name = other_canaries.name_of(own)
    document = trial.suite(attacks, name, [{"use": name}])
    registry = Registry.discover([manifest, Path(other_canaries.__file__)])
    loaded = check_suite(SuiteDocument.from_dict(document), registry, tmp_path)
    places = {"results_dir": tmp_path / "results", "cache_dir": tmp_path / "cache"}
    results = run(loaded, **places, device="cpu", threads=1, evidence="full")
    assert [record.error for record in results if record.error] == []
    verdicts = [verdict for evidence in results.evidence for verdict in evidence.verdicts]
    assert len(verdicts) == len(CHECKS)
    if own in other_canaries.SOUND:
        assert [verdict for verdict in verdicts if verdict.costs_rank] == []
    else:
        assert other_canaries.WRONG[own] in [verdict.check for verdict in verdicts if verdict.ruling == "fail"]
