"""The plugin under test: its spec, and how to make a fresh instance of it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from autoshield_bench.contracts import Chain, DefenseSpec, Kind, Spec
from autoshield_bench.errors import PluginError
from autoshield_bench.registry import Plugin, Registry
from autoshield_bench.suite_check import flatten

if TYPE_CHECKING:
    from torch import Tensor

KINDS: tuple[Kind, ...] = ("attack", "defense", "metric", "dataset", "model")

Part = tuple[DefenseSpec, Callable[[], Any]]


@dataclass(frozen=True, kw_only=True)
class KnownAnswer:
    """A metric's input whose value is known from elsewhere."""

    inputs: tuple[Tensor, ...]
    """``(reference, other)`` images for a pair metric; ``(labels, clean logits, logits)`` for one of predictions."""

    values: Sequence[float | None]
    """One value per image; None where it is undefined."""

    source: str
    """Where the values come from, such as a paper's table or another library."""

    tolerance: float = 1e-5
    """Largest difference, relative where the value exceeds 1."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A plugin under test."""

    spec: Spec
    """What the plugin declares; it decides which checks apply."""

    make: Callable[[], Any]
    """Returns a fresh instance, neither fitted nor used."""

    parts: tuple[Part, ...] = field(default=())
    """Stages of a defense, each with its own spec: several for a chain, itself alone otherwise."""

    answers: tuple[KnownAnswer, ...] = field(default=())
    """What a metric must come to, from a paper or another implementation; given by its author."""

    @classmethod
    def of(cls, instance: Any, spec: Spec) -> Subject:
        """Return an instance and what is declared of it as a subject. Chains need ``named``."""
        make = functools.partial(copy.deepcopy, instance)
        parts = ((spec, make),) if isinstance(spec, DefenseSpec) else ()
        return cls(spec=spec, make=make, parts=parts)

    @classmethod
    def named(cls, registry: Registry, plugin: Plugin, params: Mapping[str, Any] | None = None) -> Subject:
        """Return an installed plugin as a subject. Raises PluginError where it cannot be made."""
        given = dict(params or {})
        wrong = registry.check_params(plugin, given)
        if wrong:
            raise PluginError("; ".join(message for _key, message in wrong))
        make = functools.partial(registry.make, plugin, given)
        parts: tuple[Part, ...] = ()
        if plugin.kind == "defense":
            parts = tuple(
                (cast("DefenseSpec", stage.spec), functools.partial(registry.make, stage, filled))
                for stage, filled in flatten(registry, plugin, given)
            )
        return cls(spec=plugin.spec, make=make, parts=parts)

    @classmethod
    def resolve(cls, kind: Kind, plugin: object, spec: Spec | None = None) -> Subject:
        """Return whatever an author handed over as a subject.

        ``plugin`` is the name of an installed plugin, ``(name, params)``, or an instance. The spec of an instance is
        ``spec``, or else that of the installed plugin whose factory is its class. Raises PluginError.
        """
        if isinstance(plugin, Subject):
            return plugin
        name, params = plugin if isinstance(plugin, tuple) and len(plugin) == 2 else (plugin, {})
        if isinstance(name, str):
            registry = Registry.discover()
            return cls.named(registry, registry.find(kind, name), params)
        factory = f"{type(plugin).__module__}:{type(plugin).__qualname__}"
        if isinstance(plugin, Chain):
            raise PluginError(f"{factory} is a chain: give its name, or (name, params), so that its stages are found")
        if spec is None:
            found = [one.spec for one in Registry.discover().of_kind(kind) if one.spec.factory == factory]
            if not found:
                raise PluginError(f"no installed {kind} has the factory {factory!r}; set `spec` on the test class")
            spec = found[0]
        return cls.of(plugin, spec)


def find_plugin(registry: Registry, name: str, kind: Kind | None) -> Plugin:
    """Return the plugin of a name, whatever its kind. Raises PluginError where there is none or more than one."""
    if kind is not None:
        return registry.find(kind, name)
    found, failures = [], []
    for each in KINDS:
        try:
            found.append(registry.find(each, name))
        except PluginError as error:
            failures.append(str(error))
    if len(found) == 1:
        return found[0]
    if found:
        kinds = " and ".join(plugin.kind for plugin in found)
        raise PluginError(f"{name!r} is the name of more than one plugin ({kinds}); choose one with --kind")
    # A clash within one kind, or a near miss, says more than five times "there is none".
    telling = [text for text in failures if "more than one" in text or "did you mean" in text]
    raise PluginError((telling or [f"there is no plugin {name!r}; `aubench plugins list` shows what there is"])[0])
