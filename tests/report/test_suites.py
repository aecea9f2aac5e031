"""Results of suites in figures, comparisons and limits."""

from __future__ import annotations

from typing import Any

import pytest
from run_records import record

from align.report.compare import compare
from align.report.figures import figures
from align.report.limits import limits
from align.report.page.blocks import Points, Table
from align.report.page.evaluation import evaluation
from align.report.paired import differences
from align.stats import bootstrap_mean, wilson


def result(values: dict[str, float], kind: str = "preference", **more: Any) -> dict[str, Any]:
    """A suite's file with one main value, the mean of some items, and one detail."""
    span = wilson(sum(values.values()), len(values)).to_json()
    return {
        "settings": {"kind": kind},
        "figures": {"accuracy": span, "detail": {"value": 3.0, "low": None, "high": None, "n": None}},
        "main": ["accuracy"],
        "items": {"accuracy": values, "detail": values},
        "asked": None,
        **more,
    }


ONE = {f"row {i}": float(i % 2) for i in range(40)}
OTHER = {f"row {i}": float(i % 2 or i % 3 == 0) for i in range(10, 50)}


def test_main_values_are_figures_and_trials_are_none() -> None:
    run = record(evaluations={"held": result(ONE), "few": result(ONE, limit=4), "durability": {"attacks": []}})
    (found,) = [figure for figure in figures(run) if "held" in figure.name or "few" in figure.name]
    assert (found.name, found.value, found.text) == ("held: accuracy", 0.5, "0.5 [0.4, 0.6]")
    assert found.interval == wilson(20, 40)
    assert "eval/few.json is a trial on 4 rows of each set, and stands in no table." in limits(run)


def test_items_that_both_runs_have_are_paired() -> None:
    first = record("a", evaluations={"held": result(ONE), "alone": result(ONE)})
    other = record("b", evaluations={"held": result(OTHER)})
    found, note = differences(first, other)
    shared = [key for key in ONE if key in OTHER]
    assert [(d.what, d.interval.n, d.of, d.word) for d in found] == [("held: accuracy", 30, 50, "differs")]
    assert found[0].interval == bootstrap_mean([OTHER[key] - ONE[key] for key in shared], 0)
    assert note == "a records no scores pair by pair (no probe, an end that was not reached, or an earlier version)"
    assert dict(compare([first, other]).numbers)["held: accuracy"][1] is not None


@pytest.mark.parametrize(
    ("other", "clause"),
    [
        (result(ONE, asked="x"), "suite held was measured otherwise, so its items are not paired"),
        (result(ONE, settings={"kind": "tofu"}), "suite held was measured otherwise, so its items are not paired"),
        (result({"another": 1.0}), "suite held: no two of their items are the same"),
    ],
)
def test_items_of_other_rows_are_not_paired(other: dict[str, Any], clause: str) -> None:
    found, note = differences(record("a", evaluations={"held": result(ONE)}), record("b", evaluations={"held": other}))
    assert found == []
    assert note.endswith(f"; {clause}")


def test_the_page_has_a_table_of_all_values_and_the_notes() -> None:
    section = evaluation(record(evaluations={"held": result(ONE, notes=["few rows"]), "few": result(ONE, limit=4)}))
    tables = {block.title: block.rows for block in section.blocks if isinstance(block, Table)}
    assert tables["All values of the suite held"] == [
        ("accuracy", "0.5", "0.352 to 0.648", "40", "-", "-"),
        ("detail", "3", "-", "-", "-", "-"),
    ]
    assert "All values of the suite few" not in tables
    (notes,) = [block for block in section.blocks if isinstance(block, Points)]
    assert list(notes.items) == ["held: few rows"]


def test_a_benchmark_is_no_longer_missing() -> None:
    sentence = "Nobody judged the answers: there is no win rate and no benchmark here."
    assert sentence in limits(record())
    assert sentence in limits(record(evaluations={"held": result(ONE)}))
    assert sentence not in limits(record(evaluations={"u": result(ONE, "harness")}))


def test_files_that_are_no_results_are_left_alone() -> None:
    broken = {
        "a": {"figures": [], "main": []},
        "b": {"figures": {"x": 1, "y": {"value": "z"}}, "main": ["x", "y"], "items": {"x": 1}, "settings": 3},
    }
    run = record(evaluations=broken)
    assert [figure.name for figure in figures(run)] == []
    assert limits(run)
    assert differences(run, record("b", evaluations=broken))[0] == []
