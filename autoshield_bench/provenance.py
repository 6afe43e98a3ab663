"""What differs between how two cells came about, in words: figures taken under different attacks compare differently.

Reads the facts that records carry. They come from files of unknown age and origin: what is absent from either side is
passed over, and whatever stands there is shown, never trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from autoshield_bench.results import CellRecord

_SETTINGS = ("needs", "search", "randomness", "goal", "queries", "stop_on_success", "precision")

LONGEST_VALUE = 60
"""Characters of a parameter's value that are quoted."""


def attack_differences(one: CellRecord, two: CellRecord) -> tuple[str, ...]:
    """Return one phrase per thing in which two cells' attacks differ, such as ``steps: 40 in A, 100 in B``.

    ``one`` belongs to A and ``two`` to B. The gradients that an attack takes differ with the defense and do not count.
    """
    first, second = _facts(one, "attack"), _facts(two, "attack")
    if first is None or second is None:
        absent = [name for name, facts in (("A", first), ("B", second)) if facts is None]
        return (f"which attack it was is not recorded in {absent[0]}",) if len(absent) == 1 else ()
    phrases = [*_identity_differences(first, second), *_differences(first, second, _SETTINGS)]
    # Draws are averaged only where a stage is stochastic, so the count may differ with the defense.
    if one.facts.get("stochastic") == two.facts.get("stochastic"):
        phrases += _differences(first, second, ("eot",))
    return tuple(phrases)


def model_differences(one: CellRecord, two: CellRecord) -> tuple[str, ...]:
    """Return how the origins of the classifiers behind two cells differ; empty where they do not, or nobody knows."""
    first, second = _facts(one, "model"), _facts(two, "model")
    if first is None or second is None or first.get("key") == second.get("key"):
        return ()
    return tuple(_identity_differences(first, second)) or ("they were trained apart",)


def _identity_differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[str]:
    first, second = one.get("identity"), two.get("identity")
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        return
    names = [f"{identity.get('distribution')}/{identity.get('name')}" for identity in (first, second)]
    if names[0] != names[1]:
        yield f"{names[0]} in A, {names[1]} in B"
        return
    said = list(_differences(first, second, ("distribution_version", "version")))
    for inner in ("params", "libraries"):
        own, other = first.get(inner) or {}, second.get(inner) or {}
        if isinstance(own, Mapping) and isinstance(other, Mapping):
            said += _differences(own, other, sorted({*own, *other}), absent=True)
    yield from said
    if not said and first.get("source") != second.get("source"):
        yield "its source code differs"


def _differences(
    one: Mapping[str, Any], two: Mapping[str, Any], names: Iterable[str], *, absent: bool = False
) -> Iterator[str]:
    for name in names:
        if not absent and (name not in one or name not in two):
            continue  # a record of an earlier version, which did not write it
        if one.get(name) != two.get(name):
            title = name.replace("_", " ")
            yield f"{title}: {_value(one, name)} in A, {_value(two, name)} in B"


def _value(facts: Mapping[str, Any], name: str) -> str:
    if name not in facts:
        return "absent"
    text = str(facts[name])
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def _facts(record: CellRecord, name: str) -> Mapping[str, Any] | None:
    facts = record.facts.get(name)
    return facts if isinstance(facts, Mapping) else None
