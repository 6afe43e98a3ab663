"""All checks of the kit, whole: importing a module of checks registers them."""

from __future__ import annotations

from autoshield_bench.contracts import Kind
from autoshield_bench.testing import (  # noqa: F401 - imported for the checks that they register, in this order
    attack_checks,
    attack_strength_checks,
    dataset_checks,
    defense_checks,
    defense_invariance_checks,
    defense_learning_checks,
    metric_checks,
    metric_invariance_checks,
    metric_pair_checks,
    model_checks,
)
from autoshield_bench.testing.checks import Check, registered
from autoshield_bench.testing.outcome import Outcome
from autoshield_bench.testing.subject import Subject
from autoshield_bench.testing.world import World


def checks_of(kind: Kind) -> tuple[Check, ...]:
    """Return the checks of a kind of plugin, in the order in which they run."""
    return registered(kind)


def run_checks(subject: Subject, world: World | None = None) -> list[Outcome]:
    """Run every check of the subject's kind, in this process."""
    place = world or World()
    return [each.run(subject, place) for each in checks_of(subject.spec.kind)]
