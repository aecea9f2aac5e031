"""How a reward model's scores may be computed, settled on random tokens before the first real row.

No score may change by one bit when the tokens of siblings and neighbours are exchanged, and all must agree with the
model's own forward of single rows: in padded rows to rounding, in trees to twice what padding changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from align.engine.kernels.kernel import Run, UnsupportedAttention
from align.engine.layout import Branch, Example, Tree, pack
from align.engine.own import row_scores
from align.engine.probe import at_rest
from align.engine.reads import Score
from align.engine.scoring import Mode, ScoringEngine, causal_model, packs

# (prompt, answers): equal siblings, a one-token prompt, a one-token answer; two trees are packed beside others
_SHAPES = ((9, (6, 6, 4)), (1, (4, 2)), (5, (1, 7)))
_KEPT = (0, 3)  # the first branch of the first two trees, whose siblings and neighbours are others


@dataclass(frozen=True)
class ScoreProbe:
    """What the probe saw: ``difference`` is the largest gap to the model's own scores, ``kernels`` what was chosen."""

    mode: Mode
    reason: str | None
    difference: float = math.nan
    kernels: str | None = None

    def sentence(self, own: str = "padded rows and the model's own forward") -> str:
        """For people; ``own`` says how rows are laid out where only the model's own forward will do."""
        if self.mode == "tree":
            more = "" if self.kernels is None else f"; {self.kernels}"
            return f"prompts shared and packed (largest gap to the model's own scores {self.difference:.1e}){more}"
        how = "padded rows" if self.mode == "padded" else own
        return f"FALLING BACK to {how}, because {self.reason}. Exact, but slower."


def probe_scores(
    engine: ScoringEngine,
    model: nn.Module,
    device: torch.device,
    agree: Callable[[bool], bool] = bool,
    compute_dtype: torch.dtype | None = None,
    kernels: Iterable[tuple[Run, str | None]] | None = None,
) -> ScoreProbe:
    """Choose the engine's kernel and mode for a reward model, and set them.

    Args:
        agree: all-reduces a flag over ranks (true only where all are true), so that every rank takes the same mode.
        compute_dtype: what the model computes in; its weights' type unless given.
        kernels: to try in tree mode, in this order, each with what is to be said of it; the engine's own if None.
    """
    if not packs(model):
        engine.mode = "own"
        return ScoreProbe("own", f"{type(causal_model(model)).__name__} has a head of its own kind")
    generator = torch.Generator().manual_seed(0)
    vocabulary = causal_model(model).config.get_text_config().vocab_size

    def ids(count: int) -> list[int]:
        return torch.randint(vocabulary, (count,), generator=generator).tolist()

    def branch(count: int) -> Branch:
        return Branch("response", ids(count))

    trees = [Tree(ids(prompt), tuple(branch(n) for n in sizes)) for prompt, sizes in _SHAPES]
    others = [Tree(t.prompt, (t.branches[0], *(branch(len(b.ids)) for b in t.branches[1:]))) for t in trees[:2]]
    others.append(Tree(ids(5), (branch(1), branch(7))))
    with at_rest(model):
        rows = [[*tree.prompt, *b.ids] for tree in trees for b in tree.branches]
        alone = torch.cat([row_scores(model, [row], device) for row in rows]).double().cpu()
        eps = torch.finfo(compute_dtype or next(model.parameters()).dtype).eps
        rounding = eps * (1 + alone.abs().max().item())

        def gap(mode: Mode) -> tuple[float, str | None]:
            return _gap(engine, model, device, mode, trees, others, alone)

        padded, reason = gap("padded")
        if agree(reason is None and padded <= 32 * rounding):
            for kernel, said in ((engine.kernel, None),) if kernels is None else kernels:
                engine.kernel = kernel
                tree, reason = gap("tree")
                if agree(reason is None and tree <= max(2 * padded, 8 * rounding)):
                    return ScoreProbe("tree", None, tree, said)
            engine.mode = "padded"
            return ScoreProbe("padded", reason or f"scores differ by {tree:.1e}", padded)
        engine.mode = "own"
        return ScoreProbe("own", reason or f"scores differ by {padded:.1e}")


def _gap(
    engine: ScoringEngine,
    model: nn.Module,
    device: torch.device,
    mode: Mode,
    trees: list[Tree],
    others: list[Tree],
    alone: Tensor,
) -> tuple[float, str | None]:
    """Largest gap of the engine's scores to ``alone``, and why there is none to speak of, or None."""

    def scores(packed: list[Tree]) -> Tensor:
        batch = pack([Example((tree,)) for tree in packed], feed_last=True).to(device)
        return engine(model, batch, (Score(),)).tokens["score"].double().cpu()

    engine.mode = mode
    try:
        ours, exchanged = scores(trees), scores(others)
    except UnsupportedAttention as error:
        return math.inf, str(error)
    if not torch.equal(ours[list(_KEPT)], exchanged[list(_KEPT)]):
        return math.inf, "answers see each other in this architecture"
    return (ours - alone).abs().max().item(), None
