"""The contract kit has teeth: every check catches its own mistake and nothing else, and sound plugins pass."""

from __future__ import annotations

import dataclasses
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from contract_toys import BROKEN, SOUND, HalfAStep, OneStep

from autoshield_bench.builtin.attacks.fgsm import FGSM
from autoshield_bench.contracts import AttackSpec
from autoshield_bench.errors import PluginError
from autoshield_bench.registry import Registry
from autoshield_bench.testing import (
    AttackContract,
    Check,
    ContractViolation,
    DefenseContract,
    Subject,
    World,
    attack_checks,
    checks_of,
    run_checks,
)
from autoshield_bench.testing.contract import judge
from autoshield_bench.testing.isolated import QUIET_REMEDY
from autoshield_bench.testing.subject import KINDS


def subject_id(subject: Subject) -> str:
    return f"{subject.spec.kind}-{subject.spec.name}"


# -- teeth ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("check", "subject"), BROKEN, ids=[f"{subject_id(toy)}-{check}" for check, toy in BROKEN])
def test_a_broken_plugin_fails_exactly_the_check_that_names_its_mistake(check, subject):
    outcomes = run_checks(subject)
    failed = {outcome.check: outcome.message for outcome in outcomes if outcome.verdict == "failed"}
    assert set(failed) == {check}, failed
    assert failed[check].isprintable()


@functools.cache
def outcomes_of_sound(position):
    """What the checks say of a sound toy: asked for twice, run once."""
    return run_checks(SOUND[position])


@pytest.mark.parametrize("position", range(len(SOUND)), ids=[subject_id(toy) for toy in SOUND])
def test_a_sound_plugin_passes(position):
    assert [outcome for outcome in outcomes_of_sound(position) if outcome.verdict == "failed"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_check_catches_a_toy_and_passes_a_sound_one(kind):
    names = {check.name for check in checks_of(kind)}
    assert {check for check, toy in BROKEN if toy.spec.kind == kind} == names
    passed = {
        outcome.check
        for position, toy in enumerate(SOUND)
        if toy.spec.kind == kind
        for outcome in outcomes_of_sound(position)
        if outcome.verdict == "passed"
    }
    assert passed == names


# -- the built-ins ----------------------------------------------------------------------------------------------------


def test_a_builtin_of_each_kind_passes(pytester_run):
    done = pytester_run("--pyargs", "autoshield_bench.testing.installed", "-k", "fgsm or jpeg or ssim or digits")
    assert done.returncode == 0, done.stdout
    for check in ("attack/fgsm-inside-ball", "defense/jpeg-batch-invariant", "metric/ssim-dtype"):
        assert f"{check}] PASSED" in done.stdout


@pytest.mark.slow
def test_every_builtin_passes(pytester_run):
    chosen = "not cifar10 and not mnist and not strong"
    done = pytester_run("--pyargs", "autoshield_bench.testing.installed", "-k", chosen)
    assert done.returncode == 0, done.stdout
    assert "attack/pgd-inside-ball] PASSED" in done.stdout
    assert "defense/stacked-autoencoder-differentiable] PASSED" in done.stdout
    assert "metric/ssim-dtype] PASSED" in done.stdout
    assert "dataset/digits-disjoint] PASSED" in done.stdout
    assert "model/deep-cnn-trainable] PASSED" in done.stdout


@pytest.mark.slow
def test_the_ensemble_passes_too(pytester_run):
    done = pytester_run("--pyargs", "autoshield_bench.testing.installed", "-k", "strong-")
    assert done.returncode == 0, done.stdout
    assert "attack/strong-linear-optimum] PASSED" in done.stdout


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("chain", {"stages": [{"use": "autoencoder", "params": {"architecture": "unet", "width": 4}}]}),
        ("autoencoder", {"architecture": "bottleneck", "width": 4, "noise": "gaussian"}),
    ],
)
def test_a_plugin_with_parameters_passes(name, params):
    registry = Registry.discover()
    subject = Subject.named(registry, registry.find("defense", name), params)
    assert [outcome for outcome in run_checks(subject) if outcome.verdict == "failed"] == []


@pytest.fixture
def pytester_run(tmp_path, monkeypatch):
    """Run pytest in a process of its own."""
    monkeypatch.setenv("AUBENCH_DISABLE_PLUGINS", "1")

    def run(*arguments: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600, check=False)

    return run


# -- the classes ------------------------------------------------------------------------------------------------------


class TestAnInstanceWithoutAnInstalledSpec(AttackContract):
    spec = AttackSpec(name="one-step", factory="x:X", summary="One step.", norms=("linf", "l2"))

    @pytest.fixture
    def plugin(self):
        return OneStep()


class TestAnInstanceOfAnInstalledPlugin(AttackContract):
    @pytest.fixture
    def plugin(self):
        return FGSM()


class TestANameWithParameters(DefenseContract):
    @pytest.fixture
    def plugin(self):
        return "autoencoder", {"width": 4}


class TestAKnownFailure(AttackContract):
    spec = TestAnInstanceWithoutAnInstalledSpec.spec
    known_failures = {"linear-optimum": "it takes half a step"}  # noqa: RUF012

    @pytest.fixture
    def plugin(self):
        return HalfAStep()


def weak() -> tuple[Subject, dict[str, object]]:
    toy = next(toy for check, toy in BROKEN if check == "linear-optimum")
    return toy, {check.name: check for check in checks_of("attack")}


def test_a_failure_shows_the_numbers_the_rule_and_what_to_do():
    toy, checks = weak()
    check = checks["linear-optimum"]
    with pytest.raises(ContractViolation) as shown:
        judge(check, toy, World(), {})
    numbers, rule, remedy = str(shown.value).splitlines()
    assert re.fullmatch(r"linear-optimum: linf eps 0.1: gained .* \(50\.\d%\)", numbers)
    assert (rule, remedy) == (f"(the rule: {check.meaning})", f"(what to do: {check.remedy})")


class Raises(OneStep):
    def run(self, request):
        if not len(request.images):
            raise ValueError("no images")
        return list(request.images)[12]


def test_what_a_plugin_raises_is_shown_with_its_line_and_not_with_advice_on_something_else():
    line = Raises.run.__code__.co_firstlineno + 3
    spec = AttackSpec(name="raises", factory=f"{__name__}:Raises", summary="Raises.", norms=("linf",))
    outcomes = {outcome.check: outcome for outcome in run_checks(Subject.of(Raises(), spec))}
    for check in ("inside-ball", "batch-of-one", "empty-batch"):  # wrong for every batch, so not a matter of its size
        assert outcomes[check].message == "the plugin raised IndexError: list index out of range"
        assert outcomes[check].remedy == f"Look at line {line} of test_contract_kit.py, in `run`, and at what it calls."
    elsewhere = dataclasses.replace(spec, factory="x:X")
    outcome = attack_check("inside-ball").run(Subject.of(Raises(), elsewhere), World())
    assert outcome.remedy == "Call `attack_checks.inside_ball(Subject.of(plugin, spec), World())` for the traceback."


def test_a_size_of_batch_that_raises_has_the_advice_of_its_check():
    toy = next(toy for check, toy in BROKEN if check == "empty-batch" and toy.spec.kind == "attack")
    outcome = attack_check("empty-batch").run(toy, World())
    assert outcome.message.startswith("linf: for a batch of no images it raised RuntimeError: max()")
    assert outcome.remedy == attack_check("empty-batch").remedy


def attack_check(name: str) -> Check:
    return next(check for check in checks_of("attack") if check.name == name)


def test_a_known_failure_that_passes_is_a_failure():
    toy, checks = weak()
    with pytest.raises(pytest.fail.Exception, match="finite is passed, and known_failures expects it to fail"):
        judge(checks["finite"], toy, World(), {"finite": "once"})


def test_a_known_failure_that_is_no_check_is_a_failure():
    toy, checks = weak()
    with pytest.raises(pytest.fail.Exception, match="no attack check 'finit'; did you mean \"finite\""):
        judge(checks["zero-eps"], toy, World(), {"finit": "typing"})


def test_what_an_author_forgot_is_said(pytester_run, tmp_path):
    (tmp_path / "test_mine.py").write_text(
        "import pytest\n"
        "from autoshield_bench.contracts import Attack\n"
        "from autoshield_bench.testing import AttackContract\n"
        "class Mine(Attack):\n"
        "    def run(self, request): return request.images\n"
        "class TestNoFixture(AttackContract): pass\n"
        "class TestNoSpec(AttackContract):\n"
        "    @pytest.fixture\n"
        "    def plugin(self): return Mine()\n",
        encoding="utf-8",
    )
    out = pytester_run("-k", "finite", "test_mine.py").stdout
    assert "TestNoFixture: override the fixture `plugin`" in out
    assert "no installed attack has the factory 'test_mine:Mine'; set `spec` on the test class" in out


def test_a_chain_is_asked_for_by_name():
    from autoshield_bench.builtin.defenses.chains import NoDefense

    with pytest.raises(PluginError, match="is a chain: give its name"):
        Subject.resolve("defense", NoDefense())


def test_a_property_is_a_plain_function():
    toy, _ = weak()
    attack_checks.inside_ball(toy, World())
    from autoshield_bench.testing.attack_strength_checks import linear_optimum

    with pytest.raises(ContractViolation):
        linear_optimum(toy, World())


# -- the document -----------------------------------------------------------------------------------------------------


def test_the_document_lists_the_checks_as_they_are():
    from autoshield_bench.testing.tables import with_tables

    text = (Path(__file__).parents[1] / "docs" / "contract-kit.md").read_text(encoding="utf-8")
    assert with_tables(text) == text
    for kind in KINDS:
        for check in checks_of(kind):
            assert f"| [`{check.name}`](#{kind}-{check.name}) | {check.meaning} |" in text
            section = text.partition(f"\n### {kind}: {check.name}\n")[2].partition("\n#")[0]
            assert check.meaning in section
            assert f": {check.catches}\n" in section
            assert f"- What to do: {check.remedy}\n" in section
            assert with_tables(text.replace(check.remedy, "Nothing.")) == text  # an old section is noticed
    anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"(?m)^#+ (.*)$", text)]
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r"\(#([^)]*)\)", text)) <= set(anchors)
    assert f"- What to do: {QUIET_REMEDY}\n" in text


@pytest.mark.parametrize("check", [check for kind in KINDS for check in checks_of(kind)], ids=lambda c: c.name)
def test_every_check_says_what_to_do(check):
    assert check.remedy.isprintable()
    assert re.match(r"[A-Z]", check.remedy)
    assert check.remedy.endswith(".")
    assert 1 <= len(re.findall(r"\.(?= [A-Z]|$)", check.remedy)) <= 2
    assert check.remedy.count("`") % 2 == 0
    assert "`" in check.remedy  # the function or declaration to use
    assert check.meaning not in check.remedy
    assert "failed" not in check.remedy  # `| grep failed` shows the verdicts
