"""The hooks a plugin may implement. Each yields specs; the example under each is a whole manifest entry."""

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
