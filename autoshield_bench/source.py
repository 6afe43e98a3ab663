"""Hashes of source code: the part of a key that changes when somebody edits a plugin or the harness."""

from __future__ import annotations

import functools
import hashlib
import json
import uuid
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

_PACKAGE = Path(__file__).parent

_NOWHERE = uuid.uuid4().hex

_HARNESS = (
    "balls.py",
    *(f"contracts/{name}.py" for name in ("attacks", "data", "defenses", "metrics", "specs", "threat")),
    "detection.py",
    "margins.py",
    "routes.py",
    "seeding.py",
    "straight_through.py",
    "target_module.py",
    *(
        f"engine/{name}.py"
        for name in (
            "access",
            "calibration",
            "cost",
            "crafting",
            "data",
            "decoys",
            "guard",
            "integrity",
            "lean",
            "pipeline",
            "queries",
            "scoring",
            "stages",
            "training",
        )
    ),
)
"""What of the harness can change a number; the command line, the reports and the walk over the plan cannot."""


def hash_files(root: Path, files: Iterable[Path]) -> str:
    """Return one SHA-256 over names (relative to ``root``) and contents."""
    digest = hashlib.sha256()
    for file in sorted(set(files)):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


@functools.cache
def harness_hash() -> str:
    """Return the hash of the harness's own computing code."""
    return hash_files(_PACKAGE, [_PACKAGE / name for name in _HARNESS])


@functools.cache
def evidence_hash() -> str:
    """Return the hash of the checks that gate a rank, and of what they judge by and attack with."""
    judged_by = [_PACKAGE / name for name in ("joint.py", "standing.py", "statistics.py", "verdicts.py")]
    attacks = (_PACKAGE / "builtin" / "attacks").rglob("*.py")
    return hash_files(_PACKAGE, [*(_PACKAGE / "engine" / "evidence").rglob("*.py"), *judged_by, *attacks])


@functools.cache
def builtin_hash(kind: str) -> str:
    """Return the hash of the built-in plugins of one kind."""
    shared = [_PACKAGE / "builtin" / "layers.py"] if kind in {"model", "defense"} else []
    return hash_files(_PACKAGE, [*(_PACKAGE / "builtin" / f"{kind}s").rglob("*.py"), *shared])


def distribution_hash(distribution: metadata.Distribution, module_file: str | None) -> str:
    """Return the hash of an installed distribution's source.

    From its RECORD where it was installed as a wheel; from the files themselves where it is editable or keeps none.
    Scripts and metadata are left out: they carry the paths of the environment.
    """
    record = distribution.read_text("RECORD")
    if record and not is_editable(distribution):
        lines = [line for line in record.splitlines() if not line.startswith(("..", "/")) and ".dist-info/" not in line]
        source = sorted(line for line in lines if "__pycache__" not in line)
        return hashlib.sha256("\n".join(source).encode()).hexdigest()
    return module_hash(module_file)


def module_hash(module_file: str | None) -> str:
    """Return the hash of the package that a module file lies in, or of the file alone where it lies in none.

    Code without a file (typed into an interpreter) gets a hash that no other process has: never cached is better than
    wrongly cached.
    """
    if module_file is None or not Path(module_file).is_file():
        return _NOWHERE
    file = Path(module_file)
    if not (file.parent / "__init__.py").exists():
        return hash_files(file.parent, [file])
    root = file.parent
    while (root.parent / "__init__.py").exists():
        root = root.parent
    return hash_files(root.parent, root.rglob("*.py"))


def is_editable(distribution: metadata.Distribution) -> bool:
    """Return whether the distribution was installed with ``pip install -e``."""
    try:
        direct = json.loads(distribution.read_text("direct_url.json") or "{}")
    except ValueError:
        return False
    return bool(direct.get("dir_info", {}).get("editable", False)) if isinstance(direct, dict) else False
