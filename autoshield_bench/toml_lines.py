"""TOML that remembers where its keys stand, so that a problem can be shown with its line.

tomllib gives no lines, so a second scan finds them. tomllib judges the syntax, not that scan: on valid TOML it finds
every key, on any other text it merely ends, in linear time, with lines that mean nothing. It also limits how deep a
text may nest, and so runs first: tomllib recurses on nested values and needs quadratic time on dotted keys.
"""

from __future__ import annotations

import re
import stat
import tomllib
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from autoshield_bench.errors import SuiteError

KeyPath = tuple[str | int, ...]
"""Keys of tables and indices of lists, from the root: ``("attacks", 0, "params", "steps")``."""

MAX_DEPTH = 16
"""Longest key path."""

MAX_BYTES = 1 << 20
"""Largest file."""

# Possessive quantifiers keep every match linear; closing quotes are optional so that an open string ends somewhere.
_SPACE = re.compile(r"(?:[ \t\r\n]++|#[^\n]*+)*+")
_REST_OF_LINE = re.compile(r"[^\n]*+")
_HEADER_END = re.compile(r"[ \t]*+\]{0,2}")
_EQUALS = re.compile(r"[ \t]*+=?[ \t]*+")
_LINE_STRING = r'"(?:[^"\\\n]++|\\[^\n])*+"?|' + r"'[^'\n]*+'?"
_KEY_PART = re.compile(rf"[ \t]*+([A-Za-z0-9_-]++|{_LINE_STRING})[ \t]*+(\.?)")
_STRING = re.compile(
    r'"""(?:[^"\\]++|\\.|"(?!""))*+(?:"{3,5})?|' + r"'''(?:[^']++|'(?!''))*+(?:'{3,5})?|" + _LINE_STRING, re.DOTALL
)
_BARE_VALUE = re.compile(r"""[^,\[\]{}#"'\n]*+""")


class NestingError(ValueError):
    """A key path is longer than ``MAX_DEPTH``."""

    def __init__(self, line: int | None) -> None:
        self.line = line
        super().__init__(f"nested more than {MAX_DEPTH} levels deep")


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line (from 1) of every key, header and list element of ``text``; a list element only where it stands
    on another line than its list. Raises NestingError."""
    return _Scanner(text).run()


def nearest_line(lines: Mapping[KeyPath, int], path: KeyPath) -> int | None:
    """Return the line of the longest known beginning of ``path``; None where even its first key is unknown."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


def line_of(text: str, path: KeyPath) -> int | None:
    """Return the line (from 1) of ``path``, or of the longest beginning of it that stands in ``text``.

    Scans the whole text: for many paths, keep ``key_lines(text)``. Raises NestingError.
    """
    return nearest_line(key_lines(text), path)


class _Scanner:
    """One pass over a text. Every loop below moves on by at least one character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[KeyPath, int] = {}
        self._tables: dict[KeyPath, int] = {}  # entries so far of each [[array of tables]]
        self._line_ends = [match.start() for match in re.finditer("\n", text)]

    def run(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self._more():
            here = self.at
            if self._next() == "[":
                table = self._header()
            else:
                self._pair(table)
            self.at = max(self.at, here + 1)
        return self.lines

    def _header(self) -> KeyPath:
        line = self._line()
        is_array = self.text.startswith("[[", self.at)
        self.at += 2 if is_array else 1
        parts = self._key()
        path: KeyPath = ()
        for part in parts[:-1]:
            path = (*path, part)
            self.lines.setdefault(path, line)
            if path in self._tables:  # a header below an array of tables means its latest entry
                path = (*path, self._tables[path] - 1)
        path += parts[-1:]
        if is_array:
            index = self._tables.get(path, 0)
            self._tables[path] = index + 1
            self.lines.setdefault(path, line)
            path = (*path, index)
        self._check_depth(path)
        self.lines[path] = line
        self._skip(_HEADER_END)
        return path

    def _pair(self, table: KeyPath) -> None:
        line = self._line()
        parts = self._key()
        if not parts:
            self._skip(_REST_OF_LINE)
            return
        self._check_depth(table + parts)
        for length in range(1, len(parts) + 1):
            self.lines.setdefault(table + parts[:length], line)
        self._skip(_EQUALS)
        self._value(table + parts, line)

    def _key(self) -> tuple[str, ...]:
        parts: list[str] = []
        while match := _KEY_PART.match(self.text, self.at):
            self.at = match.end()
            parts.append(_unquoted(match[1]))
            self._check_depth(tuple(parts))
            if not match[2]:
                break
        return tuple(parts)

    def _value(self, path: KeyPath, line: int) -> None:
        first = self._next()
        if first == "[":
            self._list(path, line)
        elif first == "{":
            self._inline_table(path)
        elif first in ('"', "'"):
            self._skip(_STRING)
        else:
            self._skip(_BARE_VALUE)

    def _list(self, path: KeyPath, line: int) -> None:
        self.at += 1
        index = 0
        self._check_depth((*path, index))
        while self._more() and self._next() != "]":
            here = self.at
            if self._next() == ",":
                index += 1
            else:
                element_line = self._line()
                if element_line != line:  # else the list's own line says it, and a long list costs no memory
                    self.lines.setdefault((*path, index), element_line)
                self._value((*path, index), element_line)
            self.at = max(self.at, here + 1)
        self.at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self.at += 1
        while self._more() and self._next() != "}":
            here = self.at
            if self._next() != ",":
                self._pair(path)
            self.at = max(self.at, here + 1)
        self.at += 1

    def _more(self) -> bool:
        """Skip white space and comments; return whether anything is left."""
        self._skip(_SPACE)
        return self.at < len(self.text)

    def _next(self) -> str:
        return self.text[self.at : self.at + 1]

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def _line(self) -> int:
        return bisect_left(self._line_ends, self.at) + 1

    def _check_depth(self, path: KeyPath) -> None:
        if len(path) > MAX_DEPTH:
            raise NestingError(self._line())


def _unquoted(part: str) -> str:
    if part[0] == '"' and "\\" in part:
        try:
            return str(tomllib.loads(f"key = {part}")["key"])
        except ValueError:
            return part
    return part.strip(part[0]) if part[0] in "\"'" else part


# ---------------------------------------------------------------------------------------------------------------
# Documents
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a document."""

    path: KeyPath
    """Where: keys and indices from the root, such as ``("attacks", 0, "params", "stepz")``."""

    message: str
    """What is wrong; what to do."""


@dataclass(frozen=True)
class TomlDocument:
    """A TOML file as written, which remembers where keys stand."""

    source: Path | None
    """The file, for messages alone."""

    data: dict[str, Any]
    """What the file says."""

    lines: dict[KeyPath, int] = field(default_factory=dict, repr=False, compare=False)
    """Lines of keys, as ``key_lines`` gives them; empty where there is no text."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises SuiteError, in one line, if it cannot be read or is not TOML."""
        try:
            about = path.stat()
            if stat.S_ISDIR(about.st_mode):
                raise _refusal(path, "is a directory; name the file in it")
            if not stat.S_ISREG(about.st_mode):
                raise _refusal(path, "is not a regular file; name a TOML file")
            if about.st_size > MAX_BYTES:
                raise _refusal(path, f"is larger than {MAX_BYTES >> 20} MiB; remove what does not belong, or split it")
            with path.open("rb") as file:
                raw = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            raise _refusal(path, "no such file; check the path") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise _refusal(path, f"cannot be read ({reason}); check the path and its permissions") from None
        return cls.parse(raw, path)

    @classmethod
    def parse(cls, text: str | bytes, source: Path | None = None) -> Self:
        """Read a text, in UTF-8 if given as bytes. Raises SuiteError, in one line, if it is not TOML."""
        if len(text) > MAX_BYTES:
            raise _refusal(source, f"is larger than {MAX_BYTES >> 20} MiB; remove what does not belong, or split it")
        if isinstance(text, bytes):
            try:
                text = text.decode("utf-8")
            except UnicodeDecodeError as error:
                where = f"byte 0x{text[error.start]:02x} at offset {error.start}"
                line = error.object.count(b"\n", 0, error.start) + 1
                raise _refusal(source, f"is not UTF-8 ({where}); save it as UTF-8", line) from None
        text = text.removeprefix("\ufeff")
        if not text.strip():
            raise _refusal(source, "is empty; write at least what must be given")
        try:
            lines = key_lines(text)
            data = tomllib.loads(text)
        except NestingError as error:
            raise _refusal(source, f"is {error}; flatten it", error.line) from None
        except RecursionError:
            raise _refusal(source, "is nested too deep; flatten it") from None
        except ValueError as error:  # a number of over 4,300 digits is a plain ValueError
            raise _refusal(source, *_syntax_error(text, error)) from None
        _check_shape(data, source)
        return cls(source, data, lines)

    @classmethod
    def from_dict(cls, data: dict[str, Any], source: Path | None = None) -> Self:
        """Take data read before. Raises SuiteError if they are no table, or nested or keyed as no TOML can be."""
        _check_shape(data, source)
        return cls(source, data)

    def written(self, path: KeyPath) -> KeyPath:
        """Return the path as the file has it, where a format lets one thing be written in two ways."""
        return path

    def line_of(self, path: KeyPath) -> int | None:
        """Return the line (from 1) of a key, or of the nearest table around it; None if unknown."""
        return nearest_line(self.lines, self.written(path))

    def render(self, problems: Iterable[Problem]) -> list[str]:
        """Return ``FILE:LINE: key: what is wrong; what to do`` for each problem, in the order of the file."""
        placed = [(self.line_of(it.path) or 0, self.written(it.path), it.message) for it in problems]
        placed.sort(key=lambda it: (it[0], [(isinstance(part, str), part) for part in it[1]]))
        return [_line(self.source, line, key_text(path), message) for line, path, message in placed]

    def raise_for(self, problems: Iterable[Problem]) -> None:
        """Raise SuiteError if there are any problems."""
        if lines := self.render(problems):
            raise SuiteError(lines)


def printable(text: str) -> str:
    """Return ``text`` with everything escaped that a terminal would not show as a character."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shown(value: object, width: int = 60) -> str:
    """Return a value as a message shows it: much as TOML has it, escaped and cut to about ``width`` characters."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, int) and abs(value) >> 64:  # Python refuses to print one of over 4,300 digits
        return "an enormous number"
    text = _cut(str(value), width)
    return f'"{text}"' if isinstance(value, str) else text


def key_text(path: KeyPath) -> str:
    """Return a path as a message shows it: ``attacks[0].params."odd key"``; indices count from 0."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            key = part if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", part) else f'"{_cut(part, 60)}"'
            text += f".{key}" if text else key
    return text


def _cut(text: str, width: int) -> str:
    text = printable(text[: width + 1])
    return text if len(text) <= width else text[: width - 3] + "..."


def _line(source: Path | None, line: int | None, key: str, message: str) -> str:
    file = "suite" if source is None else str(source)
    where = f"{file}:{line}" if line else file
    return printable(": ".join(part for part in (where, key, message) if part))


def _refusal(source: Path | None, message: str, line: int | None = None) -> SuiteError:
    return SuiteError([_line(source, line, "", message)])


def _syntax_error(text: str, error: ValueError) -> tuple[str, int | None]:
    """Return message and line; tomllib puts the place into its message, up to Python 3.13 nowhere else."""
    reason, line = str(error), None
    if match := re.search(r" \(at line (\d+), (column \d+)\)$", reason):
        reason, line = f"{_cut(reason[: match.start()], 120)} ({match[2]})", int(match[1])
    elif reason.endswith(" (at end of document)"):
        line = text.rstrip().count("\n") + 1
    return f"is not TOML: {_cut(reason, 160)}; correct the syntax", line


def _check_shape(data: object, source: Path | None) -> None:
    """Refuse what would break every later walk: endless nesting, keys that are no strings, broken Unicode."""
    if not isinstance(data, dict):
        raise _refusal(source, f"holds {shown(data)} where a table belongs; give keys and values")
    open_items: list[tuple[int, object]] = [(0, data)]
    while open_items:
        depth, value = open_items.pop()
        if depth > MAX_DEPTH:
            raise _refusal(source, f"is {NestingError(None)}; flatten it")
        if isinstance(value, dict):
            open_items += [(depth + 1, item) for item in value.values()]
            if odd := [key for key in value if not isinstance(key, str)]:
                raise _refusal(source, f"key {shown(odd[0])} is not a string; put it in quotes")
        elif isinstance(value, list | tuple):
            open_items += [(depth + 1, item) for item in value]
        for text in value if isinstance(value, dict) else [value]:
            if isinstance(text, str) and re.search("[\ud800-\udfff]", text):
                raise _refusal(source, f"{shown(text)} is broken Unicode; write it again")
