"""The pytest face of the kit: one class per kind of plugin to subclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest

from autoshield_bench.contracts import Kind, Spec
from autoshield_bench.errors import did_you_mean
from autoshield_bench.testing.catalogue import checks_of
from autoshield_bench.testing.checks import Check
from autoshield_bench.testing.outcome import ContractViolation
from autoshield_bench.testing.subject import KnownAnswer, Subject
from autoshield_bench.testing.world import World


def judge(check: Check, subject: Subject, world: World, known_failures: Mapping[str, str]) -> None:
    """Run one check under pytest: skip what is not judged, expect known failures and nothing but those."""
    unknown = sorted(set(known_failures) - {each.name for each in checks_of(check.kind)})
    if unknown:
        hint = did_you_mean(unknown[0], {each.name for each in checks_of(check.kind)})
        pytest.fail(f"known_failures: there is no {check.kind} check {unknown[0]!r}{hint}", pytrace=False)
    outcome = check.run(subject, world)
    known = known_failures.get(check.name)
    if outcome.verdict == "failed":
        if known is not None:
            pytest.xfail(f"{known} ({outcome.message})")
        explained = f"(the rule: {check.meaning})\n(what to do: {outcome.remedy})"
        raise ContractViolation(f"{check.name}: {outcome.message}\n{explained}") from None
    if known is not None:
        pytest.fail(
            f"{check.name} is {outcome.verdict}, and known_failures expects it to fail ({known}); remove it there",
            pytrace=False,
        )
    if outcome.verdict == "not judged":
        pytest.skip(outcome.message)


class _Contract:
    """What the classes of all kinds share."""

    kind: ClassVar[Kind]

    known_failures: ClassVar[Mapping[str, str]] = {}
    """Names of checks that are known to fail, each with the reason. One that passes after all is a failure."""

    spec: ClassVar[Spec | None] = None
    """What the plugin declares; needed only for an instance whose class no installed plugin names as its factory."""

    @pytest.fixture
    def plugin(self) -> Any:
        """Return what is under test: an instance, the name of an installed plugin, or ``(name, params)``."""
        raise NotImplementedError(
            f"{type(self).__name__}: override the fixture `plugin`: return an instance, a name, or (name, params)"
        )

    @pytest.fixture
    def subject(self, plugin: Any) -> Subject:
        """Return the plugin with its spec."""
        return Subject.resolve(self.kind, plugin, self.spec)

    @pytest.fixture
    def world(self) -> World:
        """Return where it is checked; override it to check on another device."""
        return World()

    def _judge(self, check: Check, subject: Subject, world: World) -> None:
        judge(check, subject, world, self.known_failures)


def _every(kind: Kind) -> pytest.MarkDecorator:
    checks = checks_of(kind)
    return pytest.mark.parametrize("check", checks, ids=[check.name for check in checks])


class AttackContract(_Contract):
    """Every check of an attack; subclass it and override the fixture ``plugin``."""

    kind = "attack"

    @_every("attack")
    def test_contract(self, check: Check, subject: Subject, world: World) -> None:
        """One check."""
        self._judge(check, subject, world)


class DefenseContract(_Contract):
    """Every check of a defense; subclass it and override the fixture ``plugin``."""

    kind = "defense"

    @_every("defense")
    def test_contract(self, check: Check, subject: Subject, world: World) -> None:
        """One check."""
        self._judge(check, subject, world)


class MetricContract(_Contract):
    """Every check of a metric; subclass it and override the fixture ``plugin``."""

    kind = "metric"

    @pytest.fixture
    def known_answers(self) -> Sequence[KnownAnswer]:
        """Return inputs whose values are known from elsewhere; override it, so that the metric is held to them."""
        return ()

    @pytest.fixture
    def subject(self, plugin: Any, known_answers: Sequence[KnownAnswer]) -> Subject:
        """Return the plugin with its spec and its known answers."""
        found = Subject.resolve(self.kind, plugin, self.spec)
        return dataclasses.replace(found, answers=tuple(known_answers)) if known_answers else found

    @_every("metric")
    def test_contract(self, check: Check, subject: Subject, world: World) -> None:
        """One check."""
        self._judge(check, subject, world)


class DatasetContract(_Contract):
    """Every check of a data set; subclass it and override the fixture ``plugin``."""

    kind = "dataset"

    @_every("dataset")
    def test_contract(self, check: Check, subject: Subject, world: World) -> None:
        """One check."""
        self._judge(check, subject, world)


class ModelContract(_Contract):
    """Every check of a classifier; subclass it and override the fixture ``plugin``."""

    kind = "model"

    @_every("model")
    def test_contract(self, check: Check, subject: Subject, world: World) -> None:
        """One check."""
        self._judge(check, subject, world)
