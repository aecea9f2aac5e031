"""ConvexDA: of a text and its rewrites, those that lie at the edge of what they mean (arXiv 2309.16155).

The variants of a text are points, one embedding each. Their hull in the first principal components has some of them as
its vertices; the others lie between those and add nothing. A vertex takes the text's place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from align.data.rows.mixture import random_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

Pick = Literal["random", "farthest", "all"]

_PICK = 2  # keeps these draws apart from those of mixtures
# Qhull refuses points that are as flat as this. Encoders compute in float32, whose rounding is of this size.
_FLAT = 1e-6


def vertices(points: NDArray[Any], dims: int) -> list[int]:
    """Which points are vertices of their convex hull in the first ``dims`` principal components, in ascending order.

    Equal points count once, as the first of them. Where the points span fewer dimensions than ``dims``, the hull is
    taken in those that they span: equal points give one vertex, and points on a line the two ends. ``dims`` + 1 points
    that span ``dims`` dimensions are all vertices.

    Args:
        points: embeddings [n, d], n at least 1.
        dims: at least 1.
    """
    from scipy.spatial import ConvexHull

    first: dict[tuple[float, ...], int] = {}
    for number, point in enumerate(points.tolist()):
        first.setdefault(tuple(point), number)
    numbers = list(first.values())
    if len(numbers) == 1:
        return numbers
    centred = np.array(list(first), dtype=np.float64)
    centred -= centred.mean(axis=0)
    _, scales, axes = np.linalg.svd(centred, full_matrices=False)
    spanned = min(dims, int((scales > _FLAT * scales[0]).sum()))
    places = centred @ axes[:spanned].T
    if spanned == 1:
        found = [places[:, 0].argmin(), places[:, 0].argmax()]
    else:
        found = ConvexHull(places).vertices
    return sorted(numbers[i] for i in found)


def picked(points: NDArray[Any], dims: int, pick: Pick, key: tuple[int, ...]) -> list[int]:
    """Which of the points take the place of the first one, which is the text as it was.

    Args:
        points: embeddings [n, d].
        pick: ``random`` draws one vertex, each as likely as the others; ``farthest`` takes the vertex at the greatest
            Euclidean distance from the first point in all d dimensions, the first of equals; ``all`` takes every one.
        key: seed and whatever else the draw depends on, such as the row's number.
    """
    found = vertices(points, dims)
    if pick == "all":
        return found
    if pick == "farthest":
        distances = np.linalg.norm(points[found] - points[0], axis=1)
        return [found[int(distances.argmax())]]
    seed, *rest = key
    return [found[int(random_words(1, seed, _PICK, *rest)[0] % len(found))]]
