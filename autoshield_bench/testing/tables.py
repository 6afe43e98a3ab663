"""The checks in docs/contract-kit.md, from the checks themselves: for each kind a table and one section per check.

``python -m autoshield_bench.testing.tables docs/contract-kit.md`` brings the file up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from autoshield_bench.contracts import Kind
from autoshield_bench.testing.catalogue import checks_of
from autoshield_bench.testing.checks import Check
from autoshield_bench.testing.subject import KINDS


def checks_table(kind: Kind) -> str:
    """Return the checks of a kind as a Markdown table; each name leads to the check's section."""
    rows = [
        f"| [`{check.name}`](#{anchor(check)}) | {_cell(check.meaning)} | {_cell(check.catches)} |"
        for check in checks_of(kind)
    ]
    return "\n".join(["| check | meaning | a mistake that it catches |", "|---|---|---|", *rows])


def check_section(check: Check) -> str:
    """Return what there is to know about a check as a Markdown section."""
    return (
        f"### {check.kind}: {check.name}\n\n"
        f"{check.meaning}\n\n"
        f"- A mistake that it catches: {check.catches}\n"
        f"- What to do: {check.remedy}"
    )


def anchor(check: Check) -> str:
    """Return the anchor that Markdown renderers make of the section's heading; several kinds share names of checks."""
    return f"{check.kind}-{check.name}"


def with_tables(text: str) -> str:
    """Return a document with every ``<!-- checks: KIND -->`` block filled in."""
    for kind in KINDS:
        block = re.compile(rf"(<!-- checks: {kind} -->\n).*?(<!-- end -->)", re.DOTALL)
        content = "\n\n".join([checks_table(kind), *(check_section(check) for check in checks_of(kind))])
        text = block.sub(lambda found, content=content: f"{found[1]}{content}\n{found[2]}", text)  # type: ignore[misc]
    return text


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Rewrite the files that are named."""
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
