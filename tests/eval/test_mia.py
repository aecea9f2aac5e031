"""Areas under the curve and what they leak, against definitions and identities."""

from __future__ import annotations

import math

import numpy as np
import pytest

from align.eval.mia import add_privacy, auc, privleak, rel_diff
from align.eval.result import Result


def test_the_area_is_a_share_of_pairs() -> None:
    rng = np.random.default_rng(3)
    forget, holdout = rng.integers(0, 6, 37) / 2, rng.integers(1, 8, 23) / 2  # many ties
    pairs = [(h > f) + 0.5 * (h == f) for f in forget for h in holdout]
    assert auc(forget, holdout) == pytest.approx(sum(pairs) / len(pairs), rel=1e-15, abs=0)


def test_orientation_and_ends() -> None:
    low, high = np.array([0.1, 0.2]), np.array([1.0, 2.0, 3.0])
    assert auc(low, high) == 1.0  # forget rows with the low losses are recognised
    assert auc(high, low) == 0.0
    assert auc(high, high) == 0.5
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=50), rng.normal(size=40)
    assert auc(a, b) + auc(-a, -b) == pytest.approx(1.0)  # this orientation and MUSE's


def test_items_that_are_no_number() -> None:
    assert auc(np.array([0.0, math.nan]), np.array([math.nan, 1.0, -1.0])) == 0.5
    assert math.isnan(auc(np.array([math.nan]), np.array([1.0])))
    assert auc(np.array([1.0]), np.array([math.inf])) == 1.0


def test_what_leaks() -> None:
    assert privleak(0.38, 0.38) == 0.0
    assert rel_diff(0.38, 0.38) == 0.0
    assert privleak(1.0, 0.4) == pytest.approx(-100, abs=1e-6)
    assert privleak(0.0) == pytest.approx(100, abs=1e-6)
    assert privleak(0.9991, 0.5236) == pytest.approx(100 * (0.0009 - 0.4764) / 0.4764, rel=1e-8, abs=0)
    assert rel_diff(0.6, 0.4) == pytest.approx(50)


def test_the_reference_is_said() -> None:
    mia = {"mia_min_k": (np.array([1.0, 2.0]), np.array([1.5, 3.0]))}
    alone, beside, without = Result(), Result(), Result()
    add_privacy(alone, mia, None)
    add_privacy(beside, mia, mia)
    add_privacy(without, mia, {})
    assert alone.values["privleak"] == pytest.approx(-50)
    assert any("0.5" in note for note in alone.notes)
    assert beside.values["privleak"] == 0.0
    assert not beside.notes
    assert without.missing["privleak"] == "the retain log has no mia_min_k scores"
    assert "mia_loss" in alone.missing
