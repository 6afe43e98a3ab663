"""The canaries and the sound defenses, each with what it declares, what is true, and the check that is meant for it.

The manifest, the trial, the command and docs/canaries.md are all made from these tables.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoshield_bench.contracts import DefenseSpec

_HERE = "autoshield_bench.canaries"

_AUTOENCODER = {"epochs": 12, "width": 8, "learning_rate": 0.005, "noise": "gaussian", "noise_level": [0.05, 0.3]}

STRENGTHS = {1: "mild", 2: "plain", 3: "gross"}


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A defense that is wrong in a known way, at three strengths."""

    name: str
    factories: tuple[str, ...]
    """One with a parameter ``strength``, or one for each strength."""
    declares: str
    """The false declaration, in words."""
    truth: str
    """What is wrong with it."""
    checks: tuple[str, ...]
    """The checks meant for it: at least one of them must fail. Empty for one that hides nothing but its scores: it need
    not be caught, but its worst case must be low."""
    differentiable: bool = True
    suite: str = "naive"
    """The suite of ``trial`` that it is run by."""

    def spec_name(self, strength: int) -> str:
        """Return the name of the plugin."""
        return self.name if len(self.factories) == 1 else f"{self.name}-{strength}"

    def entry(self, strength: int) -> dict[str, Any]:
        """Return how a suite names it at this strength."""
        params = {"strength": strength} if len(self.factories) == 1 else {}
        return {"use": self.spec_name(strength), "label": f"{self.name}-{strength}", "params": params}

    def specs(self) -> Iterator[DefenseSpec]:
        """Yield what it declares to the harness."""
        for strength, factory in enumerate(self.factories, start=1):
            yield DefenseSpec(
                name=self.spec_name(strength),
                factory=f"{_HERE}.{factory}",
                summary=f"Canary: {self.truth}",
                differentiable=self.differentiable,
            )


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A defense that must pass every check."""

    use: str
    what: str
    factory: str = ""
    """Empty for a built-in."""
    params: Mapping[str, Any] = field(default_factory=dict)
    declares: Mapping[str, Any] = field(default_factory=dict)
    """Fields of its spec."""
    suite: str = "fit"
    """The suite of ``trial`` that it is run by."""

    def entry(self) -> dict[str, Any]:
        """Return how a suite names it."""
        return {"use": self.use, "label": self.use, "params": dict(self.params)}

    def specs(self) -> Iterator[DefenseSpec]:
        """Yield what it declares to the harness, unless it is a built-in."""
        if self.factory:
            summary = f"Sound: {self.what}"
            yield DefenseSpec(name=self.use, factory=f"{_HERE}.{self.factory}", summary=summary, **self.declares)


CANARIES = (
    Canary(
        name="shatterer",
        factories=("gradients:Shatterer",),
        declares="differentiable",
        truth="a steep ripple, too fine to see, decides the sign of the gradient",
        checks=("gradients", "converged", "black-box"),
    ),
    Canary(
        name="quantiser",
        factories=("gradients:Quantiser",),
        declares="differentiable",
        truth="a staircase, whose gradient is zero wherever it exists",
        checks=("gradients",),
    ),
    Canary(
        name="detacher",
        factories=("gradients:Detacher",),
        declares="differentiable",
        truth="most values, or all, are cut from the graph",
        checks=("gradients",),
    ),
    Canary(
        name="rescaler",
        factories=("gradients:Rescaler",),
        declares="differentiable",
        truth="logits so large that the gradient of cross-entropy is zero in float32",
        checks=("gradients", "converged", "black-box"),
    ),
    Canary(
        name="latent-noise",
        factories=("randomness:LatentNoise",),
        declares="not stochastic",
        truth="fresh noise before the classifier's last layer",
        checks=("randomness",),
    ),
    Canary(
        name="hashed-noise",
        factories=("randomness:HashedNoise",),
        declares="not stochastic, differentiable",
        truth="noise seeded from a hash of the image: another one for every image that an attack tries",
        checks=("randomness", "gradients"),
    ),
    Canary(
        name="training-mode",
        factories=("randomness:TrainingMode",),
        declares="not stochastic, all its networks in evaluation mode",
        truth="a network that drops values and normalises by the batch that an image travels in",
        checks=("live",),
    ),
    Canary(
        name="uncalled",
        factories=("pretence:Misspelt", "pretence:SameClassifier", "pretence:SameImage"),
        declares="to defend",
        truth="its method is misspelt, or hands back the classifier, or the image, that it was given",
        checks=("live",),
    ),
    Canary(
        name="memoriser",
        factories=("pretence:Memoriser",),
        declares="to know the training data alone",
        truth="it has learnt a part of the test set, or all of it, by heart",
        checks=("held-out",),
        differentiable=False,
    ),
    Canary(
        name="score-hider",
        factories=("gradients:ScoreHider",),
        declares="differentiable",
        truth="nothing but the scores is any different, and they are made coarse",
        checks=(),
        suite="routes",
    ),
)

SOUND = (
    Sound(
        use="adversarially-trained",
        what="the classifier, trained on its own adversarial images",
        factory="sound:AdversariallyTrained",
        declares={"needs_classifier": True, "trained_on": "attacks"},
        suite="targeted",
    ),
    Sound(use="blur", what="a Gaussian blur", factory="sound:Blur"),
    Sound(
        use="honest-quantiser",
        what="a staircase, declared not differentiable",
        factory="sound:HonestQuantiser",
        declares={"differentiable": False},
    ),
    Sound(
        use="smoother",
        what="Gaussian noise, declared stochastic",
        factory="sound:Smoother",
        declares={"stochastic": True},
        suite="drawn",
    ),
    Sound(
        use="noisy-smoother",
        what="so much of it that many an image is right in half of its draws",
        factory="sound:Smoother",
        params={"deviation": 0.35},
        declares={"stochastic": True},
        suite="noisy",
    ),
    Sound(
        use="detector",
        what="a detector of what a blur changes, attacked by one that knows it",
        factory="sound:Detector",
        suite="aware",
    ),
    Sound(use="blur-l2", what="the blur in an L2 ball", factory="sound:Blur", suite="l2"),
    Sound(use="autoencoder", what="the built-in autoencoder", params=_AUTOENCODER),
    Sound(
        use="stacked-autoencoder",
        what="two of them in sequence",
        params={"first": _AUTOENCODER, "second": _AUTOENCODER},
    ),
)


def markdown() -> str:
    """Return both tables as docs/canaries.md shows them."""
    lines = ["| canary | declares | truth | must fail |", "|---|---|---|---|"]
    for canary in CANARIES:
        checks = " or ".join(f"`{check}`" for check in canary.checks) or "nothing; its worst case must be low"
        lines.append(f"| `{canary.name}` | {canary.declares} | {canary.truth} | {checks} |")
    lines += ["", "| sound defense | what it is |", "|---|---|"]
    lines += [f"| `{sound.use}` | {sound.what} |" for sound in SOUND]
    return "\n".join(lines) + "\n"


def write_tables(path: Path) -> None:
    """Put both tables between the marks of a document."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{markdown()}\n{END}{after}", encoding="utf-8")


BEGIN, END = "<!-- tables -->", "<!-- end -->"

if __name__ == "__main__":
    write_tables(Path(sys.argv[1]))
