"""Where things lie unless the user says otherwise."""

from __future__ import annotations

import os
from pathlib import Path

from autoshield_bench.errors import StoreError

APPLICATION = "autoshield-bench"


def data_dir() -> Path:
    """Return the data directory: ``AUBENCH_DATA``, else ``data`` in the user's cache directory."""
    return _named("AUBENCH_DATA") or cache_dir() / "data"


def cache_dir() -> Path:
    """Return the artifact cache: ``AUBENCH_CACHE``, else the user's cache directory."""
    named = _named("AUBENCH_CACHE")
    if named is not None:
        return named
    from platformdirs import user_cache_path

    return user_cache_path(APPLICATION)


def _named(variable: str) -> Path | None:
    value = os.environ.get(variable)
    try:
        return Path(value).expanduser() if value else None
    except RuntimeError as error:
        raise StoreError(f"{variable}={value}: {error}; name a directory that exists") from error
