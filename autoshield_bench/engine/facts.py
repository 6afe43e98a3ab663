"""The provenance of a cell: what its plan says of it before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoshield_bench.plan import Cell
from autoshield_bench.routes import enumerated


def is_strong(cell: Cell) -> bool:
    """Return whether the cell's attack is believed to come close to the worst case."""
    return bool(cell.attack and cell.attack.spec.strong)


def trained_on(cell: Cell) -> list[str]:
    """Return what the cell's stages saw while they were fitted."""
    return sorted({stage.spec.trained_on for stage in cell.stages} - {"nothing"})


def facts(
    cell: Cell, routes: Mapping[str, Mapping[str, int]] | None = None, changed: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the provenance of a cell: who took part, with which parameters, through which gradients.

    ``routes`` says what became of each gradient route, and ``changed`` what plugins changed in the networks, once that
    is known.
    """
    found: dict[str, Any] = {
        "model": {
            "identity": cell.model.use.identity,
            "key": cell.model.key,
            "trained_here": cell.model.trained_by_harness,
        },
        "defense": [
            {
                "component": stage.component,
                "identity": stage.use.identity,
                "key": stage.key,
                "differentiable": stage.spec.differentiable,
                "stochastic": stage.spec.stochastic,
            }
            for stage in cell.stages
        ],
        "trained_on": trained_on(cell),
        "stochastic": any(stage.spec.stochastic for stage in cell.stages),
        "subset": {"images": cell.images, "rule": "stratified prefix of one fixed order"},
        "metrics": {use.label: use.identity for use in cell.metrics},
    }
    if changed:
        found["changed"] = list(changed)
    if cell.attack is not None:
        found["attack"] = {
            "identity": cell.attack.use.identity,
            "key": cell.attack.key,
            "gradient_path": ["exact" if stage.spec.differentiable else "bpda" for stage in cell.attack.seen],
            "routes": dict(routes or {}),
            "every_route": enumerated([stage.link for stage in cell.attack.seen]) and len(cell.attack.routes) > 1,
            "false_positive_rate": cell.attack.rate,
            "eot": cell.attack.eot,
            "needs": cell.attack.spec.needs,
            "search": cell.attack.spec.search,
            "randomness": cell.attack.spec.randomness,
            "goal": cell.attack.goal,
            "queries": cell.attack.queries,
            "stop_on_success": cell.attack.stop_on_success,
            "precision": cell.attack.precision,
            **({"eot_not_applicable": True} if cell.attack.eot_idle else {}),
            "made_on": {"model": cell.attack.model.key, "stages": [stage.key for stage in cell.attack.seen]},
        }
    return found
