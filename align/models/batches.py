"""How much a model is given at a time: sequences that it goes on with, positions that it scores.

On a CPU the numbers are fixed, so that runs repeat. A GPU computes large batches hardly slower than small ones, so
there they follow the memory: that of the device for packs to score, which is the same in every run, and what is free of
it for texts to generate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch

from align.engine.scoring import causal_model
from align.errors import ran_out
from align.runs.memory import Memory, answered, explained, memory
from align.runs.processes import free

BATCH = 32  # sequences at a time where memory is not counted, and the first batch where it is
_FILLED = 0.7  # share of the free memory that a batch may be estimated to take
_PACK, _LARGEST_PACK = 4096, 16384  # positions
_PACK_SHARE = 0.1  # of a device's memory, for a pack's activations

Row = TypeVar("Row")
Found = TypeVar("Found")


def sequence_bytes(model: Any, prompt: int, new: int) -> int:
    """Bytes that one sequence takes while it is generated, an upper estimate.

    Keys and values by the configuration (layers that keep a state in their place are counted as if they kept keys), in
    float32 under autocast, where rotary embeddings widen them; twice, since a cache that grows is copied; the prompt's
    activations in one layer; and some 64 bytes per token of the vocabulary for logits and noise.
    """
    config = causal_model(model).config.get_text_config()
    queries = getattr(config, "num_attention_heads", None) or 1  # a model without attention keeps states alone
    heads = getattr(config, "num_key_value_heads", None) or queries
    width = getattr(config, "head_dim", None) or config.hidden_size // queries
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    length = prompt + new
    kept = sum(min(length, window) if window and kind == "sliding_attention" else length for kind in kinds)
    cache = kept * 2 * heads * width * _item(model)
    return 2 * cache + prompt * position_bytes(model) + 64 * config.vocab_size


def position_bytes(model: Any) -> int:
    """Bytes of one position's activations in one layer without gradients, an upper estimate."""
    config = causal_model(model).config.get_text_config()
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return (8 * config.hidden_size + 3 * inner) * _item(model)


def _item(model: Any) -> int:
    return causal_model(model).dtype.itemsize


def pack_positions(model: Any, device: torch.device) -> int:
    """Positions of a pack to score, by the device and the model alone, so that the next run plans the same."""
    if not _counts(device):
        return _PACK
    fits = int(_PACK_SHARE * memory(device).total) // position_bytes(model)
    return min(max(fits, _PACK), _LARGEST_PACK)


class BatchSize:
    """How many sequences a model goes on with at a time.

    Args:
        fixed: so many; None for as many as memory holds. Of these the first batch has 32, each one after it up to twice
            as many as the last, and where memory runs out after all, the rest is done in halves of that batch.
        what: what is drawn, in sentences.
        cure: what to set where memory runs out; ``{}`` stands for half of what was tried.
        say: takes a sentence for people.
        in_step: whether other processes take part in each forward; the number then stays what it is.
    """

    def __init__(
        self, fixed: int | None, what: str, cure: str, say: Callable[[str], Any], *, in_step: bool = False
    ) -> None:
        self.what, self.cure, self.say = what, cure, say
        self.size = fixed or BATCH
        self.fixed = fixed is not None or in_step
        self.halved = False
        self._underrated = 1.0  # how many times the estimate a batch was seen to take

    def batches(
        self,
        model: Any,
        device: torch.device,
        rows: Sequence[Row],
        length: Callable[[Row], tuple[int, int]],
        draw: Callable[[Sequence[Row]], Sequence[Found]],
    ) -> Iterator[tuple[Row, Found]]:
        """Rows in their order with what ``draw`` finds for each.

        Args:
            length: tokens of a row's prompt and of what may come behind it.

        Raises:
            DoesNotFit: where memory runs out for a fixed number of rows, for one, or for the second time.
        """
        start = 0
        while start < len(rows):
            batch = rows[start : start + self.size]
            before = memory(device) if _counts(device) else None
            found = self._drawn(draw, batch)
            if found is None:
                free()
                continue
            yield from zip(batch, found, strict=True)
            start += len(batch)
            if before is not None and len(batch) == self.size and start < len(rows):
                took, takes = (
                    sequence_bytes(model, *max(map(length, some), key=sum))
                    for some in (batch, rows[start : start + 2 * self.size])
                )
                self._grow(before, memory(device), took, takes)

    def _drawn(self, draw: Callable[[Sequence[Row]], Sequence[Found]], batch: Sequence[Row]) -> Sequence[Found] | None:
        """What was found, None where memory ran out for the first time."""
        with self.said(len(batch)):
            try:
                return draw(batch)
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error) or self.fixed or self.halved or len(batch) == 1:
                    raise
        self._halve(len(batch))
        return None

    def _grow(self, before: Memory, now: Memory, took: int, takes: int) -> None:
        """After a full batch: twice its size, where that is estimated to fit.

        ``took`` and ``takes`` are the estimated bytes of a sequence, of those just drawn and of the next ones.
        """
        if now.peak > before.peak:  # nothing held more before, so this is what the batch took
            self._underrated = max(self._underrated, (now.peak - before.held) / (self.size * took))
        fits = 2 * self.size * takes * self._underrated <= _FILLED * (now.free + now.spare)
        if fits and not self.fixed and not self.halved:
            self.size *= 2

    def said(self, tried: int) -> AbstractContextManager[None]:
        """Answers memory that runs out while so many are drawn at a time."""
        doing = f"while {tried:,} {self.what} were drawn at a time"
        return answered(explained(doing, self.cure.format(tried // 2 or 1)))

    def _halve(self, tried: int) -> None:
        self.size, self.halved = tried // 2, True
        self.say(
            f"{self.what}: {tried:,} at a time do not fit into memory; this batch is drawn again, and from here on "
            f"{self.size:,} at a time"
        )


def _counts(device: torch.device) -> bool:
    """Whether the device's memory is its own, and counted."""
    return device.type != "cpu" and hasattr(torch.get_device_module(device), "mem_get_info")
