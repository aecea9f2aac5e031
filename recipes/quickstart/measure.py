"""Where a model's probability is: on the chosen answer, the rejected one, the world's other answers, or anything else.

Whole-sequence probabilities of short answers, from the model's plain logits; nothing here uses align's engine, so it
also checks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.data.rows import world


@dataclass(frozen=True)
class Masses:
    """Mean probability over prompts, in [0, 1] and adding up to 1; mean log-probs of the two answers, in nats.

    ``others`` are the world's 22 further answers to the same question: ten values in the wording of the pair, and all
    twelve in the other wording. ``elsewhere`` is every other text there is.
    """

    chosen: float
    rejected: float
    others: float
    elsewhere: float
    chosen_logp: float
    rejected_logp: float


class Scorer:
    """A saved model, asked for log-probs of answers and for its own answer. ``folder`` is a transformers folder."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def logps(self, rows: Sequence[Mapping[str, Any]], batch: int = 20) -> Tensor:
        """Summed log-prob of each ``row["candidates"]`` after ``row["prompt"]``, EOS in, nats, [rows, candidates]."""
        parts = [self._block(rows[i : i + batch]) for i in range(0, len(rows), batch)]
        return torch.cat(parts)

    def _block(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        prompts = [self.tokenizer(row["prompt"]).input_ids for row in rows for _ in row["candidates"]]
        answers = [self._answer(text) for row in rows for text in row["candidates"]]
        longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = torch.full((len(prompts), longest), self.tokenizer.pad_token_id)
        target = torch.zeros(ids.shape, dtype=torch.bool)
        for i, (p, a) in enumerate(zip(prompts, answers, strict=True)):
            ids[i, : len(p) + len(a)] = torch.tensor(p + a)
            target[i, len(p) : len(p) + len(a)] = True
        # padding on the right of a causal model is never looked at, so no mask is needed
        logp = self.model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
        tokens = logp.gather(-1, ids[:, 1:, None]).squeeze(-1)
        return (tokens * target[:, 1:]).sum(-1).view(len(rows), -1)

    def _answer(self, text: str) -> list[int]:
        return [*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]

    def samples(self, prompt: str, count: int = 3, most: int = 16) -> list[str]:
        """Answers drawn at temperature 1, each up to EOS or ``most`` tokens; the same ones every time."""
        draw = torch.Generator().manual_seed(0)
        return [self._sample(prompt, most, draw) for _ in range(count)]

    @torch.no_grad()
    def _sample(self, prompt: str, most: int, draw: torch.Generator) -> str:
        ids = torch.tensor([self.tokenizer(prompt).input_ids])
        answer: list[int] = []
        while len(answer) < most:
            probabilities = self.model(input_ids=ids).logits[0, -1].float().softmax(-1)
            token = int(torch.multinomial(probabilities, 1, generator=draw))
            if token == self.tokenizer.eos_token_id:
                break
            answer.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        # squeezed to one line of characters that any terminal shows
        text = self.tokenizer.decode(answer)
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())

    def recalled(self, facts: Sequence[world.Row]) -> float:
        """Share of facts whose true answer is the likeliest of the twelve candidates; chance is one twelfth."""
        rows = world.candidate_rows(facts)
        best = self.logps(rows).argmax(-1).tolist()
        found = sum(world.PEOPLE[row["attribute"]].values[i] == row["value"] for row, i in zip(rows, best, strict=True))
        return found / len(rows)

    def masses(self, rows: Sequence[world.Row], pairs: Sequence[world.Row]) -> Masses:
        """Masses on ``pairs``; ``rows`` are the candidate rows that they were made from, in the same order."""
        same, other = self.logps(rows), self.logps([{**row, "candidates": row["reworded"]} for row in rows])
        every = torch.arange(len(rows))
        chosen = same[every, _places(rows, pairs, "chosen")].double()
        rejected = same[every, _places(rows, pairs, "rejected")].double()
        named = same.double().exp().sum(-1) + other.double().exp().sum(-1)
        return Masses(
            chosen=chosen.exp().mean().item(),
            rejected=rejected.exp().mean().item(),
            others=(named - chosen.exp() - rejected.exp()).mean().item(),
            elsewhere=(1 - named).mean().item(),
            chosen_logp=chosen.mean().item(),
            rejected_logp=rejected.mean().item(),
        )


def _places(rows: Sequence[world.Row], pairs: Sequence[world.Row], side: str) -> list[int]:
    return [row["candidates"].index(pair[side]) for row, pair in zip(rows, pairs, strict=True)]
