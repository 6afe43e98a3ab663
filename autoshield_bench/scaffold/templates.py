"""The files of a new plugin distribution, as ``string.Template`` texts.

What they fill in: ``$name`` (of the plugin), ``$distribution``, ``$module``, ``$class_name``, ``$kind``, ``$Kind``,
``$spec`` (its declarations), ``$hook``, ``$harness`` (version).
"""

from __future__ import annotations

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$distribution"
version = "0.1.0"
description = "The $kind $name for autoshield-bench"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["autoshield-bench>=$harness"]

[project.optional-dependencies]
test = ["pytest>=8.3"]

[project.entry-points.autoshield_bench]
$name = "$module.manifest"

[tool.setuptools]
packages = ["$module"]

[tool.pytest.ini_options]
testpaths = ["tests"]
"""

README = """\
# $distribution

The $kind `$name` for autoshield-bench.

```
pip install -e ".[test]"
pytest                            # the contract kit: does it keep the rules?
aubench plugins check $name       # the same on the console
```

Use it in a suite:

```toml
$suite
```

| file | what it is for |
|---|---|
| `$module/$kind.py` | the $kind itself; the typed fields of its dataclass are the parameters of a suite |
| `$module/manifest.py` | what it declares; light, since listing plugins imports it |
| `tests/test_contract.py` | the contract kit; known failures go here, each with its reason |
"""

INIT = '''\
"""The $kind ``$name`` for autoshield-bench."""
'''

MANIFEST = '''\
"""What this distribution offers. Imports nothing heavy: listing plugins imports this module."""

from __future__ import annotations

from collections.abc import Iterator

from autoshield_bench.contracts import ${Kind}Spec
from autoshield_bench.hookspecs import hookimpl

CONTRACT = 1


@hookimpl
def $hook() -> Iterator[${Kind}Spec]:
    """Yield the $kind."""
    yield ${Kind}Spec(
        name="$name",
        factory="$module.$kind:$class_name",
        summary="One line for `aubench plugins list`.",
$spec    )
'''

TEST = '''\
"""The contract of autoshield-bench: one test for every rule."""

from __future__ import annotations

import pytest

from autoshield_bench.testing import ${Kind}Contract


class Test$class_name(${Kind}Contract):
    known_failures = {}  # such as {"batch-invariant": "normalises by the batch, as the paper does"}

    @pytest.fixture
    def plugin(self):
        return "$distribution/$name"  # or (the same, {"key": value}) for other parameters
'''

ATTACK = '''\
"""Signed gradient steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.balls import Ball
from autoshield_bench.contracts import Attack, AttackRequest
from autoshield_bench.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class $class_name(Attack):
    """Steps along the sign of the gradient, projected back into the ball."""

    steps: int = 10
    """Gradient steps."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ParameterError("steps", f"{self.steps} is too small; give at least 1")

    def run(self, request: AttackRequest) -> Tensor:
        """Return the last point. Randomness, where an attack needs some, comes from ``request.rng``."""
        from torch.nn import functional

        def loss(logits: Tensor) -> Tensor:
            return functional.cross_entropy(logits, request.labels, reduction="none")

        ball = Ball(request.images, request.threat)
        length = 2.5 * request.threat.eps / self.steps
        x = request.images
        for _step in range(self.steps):
            x = ball.project(x + length * request.target.loss_gradient(x, loss).gradient.sign())
        return x

    def gradient_steps(self) -> int:
        """Return the gradient evaluations per image, for cost estimates."""
        return self.steps
'''

DEFENSE = '''\
"""A blur in front of the classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.contracts import Defense
from autoshield_bench.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor

    from autoshield_bench.seeding import ImageRandom


@dataclass(frozen=True, kw_only=True)
class $class_name(Defense):
    """Mixes each pixel with the mean of its 3x3 neighbourhood."""

    strength: float = 0.5
    """Share of the neighbourhood: 0 changes nothing, 1 is a box blur."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ParameterError("strength", f"{self.strength:g} is not between 0 and 1")

    def purify(self, x: Tensor, rng: ImageRandom) -> Tensor:
        """Return the blurred images. Randomness, where a defense needs some, comes from ``rng``."""
        from torch.nn import functional

        from autoshield_bench.straight_through import clip_to_range

        around = functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return clip_to_range((1 - self.strength) * x + self.strength * around)
'''

METRIC = '''\
"""Mean absolute change of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoshield_bench.contracts import MetricValues, PairMetric

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class $class_name(PairMetric):
    """Mean absolute difference over all values of an image, in float64."""

    def per_image(self, reference: Tensor, other: Tensor) -> MetricValues:
        """Return one value per pair; ``reference`` is the clean image."""
        return MetricValues(values=(other.double() - reference.double()).abs().flatten(1).mean(1))

    def notes(self) -> str:
        """Return what a reader must know about the value."""
        return "data range 1.0"
'''

SUITES = {
    "attack": '[[attacks]]\nuse = "$name"\naccess = ["gray-box", "white-box"]\nparams = { steps = 10 }',
    "defense": '[[defenses]]\nuse = "$name"\nparams = { strength = 0.5 }',
    "metric": '[[metrics]]\nuse = "$name"',
}

SPECS = {
    "attack": '        norms=("linf",),\n',
    "defense": '        differentiable=True,\n        stochastic=False,\n        trained_on="nothing",\n',
    "metric": '        looks_at="pair",\n        direction="lower",\n        range=(0, 1),\n',
}

IMPLEMENTATIONS = {"attack": ATTACK, "defense": DEFENSE, "metric": METRIC}
