"""What the manifest promises, and what the parameters refuse."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from autoshield_bench.contracts import Defense
from autoshield_bench.errors import ParameterError
from autoshield_bench.registry import Registry
from autoshield_bench.seeding import ImageRandom

from aubench_art.defenses.feature_squeezing import FeatureSqueezing
from aubench_art.defenses.jpeg import Jpeg
from aubench_art.defenses.spatial_smoothing import SpatialSmoothing
from aubench_art.defenses.total_variation import TotalVariation

NAMES = ["art-feature-squeezing", "art-jpeg", "art-spatial-smoothing", "art-total-variation"]

LIST = """
import sys
from autoshield_bench.registry import Registry
registry = Registry.discover()
print(*sorted(p.name for p in registry.of_kind("defense") if p.distribution == "aubench-art"), sep=",")
print(*sorted({"torch", "art", "numpy", "scipy", "sklearn", "PIL"} & set(sys.modules)), sep=",")
print(*registry.problems)
"""


def test_listing_imports_neither_torch_nor_art() -> None:
    done = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, check=True, timeout=120)
    names, heavy, problems = done.stdout.splitlines()
    assert set(NAMES) <= set(names.split(","))
    assert heavy == ""
    assert "aubench-art" not in problems


@pytest.mark.parametrize("name", NAMES)
def test_loading_a_defense_to_read_its_parameters_does_not_import_art(name: str) -> None:
    code = (
        "import sys; from autoshield_bench.registry import Registry; r = Registry.discover(); "
        f"p = r.find('defense', 'aubench-art/{name}'); assert not r.check_params(p, {{}}); "
        "print(r.filled_params(p, {})); assert 'art' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("factory", "key", "value"),
    [
        (Jpeg, "quality", 0),
        (Jpeg, "quality", 101),
        (FeatureSqueezing, "bit_depth", 0),
        (FeatureSqueezing, "bit_depth", 65),
        (SpatialSmoothing, "window_size", 0),
        (TotalVariation, "prob", 1.5),
        (TotalVariation, "norm", 3),
        (TotalVariation, "lamb", -0.1),
        (TotalVariation, "lamb", float("nan")),
        (TotalVariation, "solver", "BFGS"),
        (TotalVariation, "max_iter", 0),
    ],
)
def test_a_parameter_that_cannot_be_used_is_refused(factory: type[Defense], key: str, value: object) -> None:
    with pytest.raises(ParameterError) as caught:
        factory(**{key: value})
    assert caught.value.key == key


@pytest.mark.parametrize("defense", [Jpeg(), FeatureSqueezing(), SpatialSmoothing(), TotalVariation()], ids=str)
@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (0, 3, 7, 7), (1, 3, 1, 1), (2, 2, 9, 3), (1, 1, 28, 28)], ids=str)
def test_any_batch_of_images_goes_through(defense: Defense, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    before = x.detach().clone()
    with torch.no_grad():
        purified = defense.purify(x, ImageRandom(0, range(len(x))))
    assert purified.shape == x.shape
    assert purified.dtype == torch.float32
    assert bool(((purified >= 0) & (purified <= 1)).all())
    surrogate = defense.surrogate(x)
    (gradient,) = torch.autograd.grad(surrogate.sum(), x)
    assert surrogate.shape == x.shape
    assert bool(torch.isfinite(gradient).all())
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize("parameters", [{"prob": 0.0}, {"lamb": 0.0}, {"lamb": 1e6}, {"norm": 1}], ids=str)
def test_the_surrogate_of_total_variation_stands_extreme_parameters(parameters: dict[str, float]) -> None:
    x = torch.rand((2, 1, 12, 9), generator=torch.Generator().manual_seed(1), requires_grad=True)
    (gradient,) = torch.autograd.grad(TotalVariation(**parameters).surrogate(x).sum(), x)
    assert bool(torch.isfinite(gradient).all())
    assert bool((gradient.flatten(1) != 0).any(1).all())


def test_the_suite_in_the_readme_is_understood() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in text.split("```toml\n")[1:]]
    (suite,) = (tomllib.loads(block) for block in blocks if "[[defenses]]" in block)
    registry = Registry.discover()
    used = [stage for stage in suite["defenses"] if stage["use"].startswith("art-")]
    assert sorted({stage["use"] for stage in used}) == NAMES
    for stage in used:
        assert registry.check_params(registry.find("defense", stage["use"]), stage.get("params", {})) == []
