"""Evidence: what each check catches, what it spends, and when it is taken again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_access import Plugins
from test_registry import aubench

from autoshield_bench import load_suite, run
from autoshield_bench.contracts import Defense, DefenseSpec, FitRequest
from autoshield_bench.engine.evidence import probes
from autoshield_bench.engine.evidence.judge import CHECKS
from autoshield_bench.engine.evidence.probes import _bytes
from autoshield_bench.engine.integrity import held_modules_of
from autoshield_bench.engine.progress import Silence
from autoshield_bench.errors import UsageError
from autoshield_bench.hookspecs import hookimpl
from autoshield_bench.results import ResultSet, load_results
from autoshield_bench.seeding import ImageRandom
from autoshield_bench.verdicts import SHARE_OF_COST, EvidenceRecord, read_evidence

Tensor = torch.Tensor
Runner = Callable[..., ResultSet]


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(kw_only=True)
class Hypocrite(Defense):
    """Answers otherwise as soon as somebody asks for gradients."""

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return (1 - x) + 0 * x if torch.is_grad_enabled() and x.requires_grad else x * 0.99


@dataclass(kw_only=True)
class Cut(Defense):
    """Cuts the graph, and calls itself differentiable."""

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return x.detach() * 0.9


@dataclass(kw_only=True)
class Learner(Defense):
    """Goes on learning while it is attacked."""

    def __post_init__(self) -> None:
        self._network = torch.nn.BatchNorm2d(1, affine=False)

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        self._network.num_batches_tracked += 1
        return x * 0.98 + 0.01

    def modules(self) -> list[torch.nn.Module]:
        return [self._network]


@dataclass(kw_only=True)
class Alarm(Defense):
    """A detector whose threshold was learnt on nicer images than it meets."""

    def fit(self, request: FitRequest) -> None:
        self._known = request.validation_images

    def state(self) -> dict[str, Tensor]:
        return {"known": self._known}

    def load(self, state: Any) -> None:
        self._known = state["known"]

    def anomaly_score(self, x: Tensor, classify: Callable[[Tensor], Tensor], rng: ImageRandom) -> Tensor:
        nearest = torch.cdist(x.flatten(1), self._known.flatten(1)).amin(1)
        # What it knows scores next to nothing, with a little spread; anything new scores high.
        return nearest + 1e-3 * x.flatten(1).mean(1)


@dataclass(kw_only=True)
class Scorer(Defense):
    """A detector that scores the brightness of an image, in a way that is not to be relied on."""

    flaw: str = "none"

    def anomaly_score(self, x: Tensor, classify: Callable[[Tensor], Tensor], rng: ImageRandom) -> Tensor:
        score = x.flatten(1).square().mean(1)
        if self.flaw == "noise":
            return score + 0.05 * torch.randn(len(x))
        if self.flaw == "company":
            return score - score.mean()
        if self.flaw == "flat":
            return (score * 50).round().detach() / 50 + 0 * score
        return score


class Odd(torch.nn.Linear):
    """Keeps weights that numpy does not know, and something that is no tensor."""

    def __init__(self) -> None:
        super().__init__(2, 2, dtype=torch.bfloat16)
        self.register_buffer("scalar", torch.tensor(True))

    def get_extra_state(self) -> dict[str, str]:
        return {"note": "kept"}

    def set_extra_state(self, state: Any) -> None:
        return None


@dataclass(kw_only=True)
class Strange(Defense):
    """Sound, with a network of a strange kind."""

    def __post_init__(self) -> None:
        self._network = Odd()

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        return x * 0.98 + 0.01

    def modules(self) -> list[torch.nn.Module]:
        return [self._network]


@dataclass(kw_only=True)
class Flat(Defense):
    """A detector that gives every image the same score."""

    def anomaly_score(self, x: Tensor, classify: Callable[[Tensor], Tensor], rng: ImageRandom) -> Tensor:
        return x.new_zeros(len(x))


class Mine:
    """The manifest."""

    CONTRACT = 1

    @hookimpl
    def aubench_defenses(self) -> Iterator[DefenseSpec]:
        yield DefenseSpec(name="hypocrite", factory=f"{__name__}:Hypocrite", summary="Two faces.")
        yield DefenseSpec(name="cut", factory=f"{__name__}:Cut", summary="Cuts the graph.")
        yield DefenseSpec(name="strange", factory=f"{__name__}:Strange", summary="Strange weights.")
        yield DefenseSpec(name="flat", factory=f"{__name__}:Flat", summary="The same for all.")
        yield DefenseSpec(name="scorer", factory=f"{__name__}:Scorer", summary="Scores brightness.")
        yield DefenseSpec(name="learner", factory=f"{__name__}:Learner", summary="Never stops.")
        yield DefenseSpec(name="alarm", factory=f"{__name__}:Alarm", summary="Knows the validation part by heart.")


PGD = 'use = "pgd"\naccess = ["white-box"]\nparams = { steps = 20 }'
AWARE = 'use = "detector-pgd"\naccess = "white-box"\nparams = { steps = 10, rounds = 2 }'
GRAY = 'use = "pgd"\nlabel = "oblivious"\naccess = ["gray-box"]\nparams = { steps = 20 }'


class Watch(Silence):
    """Counts what is computed."""

    def __init__(self) -> None:
        self.cells = 0
        self.judgements: list[EvidenceRecord] = []

    def cell(self, record: Any, seconds: float) -> None:
        self.cells += 1

    def judged(self, evidence: EvidenceRecord, seconds: float) -> None:
        self.judgements.append(evidence)


@pytest.fixture
def run_suite(tmp_path: Path) -> Runner:
    def run_it(
        defenses: list[str], attacks: list[str], eps: str = "[0.1]", norm: str = "linf", **options: Any
    ) -> ResultSet:
        lines = ["schema = 1", 'name = "judged"', '[dataset]\nuse = "digits"', '[model]\nuse = "nearest-mean"']
        lines += [f'[[threats]]\nnorm = "{norm}"\neps = {eps}']
        lines += [f"[[defenses]]\n{entry}" for entry in defenses] + [f"[[attacks]]\n{entry}" for entry in attacks]
        file = tmp_path / "judged.toml"
        file.write_text("\n".join(lines), encoding="utf-8")
        suite = load_suite(file, plugins=[Plugins(), Mine()])
        folders = {"results_dir": tmp_path / "results", "cache_dir": tmp_path / "cache", "data_dir": tmp_path}
        return run(suite, **{"device": "cpu", "evidence": "full", **folders, **options})

    return run_it


def rulings(results: ResultSet, defense: str, eps: float = 0.1) -> dict[str, str]:
    (found,) = [own for own in results.evidence if own.where.defense == defense and own.where.eps == eps]
    return {verdict.check: verdict.ruling for verdict in found.verdicts}


def said(results: ResultSet, defense: str, check: str) -> str:
    (found,) = [own for own in results.evidence if own.where.defense == defense]
    (verdict,) = [own for own in found.verdicts if own.check == check]
    return verdict.text


def test_every_check_of_the_table_says_something_about_every_defense(run_suite: Runner) -> None:
    results = run_suite(['use = "none"', 'use = "soften"'], [PGD, GRAY])
    assert results.evidence_level == "full"
    assert [own.where.defense for own in results.evidence] == ["none", "soften"]
    for own in results.evidence:
        assert [verdict.check for verdict in own.verdicts] == list(CHECKS)
        assert 0 < own.passes <= SHARE_OF_COST["full"] * own.judged
        for verdict in own.verdicts:
            assert "\n" not in verdict.text
            # Digits have 360 test images, which is too few to speak of convergence.
            expected = {"converged": "unproven", "detector": "not applicable"}.get(verdict.check, "pass")
            assert verdict.ruling == expected, verdict
        assert read_evidence(next((results.directory / "evidence" / own.where.defense).iterdir())) == own


@pytest.mark.parametrize(("level", "share"), [("fast", 0.3), pytest.param("full", 1.5, marks=pytest.mark.slow)])
def test_evidence_keeps_to_its_price(run_suite: Runner, level: str, share: float) -> None:
    chain = 'use = "chain"\nlabel = "chain"\nstages = [{ use = "soften" }, { use = "quantise" }]'
    noise = 'use = "noise"\nparams = { level = 0.1 }'
    several = f'{PGD}\nlabel = "every route"\npaths = "all"\nstop_on_success = true\neot = 4'
    long = 'use = "chain"\nlabel = "long"\nstages = [{ use = "soften" }, { use = "noise" }, { use = "quantise" }]'
    results = run_suite([chain, noise, long, 'use = "none"'], [several], evidence=level)
    assert len(results.evidence) == 4
    for own in results.evidence:
        assert own.level == level
        assert 0 < own.passes <= share * own.judged, own.where


def test_evidence_is_taken_once_and_again_when_a_cell_or_the_level_changes(run_suite: Runner) -> None:
    first, again, other = Watch(), Watch(), Watch()
    a = run_suite(['use = "none"', 'use = "soften"'], [PGD], progress=first)
    b = run_suite(['use = "none"', 'use = "soften"'], [PGD], progress=again)
    assert (first.cells, len(first.judgements)) == (4, 2)
    assert (again.cells, len(again.judgements)) == (0, 0)
    assert a.evidence == b.evidence
    run_suite(['use = "none"', 'use = "soften"'], [PGD], evidence="fast", progress=other)
    assert (other.cells, len(other.judgements)) == (0, 2)
    damaged = next((b.directory / "evidence" / "none").iterdir())
    damaged.write_text("{}", encoding="utf-8")
    watch = Watch()
    run_suite(['use = "none"', 'use = "soften"'], [PGD], evidence="full", progress=watch)
    assert len(watch.judgements) <= 1
    only = Watch()
    run_suite(['use = "none"', 'use = "soften"'], [PGD], only="*/soften/*", force=True, progress=only)
    assert [own.where.defense for own in only.judgements] == ["soften"]


@pytest.mark.slow
def test_the_same_run_gives_the_same_verdicts(run_suite: Runner) -> None:
    one = run_suite(['use = "noise"'], [PGD])
    two = run_suite(['use = "noise"'], [PGD], force=True)
    assert [replace(own, env="") for own in one.evidence] == [replace(own, env="") for own in two.evidence]


def test_off_takes_none_and_nobody_is_judged_without_a_white_box_attack(run_suite: Runner) -> None:
    assert run_suite(['use = "none"'], [PGD], evidence="off").evidence == ()
    assert run_suite(['use = "none"'], [GRAY]).evidence == ()
    with pytest.raises(UsageError, match="evidence: 'some'"):
        run_suite(['use = "none"'], [PGD], evidence="some")


def test_a_defense_that_answers_otherwise_when_asked_for_gradients_is_caught(run_suite: Runner) -> None:
    found = rulings(run_suite(['use = "hypocrite"'], [PGD]), "hypocrite")
    assert found["zero-budget"] == "fail"


def test_weights_that_change_during_attacks_are_caught(run_suite: Runner) -> None:
    results = run_suite(['use = "learner"'], [PGD])
    assert rulings(results, "learner")["live"] == "fail"
    assert "num_batches_tracked" in said(results, "learner", "live")


def test_a_detector_that_cries_wolf_is_caught(run_suite: Runner) -> None:
    results = run_suite(['use = "alarm"'], [PGD])
    assert rulings(results, "alarm")["detector"] == "fail"
    assert "was promised" in said(results, "alarm", "detector")


@pytest.mark.parametrize(
    ("flaw", "check", "words"),
    [
        ("noise", "randomness", "anomaly scores"),
        pytest.param("company", "live", "anomaly scores", marks=pytest.mark.slow),
        pytest.param("flat", "gradients", "moves and has no slope", marks=pytest.mark.slow),
    ],
)
def test_scores_are_held_to_what_logits_are(run_suite: Runner, flaw: str, check: str, words: str) -> None:
    entry = f'use = "scorer"\nlabel = "{flaw}"\nparams = {{ flaw = "{flaw}" }}'
    results = run_suite([entry, 'use = "scorer"'], [PGD, AWARE])
    assert rulings(results, flaw)[check] == "fail"
    assert words in said(results, flaw, check)
    assert rulings(results, "scorer")[check] == "pass"


def test_steps_that_cannot_cross_the_ball_are_no_evidence(run_suite: Runner) -> None:
    short = 'use = "pgd"\naccess = "white-box"\nparams = { steps = 5, step_size = 0.001, random_start = false }'
    results = run_suite(['use = "none"'], [short])
    assert rulings(results, "none")["reach"] == "fail"
    assert "0.005 in all its steps" in said(results, "none", "reach")
    assert "before the iterative attack was given more restarts" in said(results, "none", "iterative")


def test_a_single_step_alone_is_no_evidence(run_suite: Runner) -> None:
    results = run_suite(['use = "none"'], ['use = "fgsm"\naccess = "white-box"'])
    assert rulings(results, "none")["iterative"] == "fail"
    assert "no iterative" in said(results, "none", "iterative")


def test_nothing_asked_proves_nothing(run_suite: Runner) -> None:
    cheap = 'use = "pgd"\naccess = "white-box"\nimages = 12\nparams = { steps = 2 }'
    results = run_suite(['use = "none"'], [cheap], eps="[0.02]", evidence="fast")
    assert rulings(results, "none", 0.02)["iterative"] == "unproven"
    assert "buys no image only" in said(results, "none", "iterative")


@pytest.mark.parametrize("eps", ["[0.3]", "[1.5]"])
def test_an_attack_that_looks_for_the_nearest_point_need_not_go_far(run_suite: Runner, eps: str) -> None:
    nearest = 'use = "ddn"\naccess = "white-box"\nimages = 60\nparams = { steps = 40 }'
    results = run_suite(['use = "none"'], [nearest], eps=eps, norm="l2", limit=60)
    assert rulings(results, "none", float(eps.strip("[]")))["reach"] == "pass"


def test_weights_of_any_kind_are_watched(run_suite: Runner) -> None:
    results = run_suite(['use = "strange"'], [PGD])
    assert rulings(results, "strange")["live"] == "pass"
    network = Odd()
    before = {name: _bytes(value) for name, value in network.state_dict().items()}
    with torch.no_grad():
        network.weight[0, 0] += 1
    after = {name: _bytes(value) for name, value in network.state_dict().items()}
    assert {name for name in before if before[name] != after[name]} == {"weight"}


def test_an_attack_on_thresholds_that_do_not_exist_is_no_defect_of_the_defense(run_suite: Runner) -> None:
    aware = 'use = "detector-pgd"\naccess = "white-box"\nparams = { steps = 5, rounds = 1 }'
    results = run_suite(['use = "flat"'], [PGD, aware], limit=60)
    assert results.failed
    found = rulings(results, "flat")
    assert found["valid"] == "pass"
    assert found["detector"] == "unproven"
    assert "tells nothing apart" in said(results, "flat", "detector")


def test_a_check_that_could_not_be_made_is_made_by_the_next_run(
    run_suite: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(probes, "picture", lambda _case: 1 / 0)
        first = run_suite(['use = "none"'], [PGD])
    assert rulings(first, "none")["live"] == "unproven"
    assert "the check could not be made: ZeroDivisionError" in said(first, "none", "live")
    watch = Watch()
    again = run_suite(['use = "none"'], [PGD], progress=watch)
    assert (watch.cells, len(watch.judgements)) == (0, 1)
    assert rulings(again, "none")["live"] == "pass"


def test_what_falls_by_chance_tells_against_nobody(run_suite: Runner) -> None:
    # So much noise that many an image is right in half of its draws, whatever the attack does.
    noise = 'use = "noise"\nparams = { level = 0.5 }'
    fit = 'use = "pgd"\naccess = ["white-box", "gray-box"]\nparams = { steps = 20 }\neot = 8'
    results = run_suite([noise], [fit], eps="[0.02]")
    (record,) = results.select("*/noise/*/white-box/*")
    blurred = sum(5 < count < 15 for count in record.outcomes.draws.scored)
    assert blurred > 40
    assert rulings(results, "noise", 0.02)["black-box"] == "pass"
    assert rulings(results, "noise", 0.02)["iterative"] == "pass"


def test_a_failed_cell_is_a_failed_check(run_suite: Runner) -> None:
    results = run_suite(['use = "cut"'], [PGD])
    assert rulings(results, "cut")["valid"] == "fail"
    assert "cuts the graph" in said(results, "cut", "valid")
    assert rulings(results, "cut")["gradients"] == "fail"


def test_what_falls_at_a_smaller_eps_has_fallen_at_a_larger_one(run_suite: Runner) -> None:
    short = 'use = "pgd"\naccess = "white-box"\nparams = { steps = 20 }'
    results = run_suite(['use = "none"'], [short], eps="[0.05, 0.1]")
    assert {own.where.eps for own in results.evidence} == {0.05, 0.1}
    assert all(rulings(results, "none", eps)["iterative"] == "pass" for eps in (0.05, 0.1))


def test_networks_are_found_wherever_a_defense_keeps_them() -> None:
    class Deep:
        def __init__(self) -> None:
            self.inside = {"list": [torch.nn.Linear(2, 2)]}
            self.itself = self

    class Holder(Defense):
        def __init__(self) -> None:
            self.a, self.b = torch.nn.Dropout(0.5), (Deep(), 3, "text")

    assert {type(module) for module in held_modules_of(Holder())} == {torch.nn.Linear, torch.nn.Dropout}


def test_the_command_line_takes_the_level(tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_text(
        'schema = 1\nname = "small"\n[dataset]\nuse = "digits"\n[model]\nuse = "small-cnn"\n'
        "params = { epochs = 1, features = 4 }\n"
        '[[threats]]\nnorm = "linf"\neps = 0.1\n[[defenses]]\nuse = "none"\n'
        '[[attacks]]\nuse = "pgd"\naccess = "white-box"\nparams = { steps = 5 }\n',
        encoding="utf-8",
    )
    folders = ["--results-dir", str(tmp_path / "results"), "--cache-dir", str(tmp_path / "cache")]
    done = aubench("run", str(file), *folders, "--limit", "60", "--evidence", "fast")
    assert done.code == 0, done.err
    assert "evidence against a rank: " in done.err
    assert load_results(tmp_path / "results" / "small-limit60").evidence_level == "fast"
    wrong = aubench("run", str(file), *folders, "--evidence", "some")
    assert wrong.code == 2
