"""JSON read strictly: what Python's own reader lets pass although no JSON file of ours can hold it is refused.

Depth is counted before anything is parsed, so that no reader further down runs out of stack.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoshield_bench.errors import StoreError
from autoshield_bench.plain_files import read_plain

MAX_DEPTH = 64
"""Lists and objects within each other, at most."""

LARGEST_JOURNAL = 64 * 1024 * 1024
"""Bytes of a file of lines that are read at most."""

_MARKS = re.compile(r'"(?:[^"\\]++|\\.)*+"|([\[{])|([\]}])', re.DOTALL)
_LONGEST_INTEGER = 20
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises ValueError (JSONDecodeError with a place where the syntax is wrong) for anything else, for NaN, infinity and
    numbers beyond float64, integers of more than 64 bits, keys that stand twice, halves of surrogate pairs and nesting
    beyond ``MAX_DEPTH``.
    """
    _check_depth(text)
    value = json.loads(
        text,
        parse_constant=_refuse_constant,
        parse_float=_finite,
        parse_int=_integer,
        object_pairs_hook=_unique,
    )
    if _SURROGATE.search(text):
        _check_surrogates(value)
    return value


def json_lines(path: Path) -> Iterator[Any]:
    """Yield the value of every line of a journal. A torn line is left out, and so is a file that cannot be read: times
    and estimates may lack an event, and nothing else depends on one."""
    try:
        content = read_plain(path, LARGEST_JOURNAL)
    except StoreError:
        return
    for line in content.decode(errors="replace").split("\n"):
        try:
            yield parse_json(line)
        except ValueError:
            continue


def _check_depth(text: str) -> None:
    depth = 0
    for match in _MARKS.finditer(text):
        depth += (match[1] is not None) - (match[2] is not None)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond every number")
    return value


def _integer(text: str) -> int:
    value = int(text) if len(text) <= _LONGEST_INTEGER else None
    if value is None or not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"{text[:40]}{'...' if len(text) > 40 else ''} has more than 64 bits")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {double[:60]!r} stands twice in one object")
    return value


def _check_surrogates(value: Any) -> None:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += [*item, *item.values()]
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, str) and re.search("[\ud800-\udfff]", item):
            raise ValueError(f"{item[:40]!r} holds half of a surrogate pair")
