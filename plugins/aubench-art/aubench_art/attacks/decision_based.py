"""ART's black-box attacks from labels alone. They walk image by image, so each is seeded by its image's randomness."""

from __future__ import annotations

import contextlib
import math
import sys
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy
from autoshield_bench.contracts import Attack, AttackRequest
from autoshield_bench.errors import ParameterError

from aubench_art.attacks.requests import goal, one_by_one, order, points

if TYPE_CHECKING:
    from autoshield_bench.seeding import ImageRandom
    from torch import Tensor

_HALVINGS = 200
"""Halvings of a step in HopSkipJump after which float32 sees no further change: it would go on for ever."""
_UNLIMITED = 50
"""Iterations of HopSkipJump where there is no budget of queries."""
_SEARCH = 20
"""Queries of the searches along a line in one iteration of HopSkipJump, roughly."""


class _FromLabels(Attack):
    """What both share: one image at a time, seeded by its own randomness, and the nearest point asked about."""

    starts: int
    """Random images to try for a misclassified one to start from."""

    def run(self, request: AttackRequest) -> Tensor:
        """Return the nearest misclassified points that ART asked about, and the clean image where there are none."""
        import torch

        if not len(request.images):
            return request.images.clone()
        return torch.cat([self._run(one) for one in one_by_one(request)])

    def _run(self, request: AttackRequest) -> Tensor:
        from aubench_art.attacks.classifier import Enough, QuestionsOfOne, query_classifier, quiet

        questions = QuestionsOfOne(request, "labels", patience=self.starts + _HALVINGS)
        if bool(questions(points(request.images)).argmax(1) != request.labels.cpu().numpy()):
            return request.images.clone()  # ART would walk away from the predicted class, wrong as it is
        with quiet():
            attack = self._attack(query_classifier(questions, request), request)
            with seeded(request.rng, type(attack)), contextlib.suppress(Enough):
                attack.generate(points(request.images), goal(request))
        return questions.nearest

    @abstractmethod
    def _attack(self, classifier: Any, request: AttackRequest) -> Any:
        """Return ART's attack."""

    def _check(self, **least: int) -> None:
        """Raise ParameterError for a count that is given and lower than its least value."""
        for key, low in least.items():
            value = getattr(self, key)
            if value is not None and value < low:
                raise ParameterError(key, f"{value} is too small; give at least {low}")


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(_FromLabels):
    """ART's ``HopSkipJump``: from a misclassified image to the boundary, and along it by an estimated gradient.

    Source: Chen et al. 2020, arXiv:1904.02144.
    """

    iterations: int | None = None
    """Gradient estimates; ART's ``max_iter``. Not given: what the budget of queries pays for, 50 without a budget."""

    first_evaluations: int = 100
    """Points of the first gradient estimate, which grow with the root of the iteration; ART's ``init_eval``. A
    twentieth of the budget of queries at most."""

    most_evaluations: int = 10_000
    """Largest number of points of an estimate; ART's ``max_eval``."""

    starts: int = 100
    """Random images to try for a misclassified one to start from; ART's ``init_size``."""

    def __post_init__(self) -> None:
        self._check(iterations=1, first_evaluations=1, starts=1, most_evaluations=self.first_evaluations)

    def _attack(self, classifier: Any, request: AttackRequest) -> Any:
        from art.attacks.evasion import HopSkipJump as ArtHopSkipJump

        iterations, evaluations = self.schedule(request.queries)
        return ArtHopSkipJump(
            classifier,
            batch_size=self.most_evaluations,
            norm=order(request.threat.norm),
            max_iter=iterations,
            max_eval=self.most_evaluations,
            init_eval=evaluations,
            init_size=self.starts,
            verbose=False,
        )

    def schedule(self, queries: int | None) -> tuple[int, int]:
        """Return the iterations, and the points of the first estimate, that a budget of queries pays for."""
        if queries is None:
            return self.iterations or _UNLIMITED, self.first_evaluations
        first = max(1, min(self.first_evaluations, queries // 20))
        spent, affordable = float(_SEARCH), 0
        while spent < queries:
            spent += _SEARCH + min(first * math.sqrt(affordable + 1), self.most_evaluations)
            affordable += 1
        affordable = max(1, affordable - 1)
        return min(self.iterations or affordable, affordable), first


@dataclass(frozen=True, kw_only=True)
class Boundary(_FromLabels):
    """ART's ``BoundaryAttack``: random steps along the boundary, then towards the image, from a random image on.

    Source: Brendel et al. 2018, arXiv:1712.04248.
    """

    iterations: int = 500
    """Pairs of steps; ART's ``max_iter``, 5000 there. One costs from one to twice ``samples`` queries, or more, so a
    budget may end the search sooner."""

    orthogonal_step: float = 0.01
    """First length of a step along the boundary, relative to the distance; ART's ``delta``."""

    inward_step: float = 0.01
    """First length of a step towards the image, relative to the distance; ART's ``epsilon``."""

    adaptation: float = 0.667
    """Factor by which steps shrink, or grow; ART's ``step_adapt``."""

    trials: int = 25
    """Largest number of step lengths to try; ART's ``num_trial``."""

    samples: int = 20
    """Points per trial; ART's ``sample_size``."""

    starts: int = 100
    """Random images to try for a misclassified one to start from; ART's ``init_size``."""

    def __post_init__(self) -> None:
        self._check(iterations=1, trials=1, samples=1, starts=1)
        for key in ("orthogonal_step", "inward_step"):
            if not 0 < getattr(self, key) < float("inf"):
                raise ParameterError(key, f"{getattr(self, key):g} is not a positive length")
        if not 0 < self.adaptation < 1:
            raise ParameterError("adaptation", f"{self.adaptation:g} does not lie between 0 and 1")

    def _attack(self, classifier: Any, request: AttackRequest) -> Any:
        from art.attacks.evasion import BoundaryAttack

        affordable = self.iterations if request.queries is None else max(1, request.queries // (self.samples + 1))
        return BoundaryAttack(
            classifier,
            batch_size=self.samples,
            targeted=False,
            delta=self.orthogonal_step,
            epsilon=self.inward_step,
            step_adapt=self.adaptation,
            max_iter=min(self.iterations, affordable),
            num_trial=self.trials,
            sample_size=self.samples,
            init_size=self.starts,
            verbose=False,
        )


class _Random:
    """``numpy.random``, whose ``RandomState()`` takes its seed from the global state, not from the operating system."""

    def __getattr__(self, name: str) -> Any:
        return getattr(numpy.random, name)

    def RandomState(self, seed: Any = None) -> numpy.random.RandomState:  # noqa: N802 (numpy's name)
        drawn = numpy.random.randint(2**32, size=4, dtype=numpy.uint32) if seed is None else seed
        return numpy.random.RandomState(drawn)


class _Numpy:
    """``numpy``, with the above."""

    random = _Random()

    def __getattr__(self, name: str) -> Any:
        return getattr(numpy, name)


@contextlib.contextmanager
def seeded(rng: ImageRandom, attack: type) -> Iterator[None]:
    """Seed what this attack of ART draws from by ``rng``, for the block, and give numpy's global state back.

    Both attacks draw from ``numpy.random`` and, where they start, from a ``RandomState()`` of its own. Numpy is
    replaced in the attack's module alone, so that nobody else in the process, such as a defense, is concerned.
    """
    module = sys.modules[attack.__module__]
    before, state = vars(module)["np"], numpy.random.get_state()
    numpy.random.seed((rng.uniform((4,), "art")[0] * 2**24).int().tolist())
    vars(module)["np"] = _Numpy()
    try:
        yield
    finally:
        vars(module)["np"] = before
        numpy.random.set_state(state)
