"""Labels and remarks: what a reader must know of a row or a column, in words. None of them removes a rank."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from autoshield_bench.detection import RANKED_RATE
from autoshield_bench.joint import column_of, detects, obstacle, percent, takes_part
from autoshield_bench.readings import unique
from autoshield_bench.results import CellRecord
from autoshield_bench.scores import Column, Gain, Score, significantly_above

DRAWN = "fresh draws per image"
"""How the label of a stochastic defense ends that was scored by the mean over draws."""


def labels_of(
    columns: Collection[Column | None],
    well: Mapping[Column | None, Sequence[CellRecord]],
    worst: Score | None,
    incomplete: Sequence[str],
    rate: float | None,
) -> tuple[str, ...]:
    """Return the caveats of a row, from its planned columns (None the clean one) and the cells that are well.

    ``rate`` is the nominal false-positive rate of the joint game that its worst case is, where it is one.
    """
    labels = []
    found = [record for own in well.values() for record in own]
    if worst is not None:
        # A strong attack that cannot see the defense says nothing about how low the number can fall, nor does one that
        # knows of no detector about the joint game.
        strong = {
            record.cell.seed
            for record in found
            if record.strong and record.cell.access == "white-box" and record.cell.fpr == rate
        }
        if strong != set(worst.seeds):
            labels.append("upper bound")
    elif any(columns) and not any(column and column.access == "white-box" for column in columns):
        seen = {column.access for column in columns if column}
        labels.append("gray-box only" if seen == {"gray-box"} else "no white-box attack")
    elif any(columns) and not incomplete:
        labels.append("no image was evaluated by every cell")
    if rate is not None:
        labels.append(f"detects, at {percent(rate)} false positives")
    elif detects(found):
        judged = [record for record in found if takes_part(record.cell.fpr, RANKED_RATE)]
        labels.append(f"no threshold at {percent(RANKED_RATE)}: {obstacle(judged, RANKED_RATE)}")
    facts = [record.facts.get("trained_on") for record in found]
    trained = [str(fact) for fact in unique(map(_joined, facts)) if fact not in ("", "nothing")]
    labels += [f"trained on {what}" for what in trained]
    drawn = unique(record.outcomes.draws.n for record in found if record.outcomes and record.outcomes.draws)
    labels += [f"stochastic, {n} {DRAWN}" for n in drawn]
    if not drawn and any(record.facts.get("stochastic") is True for record in found):
        labels.append("stochastic, scored on one draw per image")
    labels += [f"white-box {attack} weaker than gray-box: gradients masked?" for attack in _masked(well)]
    labels += [f"{column} irreproducible" for column, own in well.items() if any(map(_irreproducible, own))]
    if incomplete:
        labels.append("incomplete: " + ", ".join(incomplete))
    return tuple(labels)


def _irreproducible(record: CellRecord) -> bool:
    attack = record.facts.get("attack")
    return isinstance(attack, Mapping) and attack.get("randomness") == "irreproducible"


def _masked(well: Mapping[Column | None, Sequence[CellRecord]]) -> list[str]:
    """Return the attacks that break significantly more with less knowledge, on the same images and for some seed.

    An attack that sees the defense can do whatever one that does not see it can; if it does worse, its gradients are of
    no use to it, and the defense's white-box figure shows that rather than robustness.
    """
    masked = []
    for column, white in well.items():
        if column is None or column.access != "white-box" or column.fpr is not None:
            continue
        gray = {record.cell.seed: record for record in well.get(Column(column.attack, "gray-box"), ())}
        for record in white:
            other = gray.get(record.cell.seed)
            if other is not None and significantly_above(record.outcomes, other.outcomes):
                masked.append(column.attack)
                break
    return masked


def _joined(fact: Any) -> str:
    return ", ".join(map(str, fact)) if isinstance(fact, list | tuple) else str(fact or "")


def gain_words(gain: Gain) -> str:
    """Return a measured gain as a label, such as ``gain +0.31 [0.28, 0.34] over none``."""
    if gain.verdict == "not shown":
        return "no gain measured"
    # As many digits as it takes to see that the interval leaves zero out.
    digits = next((digits for digits in (2, 3, 4) if round(min(abs(gain.low), abs(gain.high)), digits)), 5)
    ends = ", ".join(f"{end:.{digits}f}" for end in (gain.low, gain.high))
    return f"{gain.verdict} {gain.value:+.{digits}f} [{ends}] over {gain.over}"


def remarks_of(records: Sequence[CellRecord]) -> Iterator[str]:
    """Yield a sentence per column that is scored in a way of its own, from the cells of a leaderboard."""
    for record in records:
        facts = record.facts.get("attack")
        if not isinstance(facts, Mapping):
            continue
        column = column_of(record.cell)
        if facts.get("search") == "minimum-norm":
            yield f"{column} finds the nearest adversarial point; an image falls where that lies within eps."
        if isinstance(facts.get("queries"), int):
            yield f"{column} may ask for {facts['needs']} {facts['queries']:,} times per image."
        if facts.get("eot_not_applicable") is True:
            yield f"{column}: eot is not applicable to {record.cell.defense}, no stage of which is random."
        if facts.get("precision") == "bf16":
            yield f"{column} takes its gradients in bfloat16; what it finds is scored in float32."
        if facts.get("goal") == "targeted":
            yield f"{column} drives each image to one wrong class, drawn at random."


def route_remarks(records: Sequence[CellRecord]) -> Iterator[str]:
    """Yield what the white-box columns with several gradient routes took, and where they could not take all."""
    cut: list[str] = []
    for record in records:
        facts = record.facts.get("attack")
        routes = facts.get("routes") if isinstance(facts, Mapping) else None
        if (
            not isinstance(facts, Mapping)
            or not isinstance(routes, Mapping)
            or len(routes) < 2
            or record.cell.access != "white-box"
        ):
            continue
        column = column_of(record.cell)
        if facts.get("every_route") is True:
            yield (
                f"{column} takes every gradient route through a chain (exact and BPDA per stage, prefixes, the "
                "classifier alone)."
            )
        else:
            why = f"the chain is too long to enumerate: {len(routes)} routes were tried"
            cut.append(f"{column} on {record.cell.defense}: {why}.")
    yield from cut
