"""Comparisons in words, as a table on a terminal, and as JSON.

The words claim what the adjusted p value carries and no more: a difference is real, or the images at hand cannot show
one. Every string reaches rich as ``Text`` after control characters were made visible.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from autoshield_bench.comparison import Comparison
from autoshield_bench.labels import DRAWN
from autoshield_bench.paired import LEVEL, Difference, Place
from autoshield_bench.readings import unique
from autoshield_bench.reporting.grids import problems
from autoshield_bench.reporting.layout import Column, Line, tables
from autoshield_bench.reporting.text import message, visible
from autoshield_bench.reporting.titles import access_title, rate_title
from autoshield_bench.results import ResultSet

COMPARISON_SCHEMA = "aubench.comparison/1"

MOST_SENTENCES = 24
"""Differences that get a sentence each; of more than that, only those that are real."""

_STYLES = {"better": "green", "worse": "bold red", "not shown": "dim"}
_VERDICTS = {"better": "B better", "worse": "B worse", "not shown": "not shown"}


# -- words ------------------------------------------------------------------------------------------------------------


def place_title(place: Place, comparison: Comparison) -> str:
    """Return what was compared, such as ``pgd, white-box, linf 0.2``; names that are the same throughout left out."""
    return ": ".join([*_context(place, comparison), ", ".join(_figure(place))])


def sentence(difference: Difference, comparison: Comparison) -> str:
    """Return one sentence that says how large the difference is and whether it is real."""
    own, seeds = difference, len(difference.seeds)
    verb = "has" if own.place.quantity == "clean" else "keeps"
    points = _points(abs(own.value), own)
    if own.value == 0:
        what = f"A and B {verb.replace('has', 'have').removesuffix('s')} the same share"
    else:
        what = f"B {verb} {points} points {'more' if own.value > 0 else 'less'} than A"
    evidence = [f"95 % interval {_points(own.low, own)} to {_points(own.high, own)}", _images(own.n)]
    if seeds > 1:
        low, high = (_points(end, own) for end in (min(own.values), max(own.values)))
        evidence.append(f"mean of {seeds} seeds from {low} to {high}")
    evidence.append(f"adjusted p {p_text(own.adjusted)}")
    caveats = "".join(f"; {remark}" for remark in own.remarks)
    return f"{place_title(own.place, comparison)}: {what} ({', '.join(evidence)}): {_verdict(own)}{caveats}."


def p_text(p: float) -> str:
    """Return a p value with as many digits as it takes to see on which side of the level it lies."""
    if p < 0.001:
        return "< 0.001"
    if p > 0.999:
        return "1"
    digits = 2
    while (float(f"{p:.{digits}g}") < LEVEL) != (p < LEVEL):
        digits += 1
    return f"{p:.{digits}g}"


def left_out_lines(comparison: Comparison) -> list[str]:
    """Return one line per reason for which something was not compared, with everything that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for entry in comparison.left_out:
        by_reason.setdefault(entry.reason, []).append(place_title(entry.place, comparison))
    return [f"Not compared, {reason}: {_listed(titles)}." for reason, titles in by_reason.items()]


def notes(comparison: Comparison) -> Iterator[str]:
    """Yield the sentences that a reader needs for the table."""
    differences = comparison.differences
    several = any(len(own.seeds) > 1 for own in differences)
    drawn = any(remark.endswith(DRAWN) for own in differences for remark in own.remarks)
    yield (
        "A, B: share of the images that both evaluated, with its 95 % Wilson interval. B - A: percentage points, with "
        "the 95 % interval of the paired difference. Intervals are for the choice of images."
    )
    yield (
        "right more often: images that B, or A, classifies correctly "
        + (
            "in more draws and seeds than the other does; "
            if drawn
            else "for more seeds than the other does; "
            if several
            else "where the other does not; "
        )
        + (
            "a sign test over them (for one seed without draws, McNemar's) "
            if drawn
            else "a sign test over them (for one seed, McNemar's) "
            if several
            else "McNemar's exact test over them "
        )
        + f"gives p, which Holm adjusts for {len(differences)} comparison{'s' if len(differences) > 1 else ''}."
    )
    yield (
        f"A difference is real where the adjusted p is below {LEVEL:g}: of tables without any difference, at most one "
        "in twenty would show one. Intervals are not adjusted."
    )
    if several:
        yield "seeds: standard deviation and range of B - A over training seeds; the test is for these trainings."
    if any(len(own.seeds) == 1 for own in differences):
        yield "One training seed: the test is for the networks at hand; trained anew, they may differ otherwise."
    if any(own.place.quantity == "worst case" for own in differences):
        yield "Worst case: an image stands only if it is right without attack and under every attack that both have."
    if drawn:
        yield (
            "stochastic: an image counts by its share of fresh draws; the sign test takes the sign of its difference, "
            "however small."
        )
    if any("detects: " in remark for own in differences for remark in own.remarks):
        yield (
            "Joint game: an attacked image stands if it is flagged or classified correctly, and none does whose clean "
            "version is flagged; attacks that know the detectors take part."
        )
    yield from comparison.remarks


def _figure(place: Place) -> list[str]:
    """Return what was measured and, where there is one, the threat."""
    if place.quantity == "clean":
        return ["clean accuracy"]
    what = place.quantity if place.attack is None else f"{place.attack}, {access_title(str(place.access))}"
    rate = [] if place.fpr is None else [rate_title(place.fpr)]
    return [what, *rate, f"{place.norm} {place.eps:g}"]


def _context(place: Place, comparison: Comparison) -> list[str]:
    datasets = {own.place.dataset for own in comparison.differences}
    models = {own.place.model for own in comparison.differences}
    parts = []
    if len(comparison.pairs) > 1:
        parts.append(place.first if place.first == place.second else f"{place.first} and {place.second}")
    if {place.dataset} != datasets:
        parts.append(place.dataset)
    if {place.model} != models:
        parts.append(place.model)
    return parts


def _verdict(own: Difference) -> str:
    other = _listed(own.other_attack, "; ")
    if own.verdict == "not shown":
        words = f"no difference that {_images(own.n)} can show"
        return f"{words}, though under different attacks ({other})" if other else words
    words = "a real difference"
    if other:
        words += f" between figures taken under different attacks ({other})"
    if own.contradicts:
        words += f", but by count alone: B is right more often on {_images(own.more)}, A on {_images(own.fewer)}"
    return words


def _images(n: int) -> str:
    return f"{n:,} image{'' if n == 1 else 's'}"


def _points(share: float, own: Difference) -> str:
    """Return a share in percentage points, to the step that one image of one seed makes, and at least one decimal."""
    digits = max(1, math.ceil(math.log10(own.n * len(own.seeds))) - 2)
    text = f"{100 * share:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _listed(texts: Sequence[str], separator: str = "; ") -> str:
    shown = [message(text) for text in texts[:6]]
    return separator.join([*shown, *([f"and {len(texts) - 6} more"] if len(texts) > 6 else [])])


# -- a terminal -------------------------------------------------------------------------------------------------------


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the table of differences, then what they mean in words, then what was left out."""
    first, second = comparison.first, comparison.second
    same = unique(own.place.dataset for own in comparison.differences)
    console.print()
    _say(console, [f"{', '.join(same)} · B - A"], "bold cyan")
    for name, results, defenses in (("A", first, 0), ("B", second, 1)):
        own = ", ".join(pair[defenses] for pair in comparison.pairs)
        _say(console, [f"{name}: {results.directory} · {own}"], "bold")
    console.print()
    for index, table in enumerate(tables(*_columns(comparison), console.width)):
        if index:
            console.print()
        console.print(table)
    console.print()
    _say(console, _sentences(comparison))
    console.print()
    _say(console, notes(comparison), "dim")
    absent = [*left_out_lines(comparison), *_problems(first, "A"), *_problems(second, "B")]
    if absent:
        console.print()
        _say(console, absent, "yellow")


def _sentences(comparison: Comparison) -> Iterator[str]:
    differences = comparison.differences
    hidden = [own for own in differences if own.verdict == "not shown"] if len(differences) > MOST_SENTENCES else []
    for own in differences:
        if own not in hidden:
            yield sentence(own, comparison)
    if not hidden:
        return
    yield f"{len(hidden)} of {len(differences)} comparisons: no difference that their images can show."
    other = [place_title(own.place, comparison) for own in hidden if own.other_attack]
    if other:
        yield f"Taken under different attacks among these: {_listed(other)}."
    for remark in unique(remark for own in hidden for remark in own.remarks):
        yield f"Among these: {remark}."


def _problems(results: ResultSet, name: str) -> list[str]:
    # What is missing was said of each comparison; why a cell failed or cannot be read, only the records say.
    return [f"{name}: {line}" for line in problems(results) if line.startswith(("failed", "damaged"))]


def _columns(comparison: Comparison) -> tuple[Column, list[Column]]:
    differences = comparison.differences
    names = [
        [
            *(Line(part, "bold", fold=True) for part in _context(own.place, comparison)),
            *(Line(part, fold=True) for part in _figure(own.place)),
        ]
        for own in differences
    ]
    columns = [Column([Line(name)], [_share_lines(own, side) for own in differences]) for side, name in enumerate("AB")]
    columns.append(
        Column([Line("B - A"), Line("points", "not bold dim")], [_difference_lines(own) for own in differences])
    )
    if any(own.spread is not None for own in differences):
        columns.append(Column([Line("seeds")], [_seed_lines(own) for own in differences]))
    columns += [
        Column([Line("images")], [[Line(f"{own.n}")] for own in differences]),
        Column(
            [Line("right"), Line("more often")],
            [[Line(f"B {own.more}", "dim"), Line(f"A {own.fewer}", "dim")] for own in differences],
        ),
        Column([Line("adjusted"), Line("p")], [[Line(p_text(own.adjusted))] for own in differences]),
        Column(
            [Line("real"), Line("difference")],
            [[Line(_VERDICTS[own.verdict], _STYLES[own.verdict])] for own in differences],
        ),
    ]
    return Column([Line("compared")], names, right=False), columns


def _share_lines(own: Difference, side: int) -> list[Line]:
    interval = "–".join(f"{end:.3f}".removeprefix("0") for end in own.share_intervals[side])
    return [Line(f"{own.shares[side]:.3f}"), Line(interval, "dim")]


def _difference_lines(own: Difference) -> list[Line]:
    value = _points(own.value, own)
    signed = value if value.startswith("-") or float(value) == 0 else f"+{value}"
    style = "" if own.verdict == "not shown" else "bold"
    return [Line(signed, style), Line(f"{_points(own.low, own)} to {_points(own.high, own)}", "dim")]


def _seed_lines(own: Difference) -> list[Line]:
    if own.spread is None:
        return [Line("1", "dim")]
    low, high = (_points(end, own) for end in (min(own.values), max(own.values)))
    return [Line(f"{len(own.seeds)}, sd {_points(own.spread, own)}", "dim"), Line(f"{low} to {high}", "dim")]


def _say(console: Console, lines: Iterable[str], style: str = "") -> None:
    for line in lines:
        console.print(Text(visible(line), style=style), overflow="fold")


# -- JSON -------------------------------------------------------------------------------------------------------------


def comparison_value(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as a JSON value; shares and differences are fractions, not points."""
    sides = ((comparison.first, 0), (comparison.second, 1))
    a, b = (
        {
            "results": str(results.directory),
            "suite": results.name,
            "defenses": [pair[side] for pair in comparison.pairs],
            "damaged": [message(line) for line in results.damaged],
        }
        for results, side in sides
    )
    return {
        "schema": COMPARISON_SCHEMA,
        "a": a,
        "b": b,
        "level": LEVEL,
        "differences": [
            {**asdict(own), "verdict": own.verdict, "words": sentence(own, comparison)}
            for own in comparison.differences
        ],
        "left_out": [asdict(own) for own in comparison.left_out],
        "remarks": list(comparison.remarks),
        "regressions": len(comparison.regressions),
        "lost": len(comparison.lost),
    }
