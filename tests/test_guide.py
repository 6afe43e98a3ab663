"""The guide for plugin authors is true: every file and command of docs/plugins.md, as written.

``python tests/test_guide.py`` runs the guide and writes what the commands print back into it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[1] / "docs" / "plugins.md"
FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```\n", re.DOTALL)
CONSOLE = re.compile(r"(<!-- run -->\n```console\n)(.*?)(```\n)", re.DOTALL)


def environment(folder: Path) -> dict[str, str]:
    """Where commands install into a folder, and fetch and cache nothing outside of it."""
    paths = [str(folder / "site"), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "AUBENCH_CACHE": str(folder / "cache"),
        "PIP_TARGET": str(folder / "site"),
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this one as the answer to "isolate?"
        "PIP_NO_INDEX": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "PYTEST_ADDOPTS": "-p no:cacheprovider",
        "COLUMNS": "120",
    }


def played(text: str, folder: Path) -> str:
    """Return the guide with what its commands print, each run in ``folder`` in the order of the page."""
    for name, content in FILE.findall(text):
        (folder / name).write_text(content, encoding="utf-8")
    env = environment(folder)

    def play(block: re.Match[str]) -> str:
        lines = []
        for command in re.findall(r"^\$ (.*)$", block[2], re.MULTILINE):
            done = subprocess.run(
                command, shell=True, capture_output=True, text=True, cwd=folder, env=env, timeout=300, check=False
            )
            assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
            lines += [f"$ {command}", *(line.rstrip() for line in done.stdout.strip("\n").splitlines())]
        return block[1] + "".join(f"{line}\n" for line in lines if line or lines) + block[3]

    return CONSOLE.sub(play, text)


def masked(text: str) -> str:
    """Return the text without what depends on the machine: numbers, and the width of columns and rules."""
    return re.sub(r"[ \t]+", " ", re.sub(r"[─━-]{2,}", "--", re.sub(r"\d+(\.\d+)*", "#", text)))


@pytest.mark.slow  # half a minute: sixteen commands, most of them in a process that imports torch
def test_the_guide_is_true_as_written(tmp_path):
    text = GUIDE.read_text(encoding="utf-8")
    assert len(CONSOLE.findall(text)) >= 6
    written = [masked(block[1]) for block in CONSOLE.findall(text)]
    found = [masked(block[1]) for block in CONSOLE.findall(played(text, tmp_path))]
    for as_written, as_printed in zip(written, found, strict=True):
        assert as_printed == as_written


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        GUIDE.write_text(played(GUIDE.read_text(encoding="utf-8"), Path(scratch)), encoding="utf-8")
