"""How far do two runs of one suite agree, image by image?

    aubench run mnist --limit 1000 --threads 2 --results-dir A --cache-dir CACHE-A
    aubench run mnist --limit 1000 --threads 1 --results-dir B --cache-dir CACHE-B
    python benchmarks/agreement.py A/mnist-limit1000 B/mnist-limit1000

Counts, per cell, the images whose prediction differs. Needs the per-image arrays of both runs (``samples/``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tabulate import tabulate

from autoshield_bench.results import load_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    options = parser.parse_args()
    first, second = load_results(options.first), load_results(options.second)
    others = {str(record.cell): record for record in second if record.outcomes}
    rows, images, different = [], 0, 0
    for record in first:
        other = others.get(str(record.cell))
        if record.outcomes is None or other is None:
            continue
        one, two = first.arrays(record), second.arrays(other)
        if not (one["index"] == two["index"]).all():
            raise SystemExit(f"{record.cell}: the runs evaluated other images")
        changed = int((one["prediction"] != two["prediction"]).sum())
        rows.append([str(record.cell), len(one["index"]), changed, record.outcomes.hits, other.outcomes.hits])
        images, different = images + len(one["index"]), different + changed
    print(tabulate(rows, ["cell", "n", "predictions that differ", "correct, first", "correct, second"], "github"))
    print(f"\n{different} of {images} predictions differ: {different / max(images, 1):.4%}")


if __name__ == "__main__":
    main()
