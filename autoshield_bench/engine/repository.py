"""The git commit that a suite was run from, where its folder lies in a repository."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

_PATIENCE = 10.0
"""Seconds that git may take; without its answer a run goes on."""


def commit_of(folder: Path) -> dict[str, Any] | None:
    """Return ``commit``, and whether tracked ``*.toml`` and ``*.py`` files are ``modified``; None outside a repository.

    Results that a run writes into its own repository change neither, and no path, branch or remote is told.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit.strip()):
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/*.toml", ":/*.py")
    return {"commit": commit.strip(), "modified": None if changed is None else bool(changed.strip())}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says, None where there is no git, no repository or no answer."""
    # GIT_DIR and its kin would name another repository than the folder's; a program that the repository's own
    # configuration names as file system monitor is not run.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=False, env=environment
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
