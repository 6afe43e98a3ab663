"""The contract kit: proof that a plugin keeps the rules.

In a plugin's own tests, one class and one fixture:

    from autoshield_bench.testing import AttackContract

    class TestMine(AttackContract):
        @pytest.fixture
        def plugin(self):
            return "mine"                      # an installed plugin; or ("mine", {"steps": 5}), or an instance

        known_failures = {"linear-optimum": "one random direction per step; it converges too slowly"}

A metric's class has one more fixture, ``known_answers``: inputs whose values are known from a paper or another library.

For everything installed, ``pytest --pyargs autoshield_bench.testing.installed``; without pytest,
``aubench plugins check mine`` on the console, or ``run_checks(Subject.of(Mine(), spec))`` from Python. All of them run
the same functions, one per property: ``attack_checks``, ``defense_checks``, ``metric_checks``, ``dataset_checks`` and
``model_checks``. docs/contract-kit.md has a section for each: meaning, a mistake that it catches, what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoshield_bench.testing.catalogue import checks_of, run_checks
    from autoshield_bench.testing.checks import Check
    from autoshield_bench.testing.contract import (
        AttackContract,
        DatasetContract,
        DefenseContract,
        MetricContract,
        ModelContract,
    )
    from autoshield_bench.testing.outcome import ContractViolation, NotJudged, Outcome
    from autoshield_bench.testing.subject import KnownAnswer, Subject
    from autoshield_bench.testing.world import World

__all__ = [
    "AttackContract",
    "Check",
    "ContractViolation",
    "DatasetContract",
    "DefenseContract",
    "KnownAnswer",
    "MetricContract",
    "ModelContract",
    "NotJudged",
    "Outcome",
    "Subject",
    "World",
    "checks_of",
    "run_checks",
]

_HOMES = {
    **dict.fromkeys(("checks_of", "run_checks"), "catalogue"),
    "Check": "checks",
    **dict.fromkeys([name for name in __all__ if name.endswith("Contract")], "contract"),
    **dict.fromkeys(("ContractViolation", "NotJudged", "Outcome"), "outcome"),
    **dict.fromkeys(("KnownAnswer", "Subject"), "subject"),
    "World": "world",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use: only the contract classes need pytest."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
