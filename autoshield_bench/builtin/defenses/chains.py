"""Defenses made of others: none at all, any sequence, and two autoencoders in sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autoshield_bench.contracts import Chain, StageRequest
from autoshield_bench.errors import ParameterError


@dataclass(frozen=True, kw_only=True)
class NoDefense(Chain):
    """The undefended classifier: a chain without stages."""

    def sequence(self) -> tuple[StageRequest, ...]:
        """Return no stage."""
        return ()


@dataclass(frozen=True, kw_only=True)
class ChainOf(Chain):
    """Defenses in sequence, each fitted on the output of those before it."""

    stages: tuple[dict[str, Any], ...]
    """``{ use = "name", params = {...} }`` for each stage, in the order in which an image passes them."""

    def __post_init__(self) -> None:
        for stage in self.stages:
            if not isinstance(stage.get("use"), str) or set(stage) - {"use", "params"}:
                raise ParameterError("stages", f"{stage!r} is not of the form {{ use = ..., params = ... }}")

    def sequence(self) -> tuple[StageRequest, ...]:
        """Return the stages as given."""
        return tuple(StageRequest(use=stage["use"], params=stage.get("params", {})) for stage in self.stages)


@dataclass(frozen=True, kw_only=True)
class StackedAutoencoder(Chain):
    """Two autoencoders in sequence; the second learns to clean what the first one leaves.

    With the first one's parameters equal to a single ``autoencoder`` of the suite, that one is trained once for both.
    """

    first: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the first ``autoencoder``."""

    second: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the second; it may have another architecture."""

    def sequence(self) -> tuple[StageRequest, ...]:
        """Return the two autoencoders."""
        return (
            StageRequest(use="autoshield-bench/autoencoder", params=self.first),
            StageRequest(use="autoshield-bench/autoencoder", params=self.second),
        )
