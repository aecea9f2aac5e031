"""The exact test: its lattice of values, and where scipy gives up."""

from __future__ import annotations

import warnings
from math import comb

import numpy as np
import pytest
from scipy.stats import ks_2samp

from align.eval.ks import _tail, ks_test

LATTICE = {
    (40, 14): 0.01430154804770646, (40, 15): 0.006760732303569208, (40, 17): 0.0012708143485281624,
    (200, 78): 5.86730162802883e-14, (200, 200): 1.9426434495222354e-119, (300, 119): 1.834066410994743e-21,
    (300, 300): 1.4802978791996799e-179, (400, 140): 3.9054713571083378e-22, (400, 149): 4.346199600129006e-25,
    (400, 400): 1.0635896769518578e-239,
}  # fmt: skip


@pytest.mark.parametrize(("n", "k"), LATTICE)
def test_values_on_the_lattice(n: int, k: int) -> None:
    found = ks_test(np.arange(n), np.arange(n) + k - 0.5)
    assert (found.n, found.m) == (n, n)
    assert found.d == pytest.approx(k / n)
    assert found.p == pytest.approx(LATTICE[n, k], rel=1e-9, abs=0)
    assert _tail(k * n, n, n) == pytest.approx(LATTICE[n, k], rel=1e-9, abs=0)  # counted, with no help of scipy


@pytest.mark.parametrize(("n", "k"), [(300, 1), (300, 2), *((400, k) for k in range(1, 6))])
def test_tiny_distances(n: int, k: int) -> None:
    assert ks_test(np.arange(n), np.arange(n) + k - 0.5).p == pytest.approx(1.0, abs=1e-9)


def test_where_scipy_gives_up_the_paths_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def gives_up(*_args: object, **_options: object) -> None:
        warnings.warn("Exact calculation unsuccessful.", RuntimeWarning, stacklevel=2)

    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 9, 31), rng.integers(2, 12, 24)  # ties, unequal sizes
    expected = ks_2samp(a, b, method="exact")
    monkeypatch.setattr("scipy.stats.ks_2samp", gives_up)
    found = ks_test(a, b)
    assert found.d == pytest.approx(expected.statistic, rel=1e-14, abs=0)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12, abs=0)


def test_ends() -> None:
    assert ks_test(np.arange(5), np.arange(5)).p == 1.0
    assert ks_test(np.arange(5), np.arange(5) + 10.0).p == pytest.approx(2 / comb(10, 5))
