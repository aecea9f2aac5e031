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

from align.data.batches.packing import within_budget
from align.data.rows.values import BadRow
from align.data.tokens.chat import Request, common_prefix, render
from align.data.tokens.endings import text_end
from align.data.tokens.samples import Prompt
from align.engine.kernels.choose import GROUPED, kernels_differ
from align.engine.layout import Branch, Example, Tree, pack
from align.engine.own import row_scores
from align.engine.reads import Score
from align.engine.score_probe import probe_scores
from align.engine.scoring import ScoringEngine, attach, packs
from align.errors import UserError
from align.judges.checkpoint import apart, load_judge_model
from align.judges.judge import ScoreJudge
from align.models.limits import vocabulary_of
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
        self.engine = ScoringEngine()
        if kernels_differ(device):
            self.engine.kernel = GROUPED.run  # right on every device, where a call for each segment is slow
        self.limit, self.vocabulary = positions(self.model), vocabulary_of(self.model)
        if packs(self.model):
            attach(self.model)
        else:
            self.limit = min(self.limit or self.tokenizer.model_max_length, self.tokenizer.model_max_length)
        with apart(device):
            found = probe_scores(self.engine, self.model, device)
        say(f"judge: {found.sentence('rows of equal length together')}")

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
                    f"{self.limit} at most. Leave out or shorten what is longer; where a recipe draws the responses, "
                    "data.max_length and sampling.max_new_tokens do so."
                )
            if max(ids, default=0) >= self.vocabulary:
                raise UserError(
                    f"judge.reward: the tokenizer of {self.name} gives the token {max(ids)}, and the model knows "
                    f"{self.vocabulary:,}: it is the tokenizer of another model. Put the model's own into its folder."
                )
            if len(ids) < 2:
                raise UserError(f"judge.reward: prompt and response {number} are empty; there is nothing to score.")
        with apart(self.device):
            values = self._own(rows) if self.engine.mode == "own" else self._shared(prompts, rows)
        for number, value in enumerate(values):
            if not math.isfinite(value):
                raise UserError(
                    f"judge.reward: {self.name} scores {value} for response {number}; its numbers may be too large "
                    "for the type of its weights: set judge.dtype to bfloat16 or float32."
                )
        return values

    def fits(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[bool]:
        """Whether prompt and response, as they are rendered, are within the model's positions.

        Raises ``UserError`` where a row cannot be rendered.
        """
        return [self.limit is None or len(ids) <= self.limit for ids in self._tokens(prompts, responses)]

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
        eos, end = self.tokenizer.eos_token_id, text_end(self.tokenizer)
        rows: list[list[int]] = []
        for number, prompt in enumerate(prompts):
            if isinstance(prompt, str):
                ids = list(next(plain))
                rows.append(ids if not end or ids[-1:] == [eos] else [*ids, eos])
                continue
            found = next(rendered)
            if isinstance(found, BadRow):
                raise UserError(f"judge.reward: row {number} cannot be put to {self.name}: {found}.")
            rows.append(found.ids)
        return rows

    def _own(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Scores by the model's own forward, rows of equal length together, so that nothing is padded."""
        alike: dict[int, list[int]] = {}
        for number, ids in enumerate(rows):
            alike.setdefault(len(ids), []).append(number)
        values = [math.nan] * len(rows)
        for length, numbers in alike.items():
            waiting = iter(numbers)
            while some := list(islice(waiting, max(1, _PACK_TOKENS // length))):
                scores = row_scores(self.model, [rows[i] for i in some], self.device)
                for i, value in zip(some, scores.double().tolist(), strict=True):
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
            batch = pack([Example((found[i][0],)) for i in chosen], feed_last=True).to(self.device)
            scores = self.engine(self.model, batch, (Score(),)).tokens["score"].double().tolist()
            for number, value in zip((n for i in chosen for n in found[i][1]), scores, strict=True):
                values[number] = value
        return values


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
