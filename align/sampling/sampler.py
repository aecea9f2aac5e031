"""Completions from a model in this process, by transformers' own ``generate``.

The next token is the likeliest of the warped logits plus Gumbel noise, which is an exact draw from their softmax. The
noise is keyed by seed, step, prompt, sample, position and token, so a completion depends neither on the rows beside it
nor on how many processes there are: in float32 on a CPU exactly; elsewhere logits themselves change in their last bits
with the shape of a batch, and completions repeat where that shape does. There ``batch_size`` must be a number for that:
without one, batches grow with the memory that is free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from align.data.tokens.samples import Sample, special_tokens
from align.errors import UserError
from align.models.batches import BatchSize
from align.models.ends import end_ids
from align.models.generate import by_length, greedy, left_padded, padding
from align.models.subject import positions
from align.recipe.sampling import Sampling
from align.sampling.noise import signed
from align.sampling.processors import Noise, Seen, Stops, warpers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Batch = list[tuple[int, int]]  # sequences: (prompt, sample)

_REPEATABLE = (DynamicLayer, DynamicSlidingWindowLayer)  # caches whose rows may be repeated; exactly these classes


class Sampler:
    """Draws ``settings.samples`` completions of every prompt.

    Args:
        settings: lengths, temperature and the like.
        tokenizer: of the model; with the model it knows the tokens that end a text.
        seed: of all draws.
        say: takes a sentence for people, each once.

    Attributes:
        shares_prompts: whether a prompt is encoded once for its samples of a batch; None before the first batch. It is
            where the model's cache is one of keys and values by position; elsewhere every sample reads its prompt.

    Raises:
        UserError: where a stop text is empty.
    """

    def __init__(
        self,
        settings: Sampling,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        *,
        say: Callable[[str], Any] = print,
    ) -> None:
        self.settings, self.tokenizer, self.seed, self.say = settings, tokenizer, seed, say
        self.shares_prompts: bool | None = None
        cure = (
            "Set sampling.batch_size: {}, or lower sampling.max_new_tokens. What was drawn and written by then is kept."
        )
        self.size = BatchSize(settings.batch_size, "completions", cure, say)
        self._said: set[str] = set()

    def __call__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[int],
        step: int,
        *,
        device: torch.device,
        in_step: bool = False,
        drawn: Callable[[int], Any] = lambda count: None,
        seen: Callable[[list[int]], Any] | None = None,
    ) -> list[list[Sample]]:
        """Completions by prompt, then by sample.

        Args:
            model: a model with ``generate``, in evaluation mode, as ``unwrap_model_for_generation`` gives it.
            prompts: token ids, at least one each.
            keys: what the draws of each prompt are keyed by, any integers; see ``prompt_key``.
            step: optimizer step or round; other steps draw other completions.
            device: where the model computes.
            in_step: all processes run equally many forward passes, which a sharded model needs; each calls with prompts
                of its own, some perhaps with none.
            drawn: told of every batch how many completions it gave.
            seen: told after every token what the first completion of a batch has by then.

        Raises:
            UserError: where a prompt is empty or leaves no room for a completion.
        """
        if model.training:
            raise ValueError("a model that samples must be in evaluation mode, or dropout and checkpointing would act")
        draw = _Draw(self, model, prompts, [signed(key) for key in keys], step, device, in_step, seen)
        by_room = self._by_room(prompts, positions(model))
        found: dict[tuple[int, int], Sample] = {}
        if in_step:
            self._draw_in_step(draw, by_room, found, drawn)
            return self._listed(found, len(prompts))
        for room, rows in by_room:

            def draw_some(batch: Sequence[tuple[int, int]], room: int = room) -> list[Sample]:
                samples = draw(batch, room)
                drawn(len(batch))
                return samples

            def length(row: tuple[int, int], room: int = room) -> tuple[int, int]:
                return len(prompts[row[0]]), room

            found |= self.size.batches(model, device, rows, length, draw_some)
        return self._listed(found, len(prompts))

    def _draw_in_step(
        self,
        draw: _Draw,
        by_room: list[tuple[int, Batch]],
        found: dict[tuple[int, int], Sample],
        drawn: Callable[[int], Any],
    ) -> None:
        """Batches of one size on all processes, and as many: each forward takes all of them."""
        size = self.size.size
        mine = [(room, rows[i : i + size]) for room, rows in by_room for i in range(0, len(rows), size)]
        with self.size.said(size):
            for room in _rooms([room for room, _ in mine]):
                if mine and mine[0][0] == room:
                    _, batch = mine.pop(0)
                    found |= zip(batch, draw(batch, room), strict=True)
                    drawn(len(batch))
                else:
                    draw.nothing()

    def _listed(self, found: Mapping[tuple[int, int], Sample], prompts: int) -> list[list[Sample]]:
        return [[found[p, s] for s in range(self.settings.samples)] for p in range(prompts)]

    def _by_room(self, prompts: Sequence[Sequence[int]], limit: int | None) -> list[tuple[int, Batch]]:
        """Sequences, short prompts first, by the number of new tokens that they have room for, the roomiest first.

        Rows of a batch have equal room, so that no row goes on beyond the model's positions while others end.
        """
        most, samples = self.settings.max_new_tokens, self.settings.samples
        by_room: dict[int, list[int]] = {}
        for number, prompt in enumerate(prompts):
            room = most if limit is None else min(most, limit - len(prompt))
            if not len(prompt):
                raise UserError(f"Prompt {number} is empty; a completion needs at least one token to start from.")
            if room < 1:
                start = self.tokenizer.decode(list(prompt[:20]))
                raise UserError(
                    f"Prompt {number} ({start!r}...) has {len(prompt)} tokens, which leaves no room for a completion: "
                    f"the model reads {limit} at most. Leave it out or shorten it."
                )
            by_room.setdefault(room, []).append(number)
        if any(room < most for room in by_room):
            self.say_once(
                f"sampling: some completions end before {most} new tokens, since the model reads {limit} tokens at most"
            )
        found: list[tuple[int, Batch]] = []
        for room in sorted(by_room, reverse=True):
            rows = [(number, sample) for number in by_room[room] for sample in range(samples)]
            found.append((room, [rows[i] for i in by_length([len(prompts[number]) for number, _ in rows])]))
        return found

    def say_once(self, sentence: str) -> None:
        """Say a sentence that was not said before."""
        if sentence not in self._said:
            self._said.add(sentence)
            self.say(sentence)


class _Draw:
    """One call of a sampler: ``draw(batch, room)`` gives the samples of a batch of sequences."""

    def __init__(
        self,
        sampler: Sampler,
        model: Any,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[int],
        step: int,
        device: torch.device,
        in_step: bool,
        seen: Callable[[list[int]], Any] | None,
    ) -> None:
        self.sampler, self.model, self.prompts, self.keys = sampler, model, prompts, keys
        self.step, self.device, self.in_step, self.seen = step, device, in_step, seen
        self.settings, self.tokenizer = sampler.settings, sampler.tokenizer
        self.ends = end_ids(model, self.tokenizer)
        # a special token is no part of a text, but it ends one as well
        known = special_tokens(self.tokenizer)
        special = [text for text in self.settings.stop if text in known]
        self.ends += [known[text] for text in special if known[text] not in self.ends]
        self.stop = [text for text in self.settings.stop if text not in special]
        if self.stop and not self.ends:
            raise UserError(
                "sampling.stop needs an end-of-text token to close a completion with, and neither tokenizer nor model "
                "names one: set the tokenizer's eos_token."
            )
        self.pad = padding(self.tokenizer, self.ends)

    def __call__(self, batch: Sequence[tuple[int, int]], room: int) -> list[Sample]:
        numbers = sorted({number for number, _ in batch})
        # two columns at least: every prompt then has a part to encode and a last token to go on from
        ids, mask = left_padded([self.prompts[n] for n in numbers], self.pad, self.device, least=2)
        place = self._tensor([numbers.index(number) for number, _ in batch])
        noise = Noise(
            (self.sampler.seed, self.step),
            self._tensor([self.keys[number] for number, _ in batch]),
            self._tensor([sample for _, sample in batch]),
            ids.shape[1],
        )
        out = self._generate(ids, mask, place, room, noise)
        new = out[:, ids.shape[1] :].tolist()
        return [self._sample(index, row) for (_, index), row in zip(batch, new, strict=True)]

    def nothing(self) -> None:
        """The forwards of a batch without a draw, since other processes need them."""
        token = int(self.pad == 0)  # any but padding
        self._generate(self._tensor([[token] * 2]), self._tensor([[1, 1]]), self._tensor([0]), 1, None)

    def _tensor(self, values: list) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def _generate(self, ids: Tensor, mask: Tensor, place: Tensor, room: int, noise: Noise | None) -> Tensor:
        """Prompts [P, W] repeated as ``place`` [R] says, with up to ``room`` new tokens behind them: [R, W + T]."""
        options: dict[str, Any] = {}
        cache = None if self.sampler.shares_prompts is False else self._prefilled(ids, mask)
        if cache is not None:
            cache.batch_select_indices(place)
            options["past_key_values"] = cache
        if noise is not None:
            options["logits_processor"] = LogitsProcessorList([*warpers(self.settings), noise])
            ending: list[Any] = [Stops(self.stop, self.stops, noise.width)] if self.stop else []
            ending += [Seen(self.seen, noise.width)] if self.seen is not None else []
            options["stopping_criteria"] = StoppingCriteriaList(ending)
        with greedy(self.model, self.ends, self.pad, room) as settings:
            return self.model.generate(
                input_ids=ids[place],
                attention_mask=mask[place],
                generation_config=settings,
                synced_gpus=self.in_step,
                **options,
            )

    def _prefilled(self, ids: Tensor, mask: Tensor) -> DynamicCache | None:
        """The cache of all but the last token of each prompt, or None where its rows cannot be repeated."""
        # a prompt of one token has only padding here: the token itself is read instead, and masked from then on
        first, seen = ids[:, :-1].clone(), mask[:, :-1].clone()
        first[:, -1] = torch.where(seen[:, -1] == 1, first[:, -1], ids[:, -1])
        seen[:, -1] = 1
        with greedy(self.model, self.ends, self.pad, 1) as settings:
            # a token that is thrown away: it costs no further forward, and ``generate`` knows each model's inputs
            settings.return_dict_in_generate = True
            out = self.model.generate(
                input_ids=first,
                attention_mask=seen,
                generation_config=settings,
                synced_gpus=self.in_step,
            )
        cache = out.past_key_values
        layers = getattr(cache, "layers", [])
        self.sampler.shares_prompts = (
            type(cache) is DynamicCache
            and all(type(layer) in _REPEATABLE for layer in layers)
            and cache.get_seq_length() == ids.shape[1] - 1  # no virtual tokens of an adapter
        )
        if self.sampler.shares_prompts:
            return cache
        kinds = ", ".join(sorted({type(layer).__name__ for layer in layers})) or type(cache).__name__
        self.sampler.say_once(
            f"sampling: each sample reads its prompt again, since the model's cache ({kinds}) cannot be repeated"
        )
        return None

    # ---- what was drawn

    def text(self, ids: Sequence[int]) -> str:
        """Decoded, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def stops(self, ids: Sequence[int]) -> bool:
        """Whether the text has a stop text in it."""
        text = self.text(ids)
        return any(stop in text for stop in self.stop)

    def _sample(self, index: int, row: list[int]) -> Sample:
        """A sample from new tokens [T]; behind its end there may be padding, a special token or one that ends."""
        end = next((i for i, token in enumerate(row) if token in self.ends), len(row))
        ids = row[:end]
        if self.stop and self.stops(ids):
            text = self.text(ids)
            cut = min(text.index(stop) for stop in self.stop if stop in text)
            kept = next(n for n in range(len(ids), -1, -1) if len(self.text(ids[:n])) <= cut)
            own = self.tokenizer.eos_token_id
            close = self.ends[0] if own is None else own
            return Sample(index, (*ids[:kept], close), text[:cut], "stop")
        return Sample(index, tuple(row[: end + 1]), self.text(ids), "end" if end < len(row) else "length")


def _rooms(mine: list[int]) -> list[int]:
    """The new tokens of every batch to compute, descending: of each number as many as the process with most has."""
    from accelerate.utils import gather_object

    counts = Counter(mine)
    for others in gather_object([counts]):
        counts |= others
    return sorted(counts.elements(), reverse=True)
