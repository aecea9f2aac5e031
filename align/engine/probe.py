"""The start-up probe: does this model, as it is wrapped here, score trees exactly?

Two parts. First, a branch's log-probs may not change by one bit when the contents of its siblings or its neighbours are
exchanged; shapes and places stay, so exact equality is the right test in any precision. Where the branch itself moves
within the row they may not change on a CPU either, and by rounding alone on a GPU, whose kernels walk keys by their
place. Second, log-probs must agree with the untouched model's own ``.logits`` within twice what its padding changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from align.engine.fused import fused_works
from align.engine.kernels.choose import GROUPED, Call, choose, kernels_differ, recorded, switch_flash
from align.engine.kernels.kernel import Run, UnsupportedAttention, first_line
from align.engine.kernels.segments import segments
from align.engine.layout import Branch, Example, Tree, TreeBatch, pack
from align.engine.reads import AnyRead, LogProb, feeds_last
from align.engine.scoring import ScoringEngine, causal_model
from align.errors import UserError, ran_out

# (prompt, chosen, rejected): equal siblings for the exchange of order, a one-token prompt, a one-token answer
_SHAPES = ((9, 6, 6), (9, 6, 6), (1, 4, 2), (5, 1, 7))

# what an architecture raises that builds its masks, biases or states from the batch itself, and meets a packed row
_STUMBLES = (TypeError, ValueError, IndexError, RuntimeError)


@dataclass(frozen=True)
class ProbeResult:
    """What the probe saw. ``difference`` and ``own`` are the largest per-token gaps, in nats; ``kernels`` says what was
    chosen to compute with, None where there is no choice."""

    mode: str
    reason: str | None
    difference: float
    own: float
    kernels: str | None = None

    def sentence(self) -> str:
        if self.mode == "tree":
            gap = f"largest gap to the model's own logits {self.difference:.1e} nats"
            return f"scoring: prompts shared and packed ({gap})" + (f"; {self.kernels}" if self.kernels else "")
        return f"scoring: FALLING BACK to padded rows, because {self.reason}. Exact, but slower."


def probe(
    engine: ScoringEngine,
    model: nn.Module,
    device: torch.device,
    agree: Callable[[bool], bool] = bool,
    compute_dtype: torch.dtype | None = None,
) -> ProbeResult:
    """Choose the engine's kernel and mode for ``model`` and set them.

    Args:
        agree: all-reduces a flag over ranks (true only where all are true), so that every rank takes the same mode.
        compute_dtype: what the model computes in; its logits' own type unless given. A wrapper for mixed precision
            turns logits computed in bfloat16 into float32.

    Raises:
        UserError: if even padded rows do not reproduce the model's own logits.
    """
    with at_rest(model):
        for kernel, said in kernels_to_try(engine, model, device, agree):
            engine.kernel = kernel
            reason = _leak(engine, model, device, compute_dtype)
            # agreed before the next forward: ranks of a sharded model must run equally many
            if agree(reason is None):
                difference, own, reason = _gap(engine, model, device, compute_dtype)
                if agree(reason is None):
                    return ProbeResult("tree", None, difference, own, said)
        engine.mode = "padded"
        try:
            difference, own, fault = _gap(engine, model, device, compute_dtype)
        except (TypeError, ValueError, IndexError) as error:
            raise UserError(
                f"{type(causal_model(model)).__name__} cannot be scored: its forward fails on token ids alone "
                f"({first_line(error)}). align trains decoders that read text and nothing else."
            ) from error
        if not agree(fault is None):
            raise UserError(
                f"{type(causal_model(model)).__name__} cannot be scored: even padded rows differ from the model's "
                f"own logits by {difference:.2e} nats per token ({own:.2e} is its own padding error). It probably "
                "changes its logits after the head in a way that align does not know."
            )
        return ProbeResult("padded", reason or "another rank cannot share prompts", difference, own)


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """No gradient and no dropout, not even an adapter's, while a probe compares forwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def kernels_to_try(
    engine: ScoringEngine,
    model: nn.Module,
    device: torch.device,
    agree: Callable[[bool], bool],
    reads: tuple[AnyRead, ...] = (LogProb(),),
) -> Iterator[tuple[Run, str | None]]:
    """Kernels to try with the whole model, and what is to be said of them; the fastest first, then the plainest.

    ``reads`` are any that the model has a head for.
    """
    if not kernels_differ(device):
        yield segments, None
        return
    calls: dict[Call, None] = {}
    engine.kernel = recorded(calls)
    vocabulary = causal_model(model).config.get_text_config().vocab_size
    try:
        engine(model, pack(_examples(vocabulary, 0), feed_last=feeds_last(reads)).to(device), reads)
    except _STUMBLES as error:  # ``_leak`` says which, unless it is no trait of the model
        if ran_out(error):
            raise
    if agree(bool(calls)):
        choice = choose(list(calls), device, agree)
        # what attention is given is what the head is given
        slower = fused_works(device, next(iter(calls)).dtype)
        head = "" if slower is None else f"; the head by torch's own operations, since {slower}"
        yield choice.kernel.run, choice.sentence() + head
        if choice.kernel is not GROUPED:
            plain = f"attention by {GROUPED.name}, since {choice.kernel.name} is not exact in this model"
            switch_flash(None)
            yield GROUPED.run, plain + head
    else:
        yield segments, None


def _examples(vocabulary: int, seed: int) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> list[int]:
        return torch.randint(vocabulary, (n,), generator=generator).tolist()

    return [Example((Tree(ids(p), (Branch("chosen", ids(c)), Branch("rejected", ids(r)))),)) for p, c, r in _SHAPES]


def _swap_contents(example: Example, other: Example, names: tuple[str, ...]) -> Example:
    """``example`` with the named branches' tokens taken from ``other``, which has the same shape."""
    tree, donor = example.trees[0], other.trees[0]
    branches = tuple(d if b.name in names else b for b, d in zip(tree.branches, donor.branches, strict=True))
    return Example((Tree(tree.prompt, branches),))


def _reversed(example: Example) -> Example:
    tree = example.trees[0]
    return Example((Tree(tree.prompt, tree.branches[::-1]),))


def _leak(
    engine: ScoringEngine, model: nn.Module, device: torch.device, compute_dtype: torch.dtype | None
) -> str | None:
    """Why trees are not independent here, or None."""
    vocabulary = causal_model(model).config.get_text_config().vocab_size
    mine, theirs = _examples(vocabulary, 0), _examples(vocabulary, 1)

    def score(examples: list[Example]) -> dict[tuple[int, str], Tensor]:
        batch = pack(examples).to(device)
        scores = engine(model, batch)
        return {(i, n): scores.of_sequence(s[i]) for n, s in batch.sequences.items() for i in range(len(examples))}

    try:
        base = score(mine)
        siblings = {
            "chosen": score([_swap_contents(a, b, ("rejected",)) for a, b in zip(mine, theirs, strict=True)]),
            "rejected": score([_swap_contents(a, b, ("chosen",)) for a, b in zip(mine, theirs, strict=True)]),
        }
        order = score([_reversed(mine[0]), *mine[1:]])
        neighbours = score([mine[0], *theirs[1:]])
        places = score([mine[1], mine[0], *mine[2:]])
    except UnsupportedAttention as error:
        return str(error)
    except _STUMBLES as error:
        if ran_out(error):
            raise
        return f"this architecture cannot read a packed row ({first_line(error)})"
    if not all(torch.isfinite(v).all() for v in base.values()):
        return "the model's log-probs on random tokens are not finite when prompts are shared"
    for name, changed in siblings.items():
        if any(not torch.equal(changed[i, name], base[i, name]) for i in range(len(mine))):
            return (
                "answers to the same prompt see each other in this architecture (as in recurrent or linear attention)"
            )
    # where a row moves, a GPU's kernel may add up its keys in another order: it walks them by their place in the row
    eps = torch.finfo(compute_dtype or next(model.parameters()).dtype).eps if kernels_differ(device) else 0.0

    def moved(before: Tensor, after: Tensor) -> bool:
        return not bool(((before - after).abs() <= 4 * eps * (1 + before.abs().max())).all())

    for name in ("chosen", "rejected"):
        if not torch.equal(neighbours[0, name], base[0, name]):
            return "rows packed beside each other see each other in this architecture"
        if moved(base[0, name], order[0, name]) or moved(base[0, name], places[1, name]):
            return "results depend on the order of answers or rows in this architecture"
    return None


def _gap(
    engine: ScoringEngine, model: nn.Module, device: torch.device, compute_dtype: torch.dtype | None
) -> tuple[float, float, str | None]:
    """Largest per-token gap of the engine to the model's own logits, that model's own padding gap, and a fault."""
    vocabulary = causal_model(model).config.get_text_config().vocab_size
    batch: TreeBatch = pack(_examples(vocabulary, 2)).to(device)
    ours = engine(model, batch).tokens["logp"].double()
    pairs = batch.branches()
    rows = [torch.tensor([*tree.prompt, *branch.ids], device=device) for tree, branch in pairs]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
    together = model(input_ids=padded, attention_mask=mask, use_cache=False).logits
    alone, in_batch = [], []
    for k, ((tree, branch), row) in enumerate(zip(pairs, rows, strict=True)):
        logits = model(input_ids=row[None], use_cache=False).logits[0]
        where = slice(len(tree.prompt) - 1, len(row) - 1)
        target = row[len(row) - len(branch.ids) :, None]
        alone.append(logits[where].double().log_softmax(-1).gather(1, target)[:, 0])
        in_batch.append(together[k, where].double().log_softmax(-1).gather(1, target)[:, 0])
    own_alone = torch.cat(alone)
    own = (own_alone - torch.cat(in_batch)).abs().max().item()
    difference = (ours - own_alone).abs().max().item()
    # where padding happens to change nothing, rounding still may: a few units of the compute type's last place
    rounding = 4 * torch.finfo(compute_dtype or together.dtype).eps * (1 + own_alone.abs().max().item())
    if difference <= max(2 * own, rounding):
        return difference, own, None
    return difference, own, f"log-probs differ from the model's own by {difference:.1e} nats per token"
