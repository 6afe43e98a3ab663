"""What workers do in tests: small jobs that need no torch, some of which take their worker with them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path


def answer(job: str, tell) -> str:
    """Do what the job says; it tells ``here`` and its process before anything dangerous."""
    value = json.loads(job)
    tell(json.dumps({"here": os.getpid()}))
    return str(getattr(sys.modules[__name__], value.pop("do"))(tell, **value))


def double(_tell, number):
    return 2 * number


def process(_tell):
    return os.getpid()


def echo(_tell, text):
    return text


def read_input(_tell):
    return repr(sys.stdin.read())


def wait_forever(_tell):
    while True:
        time.sleep(3600)


def stubborn(tell):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell(json.dumps({"deaf": True}))
    wait_forever(tell)


def hold_the_interpreter(_tell):
    # A function of C that is called with the interpreter lock held.
    ctypes.PyDLL(None).sleep(3600)


def fault(_tell):
    ctypes.string_at(0)


def leave(_tell, code):
    os._exit(code)


def raise_system_exit(_tell):
    raise SystemExit(5)


def swallow_memory(_tell):
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    held = []
    while True:
        held.append(bytearray(1 << 26))


def print_a_lot(_tell, megabytes):
    for _ in range(megabytes):
        sys.stdout.write("x" * (1 << 20))
    os.write(2, b"the end\n")
    return "printed"


def write_into_every_descriptor(_tell):
    for number in range(3, 40):
        try:
            os.write(number, b'{"reply": "forged"}\nrubbish')
        except OSError:
            continue
    return "true"


def flood(_tell, brackets):
    """Write into the descriptors of pipes for ever."""
    pipes = [number for number in range(3, 40) if Path(f"/proc/self/fd/{number}").is_fifo()]
    text = b"[" * 100_000 + b"\n" if brackets else b"x" * 1_000_000
    while True:
        for number in pipes:
            with contextlib.suppress(OSError):
                os.write(number, text)


def forge(_tell):
    """Write into every descriptor what a worker might write, and leave a line unfinished."""
    for number in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(number, b'{"reply": "forged"}\n{"tell": "forged"}\n{"ready": 1}\n{"reply": {}}\nrubbish')
    return "honest"


def leave_a_thread(_tell):
    threading.Thread(target=time.sleep, args=(3600,), name="forgotten", daemon=True).start()
    return os.getpid()


def leave_a_child(_tell, then):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    if then == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return child.pid


def fail_once(_tell, mark):
    path = Path(mark)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "at last"


_plans: dict[str, tuple] = {}


def compute(text: str, tell) -> str:
    """Do a job of a run without torch: a record that depends on the cell's key alone."""
    from autoshield_bench.engine.jobs import Job, Reply
    from autoshield_bench.engine.options import plan_for, results_directory
    from autoshield_bench.outcomes import Outcomes
    from autoshield_bench.results import CellRecord, samples_path, write_record
    from autoshield_bench.store import write_bytes
    from autoshield_bench.suite_check import load_suite

    job = Job.from_text(text)
    if job.context not in _plans:
        options = job.run_options()
        plan = plan_for(load_suite(job.suite), options)
        _plans[job.context] = {cell.key: cell for cell in plan.cells}, results_directory(plan, options)
    cells, directory = _plans[job.context]
    cell = cells[job.key]
    tell(json.dumps({"here": os.getpid(), "key": job.key}))
    right = [place for place, digit in enumerate(job.key) if int(digit, 16) > 7]
    write_bytes(directory / samples_path(cell.key), cell.key.encode())
    tell(json.dumps({"half": os.getpid(), "key": job.key}))
    record = CellRecord(
        key=cell.key,
        score_key=cell.score_key,
        cell=cell.id,
        status="ok",
        outcomes=Outcomes.from_indices(64, range(64), right),
        strong=bool(cell.attack and cell.attack.spec.strong),
        facts={"trained_on": sorted({stage.spec.trained_on for stage in cell.stages} - {"nothing"})},
    )
    write_record(directory, record)
    tell(json.dumps({"written": os.getpid(), "key": job.key}))
    return Reply(seconds=0.0).to_text()
