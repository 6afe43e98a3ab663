"""``aubench plugins check``: one plugin on the console, and whatever it does stays contained."""

from __future__ import annotations

import json
import re
import textwrap

import pytest
from test_registry import HEAD, aubench, distribution, python, site  # noqa: F401 - a fixture

from autoshield_bench import hookspecs

ATTACK = """
import os, sys, time
from dataclasses import dataclass
from autoshield_bench.balls import Ball
from autoshield_bench.contracts import Attack

@hookimpl
def aubench_attacks():
    yield AttackSpec(name="odd-one", factory="{module}:OddOne", summary="s", norms=("linf",))

@dataclass(frozen=True, kw_only=True)
class OddOne(Attack):
    steps: int = 1

    def run(self, request):
        import torch
        if len(request.images) == {rows}:
            {misdeed}
        from torch.nn import functional
        loss = lambda logits: functional.cross_entropy(logits, request.labels, reduction="none")
        step = request.threat.eps * request.target.loss_gradient(request.images, loss).gradient.sign()
        return Ball(request.images, request.threat).project(request.images + step)
"""


def odd(site, misdeed: str, rows: int = 1) -> None:  # noqa: F811
    distribution(site, "odd-dist", HEAD + ATTACK.replace("{misdeed}", misdeed).replace("{rows}", str(rows)))


MISDEEDS = {
    "batch-of-one": ("len(request.images) == 1", "time.sleep(60)", "did not end within 1 s"),
    "empty-batch": ("len(request.images) == 0", "sys.exit(3)", "called sys.exit(3)"),
    "zero-eps": (
        "request.threat.eps == 0",
        "os.write(2, b'farewell'); os._exit(4)",
        "ended the process with status 4; it last said: farewell",
    ),
    "batch-invariant": ("len(request.images) == 4", "os.abort()", "was ended by signal 6"),
    "unit-range": ("request.threat.eps == 0.4", "raise ValueError('two\\n  lines')", "raised ValueError: two lines"),
}


def test_every_bad_check_is_named_and_the_others_go_on(site):  # noqa: F811
    cases = [f"elif {when}: {deed}" for when, deed, _message in MISDEEDS.values()]
    odd(site, "pass\n        " + "\n        ".join(cases), rows=-1)
    done = aubench("plugins", "check", "odd-one", "--json", "--timeout", 1)
    assert done.code == 1
    found = json.loads(done.out)
    assert (found["kind"], found["name"], found["distribution"], found["passed"]) == (
        "attack", "odd-one", "odd-dist", False,
    )  # fmt: skip
    failed = {check["check"]: check["message"] for check in found["checks"] if check["verdict"] == "failed"}
    assert set(failed) == {*MISDEEDS, "inside-ball"}  # which has the same wide ball as unit-range
    for check, (_when, _deed, message) in MISDEEDS.items():
        assert message in failed[check]
    remedies = {check["check"]: check["remedy"] for check in found["checks"]}
    assert {check for check, remedy in remedies.items() if remedy} == set(failed)
    assert "`--timeout`" in remedies["batch-of-one"]
    assert "`os._exit`" in remedies["zero-eps"]
    assert re.fullmatch(r"Look at line \d+ of \w+\.py, in `run`, and at what it calls\.", remedies["unit-range"])
    assert len({check["check"] for check in found["checks"]}) == len(found["checks"]) == 21


def test_a_plugin_that_ends_the_process_before_the_first_check_is_named(site):  # noqa: F811
    odd(site, "pass")
    (module,) = site.glob("*.py")
    text = module.read_text(encoding="utf-8").replace("    steps: int = 1", "    steps: int = os._exit(5)")
    (site / "elsewhere.py").write_text(text, encoding="utf-8")
    module.write_text(text.partition("@dataclass")[0].replace(f'"{module.stem}:', '"elsewhere:'), encoding="utf-8")
    done = aubench("plugins", "check", "odd-one", "--json")
    assert done.code == 1
    checks = {check["check"]: check["message"] for check in json.loads(done.out)["checks"]}
    assert checks == {"load": "the plugin ended the process with status 5", "quiet": ""}


LIGHT = """
import sys
from autoshield_bench.cli.main import main
code = main(["plugins", "check", "mse"])
assert not {"torch", "numpy"} & set(sys.modules)
sys.exit(code)
"""


def test_the_console_leaves_torch_to_the_other_process(tmp_path):
    done = python(LIGHT, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("15 passed, 0 failed, 1 not judged\n")


def test_a_plugin_that_prints_a_megabyte_is_named_and_does_not_reach_standard_output(site):  # noqa: F811
    odd(site, "print('x' * 2**20)")
    done = aubench("plugins", "check", "odd-one", "--json")
    assert done.code == 1
    (failed,) = [check for check in json.loads(done.out)["checks"] if check["verdict"] == "failed"]
    assert failed["check"] == "quiet"
    assert "printed 1,048,577 bytes during 'batch-of-one'" in failed["message"]
    assert "xxx" not in done.err


def test_what_to_do_stands_under_a_check_that_failed(site):  # noqa: F811
    odd(site, "torch.manual_seed(0)", rows=12)
    done = aubench("plugins", "check", "odd-one")
    lines = done.out.splitlines()
    verdicts = [line for line in lines if "failed" in line]
    assert [line.split()[1] for line in verdicts[:-1]] == ["random-state-untouched"]
    assert verdicts[-1] == lines[-1]
    below = lines[lines.index(verdicts[0]) + 1]
    assert below.startswith(14 * " " + "what to do: Draw with `request.rng.uniform` and")
    assert sum("what to do:" in line for line in lines) == 1


def test_a_plugin_that_never_stops_printing_is_ended(site):  # noqa: F811
    odd(site, "while True: print('x' * 2**16)")
    done = aubench("plugins", "check", "odd-one", "--json")
    failed = {each["check"]: each["message"] for each in json.loads(done.out)["checks"] if each["verdict"] == "failed"}
    assert set(failed) == {"batch-of-one", "quiet"}
    assert "was ended" in failed["batch-of-one"]


def test_a_sound_plugin_is_shown_check_by_check():
    done = aubench("plugins", "check", "fgsm")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith("attack fgsm of autoshield-bench ")
    assert lines[1] == "  passed      like-images"
    assert lines[-1] == "18 passed, 0 failed, 3 not judged"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fsgm"], "there is no attack 'fsgm'; did you mean \"fgsm\"?"),
        (["zzzzzzzz"], "there is no plugin 'zzzzzzzz'; `aubench plugins list` shows what there is"),
        (["fgsm", "--kind", "metric"], "there is no metric 'fgsm'"),
        (["chain"], "defense 'chain' needs the parameter 'stages'"),
        (["pgd", "--params", '{"stepz": 3}'], 'did you mean "steps"?'),
        (["pgd", "--params", "steps=3"], "--params: not JSON"),
        (["pgd", "--params", "[3]"], "--params: [3] is not a JSON object"),
        (["pgd", "--timeout", "0"], "--timeout: 0 is not positive"),
    ],
)
def test_what_cannot_be_checked_is_one_line_and_exit_code_2(arguments, message):
    done = aubench("plugins", "check", *arguments)
    assert done.code == 2
    (error,) = done.errors
    assert message in error


def test_a_name_of_two_kinds_asks_for_the_kind(site):  # noqa: F811
    distribution(
        site,
        "two-kinds",
        HEAD + '@hookimpl\ndef aubench_defenses():\n    yield DefenseSpec(name="linf", factory="x:X", summary="s")\n',
    )
    done = aubench("plugins", "check", "linf")
    assert done.code == 2
    assert "more than one plugin (defense and metric); choose one with --kind" in done.errors[0]


def test_the_short_guide_in_the_docstring_of_the_hooks_is_a_plugin(tmp_path):
    source = re.search(r"single file:\n\n(.*?)\n\nA \*spec\*", hookspecs.__doc__, re.DOTALL)[1]
    (tmp_path / "dim.py").write_text(textwrap.dedent(source), encoding="utf-8")
    done = aubench("plugins", "check", "dim", "--plugin", tmp_path / "dim.py")
    assert done.code == 0, done.out
    assert " 0 failed" in done.out.splitlines()[-1]
