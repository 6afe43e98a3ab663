"""Results of several machines or parts become one: whole, nothing lost, nothing averaged."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from builders import cell, evidence, metric, record, result_set, verdict, write_results
from test_registry import aubench, python
from test_run import AUTOENCODER, FGSM, files, go, home, suite

from autoshield_bench import effects, load_results
from autoshield_bench.errors import WriteError
from autoshield_bench.locks import lock
from autoshield_bench.merge import write as merge_write
from autoshield_bench.merge.classes import TOLERANCE
from autoshield_bench.results import cell_path, other_plan_path, read_record, samples_path, write_record
from autoshield_bench.store import content_key, read_json, results_lock, write_json
from autoshield_bench.verdicts import read_evidence

ROOT = Path(__file__).parents[1]
COMPARED = ("cells", "env", "evidence", "samples", "derived")
ONE, TWO = "cpu/x86_64-avx512f/2.15.0", "cpu/x86_64-avx2/2.15.0"


def everything(directory):
    """Every file below a directory, with its bytes."""
    return {path.relative_to(directory): path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()}


def results_of(directory):
    return {name: data for below in COMPARED for name, data in files(directory, below).items()} | {
        Path("plan.json"): (directory / "plan.json").read_bytes()
    }


def nothing_lost(before, after):
    """Every file of the inputs is in the output byte for byte, under whatever name; what is derived is derived anew."""
    kept = {hashlib.sha256(data).digest() for data in after.values()}
    for inputs in before:
        for name, data in inputs.items():
            if name.parts[0] not in ("derived", "plan.json"):
                assert hashlib.sha256(data).digest() in kept, name


# -- parts of one run -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One suite run whole, by seeds, and by defenses."""
    folder = tmp_path_factory.mktemp("runs")
    path = suite(folder, AUTOENCODER, FGSM, seeds="[0, 7]")
    for name, options in {
        "whole": {},
        "seed-0": {"seed": 0},
        "seed-7": {"seed": 7},
        "none": {"only": "*/none/*"},
        "autoencoder": {"only": "*/autoencoder/*"},
    }.items():
        go(path, folder, results=name, evidence="fast", **options)
    return folder


HALVES = [("seed-0", "seed-7"), ("seed-7", "seed-0"), ("none", "autoencoder"), ("whole", "none"), ("none", "whole")]


@pytest.mark.parametrize("halves", HALVES, ids="+".join)
def test_merged_parts_are_the_undivided_run_byte_for_byte(runs, tmp_path, halves):
    inputs = [home(runs, half) for half in halves]
    before = [everything(directory) for directory in inputs]
    done = aubench("merge", *inputs, "--into", tmp_path / "merged")
    assert (done.code, done.err) == (0, "")
    assert results_of(tmp_path / "merged") == results_of(home(runs, "whole"))
    assert [everything(directory) for directory in inputs] == before
    nothing_lost(before, everything(tmp_path / "merged"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged"]


def test_the_first_directory_gains_what_the_others_have(runs, tmp_path):
    for name in ("none", "autoencoder"):
        shutil.copytree(home(runs, name), tmp_path / name)
    before = [everything(tmp_path / name) for name in ("none", "autoencoder")]
    done = aubench("merge", tmp_path / "none", tmp_path / "autoencoder", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["cells"] == {"planned": 12, "present": 12, "in_several": 0}
    assert results_of(tmp_path / "none") == results_of(home(runs, "whole"))
    assert everything(tmp_path / "autoencoder") == before[1]
    nothing_lost(before, everything(tmp_path / "none"))


def test_a_run_on_merged_results_has_nothing_to_do(runs, tmp_path):
    name = home(runs, "whole").name
    merged = tmp_path / "results" / name
    assert aubench("merge", home(runs, "none"), home(runs, "autoencoder"), "--into", merged).code == 0
    before = everything(merged)
    results, watch = go(runs / "tiny.toml", tmp_path, evidence="fast")
    assert (watch.finished, watch.cells, watch.stages) == (12, [], [])
    assert results.missing == ()
    assert everything(merged) == before


def test_results_merged_with_their_copy_stay_as_they_are(runs, tmp_path):
    whole = home(runs, "whole")
    shutil.copytree(whole, tmp_path / "copy")
    done = aubench("merge", whole, tmp_path / "copy", "--into", tmp_path / "merged", "--json")
    assert done.code == 0
    assert json.loads(done.out)["cells"]["in_several"] == 12
    assert everything(tmp_path / "merged") == everything(whole)


def test_per_image_arrays_come_from_whoever_has_them(runs, tmp_path):
    whole = home(runs, "whole")
    shutil.copytree(whole, tmp_path / "from-git", ignore=shutil.ignore_patterns("samples", "journal"))
    assert aubench("merge", tmp_path / "from-git", whole, "--into", tmp_path / "merged").code == 0
    results = load_results(tmp_path / "merged")
    assert all(len(results.arrays(own)["index"]) == own.outcomes.n for own in results)
    # Arrays that are not the record's are not taken for it.
    for path in (tmp_path / "from-git").rglob("samples"):
        shutil.rmtree(path)
    (tmp_path / "from-git" / "samples").mkdir()
    stray = tmp_path / "from-git" / samples_path(results.records[0].key)
    stray.write_bytes(b"not them")
    assert aubench("merge", tmp_path / "from-git", whole, "--into", tmp_path / "again").code == 0
    assert files(tmp_path / "again", "samples") == files(whole, "samples")
    assert b"not them" in files(tmp_path / "again", "beside").values()


def test_old_results_are_merged_as_they_are(tmp_path):
    shipped = ROOT / "results" / "mnist-sweep"
    for name, kept in (("one", "none"), ("two", "autoencoder")):
        shutil.copytree(shipped, tmp_path / name)
        for folder in (tmp_path / name / "cells").iterdir():
            if (folder.name == "none") != (kept == "none"):
                shutil.rmtree(folder)
    done = aubench("merge", tmp_path / "one", tmp_path / "two", "--into", tmp_path / "merged")
    assert (done.code, done.err) == (0, "")
    for below in ("cells", "env"):
        assert files(tmp_path / "merged", below) == files(shipped, below)
    assert (tmp_path / "merged" / "plan.json").read_bytes() == (shipped / "plan.json").read_bytes()


def test_merging_needs_no_torch(runs, tmp_path):
    code = (
        "import sys\nfrom autoshield_bench.cli.main import main\ncode = main(sys.argv[1:])\n"
        'assert "torch" not in sys.modules\nsys.exit(code)\n'
    )
    options = [home(runs, "seed-0"), home(runs, "seed-7"), "--into", tmp_path / "merged"]
    done = python(code, "merge", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


# -- by hand ----------------------------------------------------------------------------------------------------------


def place(defense="none", attack=None, seed=0):
    return cell(defense, attack, attack and "white-box", seed=seed)


def made(own, numeric=ONE, **fields):
    """Return a record as that class makes it: the class is part of the key."""
    return replace(own, key=content_key([numeric, str(own.cell)]), numeric_class=numeric, **fields)


def directory(folder, *records, numeric=ONE, threads=1, plan=None, missing=(), **fields):
    """Write results with a machine record, and per-image arrays that are no more than a name."""
    env = {**read_json(Path(__file__).parent / "data" / "records" / "env-2.json"), "threads": threads}
    env["numeric_class"] = numeric
    name = content_key(env)[:16]
    records = tuple(replace(own, env=name) for own in records)
    write_results(folder, result_set(*records, missing=missing, **fields), numeric_class=numeric, **(plan or {}))
    write_json(folder / "env" / f"{name}.json", env)
    return folder


def clean(correct=range(9), **fields):
    return made(record(place(), correct), **fields)


def attacked(correct=(1, 2, 3), **fields):
    return made(record(place(attack="pgd"), correct), **fields)


def merge(folder, *names, into="merged"):
    before = [everything(folder / name) for name in names]
    done = aubench("merge", *(folder / name for name in names), "--into", folder / into)
    assert [everything(folder / name) for name in names] == before
    if (folder / into).exists():
        nothing_lost(before, everything(folder / into))
    return done


def test_of_equal_scores_from_two_machines_one_stands_and_the_other_is_kept(tmp_path):
    directory(tmp_path / "a", clean(), attacked(), threads=1)
    directory(tmp_path / "b", clean(), attacked(), threads=2)
    assert merge(tmp_path, "a", "b").code == 0
    merged = load_results(tmp_path / "merged")
    assert merged.records == load_results(tmp_path / "a").records
    assert len(files(tmp_path / "merged", "env")) == 2
    assert sorted(files(tmp_path / "merged", "beside").values()) == sorted(files(tmp_path / "b").values())
    again = merge(tmp_path, "merged", "b", into="again")
    assert (again.code, everything(tmp_path / "again")) == (0, everything(tmp_path / "merged"))


def test_equal_keys_with_different_scores_are_a_conflict_and_never_averaged(tmp_path):
    directory(tmp_path / "a", clean(), attacked([1, 2, 3]), threads=1)
    directory(tmp_path / "b", clean(), attacked([1, 2, 4, 5]), threads=2)
    done = merge(tmp_path, "a", "b")
    assert done.code == 1
    (line,) = [line for line in done.out.splitlines() if line.startswith("conflict: ")]
    name = cell_path(attacked().key, attacked().cell)
    for said in (str(attacked().cell), tmp_path / "a" / name, tmp_path / "b" / name, "3 of 10 images", "1 and 2"):
        assert str(said) in line
    merged = load_results(tmp_path / "merged")
    assert [own.cell for own in merged] == [clean().cell]
    assert merged.missing == (attacked().cell,)
    kept = list((tmp_path / "merged" / "beside" / "cells").rglob("pgd*.json"))
    assert sorted(read_record(path).outcomes.hits for path in kept) == [3, 4]


def test_a_conflict_changes_nothing_in_place(tmp_path):
    directory(tmp_path / "a", attacked([1]), missing=[clean().cell])
    directory(tmp_path / "b", attacked([2]), missing=[clean().cell])
    before = everything(tmp_path)
    done = aubench("merge", tmp_path / "a", tmp_path / "b")
    assert done.code == 1
    assert "--into" in done.out
    assert everything(tmp_path) == before


def test_a_conflict_lasts_until_the_cell_is_run_again(tmp_path):
    for name, correct in (("a", [1]), ("b", [2]), ("c", [1])):
        directory(tmp_path / name, attacked(correct))
    assert merge(tmp_path, "a", "b", into="ab").code == 1
    # A third directory that agrees with one of them is no vote.
    assert merge(tmp_path, "ab", "c", into="abc").code == 1
    assert load_results(tmp_path / "abc").records == ()
    write_record(tmp_path / "abc", replace(load_results(tmp_path / "c").records[0]))
    assert merge(tmp_path, "abc", "c", into="settled").code == 0
    assert load_results(tmp_path / "settled").records == load_results(tmp_path / "c").records
    assert len(files(tmp_path / "settled", "beside")) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"passes": {"attack": {"classifier": {"forward": 9, "backward": 4}}}}, "passes"),
        ({"metrics": {"psnr": metric({"clean-adversarial": 20.6})}}, "psnr"),
    ],
    ids=["passes", "metric"],
)
def test_any_score_that_differs_is_a_conflict(tmp_path, change, said):
    same = {
        "passes": {"attack": {"classifier": {"forward": 8, "backward": 4}}},
        "metrics": {"psnr": metric({"clean-adversarial": 20.5})},
    }
    directory(tmp_path / "a", attacked(**same))
    directory(tmp_path / "b", attacked(**{**same, **change}))
    done = merge(tmp_path, "a", "b")
    assert done.code == 1
    assert said in done.out


def test_verdicts_that_differ_are_a_conflict(tmp_path):
    ours, theirs = evidence("none", verdict("valid", "pass")), evidence("none", verdict("valid", "fail", "left"))
    for name, own in (("a", ours), ("b", theirs)):
        directory(tmp_path / name, clean(), attacked(), evidence=(own,), evidence_level="fast")
    done = merge(tmp_path, "a", "b")
    assert done.code == 1
    assert "verdicts differ: valid" in done.out
    assert load_results(tmp_path / "merged").evidence == ()
    kept = [read_evidence(path).verdicts[0].ruling for path in (tmp_path / "merged" / "beside").rglob("linf*.json")]
    assert sorted(kept) == ["fail", "pass"]


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_a_score_stands_where_the_other_machine_failed(tmp_path, order):
    directory(tmp_path / "a", made(record(place(attack="pgd"), error="out of memory")))
    directory(tmp_path / "b", attacked())
    assert merge(tmp_path, *order).code == 0
    assert load_results(tmp_path / "merged").records[0].status == "ok"


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_a_metric_that_one_machine_lacks_comes_from_the_other(tmp_path, order):
    lacking = metric(None, unavailable="no weights here", retry=True)
    directory(tmp_path / "a", attacked(metrics={"lpips": lacking}))
    directory(tmp_path / "b", attacked(metrics={"lpips": metric({"clean-adversarial": 0.3})}))
    assert merge(tmp_path, *order).code == 0
    assert load_results(tmp_path / "merged").records[0].metrics["lpips"].unavailable is None


# -- numeric classes --------------------------------------------------------------------------------------------------


def classes(folder, n, changed):
    """Write one cell of ``n`` images in two classes, of which ``changed`` come out otherwise."""
    for name, numeric, correct in (("a", ONE, range(n)), ("b", TWO, range(changed, n))):
        own = made(record(place(attack="pgd"), correct, size=n), numeric)
        directory(folder / name, own, numeric=numeric)


def test_other_numeric_classes_are_kept_beside_and_compared(tmp_path):
    classes(tmp_path, 1000, 28)
    done = merge(tmp_path, "a", "b")
    assert done.code == 0
    assert "28 of 1000 outcomes differ in 1 cells" in done.out
    assert f"the leaderboard is of {ONE}" in done.out
    merged = tmp_path / "merged"
    assert load_results(merged).records == load_results(tmp_path / "a").records
    report = (merged / "derived" / "leaderboard.md").read_text(encoding="utf-8").replace("\\", "")
    assert f"figures are of the numeric class {ONE}; those of {TWO} lie beside" in report
    (plan,) = (merged / "plans").iterdir()
    assert plan.read_bytes() == (tmp_path / "b" / "plan.json").read_bytes()
    for name, data in files(tmp_path / "b").items():
        assert (merged / name).read_bytes() == data
    # The other way round the other class leads, and both are there all the same.
    assert merge(tmp_path, "b", "a", into="turned").code == 0
    assert load_results(tmp_path / "turned").records == load_results(tmp_path / "b").records
    assert files(tmp_path / "turned") == files(merged)
    assert merge(tmp_path, "merged", "turned", into="both").code == 0
    assert everything(tmp_path / "both") == everything(merged)


@pytest.mark.parametrize(
    ("n", "changed", "code"), [(1000, 28, 0), (1000, 60, 0), (1000, 80, 1), (20, 2, 0), (20, 9, 1)]
)
def test_classes_that_differ_more_than_rounding_explains_are_reported(tmp_path, n, changed, code):
    assert TOLERANCE == 0.05
    classes(tmp_path, n, changed)
    done = merge(tmp_path, "a", "b")
    assert done.code == code
    assert ("beyond tolerance: " in done.out) == bool(code)
    assert len(files(tmp_path / "merged")) == 2


def test_classes_are_compared_by_predictions_where_these_are_at_hand(tmp_path):
    import numpy
    from safetensors.numpy import save

    classes(tmp_path, 20, 0)
    for name, predicted in (("a", 0), ("b", 1)):
        own = load_results(tmp_path / name).records[0]
        data = save({"index": numpy.arange(20), "prediction": numpy.full(20, predicted)})
        path = tmp_path / name / samples_path(own.key)
        path.parent.mkdir()
        path.write_bytes(data)
        write_record(tmp_path / name, replace(own, samples=hashlib.sha256(data).hexdigest()))
    done = merge(tmp_path, "a", "b")
    # All are misclassified in both, as other digits.
    assert done.code == 1
    assert "20 of 20 predictions differ" in done.out


def test_a_run_on_another_machine_keeps_the_plan_of_the_first(tmp_path, monkeypatch):
    path = suite(tmp_path, FGSM)
    go(path, tmp_path)
    first = everything(home(tmp_path))
    monkeypatch.setattr("autoshield_bench.plan.numeric_class", lambda _device: TWO)
    results, _ = go(path, tmp_path)
    assert {own.numeric_class for own in results} == {TWO}
    (mine,) = results.other_classes
    both = everything(home(tmp_path))
    assert both[Path(other_plan_path(mine))] == first[Path("plan.json")]
    for name, data in first.items():
        assert name.parts[0] in ("derived", "plan.json") or both[name] == data
    # The plan of each machine leads where it runs, and finds its cells finished.
    monkeypatch.undo()
    again, watch = go(path, tmp_path)
    assert (watch.cells, again.numeric_class, again.other_classes) == ([], mine, (TWO,))


# -- what is refused --------------------------------------------------------------------------------------------------

REFUSED = {
    "name": ({"suite": {"name": "other"}}, "'mnist' and 'other'"),
    "suite": ({"suite": {"name": "mnist", "attacks": [1]}}, "differ in attacks"),
    "harness": ({"harness": {"source": "x"}}, "harness is not the same code"),
    "data": ({"data": "d" * 64}, "data are not the same"),
    "plugin": ({"plugins": {"attack:x/y": {"source": "2"}}}, "attack:x/y"),
    "weights": ({"checkpoints": {"net.safetensors": "2"}}, "net.safetensors"),
    "evidence": ({"evidence": {"level": "full", "records": []}}, "--evidence was off and full"),
}


@pytest.mark.parametrize("plan", REFUSED)
def test_results_of_different_suites_or_code_are_refused(tmp_path, plan):
    first = {
        "data": "c" * 64,
        "plugins": {"attack:x/y": {"source": "1"}},
        "checkpoints": {"net.safetensors": "1"},
    }
    directory(tmp_path / "a", clean(), plan=first)
    change, said = REFUSED[plan]
    directory(tmp_path / "b", clean(), plan={**first, **change})
    done = merge(tmp_path, "a", "b")
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert said in line
    assert str(tmp_path / "a" / "plan.json") in line
    assert not (tmp_path / "merged").exists()


def test_another_limit_is_refused_though_the_suite_says_nothing_of_it(tmp_path):
    directory(tmp_path / "a", clean())
    directory(tmp_path / "b", replace(clean(), key="f" * 64))
    done = merge(tmp_path, "a", "b")
    assert done.code == 2
    assert "--limit" in done.err
    assert str(clean().cell) in done.err


def test_where_to_write_is_checked_before_anything_is_written(tmp_path):
    for name in ("a", "b", "full"):
        directory(tmp_path / name, clean())
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = everything(tmp_path)
    both = (tmp_path / "a", tmp_path / "b")
    for into in ("full", "a", "a/inside", ".", "link"):
        done = aubench("merge", *both, "--into", tmp_path / into)
        assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert aubench("merge", both[0], both[0]).code == 2
    assert aubench("merge", both[0], tmp_path / "nowhere").code == 2
    assert aubench("merge", both[0], tmp_path / "empty").code == 3
    assert everything(tmp_path) == before
    assert aubench("merge", *both, "--into", tmp_path / "empty").code == 0


@pytest.mark.parametrize("into", [(), ("--into", "merged")], ids=["in place", "into another"])
def test_a_link_anywhere_is_refused_before_anything_is_written(tmp_path, into):
    directory(tmp_path / "a", clean())
    directory(tmp_path / "b", attacked())
    (tmp_path / "a" / "extra").symlink_to("/etc")
    before = everything(tmp_path / "b"), sorted(own.name for own in (tmp_path / "a").rglob("*") if own.is_file())
    done = aubench(
        "merge", tmp_path / "a", tmp_path / "b", *[str(tmp_path / "merged") if own == "merged" else own for own in into]
    )
    assert (done.code, len(done.err.splitlines())) == (3, 1)
    after = everything(tmp_path / "b"), sorted(own.name for own in (tmp_path / "a").rglob("*") if own.is_file())
    assert after == before
    assert not (tmp_path / "merged").exists()


def test_links_in_a_circle_are_no_place_for_results(tmp_path):
    directory(tmp_path / "a", clean())
    directory(tmp_path / "b", attacked())
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    done = aubench("merge", tmp_path / "a", tmp_path / "b", "--into", tmp_path / "one")
    assert (done.code, len(done.err.splitlines())) == (2, 1)


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_no_link_and_no_pipe_is_followed(tmp_path, kind):
    for name in ("a", "b"):
        directory(tmp_path / name, clean())
    path = tmp_path / "b" / "samples"
    if kind == "folder":
        path.symlink_to(tmp_path / "a" / "cells")
    else:
        path.mkdir()
        path /= "x.safetensors"
        path.symlink_to("/etc/hostname") if kind == "link" else os.mkfifo(path)
    done = aubench("merge", tmp_path / "a", tmp_path / "b", "--into", tmp_path / "merged")
    assert (done.code, len(done.err.splitlines())) == (3, 1)
    assert str(path) in done.err
    assert not (tmp_path / "merged").exists()


def test_results_of_a_newer_release_are_not_merged(tmp_path):
    for name in ("a", "b"):
        directory(tmp_path / name, clean())
    path = tmp_path / "b" / cell_path(clean().key, clean().cell)
    write_json(path, {**read_json(path), "schema": "aubench.cell/3"})
    done = merge(tmp_path, "a", "b")
    assert done.code == 3
    assert "aubench.cell/3" in done.err
    assert not (tmp_path / "merged").exists()


FIELDS = (
    "schema",
    "suite",
    "suite_sha256",
    "data",
    "harness",
    "numeric_class",
    "checkpoints",
    "plugins",
    "cells",
    "evidence",
)


@pytest.mark.parametrize("field", FIELDS)
def test_a_plan_that_holds_anything_else_is_refused_in_one_line(tmp_path, field):
    directory(tmp_path / "a", clean())
    directory(tmp_path / "b", clean())
    path = tmp_path / "b" / "plan.json"
    plan = read_json(path)
    values = [None, 1, "x", [], [["a", "b"]], {}, {"seeds": 1}, {"level": [], "records": [{}]}, {"x": float(2**70)}]
    for number, value in enumerate([*values, ...]):
        write_json(
            path,
            {name: own for name, own in plan.items() if name != field} | ({field: value} if value is not ... else {}),
        )
        done = aubench("merge", tmp_path / "a", tmp_path / "b", "--into", tmp_path / f"merged-{number}")
        assert done.code in (0, 2, 3)
        assert len(done.err.splitlines()) == (done.code != 0)
        assert (tmp_path / f"merged-{number}").exists() == (done.code == 0)
        assert aubench("show", tmp_path / "b", "--json").code in (0, 3)


# -- what is damaged --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_a_damaged_record_is_named_kept_and_counts_for_nothing(tmp_path, order):
    for name in ("a", "b"):
        directory(tmp_path / name, clean(), attacked())
    name = cell_path(attacked().key, attacked().cell)
    (tmp_path / "a" / name).write_bytes((tmp_path / "a" / name).read_bytes()[:-40])
    done = merge(tmp_path, *order)
    assert done.code == 3
    assert f"warning: {tmp_path / 'a' / name}" in done.err
    assert load_results(tmp_path / "merged").records == load_results(tmp_path / "b").records
    assert load_results(tmp_path / "merged").damaged == ()


def test_a_record_that_is_damaged_everywhere_comes_along_and_is_named(tmp_path):
    for name in ("a", "b"):
        directory(tmp_path / name, clean(), attacked())
        path = tmp_path / name / cell_path(attacked().key, attacked().cell)
        path.write_text("{" + name)
    assert merge(tmp_path, "a", "b").code == 3
    assert len(load_results(tmp_path / "merged").damaged) == 1


def test_a_record_under_another_cells_name_counts_for_nothing(tmp_path):
    for name in ("a", "b"):
        directory(tmp_path / name, clean(), attacked())
    own = tmp_path / "a" / cell_path(attacked().key, attacked().cell)
    shutil.copyfile(tmp_path / "a" / cell_path(clean().key, clean().cell), own)
    done = merge(tmp_path, "a", "b")
    assert done.code == 3
    assert "holds another cell than its name says" in done.err
    assert len(load_results(tmp_path / "merged")) == 2


def test_an_altered_machine_record_gives_way_to_the_sound_one(tmp_path):
    for name in ("a", "b"):
        directory(tmp_path / name, clean())
    (path,) = (tmp_path / "a" / "env").iterdir()
    sound = path.read_bytes()
    path.write_bytes(sound.replace(b'"cores": 2', b'"cores": 64'))
    assert merge(tmp_path, "a", "b").code == 3
    assert (tmp_path / "merged" / "env" / path.name).read_bytes() == sound


def test_a_journal_goes_on_and_another_of_its_name_is_kept(tmp_path):
    lines = {"a": b"one\n", "b": b"one\ntwo\n", "c": b"another\n"}
    for name, data in lines.items():
        directory(tmp_path / name, clean())
        path = tmp_path / name / "journal" / "host-1-20260101T000000Z.jsonl"
        path.parent.mkdir()
        path.write_bytes(data)
    assert aubench("merge", *(tmp_path / name for name in lines), "--into", tmp_path / "merged").code == 0
    assert files(tmp_path / "merged", "journal").popitem()[1] == lines["b"]
    assert files(tmp_path / "merged", "beside").popitem()[1] == lines["c"]


def test_what_is_no_result_stays_and_is_named(tmp_path):
    for name in ("a", "b"):
        directory(tmp_path / name, clean())
    (tmp_path / "b" / "notes.txt").write_text("mine")
    done = aubench("merge", tmp_path / "a", tmp_path / "b", "--into", tmp_path / "merged")
    assert done.code == 0
    assert done.err == f"warning: {tmp_path / 'b' / 'notes.txt'}: no result, and not merged\n"


# -- several at once --------------------------------------------------------------------------------------------------


def test_a_directory_that_a_run_writes_gains_nothing_meanwhile(tmp_path):
    for name in ("a", "b"):
        directory(tmp_path / name, clean())
    with results_lock(tmp_path / "a"):
        done = aubench("merge", tmp_path / "a", tmp_path / "b")
        assert (done.code, len(done.err.splitlines())) == (4, 1)
        assert str(os.getpid()) in done.err
        # Reading it is no harm: what is finished is taken.
        assert aubench("merge", tmp_path / "a", tmp_path / "b", "--into", tmp_path / "merged").code == 0
    assert aubench("merge", tmp_path / "a", tmp_path / "b").code == 0


def test_two_merges_into_one_place_and_what_a_killed_one_left(tmp_path):
    for name in ("a", "b"):
        directory(tmp_path / name, clean())
    left = tmp_path / ".merged.merging.tmp"
    (left / "cells").mkdir(parents=True)
    (left / "cells" / "half.json").write_text("{")
    with lock(tmp_path / ".merged.merging.lock"):
        done = merge(tmp_path, "a", "b")
        assert (done.code, len(done.err.splitlines())) == (4, 1)
        assert left.exists()
    assert merge(tmp_path, "a", "b").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "merged"]
    derived = set(files(tmp_path / "merged", "derived"))
    assert everything(tmp_path / "merged").keys() - derived == everything(tmp_path / "a").keys()


# -- a disk that gives out --------------------------------------------------------------------------------------------


def writes(monkeypatch, left):
    """Let so many files be written, then none."""
    real, count = merge_write.write_bytes, [left]

    def write(path, data):
        count[0] -= 1
        if count[0] < 0:
            raise WriteError(f"{path}: cannot be written (No space left on device)")
        real(path, data)

    monkeypatch.setattr(merge_write, "write_bytes", write)
    return count


@pytest.mark.parametrize("place_of_failure", range(5))
def test_a_disk_that_gives_out_leaves_no_half_of_a_new_directory(tmp_path, monkeypatch, place_of_failure):
    directory(tmp_path / "a", clean(), missing=[attacked().cell], plan={})
    directory(tmp_path / "b", clean(), attacked(), numeric=TWO)
    before = everything(tmp_path)
    writes(monkeypatch, place_of_failure)
    done = aubench("merge", tmp_path / "a", tmp_path / "b", "--into", tmp_path / "merged")
    assert (done.code, len(done.err.splitlines())) == (3, 1)
    assert everything(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_merge_that_was_cut_off_in_place_goes_on_from_there(tmp_path, monkeypatch):
    records = [made(record(place(seed=seed), range(seed + 1))) for seed in range(4)]
    places = [own.cell for own in records]

    def write(folder):
        for name, own in (("a", records[:2]), ("b", records[2:])):
            keys = [{"key": made(own).key, "cell": own.cell.__dict__} for own in records]
            directory(folder / name, *own, plan={"cells": keys})

    write(tmp_path / "calm")
    assert aubench("merge", tmp_path / "calm" / "a", tmp_path / "calm" / "b").code == 0
    assert [own.cell for own in load_results(tmp_path / "calm" / "a")] == places
    for failing in range(3):
        folder = tmp_path / str(failing)
        write(folder)
        count = writes(monkeypatch, failing)
        done = aubench("merge", folder / "a", folder / "b")
        if count[0] < 0:
            assert done.code == 3
            assert [own.cell for own in load_results(folder / "a")][:2] == places[:2]
        monkeypatch.undo()
        assert aubench("merge", folder / "a", folder / "b").code == 0
        assert everything(folder / "a") == everything(tmp_path / "calm" / "a")


EFFECTS = [name for name, own in vars(effects).items() if getattr(own, "__module__", "") == effects.__name__]


def killed_after(count, command):
    """Run a command in a process that dies after so many effects on the disk; return whether it came to its end."""
    child = os.fork()
    if child == 0:
        left = [count]

        def dying(real):
            def effect(*arguments):
                if left[0] == 0:
                    os._exit(9)
                left[0] -= 1
                return real(*arguments)

            return effect

        for name in EFFECTS:
            setattr(effects, name, dying(getattr(effects, name)))
        os._exit(aubench(*command).code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 9)
    return os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("in_place", [False, True], ids=["into", "in-place"])
def test_killed_after_any_effect_on_the_disk_the_same_command_gives_the_same_bytes(
    tmp_path, monkeypatch, in_place, stride
):
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)  # it is counted, but a killed process loses no page
    keys = [{"key": own.key, "cell": own.cell.__dict__} for own in (clean(), attacked())]

    def write(folder):
        directory(folder / "a", clean(), plan={"cells": keys})
        directory(folder / "b", attacked(), threads=2, plan={"cells": keys})
        return ["merge", folder / "a", folder / "b", *([] if in_place else ["--into", folder / "merged"])]

    result = "a" if in_place else "merged"
    command = write(tmp_path / "calm")
    assert aubench(*command).code == 0
    wanted = everything(tmp_path / "calm" / result)
    for count in range(0, 1000, stride):
        folder = tmp_path / str(count)
        command = write(folder)
        before = [everything(folder / name) for name in ("a", "b")]
        finished = killed_after(count, command)
        if not in_place:
            assert [everything(folder / name) for name in ("a", "b")] == before
            there = everything(folder / result) if (folder / result).exists() else None
            assert there in (None, wanted)
        else:
            nothing_lost(before[:1], everything(folder / "a"))
        if not (finished or (folder / result).exists()) or in_place:
            assert aubench(*command).code == 0
        assert everything(folder / result) == wanted
        if finished:
            break
    assert finished
    assert count > 20, count
