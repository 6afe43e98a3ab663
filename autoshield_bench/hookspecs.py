"""The hooks that a plugin may implement.

With one of them, a plugin is a single file:

    from dataclasses import dataclass
    from autoshield_bench.contracts import Defense, DefenseSpec
    from autoshield_bench.hookspecs import hookimpl

    CONTRACT = 1

    @hookimpl
    def aubench_defenses():
        yield DefenseSpec(name="dim", factory=f"{__name__}:Dim", summary="Dims the image.")

    @dataclass(frozen=True, kw_only=True)
    class Dim(Defense):
        factor: float = 0.5

        def purify(self, x, rng):
            return self.factor * x

A *spec* declares what the plugin is; its *factory*, named as a string, is a dataclass whose fields are the parameters
that a suite may set. ``aubench plugins check dim --plugin dim.py`` proves that it keeps the rules, ``aubench run SUITE
--plugin dim.py`` tries it, and ``aubench new plugin dim --kind defense`` writes an installable distribution: its entry
point in the group ``autoshield_bench`` names a light module with the hooks. docs/plugins.md is the long form of this.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from autoshield_bench.contracts import AttackSpec, DatasetSpec, DefenseSpec, MetricSpec, ModelSpec

PROJECT = "autoshield_bench"
"""Name of the pluggy project and of the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def aubench_attacks() -> Iterable[AttackSpec]:  # type: ignore[empty-body]
    """Yield attacks.

    ``yield AttackSpec(name="step", factory="my_plugin.step:Step", summary="One gradient step.", norms=("linf",))``
    """


@hookspec
def aubench_defenses() -> Iterable[DefenseSpec]:  # type: ignore[empty-body]
    """Yield defenses.

    ``yield DefenseSpec(name="blur", factory="my_plugin.blur:Blur", summary="Blurs the input.")``
    """


@hookspec
def aubench_metrics() -> Iterable[MetricSpec]:  # type: ignore[empty-body]
    """Yield metrics.

    ``yield MetricSpec(name="mae", factory="my_plugin.mae:Mae", summary="Mean absolute error.", looks_at="pair",
    direction="lower", range=(0, 1))``
    """


@hookspec
def aubench_datasets() -> Iterable[DatasetSpec]:  # type: ignore[empty-body]
    """Yield data sets.

    ``yield DatasetSpec(name="kmnist", factory="my_plugin.kmnist:Kmnist", summary="Cursive Japanese characters.")``
    """


@hookspec
def aubench_models() -> Iterable[ModelSpec]:  # type: ignore[empty-body]
    """Yield classifiers.

    ``yield ModelSpec(name="mlp", factory="my_plugin.mlp:Mlp", summary="Two fully connected layers.")``
    """


HOOKS = {
    "attack": "aubench_attacks",
    "defense": "aubench_defenses",
    "metric": "aubench_metrics",
    "dataset": "aubench_datasets",
    "model": "aubench_models",
}
"""Hook name by plugin kind."""
