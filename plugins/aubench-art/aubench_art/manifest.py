"""What this distribution offers. Imports nothing heavy: listing plugins imports this module."""

from __future__ import annotations

from collections.abc import Iterator

from autoshield_bench.contracts import AttackSpec
from autoshield_bench.hookspecs import hookimpl

from aubench_art.attack_specs import attack_specs

CONTRACT = 1


@hookimpl
def aubench_attacks() -> Iterator[AttackSpec]:
    """Yield the attacks."""
    yield from attack_specs()
