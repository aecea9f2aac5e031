"""Charts as values: what is read from records, what is left of long lines, and how they become part of a page."""

from __future__ import annotations

import re

import numpy as np
import pytest
from matplotlib.axes import Axes

from align.report import ink
from align.report.page.panel import Limit, Panel, Series, overlaid, read, smooth, thin

STYLED = {ink.COLOURS["blue"]: "blue", ink.MUTED: "muted"}


def line(label: str, *values: float, style: int = 0) -> Series:
    return Series(label, np.arange(len(values), dtype=float), np.array(values), style=style)


def test_a_line_is_read_from_records() -> None:
    records = [
        {"step": 1, "a/b": 2, "probe": {"chosen": {"value": 1.0, "low": 0.5, "high": None, "n": 3}}},
        {"step": 2, "a/b": True, "probe": {"chosen": {"value": 2.0, "low": 1.5, "high": 2.5, "n": 3}}},
        {
            "step": 3,
            "a/b": "7",
            "probe": {"chosen": {"value": None, "low": None, "high": None, "n": 3}},
            "many": [1, 4],
        },
        {"step": 4, "a/b": float("nan"), "probe": None, "many": []},
        {"a/b": 5, "many": ["x"]},
    ]
    plain, inner, mean = (read(records, key, "x") for key in ("a/b", "probe/chosen", "many"))
    assert plain is not None
    assert inner is not None
    assert mean is not None
    assert (plain.steps.tolist(), plain.values.tolist(), plain.low) == ([1.0], [2.0], None)
    assert (inner.steps.tolist(), inner.values.tolist()) == ([1.0, 2.0], [1.0, 2.0])
    assert inner.low is not None
    assert inner.high is not None
    np.testing.assert_array_equal(inner.low, [0.5, 1.5])
    np.testing.assert_array_equal(inner.high, [np.nan, 2.5])
    assert (mean.steps.tolist(), mean.values.tolist()) == ([3.0], [2.5])
    assert read(records, "probe/rejected", "x") is None
    assert read(records, "nothing", "x") is None


def test_a_line_in_words() -> None:
    panel = Panel(
        "Loss", "about", "nats", (line("train", 3.0, 9.25, 0.5), line("held", 1.0)), (Limit(2.0, "end"), Limit(0.0, ""))
    )
    assert panel.says() == ("Loss (nats). train: 3 at 0, 0.5 at 2, lowest 0.5, highest 9.25. held: 1 at 0. end: 2.")


def test_thinning_keeps_the_ends_and_the_extremes_of_each_bucket() -> None:
    values = np.array([5, 1, 9, 4, 4, 3, 8, 2, 6, 7], dtype=float)
    assert thin(values, buckets=2).tolist() == [0, 1, 2, 6, 7, 9]
    assert thin(values, buckets=5).tolist() == list(range(10))
    noise = np.random.default_rng(0).normal(size=100_001)
    noise[[70, 99_000]] = 50.0, -60.0
    kept = thin(noise)
    assert len(kept) <= 502
    assert (kept[0], kept[-1]) == (0, 100_000)
    assert {70, 99_000} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()


def test_smoothing_is_the_mean_of_neighbours() -> None:
    values = np.zeros(80)
    values[10] = 3.0
    values[0] = 2.0
    found = smooth(values)  # 80 points: one neighbour at each side
    assert found[:3].tolist() == [1.0, pytest.approx(2 / 3), 0.0]
    assert found[8:13].tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert smooth(np.full(500, 2.5)) == pytest.approx(np.full(500, 2.5))


def test_panels_of_runs_are_overlaid_by_quantity_and_keep_each_run_its_style() -> None:
    both = Panel("Change", "", "nats", (line("chosen", 1.0), line("rejected", 2.0, style=1)))
    one = Panel("Change", "", "nats", (line("rejected", 3.0, style=1),))
    loss = Panel("Loss", "", "", (line("training", 4.0),), (Limit(1.0, "all"), Limit(2.0, "of B")))
    other = Panel("Loss", "", "", (line("training", 5.0),), (Limit(1.0, "all"), Limit(3.0, "of C")))
    found = overlaid({"A": [one], "B": [both, loss], "C": [both, other]})
    assert [(p.title, [(s.label, s.style, s.last) for s in p.series]) for p in found] == [
        ("Change: rejected", [("A", 0, 3.0), ("B", 1, 2.0), ("C", 2, 2.0)]),
        ("Change: chosen", [("B", 1, 1.0), ("C", 2, 1.0)]),
        ("Loss", [("B", 1, 4.0), ("C", 2, 5.0)]),
    ]
    assert found[-1].limits == (Limit(1.0, "all"),)


def test_a_limit_is_drawn_where_it_lies() -> None:
    def draw(axes: Axes) -> None:
        Panel("Drop", "", "", (line("rejected", 0.0, -0.25),), (Limit(-1.0, "drop"),)).draw(axes)
        low, high = axes.get_ylim()
        assert low < -1 < high
        assert [text.get_text() for text in axes.texts] == ["drop"]
        assert axes.texts[0].get_position() == (1, -1.0)

    ink.svg(draw, "one")


@pytest.mark.parametrize(
    ("values", "scale"),
    [((1.0, 21.0), "log"), ((1.0, 20.0), "linear"), ((0.0, 90.0), "linear"), ((-1.0, 90.0), "linear")],
)
def test_an_axis_is_logarithmic_where_that_helps(values: tuple[float, float], scale: str) -> None:
    def draw(axes: Axes) -> None:
        Panel("Norm", "", "", (line("norm", *values),), log=True).draw(axes)
        assert axes.get_yscale() == scale

    ink.svg(draw, "one")


@pytest.mark.parametrize("values", [(5.98475, 5.98508), (5.98475,), (-1e-6, 0.0), (0.7, 0.3), (12_345.0, 12_345.6)])
def test_no_two_ticks_have_one_label(values: tuple[float, ...]) -> None:
    def draw(axes: Axes) -> None:
        Panel("Entropy", "", "", (line("own samples", *values),)).draw(axes)
        axes.figure.canvas.draw()
        for axis in (axes.xaxis, axes.yaxis):
            labels = [label.get_text() for label in axis.get_ticklabels()]
            assert len(labels) == len(set(labels)) > 0

    ink.svg(draw, "one")


@pytest.mark.parametrize("value", [3e38, -3e38, 1e308, -1e308, 10**300, 1e-320, 5e-38])
def test_an_axis_bears_the_largest_and_the_smallest_values(value: float) -> None:
    records = [{"step": 0, "norm": 1.0}, {"step": 1, "norm": value}, {"step": 2, "norm": 2.0}]
    found = read(records, "norm", "norm")
    assert found is not None
    assert found.values.tolist() == ([1.0, 2.0] if abs(value) > 3.5e38 else [1.0, value, 2.0])
    assert "<svg" in ink.svg(Panel("Norm", "", "", (found,), log=True).draw, "one")


def test_a_single_step_is_the_only_one_marked() -> None:
    def draw(axes: Axes) -> None:
        Panel("Loss", "", "", (Series("loss", np.array([2.0]), np.array([0.69])),)).draw(axes)
        axes.figure.canvas.draw()
        assert [label.get_text() for label in axes.xaxis.get_ticklabels()] == ["2"]

    ink.svg(draw, "one")


def test_a_long_noisy_line_is_drawn_faintly_behind_its_mean() -> None:
    values = np.tile([0.0, 2.0], 100)
    series = Series("loss", np.arange(200.0), values, noisy=True)

    def draw(axes: Axes) -> None:
        Panel("Loss", "", "", (series,)).draw(axes)
        behind, mean = axes.lines
        assert (behind.get_alpha(), np.ptp(behind.get_ydata())) == (0.3, 2.0)
        assert np.ptp(mean.get_ydata()) < 0.7

    ink.svg(draw, "one")


def test_a_picture_becomes_part_of_a_page() -> None:
    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0.123456, 1], color=ink.COLOURS["blue"], label="x")
        axes.set_title(f"3.14159 url(#a) {ink.COLOURS['blue']} <b> $x$")

    document = ink.svg(draw, "one")
    assert document == ink.svg(draw, "one")
    part = ink.inline(document, "chart-7", "a label")
    assert part.startswith('<svg role="img" aria-label="a label" viewBox="0 0 338.4 187.2">')
    assert "<style" not in part
    assert "metadata" not in part
    ids, used = (set(re.findall(pattern, part)) for pattern in (r' id="([^"]+)"', r'(?:href="#|path="url\(#)([^")]+)'))
    assert ids == used
    assert all(name.startswith("chart-7-") for name in ids)
    assert "stroke: var(--blue)" in part
    assert "stroke: var(--muted)" in part
    # text is left as it is, numbers and colours in it as well
    assert f">3.14159 url(#a) {ink.COLOURS['blue']} &lt;b&gt; $x$</text>" in part
    assert not re.search(r' d="[^"]*\.\d{3}', part)
