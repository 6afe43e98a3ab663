"""What access levels, columns, threats and shares are called in every table."""

from __future__ import annotations

from autoshield_bench.joint import percent
from autoshield_bench.scores import Column


def access_title(access: str) -> str:
    """Return an access level as a reader sees it."""
    return "gray-box (oblivious)" if access == "gray-box" else access


def rate_title(rate: float) -> str:
    """Return the nominal false-positive rate of a detector-aware attack as text."""
    return f"at FPR {percent(rate)}"


def column_title(column: Column) -> str:
    """Return a column's header as one line."""
    rate = "" if column.fpr is None else f", {rate_title(column.fpr)}"
    return f"{column.attack}, {access_title(column.access)}{rate}"


def threat_title(norm: str | None, eps: float | None) -> str:
    """Return the threat as text."""
    return "no attack" if norm is None or eps is None else f"{norm} eps {eps:g}"


def share_text(share: float) -> str:
    """Return a share as whole percent, with two digits below ten."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"
