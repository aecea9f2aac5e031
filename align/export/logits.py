"""Logits of a few rows of tokens, by which two models are told apart: before merging and after, here and elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align.models.subject import positions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# of the largest logit: what may differ where the order of sums does
SAME = 1e-5
_SAME_IN_DOUBLE = 1e-6  # norms compute in float32 there, too
_TEXTS = (
    "The old lighthouse keeper counted 47 ships before breakfast, and wrote each name down in his blue book.",
    "def area(radius: float) -> float:\n    return 3.14159 * radius**2  # in square metres\n",
    "Qué significa «ахой» по-русски? 船が見えます。 The answer: it depends.",
)
_SPREAD = 24  # tokens of a row that goes through the whole vocabulary


def token_rows(tokenizer: PreTrainedTokenizerBase, model: Any, trained: Iterable[int] = ()) -> list[list[int]]:
    """Rows of token ids: three texts, one in equal steps through the vocabulary, and one of the ``trained`` tokens."""
    vocabulary = model.config.get_text_config().vocab_size
    rows = [[token for token in tokenizer(text).input_ids if token < vocabulary] for text in _TEXTS]
    rows += [[vocabulary * i // _SPREAD for i in range(_SPREAD)], list(trained)]
    limit = positions(model)
    return [row[:limit] for row in rows if row]


@torch.no_grad()
def logits_of(model: Any, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits of each row, float32 or of a float64 model float64: [T, V], of a reward model [1, 1]."""
    found = []
    for row in rows:
        out = model(input_ids=torch.tensor([list(row)])).logits
        found.append((out[0] if out.dim() == 3 else out).to(torch.promote_types(out.dtype, torch.float32)))
    return found


@dataclass(frozen=True)
class Gap:
    """How far logits of one model are from those of another.

    Attributes:
        rows, tokens: what was read.
        largest: the largest difference, in the logits' own unit.
        scale: the largest logit of the first model by size, 1 at least: logits are log-odds, of which 1e-5 is nothing.
        row, token: where it is, counted from 0.
        likeliest: share of the tokens with the same likeliest next token; of a reward model 1.
        limit: what of the largest logit is rounding.
    """

    rows: int
    tokens: int
    largest: float
    scale: float
    row: int
    token: int
    likeliest: float
    limit: float = SAME

    @property
    def relative(self) -> float:
        """The largest difference as a share of the largest logit."""
        return self.largest / self.scale

    @property
    def same(self) -> bool:
        """Whether it is rounding; of what is not finite it is False."""
        return self.relative <= self.limit

    def text(self) -> str:
        """The numbers, as the end of a sentence."""
        return (
            f"by {self.largest:.2g} at most, {self.relative:.1e} of the largest ({self.rows} rows, "
            f"{self.tokens} tokens)"
        )


def gap(before: Sequence[Tensor], after: Sequence[Tensor]) -> Gap:
    """The largest difference between the logits of the same rows; nan counts as infinite."""
    differences = [(b - a).abs().amax(-1).nan_to_num(nan=torch.inf) for b, a in zip(before, after, strict=True)]
    row = max(range(len(differences)), key=lambda i: float(differences[i].max()))
    agree = torch.cat([b.argmax(-1) == a.argmax(-1) for b, a in zip(before, after, strict=True)])
    return Gap(
        rows=len(before),
        tokens=len(agree),
        largest=float(differences[row].max()),
        scale=max(1.0, *(float(b.abs().max()) for b in before)),
        row=row,
        token=int(differences[row].argmax()),
        likeliest=float(agree.float().mean()),
        limit=_SAME_IN_DOUBLE if before[0].dtype == torch.float64 else SAME,
    )
