"""What suites (``align eval RUN --suite``) left in a run's directory, for pages, cards and comparisons. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.report.record import RunRecord
from align.stats import Interval, finite

Value = tuple[str, float, Interval | None]  # name, value, and its interval where one is known


def suite_results(record: RunRecord) -> dict[str, Mapping[str, Any]]:
    """Results by suite; those of trials on a few rows, which are no results, are left out."""
    return {name: found for name, found in _suites(record).items() if "limit" not in found}


def kinds(record: RunRecord) -> set[str]:
    """Kinds of the suites that a run was measured with."""
    settings = (found.get("settings") for found in suite_results(record).values())
    return {str(one.get("kind")) for one in settings if isinstance(one, Mapping)}


def trials(record: RunRecord) -> list[str]:
    """A sentence for each trial that was left out."""
    return [
        f"eval/{name}.json is a trial on {found['limit']} rows of each set, and stands in no table."
        for name, found in _suites(record).items()
        if "limit" in found
    ]


def main_values(record: RunRecord) -> list[Value]:
    """The values by which runs are compared, each behind the name of its suite."""
    return [
        (f"{suite}: {name}", value, span)
        for suite, found in suite_results(record).items()
        for name, value, span in values(found)
        if name in found["main"]
    ]


def values(found: Mapping[str, Any]) -> list[Value]:
    """All values of a result."""
    figures = [(str(name), figure) for name, figure in found["figures"].items() if isinstance(figure, Mapping)]
    read = ((name, finite(figure.get("value")), Interval.from_json(figure)) for name, figure in figures)
    return [(name, value, span) for name, value, span in read if value is not None]


def items(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Of the main values the items that they are means over, by name."""
    kept = found.get("items")
    tables = ((name, kept.get(name)) for name in found["main"]) if isinstance(kept, Mapping) else ()
    return {
        name: {str(key): value for key, raw in table.items() if (value := finite(raw)) is not None}
        for name, table in tables
        if isinstance(table, Mapping)
    }


def _suites(record: RunRecord) -> dict[str, Mapping[str, Any]]:
    return {
        name: found
        for name, found in record.evaluations.items()
        if isinstance(found.get("figures"), Mapping) and isinstance(found.get("main"), list)
    }
