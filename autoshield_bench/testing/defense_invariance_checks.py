"""What a defense draws, and what must not matter to its logits: one more group of ``defense_checks``."""

from __future__ import annotations

import torch

from autoshield_bench.testing.checks import check
from autoshield_bench.testing.defense_runs import AGREEMENT, defended, fitted, steady
from autoshield_bench.testing.outcome import NotJudged, require
from autoshield_bench.testing.subject import Subject
from autoshield_bench.testing.world import IMAGES, World, changed, global_state, random_state


@check(
    "defense",
    "deterministic",
    meaning="A defense that is not declared stochastic gives the same logits whatever rng it is handed.",
    catches="Noise in a defense that forgot to say stochastic=True: white-box attacks then skip EOT.",
    remedy="Declare `stochastic=True` in the spec, so that white-box attacks average gradients over draws (EOT). If "
    "the defense is meant to be deterministic, remove the draws from `rng` in `purify`.",
)
def deterministic(subject: Subject, world: World) -> None:
    """Check two passes with different rng."""
    defense = fitted(subject, world)
    if defense.stochastic:
        raise NotJudged("it is declared stochastic")
    first = steady(defense, world)
    differing = int((first != defended(defense, world, seed=8)).any(1).sum())
    require(differing == 0, f"the logits of {differing} of {IMAGES} images depend on the rng; declare stochastic=True")


@check(
    "defense",
    "seeded",
    meaning="The same rng and the same global seed give the same logits.",
    catches="A generator seeded from the clock, or what earlier batches left behind.",
    remedy='Draw with `rng.uniform(x.shape[1:], "purpose")` or `rng.normal`, and remove generators of your own that '
    "have no seed. Keep no counter, cache or running average on the instance from one call of `purify` to the next.",
)
def seeded(subject: Subject, world: World) -> None:
    """Check two passes with the same rng under the same global seed."""
    defense = fitted(subject, world)
    results = []
    for _run in range(2):
        with global_state(1):
            results.append(defended(defense, world))
    differing = int((results[0] != results[1]).any(1).sum())
    require(differing == 0, f"two passes with the same rng differ in {differing} of {IMAGES} images")


@check(
    "defense",
    "randomness-from-rng",
    meaning="Draws come from the rng that is handed in: the global generators neither matter nor move.",
    catches="torch.rand_like(x) in purify.",
    remedy='Draw with `rng.uniform(x.shape[1:], "purpose")` or `rng.normal` in place of torch.rand_like, dropout, '
    "numpy.random and random, and seed nothing. A network that `defend` returns is handed no rng, so a random step "
    "before it belongs in `purify`.",
)
def randomness_from_rng(subject: Subject, world: World) -> None:
    """Check passes under different global seeds, and the global generators afterwards."""
    defense = fitted(subject, world)
    with global_state(1):
        before = random_state()
        first = defended(defense, world)
        moved = changed(before, random_state())
    with global_state(1):
        again = defended(defense, world)
    if not torch.equal(first, again):
        raise NotJudged("two passes with the same rng and the same global seed differ (check 'seeded')")
    with global_state(2):
        differing = int((first != defended(defense, world)).any(1).sum())
    require(differing == 0, f"another global seed changes the logits of {differing} of {IMAGES} images; draw from rng")
    require(not moved, f"advanced or seeded the global generator of {moved}; draw from rng")


@check(
    "defense",
    "batch-invariant",
    meaning=f"An image's logits depend on neither the split into batches nor their order, to {AGREEMENT:g}.",
    catches="Images are normalised by the mean of their batch.",
    remedy="Take means, maxima and thresholds per image, such as `x.flatten(1).mean(1)`, and draw from `rng`, whose "
    "values are keyed per image. Networks belong in `modules()`, so that batch normalisation uses its running "
    "statistics.",
)
def batch_invariant(subject: Subject, world: World) -> None:
    """Check the whole batch against parts of it, and against the reverse order."""
    defense = fitted(subject, world)
    whole = steady(defense, world)
    rows = list(range(IMAGES))
    parts = torch.cat([defended(defense, world, rows[start : start + 4]) for start in range(0, IMAGES, 4)])
    reverse = defended(defense, world, rows[::-1]).flip(0)
    for name, other in (("split into three batches", parts), ("in reverse order", reverse)):
        gaps = (whole - other).abs().amax(1)
        scale = max(1.0, float(whole.abs().max()))
        differing = int((gaps > AGREEMENT * scale).sum())
        require(differing == 0, f"{name}, {differing} of {IMAGES} images differ, by up to {float(gaps.max()):.3g}")
