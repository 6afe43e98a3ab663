"""Every installed plugin under every check of its kind: ``pytest --pyargs autoshield_bench.testing.installed``.

``-k 'metric/ssim'`` chooses one plugin, ``-k inside-ball`` one check.
"""

from __future__ import annotations

import functools

import pytest

from autoshield_bench.errors import PluginError
from autoshield_bench.registry import Plugin, Registry
from autoshield_bench.testing.catalogue import checks_of
from autoshield_bench.testing.checks import Check
from autoshield_bench.testing.contract import judge
from autoshield_bench.testing.subject import KINDS, Subject
from autoshield_bench.testing.world import World


@functools.cache
def _registry() -> Registry:
    return Registry.discover()


def _name(plugin: Plugin) -> str:
    claimed = [other for other in _registry().of_kind(plugin.kind) if other.name == plugin.name]
    return plugin.name if len(claimed) == 1 else f"{plugin.distribution}/{plugin.name}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each plugin and check, with ids such as ``attack/pgd-inside-ball``."""
    if "check" not in metafunc.fixturenames:
        return
    cases = [
        pytest.param(plugin, check, id=f"{plugin.kind}/{_name(plugin)}-{check.name}")
        for kind in KINDS
        for plugin in _registry().of_kind(kind)
        for check in checks_of(kind)
    ]
    metafunc.parametrize(("plugin", "check"), cases)


def test_every_plugin_was_loaded() -> None:
    """What could not be loaded cannot be checked either."""
    problems = [str(problem) for problem in _registry().problems]
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def test_contract(plugin: Plugin, check: Check) -> None:
    """One plugin under one check, with default parameters."""
    try:
        subject = Subject.named(_registry(), plugin)
    except PluginError as error:
        if "needs the parameter" in str(error):
            pytest.skip(f"{error}; test it with a contract class and (name, params)")
        pytest.fail(str(error), pytrace=False)
    judge(check, subject, World(), {})
