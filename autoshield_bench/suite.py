"""The models of a suite: which keys there are and what each may hold.

Read a suite through ``suite_file.SuiteDocument``; the models alone do not check what spans several entries.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from autoshield_bench.contracts import Access, Goal, Norm, Precision, ThreatModel
from autoshield_bench.plain_files import name_problem
from autoshield_bench.toml_lines import shown

CHAIN = "chain"
"""Name of the defense that is made of the stages in the suite."""

MAX_STAGES = 8
MOST_ENTRIES = 1000
"""Entries of a list, at most: seeds, radii, defenses and so on."""
LONGEST_DESCRIPTION = 10_000
MOST_CELLS = 100_000
"""Cells of a suite, at most: each is a file, and all of them are planned before the first one runs."""
DEFAULT_QUERIES = 5000
"""Queries per image under black-box access, as many as AutoAttack grants Square (Croce and Hein 2020)."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
USE = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,99}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,47}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,47}")


def short_name(use: str) -> str:
    """Return the plugin's own name: the part of ``use`` after the distribution, which is also the default label."""
    return use.rpartition("/")[2]


def default_label(entry: dict[str, Any]) -> str | None:
    """Return the label of an entry as written, or the default; None if it has neither."""
    label, use = entry.get("label"), entry.get("use")
    if label is None and isinstance(use, str):
        label = short_name(use)
    return label if isinstance(label, str) else None


def _matching(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value) or ".." in value:
            raise ValueError(f'{shown(value)} cannot be used here; give {what}, without ".."')
        return value

    return AfterValidator(check)


def _storable(value: str) -> str:
    if problem := name_problem(value):
        raise ValueError(f"{shown(value)} {problem}, and directories are named after it; give another")
    return value


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
_Use = Annotated[str, _matching(USE, 'a plugin\'s name such as "pgd", or "distribution/name"')]
_Label = Annotated[
    str,
    _matching(_LABEL, "1 to 48 letters, digits, spaces or . _ + -, the first a letter or digit"),
    AfterValidator(_storable),
]
_Name = Annotated[
    str, _matching(_NAME, "1 to 64 of a-z 0-9 . _ -, the first a letter or digit"), AfterValidator(_storable)
]
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
    def _fill_in_label(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("label") is None:
            label = default_label(data)
            data = {key: value for key, value in data.items() if key != "label"}
            if label is not None and USE.fullmatch(data["use"]):
                data["label"] = label
        return data


class ModelUse(_Labelled):
    """A classifier."""

    checkpoint: _Path | None = None
    """Path of trained weights to use instead of training."""

    checkpoint_format: Literal["safetensors", "torch"] = "safetensors"
    """How they are stored; ``torch`` is what `torch.save` wrote, a pickle, of which weights alone are read."""

    @model_serializer(mode="wrap")
    def _without_the_usual(self, inner: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A suite that says nothing of it keeps the hash that it had before there was anything to say.
        found: dict[str, Any] = inner(self)
        return {name: own for name, own in found.items() if name != "checkpoint_format" or own != "safetensors"}


class ThreatUse(_Frozen):
    """Threat models of one norm."""

    norm: Norm
    """Norm of the balls."""

    eps: Annotated[tuple[Annotated[float, AfterValidator(_radius)], ...], BeforeValidator(_list_or_one)] = Field(
        min_length=1, max_length=MOST_ENTRIES
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

    eot: int = Field(default=20, ge=1)
    """Draws averaged per gradient where a stage is stochastic; elsewhere there is one."""

    queries: int | None = Field(default=None, ge=1)
    """Queries per image under black-box access; None: ``DEFAULT_QUERIES``."""

    stop_on_success: bool = False
    """True: the attack may leave an image alone once it has fallen; under white-box and black-box access alone, and
    never where a stage is stochastic."""

    precision: Precision = "float32"
    """``bf16``: gradients are taken through passes in bfloat16, which hardware that has it does faster. What is found
    is scored in float32 all the same."""

    paths: Literal["declared", "all"] | None = None
    """``all``: under white-box access every gradient route through a chain, each survivor of one going to the next.
    None: ``all`` for a cascade, else ``declared``, the one route that the stages' specs ask for."""

    goal: Goal = "untargeted"
    """``targeted``: every image is driven towards a wrong class of its own, drawn at random."""


class MetricUse(_Labelled):
    """A metric."""


class Suite(_Frozen):
    """What to run, as written: plugins by name, not looked up yet."""

    schema_version: Annotated[Literal[1], BeforeValidator(_version)] = Field(alias="schema")
    """Version of the format; ``schema`` in the file."""

    name: _Name
    """Name of the suite and of its directory of results."""

    description: str = Field(default="", max_length=LONGEST_DESCRIPTION)
    """One or two sentences for readers."""

    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], AfterValidator(_unique), BeforeValidator(_list)
    ] = Field(default=(0,), min_length=1, max_length=MOST_ENTRIES)
    """Training seeds; everything is trained and attacked once per seed."""

    dataset: PluginUse
    """The data set."""

    models: Annotated[tuple[ModelUse, ...], BeforeValidator(_tables)] = Field(min_length=1, max_length=MOST_ENTRIES)
    """The classifiers; a file may write ``[model]`` for a single one."""

    threats: Annotated[tuple[ThreatUse, ...], BeforeValidator(_tables)] = Field(min_length=1, max_length=MOST_ENTRIES)
    """The threat models."""

    defenses: Annotated[tuple[DefenseUse, ...], BeforeValidator(_tables)] = Field(min_length=1, max_length=MOST_ENTRIES)
    """The defenses, in the order of the tables."""

    attacks: Annotated[tuple[AttackUse, ...], BeforeValidator(_tables)] = Field(min_length=1, max_length=MOST_ENTRIES)
    """The attacks."""

    metrics: Annotated[tuple[MetricUse, ...], BeforeValidator(_tables)] = Field(default=(), max_length=MOST_ENTRIES)
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

    @property
    def most_cells(self) -> int:
        """Number of cells that the suite asks for at most."""
        attacked = 0
        for attack in self.attacks:
            threats = [threat for threat in self.threats if attack.norms is None or threat.norm in attack.norms]
            attacked += len(attack.access) * sum(len(threat.eps) for threat in threats)
        return len(self.models) * len(self.defenses) * len(self.seeds) * (1 + attacked)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values that ``SuiteDocument.from_dict`` reads back as an equal suite."""
        return self.model_dump(mode="json", by_alias=True, warnings=False)
