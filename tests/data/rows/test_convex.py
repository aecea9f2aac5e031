"""Hulls of variants: which are vertices, against a search by hand and without PCA, and which of them is drawn."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from align.data.rows.convex import picked, vertices

SQUARE = [(0, 0), (4, 0), (4, 4), (0, 4)]


def points(*rows: tuple[float, ...]) -> NDArray[np.float64]:
    return np.array(rows, dtype=np.float64)


def on_an_edge(places: NDArray[np.float64]) -> list[int]:
    """Vertices of a hull in two dimensions: the ends of every line that has all other points on one side."""
    found: set[int] = set()
    for a, b in combinations(range(len(places)), 2):
        (dx, dy), away = places[b] - places[a], places - places[a]
        side = dx * away[:, 1] - dy * away[:, 0]
        side = np.delete(side, [a, b])
        if (side > 0).all() or (side < 0).all():
            found |= {a, b}
    return sorted(found)


@pytest.mark.parametrize("seed", range(20))
def test_vertices_are_those_that_a_search_of_all_edges_finds_in_the_principal_components(seed: int) -> None:
    cloud = np.random.default_rng(seed).normal(size=(9, 12)).astype(np.float32)
    plane = PCA(n_components=2, svd_solver="full").fit_transform(cloud.astype(np.float64))
    found = vertices(cloud, 2)
    assert found == on_an_edge(plane)
    assert 3 <= len(found) < 9


@pytest.mark.parametrize("dims", [2, 3, 5])
def test_an_interior_point_never_appears(dims: int) -> None:
    corners = np.random.default_rng(0).normal(size=(dims + 1, 7))
    weights = np.random.default_rng(1).dirichlet(np.full(dims + 1, 5.0), size=4)
    inside = weights @ corners
    assert vertices(np.concatenate([inside, corners]), dims) == list(range(4, 5 + dims))


def test_a_duplicate_changes_nothing_and_counts_as_the_first() -> None:
    cloud = np.random.default_rng(3).normal(size=(7, 5))
    found = vertices(cloud, 2)
    for again in range(7):
        assert vertices(np.concatenate([cloud, cloud[[again]]]), 2) == found
    assert vertices(points((1, 1), *SQUARE, *SQUARE), 2) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("given", "dims", "expected"),
    [
        (points((3, 5)), 2, [0]),
        (points((3, 5), (3, 5), (3, 5)), 2, [0]),
        (points((-0.0, 1), (0.0, 1)), 2, [0]),  # equal numbers in different bits
        (points((1, 1, 1), (3, 3, 3), (2, 2, 2), (0, 0, 0)), 2, [1, 3]),  # on a line: its two ends
        (points((0, 1), (4, 1 + 1e-9), (2, 1), (1, 1)), 2, [0, 1]),  # on a line but for rounding
        (points((0, 0), (2, 0)), 2, [0, 1]),
        (points((0, 0), (2, 0), (0, 2)), 2, [0, 1, 2]),  # a triangle has no interior point
        (points((0, 0), (2, 0), (0, 2)), 5, [0, 1, 2]),  # fewer dimensions than asked for
        (points((0, 0, 0), (2, 0, 0), (0, 2, 0), (0, 0, 2)), 3, [0, 1, 2, 3]),
        (points((2, 2), *SQUARE), 3, [1, 2, 3, 4]),  # in a plane, though three dimensions are asked for
        (points((2, 0.1), (4, 0), (0, 0), (1, 0.2)), 1, [1, 2]),  # one component: the ends along it
        (points(*SQUARE, (2, 0)), 2, [0, 1, 2, 3]),  # on an edge, between two vertices
    ],
)
def test_degenerate_hulls(given: NDArray[np.float64], dims: int, expected: list[int]) -> None:
    assert vertices(given, dims) == expected


def test_what_is_picked() -> None:
    cloud = points((1, 1), *SQUARE)  # the text as it was lies inside
    assert picked(cloud, 2, "all", (0,)) == [1, 2, 3, 4]
    assert picked(cloud, 2, "farthest", (0,)) == [3]
    assert picked(points((2, 2), *SQUARE), 2, "farthest", (0,)) == [1]  # the first of equals
    assert picked(points((5, 5), (5, 5)), 2, "farthest", (0,)) == [0]


def test_farthest_is_meant_in_all_dimensions() -> None:
    # the third direction, in which the points differ least, decides between the two that are equally far in the plane
    cloud = points((0, 0, 0), (10, 0, 0.1), (-10, 0, 0.5), (0, 9, 0), (0, -9, 0))
    assert picked(cloud, 2, "farthest", (0,)) == [2]


def test_random_is_uniform_over_vertices_and_depends_on_its_key_alone() -> None:
    cloud = points((2, 2), *SQUARE)
    drawn = [picked(cloud, 2, "random", (7, row, 0))[0] for row in range(2000)]
    counts = Counter(drawn)
    assert set(counts) == {1, 2, 3, 4}
    assert all(abs(count - 500) < 80 for count in counts.values())  # four standard deviations
    assert [picked(cloud, 2, "random", (7, row, 0))[0] for row in reversed(range(2000))] == drawn[::-1]
    for other in ((8, 0), (7, 1)):
        again = [picked(cloud, 2, "random", (other[0], row, other[1]))[0] for row in range(200)]
        assert again != drawn[:200]
