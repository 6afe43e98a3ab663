"""The suites that ship with the package, found by name from any folder."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def shipped_suites() -> dict[str, Path]:
    """Return the shipped suites by name: inside an installed package, or beside it in a source checkout."""
    folder = next((path for path in (_PACKAGE / "suites", _PACKAGE.parent / "suites") if path.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.toml"))} if folder else {}
