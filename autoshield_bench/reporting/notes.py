"""The sentences that stand below a leaderboard: what its words mean, and why a row has no rank."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from autoshield_bench.detection import RANKED_RATE
from autoshield_bench.joint import percent
from autoshield_bench.labels import DRAWN
from autoshield_bench.leaderboard import Leaderboard, Row
from autoshield_bench.ranks import NO_EVIDENCE
from autoshield_bench.readings import unique
from autoshield_bench.reporting.text import message
from autoshield_bench.reporting.titles import share_text, threat_title


def explanations(boards: Sequence[Leaderboard], *, gap: bool = True) -> Iterator[str]:
    """Yield the sentences that a reader needs for the accuracies; ``gap`` tells whether the illusion gap is shown."""
    access = {column.access for board in boards for column in board.columns}
    rows = [row for board in boards for row in board.rows]
    labels = {label for row in rows for label in row.labels}
    yield "Each share comes with its 95 % Wilson interval; n is the number of test images it was taken on."
    if any(len(board.seeds) > 1 for board in boards):
        yield (
            "Means over training seeds on the same images: n counts images per seed, the interval is for the choice of "
            "images alone, sd is the standard deviation over seeds."
        )
    if "gray-box" in access:
        yield "gray-box (oblivious): the attack sees the undefended classifier only, not the defense."
    if "transfer" in access:
        yield "transfer: the attack sees a surrogate of the defended pipeline, the same design from another seed."
    if "black-box" in access:
        yield "black-box: the attack sees scores or labels of the defended pipeline, within a query budget."
    if "white-box" in access:
        yield "white-box: the attack sees the whole defended pipeline."
    yield from unique(remark for board in boards for remark in board.remarks)
    if any(row.worst_case for row in rows):
        yield (
            "Worst case: an image stands only if it is right without attack and stands under every attack at every "
            "access level; taken over the images that all of them evaluated."
        )
    if gap and any(row.illusion_gap for row in rows):
        yield "Illusion gap: accuracy under the strongest gray-box attack minus worst case, on the same images."
    yield from _detail_notes(rows, labels)
    if "upper bound" in labels:
        yield "upper bound: no strong white-box attack was run, so the true worst case can only be lower."
    if "gray-box only" in labels:
        yield "gray-box only: no attack knew the defense, so nothing is said about its worst case."
    if "no white-box attack" in labels:
        yield "no white-box attack: no attack knew the defense's gradients, so nothing is said about its worst case."
    if any(label.endswith(" irreproducible") for label in labels):
        yield "irreproducible: an attack that cannot be seeded took part; run again, and the number may differ."
    if any(label.startswith("incomplete") for label in labels):
        yield "incomplete: a planned cell failed or is missing, so there is no worst case."
    yield from rank_notes(boards)


def _detail_notes(rows: Sequence[Row], labels: Collection[str]) -> Iterator[str]:
    """Yield what detectors, draws and gains mean, where a row has any."""
    if any(row.detection for row in rows):
        yield (
            f"detects: worst case and illusion gap are the joint game at {percent(RANKED_RATE)} false positives: an "
            "attacked image stands if it is flagged or classified correctly, and none does whose clean version is "
            "flagged or misclassified. Columns of attacks that know of no detector show classification accuracy alone, "
            "whatever is flagged; those at an FPR are joint."
        )
    if any(label.endswith(DRAWN) for label in labels):
        yield (
            "stochastic: an image counts by the share of fresh draws in which it is right; what is worst for it is "
            "chosen by as many other draws."
        )
    if any(row.gain for row in rows):
        over = ", ".join(unique(row.gain.over for row in rows if row.gain))
        yield (
            f"gain, loss: worst case minus that of {over}, on the images that both evaluated, with the paired 95 % "
            "interval."
        )


def rank_notes(boards: Sequence[Leaderboard]) -> Iterator[str]:
    """Yield how much evidence was taken and at what cost, and why each row without a rank has none."""
    attacked = [board for board in boards if board.columns]
    taken = [board for board in attacked if board.evidence.taken]
    if attacked and not taken:
        yield f"No rank: {NO_EVIDENCE}."
    if not taken:
        return
    levels = " and ".join(unique(level for board in taken for level in board.evidence.levels))
    passes, judged = (sum(getattr(board.evidence, name) for board in taken) for name in ("passes", "judged"))
    if judged:
        yield f"evidence: {levels}, {share_text(passes / judged)} of the passes of the attacks it judges."
    else:
        yield f"evidence: {levels}, of which there is no record yet."
    yield "rank: by worst case, among those whose evidence carries it; `--evidence` shows every verdict."
    for board in taken:
        where = f" at {threat_title(board.norm, board.eps)}" if len(boards) > 1 else ""
        for row in board.rows:
            if row.unranked:
                why = "; ".join(message(reason).rstrip(".") for reason in row.unranked)
                yield f"{row.defense} has no rank{where}: {why}."
