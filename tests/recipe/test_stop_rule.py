"""The condition of watch.stop_when."""

from __future__ import annotations

import math
import re

import pytest

from align.recipe.stop_rule import StopRule

START = {"utility": 0.5, "forget_quality": 1e-12}


@pytest.mark.parametrize(
    ("text", "now", "expected"),
    [
        ("utility < 0.9 * start", {"utility": 0.449}, True),
        ("utility < 0.9 * start", {"utility": 0.45}, False),
        ("utility <= start", {"utility": 0.5}, True),
        ("forget_quality>5e-2", {"forget_quality": 0.051}, True),
        ("forget_quality > .05 and utility < .4", {"forget_quality": 0.06, "utility": 0.45}, False),
        ("forget_quality > .05 and utility < .4", {"forget_quality": 0.06, "utility": 0.39}, True),
        ("utility < 0.1 or forget_quality >= 1 and utility > 0.4", {"forget_quality": 1.0, "utility": 0.3}, False),
        ("utility < 0.1 or forget_quality >= 1 and utility > 0.4", {"forget_quality": 0.0, "utility": 0.0}, True),
        ("utility < 0.9 * start", {}, False),
        ("utility < 0.9 * start", {"utility": math.nan}, False),
    ],
)
def test_conditions(text: str, now: dict[str, float], expected: bool) -> None:
    assert (StopRule.parse(text).met(now, START) is not None) == expected


def test_says_what_made_it_true() -> None:
    rule = StopRule.parse("utility < 0.9*start and forget_quality > 0.05")
    assert rule.metrics == ("utility", "forget_quality")
    said = rule.met({"utility": 0.25, "forget_quality": 0.5}, START)
    assert said == "utility < 0.9 * start (utility is 0.25) and forget_quality > 0.05 (forget_quality is 0.5)"


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", "expected the name of a metric, got 'the end'"),
        ("utility", "expected <, <=, > or >= after utility, got 'the end'"),
        ("utility == 1", "cannot read '== 1'"),
        ("utility < ", "expected a number or 'start' after utility <, got 'the end'"),
        ("utility < 0.9 * begin", "expected 'start' after utility < 0.9 *, got 'begin'"),
        ("utility < 0.9 start", "expected 'and', 'or' or the end, got 'start'"),
        ("__import__('os').system('x') < 1", "cannot read"),
        ("0.9 < utility", "expected the name of a metric, got '0.9'"),
        ("utility < 1 and", "expected the name of a metric, got 'the end'"),
        ("utility < -1", "cannot read '-1'"),
    ],
)
def test_what_is_refused(text: str, start: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(start)):
        StopRule.parse(text)
