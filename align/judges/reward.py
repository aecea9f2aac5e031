"""A judge that is a reward model: a number for each answer.

It is computed as policies are, by the scoring engine: answers to one prompt share it, rows are packed, and the last
token is found by length. Every process that judges holds a whole model of its own, however the policy is sharded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align.data.batches.packing import within_budget
from align.data.rows.values import BadRow
from align.data.tokens.chat import Request, common_prefix, render
from align.data.tokens.samples import Prompt
from align.engine.kernels.choose import GROUPED, kernels_differ
from align.engine.kernels.kernel import UnsupportedAttention
from align.engine.layout import Branch, Example, Tree, pack
from align.engine.reads import Score
from align.engine.scoring import Mode, ScoringEngine, attach
from align.errors import UserError
from align.judges.checkpoint import apart, load_judge_model
from align.judges.judge import ScoreJudge
from align.models.load import DType
from align.models.subject import positions

Say = Callable[[str], Any]

_PACK_TOKENS = 4096  # positions of a forward; a longer row is computed on its own
_CPU = torch.device("cpu")


class RewardModel(ScoreJudge):
    """A sequence classifier with one label, read at the last token of prompt and response.

    A prompt of messages is rendered with the response as the assistant's turn by the model's own chat template, to the
    template's end. A text prompt and its response are tokenised as one text, which is given the EOS token where the
    tokenizer has one and does not add it itself.

    Models whose head is a linear layer called ``score`` (every decoder that transformers can load) share prompts and
    are packed, unless a probe at the start finds that this changes their scores. All others, encoders among them,
    compute rows of equal length together, so that nothing is ever padded. Scores do not depend on the rows beside them
    (in float32 to rounding), nor on the pad token.

    Args:
        name: a Hub id, a folder (an adapter's too) or a run.
        revision: commit, tag or branch on the Hub.
        dtype: type of the weights; ``auto`` for that of ``align.models.load.usual_type``.
        base: where relative folders start.
        say: told how scores are computed.

    Raises:
        UserError: where there is no such model, or it gives no or several numbers.
    """

    def __init__(
        self,
        name: str,
        *,
        revision: str | None = None,
        dtype: DType = "auto",
        base: Path | None = None,
        device: torch.device = _CPU,
        say: Say = print,
    ) -> None:
        from transformers import AutoModelForSequenceClassification

        self.name, self.device = name, device
        kind: Any = AutoModelForSequenceClassification
        model, self.tokenizer = load_judge_model("judge.reward", kind, name, revision, dtype, base)
        self.model = model.to(device)
        # rows come without padding, so no id may be taken for it: where EOS pads, the last token would be overlooked
        self.model.config.get_text_config().pad_token_id = -1
        self.engine: ScoringEngine | None = None
        self.limit = positions(self.model)
        if isinstance(getattr(self.model, "score", None), nn.Linear):
            attach(self.model)
            say(f"judge: {_choose(self)}")
        else:
            self.limit = min(self.limit or self.tokenizer.model_max_length, self.tokenizer.model_max_length)
            say(f"judge: rows of equal length together, since {type(self.model).__name__} has a head of its own kind")

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """One score for each response, which answers the prompt of the same place.

        Raises:
            UserError: where a row cannot be rendered, is longer than the model's positions, or scores nan.
        """
        rows = self._tokens(prompts, responses)
        for number, ids in enumerate(rows):
            if self.limit is not None and len(ids) > self.limit:
                raise UserError(
                    f"judge.reward: prompt and response {number} have {len(ids)} tokens, but {self.name} reads "
                    f"{self.limit} at most. Lower sampling.max_new_tokens, or leave out long prompts (data.max_length)."
                )
            if len(ids) < 2:
                raise UserError(f"judge.reward: prompt and response {number} are empty; there is nothing to score.")
        with apart(self.device):
            values = self.own(rows) if self.engine is None else self._shared(prompts, rows)
        for number, value in enumerate(values):
            if not math.isfinite(value):
                raise UserError(
                    f"judge.reward: {self.name} scores {value} for response {number}; its numbers may be too large "
                    "for the type of its weights: set judge.dtype to bfloat16 or float32."
                )
        return values

    def _tokens(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt with its response, in one."""
        texts = [
            prompt + response for prompt, response in zip(prompts, responses, strict=True) if isinstance(prompt, str)
        ]
        talks = [
            Request([*prompt, {"role": "assistant", "content": response}])
            for prompt, response in zip(prompts, responses, strict=True)
            if not isinstance(prompt, str)
        ]
        if talks and not self.tokenizer.chat_template:
            raise UserError(
                f"judge.reward: the prompts are conversations, but the tokenizer of {self.name} has no chat template."
            )
        options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        plain = iter(self.tokenizer(texts, **options)["input_ids"] if texts else ())
        rendered = iter(render(self.tokenizer, talks))
        eos = self.tokenizer.eos_token_id
        rows: list[list[int]] = []
        for number, prompt in enumerate(prompts):
            if isinstance(prompt, str):
                ids = list(next(plain))
                rows.append(ids if eos is None or ids[-1:] == [eos] else [*ids, eos])
                continue
            found = next(rendered)
            if isinstance(found, BadRow):
                raise UserError(f"judge.reward: row {number} cannot be put to {self.name}: {found}.")
            rows.append(found.ids)
        return rows

    def own(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Scores by the model's own forward, rows of equal length together."""
        alike: dict[int, list[int]] = {}
        for number, ids in enumerate(rows):
            alike.setdefault(len(ids), []).append(number)
        values = [math.nan] * len(rows)
        for length, numbers in alike.items():
            waiting = iter(numbers)
            while some := list(islice(waiting, max(1, _PACK_TOKENS // length))):
                batch = torch.tensor([list(rows[i]) for i in some], device=self.device)
                logits = self.model(input_ids=batch, attention_mask=torch.ones_like(batch)).logits
                for i, value in zip(some, logits[:, 0].double().tolist(), strict=True):
                    values[i] = value
        return values

    def _shared(self, prompts: Sequence[Prompt], rows: Sequence[list[int]]) -> list[float]:
        """Scores of rows that share what they begin with, packed."""
        groups: dict[str, list[int]] = {}
        for number, prompt in enumerate(prompts):
            groups.setdefault(json.dumps(prompt, sort_keys=True), []).append(number)
        found = [part for members in groups.values() for part in _trees(members, rows)]
        values = [math.nan] * len(rows)
        for chosen in within_budget([tree.tokens() + len(tree.branches) for tree, _ in found], _PACK_TOKENS):
            scores = self.packed([found[i][0] for i in chosen]).tolist()
            for number, value in zip((n for i in chosen for n in found[i][1]), scores, strict=True):
                values[number] = value
        return values

    def packed(self, trees: Sequence[Tree]) -> Tensor:
        """Scores of every branch by the engine, in order; float64 on the CPU."""
        assert self.engine is not None
        batch = pack([Example((tree,)) for tree in trees], feed_last=True).to(self.device)
        return self.engine(self.model, batch, (Score(),)).tokens["score"].double().cpu()


def _trees(members: Sequence[int], rows: Sequence[list[int]]) -> Iterator[tuple[Tree, list[int]]]:
    """Rows that begin alike as trees, within the budget where they can be, with the numbers of the branches' rows."""
    first = rows[members[0]]
    # what whole rows share, each tokenised in one: where prompt and response meet is nothing to be found out
    cut = min(min(common_prefix(first, rows[i]), len(rows[i]) - 1) for i in members)
    budget = _PACK_TOKENS if cut else 0  # rows that share nothing are trees of their own
    cut = max(cut, 1)
    part: list[int] = []
    used = cut
    for i in members:
        more = len(rows[i]) - cut + 1
        if part and used + more > budget:
            yield _tree(part, rows, cut), part
            part, used = [], cut
        part.append(i)
        used += more
    yield _tree(part, rows, cut), part


def _tree(part: Sequence[int], rows: Sequence[list[int]], cut: int) -> Tree:
    return Tree(rows[part[0]][:cut], tuple(Branch("response", rows[i][cut:], index=k) for k, i in enumerate(part)))


def _choose(judge: RewardModel) -> str:
    """How the model's scores may be computed, settled on random tokens before the first real row: a sentence.

    No score may change by one bit when the tokens of siblings and neighbours are exchanged, and all must agree with the
    model's own forward of single rows: in padded rows to rounding, in trees to twice what padding changes.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = judge.model.config.get_text_config().vocab_size

    def ids(count: int) -> list[int]:
        return torch.randint(vocabulary, (count,), generator=generator).tolist()

    def branch(count: int) -> Branch:
        return Branch("response", ids(count))

    trees = [Tree(ids(p), tuple(branch(n) for n in sizes)) for p, sizes in ((9, (6, 6, 4)), (1, (4, 2)), (5, (1, 7)))]
    others = [Tree(t.prompt, (t.branches[0], *(branch(len(b.ids)) for b in t.branches[1:]))) for t in trees[:2]]
    others.append(Tree(ids(5), (branch(1), branch(7))))
    kept = [0, 3]  # the first branch of the first two trees, whose siblings and neighbours are others
    with apart(judge.device):
        rows = [[*tree.prompt, *b.ids] for tree in trees for b in tree.branches]
        alone = torch.tensor([judge.own([row])[0] for row in rows], dtype=torch.float64)
        rounding = torch.finfo(judge.model.dtype).eps * (1 + alone.abs().max().item())
        padded, reason = _gap(judge, "padded", trees, others, kept, alone)
        if reason is None and padded <= 32 * rounding:
            tree, reason = _gap(judge, "tree", trees, others, kept, alone)
            if reason is None and tree <= max(2 * padded, 8 * rounding):
                return f"prompts shared and packed (largest gap to the model's own scores {tree:.1e})"
            judge.engine = _engine("padded", judge.device)
            return (
                f"FALLING BACK to padded rows, because {reason or f'scores differ by {tree:.1e}'}. Exact, but slower."
            )
    judge.engine = None
    why = reason or f"scores differ by {padded:.1e}"
    return f"FALLING BACK to rows of equal length together, because {why}. Exact, but slower."


def _gap(
    judge: RewardModel, mode: Mode, trees: list[Tree], others: list[Tree], kept: list[int], alone: Tensor
) -> tuple[float, str | None]:
    """Largest gap of the engine's scores to ``alone``, and why there is none to speak of, or None."""
    judge.engine = _engine(mode, judge.device)
    try:
        ours, exchanged = judge.packed(trees), judge.packed(others)
    except UnsupportedAttention as error:
        return math.inf, str(error)
    if not torch.equal(ours[kept], exchanged[kept]):
        return math.inf, "responses see each other in this architecture"
    return (ours - alone).abs().max().item(), None


def _engine(mode: Mode, device: torch.device) -> ScoringEngine:
    engine = ScoringEngine()
    engine.mode = mode
    if kernels_differ(device):
        engine.kernel = GROUPED.run  # right on every device, where a call for each segment is slow
    return engine
