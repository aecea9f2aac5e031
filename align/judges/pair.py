"""A judge that is a language model which compares two answers; loaded and computed as reward models are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from align.data.rows.values import BadRow
from align.data.tokens.chat import Request, render
from align.data.tokens.samples import Prompt
from align.engine.probe import probe
from align.engine.reads import LogProb
from align.engine.scoring import ScoringEngine, attach
from align.errors import UserError
from align.judges.checkpoint import apart, load_judge_model
from align.judges.judge import CompareJudge
from align.models.load import DType
from align.models.subject import Subject, positions

Say = Callable[[str], Any]

_CPU = torch.device("cpu")


class PairModel(CompareJudge):
    """A language model that names the better of two answers, asked as RLHFlow's pair-preference models are.

    The conversation becomes plain turns (a line ``<turn> user`` or ``<turn> assistant``, then a space and the words)
    and goes with both answers into one user's message, ``[CONTEXT] ... [RESPONSE A] ... [RESPONSE B] ...``, which the
    model's own chat template renders up to where its answer starts, without the BOS token. The probability that the
    first answer is better is the softmax of the next token's logits over ``A`` and ``B`` alone.

    The wording, the missing BOS and the softmax are those of the model card of RLHFlow/pair-preference-model-LLaMA3-8B
    and of its authors' training rows (RLHF-Reward-Modeling, pair-pm); they are tested on a small model. Not verified:
    the published weights themselves, which were never run here, and two things that the card leaves open. It renders
    without asking for the header of the answer, which Llama 3's first template added all the same and which the model
    was trained behind; we ask for it. It has no system messages; here they become turns of the user.

    Args:
        name: a Hub id, a folder (an adapter's too) or a run.
        revision: commit, tag or branch on the Hub.
        dtype: type of the weights; ``auto`` for that of ``align.models.load.usual_type``.
        base: where relative folders start.
        say: told how scores are computed.

    Raises:
        UserError: where there is no such model, or it has no chat template or no single token for A and for B.
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
        from transformers import AutoModelForCausalLM

        super().__init__()
        self.name = name
        model, tokenizer = load_judge_model("judge.pair", AutoModelForCausalLM, name, revision, dtype, base)
        self.choices = letters(name, tokenizer)
        attach(model.to(device))
        engine = ScoringEngine()
        say(probe(engine, model, device).sentence().replace("scoring", "judge", 1))
        # of one process: each judges its own rows
        self.subject = Subject(model, tokenizer, engine, name=name, device=device, say=say)

    def prefer_first(self, prompts: Sequence[Prompt], shown: Sequence[str], other: Sequence[str]) -> list[float]:
        """Probability that the response shown first is preferred, in this one order.

        Raises:
            UserError: where the chat template refuses a question, or it is longer than the model's positions.
        """
        rows = self._tokens(prompts, shown, other)
        with apart(self.subject.device):
            values = self.subject.score(rows, [self.choices] * len(rows), (LogProb(),), where="comparison")
        gaps = [float(value["A"]["logp"][0] - value["B"]["logp"][0]) for value in values]
        return torch.tensor(gaps, dtype=torch.float64).sigmoid().tolist()

    def fits(self, prompts: Sequence[Prompt], shown: Sequence[str], other: Sequence[str]) -> list[bool]:
        """Whether a question and its answer are within the model's positions. Raises UserError as a template does."""
        limit = positions(self.subject.model)
        return [limit is None or len(ids) < limit for ids in self._tokens(prompts, shown, other)]

    def _tokens(self, prompts: Sequence[Prompt], shown: Sequence[str], other: Sequence[str]) -> list[list[int]]:
        """Token ids of each question, up to where its answer starts."""
        tokenizer = self.subject.tokenizer
        asked = [question(*row) for row in zip(prompts, shown, other, strict=True)]
        rendered = render(tokenizer, [Request([{"role": "user", "content": text}], prompt=True) for text in asked])
        bos = tokenizer.bos_token_id
        rows: list[list[int]] = []
        for found in rendered:
            if isinstance(found, BadRow):
                raise UserError(f"judge.pair: a question cannot be put to {self.name}: {found}.")
            # a token that comes again is no mere BOS: some templates begin every turn with theirs
            alone = found.ids[:1] == [bos] and found.ids.count(bos) == 1
            rows.append(found.ids[1:] if alone else found.ids)
        return rows


def letters(name: str, tokenizer: Any) -> dict[str, list[int]]:
    """The tokens that answer for A and for B. Raises UserError where the tokenizer cannot put the question."""
    if not tokenizer.chat_template:
        raise UserError(f"judge.pair: the tokenizer of {name} has no chat template to put the question in.")
    choices = {letter: tokenizer.encode(letter, add_special_tokens=False) for letter in ("A", "B")}
    if any(len(ids) != 1 for ids in choices.values()):
        raise UserError(f"judge.pair: the tokenizer of {name} has no single token for A and for B.")
    return choices


def question(prompt: Prompt, a: str, b: str) -> str:
    """The message in which a pair-preference model is shown a conversation and two answers to it."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    turns = (f"\n<turn> {'assistant' if m['role'] == 'assistant' else 'user'}\n {m['content']}" for m in messages)
    return f"[CONTEXT] \n{''.join(turns)}\n [RESPONSE A] {a} [RESPONSE B] {b} \n"
