"""autoshield-bench: how much does a defense really help?

From Python, in a few lines (torch is imported when something has to be computed, not before):

>>> import tempfile
>>> from autoshield_bench import load_suite, run
>>> suite = load_suite("quick")
>>> with tempfile.TemporaryDirectory() as folder:
...     results = run(suite, results_dir=folder, limit=40, only="*/none/fgsm/*", progress=None)
...     record = results.select("*/none/fgsm/white-box/*")[0]
...     arrays = results.arrays(record)
>>> record.outcomes.n
40
>>> int(arrays["correct"].sum()) == record.outcomes.hits
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoshield_bench.version import __version__

if TYPE_CHECKING:
    from autoshield_bench.engine.runner import run
    from autoshield_bench.results import CellRecord, ResultSet, load_results
    from autoshield_bench.suite_check import load_suite

__all__ = ["CellRecord", "ResultSet", "__version__", "load_results", "load_suite", "run"]

_HOMES = {
    "load_suite": "autoshield_bench.suite_check",
    "run": "autoshield_bench.engine.runner",
    "CellRecord": "autoshield_bench.results",
    "ResultSet": "autoshield_bench.results",
    "load_results": "autoshield_bench.results",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that ``import autoshield_bench`` costs nothing."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
