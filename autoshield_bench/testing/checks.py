"""The registry of checks: one named property each, with its meaning, a mistake that it catches and what to do then."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from autoshield_bench.contracts import Kind
from autoshield_bench.errors import Unavailable
from autoshield_bench.testing.outcome import ContractViolation, NotJudged, Outcome, Verdict, one_line
from autoshield_bench.testing.subject import Subject
from autoshield_bench.testing.world import World, global_state

_SEED = 917_331
"""Seed of the global generators while a check runs: one that no plugin would choose, so that seeding shows."""

_EXIT_REMEDY = (
    "Raise an exception in place of the call: `ParameterError` for a parameter that cannot be used, `DataError` or "
    "`Unavailable` for what cannot be had."
)

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
    remedy: str
    """What the plugin's author does where it is broken: one or two sentences that name the function or declaration."""
    function: CheckFunction
    """Raises ContractViolation with the numbers, or NotJudged with the reason."""

    def run(self, subject: Subject, world: World) -> Outcome:
        """Return what the check comes to; whatever the plugin raises is its failure, and stays contained."""
        verdict: Verdict
        message, remedy = "", ""
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
            verdict, message, remedy = "failed", str(violation), self.remedy
        except SystemExit as error:
            verdict, message, remedy = "failed", f"the plugin called sys.exit({error.code!r})", _EXIT_REMEDY
        except Exception as error:
            # The property itself did not come to be judged, so what to do about it would lead astray.
            verdict, message = "failed", f"the plugin raised {type(error).__name__}: {one_line(error)}"
            remedy = self._where(error, subject)
        else:
            verdict = "passed"
        finally:
            torch.set_num_threads(threads)
        seconds = time.perf_counter() - began
        return Outcome(check=self.name, verdict=verdict, message=message, remedy=remedy, seconds=seconds)

    def _where(self, error: Exception, subject: Subject) -> str:
        """Return the last line of the plugin's own packages that the exception passed, as advice."""
        packages = {_package(spec.factory) for spec in (subject.spec, *(spec for spec, _make in subject.parts))}
        passed = [
            (frame.f_code, line)
            for frame, line in traceback.walk_tb(error.__traceback__)
            if _package(str(frame.f_globals.get("__name__"))) in packages
        ]
        if passed:
            code, line = passed[-1]
            return f"Look at line {line} of {Path(code.co_filename).name}, in `{code.co_name}`, and at what it calls."
        module = self.function.__module__.rpartition(".")[2]
        return f"Call `{module}.{self.function.__name__}(Subject.of(plugin, spec), World())` for the traceback."


_REGISTERED: dict[Kind, dict[str, Check]] = {}


def check(
    kind: Kind, name: str, *, meaning: str, catches: str, remedy: str
) -> Callable[[CheckFunction], CheckFunction]:
    """Register a function as a check. The order of registration is the order of running."""

    def register(function: CheckFunction) -> CheckFunction:
        known = _REGISTERED.setdefault(kind, {})
        if name in known:
            raise ValueError(f"there are two {kind} checks {name!r}")
        known[name] = Check(kind=kind, name=name, meaning=meaning, catches=catches, remedy=remedy, function=function)
        return function

    return register


def registered(kind: Kind) -> tuple[Check, ...]:
    """Return the checks of a kind that were registered so far; ``catalogue.checks_of`` makes sure that all were."""
    return tuple(_REGISTERED.get(kind, {}).values())


def _package(module: str) -> str:
    """Return the package that a module or factory belongs to; the harness's own plugins have one to themselves."""
    names = module.partition(":")[0].split(".")
    return ".".join(names[: 2 if names[0] == "autoshield_bench" else 1])
