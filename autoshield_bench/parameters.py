"""The parameters of a plugin: the typed, keyword-only fields of its factory, strictly checked."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
import types
import typing
from typing import Any

from autoshield_bench.errors import PluginError


@functools.cache
def parameter_types(factory: type) -> dict[str, Any]:
    """Return the types of a factory's parameters; other fields may name types that exist for type checkers alone."""
    types_by_name: dict[str, Any] = {}
    for field in dataclasses.fields(factory):
        if not field.init:
            continue
        # The class that declares the field: its module is where the annotation's names are known.
        owners = [base for base in factory.__mro__ if field.name in getattr(base, "__dataclass_fields__", {})]
        names = vars(sys.modules[owners[-1].__module__])
        holder = types.FunctionType((lambda: None).__code__, dict(names))
        holder.__annotations__ = {field.name: field.type}
        try:
            types_by_name[field.name] = typing.get_type_hints(holder, include_extras=True)[field.name]
        except Exception as error:
            where = f"{factory.__module__}:{factory.__name__}.{field.name}"
            raise PluginError(f"{where}: its annotation cannot be read: {error}") from error
    return types_by_name


def converted(hint: Any, value: Any) -> Any:
    """Return a TOML or JSON value as the parameter's type: strict, but a list may become a tuple."""
    from pydantic import TypeAdapter

    return TypeAdapter(hint).validate_json(json.dumps(value), strict=True)


def type_problem(hint: Any, value: Any) -> str | None:
    """Return what is wrong with a value for a parameter of this type, and the remedy; None where it fits."""
    from pydantic import PydanticUserError, ValidationError

    wanted = getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint).replace("typing.", "")
    remedy = f"give a value of type {wanted}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value!r} is not a finite number; {remedy}"
    try:
        converted(hint, value)
    except ValidationError as error:
        detail = error.errors()[0]
        return f"{detail['msg'].lower()}, got {str(detail['input'])[:60]!r}; {remedy}"
    except (TypeError, ValueError, PydanticUserError):
        return f"a value of type {type(value).__name__} cannot be a parameter; {remedy}"
    return None
