"""Requests as the host makes them, in the small world of the contract kit; and networks with a quirk."""

from __future__ import annotations

import torch
from autoshield_bench.contracts import AttackRequest, ThreatModel
from autoshield_bench.engine.access import searched, target_for
from autoshield_bench.engine.pipeline import PassCounter, Pipeline
from autoshield_bench.seeding import ImageRandom
from autoshield_bench.testing import World
from torch import nn

from aubench_torchattacks.manifest import aubench_attacks

SPECS = {spec.name.removeprefix("torchattacks-"): spec for spec in aubench_attacks()}


class Asked:
    """A request, and what was asked of its network."""

    def __init__(
        self,
        name,
        norm="linf",
        eps=0.1,
        *,
        model=None,
        images=None,
        labels=None,
        targets=None,
        queries=None,
        classes=None,
        stages=(),
    ):
        world = World()
        spec = SPECS[name]
        self.images = world.images if images is None else images
        self.network = world.classifier() if model is None else model
        with torch.no_grad():
            self.labels = self.network(self.images).argmax(1) if labels is None else labels
            classes = self.network(self.images[:1]).shape[1] if classes is None else classes
        self.counter = PassCounter()
        rng = ImageRandom(3, range(len(self.images)))
        threat = searched(spec, ThreatModel(norm=norm, eps=eps), self.images.shape[1:])
        self.target = target_for(
            spec,
            "black-box" if spec.needs == "scores" else "white-box",
            Pipeline(self.network, stages, self.counter),
            rng.child("target"),
            classes=classes,
            eot=2,
            images=self.images,
            labels=self.labels,
            threat=threat,
            targets=targets,
            queries=queries,
        )
        self.request = AttackRequest(
            images=self.images.clone(),
            labels=self.labels.clone(),
            threat=threat,
            target=self.target,
            rng=rng.child("attack"),
            targets=targets,
            queries=queries,
        )

    @property
    def passes(self):
        return self.counter.to_json().get("classifier", {"forward": 0, "backward": 0})


class Counting(nn.Module):
    """A network for the library itself: counts image-passes, and each image's by its place in the batch."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.forward_passes = self.backward_passes = 0
        self.device_of = nn.Parameter(torch.zeros(0), requires_grad=False)
        self.eval()

    def forward(self, x):
        logits = self.network(x)
        self.forward_passes += len(x)
        if logits.requires_grad:
            logits.register_hook(lambda _gradient: self._backward(len(x)))
        return logits

    def _backward(self, images):
        self.backward_passes += images

    @property
    def passes(self):
        return {"forward": self.forward_passes, "backward": self.backward_passes}


class LogSoftmax(nn.Module):
    """The same predictions with logits that are all negative."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x).log_softmax(1)


class Flat(nn.Module):
    """A network whose gradients are zero."""

    def __init__(self, classes=4):
        super().__init__()
        self.classes = classes

    def forward(self, x):
        logits = (0.0 * x.flatten(1).sum(1, keepdim=True)).expand(-1, self.classes).clone()
        logits[:, 0] += 1
        return logits


def accuracy(network, images, labels):
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).float().mean())


def fooled(network, images, labels):
    with torch.no_grad():
        return network(images).argmax(1) != labels
