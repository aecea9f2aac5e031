"""The micro-batches that a run will see, planned from the lengths of its rows as its data loader plans them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from align.data.batches.collator import TreeCollator
from align.data.batches.lengths import column_lengths, row_lengths
from align.data.batches.packing import Order, PackSampler, packs_for_budget, shuffled
from align.data.batches.partners import partners
from align.engine.layout import Branch, Example, Tree, TreeBatch
from align.engine.reads import feeds_last
from align.objectives.base import FRESH, reads_labels, sources_of
from align.trainers.mixin import order_seed

if TYPE_CHECKING:
    from align.data.load import Data
    from align.objectives.base import Objective
    from align.recipe import Recipe

_LOOKED_AT = 200_000  # rows of the order in which micro-batches are sought for the largest one
_MADE_UP = 1024  # tokens of a row of a stream that has no limit


@dataclass(frozen=True)
class Batches:
    """What a run reads.

    Attributes:
        largest: the training micro-batch with the most positions; samples that are still to be drawn are in it, each
            as long as it may get.
        held_out: the same of an evaluation; None without held-out rows.
        steps: optimizer steps of the run.
        micro: micro-batches of a step on one process.
        examples: of a step, on all processes.
        positions: tokens of all steps together, prompts once.
        evaluated: tokens of one evaluation.
        rows: how many there are; None for a stream.
        samples: completions that a step draws, on one process.
        guessed: whether rows were made up, since their lengths are not known.
        epochs: passes over the rows, the last one whole or not; 1 for a stream.
    """

    largest: TreeBatch
    held_out: TreeBatch | None
    steps: int
    micro: int
    examples: int
    positions: int
    evaluated: int
    rows: int | None
    samples: int = 0
    guessed: bool = False
    epochs: int = 1

    @property
    def tokens(self) -> int:
        """Positions of the largest micro-batch."""
        return self.largest.input_ids.shape[1]


def batches(recipe: Recipe, data: Data, args: Any, processes: int) -> Batches:
    """The micro-batches of a recipe's rows on so many processes."""
    objective = recipe.objective_value()
    collator = TreeCollator(objective.branches, feed_last=feeds_last(objective.reads()), values=objective.row_values)
    size, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    examples = size * accumulation * processes
    if not hasattr(data.train, "__len__"):
        return _stream(recipe, objective, collator, args, examples)
    rows, lengths, order = _rows(recipe, data, collator, args)
    room = _room(recipe, objective)
    lengths = _Longer(lengths, room) if room else lengths
    count = len(order(0))
    full, rest = divmod(count, examples)
    each = max(1, full + (rest > 0 and not args.dataloader_drop_last))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(each * args.num_train_epochs)
    epochs = max(1, math.ceil(steps / each))
    packs = accumulation * processes
    if (budget := recipe.max_tokens_per_microbatch) is not None:
        packs = packs_for_budget(lengths, examples, order, epochs, budget, processes)
    sampler = PackSampler(lengths, examples, packs, order, budget=budget, drop_last=args.dataloader_drop_last)
    largest, positions = _seek(sampler, lengths, min(steps, max(1, _LOOKED_AT // examples)))
    example = [_with_samples(recipe, objective, collator, rows[place]) for place in largest]
    held_out, evaluated = _held_out(data.held_out, collator, args)
    return Batches(
        collator.pack(example),
        held_out,
        steps,
        packs // processes,
        examples,
        int(positions * steps),
        evaluated,
        count,
        _drawn(recipe, objective) * examples // processes,
        epochs=epochs,
    )


def _rows(recipe: Recipe, data: Data, collator: TreeCollator, args: Any) -> tuple[Any, Sequence[int], Order]:
    """Rows by number, their positions, and the numbers of an epoch in order; as the trainers' ``training_rows``."""
    if recipe.data.forget:
        draw = recipe.data.partner
        pairs = partners(data.train, data.retain, seed=order_seed(args), draw=draw, each=data.each)  # type: ignore[arg-type]
        return pairs, pairs.lengths(collator), pairs.order(shuffled(len(pairs), order_seed(args)))
    if not sources_of(collator.branches):  # prompts alone
        lengths = (column_lengths(data.train, "prompt_ids") - 1).tolist()  # type: ignore[arg-type]
    else:
        lengths = row_lengths(data.train, collator)  # type: ignore[arg-type]
    return data.train, lengths, data.order or shuffled(len(lengths), order_seed(args))


@dataclass(frozen=True)
class _Longer(Sequence[int]):
    """Lengths with room for samples."""

    lengths: Sequence[int]
    room: int

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, place: Any) -> Any:
        return self.lengths[place] + self.room


def _seek(sampler: PackSampler, lengths: Sequence[int], steps: int) -> tuple[list[int], float]:
    """The pack with the most positions among so many steps, and the positions of a step on average."""
    largest: list[int] = []
    most = total = seen = 0
    for window in _windows(sampler, steps):
        seen += 1
        for pack in sampler.plan(window):
            size = sum(lengths[place] for place in pack)
            total += size
            if size > most:
                largest, most = pack, size
    return largest, total / max(seen, 1)


def _windows(sampler: PackSampler, steps: int) -> Iterator[Sequence[int]]:
    """The rows of each step, epoch after epoch."""
    each = sampler.steps()
    for epoch in range(math.ceil(steps / max(each, 1))):
        order = sampler.order(epoch)
        for step in range(min(each, steps - epoch * each)):
            yield order[step * sampler.step_examples : (step + 1) * sampler.step_examples]


def _held_out(rows: Any, collator: TreeCollator, args: Any) -> tuple[TreeBatch | None, int]:
    """The largest pack of an evaluation, and its tokens in all."""
    if rows is None or args.eval_strategy == "no" or not len(rows):
        return None, 0
    lengths = np.asarray(row_lengths(rows, collator))
    starts = np.arange(0, len(lengths), args.per_device_eval_batch_size)
    start = int(starts[np.argmax(np.add.reduceat(lengths, starts))])
    stop = min(start + args.per_device_eval_batch_size, len(lengths))
    return collator.pack([collator.example(rows[i]) for i in range(start, stop)]), int(lengths.sum())


# ---- samples that a step draws


def _drawn(recipe: Recipe, objective: Objective) -> int:
    """Completions of one prompt."""
    return recipe.sampling.samples if recipe.sampling and set(FRESH) & set(objective.branches) else 0


def _trained(recipe: Recipe, objective: Objective) -> int:
    """How many of them are trained on."""
    if "survivor" in objective.branches and recipe.select is not None:
        return recipe.select.keep
    return 1 if "survivor" in objective.branches else _drawn(recipe, objective)


def _room(recipe: Recipe, objective: Objective) -> int:
    """Most positions that the samples of one row take in a pack."""
    return 0 if recipe.sampling is None else _trained(recipe, objective) * recipe.sampling.max_new_tokens


def _with_samples(recipe: Recipe, objective: Objective, collator: TreeCollator, row: Any) -> Example:
    """A row as an example, with the longest samples that it may get."""
    if not _drawn(recipe, objective):
        return collator.example(row)
    assert recipe.sampling is not None
    name = next(branch for branch in objective.branches if branch in FRESH)
    ids = (0,) * recipe.sampling.max_new_tokens
    fresh = tuple(Branch(name, ids, index=i) for i in range(_trained(recipe, objective)))
    if not sources_of(objective.branches):
        return Example((Tree(row["prompt_ids"], fresh),))
    first, *others = collator.example(row).trees
    return Example((Tree(first.prompt, (*first.branches, *fresh)), *others))


def _stream(recipe: Recipe, objective: Objective, collator: TreeCollator, args: Any, examples: int) -> Batches:
    """As if every row had as many tokens as it may, half of them its prompt's."""
    limit = recipe.data.max_length or _MADE_UP
    half = (0,) * max(1, limit // 2)
    row: dict[str, Any] = {"prompt_ids": half} | {f"{name}_ids": half for name in sources_of(objective.branches)}
    if "retain" in objective.branches:  # a row of its own, with a prompt of its own
        row["retain_prompt_ids"] = half
    if reads_labels(objective.branches):  # a row has one labelled answer
        row["undesirable_ids"] = None
    size = args.per_device_train_batch_size
    largest = collator.pack([_with_samples(recipe, objective, collator, row)] * size)
    steps = max(args.max_steps, 1)
    positions = steps * largest.input_ids.shape[1] * examples // size
    micro = args.gradient_accumulation_steps
    return Batches(largest, None, steps, micro, examples, positions, 0, None, guessed=True)
