"""The suite file: TOML -> ``Suite``, with every structural problem found at once.

This floor knows which keys there are, not which plugins: whether a plugin exists and takes its parameters is asked by
a higher floor, which adds its own ``Problem``s to the same document. Read a suite through ``SuiteDocument``; the models
alone do not check what spans several entries.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from autoshield_bench.contracts import ACCESS_LEVELS, NORMS, Access, Kind, Norm, ThreatModel
from autoshield_bench.errors import did_you_mean
from autoshield_bench.toml_lines import KeyPath, TomlDocument, key_text, shown
from autoshield_bench.toml_lines import Problem as Problem  # noqa: PLC0414  part of this module's face

CHAIN = "chain"
"""Name of the defense that is made of the stages in the suite."""

MAX_STAGES = 8
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_USE = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,99}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,47}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,47}")


# ---------------------------------------------------------------------------------------------------------------
# The models
# ---------------------------------------------------------------------------------------------------------------


def short_name(use: str) -> str:
    """Return the plugin's own name: the part of ``use`` after the distribution, which is also the default label."""
    return use.rpartition("/")[2]


def _matching(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value) or ".." in value:
            raise ValueError(f'{shown(value)} cannot be used here; give {what}, without ".."')
        return value

    return AfterValidator(check)


def _tables(value: object, info: ValidationInfo) -> object:
    name = "defenses.stages" if info.field_name == "stages" else info.field_name
    if not isinstance(value, list | tuple):
        raise ValueError(f"{shown(value)} where a list of tables belongs; write [[{name}]] in double brackets")  # noqa: TRY004
    return tuple(value)


def _list(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _list_or_one(value: object) -> object:
    return (value,) if isinstance(value, str | int | float) else _list(value)


def _unique(values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    seen: set[Any] = set()
    for value in values or ():
        if value in seen:
            raise ValueError(f"{shown(value)} stands here twice; remove one")
        seen.add(value)
    return values


def _version(value: object) -> object:
    if type(value) is not int or value != 1:
        raise ValueError(f"{shown(value)} is not a version this release can read; give 1, or update autoshield-bench")
    return value


def _radius(value: float) -> float:
    if value < 0:
        raise ValueError(f"{shown(value)} is negative; give a radius of at least 0")
    return value + 0.0  # -0.0 becomes 0.0: one radius must not have two keys


def _path(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError(f"{shown(value)} is no path; give one without control characters")
    return value


def _plain(value: Any) -> Any:
    """Return a copy that shares nothing with the document and holds lists only, as JSON would return it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


Params = Annotated[dict[str, Any], AfterValidator(_plain)]
_Use = Annotated[str, _matching(_USE, 'a plugin\'s name such as "pgd", or "distribution/name"')]
_Label = Annotated[str, _matching(_LABEL, "1 to 48 letters, digits, spaces or . _ + -, the first a letter or digit")]
_Name = Annotated[str, _matching(_NAME, "1 to 64 of a-z 0-9 . _ -, the first a letter or digit")]
_Path = Annotated[str, AfterValidator(_path)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class PluginUse(_Frozen):
    """A plugin and its parameters."""

    use: _Use
    """Name of the plugin; ``distribution/name`` where two distributions claim the name."""

    params: Params = {}
    """Its parameters, as written: without the plugin's defaults."""


class StageUse(PluginUse):
    """One stage of a chain."""


class _Labelled(PluginUse):
    label: _Label = ""
    """Name in tables and of directories; the plugin's own name where the suite gives none, so never empty."""

    @model_validator(mode="before")
    @classmethod
    def _default_label(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("label") is None:
            label = _label(data)
            data = {key: value for key, value in data.items() if key != "label"}
            if label is not None and _USE.fullmatch(data["use"]):
                data["label"] = label
        return data


class ModelUse(_Labelled):
    """A classifier."""

    checkpoint: _Path | None = None
    """Path of trained weights to use instead of training."""


class ThreatUse(_Frozen):
    """Threat models of one norm."""

    norm: Norm
    """Norm of the balls."""

    eps: Annotated[tuple[Annotated[float, AfterValidator(_radius)], ...], BeforeValidator(_list_or_one)] = Field(
        min_length=1
    )
    """Radii, in the units of the images: [0, 1]."""


class DefenseUse(_Labelled):
    """A defense; ``use = "chain"`` puts ``stages`` in sequence."""

    stages: Annotated[tuple[StageUse, ...], BeforeValidator(_tables), Field(max_length=MAX_STAGES)] = ()
    """Stages of a chain, in the order in which an image passes them; empty for anything else."""


class AttackUse(_Labelled):
    """An attack, at one access level or more."""

    access: Annotated[tuple[Access, ...], AfterValidator(_unique), BeforeValidator(_list_or_one)] = Field(min_length=1)
    """What the attack may see."""

    images: int | None = Field(default=None, ge=1)
    """Size of the fixed stratified subset of the test images; None: all of them."""

    norms: Annotated[
        Annotated[tuple[Norm, ...], Field(min_length=1)] | None, AfterValidator(_unique), BeforeValidator(_list_or_one)
    ] = None
    """Run under the threat models of these norms alone; None: under all."""

    eot: int = Field(default=1, ge=1)
    """Draws averaged per gradient where a stage is stochastic."""


class MetricUse(_Labelled):
    """A metric."""


class Suite(_Frozen):
    """What to run, as written: plugins by name, not looked up yet."""

    schema_version: Annotated[Literal[1], BeforeValidator(_version)] = Field(alias="schema")
    """Version of the format; ``schema`` in the file."""

    name: _Name
    """Name of the suite and of its directory of results."""

    description: str = ""
    """One or two sentences for readers."""

    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], AfterValidator(_unique), BeforeValidator(_list)
    ] = Field(default=(0,), min_length=1)
    """Training seeds; everything is trained and attacked once per seed."""

    dataset: PluginUse
    """The data set."""

    models: Annotated[tuple[ModelUse, ...], BeforeValidator(_tables)] = Field(min_length=1)
    """The classifiers; a file may write ``[model]`` for a single one."""

    threats: Annotated[tuple[ThreatUse, ...], BeforeValidator(_tables)] = Field(min_length=1)
    """The threat models."""

    defenses: Annotated[tuple[DefenseUse, ...], BeforeValidator(_tables)] = Field(min_length=1)
    """The defenses, in the order of the tables."""

    attacks: Annotated[tuple[AttackUse, ...], BeforeValidator(_tables)] = Field(min_length=1)
    """The attacks."""

    metrics: Annotated[tuple[MetricUse, ...], BeforeValidator(_tables)] = ()
    """The metrics, besides robust accuracy."""

    @model_validator(mode="before")
    @classmethod
    def _single_model(cls, data: Any) -> Any:
        if isinstance(data, dict) and "model" in data and "models" not in data:
            return {key: value for key, value in data.items() if key != "model"} | {"models": (data["model"],)}
        return data

    @property
    def threat_models(self) -> tuple[ThreatModel, ...]:
        """Every ball of the suite, in the order of the file."""
        return tuple(ThreatModel(norm=threat.norm, eps=eps) for threat in self.threats for eps in threat.eps)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values that ``SuiteDocument.from_dict`` reads back as an equal suite."""
        return self.model_dump(mode="json", by_alias=True, warnings=False)

    def with_(self, **changes: Any) -> Suite:
        """Return the suite with some fields replaced, checked like a file. Raises SuiteError."""
        if unknown := changes.keys() - type(self).model_fields.keys():
            raise TypeError(f"a suite has no field {', '.join(sorted(unknown))}")
        return SuiteDocument.from_dict(self.model_copy(update=changes).to_json()).suite()


# ---------------------------------------------------------------------------------------------------------------
# The document: a suite as written, and everything wrong with it
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NamedPlugin:
    """A place where a suite names a plugin."""

    kind: Kind
    path: KeyPath
    use: str
    params: dict[str, Any]


class SuiteDocument(TomlDocument):
    """A suite as written: read it, ask for its problems, then for the suite."""

    def suite(self) -> Suite:
        """Return the suite. Raises SuiteError with every structural problem."""
        self.raise_for(self.problems())
        return Suite.model_validate(self.data)

    def problems(self) -> list[Problem]:
        """Return everything wrong with the structure, at most one problem per key."""
        found: dict[KeyPath, Problem] = {}
        for problem in (*_values((), self.data), *self._fields(), *self._threats(), *self._labels(), *self._stages()):
            found.setdefault(problem.path, problem)
        return list(found.values())

    def plugins(self) -> Iterator[NamedPlugin]:
        """Yield every plugin that the suite names properly, stages of chains included, whatever else is wrong."""
        for section, (kind, _) in _SECTIONS.items():
            single = self.data.get(section) if section in ("dataset", "model") else None
            entries = [((section,), single)] if isinstance(single, dict) else _entries(self.data, (section,))
            for path, entry in entries:
                for place, plugin in ((path, entry), *_entries(entry, (*path, "stages"))):
                    use, params = plugin.get("use"), plugin.get("params", {})
                    if isinstance(use, str) and _USE.fullmatch(use) and isinstance(params, dict):
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
                label = _label(entry)
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
    "access": 'access = ["gray-box", "white-box"], or one of them',
}
_EXPECTED = {
    "string_type": "a string; put it in quotes",
    "int_type": "a whole number; give one without quotes or a decimal point",
    "float_type": "a number; give one without quotes",
    "tuple_type": "a list; put it in [ ]",
    "dict_type": "a table; write { key = value }",
    "model_type": "a table; write it as one, with keys of its own",
}


def _explain(path: KeyPath, detail: dict[str, Any]) -> str:
    """Return pydantic's finding in the words of this project."""
    value, context = detail["input"], detail.get("ctx", {})
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    known = ACCESS_LEVELS if key == "access" else NORMS
    match detail["type"]:
        case "value_error":
            message = str(context["error"])
        case "missing":
            message = f"missing; add {_EXAMPLES.get(key, key)}"
        case "extra_forbidden":
            message = _unknown_key(path)
        case "literal_error":
            message = f"{shown(value)} is not known{did_you_mean(value if isinstance(value, str) else '', known)}"
        case "too_short":
            message = f"empty; add {_EXAMPLES.get(key, 'at least one')}"
        case "too_long":
            message = f"{context['actual_length']} are too many; give at most {context['max_length']}"
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


def _label(entry: dict[str, Any]) -> str | None:
    """Return the label of an entry as written, or the default; None if it has neither."""
    label, use = entry.get("label"), entry.get("use")
    if label is None and isinstance(use, str):
        label = short_name(use)
    return label if isinstance(label, str) else None


def _runs(attack: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return each (access, norm) under which an attack runs."""
    access = [item for _, item in _items(attack, ("access",)) if isinstance(item, str)]
    norms = [item for _, item in _items(attack, ("norms",)) if _is_norm(item)] or NORMS
    return [(level, norm) for level in access for norm in norms]
