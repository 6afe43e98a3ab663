"""The figures that we hold ourselves to, by one command.

``python benchmarks/figures.py`` runs the comparisons of ``peers.py`` and ``headline.py`` that have an aim, on less work
than they do by themselves (networks are trained once), times how long short commands take, and prints each figure
beside its aim, with the worst and the best round. Memory is that of the whole suite, which only ``headline.py`` runs.
``--quick`` sees that everything runs. Needs the plugins: ``pip install . ./plugins/*/``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import headline
import peers
from tabulate import tabulate

RESULTS = Path(__file__).parent.parent / "results" / "mnist"
COMMANDS = {
    "aubench --help": (["--help"], 0.25),
    "aubench plugins list": (["plugins", "list"], 0.4),
    "aubench show": (["show", str(RESULTS)], 0.6),
}
"""A short command, and the seconds that it may take."""


def seconds_of(arguments: list[str], rounds: int) -> float:
    """Return the seconds that a command of ours takes: median, after one that is not counted."""
    times = []
    for _ in range(rounds + 1):
        before = time.perf_counter()
        subprocess.run(
            [sys.executable, "-P", "-m", "autoshield_bench", *arguments], stdout=subprocess.DEVNULL, check=True
        )
        times.append(time.perf_counter() - before)
    return statistics.median(times[1:])


def of_attacks(rows: list[peers.Row]) -> list[list[str]]:
    """Return the figures of attacks beside other libraries."""

    def ours(attack: str) -> peers.Row:
        return next(row for row in rows if (row.attack, row.by) == (attack, "aubench"))

    def times(row: peers.Row) -> str:
        return "{:.2f} x, {:.2f} to {:.2f}".format(row.ratio, *row.spread)

    def beside_the_fastest(attack: str) -> str:
        fastest = max(
            (row for row in rows if row.attack == attack and row.by in peers.NEEDED), key=lambda row: row.speed
        )
        return f"{times(fastest)} ({fastest.by}); robust accuracy {ours(attack).robust:.3f} and {fastest.robust:.3f}"

    loop = next(row for row in rows if (row.attack, row.by) == ("pgd", "loop"))
    half, leaving = peers.VARIANTS
    return [
        ["PGD-40, beside the fastest of foolbox, torchattacks and ART", "1.5 x", beside_the_fastest("pgd")],
        ["the same, gradients in bf16", "2.4 x", beside_the_fastest(half)],
        ["the same, beside a plain loop", "0.97 x", times(loop)],
        ["the same, of the rate in matrix products", "45 %", f"{ours('pgd').share:.0%}"],
        ["the same, fallen images leave", "4 x", beside_the_fastest(leaving)],
    ]


def of_the_headline(measured: headline.Measured, work: headline.Work) -> list[list[str]]:
    """Return the figures of the headline suite beside the same by hand."""
    images = f"on {work.images:,} images"
    return [
        [
            f"attacks and scoring {images}, beside ART",
            "2.5 x",
            f"{measured.ratio('attacks and scoring', 'art'):.2f} x",
        ],
        [
            f"training, {work.epochs[0]} and {work.epochs[1]} epochs, beside a plain loop",
            "1.2 x",
            f"{measured.ratio('training', 'loop'):.2f} x",
        ],
        [f"nothing left to do {images}", "3 s at most", f"{statistics.median(measured.warm):.2f} s"],
    ]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="see that everything runs; the figures mean nothing")
    options = parser.parse_args()
    settings = peers.QUICK if options.quick else peers.SETTINGS | {"rounds": 7}
    work = headline.QUICK if options.quick else headline.Work(images=2000, epochs=(1, 1))
    rounds = 1 if options.quick else 2
    rows, machine = peers.measure(settings, ("aubench", *peers.NEEDED, "loop"), ("pgd", *peers.VARIANTS))
    measured = headline.measure(work, rounds, ("art",), in_short=True)
    print(peers.report(rows, machine), end="\n\n")
    print(headline.report(measured, work), end="\n\n")
    figures = [*of_attacks(rows), *of_the_headline(measured, work)]
    for name, (arguments, most) in COMMANDS.items():
        figures.append([name, f"{most} s at most", f"{seconds_of(arguments, rounds):.2f} s"])
    print(tabulate(figures, ["what", "aim", "reached"], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
