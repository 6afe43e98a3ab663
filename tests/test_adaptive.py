"""Adaptive attacks and honest scores: routes through chains, draws of stochastic defenses, thresholds of detectors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import betabinom
from sklearn.metrics import roc_auc_score
from test_access import CLASSES, SHAPE, Plugins

from autoshield_bench import load_suite, run
from autoshield_bench.builtin.attacks.strong import Strong
from autoshield_bench.contracts import Defense, DefenseSpec
from autoshield_bench.detection import RATES, allowed, threshold, too_small
from autoshield_bench.engine.calibration import calibrate
from autoshield_bench.engine.evidence.recorded import predictive_tail
from autoshield_bench.errors import SuiteError
from autoshield_bench.hookspecs import hookimpl
from autoshield_bench.joint import joint_under
from autoshield_bench.leaderboard import build
from autoshield_bench.outcomes import Detection, Draws, Outcomes
from autoshield_bench.results import CellRecord, ResultSet
from autoshield_bench.routes import Link, all_routes, declared_route, enumerated
from autoshield_bench.seeding import ImageRandom

N = 60
"""Images of most runs."""


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(kw_only=True)
class Shattered(Defense):
    """Rounds, and calls itself differentiable: its own gradient is zero."""

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return x + ((x * 8).round() / 8 - x).detach() - (x - x.detach())


@dataclass(kw_only=True)
class Cut(Defense):
    """Cuts the graph, and calls itself differentiable."""

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return x.detach().clone()


@dataclass(kw_only=True)
class Outside(Defense):
    """Rounds outside of torch, and says that it has no gradient."""

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return torch.from_numpy((x.numpy() * 8).round() / 8)


@dataclass(kw_only=True)
class InPlace(Defense):
    """Rounds in a way that autograd finds out about on the way back, and says that it has no gradient."""

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        root = x.clamp_min(1e-6).sqrt()
        rounded = root.square()
        root.round_()
        return rounded


@dataclass(kw_only=True)
class Brightness(Defense):
    """Flags what is brighter than clean images are."""

    constant: bool = False
    broken: bool = False
    noise: float = 0.0

    def anomaly_score(self, x: Tensor, classify: Callable[[Tensor], Tensor], rng: ImageRandom) -> Tensor:
        if self.broken:
            return x.flatten(1).sum(1) * torch.nan
        noise = self.noise * rng.normal((), "noise").to(x)
        return x.new_full((len(x),), 0.25) if self.constant else x.flatten(1).mean(1) + noise


class Mine:
    """The manifest."""

    CONTRACT = 1

    @hookimpl
    def aubench_defenses(self) -> Iterator[DefenseSpec]:
        yield DefenseSpec(name="shattered", factory=f"{__name__}:Shattered", summary="Rounds.")
        yield DefenseSpec(name="cut", factory=f"{__name__}:Cut", summary="Cuts the graph.")
        for name, cls in (("outside", "Outside"), ("in-place", "InPlace")):
            yield DefenseSpec(name=name, factory=f"{__name__}:{cls}", summary="No gradient.", differentiable=False)
        noisy = DefenseSpec(name="noisy", factory=f"{__name__}:Brightness", summary="Flags by chance.", stochastic=True)
        yield noisy
        yield DefenseSpec(name="brightness", factory=f"{__name__}:Brightness", summary="Flags bright images.")


Tensor = torch.Tensor
Runner = Callable[..., ResultSet]


@pytest.fixture
def run_suite(tmp_path: Path) -> Runner:
    def run_it(
        defenses: list[str],
        attacks: list[str],
        eps: float = 0.15,
        **options: Any,
    ) -> ResultSet:
        lines = ["schema = 1", 'name = "adaptive"', '[dataset]\nuse = "digits"', '[model]\nuse = "nearest-mean"']
        lines += [f'[[threats]]\nnorm = "linf"\neps = [{eps}]']
        lines += [f"[[defenses]]\n{entry}" for entry in defenses] + [f"[[attacks]]\n{entry}" for entry in attacks]
        file = tmp_path / "adaptive.toml"
        file.write_text("\n".join(lines), encoding="utf-8")
        suite = load_suite(file, plugins=[Plugins(), Mine()])
        folders = {"results_dir": tmp_path / "results", "cache_dir": tmp_path / "cache", "data_dir": tmp_path}
        return run(suite, **{"device": "cpu", "evidence": "off", **folders, **options})

    return run_it


def one(results: ResultSet, pattern: str) -> CellRecord:
    (found,) = results.select(pattern)
    assert found.status == "ok", found.error
    return found


def pgd(paths: str, label: str = "pgd", steps: int = 10, stop: bool = True) -> str:
    return (
        f'use = "pgd"\nlabel = "{label}"\naccess = "white-box"\nimages = {N}\npaths = "{paths}"\n'
        f"stop_on_success = {str(stop).lower()}\nparams = {{ steps = {steps} }}"
    )


# Routes -----------------------------------------------------------------------------------------------------------


def links(*declared: bool) -> list[Link]:
    return [
        Link(component=f"{place}:stage", transforms=True, replaces=False, differentiable=own)
        for place, own in enumerate(declared, start=1)
    ]


@pytest.mark.parametrize("stages", [0, 1, 2, 3])
def test_chains_of_up_to_three_stages_get_every_combination_and_every_prefix(stages: int) -> None:
    chain = links(*[True] * stages)
    routes = all_routes(chain)
    assert routes[0] == declared_route(chain)
    assert len({route.paths for route in routes if route.whole}) == 2**stages
    assert [len(route.components) for route in routes if not route.whole] == list(reversed(range(stages)))
    assert len({(route.components, route.paths) for route in routes}) == len(routes) == 2**stages + stages
    assert enumerated(chain)


def test_a_longer_chain_gets_the_declared_the_pure_ones_and_the_prefixes_and_says_so() -> None:
    chain = links(True, False, True, True)
    whole = [dict(route.paths) for route in all_routes(chain) if route.whole]
    assert whole[0] == {"1:stage": "exact", "2:stage": "bpda", "3:stage": "exact", "4:stage": "exact"}
    assert [set(own.values()) for own in whole[1:]] == [{"exact"}, {"bpda"}]
    assert not enumerated(chain)


def test_a_replaced_classifier_is_attacked_through_the_undefended_one_too() -> None:
    chain = [Link(component="1:tuned", transforms=False, replaces=True, differentiable=True), *links(True)]
    parts = {route.name: route.components for route in all_routes(chain) if not route.whole}
    assert parts == {"classifier alone": ("1:tuned",), "undefended classifier": ()}


@pytest.mark.parametrize("defense", ["shattered", "cut"])
def test_a_defense_that_hides_its_gradient_falls_by_another_route(run_suite: Runner, defense: str) -> None:
    results = run_suite([f'use = "{defense}"', 'use = "none"'], [pgd("all"), pgd("declared", "naive")])
    adaptive, bare = one(results, f"*/{defense}/pgd/*"), one(results, "*/none/pgd/*")
    assert abs(adaptive.outcomes.hits - bare.outcomes.hits) <= 3
    (naive,) = results.select(f"*/{defense}/naive/*")
    if defense == "cut":
        assert "cuts the graph" in naive.error
        assert adaptive.facts["attack"]["routes"]["1:cut exact"] == {
            "tried": 0,
            "fell": 0,
            "cut": N,
            "again": 0,
        }
    else:
        assert naive.outcomes.hits > adaptive.outcomes.hits + N // 4


@pytest.mark.parametrize("defense", ["outside", "in-place"])
def test_a_stage_that_promised_no_gradient_may_have_none(run_suite: Runner, defense: str) -> None:
    record = one(run_suite([f'use = "{defense}"'], [pgd("all")]), "*/pgd/*")
    routes = record.facts["attack"]["routes"]
    standing = N - routes[f"1:{defense} bpda"]["fell"]
    assert routes[f"1:{defense} bpda"]["tried"] == N
    assert routes[f"1:{defense} exact"] == {"tried": 0, "fell": 0, "cut": standing, "again": 0}


@pytest.mark.slow
def test_what_a_wrong_declaration_hides_is_attacked_in_full(run_suite: Runner) -> None:
    strong = 'use = "strong"\naccess = "white-box"\nimages = 30'
    results = run_suite([f'use = "{name}"' for name in ("shattered", "soften", "none")], [strong], eps=0.08)
    hidden, honest = one(results, "*/shattered/strong/*"), one(results, "*/soften/strong/*")
    routes = hidden.facts["attack"]["routes"]
    stood = hidden.outcomes.hits
    assert stood > 0
    assert 0 < routes["1:shattered bpda"]["again"] <= stood
    assert abs(stood - one(results, "*/none/strong/*").outcomes.hits) <= 1
    # Where the declared gradient is the true one, the two other routes cost a fraction of it.
    spent = honest.passes["attack"]["classifier"]
    full = 2 * Strong().gradient_steps() + Strong().forward_passes()
    assert spent["forward"] + spent["backward"] < honest.outcomes.n * 1.5 * full


@pytest.mark.parametrize("stop", [True, False])
def test_all_routes_are_never_weaker_per_image_than_the_declared_one(run_suite: Runner, stop: bool) -> None:
    chain = 'use = "chain"\nlabel = "chain"\nstages = [{ use = "soften" }, { use = "quantise" }]'
    results = run_suite([chain], [pgd("all", stop=stop), pgd("declared", "one route", stop=stop)])
    every, single = one(results, "*/pgd/*"), one(results, "*/one route/*")
    assert every.outcomes.correct & ~single.outcomes.correct == 0
    routes = every.facts["attack"]["routes"]
    assert len(routes) == 6
    assert every.facts["attack"]["every_route"] is True
    fallen = every.outcomes.n - every.outcomes.hits
    assert sum(own["fell"] for own in routes.values()) == fallen
    declared = routes["1:soften exact, 2:quantise bpda"]
    tried = sorted(own["tried"] for own in routes.values())
    assert declared["tried"] == N
    assert (tried[-2] == N - declared["fell"]) if stop else (set(tried) == {N})


def test_a_cascade_takes_every_route_unless_the_suite_says_otherwise(
    run_suite: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Strong, "attempts", lambda _: [])  # what takes long, on no other routes
    strong = 'use = "strong"\naccess = "white-box"\nimages = 20'
    results = run_suite(['use = "soften"'], [strong, f'{strong}\nlabel = "plain"\npaths = "declared"'])
    assert len(one(results, "*/strong/*").facts["attack"]["routes"]) == 3
    assert len(one(results, "*/plain/*").facts["attack"]["routes"]) == 1


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ('use = "pgd"\naccess = "gray-box"\npaths = "all"', "only white-box access shows the stages"),
        ('use = "square"\naccess = "white-box"\npaths = "all"', "climbs no gradient"),
        ('use = "pgd"\naccess = "white-box"\npaths = "some"', "paths"),
    ],
)
def test_paths_that_mean_nothing_are_refused(run_suite: Runner, attack: str, said: str) -> None:
    with pytest.raises(SuiteError, match=said):
        run_suite(['use = "none"'], [attack])


# Draws ------------------------------------------------------------------------------------------------------------


def test_a_stochastic_defense_is_scored_by_twenty_draws_and_its_attack_chosen_by_others(run_suite: Runner) -> None:
    results = run_suite(['use = "noise"\nparams = { level = 0.6 }'], [pgd("declared", steps=3)])
    for record in results:
        draws = record.outcomes.draws
        assert draws is not None
        assert draws.n == 20
        assert len(draws.scored) == record.outcomes.n
        assert draws.scored != draws.selection
        spread = set(draws.scored)
        assert len(spread) > 5, "noise of this size classifies many images right in some draws and wrong in others"
        assert record.outcomes.right == sum(draws.scored) / 20
        majority = [count > 10 for count in draws.scored]
        assert record.outcomes.hits == sum(majority)
    clean = one(results, "*/clean/*")
    a, b = (
        np.frombuffer(counts, np.uint8) / 20 for counts in (clean.outcomes.draws.scored, clean.outcomes.draws.selection)
    )
    assert np.corrcoef(a, b)[0, 1] > 0.7


def test_draws_do_not_depend_on_the_batch_and_travel_through_json(run_suite: Runner) -> None:
    attack = [pgd("declared", steps=2)]
    first = run_suite(['use = "noise"'], attack, batch_size=60, limit=N)
    again = run_suite(['use = "noise"'], attack, batch_size=7, limit=N, force=True)
    for a, b in zip(first, again, strict=True):
        assert a.outcomes == b.outcomes
        assert Outcomes.from_json(a.outcomes.to_json()) == a.outcomes


def test_a_deterministic_defense_is_scored_once(run_suite: Runner) -> None:
    record = one(run_suite(['use = "soften"'], [pgd("declared", steps=2)], limit=N), "*/clean/*")
    assert record.outcomes.draws is None
    assert record.passes["score"]["classifier"] == {"forward": N, "backward": 0}


def test_draws_asked_for_where_nothing_is_random_are_said_to_mean_nothing(run_suite: Runner) -> None:
    attack = 'use = "fgsm"\naccess = ["gray-box", "white-box"]\neot = 5'
    results = run_suite(['use = "soften"', 'use = "noise"'], [attack], limit=10)
    (board,) = build(results)
    assert [line for line in board.remarks if "eot" in line] == [
        "fgsm/white-box: eot is not applicable to soften, no stage of which is random."
    ]
    assert one(results, "*/noise/fgsm/white-box/*").facts["attack"]["eot"] == 5


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"n": 20, "selection": "01", "scored": "0102"}, "do not fit"),
        ({"n": 0, "selection": "", "scored": ""}, "do not fit"),
        ({"n": 2, "selection": "03", "scored": "01"}, "larger than the number"),
        ({"n": 20, "selection": "xx", "scored": "01"}, "non-hexadecimal"),
    ],
)
def test_draws_that_do_not_fit_are_refused(value: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Draws.from_json(value)


# Detection --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("stages", [1, 2])
def test_a_threshold_leaves_at_most_its_share_of_the_validation_images_above(rate: float, stages: int) -> None:
    scores = np.random.default_rng(0).normal(size=5000).astype(np.float32).tolist()
    level = threshold(scores, rate, stages)
    above = sum(score > level for score in scores)
    assert above == allowed(5000, rate, stages) == int(5000 * rate / stages)


def test_a_validation_part_too_small_for_a_rate_is_said_and_gives_no_threshold() -> None:
    assert too_small(999, 0.001, 1) is not None
    assert too_small(1000, 0.001, 1) is None
    assert "2000" in str(too_small(1999, 0.001, 2))
    with pytest.raises(ValueError, match="needs 1000 validation images"):
        threshold([0.0] * 999, 0.001, 1)
    found, missing = calibrate({"1:detector": torch.rand(120)})
    assert set(found) == {"0.01", "0.05"}
    assert "needs 1000 validation images, there are 120" in missing["0.001"]


def test_constant_scores_give_no_threshold_and_say_why() -> None:
    found, missing = calibrate({"1:detector": torch.full((5000,), 0.5)})
    assert not found
    assert all("tells nothing apart" in missing[str(rate)] for rate in RATES)


def test_false_positives_are_judged_with_the_thresholds_own_error() -> None:
    for flagged, n, spare, validation in (
        (0, 100, 5, 500),
        (9, 1000, 5, 500),
        (40, 360, 1, 120),
        (80, 10000, 50, 5000),
    ):
        expected = betabinom.sf(flagged - 1, n, spare + 1, validation - spare)
        assert predictive_tail(flagged, n, spare, validation) == pytest.approx(expected, rel=1e-6)


def test_flags_are_recorded_by_rate_with_auroc_like_scikit_learns(run_suite: Runner) -> None:
    results = run_suite(['use = "brightness"'], [pgd("declared", steps=5)], limit=200)
    clean, attacked = one(results, "*/clean/*"), one(results, "*/pgd/*")
    assert set(clean.detection.flagged) == {"0.01", "0.05"}
    assert "validation images" in clean.detection.not_applicable["0.001"]
    arrays, clean_arrays = results.arrays(attacked), results.arrays(clean)
    component = "1:brightness"
    for rate in ("0.01", "0.05"):
        level = attacked.detection.thresholds[rate][component]
        assert level == clean.detection.thresholds[rate][component]
        expected = sum(
            1 << int(index)
            for index, score in zip(arrays["index"], arrays[f"anomaly/{component}"], strict=True)
            if score > level
        )
        assert attacked.detection.flagged[rate] == expected
    fooled = (arrays["clean_prediction"] == arrays["label"]) & ~arrays["correct"]
    rows = np.isin(clean_arrays["index"], arrays["index"])
    scores = np.concatenate([arrays[f"anomaly/{component}"][fooled], clean_arrays[f"anomaly/{component}"][rows]])
    truth = np.concatenate([np.ones(fooled.sum()), np.zeros(rows.sum())])
    assert attacked.detection.auroc[component] == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    assert clean.detection.auroc[component] is None


def test_stages_share_the_rate(run_suite: Runner) -> None:
    chain = (
        'use = "chain"\nlabel = "two"\nstages = [{ use = "brightness" }, { use = "soften" }, { use = "brightness" }]'
    )
    results = run_suite(['use = "brightness"', chain], [pgd("declared", steps=2)], limit=N)
    alone, both = one(results, "*/brightness/clean/*"), one(results, "*/two/clean/*")
    assert set(both.detection.thresholds["0.05"]) == {"1:brightness", "3:brightness"}
    assert both.detection.thresholds["0.05"]["1:brightness"] > alone.detection.thresholds["0.05"]["1:brightness"]
    assert "shared by 2 stages" in both.detection.not_applicable["0.01"]


def test_a_stochastic_detector_is_judged_draw_by_draw(run_suite: Runner) -> None:
    results = run_suite(['use = "noisy"\nparams = { noise = 0.05 }'], [pgd("declared", steps=5)], limit=N)
    clean, attacked = one(results, "*/clean/*"), one(results, "*/pgd/*")
    for record in (clean, attacked):
        won, right = record.detection.won["0.05"].scored, record.outcomes.draws.scored
        flagged = record.detection.flagged["0.05"]
        places = [index for index in range(record.outcomes.size) if record.outcomes.evaluated >> index & 1]
        for place, index in enumerate(places):
            # Who classifies all draws alike wins or loses by the flags alone.
            assert right[place] in (0, 20)
            flags = won[place] if right[place] == 0 else 20 - won[place]
            if record is clean:
                assert right[place] == 20 or won[place] == 0
                assert (flags > 10) == bool(flagged >> index & 1) or right[place] == 0
            else:
                assert right[place] == 0 or won[place] == 20
                assert (flags > 10) == bool(flagged >> index & 1) or right[place] == 20
    assert len({*attacked.detection.won["0.05"].scored}) > 4
    assert attacked.detection.won["0.05"].scored != attacked.detection.won["0.05"].selection
    assert Detection.from_json(json.loads(json.dumps(attacked.detection.to_json()))) == attacked.detection
    joint = joint_under(dataclasses.replace(attacked, cell=dataclasses.replace(attacked.cell, fpr=0.05)), clean)
    assert joint.right <= min(sum(clean.detection.won["0.05"].scored), sum(attacked.detection.won["0.05"].scored)) / 20


def test_an_attack_on_thresholds_that_do_not_exist_says_why(run_suite: Runner) -> None:
    constant = 'use = "brightness"\nparams = { constant = true }'
    results = run_suite([constant], ['use = "detector-pgd"\naccess = "white-box"\nimages = 10'], limit=N)
    aware = [record for record in results if record.cell.fpr is not None]
    assert aware
    for record in aware:
        assert f"no threshold at a false-positive rate of {record.cell.fpr:g}" in record.error
        assert "tells nothing apart" in record.error


def test_passes_of_a_detector_are_counted(run_suite: Runner) -> None:
    results = run_suite(['use = "brightness"'], [pgd("declared", steps=2)], limit=N)
    assert one(results, "*/clean/*").passes["score"]["1:brightness"] == {"forward": N, "backward": 0}


def test_constant_and_nan_scores_are_never_a_silent_number(run_suite: Runner) -> None:
    constant = 'use = "brightness"\nlabel = "constant"\nparams = { constant = true }'
    broken = 'use = "brightness"\nlabel = "broken"\nparams = { broken = true }'
    results = run_suite([constant, broken], [pgd("declared", steps=2)], limit=N)
    record = one(results, "*/constant/clean/*")
    assert not record.detection.flagged
    assert all("tells nothing apart" in why for why in record.detection.not_applicable.values())
    (failed,) = results.select("*/broken/clean/*")
    assert "NaN" in failed.error


def test_the_world_is_what_the_tests_think() -> None:
    assert SHAPE == (1, 8, 8)
    assert CLASSES == 10
