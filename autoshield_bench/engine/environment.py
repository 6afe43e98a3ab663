"""The machine and the versions behind a result: stored once, recorded by hash. No environment variables, no paths."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from autoshield_bench.numeric import numeric_class, processor, resolve_device
from autoshield_bench.store import content_key, write_json

_LIBRARIES = (
    "autoshield-bench",
    "torch",
    "torchvision",
    "numpy",
    "scikit-image",
    "scikit-learn",
    "lpips",
    "safetensors",
)


def record_environment(directory: Path, device: str, threads: int, batch_size: int) -> str:
    """Write ``env/<hash>.json`` below a results directory and return the hash."""
    facts = {
        "schema": "aubench.env/1",
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
        "precision": "float32",
        "deterministic_algorithms": True,
    }
    name = content_key(facts)[:16]
    path = directory / "env" / f"{name}.json"
    if not path.exists():
        write_json(path, facts)
    return name


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
