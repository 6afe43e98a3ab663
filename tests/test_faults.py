"""The table of faults names tests that exist, enough of them, and each says what happens."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "faults.md"
if not TABLE.exists():
    pytest.skip("the documentation is not part of this copy", allow_module_level=True)

ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in TABLE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and "::" in line
]


def test_every_fault_has_an_outcome_and_a_test_of_its_own_kind():
    assert len(ROWS) >= 40
    assert len({fault for fault, *_rest in ROWS if fault != "the same"}) == len(ROWS)
    for row in ROWS:
        fault, outcome, where = row
        assert fault, row
        assert outcome, row
        file, _, name = where.partition("::")
        module = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        tests = {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
        assert name in tests, where
        assert name.startswith("test_"), where
