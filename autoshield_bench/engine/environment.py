"""Where a result comes from: the machine and the versions behind it, and what of its origin goes into its record.

``env/<hash>.json`` holds what may differ between two runs that give the same numbers, and is stored once; a record
names it by its hash. What stands in a record itself follows from the cell. No environment variables, no host or user
names, no paths in either.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoshield_bench.contracts import CONTRACT
from autoshield_bench.migration import ENV
from autoshield_bench.numeric import numeric_class, processor, resolve_device
from autoshield_bench.source import harness_hash
from autoshield_bench.store import content_key, write_json
from autoshield_bench.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from autoshield_bench.engine.data import Data

_LIBRARIES = (
    "autoshield-bench",
    "torch",
    "torchvision",
    "numpy",
    "scikit-image",
    "scikit-learn",
    "lpips",
    "safetensors",
    "pillow",
)


def record_environment(directory: Path, device: str, threads: int, batch_size: int) -> str:
    """Write ``env/<hash>.json`` below a results directory and return the hash."""
    facts = {
        "schema": ENV.current,
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "device": device,
        "accelerator": _accelerator(device),
        "numeric_class": numeric_class(resolve_device(device)),
        "threads": threads,
        "evaluation_batch_size": batch_size,
        "torch": _torch_facts(device),
        "precision": _precision(device),
        "determinism": _determinism(),
    }
    name = content_key(facts)[:16]
    path = directory / "env" / f"{name}.json"
    if not path.exists():
        write_json(path, facts)
    return name


@dataclass
class Origin:
    """What a record says of its origin, the same in every run that gives the same numbers."""

    env: str
    """Hash of the machine record."""
    numeric_class: str
    dataset: Mapping[str, Any]
    """Identity of the data set's plugin."""
    data: Data
    _hashes: dict[int, dict[str, Any]] = field(default_factory=dict)

    def harness(self) -> dict[str, Any]:
        """Return which harness it was."""
        return {"version": __version__, "contract": CONTRACT, "source": harness_hash()}

    def inputs(self, images: int) -> dict[str, Any]:
        """Return the data set and SHA-256 of the first ``images`` test images in the order of subsets.

        ``images``: float32 in [0, 1], little-endian, as the classifier gets them; ``labels``: int64, likewise; both
        in ascending order of the images' indices.
        """
        if images not in self._hashes:
            subset = self.data.test_subset(images)
            self._hashes[images] = {
                "dataset": dict(self.dataset),
                "images": _tensor_sha256(self.data.test_images(subset)),
                "labels": _tensor_sha256(self.data.test_labels[subset]),
            }
        return self._hashes[images]


def _tensor_sha256(tensor: Tensor) -> str:
    array = tensor.cpu().contiguous().numpy()
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<"), copy=False).data).hexdigest()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _accelerator(device: str) -> str | None:
    if device != "cuda":
        return None
    import torch

    return torch.cuda.get_device_name()


def _torch_facts(device: str) -> dict[str, Any]:
    import torch

    return {
        "build": torch.__version__,
        "source": torch.version.git_version,
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "interop_threads": torch.get_num_interop_threads(),
        "cuda": torch.version.cuda if device == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if device == "cuda" else None,  # type: ignore[no-untyped-call]
    }


def _precision(device: str) -> dict[str, Any]:
    """Return in which numbers is computed: a GPU may round float32 to TF32 (10 bits of mantissa) on its own."""
    import torch

    facts: dict[str, Any] = {"dtype": "float32", "matmul": torch.get_float32_matmul_precision()}
    if device == "cuda":
        facts["tf32_matmul"] = torch.backends.cuda.matmul.allow_tf32
        facts["tf32_convolution"] = torch.backends.cudnn.allow_tf32
    return facts


def _determinism() -> dict[str, Any]:
    import torch

    return {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
    }
