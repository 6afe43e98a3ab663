"""What every executor promises, and what worker processes survive."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import worker_toys

from autoshield_bench.engine.executors import Executor, Outcome, local
from autoshield_bench.engine.executors.inline import Inline
from autoshield_bench.engine.executors.local import Local
from autoshield_bench.engine.jobs import Reply
from autoshield_bench.errors import WorkerError

TESTS = Path(__file__).parent


class Heard(list):
    """Messages of jobs, as they come; ``then`` is called with each."""

    then: Callable[[int, dict], None] | None = None

    def __call__(self, ticket: int, message: str) -> None:
        value = json.loads(message)
        self.append((ticket, value))
        if self.then is not None:
            self.then(ticket, value)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def workers(tmp_path: Path, heard: Heard) -> Iterator[Callable[..., Local]]:
    started: list[Local] = []

    def start(**options) -> Local:
        path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        fields = {"logs": tmp_path / "logs", "answer": "worker_toys:answer", "environment": {"PYTHONPATH": path}}
        started.append(Local(heard, **{**fields, **options}))
        return started[-1]

    yield start
    for own in started:
        own.close()


@pytest.fixture(params=["inline", "local"])
def executor(request: pytest.FixtureRequest, heard: Heard, workers: Callable[..., Local]) -> Iterator[Executor]:
    own = Inline(worker_toys.answer, heard) if request.param == "inline" else workers(capacity=2)
    yield own
    own.close()


def job(do: str, **fields: object) -> str:
    return json.dumps({"do": do, **fields})


def settle(executor: Executor, jobs: int = 1, seconds: float = 60) -> dict[int, Outcome]:
    """Return the outcomes of so many jobs by ticket."""
    found: dict[int, Outcome] = {}
    until = time.monotonic() + seconds
    while len(found) < jobs and time.monotonic() < until:
        for outcome in executor.wait(1):
            assert outcome.ticket not in found, "one outcome per job"
            found[outcome.ticket] = outcome
    assert len(found) == jobs
    return found


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone(process: int, seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while alive(process) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(process)


def group(leader: int) -> list[int]:
    """Return the processes of a group."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = entry.joinpath("stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader:
            found.append(int(entry.name))
    return found


# Every executor ---------------------------------------------------------------------------------------------------


def test_every_job_is_answered_once(executor: Executor) -> None:
    tickets = {executor.submit(job("double", number=number)): number for number in range(7)}
    assert len(tickets) == 7
    found = settle(executor, 7)
    assert {ticket: outcome.reply for ticket, outcome in found.items()} == {
        ticket: str(2 * number) for ticket, number in tickets.items()
    }
    assert {outcome.status for outcome in found.values()} == {"done"}
    assert list(executor.wait(0)) == []


def test_nothing_under_way_is_nothing_to_wait_for(executor: Executor) -> None:
    began = time.monotonic()
    assert list(executor.wait()) == []
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("text", ["", "é\u2028\n\t\"'", "x" * 300_000])
def test_replies_come_through_whole(executor: Executor, text: str) -> None:
    ticket = executor.submit(job("echo", text=text))
    assert settle(executor)[ticket].reply == text


def test_what_jobs_tell_is_heard_with_their_ticket(executor: Executor, heard: Heard) -> None:
    tickets = [executor.submit(job("double", number=number)) for number in range(3)]
    settle(executor, 3)
    # Several workers may be heard in any order.
    assert sorted(ticket for ticket, message in heard if "here" in message) == tickets


def test_a_job_that_waits_can_be_taken_back(executor: Executor) -> None:
    tickets = [executor.submit(job("double", number=number)) for number in range(6)]
    executor.cancel(tickets[-1])
    found = settle(executor, 6)
    assert found[tickets[-1]].status == "cancelled"
    assert [found[ticket].status for ticket in tickets[:-1]] == ["done"] * 5
    executor.cancel(tickets[0])  # has its outcome already
    assert list(executor.wait(0)) == []


def test_closing_twice_does_no_harm(executor: Executor) -> None:
    executor.submit(job("double", number=1))
    executor.close()
    executor.close()


# What workers survive ---------------------------------------------------------------------------------------------


def after(workers: Callable[..., Local], *jobs: str, **options: object) -> dict[int, Outcome]:
    """Return the outcomes of jobs with a sound one behind them, which must be answered whatever they do."""
    own = workers(**options)
    for text in jobs:
        own.submit(text)
    last = own.submit(job("double", number=21))
    found = settle(own, len(jobs) + 1)
    assert found[last].reply == "42"
    return found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (job("fault"), "killed by SIGSEGV"),
        (job("leave", code=0), "left with exit code 0"),
        (job("leave", code=3), "left with exit code 3"),
        (job("raise_system_exit"), "left with exit code 5"),
        (job("swallow_memory"), "left with exit code 1"),
    ],
    ids=["segmentation fault", "exit 0", "exit 3", "SystemExit", "memory limit"],
)
def test_a_job_that_takes_its_worker_with_it_is_lost_alone(workers, text: str, why: str) -> None:
    outcome = after(workers, text)[1]
    assert (outcome.status, outcome.why) == ("lost", why)
    if "memory" in text:
        assert "MemoryError" in outcome.log


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT])
def test_a_worker_that_is_killed_from_outside_is_lost(workers, heard: Heard, number: signal.Signals) -> None:
    heard.then = lambda ticket, message: os.kill(message["here"], number) if ticket == 1 else None
    outcome = after(workers, job("wait_forever"))[1]
    assert outcome.status == "lost"
    assert outcome.why.startswith(f"killed by {number.name}")
    assert ("memory" in outcome.why) == (number is signal.SIGKILL)


def test_a_worker_that_stays_stopped_is_lost(workers, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "STOPPED", 0.3)
    heard.then = lambda ticket, message: os.kill(message["here"], signal.SIGSTOP) if ticket == 1 else None
    outcome = after(workers, job("wait_forever"))[1]
    assert outcome.status == "lost"
    assert "stopped by a signal" in outcome.why


@pytest.mark.parametrize("do", ["wait_forever", "stubborn", "hold_the_interpreter"])
def test_a_job_that_hangs_is_stopped_at_the_time_limit(workers, monkeypatch: pytest.MonkeyPatch, do: str) -> None:
    monkeypatch.setattr(local, "PATIENCE", 0.3)
    outcome = after(workers, job(do), time_limit=2.0)[1]
    assert (outcome.status, outcome.why) == ("late", "stopped after 2 s, the time limit")


@pytest.mark.parametrize("then", ["die", "go on"])
def test_what_a_job_has_started_ends_with_its_worker(workers, heard: Heard, then: str) -> None:
    own = workers()
    own.submit(job("leave_a_child", then=then))
    outcome = settle(own)[1]
    worker = heard[0][1]["here"]
    if then == "go on":
        child = int(outcome.reply)
        assert alive(child)
        own.close()
        assert gone(child)
    assert gone(worker)
    assert all(gone(process) for process in group(worker)), "a process of the worker's group is left"


def test_what_a_plugin_prints_is_kept_within_bounds(workers, tmp_path: Path) -> None:
    found = after(workers, job("print_a_lot", megabytes=30))
    assert found[1].reply == "printed"
    (log,) = (tmp_path / "logs").iterdir()
    assert 1 << 20 < log.stat().st_size <= local.LARGEST_LOG


def test_logs_do_not_pile_up(workers, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    for number in range(local.LOGS + 5):
        path = logs / f"worker-1-{number}.log"
        path.write_text("printed", encoding="utf-8")
        os.utime(path, (number, number))
    (logs / "vm-1-20261123T000000Z.jsonl").write_text("", encoding="utf-8")
    workers()
    assert {path.name for path in logs.iterdir()} == {
        "vm-1-20261123T000000Z.jsonl",
        *(f"worker-1-{number}.log" for number in range(5, local.LOGS + 5)),
    }


def test_the_end_of_the_log_comes_with_the_loss(workers) -> None:
    own = workers()
    own.submit(job("print_a_lot", megabytes=1))
    own.submit(job("leave", code=1))
    outcome = settle(own, 2)[2]
    assert outcome.log.endswith("the end\n")
    assert len(outcome.log) < 5000


def test_threads_that_a_plugin_leaves_do_not_meddle_with_the_next_job(workers, heard: Heard) -> None:
    own = workers()
    own.submit(job("leave_a_thread"))
    first = settle(own)[1]
    own.submit(job("process"))
    second = settle(own)[2]
    assert first.reply != second.reply
    assert any("forgotten" in message.get("warn", "") for _ticket, message in heard)


def test_a_worker_is_kept_for_the_next_job(workers) -> None:
    own = workers()
    own.submit(job("process"))
    own.submit(job("process"))
    found = settle(own, 2)
    assert found[1].reply == found[2].reply


def test_a_job_cannot_read_the_jobs_behind_it(workers) -> None:
    assert after(workers, job("read_input"))[1].reply == "''"


def test_what_is_written_into_the_pipe_of_answers_does_no_lasting_harm(workers) -> None:
    own = workers()
    first = own.submit(job("write_into_every_descriptor"))
    assert set(settle(own)) == {first}
    last = own.submit(job("double", number=4))
    assert settle(own)[last].reply == "8"


@pytest.mark.parametrize("brackets", [False, True])
def test_a_flood_of_answers_is_stopped_at_the_time_limit(workers, brackets: bool) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after(workers, job("flood", brackets=brackets), time_limit=2)[1].status == "late"
    # In units of 1,024 bytes on Linux: what nobody signed is not kept.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_a_job_larger_than_a_pipe_holds_nobody_up(workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "STOPPED", 1.0)
    own = workers()
    first = own.submit(job("process"))
    os.kill(int(settle(own)[first].reply), signal.SIGSTOP)
    ticket = own.submit(job("echo", text="x" * 300_000))
    assert settle(own)[ticket].status == "lost"
    ticket = own.submit(job("echo", text="x" * 300_000))
    assert settle(own)[ticket].reply == "x" * 300_000


def test_forged_answers_are_told_from_a_workers_own(workers, heard: Heard) -> None:
    own = workers()
    ticket = own.submit(job("forge"))
    assert settle(own)[ticket].reply == "honest"
    assert not any("forged" in str(message) for _ticket, message in heard)
    last = own.submit(job("double", number=4))
    assert settle(own)[last].reply == "8"


@pytest.mark.parametrize("text", ["", "5", "[]", '{"made": []', '{"made": 3}', '{"made": [], "more": 1}', "{" * 99_999])
def test_a_reply_that_is_none_is_known_for_one(text: str) -> None:
    assert Reply.from_text(text) is None


def test_no_library_is_taken_from_the_working_directory(workers, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.chdir(tmp_path)
    own = workers()
    ticket = own.submit(job("double", number=4))
    assert settle(own)[ticket].reply == "8"


def test_a_job_under_way_can_be_stopped(workers, heard: Heard) -> None:
    own = workers()
    ticket = own.submit(job("wait_forever"))
    while not heard:
        own.wait(0.1)
    own.cancel(ticket)
    assert settle(own)[ticket].status == "cancelled"
    assert gone(heard[0][1]["here"])
    own.submit(job("double", number=1))
    assert settle(own)[2].reply == "2"


def test_deaf_workers_are_given_one_while_together(workers, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PATIENCE", 1.0)
    executor = workers(capacity=4)
    for _ in range(4):
        executor.submit(job("stubborn"))
    until = time.monotonic() + 60
    while sum("deaf" in value for _, value in heard) < 4 and time.monotonic() < until:
        executor.wait(0.2)
    processes = [value["here"] for _, value in heard if "here" in value]
    before = time.monotonic()
    executor.close()
    assert time.monotonic() - before < 3
    assert len(processes) == 4
    assert all(gone(process) for process in processes)


def test_workers_that_cannot_start_are_given_up(workers) -> None:
    own = workers(answer="no_such_module:answer")
    own.submit(job("double", number=1))
    with pytest.raises(WorkerError, match=r"3 worker processes in a row .*no_such_module.*--in-process"):
        settle(own)


@pytest.mark.parametrize("do", ["wait_forever", "hold_the_interpreter"])
def test_workers_die_with_their_parent(tmp_path: Path, do: str) -> None:
    if do == "hold_the_interpreter" and sys.platform != "linux":
        pytest.skip("only Linux kills a process with its parent")
    script = f"""
        import json, sys
        sys.path.insert(0, {str(TESTS)!r})
        from pathlib import Path
        from autoshield_bench.engine.executors.local import Local
        own = Local(lambda _ticket, text: print(text, flush=True), logs=Path({str(tmp_path)!r}),
                    answer="worker_toys:answer", environment={{"PYTHONPATH": {str(TESTS)!r}}})
        own.submit(json.dumps({{"do": {do!r}}}))
        while True:
            own.wait()
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    assert parent.stdout is not None
    worker = json.loads(parent.stdout.readline())["here"]
    assert alive(worker)
    parent.kill()
    parent.wait()
    assert gone(worker)
    parent.stdout.close()


def test_the_parent_of_workers_does_not_load_torch() -> None:
    code = "import sys; from autoshield_bench.engine import runner; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
