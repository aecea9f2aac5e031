"""Trees of branches, and how they lie in one packed row.

A tree is a prompt with branches (chosen and rejected, k samples, a forget answer and its alternate). In a packed row a
tree becomes ``p[:-1] | p[-1] y1[:-1] | p[-1] y2[:-1] | ...``: the last prompt token stands at the head of every branch
and the last token of a branch is never fed. So each position predicts at most one target, the prompt is computed once,
and no padding is computed at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Branch:
    """Token ids that follow a prompt; ``mask`` marks the target tokens (None: all are targets).

    ``anchors`` are log-probs of the whole branch, in nats, under models that are not in memory, by their names.
    """

    name: str
    ids: Sequence[int]
    mask: Sequence[int] | None = None
    index: int = 0
    anchors: Mapping[str, float] | None = None

    def targets(self) -> int:
        """Number of target tokens."""
        return len(self.ids) if self.mask is None else int(np.count_nonzero(self.mask))


@dataclass(frozen=True)
class Tree:
    """A prompt of at least one token and the branches that share it."""

    prompt: Sequence[int]
    branches: tuple[Branch, ...]

    def tokens(self) -> int:
        """Positions that a packed row spends on this tree."""
        return len(self.prompt) - 1 + sum(len(b.ids) for b in self.branches)


@dataclass(frozen=True)
class Example:
    """One row of a data set: its trees, its row number for reports, and numbers that it brings along, by name."""

    trees: tuple[Tree, ...]
    row: int = -1
    values: Mapping[str, float] = field(default_factory=dict)

    def tokens(self) -> int:
        return sum(tree.tokens() for tree in self.trees)


@dataclass(frozen=True)
class Segment:
    """Queries [q0, q1) that attend causally to keys [p0, p1) followed by [q0, q1)."""

    q0: int
    q1: int
    p0: int = 0
    p1: int = 0


class Layout:
    """The segments of a packed row, in order and without gaps; what kernels make of them is kept for all layers.

    No dataclass: FSDP's mixed precision takes every dataclass apart that it finds among a module's inputs, and puts a
    copy together again.
    """

    def __init__(self, segments: list[Segment]) -> None:
        self.segments = segments
        self.length = segments[-1].q1
        self._made: dict[Any, Any] = {}

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make`` makes of this layout, made at the first call with ``key``."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


@dataclass
class TreeBatch:
    """One micro-batch: a packed row of trees with the addresses of everything in it.

    ``input_ids`` and ``position_ids`` [1, T]; ``positions`` [N] are the places in the row that predict the ``targets``
    [N]; ``owner`` [N] maps a target to its sequence; ``sequences`` maps a branch name to sequence ids [B]; ``lengths``
    [S] counts targets per sequence, ``ends`` [S] is the place of each sequence's last fed token; ``units`` holds what
    this micro-batch adds to each divisor of the loss; ``feeds_last`` says whether the last token of branches is in the
    row; ``places`` maps a branch name to the places of its targets among all [n].
    """

    input_ids: Tensor
    position_ids: Tensor
    positions: Tensor
    targets: Tensor
    owner: Tensor
    sequences: dict[str, Tensor]
    lengths: Tensor
    ends: Tensor
    layout: Layout
    units: dict[str, float]
    examples: tuple[Example, ...]
    feeds_last: bool = False
    anchors: dict[str, Tensor] = field(default_factory=dict)  # float32 [S] by name; nan where a branch has none
    places: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)  # float32 [B] by name; nan where an example has none

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TreeBatch:
        """The same batch with its tensors on ``device``."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=non_blocking)

        return TreeBatch(
            move(self.input_ids),
            move(self.position_ids),
            move(self.positions),
            move(self.targets),
            move(self.owner),
            {name: move(ids) for name, ids in self.sequences.items()},
            move(self.lengths),
            move(self.ends),
            self.layout,
            self.units,
            self.examples,
            self.feeds_last,
            {name: move(values) for name, values in self.anchors.items()},
            {name: move(places) for name, places in self.places.items()},
            {name: move(values) for name, values in self.values.items()},
        )

    def pin_memory(self) -> TreeBatch:
        """Page-locked copies of the tensors; torch's data loader calls this where pinning is on."""
        for name in ("input_ids", "position_ids", "positions", "targets", "owner", "lengths", "ends"):
            setattr(self, name, getattr(self, name).pin_memory())
        self.sequences = {name: ids.pin_memory() for name, ids in self.sequences.items()}
        self.anchors = {name: values.pin_memory() for name, values in self.anchors.items()}
        self.places = {name: places.pin_memory() for name, places in self.places.items()}
        self.values = {name: values.pin_memory() for name, values in self.values.items()}
        return self

    def only(self, branches: Sequence[str]) -> TreeBatch:
        """The same examples with these branches alone, on the same device; itself where it has no others."""
        if set(self.sequences) <= set(branches):
            return self
        examples = []
        for example in self.examples if self.units["examples"] else ():
            kept = ((tree, tuple(b for b in tree.branches if b.name in branches)) for tree in example.trees)
            trees = tuple(Tree(tree.prompt, some) for tree, some in kept if some)
            if trees:
                examples.append(Example(trees, example.row, example.values))
        packed = pack(examples, branches=branches, feed_last=self.feeds_last)
        return packed.to(self.targets.device, non_blocking=True)

    def branches(self) -> list[tuple[Tree, Branch]]:
        """Every (tree, branch) in the order of sequence ids."""
        return [(tree, branch) for example in self.examples for tree in example.trees for branch in tree.branches]


def pack(examples: Sequence[Example], *, branches: Sequence[str] = (), feed_last: bool = False) -> TreeBatch:
    """Lay examples out in one row.

    ``branches`` names branches that the batch knows even where it has no example. ``feed_last`` also feeds the last
    token of every branch, which a head that scores whole sequences needs.

    An empty list makes the dummy that keeps ranks in step: one token predicting another, which belongs to no example,
    so that every sum over examples is an exact zero with a gradient of zero.
    """
    dummy = not examples
    laid = [Example((Tree((0,), (Branch("dummy", (0,)),)),))] if dummy else examples
    ids: list[np.ndarray] = []
    places: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    segments: list[Segment] = []
    lengths: list[int] = []
    ends: list[int] = []
    names: dict[str, list[int]] = {}
    offset = 0
    for tree in (tree for example in laid for tree in example.trees):
        prompt = np.asarray(tree.prompt, dtype=np.int64)
        prefix = len(prompt) - 1
        if prefix < 0 or not tree.branches or any(len(b.ids) == 0 for b in tree.branches):
            raise ValueError("a tree needs a prompt of at least one token and branches of at least one token each")
        start = offset
        ids.append(prompt[:-1])
        places.append(np.arange(prefix))
        offset += prefix
        # with a single branch the prompt needs no segment of its own: one causal run is the same and cheaper
        single = len(tree.branches) == 1
        if prefix and not single:
            segments.append(Segment(start, offset))
        for branch in tree.branches:
            answer = np.asarray(branch.ids, dtype=np.int64)
            count = len(answer)
            fed = count + feed_last
            ids += [prompt[-1:], answer[: fed - 1]]
            places.append(np.arange(prefix, prefix + fed))
            keep = np.arange(count) if branch.mask is None else np.flatnonzero(np.asarray(branch.mask))
            positions.append(offset + keep)
            targets.append(answer[keep])
            names.setdefault(branch.name, []).append(len(lengths))
            lengths.append(len(keep))
            if single:
                segments.append(Segment(start, offset + fed))
            else:
                segments.append(Segment(offset, offset + fed, start, start + prefix))
            offset += fed
            ends.append(offset - 1)
    if dummy:
        names = {name: [] for name in branches}
    counts = np.asarray(lengths, dtype=np.int64)
    owner = np.repeat(np.arange(len(counts)), counts)
    units = {"examples": float(len(examples))}
    units |= {f"tokens:{name}": float(counts[members].sum()) for name, members in names.items()}
    units |= {f"sequences:{name}": float(len(members)) for name, members in names.items()}
    return TreeBatch(
        torch.from_numpy(np.concatenate(ids))[None],
        torch.from_numpy(np.concatenate(places))[None],
        torch.from_numpy(np.concatenate(positions)),
        torch.from_numpy(np.concatenate(targets)),
        torch.from_numpy(owner),
        {name: torch.tensor(members, dtype=torch.long) for name, members in names.items()},
        torch.from_numpy(counts),
        torch.tensor(ends, dtype=torch.long),
        Layout(segments),
        units,
        tuple(laid),
        feed_last,
        _anchors(laid),
        {name: torch.from_numpy(np.flatnonzero(np.isin(owner, members))) for name, members in names.items()},
        _values(examples),
    )


def _values(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Numbers of every example by name."""
    names = sorted({name for example in examples for name in example.values})
    return {name: torch.tensor([example.values.get(name, math.nan) for example in examples]) for name in names}


def _anchors(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Anchors of every branch by name, in the order of sequence ids."""
    found = [b.anchors or {} for example in examples for tree in example.trees for b in tree.branches]
    names = sorted({name for anchors in found for name in anchors})
    return {name: torch.tensor([anchors.get(name, math.nan) for anchors in found]) for name in names}
