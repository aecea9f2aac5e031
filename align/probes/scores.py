"""Log-probs of the probe set under one model."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

# columns that a probe set may do without: those of answers that no pair names
_OPTIONAL = ("other", "unseen")


@dataclass(frozen=True)
class ProbeScores:
    """Summed log-probs of the probe set under one model, in nats (EOS in, prompt out), and target-token counts.

    ``chosen``, ``rejected`` [n] belong to pairs. ``other`` [m] are answers borrowed from other rows. ``unseen`` [p] are
    samples that the starting policy drew, those of one prompt added up: an entry is a prompt. Both may be None.
    Whatever dtype and device come in, float64 on the CPU is kept. Raises ValueError where shapes disagree.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    other: Tensor | None = None
    other_tokens: Tensor | None = None
    unseen: Tensor | None = None
    unseen_tokens: Tensor | None = None

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if value is not None:
                # of lists, torch would make float32; and to the CPU first: some devices have no float64
                numbers = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
                object.__setattr__(self, name, numbers.detach().cpu().to(torch.float64))
        pair = (self.chosen, self.rejected, self.chosen_tokens, self.rejected_tokens)
        if self.chosen.ndim != 1 or len({x.shape for x in pair}) > 1 or self.chosen.numel() == 0:
            raise ValueError("probe scores of pairs must be flat, of one length and not empty")
        for name in _OPTIONAL:
            logp, tokens = getattr(self, name), getattr(self, f"{name}_tokens")
            if (logp is None) != (tokens is None):
                raise ValueError(f"log-probs and token counts of {name} answers come together")
            if logp is not None and logp.shape != tokens.shape:
                raise ValueError(f"log-probs and token counts of {name} answers must have one length")

    def to_json(self) -> dict[str, list[float] | None]:
        """Plain lists, exact in JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: None if value is None else value.tolist() for name, value in values.items()}
