"""Where things lie unless the user says otherwise."""

from __future__ import annotations

import os
from pathlib import Path

APPLICATION = "autoshield-bench"


def data_dir() -> Path:
    """Return the data directory: ``AUBENCH_DATA``, else ``data`` in the user's cache directory."""
    named = os.environ.get("AUBENCH_DATA")
    return Path(named).expanduser() if named else cache_dir() / "data"


def cache_dir() -> Path:
    """Return the artifact cache: ``AUBENCH_CACHE``, else the user's cache directory."""
    named = os.environ.get("AUBENCH_CACHE")
    if named:
        return Path(named).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path(APPLICATION)
