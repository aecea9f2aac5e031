"""What a kernel of tree attention is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from align.engine.layout import Layout


class UnsupportedAttention(NotImplementedError):
    """The model's attention uses something that is not implemented; the engine falls back on padded rows."""


class Run(Protocol):
    """Attention over a packed row."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: Layout,
        *,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """``query`` [1, H, T, D], ``key`` and ``value`` [1, G, T, D]; returns [1, T, H, D].

        ``scaling`` multiplies the products of queries and keys (None: D ** -0.5); a query sees the last ``window``
        keys, its own among them; scores pass through softcap * tanh(score / softcap).

        Raises:
            UnsupportedAttention: for what it cannot do.
        """


@dataclass(frozen=True)
class Kernel:
    """A way to compute it.

    ``name`` is what it is called in sentences for people; ``flash`` which of torch's FlashAttentions it runs on, None
    for the one that torch brings along.
    """

    name: str
    run: Run
    flash: str | None = None


def first_line(error: Exception) -> str:
    """What an error says, as part of a sentence."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
