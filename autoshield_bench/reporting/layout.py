"""Tables for a terminal of any width: numbers are never cut; what does not fit side by side goes into a further table.

Widths are decided here rather than by rich, which crops a column that it cannot wrap.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len, chop_cells
from rich.table import Table
from rich.text import Text

from autoshield_bench.reporting.text import visible

GAP = 2
"""Columns between two columns of a table."""

NARROWEST_NAME = 12
"""Columns that a first column gets at least, before others are moved to a further table."""

_BREAKS = re.compile(r"(?<=[/: ])|(?<=[^\s(\[]-)")
"""Where text may be broken: never after the sign of a number."""


@dataclass(frozen=True)
class Line:
    """One line of a cell."""

    text: str
    style: str = ""
    fold: bool = False
    """Whether it may be broken; numbers may not."""


@dataclass(frozen=True)
class Column:
    """One column: its header's lines, and the lines of each cell. All text is made visible here."""

    header: Sequence[Line]
    cells: Sequence[Sequence[Line]]
    right: bool = True

    def natural(self) -> int:
        """Return the width at which nothing is folded."""
        return max((cell_len(visible(line.text)) for cell in (self.header, *self.cells) for line in cell), default=0)

    def narrow(self) -> int:
        """Return the width that its numbers and the words of its header need."""
        stiff = [
            cell_len(part)
            for cell in (self.header, *self.cells)
            for line in cell
            for part in (_BREAKS.split(visible(line.text)) if line.fold else [visible(line.text)])
        ]
        own = [cell_len(visible(line.text)) for cell in self.cells for line in cell if not line.fold]
        # A very long word of foreign text must not push numbers out of sight.
        return min(max(stiff, default=0), max([16, *own]))


def tables(first: Column, others: Sequence[Column], width: int, lead: Column | None = None) -> list[Table]:
    """Return the columns as one table, or as several that repeat the first column, none wider than ``width``.

    ``lead`` is a narrow column that stands before the first one, in the first table alone.
    """
    ahead = [] if lead is None else [lead]
    spent = [column.narrow() for column in ahead]
    used_up = sum(own + GAP for own in spent)
    widths = [column.narrow() for column in others]
    natural = first.natural()
    room = width - used_up - sum(own + GAP for own in widths)
    if room >= min(natural, NARROWEST_NAME):
        return [_table([*ahead, first, *others], [*spent, min(natural, room), *widths])]
    name = min(natural, max(NARROWEST_NAME, width // 5))
    chunks: list[list[int]] = [[]]
    for index in range(len(others)):
        used = name + sum(widths[i] + GAP for i in chunks[-1]) + (used_up if len(chunks) == 1 else 0)
        if chunks[-1] and used + widths[index] + GAP > width:
            chunks.append([])
        chunks[-1].append(index)
    made = []
    for place, chunk in enumerate(chunks):
        before, own = ([], []) if place else (ahead, spent)
        columns, chosen = [*before, first, *(others[i] for i in chunk)], [*own, name, *(widths[i] for i in chunk)]
        made.append(_table(columns, chosen))
    return made


def fits(first: Column, others: Sequence[Column], width: int, lead: Column | None = None) -> bool:
    """Return whether the columns stand side by side with the first one unfolded."""
    beside = [*others, *([] if lead is None else [lead])]
    return first.natural() + sum(column.narrow() + GAP for column in beside) <= width


def fold(text: str, width: int) -> list[str]:
    """Return visible text in pieces of at most ``width`` terminal columns, broken after a hyphen, slash or space
    where there is one."""
    lines = [""]
    for word in _BREAKS.split(visible(text)):
        if cell_len(lines[-1] + word.rstrip()) <= width:
            lines[-1] += word
            continue
        pieces = chop_cells(word, width)
        lines += pieces if lines[-1] else []
        lines = lines if lines != [""] else pieces
    return [line.rstrip() for line in lines]


def _table(columns: Sequence[Column], widths: Sequence[int]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), leading=1)
    headers = [_lines(column.header, width) for column, width in zip(columns, widths, strict=True)]
    tallest = max(len(header) for header in headers)
    for column, header, width in zip(columns, headers, widths, strict=True):
        padded = [Line("")] * (tallest - len(header)) + header
        table.add_column(_text(padded), width=width, no_wrap=True, justify="right" if column.right else "left")
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(_text(_lines(cell, width)) for cell, width in zip(cells, widths, strict=True)))
    return table


def _lines(cell: Sequence[Line], width: int) -> list[Line]:
    return [Line(part, line.style) for line in cell for part in (fold(line.text, width) if line.fold else [line.text])]


def _text(lines: Sequence[Line]) -> Text:
    return Text("\n").join(Text(visible(line.text), style=line.style) for line in lines)
