"""The one collator: prepared rows to a packed batch of trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from align.engine.layout import Branch, Example, Tree, TreeBatch, pack
from align.errors import UserError
from align.objectives.base import FRESH, LABELLED, reads_labels, source_of


class TreeCollator:
    """Turns prepared rows into one ``TreeBatch``, for every trainer.

    A branch ``b`` is the column ``b_ids`` with an optional target mask ``b_mask``. Branches share the row's
    ``prompt_ids``; one with a column ``b_prompt_ids`` is a tree of its own (a retain partner, say). A branch ``b_all``
    is made of the columns of ``b``: a tree of its own, in which every token but the first is a target. Numbers in
    columns ``b_logp_<model>`` become the branch's anchors. Branches that are drawn while training are left out here. Of
    the branches ``desirable`` and ``undesirable`` a row has one, and null in the column of the other.

    Args:
        branches: names of the branches that an objective reads.
        feed_last: also feed the last token of each branch, for heads that score whole sequences.
        values: columns with a number, or null, that examples take along.
    """

    def __init__(self, branches: Sequence[str], *, feed_last: bool = False, values: Sequence[str] = ()) -> None:
        self.branches = tuple(branches)
        self.feed_last = feed_last
        self.values = tuple(values)

    def __call__(self, rows: list[dict]) -> dict[str, Any]:
        batch = self.pack([self.example(row) for row in rows])
        # input_ids stand beside the batch for what transformers counts by itself (tokens, operations)
        return {"input_ids": batch.input_ids, "tree": batch}

    def pack(self, examples: Sequence[Example]) -> TreeBatch:
        """A batch that knows every branch, also one that no example has."""
        batch = pack(examples, branches=self.branches, feed_last=self.feed_last)
        for name in self.branches:
            batch.sequences.setdefault(name, torch.empty(0, dtype=torch.long))
            batch.places.setdefault(name, torch.empty(0, dtype=torch.long))
        return batch

    def example(self, row: Mapping[str, Any]) -> Example:
        """One row as an example."""
        shared: list[Branch] = []
        trees: list[Tree] = []
        for name in (branch for branch in self.branches if branch not in FRESH):
            source = source_of(name)
            ids = row.get(f"{source}_ids")
            if ids is None and name in LABELLED and f"{name}_ids" in row:
                continue
            if ids is None:
                raise UserError(
                    f"A row has no column '{source}_ids', which the objective needs; it has: {', '.join(sorted(row))}."
                )
            own = row.get(f"{source}_prompt_ids")
            if source != name:
                prompt = row["prompt_ids"] if own is None else own
                trees.append(Tree(prompt[:1], (Branch(name, [*prompt[1:], *ids]),)))
                continue
            mask = row.get(f"{name}_mask")
            if mask is not None and (len(mask) != len(ids) or not any(mask)):
                raise UserError(
                    f"Row {row.get('row', '?')}: {name}_mask has {len(mask)} entries, {sum(map(bool, mask))} of them "
                    f"targets, for {len(ids)} tokens; it must have one entry for each token and at least one target."
                )
            branch = Branch(name, ids, mask, anchors=_anchors(row, name))
            if own is None:
                shared.append(branch)
            else:
                trees.append(Tree(own, (branch,)))
        if reads_labels(self.branches) and not any(branch.name in LABELLED for branch in shared):
            raise UserError(f"Row {row.get('row', '?')} has neither desirable_ids nor undesirable_ids.")
        if shared:
            trees.insert(0, Tree(row["prompt_ids"], tuple(shared)))
        values = {name: float(row[name]) for name in self.values if row.get(name) is not None}
        return Example(tuple(trees), int(row.get("row", -1)), values)

    def length(self, row: Mapping[str, Any]) -> int:
        """Positions that a row takes in a pack."""
        example = self.example(row)
        return example.tokens() + self.feed_last * sum(len(tree.branches) for tree in example.trees)


def _anchors(row: Mapping[str, Any], name: str) -> dict[str, float] | None:
    """Values of the columns ``<name>_logp_<model>``."""
    start = f"{name}_logp_"
    return {key.removeprefix(start): value for key, value in row.items() if key.startswith(start)} or None
