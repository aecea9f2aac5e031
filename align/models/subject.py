"""The model that is measured: one inside a running trainer, or one loaded from a folder or the Hub.

Packs and generation batches are planned from the rows alone and dealt to the processes, so numbers do not depend on how
many of these there are: in float32, with equally many threads each, not by one bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from align.data.batches.packing import within_budget
from align.data.tokens.arguments import unused_arguments
from align.engine.layout import Branch, Example, Tree, pack
from align.engine.probe import probe
from align.engine.reads import LogProb, Read
from align.engine.scoring import ScoringEngine, attach, causal_model
from align.errors import UserError
from align.models.batches import BatchSize, pack_positions
from align.models.ends import end_ids
from align.models.generate import by_length, generate_batch
from align.models.load import DType, load_checkpoint
from align.runs.memory import answered, explained
from align.runs.terminal import Work

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION_CURE = (
    "Free memory on the device, or lower what one text takes: shorter prompts, fewer new tokens, weights of 16 bits."
)

Values = dict[str, dict[str, np.ndarray]]  # by branch, then by read: float64 [T], one value per token


class Subject:
    """A model to score answers with and to sample from. Make one with ``Subject.of`` or ``Subject.load``.

    Attributes:
        name: what it is called in logs and messages.
        tokenizer: its tokenizer.
        system: system message of every conversation, or None.
        say: takes a sentence for people; prints on the main process only.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        engine: ScoringEngine,
        *,
        name: str = "model",
        device: torch.device | None = None,
        rank: int = 0,
        world: int = 1,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        plain: Callable[[], AbstractContextManager] | None = None,
        system: str | None = None,
        say: Callable[[str], Any] = print,
    ) -> None:
        self.model, self.tokenizer, self.engine, self.name = model, tokenizer, engine, name
        self.device = device or next(model.parameters()).device
        self.rank, self.world, self.autocast, self.system, self.say = rank, world, autocast, system, say
        self._plain = plain or (lambda: nullcontext(model))

    @classmethod
    def of(cls, trainer: Any, *, name: str = "model", system: str | None = None) -> Subject:
        """The policy of an ``AlignTrainer``, before, during or after training, however it is wrapped."""
        from align.models.whole import for_generation

        accelerator = trainer.accelerator
        trainer.get_ready(trainer.model_wrapped)
        return cls(
            trainer.model_wrapped,
            trainer.processing_class,
            trainer.engine,
            name=name,
            device=trainer.args.device,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            autocast=accelerator.autocast,
            plain=lambda: for_generation(trainer.model_wrapped, accelerator),
            system=system,
            say=trainer.say,
        )

    @classmethod
    def load(
        cls,
        name: str,
        dtype: DType | None = None,
        *,
        system: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        echo: Callable[[str], Any] = print,
    ) -> Subject:
        """A run directory's model, a folder (an adapter's too) or a Hub id; ``dtype`` None is ``usual_type``.

        ``arguments`` of its chat template win over those that it was trained with.

        Under a launcher of several processes each loads the whole model and scores its share of the rows.

        Raises:
            UserError: where there is no such model, or it cannot be scored.
        """
        from accelerate import PartialState
        from accelerate.utils import gather_object, parse_flag_from_env

        # told so, or it would not look for other processes where there is no accelerator
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
        say: Callable[[str], Any] = echo if state.is_main_process else lambda _: None
        model, tokenizer = load_checkpoint(name, dtype, arguments)
        for sentence in unused_arguments(tokenizer, arguments or {}):
            say(f"warning: {sentence}")
        model.to(state.device).eval()
        attach(model)
        engine = ScoringEngine()
        say(probe(engine, model, state.device, lambda flag: all(gather_object([bool(flag)]))).sentence())
        return cls(
            model,
            tokenizer,
            engine,
            name=name,
            device=state.device,
            rank=state.process_index,
            world=state.num_processes,
            system=system,
            say=say,
        )

    @property
    def ends(self) -> list[int]:
        """Token ids that end a text; see ``align.models.ends``."""
        return end_ids(causal_model(self.model), self.tokenizer)

    # ---- teacher forcing

    def score(
        self,
        prompts: Sequence[Sequence[int]],
        branches: Sequence[Mapping[str, Sequence[int]]],
        reads: tuple[Read, ...] = (LogProb(),),
        *,
        where: str = "row",
    ) -> list[Values]:
        """What ``reads`` see at every token of every branch, by row, the same on every process.

        Args:
            prompts: token ids, at least one each.
            branches: for each prompt the named answers that share it, at least one token each.
            where: what a row is called in messages.

        Returns:
            For each row branch -> read -> float64 array [tokens of the branch].

        Raises:
            UserError: where a row is longer than the model's positions reach.
        """
        limit = positions(self.model)
        for row, (prompt, named) in enumerate(zip(prompts, branches, strict=True)):
            longest = len(prompt) + max(map(len, named.values()))
            if limit is not None and longest > limit:
                raise UserError(f"{where} {row} has {longest} tokens, but the model reads {limit} at most.")
        return self._score(prompts, branches, reads, where)

    def _score(
        self,
        prompts: Sequence[Sequence[int]],
        branches: Sequence[Mapping[str, Sequence[int]]],
        reads: tuple[Read, ...],
        where: str,
    ) -> list[Values]:
        """As ``score``, of rows that the model has room for."""
        examples = [
            Example((Tree(prompt, tuple(Branch(name, ids) for name, ids in named.items())),), row)
            for row, (prompt, named) in enumerate(zip(prompts, branches, strict=True))
        ]
        # a longer row makes a pack of its own
        packs = within_budget([example.tokens() for example in examples], self._pack_positions())
        packs += [[] for _ in range(-len(packs) % self.world)]
        found: list[tuple[int, Values]] = []
        was_training = self.model.training
        self.model.eval()
        mine = packs[self.rank :: self.world]
        scored = Work(f"{where}s scored", sum(map(len, mine)))
        cure = "Score where more memory is free, or a model of narrower weights."
        with answered(explained(f"while {where}s were scored", cure)), torch.no_grad(), self.autocast(), scored as work:
            for rows in mine:
                found += self._score_pack([examples[i] for i in rows], reads)
                work.add(len(rows))
        self.model.train(was_training)
        return self.in_order(found, len(examples))

    def _pack_positions(self) -> int:
        """Positions of a pack, the same on all processes: the least that one of them asks for."""
        from accelerate.utils import gather_object

        mine = pack_positions(self.model, self.device)
        return min(gather_object([mine])) if self.world > 1 else mine

    def _score_pack(self, examples: list[Example], reads: tuple[Read, ...]) -> list[tuple[int, Values]]:
        batch = pack(examples)
        scores = self.engine(self.model, batch.to(self.device), reads)
        if not examples:
            return []  # a dummy, computed to keep processes in step
        cuts = np.cumsum(batch.lengths.numpy())[:-1]
        tokens = {r.name: np.split(scores.tokens[r.name].cpu().double().numpy(), cuts) for r in reads}
        out: dict[int, Values] = {example.row: {} for example in examples}
        owners = [(e.row, b.name) for e in examples for tree in e.trees for b in tree.branches]
        for place, (row, name) in enumerate(owners):
            out[row][name] = {read: parts[place] for read, parts in tokens.items()}
        return list(out.items())

    # ---- generation

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: Sequence[str] = (), *, where: str = "row"
    ) -> list[str]:
        """Greedy continuations: text up to the end-of-text token or the first of ``stop``, stripped, by row.

        Whatever the checkpoint says about sampling is left aside. Where the model's positions end before
        ``max_new_tokens`` do, texts end there, and that is said.

        Raises:
            UserError: where a prompt fills all of the model's positions.
        """
        if not prompts:
            return []
        limit = positions(self.model)
        longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
        if limit is not None and len(prompts[longest]) + max_new_tokens > limit:
            if len(prompts[longest]) >= limit:
                raise UserError(
                    f"{where} {longest} has a prompt of {len(prompts[longest])} tokens, which leaves no room for an "
                    f"answer: the model reads {limit} at most."
                )
            self.say(
                f"generation: some texts end before {max_new_tokens} new tokens, since the model reads {limit} tokens "
                f"at most and the longest prompt has {len(prompts[longest])}"
            )
        return self._generate(prompts, max_new_tokens, stop, where)

    def _generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: Sequence[str], where: str
    ) -> list[str]:
        """As ``generate``, of prompts that the model has room for."""
        limit = positions(self.model)
        order = by_length([len(p) for p in prompts])
        in_step = self.engine.sharded and self.world > 1
        size = BatchSize(None, "answers", _GENERATION_CURE, self.say, in_step=in_step)
        parts = [order[i : i + size.size] for i in range(0, len(order), size.size)]
        if in_step:
            parts += [parts[-1]] * (-len(parts) % self.world)  # computed again by processes that have one less
        found: list[tuple[int, str]] = []
        was_training = self.model.training
        mine = parts[self.rank :: self.world]
        written = Work(f"{where}s answered", sum(map(len, mine)))
        with self._plain() as model, torch.no_grad(), self.autocast(), written:
            model.eval()
            for room, some in groupby(mine, lambda rows: _room(max_new_tokens, limit, len(prompts[rows[-1]]))):

                def answer(rows: Sequence[int], room: int = room) -> list[str]:
                    given = [prompts[i] for i in rows]
                    how: dict[str, Any] = {"max_new_tokens": room, "stop": stop, "in_step": in_step}
                    texts = generate_batch(model, self.tokenizer, given, device=self.device, **how)
                    written.add(len(rows))
                    return texts

                def length(row: int, room: int = room) -> tuple[int, int]:
                    return len(prompts[row]), room

                rows = [row for part in some for row in part]
                found += size.batches(model, self.device, rows, length, answer)
        self.model.train(was_training)
        return self.in_order(found, len(prompts))

    def in_order(self, mine: list[tuple[int, Any]], count: int) -> list[Any]:
        """Results of all processes, in the order of the rows."""
        from accelerate.utils import gather_object

        everything = dict(gather_object(mine) if self.world > 1 else mine)
        return [everything[row] for row in range(count)]


def _room(most: int, limit: int | None, prompt: int) -> int:
    """New tokens behind a prompt of so many tokens."""
    return most if limit is None else min(most, limit - prompt)


def positions(model: nn.Module) -> int | None:
    """Most tokens of a sequence that the model reads; None where its configuration does not say.

    A rotary embedding that changes with the longest row of a batch counts up to where it begins to.
    """
    config = causal_model(model).config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {str(r.get("rope_type")) for r in (rope, *(v for v in rope.values() if isinstance(v, dict)))}
    limit = getattr(config, "max_position_embeddings", None)
    if kinds & {"dynamic", "longrope"}:
        original = getattr(config, "original_max_position_embeddings", None)
        return rope.get("original_max_position_embeddings") or original or limit
    return limit
