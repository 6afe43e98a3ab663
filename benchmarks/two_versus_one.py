"""Do two autoencoders beat one? Paired differences over training seeds, from the records of a sweep.

    python benchmarks/two_versus_one.py results/mnist-sweep --one autoencoder --two two-conv

Per classifier, attack and eps: accuracy behind two minus accuracy behind one on the same images, averaged over the
training seeds. The interval is for the choice of images (normal, over each image's mean difference); the range over
seeds stands beside it, since retraining moves the difference as well.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from statistics import NormalDist, fmean

from tabulate import tabulate

from autoshield_bench.results import CellRecord, load_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--one", default="autoencoder")
    parser.add_argument("--two", default="two-conv")
    parser.add_argument("--confidence", type=float, default=0.95)
    options = parser.parse_args()
    records = [record for record in load_results(options.results) if record.outcomes]
    columns: dict[tuple[str, ...], dict[int, dict[str, CellRecord]]] = {}
    for record in records:
        cell = record.cell
        where = (cell.model, "clean", "")
        if cell.attack is not None:
            where = (cell.model, f"{cell.attack} {cell.access}", f"{cell.eps:g}")
        if cell.defense in (options.one, options.two):
            columns.setdefault(where, {}).setdefault(cell.seed, {})[cell.defense] = record
    rows = [row for where, by_seed in columns.items() if (row := _row(where, by_seed, options))]
    header = [
        "classifier",
        "attack",
        "eps",
        "n",
        "seeds",
        "one",
        "two",
        "two - one",
        "95 % interval",
        "range over seeds",
    ]
    print(tabulate(rows, header, tablefmt="github", disable_numparse=True))


def _row(
    where: tuple[str, ...], by_seed: dict[int, dict[str, CellRecord]], options: argparse.Namespace
) -> list[str] | None:
    pairs = [(found[options.one], found[options.two]) for found in by_seed.values() if len(found) == 2]
    if not pairs:
        return None
    images = _indices(pairs[0][0].outcomes.evaluated & pairs[0][1].outcomes.evaluated)
    one = [[first.outcomes.correct >> image & 1 for image in images] for first, _ in pairs]
    two = [[second.outcomes.correct >> image & 1 for image in images] for _, second in pairs]
    per_seed = [fmean(t) - fmean(o) for o, t in zip(one, two, strict=True)]
    per_image = [fmean(t) - fmean(o) for o, t in zip(zip(*one, strict=True), zip(*two, strict=True), strict=True)]
    centre = fmean(per_image)
    variance = sum((value - centre) ** 2 for value in per_image) / max(len(per_image) - 1, 1)
    half = NormalDist().inv_cdf(0.5 + options.confidence / 2) * math.sqrt(variance / len(per_image))
    return [
        *where,
        str(len(images)),
        str(len(pairs)),
        f"{fmean(map(fmean, one)):.4f}",
        f"{fmean(map(fmean, two)):.4f}",
        f"{centre:+.4f}",
        f"[{centre - half:+.4f}, {centre + half:+.4f}]",
        f"{min(per_seed):+.4f} to {max(per_seed):+.4f}",
    ]


def _indices(mask: int) -> list[int]:
    return [index for index in range(mask.bit_length()) if mask >> index & 1]


if __name__ == "__main__":
    main()
