"""Foreign text made harmless: the one place that knows what each output format would obey.

Names, notes and error messages come from plugins, suites and files. Whatever they hold is shown, and does nothing:
invisible and controlling characters turn into visible escapes first, then the format's own specials are quoted.
"""

from __future__ import annotations

import html as _html
import re
from collections.abc import Callable
from typing import Literal

Markup = Literal["markdown", "latex", "html"]

LONGEST_MESSAGE = 400
"""Characters of an error message that a report shows."""


class Plain(str):
    """Text that this package wrote itself and that no format obeys, such as ``0.912 [0.906, 0.917] n=1000``."""

    __slots__ = ()


def visible(text: object) -> str:
    r"""Return one line of printable text: control characters, terminal escapes, line breaks, bidirectional overrides,
    zero-width characters and lone surrogates become escapes such as ``\x1b`` and ``\u202e``."""
    return "".join(c if c.isprintable() else _escape(c) for c in str(text))


def message(text: object) -> str:
    """Return an error message as one visible line of bounded length."""
    line = visible(" ".join(str(text).split("\n")))
    return line if len(line) <= LONGEST_MESSAGE else line[: LONGEST_MESSAGE - 1] + "…"


def rich_markup(text: object) -> str:
    """Return text for a place where rich reads markup, such as a progress bar's description."""
    from rich.markup import escape

    return escape(visible(text))


def markdown(text: object) -> str:
    """Return text for a Markdown paragraph, list item or table cell: no emphasis, code, links, HTML or new columns."""
    line = visible(text)
    if isinstance(text, Plain):
        return line
    # Entities where Markdown dialects disagree on the backslash.
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_\[\]#!~$])", r"\\\1", line).replace("|", "&#124;")
    # A list within a list, or code, where the text opens a list item.
    line = re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", line.strip())
    # Bare addresses turn into links on their own.
    return re.sub(r"(?i)(?<=www)\.", "&#46;", line.replace("://", "&#58;//"))


def html(text: object) -> str:
    """Return text for an HTML element or a quoted attribute."""
    return _html.escape(visible(text), quote=True)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # A bracket or star right after a row's end would be read as its argument.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    **{special: f"\\{special}" for special in "&%$#_{}"},
}


def latex(text: object) -> str:
    """Return text for a cell of a LaTeX table."""
    line = visible(text)
    return line if isinstance(text, Plain) else "".join(_LATEX.get(c, c) for c in line)


def csv_field(text: object) -> str:
    """Return text for a CSV field that no spreadsheet takes for a formula; the csv module quotes the rest."""
    raw, line = str(text), visible(text)
    dangerous = raw[:1] in {"\t", "\r"} or line.lstrip()[:1] in set("=+-@＝＋－＠")
    return f"'{line}" if dangerous else line


MARKUPS: dict[Markup, Callable[[object], str]] = {"markdown": markdown, "latex": latex, "html": html}


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
