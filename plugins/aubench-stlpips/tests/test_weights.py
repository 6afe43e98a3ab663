"""Where the weights come from, what is refused, and what loading them leaves alone."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import pickle
import random
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from autoshield_bench.errors import Unavailable

from aubench_stlpips import metric, pretrained
from aubench_stlpips.metric import Stlpips

IMAGES = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
REMEDY = "pip install --force-reinstall --no-deps stlpips-pytorch==0.0.2"


@pytest.fixture(autouse=True)
def _nothing_loaded() -> Iterator[None]:
    metric._loaded.cache_clear()
    yield
    metric._loaded.cache_clear()


@pytest.fixture
def published() -> bytes:
    """The content of the file in the file."""
    return pretrained.weights_file("alex").read_bytes()


@pytest.fixture
def state(published: bytes) -> dict[str, torch.Tensor]:
    return torch.load(io.BytesIO(published), map_location="cpu", weights_only=True)


@pytest.fixture
def file(published: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the weights are looked for from now on; nothing is there yet."""
    path = tmp_path / "alex_shift_tolerant.pth"
    monkeypatch.setattr(pretrained, "weights_file", lambda backbone: path)
    return path


def refused() -> str:
    """Return why the metric cannot be taken; prepare and per_image must agree on it, in one line."""
    reasons = []
    for use in (Stlpips().prepare, lambda: Stlpips().per_image(IMAGES, IMAGES)):
        with pytest.raises(Unavailable) as caught:
            use()
        reasons.append(str(caught.value))
    assert reasons[0] == reasons[1]
    assert "\n" not in reasons[0]
    return reasons[0]


# What is refused --------------------------------------------------------------------------------------------------


def test_a_missing_file_is_one_line_with_the_remedy(file: Path) -> None:
    reason = Stlpips().unavailable()
    assert reason == f"ST-LPIPS with alex: there is no {file}; {REMEDY}"
    assert refused() == f"there is no {file}; {REMEDY}"


@pytest.mark.parametrize("module", ["stlpips_pytorch", "IPython", "torchsummary", "torchvision"])
def test_a_module_that_is_not_installed_is_one_line_with_the_remedy(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    reason = Stlpips().unavailable()
    assert reason is not None
    assert f"the module {module} is not installed; pip install {module.lower().replace('_', '-')}" in reason
    assert refused() in reason


def test_a_library_that_cannot_be_imported_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stlpips_pytorch.stlpips", None)
    monkeypatch.delattr("stlpips_pytorch.stlpips", raising=False)
    assert refused().startswith("stlpips-pytorch cannot be imported (")


def cut(content: bytes) -> bytes:
    return content[:-1]


def one_bit_changed(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("change", [cut, one_bit_changed, lambda content: b""], ids=["cut", "one bit", "empty"])
def test_a_file_that_is_not_the_published_one_is_refused(
    change: Callable[[bytes], bytes], published: bytes, file: Path
) -> None:
    file.write_bytes(change(published))
    reason = refused()
    assert reason.startswith(f"{file}: not the published file (its SHA-256 starts ")
    assert reason.endswith(REMEDY)


def believed(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Let a file pass for the published one, so that what stands behind the hash is tested as well."""
    monkeypatch.setattr(pretrained, "SHA256", {"alex": hashlib.sha256(file.read_bytes()).hexdigest()})


def test_every_weight_is_needed_and_none_may_be_over(
    file: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in state:
        torch.save({other: state[other] for other in state if other != name}, file)
        believed(monkeypatch, file)
        with pytest.raises(Unavailable, match="does not fit the network") as caught:
            pretrained.load("alex")
        assert f'"{name}"' in str(caught.value)
        assert "\n" not in str(caught.value)
    torch.save({**state, "net.slice6.weight": torch.zeros(1)}, file)
    believed(monkeypatch, file)
    assert 'Unexpected key(s) in state_dict: "net.slice6.weight"' in refused()


def test_a_weight_of_another_shape_is_refused(
    file: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({**state, "net.slice1.0.bias": torch.zeros(63)}, file)
    believed(monkeypatch, file)
    assert "size mismatch for net.slice1.0.bias" in refused()


class Payload:
    """Would write a file while it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_file_cannot_run_code(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "trace"
    for save in (lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2)), torch.save):
        save({"0.weight": Payload(trace)}, file)
        believed(monkeypatch, file)
        assert "cannot be read as weights" in refused()
        assert not trace.exists()


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_the_hash_is_that_of_the_wheels_own_record(backbone: str) -> None:
    files = metadata.files("stlpips-pytorch")
    assert files is not None
    entry = next(file for file in files if file.name == f"{backbone}_shift_tolerant.pth")
    assert entry.hash is not None
    assert entry.hash.mode == "sha256"
    assert base64.urlsafe_b64decode(f"{entry.hash.value}=").hex() == pretrained.SHA256[backbone]


# What is left alone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_loading_is_quiet_and_touches_nothing_global(
    backbone, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise AssertionError("a network was used")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    images = IMAGES.clone().requires_grad_()
    other = 1 - IMAGES
    kept = other.clone()
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    settings = torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(), torch.is_grad_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = Stlpips(network=backbone).per_image(images, other).values
    assert not values.requires_grad
    assert values.device.type == "cpu"
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert random.getstate() == python_state
    assert settings == (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )
    assert torch.equal(images.detach(), IMAGES)
    assert torch.equal(other, kept)
    assert capfd.readouterr() == ("", "")


def in_a_new_process(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONWARNINGS": ""}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)


def test_the_first_import_leaves_warning_filters_hooks_and_generators_alone() -> None:
    """In a process of its own, since the library and IPython are imported once."""
    done = in_a_new_process(
        "import random, sys, warnings\n"
        "import torch, torchvision\n"
        "from aubench_stlpips.metric import Stlpips\n"
        "images = torch.rand(1, 3, 64, 64)\n"
        "def state(): return (list(warnings.filters), warnings.showwarning, sys.displayhook, sys.excepthook,\n"
        "    sys.breakpointhook, random.getstate(), torch.get_rng_state().tolist(), torch.get_default_dtype())\n"
        "before = state()\n"
        "assert 'IPython' not in sys.modules\n"
        "value = Stlpips().per_image(images, 1 - images).values.item()\n"
        "assert 'IPython' in sys.modules and value > 0.01\n"
        "sys.exit(0 if state() == before else 'global state was changed')\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_listing_and_asking_imports_neither_torch_nor_the_library() -> None:
    done = in_a_new_process(
        "import sys\n"
        "from autoshield_bench.cli.main import main\n"
        "main(['plugins', 'list', '--kind', 'metric'])\n"
        "def heavy(*names): return sorted(set(names) & set(sys.modules))\n"
        "libraries = ('torch', 'torchvision', 'IPython', 'torchsummary', 'stlpips_pytorch.stlpips')\n"
        "assert not heavy(*libraries, 'stlpips_pytorch', 'numpy'), 'listing'\n"
        "from aubench_stlpips.metric import Stlpips\n"
        "metric = Stlpips(); metric.notes(); assert metric.unavailable() is None\n"
        "assert not heavy(*libraries, 'numpy'), 'asking'\n"
    )
    assert done.returncode == 0, done.stderr
    assert "stlpips" in done.stdout
    assert "nothing is downloaded" in done.stdout
