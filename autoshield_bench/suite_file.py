"""A suite as written: the TOML document, and everything wrong with its structure at once.

This floor knows which keys there are, not which plugins: whether a plugin exists and takes its parameters is asked by
a higher floor, which adds its own ``Problem``s to the same document.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

from pydantic import ValidationError

from autoshield_bench.contracts import NORMS, Kind, Norm
from autoshield_bench.errors import did_you_mean
from autoshield_bench.suite import (
    CHAIN,
    MOST_CELLS,
    USE,
    AttackUse,
    DefenseUse,
    MetricUse,
    ModelUse,
    PluginUse,
    StageUse,
    Suite,
    ThreatUse,
    default_label,
    short_name,
)
from autoshield_bench.toml_lines import KeyPath, Problem, TomlDocument, key_text, shown


@dataclass(frozen=True)
class NamedPlugin:
    """A place where a suite names a plugin."""

    kind: Kind
    path: KeyPath
    use: str
    params: dict[str, Any]


@dataclass(frozen=True)
class SuiteDocument(TomlDocument):
    """A suite as written: read it, ask for its problems, then for the suite."""

    def __post_init__(self) -> None:
        # As every file of results has them: what is computed, hashed and read back is then one suite.
        object.__setattr__(self, "data", _at_ten_digits(self.data))

    def suite(self) -> Suite:
        """Return the suite. Raises SuiteError with every structural problem."""
        self.raise_for(self.problems())
        return Suite.model_validate(self.data)

    def problems(self) -> list[Problem]:
        """Return everything wrong with the structure, at most one problem per key."""
        found: dict[KeyPath, Problem] = {}
        for problem in (*_values((), self.data), *self._fields(), *self._threats(), *self._labels(), *self._stages()):
            found.setdefault(problem.path, problem)
        if not found and (cells := Suite.model_validate(self.data).most_cells) > MOST_CELLS:
            return [Problem((), f"asks for {cells:,} cells; split it into suites of at most {MOST_CELLS:,}")]
        return list(found.values())

    def plugins(self) -> Iterator[NamedPlugin]:
        """Yield every plugin that the suite names properly, stages of chains included, whatever else is wrong."""
        for section, (kind, _) in _SECTIONS.items():
            single = self.data.get(section) if section in ("dataset", "model") else None
            entries = [((section,), single)] if isinstance(single, dict) else _entries(self.data, (section,))
            for path, entry in entries:
                for place, plugin in ((path, entry), *_entries(entry, (*path, "stages"))):
                    use, params = plugin.get("use"), plugin.get("params", {})
                    if isinstance(use, str) and USE.fullmatch(use) and isinstance(params, dict):
                        yield NamedPlugin(kind, place, use, params)

    def at(self, path: KeyPath) -> dict[str, Any]:
        """Return the table at a path that ``plugins`` yielded."""
        table: Any = self.data
        for key in path:
            table = table[key]
        return dict(table)

    def written(self, path: KeyPath) -> KeyPath:
        """Return the path as the file has it: ``models[0]`` may be written ``[model]``."""
        is_single = path[:2] == ("models", 0) and "model" in self.data and "models" not in self.data
        return ("model", *path[2:]) if is_single else path

    def _at(self, path: KeyPath) -> str:
        line = self.line_of(path)
        return key_text(path) + (f" (line {line})" if line else "")

    def _fields(self) -> Iterator[Problem]:
        """What the models find."""
        try:
            Suite.model_validate(self.data)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                if detail["type"] == "too_short" and detail["input"]:
                    continue  # not short: its entries are bad, and are reported themselves
                path = self.written(detail["loc"])
                yield Problem(_existing(self.data, path), _explain(path, dict(detail)))

    def _threats(self) -> Iterator[Problem]:
        """Radii given twice or beyond the range of an image, and norms of attacks that no threat model has."""
        seen: dict[tuple[Norm, float], KeyPath] = {}
        norms: set[Norm] = set()
        for path, threat in _entries(self.data, ("threats",)):
            norm = threat.get("norm")
            if not _is_norm(norm):
                continue
            norms.add(norm)
            for place, eps in _items(threat, (*path, "eps")):
                if isinstance(eps, bool) or not isinstance(eps, int | float):
                    continue
                if norm == "linf" and eps > 1:
                    yield Problem(place, f"{shown(eps)} is more than any pixel can change; give a radius in [0, 1]")
                elif (norm, eps) in seen:
                    there = self._at(seen[norm, eps])
                    yield Problem(place, f"{norm} {shown(eps)} stands at {there} already; remove one of them")
                else:
                    seen[norm, eps] = place
        for path, attack in _entries(self.data, ("attacks",)) if norms else ():
            for place, norm in _items(attack, (*path, "norms")):
                if _is_norm(norm) and norm not in norms:
                    yield Problem(place, f'no threat has norm = "{norm}"; add one, or remove "{norm}" here')

    def _labels(self) -> Iterator[Problem]:
        """Labels given twice. They name directories, so case alone does not tell them apart on every disk."""
        for section in ("models", "defenses", "metrics", "attacks"):
            seen: dict[tuple[str, ...], tuple[KeyPath, str]] = {}
            for path, entry in _entries(self.data, (section,)):
                label = default_label(entry)
                if label is None:
                    continue
                place = (*path, "label" if entry.get("label") is not None else "use")
                uses = _runs(entry) if section == "attacks" else [()]
                double = next((use for use in uses if (label.casefold(), *use) in seen), None)
                if double is not None:
                    what = " ".join((shown(label), *double))
                    there, other = seen[label.casefold(), *double]
                    case = "" if other == label else ", upper and lower case aside"
                    yield Problem(place, f"{what} stands at {self._at(there)} already{case}; give one another label")
                for use in uses:
                    seen.setdefault((label.casefold(), *use), (place, label))

    def _stages(self) -> Iterator[Problem]:
        """Stages where they do not belong, and none where they do."""
        for path, defense in _entries(self.data, ("defenses",)):
            stages = (*path, "stages")
            use = defense.get("use")
            if isinstance(use, str) and short_name(use) != CHAIN and defense.get("stages"):
                yield Problem(stages, f'{shown(use)} takes no stages; give use = "{CHAIN}", or remove them')
            if isinstance(use, str) and short_name(use) == CHAIN and defense.get("stages") in (None, [], ()):
                yield Problem(stages, "missing; add [[defenses.stages]] with use = ..., one for each stage")
            for place, stage in _entries(defense, stages):
                if isinstance(stage.get("use"), str) and short_name(stage["use"]) == CHAIN:
                    yield Problem((*place, "use"), "a chain cannot hold a chain; list the inner stages here instead")


_SECTIONS: dict[str, tuple[Kind, type[PluginUse]]] = {
    "dataset": ("dataset", PluginUse),
    "model": ("model", ModelUse),
    "models": ("model", ModelUse),
    "defenses": ("defense", DefenseUse),
    "attacks": ("attack", AttackUse),
    "metrics": ("metric", MetricUse),
}
_EXAMPLES = {
    "schema": "schema = 1",
    "name": 'name = "...", which names the directory of results',
    "dataset": '[dataset] with use = "..."',
    "models": '[model] with use = "..."',
    "threats": '[[threats]] with norm = "linf" and eps = [0.1]',
    "defenses": '[[defenses]] with use = "..."',
    "attacks": '[[attacks]] with use = "..." and access = ["gray-box", "white-box"]',
    "use": 'use = "...", the name of a plugin',
    "norm": 'norm = "linf" or norm = "l2"',
    "eps": "eps = [0.1], in the units of the images",
    "access": 'access = ["gray-box", "white-box"], or one of them; attacks without gradients take "black-box" too',
}
_EXPECTED = {
    "string_type": "a string; put it in quotes",
    "int_type": "a whole number; give one without quotes or a decimal point",
    "float_type": "a number; give one without quotes",
    "tuple_type": "a list; put it in [ ]",
    "dict_type": "a table; write { key = value }",
    "model_type": "a table; write it as one, with keys of its own",
}


def _at_ten_digits(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.10g}")
    if isinstance(value, dict):
        return {key: _at_ten_digits(item) for key, item in value.items()}
    return [_at_ten_digits(item) for item in value] if isinstance(value, list | tuple) else value


def _explain(path: KeyPath, detail: dict[str, Any]) -> str:
    """Return pydantic's finding in the words of this project."""
    value, context = detail["input"], detail.get("ctx", {})
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    match detail["type"]:
        case "value_error":
            message = str(context["error"])
        case "missing":
            message = f"missing; add {_EXAMPLES.get(key, key)}"
        case "extra_forbidden":
            message = _unknown_key(path)
        case "literal_error":
            known = re.findall(r"'([^']*)'", context["expected"])
            message = f"{shown(value)} is not known{did_you_mean(value if isinstance(value, str) else '', known)}"
        case "too_short":
            message = f"empty; add {_EXAMPLES.get(key, 'at least one')}"
        case "too_long":
            message = f"{context['actual_length']} are too many; give at most {context['max_length']}"
        case "string_too_long":
            message = f"{shown(value)} is too long; give at most {context['max_length']:,} characters"
        case "greater_than_equal":
            message = f"{shown(value)} is too small; give at least {context['ge']}"
        case "less_than":
            message = f"{shown(value)} is too large; give less than {context['lt']}"
        case kind:
            message = f"{shown(value)} is not {_EXPECTED.get(kind, 'allowed here; correct it: ' + detail['msg'])}"
    return message


def _unknown_key(path: KeyPath) -> str:
    key, section = str(path[-1]), str(path[0])
    if path == ("model",):
        return "stands beside [[models]]; keep one of the two"
    if len(path) == 1:
        known = {info.alias or name for name, info in Suite.model_fields.items()} | {"model"}
        return f"unknown key{did_you_mean(key, known)}"
    if section == "threats":
        return f"unknown key{did_you_mean(key, ThreatUse.model_fields)}"
    model = StageUse if path[2:3] == ("stages",) else _SECTIONS[section][1]
    hint = did_you_mean(key, model.model_fields)
    return f"unknown key{hint}" if hint.endswith("?") else f"unknown key{hint}; parameters of a plugin go into params"


def _values(path: KeyPath, value: object) -> Iterator[Problem]:
    """Yield the values that TOML or Python can hold and a suite, which is also kept as JSON, cannot."""
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _values((*path, key), item)
    elif isinstance(value, float) and not math.isfinite(value):
        yield Problem(path, f"{shown(value)} is not a finite number; give one")
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        yield Problem(path, f"{shown(value)} has more than 64 bits; give a smaller one")
    elif value is not None and not isinstance(value, str | int | float):
        yield Problem(path, f"{shown(value)} is a {type(value).__name__}; put it in quotes, or give a number")


def _existing(data: object, path: KeyPath) -> KeyPath:
    """Cut off what is no key of the data: a number given for a list of one has no ``[0]``."""
    for length, part in enumerate(path):
        if isinstance(data, dict):
            if part not in data:
                return path[: length + 1]
            data = data[part]
        elif isinstance(data, list | tuple) and isinstance(part, int):
            data = data[part]
        else:
            return path[:length]
    return path


def _items(table: dict[str, Any], path: KeyPath) -> list[tuple[KeyPath, Any]]:
    """Return the elements of the list at ``path``, or the one value that stands there for a list."""
    value = table.get(str(path[-1]))
    if isinstance(value, list | tuple):
        return [((*path, index), item) for index, item in enumerate(value)]
    return [] if value is None else [(path, value)]


def _entries(table: dict[str, Any], path: KeyPath) -> list[tuple[KeyPath, dict[str, Any]]]:
    """Return the tables in the list at ``path``, the last key of which is one of ``table``."""
    return [(place, item) for place, item in _items(table, path) if isinstance(item, dict) and place != path]


def _is_norm(value: object) -> TypeGuard[Norm]:
    return isinstance(value, str) and value in NORMS


def _runs(attack: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return each (access, norm) under which an attack runs."""
    access = [item for _, item in _items(attack, ("access",)) if isinstance(item, str)]
    norms = [item for _, item in _items(attack, ("norms",)) if _is_norm(item)] or NORMS
    return [(level, norm) for level in access for norm in norms]


def replaced(suite: Suite, **changes: Any) -> Suite:
    """Return a suite with some fields replaced, checked like a file. Raises SuiteError."""
    if unknown := changes.keys() - Suite.model_fields.keys():
        raise TypeError(f"a suite has no field {', '.join(sorted(unknown))}")
    # What the file left open stays open: an attack whose `eot` is a default did not ask for it.
    changed = suite.model_copy(update=changes)
    written = changed.model_dump(mode="json", by_alias=True, exclude_unset=True, warnings=False)
    return SuiteDocument.from_dict(written).suite()
