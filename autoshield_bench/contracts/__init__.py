"""The contract between the host and its plugins: specs, requests and base classes.

Importing this module imports neither torch nor numpy, so a plugin's manifest stays light. Fields are only ever
added, with defaults; a change that breaks a plugin raises ``CONTRACT``.

Images are float32 tensors ``[N, C, H, W]`` in [0, 1]; labels are int64 tensors ``[N]``.
"""

from __future__ import annotations

from autoshield_bench.contracts.attacks import (
    Attack,
    AttackRequest,
    LossGradient,
    Target,
    TargetOutput,
)
from autoshield_bench.contracts.data import (
    Dataset,
    DatasetInfo,
    Model,
    Recipe,
    Split,
)
from autoshield_bench.contracts.defenses import (
    Chain,
    Defense,
    FitRequest,
    StageRequest,
)
from autoshield_bench.contracts.metrics import (
    MetricValues,
    PairMetric,
    PredictionMetric,
)
from autoshield_bench.contracts.specs import (
    AttackSpec,
    DatasetSpec,
    DefenseSpec,
    MetricSpec,
    ModelSpec,
    Spec,
)
from autoshield_bench.contracts.threat import (
    ACCESS_LEVELS,
    CONTRACT,
    NORMS,
    Access,
    Goal,
    Kind,
    Needs,
    Norm,
    Precision,
    Randomness,
    Search,
    ThreatModel,
)

__all__ = [
    "ACCESS_LEVELS",
    "CONTRACT",
    "NORMS",
    "Access",
    "Attack",
    "AttackRequest",
    "AttackSpec",
    "Chain",
    "Dataset",
    "DatasetInfo",
    "DatasetSpec",
    "Defense",
    "DefenseSpec",
    "FitRequest",
    "Goal",
    "Kind",
    "LossGradient",
    "MetricSpec",
    "MetricValues",
    "Model",
    "ModelSpec",
    "Needs",
    "Norm",
    "PairMetric",
    "Precision",
    "PredictionMetric",
    "Randomness",
    "Recipe",
    "Search",
    "Spec",
    "Split",
    "StageRequest",
    "Target",
    "TargetOutput",
    "ThreatModel",
]
