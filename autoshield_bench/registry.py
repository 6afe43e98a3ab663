"""Guarded discovery: every plugin comes through one entry-point group, and a broken one is named, not fatal.

A plugin that fails to import, yields rubbish, claims a newer contract or a taken name becomes a ``Problem`` with its
distribution; it turns into an error only when a suite asks for what it would have provided.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import re
import sys
import time
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pluggy

from autoshield_bench import contracts, hookspecs, source
from autoshield_bench.contracts import CONTRACT, Kind, Spec
from autoshield_bench.errors import AubenchError, ParameterError, PluginError, did_you_mean
from autoshield_bench.parameters import converted, parameter_types, type_problem
from autoshield_bench.pins import verified
from autoshield_bench.providers import (
    Origin,
    Problem,
    Provider,
    describe,
    given,
    installed,
    installed_version,
    normal_name,
    source_of,
)

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_SPECS: dict[Kind, type[Spec]] = {
    "attack": contracts.AttackSpec,
    "defense": contracts.DefenseSpec,
    "metric": contracts.MetricSpec,
    "dataset": contracts.DatasetSpec,
    "model": contracts.ModelSpec,
}
_BASES: dict[Kind, tuple[type, ...]] = {
    "attack": (contracts.Attack,),
    "defense": (contracts.Defense, contracts.Chain),
    "metric": (contracts.PredictionMetric, contracts.PairMetric),
    "dataset": (contracts.Dataset,),
    "model": (contracts.Model,),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plugin:
    """One spec and where it came from."""

    spec: Spec
    distribution: str
    distribution_version: str
    origin: Origin
    _source: typing.Callable[[], str] = dataclasses.field(repr=False, compare=False)

    @property
    def kind(self) -> Kind:
        """Kind of the plugin."""
        return self.spec.kind

    @property
    def name(self) -> str:
        """Name that suites use."""
        return self.spec.name

    def identity(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return what goes into a key: who made it, which version, the hash of its source, every parameter.

        Where the plugin wraps other libraries, their versions as well.
        """
        libraries = {name: installed_version(name) for name in self.spec.libraries}
        return {
            "kind": self.kind,
            "name": self.name,
            "distribution": self.distribution,
            "distribution_version": self.distribution_version,
            "version": self.spec.version,
            "source": self._source(),
            "params": dict(params),
            **({"libraries": libraries} if libraries else {}),
        }


@dataclasses.dataclass(frozen=True)
class Loading:
    """What it cost to load one entry point's manifest."""

    distribution: str
    entry_point: str
    seconds: float
    imported_torch: bool
    """Whether it was the one that brought torch in, which makes every command slow."""


class Registry:
    """The plugins of this environment."""

    def __init__(self, plugins: Sequence[Plugin], problems: Sequence[Problem], loadings: Sequence[Loading]) -> None:
        self.plugins = tuple(plugins)
        self.problems = (*problems, *_clashes(plugins))
        self.loadings = tuple(loadings)
        """What each entry point cost to load, in the order in which they were loaded."""

    @classmethod
    def discover(cls, extra: Sequence[object] = (), *, lock: Path | None = None) -> Registry:
        """Load every entry point of the group, then ``extra`` manifests: modules, objects with hooks, or single files.

        A file (a ``Path``) is a manifest and its factories in one; the name of its module is that of the file. With a
        ``lock`` (a plugins.lock), PinError is raised before anything is loaded unless everything is as it pins it.
        """
        pinned = None if lock is None else verified(lock, extra)
        if any(isinstance(manifest, Path) for manifest in extra):
            # An earlier import of the same file has classes of its own.
            _load_factory.cache_clear()
            parameter_types.cache_clear()
        plugins: list[Plugin] = []
        problems: list[Problem] = []
        loadings: list[Loading] = []
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        # Built-ins first: whoever claims one of their names is the newcomer, wherever it stands on the path.
        for provider in sorted(
            (*installed(problems), *given(extra)), key=lambda provider: provider.origin != "built-in"
        ):
            began, had_torch = time.perf_counter(), "torch" in sys.modules
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    plugins.extend(_specs_of(provider, manager, problems))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                problems.append(Problem(provider.distribution, provider.entry_point, describe(error)))
            loadings.append(
                Loading(
                    provider.distribution,
                    provider.entry_point,
                    time.perf_counter() - began,
                    not had_torch and "torch" in sys.modules,
                )
            )
        if pinned is not None:
            pinned.check_factories({plugin.spec.factory: plugin.distribution for plugin in plugins})
        return cls(plugins, problems, loadings)

    def of_kind(self, kind: Kind) -> tuple[Plugin, ...]:
        """Return the plugins of one kind, in order of their names."""
        return tuple(sorted((p for p in self.plugins if p.kind == kind), key=lambda p: (p.name, p.distribution)))

    def find(self, kind: Kind, use: str) -> Plugin:
        """Return the plugin that a suite calls ``use``: a name, or ``distribution/name``.

        Raises PluginError where there is none or more than one; the message holds the load failures there were.
        """
        distribution, _, name = use.rpartition("/")
        found = [
            plugin
            for plugin in self.of_kind(kind)
            if plugin.name == name
            and (not distribution or normal_name(plugin.distribution) == normal_name(distribution))
        ]
        if len(found) == 1:
            return found[0]
        if found:
            claims = " and ".join(f"{plugin.distribution}/{plugin.name}" for plugin in found)
            raise PluginError(f"{kind} {use!r} is claimed by more than one distribution; write {claims}")
        hint = did_you_mean(name, {plugin.name for plugin in self.of_kind(kind)})
        broken = "".join(f" ({problem})" for problem in self.problems if not problem.message.startswith("claims "))
        raise PluginError(f"there is no {kind} {use!r}{hint}{broken}")

    def load(self, plugin: Plugin) -> type:
        """Import a plugin's factory. Raises PluginError naming the plugin where that fails."""
        return _load_factory(
            plugin.spec.factory, plugin.kind, f"{plugin.kind} {plugin.name!r} of {plugin.distribution}"
        )

    def check_params(self, plugin: Plugin, params: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return what is wrong with a plugin's parameters as (key, message); empty where all is well."""
        try:
            hints = parameter_types(self.load(plugin))
        except PluginError as error:
            return [("", str(error))]
        wrong = []
        for key, value in params.items():
            if key not in hints:
                hint = did_you_mean(key, hints)
                wrong.append((key, f"{plugin.kind} {plugin.name!r} has no parameter {key!r}{hint}"))
                continue
            message = type_problem(hints[key], value)
            if message:
                wrong.append((key, f"{plugin.kind} {plugin.name!r}: {message}"))
        missing = [
            field.name
            for field in dataclasses.fields(self.load(plugin))
            if field.init
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
            and field.name not in params
        ]
        wrong += [(key, f"{plugin.kind} {plugin.name!r} needs the parameter {key!r}") for key in missing]
        if not wrong:
            try:
                self.make(plugin, params)
            except ParameterError as error:
                wrong.append((error.key, f"{plugin.kind} {plugin.name!r}: {error.message}"))
            except PluginError as error:
                wrong.append(("", str(error)))
        return wrong

    def make(self, plugin: Plugin, params: Mapping[str, Any]) -> Any:
        """Return an instance of the plugin with these parameters. Raises ParameterError or PluginError."""
        factory = self.load(plugin)
        hints = parameter_types(factory)
        try:
            return factory(**{key: converted(hints[key], value) for key, value in params.items()})
        except (ParameterError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise PluginError(f"{plugin.kind} {plugin.name!r} of {plugin.distribution}: {describe(error)}") from error

    def filled_params(self, plugin: Plugin, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters as JSON values with every default filled in."""
        from pydantic import ConfigDict, TypeAdapter

        instance = self.make(plugin, params)
        values = {name: getattr(instance, name) for name in parameter_types(cast("type", type(instance)))}
        try:
            filled: dict[str, Any] = TypeAdapter(
                dict[str, Any], config=ConfigDict(ser_json_inf_nan="constants")
            ).dump_python(values, mode="json")
            json.dumps(filled, allow_nan=False)
        except Exception as error:
            who = f"{plugin.kind} {plugin.name!r} of {plugin.distribution}"
            raise PluginError(f"{who}: a parameter cannot be recorded as JSON: {describe(error)}") from error
        return filled


def _specs_of(provider: Provider, manager: pluggy.PluginManager, problems: list[Problem]) -> list[Plugin]:
    """Return the sound specs of one provider; what is wrong with the others joins ``problems``."""
    manifest = provider.load()
    version = getattr(manifest, "CONTRACT", None)
    if not isinstance(version, int) or isinstance(version, bool):
        raise PluginError("its manifest states no CONTRACT = <integer>")
    if version > CONTRACT:
        raise PluginError(
            f"it was written for contract {version}, this harness knows {CONTRACT}; upgrade autoshield-bench"
        )
    manager.register(manifest, name=f"{provider.distribution}:{provider.entry_point}")
    others = [other for other in manager.get_plugins() if other is not manifest]
    taken: list[Plugin] = []
    for kind, hook in hookspecs.HOOKS.items():
        caller = manager.subset_hook_caller(hook, remove_plugins=others)
        for yielded in caller():
            for spec in yielded:
                wrong = _spec_problem(spec, cast("Kind", kind))
                if wrong:
                    problems.append(Problem(provider.distribution, provider.entry_point, wrong))
                    continue
                if provider.origin == "built-in":
                    hash_source: typing.Callable[[], str] = functools.partial(source.builtin_hash, kind)
                else:
                    hash_source = functools.cache(functools.partial(source_of, provider, manifest, spec.factory))
                taken.append(
                    Plugin(
                        spec=spec,
                        distribution=provider.distribution,
                        distribution_version=provider.version,
                        origin=provider.origin,
                        _source=hash_source,
                    )
                )
    return taken


def _spec_problem(spec: object, kind: Kind) -> str | None:
    hook, expected = hookspecs.HOOKS[kind], _SPECS[kind]
    if not isinstance(spec, expected):
        return f"{hook} yielded {type(spec).__name__!r} where {expected.__name__} belongs"
    if not isinstance(spec.name, str) or not _NAME.fullmatch(spec.name):
        return f"{hook}: name {spec.name!r} is not made of lower-case letters, digits and hyphens"
    if not isinstance(spec.factory, str) or not _FACTORY.fullmatch(spec.factory):
        return f"{hook}: {spec.name!r} has factory {spec.factory!r}, which is not of the form 'package.module:Class'"
    if isinstance(spec, contracts.AttackSpec) and not _are_norms(spec.norms):
        return f"{hook}: {spec.name!r} has norms {spec.norms!r}; give a tuple of {' and '.join(contracts.NORMS)}"
    for name, hint in _spec_hints(kind).items():
        value = getattr(spec, name)
        words = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        if (words and value not in words) or (hint is bool and not isinstance(value, bool)):
            known = " or ".join(repr(word) for word in words or (True, False))
            return f"{hook}: {spec.name!r} declares {name}={value!r}; give {known}"
    if not isinstance(spec.libraries, tuple) or not all(isinstance(name, str) for name in spec.libraries):
        return f"{hook}: {spec.name!r} has libraries {spec.libraries!r}; give a tuple of names of distributions"
    version, summary = cast("tuple[object, object]", (spec.version, spec.summary))
    if not isinstance(version, int) or not isinstance(summary, str):
        return f"{hook}: {spec.name!r} must have an integer version and a one-line summary"
    return None


@functools.cache
def _spec_hints(kind: Kind) -> dict[str, Any]:
    return typing.get_type_hints(_SPECS[kind])


def _are_norms(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(norm in contracts.NORMS for norm in value)


def _clashes(plugins: Sequence[Plugin]) -> list[Problem]:
    owners: dict[tuple[str, str], list[Plugin]] = {}
    for plugin in plugins:
        owners.setdefault((plugin.kind, plugin.name), []).append(plugin)
    found = []
    for (kind, name), claims in owners.items():
        for plugin in claims[1:]:
            first = claims[0].distribution
            names = f"{plugin.distribution}/{name} or {first}/{name}"
            message = f"claims the {kind} name {name!r}, taken by {first}; write {names}"
            found.append(Problem(plugin.distribution, name, message))
    return found


@functools.cache
def _load_factory(factory: str, kind: Kind, who: str) -> type:
    module_name, _, class_name = factory.partition(":")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(f"{who}: {module_name} cannot be imported: {describe(error)}") from error
    made = getattr(module, class_name, None)
    if made is None:
        raise PluginError(f"{who}: {module_name} has no {class_name}")
    bases = _BASES[kind]
    if not isinstance(made, type) or not issubclass(made, bases):
        raise PluginError(f"{who}: {factory} is not a subclass of {' or '.join(base.__name__ for base in bases)}")
    if not dataclasses.is_dataclass(made):
        raise PluginError(f"{who}: {factory} is not a dataclass; its fields would be its parameters")
    return made


@contextlib.contextmanager
def speaking_for(plugin: Plugin) -> Iterator[None]:
    """Turn whatever a plugin's own code raises into a PluginError that names the plugin."""
    try:
        yield
    except AubenchError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(f"{plugin.kind} {plugin.name!r} of {plugin.distribution}: {describe(error)}") from error
