"""Runs every check on one worst-case estimate and writes down the verdicts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from autoshield_bench.engine.evidence import attacked, held_out, probes, recorded, slopes
from autoshield_bench.engine.evidence.case import Case, TooFew, poor
from autoshield_bench.engine.integrity import fenced, kept, networks_of
from autoshield_bench.engine.stages import Workshop, describe_failure
from autoshield_bench.errors import CheckpointError, StoreError, WriteError
from autoshield_bench.plan import EvidencePlan
from autoshield_bench.results import CellRecord, cell_path, read_record
from autoshield_bench.seeding import global_seed
from autoshield_bench.verdicts import NOT_MADE, EvidenceRecord, Level, Verdict

CHECKS = (
    "valid",
    "live",
    "zero-budget",
    "reach",
    "unbounded",
    "iterative",
    "converged",
    "black-box",
    "gradients",
    "randomness",
    "held-out",
    "detector",
)
"""Every check, in the order of tables."""


def judge(plan: EvidencePlan, level: Level, workshop: Workshop, directory: Path, env: str) -> EvidenceRecord:
    """Return the verdicts on one defense under one threat and training seed."""
    records = _records(plan, directory)
    spent = [sum(_passes(records[cell.key])) for cell in plan.cells if cell.key in records]
    judged = sum(spent)
    case = Case(plan, records, workshop, level, judged)
    workshop.progress.stage(f"evidence on {plan.id}", len(CHECKS))
    found: dict[str, Verdict] = {}

    def take(check: str, ask: Callable[[], Verdict]) -> None:
        try:
            with global_seed("evidence", plan.key, check):
                found[check] = ask()
        except (CheckpointError, WriteError):
            raise
        except TooFew as few:
            found[check] = poor(case, check, str(few))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # A defense that cannot even be asked is not thereby robust.
            text = f"{NOT_MADE}: {describe_failure(error)}"
            found[check] = Verdict(check=check, ruling="unproven", text=text)
        workshop.progress.advance(len(found))

    take("valid", lambda: recorded.valid(case))
    with contextlib.ExitStack() as stack:
        if case.record(case.clean) is not None:
            # What a check does to a network may not reach the next job, or a restart would come to other verdicts.
            stack.enter_context(kept(_networks(case), lambda _change: None))
            stack.enter_context(fenced(f"evidence on {plan.id}", workshop.progress.warn))
            _ask(case, take)
    verdicts = tuple(found[check] for check in CHECKS if check in found)
    return EvidenceRecord(
        key=plan.key,
        where=plan.id,
        level=level,
        verdicts=verdicts,
        passes=case.counter.total(),
        judged=judged,
        env=env,
    )


def _networks(case: Case) -> Mapping[str, nn.Module]:
    """Return the networks under test; none where they cannot be had, which every check will say."""
    try:
        return networks_of(case.networks.classifier, case.networks.stages)
    except (CheckpointError, WriteError):
        raise
    except KeyboardInterrupt:
        raise
    except BaseException:
        return {}


def _ask(case: Case, take: Callable[[str, Callable[[], Verdict]], None]) -> None:
    """Run every check that asks the networks, dear ones last."""
    before = _attempted(lambda: probes.picture(case))
    take("zero-budget", lambda: probes.zero_budget(case))
    take("randomness", lambda: probes.randomness(case))
    take("gradients", lambda: slopes.gradients(case))
    take("reach", lambda: recorded.reach(case))
    take("detector", lambda: recorded.detector(case))
    take("unbounded", lambda: attacked.unbounded(case))
    take("iterative", lambda: attacked.iterative(case))
    take("held-out", lambda: held_out.held_out(case))
    take("black-box", lambda: attacked.black_box(case))
    take("converged", lambda: attacked.converged(case))
    take("live", lambda: probes.live(case, before))


def _records(plan: EvidencePlan, directory: Path) -> dict[str, CellRecord]:
    found = {}
    for cell in (*plan.cells, *plan.easier):
        try:
            record = read_record(directory / cell_path(cell.key, cell.id))
        except StoreError:
            continue  # judged as a cell without a result
        found[cell.key] = record
    return found


def _passes(record: CellRecord) -> list[int]:
    return [count for component in record.passes.get("attack", {}).values() for count in component.values()]


def _attempted(ask: Callable[[], probes.Picture]) -> probes.Picture | BaseException:
    """Return the answer, or the error for the check that needs it."""
    try:
        return ask()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
