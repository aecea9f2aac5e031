"""Two null models that read nothing: "longest" scores an answer by its characters, "shortest" by minus that."""

from __future__ import annotations

from collections.abc import Mapping

from align.stats import Interval

NULLS = ("longest", "shortest")


def not_above(what: str, value: float, interval: Interval | None, nulls: Mapping[str, float]) -> str | None:
    """What to say of a figure that length alone reaches; None of one whose whole interval lies above both null models.

    Args:
        interval: of ``value``; None where it has none.
        nulls: what the null models get, by name.
    """
    best = max(nulls, key=lambda name: nulls[name])
    if (value if interval is None else interval.low) > nulls[best]:
        return None
    return f"null models: {what} {span(value, interval)} is not above that of {best} ({nulls[best]:.3f})."


def span(value: float, interval: Interval | None) -> str:
    """A figure with its interval, where it has one."""
    return f"{value:.3f}" if interval is None else f"{value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
