"""Requests as the host makes them, on the world of the contract kit."""

from __future__ import annotations

import numpy as np
import torch
from autoshield_bench.contracts import AttackRequest, ThreatModel
from autoshield_bench.engine.access import searched, target_for
from autoshield_bench.engine.pipeline import PassCounter, Pipeline
from autoshield_bench.testing.world import World

from aubench_art.attack_specs import attack_specs

SPECS = {spec.name: spec for spec in attack_specs()}
EPS = {"linf": 0.1, "l2": 0.8}
WORLD = World()


def request_for(
    name,
    norm="l2",
    *,
    model=None,
    labels=None,
    targets=None,
    queries=None,
    access="white-box",
    rows=None,
    eps=None,
    images=None,
):
    """Return a request as the host makes it, and the counter of its passes."""
    spec, counter, model = SPECS[name], PassCounter(), model or WORLD.classifier()
    chosen = list(range(len(WORLD.images))) if rows is None else rows
    images = (WORLD.images if images is None else images)[chosen]
    labels = (WORLD.labels if labels is None else labels)[chosen]
    threat = searched(spec, ThreatModel(norm=norm, eps=EPS[norm] if eps is None else eps), images.shape[1:])
    rng = WORLD.rng(indices=chosen)
    with torch.no_grad():
        classes = model(images).shape[1]
    target = target_for(
        spec,
        access,
        Pipeline(model, (), counter),
        rng.child("target"),
        classes=classes,
        eot=1,
        images=images,
        labels=labels,
        threat=threat,
        targets=targets,
        queries=queries,
    )
    rng = rng.child("attack")
    request = AttackRequest(
        images=images, labels=labels, threat=threat, target=target, rng=rng, targets=targets, queries=queries
    )
    return request, counter


def one_hot(labels):
    return np.eye(WORLD.classes, dtype=np.float32)[labels.numpy()]


def accuracy(images, labels):
    with torch.no_grad():
        return float((WORLD.classifier()(images).argmax(1) == labels).float().mean())
