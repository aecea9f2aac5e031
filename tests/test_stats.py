"""Intervals against scipy and against numbers worked by hand."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from scipy.stats import bootstrap as scipy_bootstrap

from align.stats import Interval, bootstrap_mean, bootstrap_ratio, finite, wilson


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.95]))
def test_wilson_is_scipys_on_whole_numbers(case: tuple[int, int], confidence: float) -> None:
    k, n = case
    expected = binomtest(k, n).proportion_ci(confidence, method="wilson")
    got = wilson(k, n, confidence=confidence)
    assert got.low == pytest.approx(expected.low, abs=1e-12)
    assert got.high == pytest.approx(expected.high, abs=1e-12)


def test_wilson_by_hand() -> None:
    # z = 1.959964: centre (0.8 + 0.192073) / 1.384146 = 0.716740, half width 1.416010 * 0.160011 = 0.226577
    got = wilson(8, 10)
    assert (got.value, got.n) == (0.8, 10)
    assert got.low == pytest.approx(0.49016, abs=5e-6)
    assert got.high == pytest.approx(0.94332, abs=5e-6)


def test_wilson_counts_ties_as_half_and_is_exact_at_the_ends() -> None:
    tied = wilson(32.0, 64)
    assert tied.value == 0.5
    assert tied.low == pytest.approx(1 - tied.high, abs=1e-15)
    assert wilson(8, 10).low < wilson(8.5, 10).low < wilson(9, 10).low
    assert wilson(0, 7).low == 0.0
    assert wilson(7, 7).high == 1.0


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5), (math.nan, 5)])
def test_wilson_refuses_what_is_no_share(k: float, n: int) -> None:
    with pytest.raises(ValueError, match="0 <= k <= n"):
        wilson(k, n)


def test_bootstrap_is_scipys_widened_for_few_items_and_deterministic() -> None:
    values = np.random.default_rng(3).exponential(size=40)
    got = bootstrap_mean(values, seed=5)
    expected = scipy_bootstrap((values,), np.mean, method="BCa", rng=np.random.default_rng(5)).confidence_interval
    assert got.value == pytest.approx(values.mean(), abs=1e-15)
    # Student's quantile with 39 degrees of freedom is 2.022691; times sqrt(40 / 39) over 1.959964 it is 1.045152
    for mine, theirs in ((got.low, expected.low), (got.high, expected.high)):
        assert mine - values.mean() == pytest.approx(1.045152 * (theirs - values.mean()), rel=1e-6, abs=0)
    assert got == bootstrap_mean(values, seed=5)
    assert got != bootstrap_mean(values, seed=6)


@pytest.mark.parametrize("n", [3, 8, 30])
def test_bootstrap_covers_about_as_often_as_it_says(n: int) -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        got = bootstrap_mean(rng.normal(1.0, 2.0, size=n), seed=trial, resamples=499)
        hits += got.low <= 1.0 <= got.high
    assert 0.89 <= hits / 200 <= 0.99  # 95 % nominal; four standard errors of 200 trials are 0.06


def test_paired_differences_are_sharper_than_the_two_sides() -> None:
    rng = np.random.default_rng(1)
    before = rng.normal(-300.0, 80.0, size=64)
    after = before - 2.0 + rng.normal(0.0, 1.0, size=64)
    paired = bootstrap_mean(after - before, seed=0)
    assert paired.high < 0
    assert paired.high - paired.low < 1.0
    assert bootstrap_mean(after, seed=0).high - bootstrap_mean(after, seed=0).low > 10.0


def test_ratio_weighs_by_size() -> None:
    got = bootstrap_ratio([-1.0, -30.0], [1.0, 99.0], seed=0)
    assert got.value == pytest.approx(-0.31)  # not the mean of -1 and -0.303
    same = bootstrap_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], seed=0)
    assert (same.value, same.low, same.high) == (2.0, 2.0, 2.0)


def test_totals_and_sizes_are_resampled_together() -> None:
    rng = np.random.default_rng(2)
    sizes = rng.uniform(1.0, 100.0, size=50)
    got = bootstrap_ratio(2 * sizes + rng.uniform(-0.1, 0.1, size=50), sizes, seed=0)
    assert got.value == pytest.approx(2.0, abs=0.01)
    assert 0 < got.high - got.low < 0.05


def test_values_that_nearly_agree_are_resampled_all_the_same() -> None:
    got = bootstrap_mean([1.000, 1.001, 1.002, 1.003, 1.004] * 4, seed=0)
    assert 0.0005 < got.high - got.low < 0.002


def test_nothing_to_resample() -> None:
    assert bootstrap_mean([0.0] * 64, seed=0) == Interval(0.0, 0.0, 0.0, 64)
    assert bootstrap_mean([0.1] * 3, seed=0).low == pytest.approx(0.1)
    single = bootstrap_mean([4.0], seed=0)
    assert (single.value, single.low, single.high) == (4.0, -math.inf, math.inf)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_mean([], seed=0)
    with pytest.raises(ValueError, match="positive"):
        bootstrap_ratio([1.0], [0.0], seed=0)


def test_json_holds_what_is_finite() -> None:
    broken = bootstrap_mean([1.0, math.nan], seed=0).to_json()
    assert json.loads(json.dumps(broken, allow_nan=False)) == {"value": None, "low": None, "high": None, "n": 2}
    assert Interval.from_json(broken) is None
    assert Interval.from_json(None) is None
    strange: list[Any] = [
        {},
        [1],
        "x",
        3,
        {"value": "1", "low": 0, "high": 2, "n": 9},
        {"value": 1, "low": 0, "high": 2},
    ]
    strange += [{"value": value, "low": 0, "high": 2, "n": 9} for value in (10**400, [], {}, math.inf, math.nan)]
    assert [Interval.from_json(one) for one in strange] == [None] * 11
    sound = wilson(3, 4)
    assert Interval.from_json(json.loads(json.dumps(sound.to_json()))) == sound


def test_what_is_no_finite_number_is_none() -> None:
    odd: list[Any] = [None, "1", "text", [], [1], {}, math.nan, -math.inf, 10**400]
    assert [finite(value) for value in odd] == [None] * 9
    assert [finite(value) for value in (0, -2, np.float32(0.5))] == [0.0, -2.0, 0.5]


def test_importing_is_cheap(tmp_path: Path) -> None:
    code = "import sys, align.stats; print('torch' in sys.modules, 'scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == ["False", "False"]


def test_an_interval_of_a_share_stays_where_shares_are() -> None:
    assert Interval(0.9, 0.4, 1.3, 5).within(0.0, 1.0) == Interval(0.9, 0.4, 1.0, 5)
    assert Interval(0.1, -0.2, 0.3, 5).within(0.0, 1.0) == Interval(0.1, 0.0, 0.3, 5)
