"""The registry of checks: one named property each, with what it means and the mistake that it catches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from autoshield_bench.contracts import Kind
from autoshield_bench.errors import Unavailable
from autoshield_bench.testing.outcome import ContractViolation, NotJudged, Outcome
from autoshield_bench.testing.subject import Subject
from autoshield_bench.testing.world import World, global_state

_SEED = 917_331
"""Seed of the global generators while a check runs: one that no plugin would choose, so that seeding shows."""

CheckFunction = Callable[[Subject, World], None]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One property that a plugin must have."""

    kind: Kind
    name: str
    meaning: str
    """The property, in one line."""
    catches: str
    """A mistake that breaks it, in one line."""
    function: CheckFunction
    """Raises ContractViolation with the numbers, or NotJudged with the reason."""

    def run(self, subject: Subject, world: World) -> Outcome:
        """Return what the check comes to; whatever the plugin raises is its failure, and stays contained."""
        began, threads = time.perf_counter(), torch.get_num_threads()
        torch.set_num_threads(1)  # the world is small, and threads would only wait for each other
        try:
            with global_state(_SEED):
                self.function(subject, world)
        except NotJudged as reason:
            verdict, message = "not judged", str(reason)
        except Unavailable as reason:
            verdict, message = "not judged", f"unavailable here: {reason}"
        except ContractViolation as violation:
            verdict, message = "failed", str(violation)
        except SystemExit as error:
            verdict, message = "failed", f"the plugin called sys.exit({error.code!r})"
        except Exception as error:
            verdict, message = "failed", f"the plugin raised {type(error).__name__}: {_one_line(error)}"
        else:
            verdict, message = "passed", ""
        finally:
            torch.set_num_threads(threads)
        seconds = time.perf_counter() - began
        return Outcome(check=self.name, verdict=verdict, message=message, seconds=seconds)  # type: ignore[arg-type]


_REGISTERED: dict[Kind, dict[str, Check]] = {}


def check(kind: Kind, name: str, *, meaning: str, catches: str) -> Callable[[CheckFunction], CheckFunction]:
    """Register a function as a check. The order of registration is the order of running."""

    def register(function: CheckFunction) -> CheckFunction:
        known = _REGISTERED.setdefault(kind, {})
        if name in known:
            raise ValueError(f"there are two {kind} checks {name!r}")
        known[name] = Check(kind=kind, name=name, meaning=meaning, catches=catches, function=function)
        return function

    return register


def registered(kind: Kind) -> tuple[Check, ...]:
    """Return the checks of a kind that were registered so far; ``catalogue.checks_of`` makes sure that all were."""
    return tuple(_REGISTERED.get(kind, {}).values())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]
