"""What a pipeline made of a cell's images, one bit or one count per image, so that it travels inside a record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Draws:
    """How often a stochastic pipeline classified each evaluated image correctly, images in ascending order.

    A worst case chooses its attack by ``selection`` and is scored by ``scored``, which are different draws: else it
    would be the unluckiest draw that counts.
    """

    n: int
    """Fresh draws in each of the two sets; at most 255."""

    selection: bytes
    """One count per image."""

    scored: bytes
    """One count per image."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Draws:
        """Read the counts, written as hexadecimal text. Raises ValueError where they do not fit."""
        expect(value, {"n": int, "selection": str, "scored": str})
        draws = cls(
            n=int(value["n"]), selection=bytes.fromhex(value["selection"]), scored=bytes.fromhex(value["scored"])
        )
        if not 1 <= draws.n <= 255 or len(draws.selection) != len(draws.scored):
            raise ValueError("draws: the counts do not fit")
        if max((*draws.selection, *draws.scored), default=0) > draws.n:
            raise ValueError("draws: a count is larger than the number of draws")
        return draws

    def to_json(self) -> dict[str, Any]:
        """Return the counts as hexadecimal text."""
        return {"n": self.n, "selection": self.selection.hex(), "scored": self.scored.hex()}


@dataclass(frozen=True, kw_only=True)
class Detection:
    """What a defense's detectors made of the images of one cell."""

    flagged: Mapping[str, int]
    """By nominal false-positive rate, written as in ``str(rate)``: mask of the images that any stage flags, among those
    evaluated; by most draws where the pipeline is stochastic."""

    thresholds: Mapping[str, Mapping[str, float]]
    """By rate, then component: an image is flagged where its score is larger."""

    not_applicable: Mapping[str, str]
    """By rate: why there is no threshold, such as a validation part that is too small."""

    auroc: Mapping[str, float | None]
    """By component: scores of the successful examples (right when clean, misclassified now) against those of the same
    cell's clean images; None where there is none of either, and in a clean cell."""

    won: Mapping[str, Draws] = field(default_factory=dict)
    """By rate, where the pipeline is stochastic: in how many draws the defense wins the joint game on each evaluated
    image, by classifying it correctly or flagging it; in a clean cell, by classifying it correctly and not flagging it.
    One draw both classifies and flags, so this is more than the counts of each tell."""

    def to_json(self) -> dict[str, Any]:
        """Return masks and counts as hexadecimal text."""
        return {
            "flagged": {rate: f"{mask:x}" for rate, mask in self.flagged.items()},
            "thresholds": {rate: dict(own) for rate, own in self.thresholds.items()},
            "not_applicable": dict(self.not_applicable),
            "auroc": dict(self.auroc),
            "won": {rate: draws.to_json() for rate, draws in self.won.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Detection:
        """Read what ``to_json`` wrote. Raises ValueError or TypeError where it does not fit."""
        expect(value, {"flagged": dict, "thresholds": dict, "not_applicable": dict, "auroc": dict, "won": dict})
        expect(value["auroc"], dict.fromkeys(value["auroc"], float | int | None))
        for own in value["thresholds"].values():
            expect(own, dict.fromkeys(own, float | int))
        return cls(
            flagged={rate: int(mask, 16) for rate, mask in value["flagged"].items()},
            thresholds=value["thresholds"],
            not_applicable=value["not_applicable"],
            auroc=value["auroc"],
            won={rate: Draws.from_json(draws) for rate, draws in value["won"].items()},
        )


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Per-image outcomes over a split, as bit masks: bit i belongs to image i of the test set."""

    size: int
    """Number of images of the whole test set."""

    evaluated: int
    """Mask of the images that the cell evaluated."""

    correct: int
    """Mask of those classified correctly by the defended pipeline; by most of its draws where it is stochastic."""

    draws: Draws | None = None
    """How often each image was classified correctly, where the pipeline is stochastic."""

    @property
    def n(self) -> int:
        """Number of images evaluated."""
        return self.evaluated.bit_count()

    @property
    def hits(self) -> int:
        """Number of images classified correctly."""
        return self.correct.bit_count()

    @property
    def right(self) -> float:
        """Expected number of images classified correctly: ``hits``, or the sum over images of their share of draws."""
        return self.hits if self.draws is None else sum(self.draws.scored) / self.draws.n

    def to_json(self) -> dict[str, Any]:
        """Return the masks as hexadecimal text."""
        masks: dict[str, Any] = {
            "size": self.size,
            "evaluated": f"{self.evaluated:x}",
            "correct": f"{self.correct:x}",
        }
        if self.draws is None:
            return masks
        return {**masks, "draws": self.draws.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Outcomes:
        """Read what ``to_json`` wrote. Raises ValueError where the masks do not fit."""
        outcomes = cls(
            size=int(value["size"]),
            evaluated=int(value["evaluated"], 16),
            correct=int(value["correct"], 16),
            draws=Draws.from_json(value["draws"]) if value.get("draws") is not None else None,
        )
        if outcomes.evaluated >> outcomes.size or outcomes.correct & ~outcomes.evaluated:
            raise ValueError("outcomes: the masks do not fit the size")
        if outcomes.draws is not None and len(outcomes.draws.scored) != outcomes.n:
            raise ValueError("outcomes: the draws do not fit the number of images")
        return outcomes

    @classmethod
    def from_indices(
        cls, size: int, evaluated: Iterable[int], correct: Iterable[int], draws: Draws | None = None
    ) -> Outcomes:
        """Return the masks of two collections of image indices."""
        return cls(size=size, evaluated=mask_of(size, evaluated), correct=mask_of(size, correct), draws=draws)


def mask_of(size: int, indices: Iterable[int]) -> int:
    """Return the bit mask of a collection of image indices."""
    bits = bytearray((size + 7) // 8)
    for index in indices:
        bits[index // 8] |= 1 << (index % 8)
    return int.from_bytes(bits, "little")


def expect(value: Any, kinds: Mapping[str, Any]) -> None:
    """Raise TypeError unless ``value`` maps these names to these types; an absent entry is None, a bool no number."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{type(value).__name__} where an object belongs")
    for name, kind in kinds.items():
        entry = value.get(name)
        if not isinstance(entry, kind) or (isinstance(entry, bool) and kind is not bool):
            raise TypeError(f"{name}: {type(entry).__name__} is not what belongs there")
        if isinstance(entry, int) and not isinstance(entry, bool) and abs(entry) >= 2**63:
            raise ValueError(f"{name}: the number is too large")
