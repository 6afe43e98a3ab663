"""Writes a new plugin distribution from the templates."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from autoshield_bench.errors import UsageError
from autoshield_bench.hookspecs import HOOKS
from autoshield_bench.scaffold import templates
from autoshield_bench.version import __version__

PREFIX = "aubench-"
"""Of distributions, so that a plugin named ``random`` or ``numpy`` does not hide a module of that name."""

KINDS = tuple(templates.IMPLEMENTATIONS)

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def new_plugin(name: str, kind: str, folder: Path) -> Path:
    """Write the distribution ``aubench-NAME`` below ``folder`` and return its directory. Raises UsageError."""
    name = name.removeprefix(PREFIX)
    if not _NAME.fullmatch(name) or len(name) > 40:
        raise UsageError(f"{name!r} is no plugin name: lower-case letters, digits and single hyphens, such as my-blur")
    root = folder / f"{PREFIX}{name}"
    if root.exists():
        raise UsageError(f"{root} exists already; choose another name or --dir")
    for path, text in plugin_files(name, kind).items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return root


def plugin_files(name: str, kind: str) -> dict[str, str]:
    """Return the files of a distribution: path and text."""
    distribution = f"{PREFIX}{name}"
    module = distribution.replace("-", "_")
    values = {
        "name": name,
        "distribution": distribution,
        "module": module,
        "class_name": "".join(part.capitalize() for part in name.split("-")),
        "kind": kind,
        "Kind": kind.capitalize(),
        "hook": HOOKS[kind],
        "spec": templates.SPECS[kind],
        "harness": ".".join(__version__.split(".")[:2]),
    }
    values["suite"] = Template(templates.SUITES[kind]).substitute(values)
    files = {
        "pyproject.toml": templates.PYPROJECT,
        "README.md": templates.README,
        f"{module}/__init__.py": templates.INIT,
        f"{module}/manifest.py": templates.MANIFEST,
        f"{module}/{kind}.py": templates.IMPLEMENTATIONS[kind],
        "tests/test_contract.py": templates.TEST,
    }
    return {path: Template(text).substitute(values) for path, text in files.items()}
