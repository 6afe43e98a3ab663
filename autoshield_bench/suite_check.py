"""A suite against the plugins of this environment: every name, parameter and norm, with every problem at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from autoshield_bench.contracts import NORMS, AttackSpec, Chain, ModelSpec, StageRequest
from autoshield_bench.errors import PluginError, SuiteError, did_you_mean
from autoshield_bench.registry import Plugin, Registry, speaking_for
from autoshield_bench.shipped import shipped_suites
from autoshield_bench.suite import Suite
from autoshield_bench.suite_file import NamedPlugin, SuiteDocument
from autoshield_bench.toml_lines import Problem

SCORED_WHERE_MADE = ("black-box", "white-box")
"""Access levels whose examples are scored on the very pipeline that they were made on."""

LONGEST_CHAIN = 16
"""Stages of a chain at most, chains within chains counted."""


@dataclass(frozen=True)
class LoadedSuite:
    """A suite whose every name and parameter was checked against the plugins of this environment."""

    suite: Suite
    registry: Registry = field(repr=False)
    folder: Path
    """Where relative checkpoint paths start."""
    file: Path | None = None
    """From which another process can load the same; None where plugins exist in this process alone."""
    plugin_files: tuple[Path, ...] = ()
    """Plugins that are single files."""
    lock: Path | None = None
    """The plugins.lock that every plugin agrees with, in another process too."""


def load_suite(source: str | Path, *, plugins: Sequence[object] = (), lock: Path | None = None) -> LoadedSuite:
    """Read a suite file, or a shipped suite by name, and check it whole.

    ``plugins`` are manifests (modules or objects with hooks) to use beside the installed ones; ``lock`` is a
    plugins.lock that every plugin must agree with. Raises SuiteError with every problem at once, one line each.
    """
    path = find_suite(source)
    loaded = check_suite(SuiteDocument.read(path), Registry.discover(plugins, lock=lock), path.parent)
    files = tuple(own for own in plugins if isinstance(own, Path))
    if len(files) < len(plugins):
        return loaded
    return dataclasses.replace(loaded, file=path, plugin_files=files, lock=lock)


def find_suite(source: str | Path) -> Path:
    """Return the file of a suite named by path or by shipped name. Raises SuiteError naming what there is."""
    path = Path(source)
    known = shipped_suites()
    if str(source) in known and not path.is_file():
        return known[str(source)]  # a directory of that name, such as its results, does not stand in the way
    if path.suffix == ".toml" or path.exists():
        return path
    raise SuiteError([f"{source}: no such file, and no shipped suite of that name{did_you_mean(str(source), known)}"])


def check_suite(document: SuiteDocument, registry: Registry, folder: Path) -> LoadedSuite:
    """Check structure, plugin names, parameters and norms together. Raises SuiteError with every problem."""
    problems = {problem.path: problem for problem in _PluginCheck(document, registry).problems()}
    # One problem per key: what is wrong with its structure says more than what follows from it.
    problems |= {problem.path: problem for problem in document.problems()}
    document.raise_for(list(problems.values()))
    return LoadedSuite(document.suite(), registry, folder)


class _PluginCheck:
    """Looks up every ``use`` of a document, as far as its structure allows."""

    def __init__(self, document: SuiteDocument, registry: Registry) -> None:
        self._document = document
        self._registry = registry
        self._found: list[Problem] = []

    def problems(self) -> list[Problem]:
        """Return what is wrong with names and parameters."""
        # Stages before the chains that hold them, so that what is wrong with a stage is said there alone.
        for named in sorted(self._document.plugins(), key=lambda named: -len(named.path)):
            self._check(named)
        return self._found

    def _check(self, named: NamedPlugin) -> None:
        kind, path = named.kind, named.path
        try:
            plugin = self._registry.find(kind, named.use)
        except PluginError as error:
            self._found.append(Problem((*path, "use"), str(error)))
            return
        entry = self._document.at(path)
        params = dict(named.params)
        if kind == "defense" and entry.get("stages"):
            params["stages"] = entry["stages"]
        wrong = self._registry.check_params(plugin, params)
        for key, message in wrong:
            if key in named.params:
                place: tuple[str | int, ...] = (*path, "params", key)
            else:
                place = (*path, "stages") if key == "stages" else path
            self._found.append(Problem(place, message))
        if kind == "defense" and not wrong and not self._found_below(path):
            try:
                flatten(self._registry, plugin, params)
            except PluginError as error:
                self._found.append(Problem(path, str(error)))
        if kind == "attack":
            self._check_norms(cast("AttackSpec", plugin.spec), path, entry)
            self._check_access(cast("AttackSpec", plugin.spec), path, entry)

    def _found_below(self, path: tuple[str | int, ...]) -> bool:
        return any(problem.path[: len(path)] == path for problem in self._found)

    def _check_norms(self, spec: AttackSpec, path: tuple[str | int, ...], entry: Mapping[str, Any]) -> None:
        threats = self._document.data.get("threats")
        named = (
            [threat.get("norm") for threat in threats if isinstance(threat, dict)] if isinstance(threats, list) else []
        )
        only = entry.get("norms")
        for norm in NORMS:
            if norm not in named or norm in spec.norms or (isinstance(only, list) and norm not in only):
                continue
            able = ", ".join(spec.norms)
            self._found.append(
                Problem(
                    path,
                    f"attack {spec.name!r} cannot search {norm} balls (it searches {able}); "
                    f'add norms = ["{spec.norms[0]}"] to this attack or drop the threat',
                )
            )

    def _check_access(self, spec: AttackSpec, path: tuple[str | int, ...], entry: Mapping[str, Any]) -> None:
        named = entry.get("access")
        access = [named] if isinstance(named, str) else named if isinstance(named, list) else []
        if "black-box" in access and spec.needs == "gradients":
            self._found.append(
                Problem(
                    (*path, "access"),
                    f"attack {spec.name!r} needs gradients, which black-box access does not give; "
                    f'drop "black-box", or use an attack on scores or labels',
                )
            )
        if entry.get("queries") is not None and "black-box" not in access:
            self._found.append(
                Problem(
                    (*path, "queries"),
                    'a query budget belongs to black-box access; add access = ["black-box"] or drop queries',
                )
            )
        if entry.get("precision") == "bf16" and spec.needs != "gradients":
            self._found.append(
                Problem((*path, "precision"), f"attack {spec.name!r} takes no gradients; drop precision")
            )
        elsewhere = [level for level in ("gray-box", "transfer") if level in access]
        if entry.get("stop_on_success") is True and elsewhere:
            self._found.append(
                Problem(
                    (*path, "stop_on_success"),
                    f"{elsewhere[0]} examples are scored on other pipelines than they are made on, so they get the "
                    f"full budget; give {elsewhere[0]} an entry of its own",
                )
            )
        if entry.get("paths") == "all":
            self._check_paths(spec, (*path, "paths"), access, str(entry.get("goal", "untargeted")))
        if spec.detector_aware and access not in (["white-box"], []):
            self._found.append(
                Problem(
                    (*path, "access"),
                    f"attack {spec.name!r} is aware of a detector, which white-box access alone shows; "
                    f'write access = ["white-box"]',
                )
            )
        if "transfer" in access:
            self._check_surrogate((*path, "access"))
        if entry.get("goal") == "targeted" and not spec.targeted:
            self._found.append(
                Problem((*path, "goal"), f'attack {spec.name!r} takes no targets; drop goal = "targeted"')
            )

    def _check_paths(self, spec: AttackSpec, path: tuple[str | int, ...], access: list[Any], goal: str) -> None:
        reason = None
        if "white-box" not in access:
            reason = "only white-box access shows the stages"
        elif not takes_routes(spec):
            reason = f"attack {spec.name!r} climbs no gradient inside a ball"
        elif goal == "targeted":
            reason = "what is found is judged by misclassification, not by targets"
        if reason:
            self._found.append(Problem(path, f'{reason}, so paths = "all" means nothing; drop it'))

    def _check_surrogate(self, path: tuple[str | int, ...]) -> None:
        for named in self._document.plugins():
            if named.kind != "model":
                continue
            try:
                trained = cast("ModelSpec", self._registry.find("model", named.use).spec).trained
            except PluginError:
                continue  # said where it stands
            if trained or self._document.at(named.path).get("checkpoint"):
                self._found.append(
                    Problem(
                        path,
                        f"transfer needs a surrogate trained from another seed, and model {named.use!r} comes trained; "
                        f'drop "transfer" or let the harness train',
                    )
                )


def takes_routes(spec: AttackSpec) -> bool:
    """Return whether gradient routes mean anything to an attack."""
    return spec.needs == "gradients" and spec.search == "fixed-budget"


def flatten(
    registry: Registry, plugin: Plugin, params: Mapping[str, Any], depth: int = 0
) -> list[tuple[Plugin, dict[str, Any]]]:
    """Return a defense as its stages, chains within chains opened up. Raises PluginError where that cannot be."""
    if depth > LONGEST_CHAIN:
        raise PluginError(f"defense {plugin.name!r}: chains are nested deeper than {LONGEST_CHAIN}")
    if not issubclass(registry.load(plugin), Chain):
        return [(plugin, registry.filled_params(plugin, params))]
    made = registry.make(plugin, params)
    stages: list[tuple[Plugin, dict[str, Any]]] = []
    with speaking_for(plugin):
        sequence = list(made.sequence())
    for request in sequence:
        if not isinstance(request, StageRequest):
            raise PluginError(f"defense {plugin.name!r}: its sequence holds {type(request).__name__}, not StageRequest")
        inner = registry.find("defense", request.use)
        wrong = registry.check_params(inner, request.params)
        if wrong:
            raise PluginError(f"stage {request.use!r}: " + "; ".join(message for _key, message in wrong))
        stages += flatten(registry, inner, request.params, depth + 1)
        if len(stages) > LONGEST_CHAIN:
            raise PluginError(f"defense {plugin.name!r}: more than {LONGEST_CHAIN} stages")
    return stages
