"""Nothing is lost: the process is killed after every single effect on disk, and the disk refuses every single one.

A run of a small suite goes through the real runner and the real store; only the tensors are replaced by bytes that
follow from their key, so that thousands of runs take seconds. Every run is a process of its own, forked from this one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import verdict

from autoshield_bench import effects
from autoshield_bench.engine import runner
from autoshield_bench.engine.driver import Driver
from autoshield_bench.engine.executors.inline import Inline
from autoshield_bench.engine.facts import facts, is_strong
from autoshield_bench.engine.jobs import Job, Reply
from autoshield_bench.engine.journal import Journal, read_events
from autoshield_bench.engine.progress import Silence
from autoshield_bench.engine.runner import RunOptions, plan_for, run_plan
from autoshield_bench.errors import WriteError
from autoshield_bench.outcomes import Outcomes
from autoshield_bench.plan import Cell, EvidencePlan, Plan
from autoshield_bench.results import CellRecord, MetricResult, load_results, samples_path, write_record
from autoshield_bench.store import ArtifactStore, canonical, write_bytes, write_json
from autoshield_bench.suite_check import load_suite
from autoshield_bench.verdicts import EvidenceRecord, write_evidence

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

EFFECTS = tuple(
    sorted(name for name, own in vars(effects).items() if getattr(own, "__module__", "") == effects.__name__)
)
"""Names of all the functions that change anything on disk."""

SUITE = """
schema = 1
name = "toy"
[dataset]
use = "digits"
[model]
use = "small-cnn"
[[threats]]
norm = "linf"
eps = [0.2]
[[defenses]]
use = "none"
[[defenses]]
use = "autoencoder"
[[attacks]]
use = "fgsm"
access = ["white-box"]
"""

FINISHED, REFUSED, BUG = 0, 3, 70
"""Exit codes of a run: it finished, or it ended as `aubench` does where the disk refuses. Any other is a bug."""


class Toy:
    """A suite that is run without torch: what a stage makes is a hash of its key and of what goes in."""

    def __init__(self, root: Path) -> None:
        file = root / "suite.toml"
        file.write_text(SUITE, encoding="utf-8")
        self.loaded = load_suite(file)
        self.plan = plan_for(self.loaded, RunOptions(device="cpu"))
        self.reports: int | None = None
        """Descriptor that gets a byte for every cell that is finished."""

    def run(self, root: Path) -> None:
        """Run what is not finished below ``root``, as `aubench run` does."""
        options = RunOptions(results_dir=root / "results", cache_dir=root / "cache", device="cpu")
        runner._executor = self._executor  # type: ignore[assignment]
        run_plan(self.plan, self.loaded, options, Silence())

    @contextlib.contextmanager
    def _executor(
        self, driver: Driver, plan: Plan, _loaded: object, options: RunOptions, directory: Path
    ) -> Iterator[Inline]:
        """Yield what does the jobs of a run in this process."""
        store, journal = ArtifactStore(options.cache_dir or directory), Journal(directory)
        cells, judgements = {own.key: own for own in plan.cells}, {own.key: own for own in plan.evidence}

        def do(text: str, _tell: object) -> str:
            job = Job.from_text(text)
            if job.kind == "cell":
                write_record(directory, self._cell(cells[job.key], store, directory, journal))
                if self.reports is not None:
                    os.write(self.reports, b"x")
            else:
                write_evidence(directory, self._evidence(judgements[job.key], store, journal))
            return Reply().to_text()

        write_json(directory / "env" / "machine.json", {"schema": "aubench.env/1"})
        try:
            yield Inline(do, driver.hear)
        finally:
            journal.close()

    def _evidence(self, own: EvidencePlan, store: ArtifactStore, journal: Journal) -> EvidenceRecord:
        ruling = verdict("converged", text=self._artifact("judge", own.key, b"", store, journal)[:4].hex())
        return EvidenceRecord(key=own.key, where=own.id, level="fast", verdicts=(ruling,), passes=1, judged=10)

    def _cell(self, cell: Cell, store: ArtifactStore, directory: Path, journal: Journal) -> CellRecord:
        data = self._artifact("train", cell.model.key, b"", store, journal)
        for stage in cell.stages:
            data = self._artifact("fit", stage.key, data, store, journal)
        if cell.attack is not None:
            data = self._artifact("attack", cell.attack.key, data, store, journal)
        samples = canonical({"bytes": data.hex()})
        write_bytes(directory / samples_path(cell.key), samples)
        well = [image for image in range(50) if data[image % len(data)] & 1]
        return CellRecord(
            key=cell.key,
            score_key=cell.score_key,
            cell=cell.id,
            status="ok",
            outcomes=Outcomes.from_indices(50, range(50), well),
            strong=is_strong(cell),
            metrics={use.label: MetricResult(direction="higher", unit="", notes="", pairs={}) for use in cell.metrics},
            facts=facts(cell),
            env="machine",
            samples=hashlib.sha256(samples).hexdigest(),
        )

    def _artifact(self, stage: str, key: str, given: bytes, store: ArtifactStore, journal: Journal) -> bytes:
        found = store.fetch(stage, key)
        if found is not None:
            return found[0]
        data = b"".join(hashlib.sha256(given + key.encode() + bytes([part])).digest() for part in range(64))
        store.publish(stage, key, data, {"passes": 1})
        journal.event("cell", stage=stage, ok=True, seconds=1.0, passes=1)
        return data


class Disk:
    """Counts effects, and does something before one of them; remembers what a loss of power would undo."""

    def __init__(self) -> None:
        self.count = 0
        self.names: list[str] = []
        self.before: Callable[[str, int], None] = lambda _name, _number: None
        self.inside = 0
        self.unsynced: dict[int, Path] = {}
        self.unnamed: list[tuple[Path, bytes | None]] = []

    def install(self) -> None:
        """Stand before every effect. A write counts as two, of a half each; nobody waits for the real disk."""
        for name in EFFECTS:
            setattr(effects, name, self._standing_before(name, getattr(effects, name)))

    def _standing_before(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def effect(*given: Any) -> Any:
            self.step(name)
            self.inside += 1
            try:
                return self._done(name, real, given)
            finally:
                self.inside -= 1

        return effect

    def step(self, name: str) -> None:
        """Number the effect and let come what comes before it."""
        self.count += 1
        self.names.append(name)
        self.before(name, self.count)

    def _done(self, name: str, real: Callable[..., Any], given: tuple[Any, ...]) -> Any:
        if name == "write":
            descriptor, data = given
            real(descriptor, data[: len(data) // 2])
            self.step("write the rest")
            return real(descriptor, data[len(data) // 2 :])
        if name in ("open_new", "open_lock"):
            if name == "open_new" or not given[0].exists():
                self.unnamed.append((given[0], None))
            descriptor = real(*given)
            self.unsynced[descriptor] = given[0]
            return descriptor
        if name == "sync":
            self.unsynced.pop(given[0], None)
            return None
        if name == "sync_directory":
            self.unnamed = [own for own in self.unnamed if own[0].parent != given[0]]
            return None
        if name == "replace":
            source, target = given
            self.unnamed.append((target, target.read_bytes() if target.exists() else None))
            self.unsynced = {own: target if path == source else path for own, path in self.unsynced.items()}
        if name == "make_directory":
            self.unnamed.append((given[0], None))
        return real(*given)

    def lose_power(self) -> None:
        """Undo what no fsync has confirmed: the ends of files, then names."""
        for path in self.unsynced.values():
            with contextlib.suppress(OSError):
                os.truncate(path, path.stat().st_size // 2)
        for path, old in reversed(self.unnamed):
            if old is not None:
                path.write_bytes(old)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def in_a_process(toy: Toy, work: Callable[[], None]) -> tuple[int, int]:
    """Do the work in a process of its own; return its exit code (negative: the signal) and the cells it finished."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        toy.reports, code = writable, BUG
        try:
            work()
            code = FINISHED
        except WriteError:
            code = REFUSED
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writable)
    with os.fdopen(readable, "rb") as stream:
        reports = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), len(reports)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A place that is quick to write to."""
    import tempfile

    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a place but the journals, whose names hold the time and the process."""
    files = (path for path in sorted(root.rglob("*")) if not path.is_dir())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files if path.parent.name != "journal"}


@pytest.fixture(scope="module")
def undisturbed(toy: Toy, place: Path) -> tuple[dict[str, bytes], list[str]]:
    """What a run leaves that nothing happens to, and its effects by name."""
    root, disk = place / "undisturbed", Disk()
    names = place / "names"

    def work() -> None:
        disk.install()
        toy.run(root)
        names.write_text("\n".join(disk.names), encoding="utf-8")

    assert in_a_process(toy, work) == (FINISHED, 4)
    return contents(root), names.read_text(encoding="utf-8").splitlines()


def test_an_undisturbed_run_leaves_results_artifacts_and_nothing_else(undisturbed, place):
    files, names = undisturbed
    assert sum(name.startswith("results/toy/cells/") for name in files) == 4
    assert sum(name.startswith("results/toy/samples/") for name in files) == 4
    assert sum(name.startswith("results/toy/evidence/") for name in files) == 2
    assert (
        sum(name.endswith("/manifest.json") for name in files)
        == sum(name.endswith(".safetensors") for name in files) - 4
    )
    assert {"results/toy/plan.json", "results/toy/derived/leaderboard.md"} <= files.keys()
    assert not [name for name in files if "lock" in name or name.endswith(".tmp") or "set-aside" in name]
    assert set(EFFECTS) - set(names) <= {"rename", "remove_directory", "touch"}  # nothing is damaged, pruned, read
    results = load_results(place / "undisturbed" / "results" / "toy")
    assert (len(results.records), results.damaged, results.missing) == (4, (), ())


def test_nothing_on_disk_changes_but_through_the_effects(toy, place):
    """The numbering is complete: the interpreter itself reports every change, and each is one of the effects."""
    root, disk, past = place / "audited", Disk(), []
    changing = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.utime", "os.link"}

    def watch(event: str, given: tuple[Any, ...]) -> None:
        writes = event == "open" and given[2] & (os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        if (writes or event in changing or event.startswith("shutil.")) and not disk.inside:
            past.append((event, given))

    def work() -> None:
        disk.install()
        sys.addaudithook(watch)
        toy.run(root)
        assert not [own for own in past if str(root) in str(own)], past

    assert in_a_process(toy, work)[0] == FINISHED


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("end", ["killed", "out of power"])
def test_a_run_that_ends_after_any_effect_is_taken_up_without_loss(toy, place, undisturbed, end, stride):
    """The default run ends after every ninth of the effects; the long one after each of them."""
    expected, names = undisturbed
    for number in range(1, len(names) + 1, stride):
        root, disk = place / f"{end}-{number}", Disk()

        def die(_name: str, count: int, number: int = number, disk: Disk = disk) -> None:
            if count == number:
                if end == "out of power":
                    disk.lose_power()
                os.kill(os.getpid(), signal.SIGKILL)

        def broken(disk: Disk = disk, root: Path = root, die: Callable[[str, int], None] = die) -> None:
            disk.before = die
            disk.install()
            toy.run(root)

        def again(root: Path = root) -> None:
            Disk().install()
            toy.run(root)

        where = f"{end} before effect {number} of {len(names)}, {names[number - 1]}"
        code, reported = in_a_process(toy, broken)
        assert code == -signal.SIGKILL, where
        finished = _finished(root)
        assert reported <= finished <= reported + 1, f"{where}: {reported} cells were finished, {finished} are there"
        assert in_a_process(toy, again) == (FINISHED, 4 - finished), where
        assert contents(root) == expected, where
        list(read_events(root / "results" / "toy"))
        shutil.rmtree(root)


def _finished(root: Path) -> int:
    directory = root / "results" / "toy"
    return len(load_results(directory).records) if (directory / "plan.json").exists() else 0


FAULTS: dict[str, tuple[int, frozenset[str], bool]] = {
    "disk full at write": (errno.ENOSPC, frozenset({"make_directory", "open_new", "write", "write the rest"}), True),
    "disk full at fsync": (errno.ENOSPC, frozenset({"sync"}), True),
    "over quota at close": (errno.EDQUOT, frozenset({"close"}), True),
    "read-only": (errno.EROFS, frozenset(EFFECTS) - {"sync", "close", "sync_directory"}, True),
    "input/output error": (errno.EIO, frozenset(EFFECTS), False),
}
"""By name: what the disk says, at which effects, and whether it goes on saying so."""


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_disk_that_refuses_an_effect_ends_the_run_in_one_line_and_costs_nothing(
    toy, place, undisturbed, fault, stride
):
    """The default run tries every seventh of the effects that are concerned; the long one tries all."""
    expected, names = undisturbed
    number, at, lasting = FAULTS[fault]
    for position, name in [own for own in enumerate(names, 1) if own[1] in at][::stride]:
        root, disk = place / f"{errno.errorcode[number]}-{position}", Disk()

        def refuse(name: str, count: int, position: int = position, disk: Disk = disk) -> None:
            if count == position or (lasting and count > position and name in at):
                raise OSError(number, os.strerror(number))

        def broken(disk: Disk = disk, root: Path = root, refuse: Callable[[str, int], None] = refuse) -> None:
            disk.before = refuse
            disk.install()
            toy.run(root)

        def again(root: Path = root) -> None:
            Disk().install()
            toy.run(root)

        where = f"{fault} at effect {position}, {name}"
        code, _computed = in_a_process(toy, broken)
        # What tidies up, or notes when an artifact was used, may fail without harm.
        assert code == REFUSED or (name in ("remove", "touch") and code == FINISHED), where
        assert in_a_process(toy, again)[0] == FINISHED, where
        assert contents(root) == expected, where
        shutil.rmtree(root)
