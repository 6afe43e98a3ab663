"""What is left as it was: imports, warnings, logging, the environment; and what parameters and results may be."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from autoshield_bench.errors import CellError, ParameterError
from cases import Case, attack, foolbox, registry, run
from torch import Tensor, nn

from aubench_foolbox import manifest, returned
from aubench_foolbox.quiet import quiet

SPECS = list(manifest.aubench_attacks())


class AlwaysZero(nn.Module):
    """Knows one class."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)


@contextmanager
def talkative_root() -> Iterator[logging.Logger]:
    """The root logger without handlers, pytest's own included (no fixture: they come later), and everything enabled."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers
    root.handlers = []
    root.setLevel(logging.DEBUG)  # not by assignment: loggers remember which levels are enabled
    try:
        yield root
    finally:
        root.setLevel(level)
        root.handlers = handlers


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:foolbox", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_the_manifest_imports_neither_torch_nor_foolbox() -> None:
    done = python(
        "import sys; from aubench_foolbox import manifest; print(len(list(manifest.aubench_attacks())));"
        "print([name for name in ('torch', 'numpy', 'foolbox', 'eagerpy', 'scipy', 'git') if name in sys.modules])"
    )
    assert done.stdout.split("\n")[:2] == [str(len(SPECS)), "[]"], done.stderr


def test_making_an_attack_does_not_import_foolbox() -> None:
    done = python(
        "import sys; from autoshield_bench.registry import Registry; found = Registry.discover();"
        "made = [found.make(one, {}) for one in found.of_kind('attack') if one.name.startswith('foolbox-')];"
        "print(len(made), 'foolbox' in sys.modules)"
    )
    assert done.stdout.split() == [str(len(SPECS)), "False"], done.stderr


def test_foolbox_is_imported_without_a_word_and_without_git() -> None:
    """scipy warns of a module that foolbox imports, and GitPython refuses where there is no git."""
    done = python(
        "import os, torch, warnings; before = list(warnings.filters); import aubench_foolbox.library;"
        "print(warnings.filters == before, 'GIT_PYTHON_REFRESH' in os.environ)",
        PATH="",
    )
    assert (done.stdout.split(), done.stderr) == (["True", "False"], "")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_run_warns_and_logs_nothing_and_leaves_both_as_they_were(
    digits: Case, spec: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    case = digits.part(slice(6))
    labels = case.labels.clone()
    labels[0] = (labels[0] + 1) % 10
    case = Case(case.network, case.images, labels)
    request, _ = case.request(
        spec.name,
        spec.norms[0],
        0.1 if spec.search == "fixed-budget" else None,
        queries=1500 if spec.needs == "labels" else None,
    )
    params = {"steps": 20} if spec.name == "foolbox-cw" else {}
    with warnings.catch_warnings(), talkative_root() as root:
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        run(spec.name, request, **params)
        assert warnings.filters == filters
        assert (root.handlers, root.filters) == ([], [])
    assert capfd.readouterr() == ("", "")


def test_what_foolbox_would_log_is_dropped_and_what_others_log_is_not(
    digits: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: seen.append(record.getMessage()))
    case = digits.part(slice(2))
    request, _ = case.request("foolbox-deepfool", "l2")
    with talkative_root() as root:
        root.addHandler(handler)
        foolbox.attacks.L2DeepFoolAttack().run(case.model(), case.images, case.labels)
        assert seen == ["Only testing the top-10 classes"]
        run("foolbox-deepfool", request)
        with quiet():
            logging.info("kept")
    assert seen == ["Only testing the top-10 classes", "kept"]


def test_what_foolbox_would_warn_of_is_dropped_and_what_others_warn_of_is_not() -> None:
    case = Case(AlwaysZero().eval(), torch.full((1, 1, 8, 8), 0.5), torch.tensor([0]))
    library = foolbox.attacks.LinearSearchBlendedUniformNoiseAttack(directions=2, steps=2)
    with pytest.warns(UserWarning, match="failed to draw"):
        library.run(case.model(), case.images, case.labels)
    request, _ = case.request("foolbox-boundary", "l2", queries=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run("foolbox-boundary", request), case.images)
        with quiet(), pytest.raises(UserWarning, match="kept"):
            warnings.warn("kept", stacklevel=1)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_an_empty_batch_costs_nothing(digits: Case, spec: Any) -> None:
    request, counter = digits.part([]).request(spec.name, spec.norms[0], queries=10 if spec.needs == "labels" else None)
    assert run(spec.name, request).shape == (0, 1, 8, 8)
    assert counter.total() == 0


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("foolbox-pgd", "steps", 0),
        ("foolbox-pgd", "step_size", 0.0),
        ("foolbox-pgd", "relative_step_size", -1.0),
        ("foolbox-mim", "momentum", -0.1),
        ("foolbox-deepfool", "candidates", 1),
        ("foolbox-deepfool", "overshoot", -0.1),
        ("foolbox-cw", "binary_search_steps", 0),
        ("foolbox-cw", "initial_const", 0.0),
        ("foolbox-ddn", "gamma", 1.0),
        ("foolbox-fmn", "max_step_size", 0.0),
        ("foolbox-boundary", "step_adaptation", 1.0),
        ("foolbox-boundary", "start_directions", 0),
        ("foolbox-hop-skip-jump", "initial_gradient_eval_steps", 0),
        ("foolbox-hop-skip-jump", "gamma", -1.0),
    ],
)
def test_a_parameter_that_cannot_be_used_is_named(name: str, key: str, value: float) -> None:
    with pytest.raises(ParameterError) as caught:
        attack(name, **{key: value})
    assert caught.value.key == key


def test_two_step_sizes_are_one_too_many() -> None:
    with pytest.raises(ParameterError, match="not both"):
        attack("foolbox-pgd", step_size=0.1, relative_step_size=0.1)


def test_a_choice_that_foolbox_does_not_know_is_refused() -> None:
    plugin = registry().find("attack", "foolbox-deepfool")
    (problem,) = registry().check_params(plugin, {"loss": "hinge"})
    assert problem[0] == "loss"


def test_rounding_is_projected_away_and_more_than_rounding_is_an_error(digits: Case) -> None:
    request, _ = digits.part(slice(2)).request("foolbox-pgd", "linf", 0.1)
    gray = torch.full_like(request.images, 0.5)
    request = type(request)(**{**vars(request), "images": gray})
    inside = returned.in_ball(request, gray + 0.1 + 5e-6)
    assert float((inside.double() - gray.double()).max()) <= 0.1
    with pytest.raises(CellError, match=r"left the linf ball of eps 0\.1 in 2 of 2"):
        returned.in_ball(request, gray + 0.1 + 5e-5)
    wide = type(request)(**{**vars(request), "threat": type(request.threat)(norm="linf", eps=1.0)})
    with pytest.raises(CellError, match=r"from -0\.0099"):
        returned.nearest(wide, torch.full_like(gray, -0.01), torch.tensor([True, True]))


def test_where_a_point_is_not_finite_the_clean_image_stands(digits: Case) -> None:
    request, _ = digits.part(slice(3)).request("foolbox-deepfool", "l2")
    points = request.images * 0.5
    points[1, 0, 0, 0] = torch.nan
    kept = returned.nearest(request, points, torch.tensor([True, True, False]))
    assert torch.equal(kept[0], points[0])
    assert torch.equal(kept[1:], request.images[1:])
    ball, _ = digits.part(slice(3)).request("foolbox-pgd", "l2", 100.0)
    assert torch.equal(returned.in_ball(ball, points)[1], ball.images[1])
