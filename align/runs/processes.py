"""The processes of a run: which one this is, how they go on together, and what forwards compute in."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env

from align.errors import DoesNotFit, Stopped, UserError


@dataclass(frozen=True)
class World:
    """The processes of a run, and what forwards compute in.

    ``mixed`` is the type of mixed precision in training, or None: log-probs are computed in it here, too.
    """

    rank: int
    size: int
    device: torch.device
    mixed: torch.dtype | None = None

    @classmethod
    def of(cls, args: Any) -> World:
        """The processes that ``TrainingArguments`` found."""
        state: PartialState = args.distributed_state
        mixed = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        return cls(state.process_index, state.num_processes, args.device, mixed)

    @classmethod
    def here(cls) -> World:
        """The processes that a launcher started, outside of training; without one this process alone.

        Who is done waits for the others, however long these work; a launcher ends the rest where one dies.
        """
        # told so, or accelerate would not look for other processes where there is no accelerator
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        state = PartialState(cpu=cpu, timeout=timedelta(days=7))
        return cls(state.process_index, state.num_processes, state.device)

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.mixed is None else torch.autocast(self.device.type, dtype=self.mixed)

    def shared(self, value: Any) -> Any:
        """What the first process has, on all of them."""
        return gather_object([value])[0] if self.size > 1 else value

    def agree(self, flag: bool) -> bool:
        """Whether a flag is true on all of them."""
        return all(gather_object([bool(flag)])) if self.size > 1 else bool(flag)

    def first(self) -> World:
        """A world of the first process alone, for what it does while the others wait."""
        return World(0, 1, self.device, self.mixed)

    def together(self, work: Callable[[], Any]) -> None:
        """Do this process's share; when all have done theirs, or one of them could not, go on or raise on all.

        Raises:
            UserError: of the first process that could not.
        """
        if self.size == 1:
            work()
            return
        problem = None
        try:
            work()
        except UserError as error:
            problem = (type(error).__name__, str(error))
        for found in gather_object([problem]):
            if found is not None:
                kinds = {kind.__name__: kind for kind in (UserError, DoesNotFit, Stopped)}
                known = kinds.get(found[0], UserError)(found[1])
                known.shared = True
                raise known


def leave_together() -> None:
    """End the process group when every process is there: one that leaves early makes the others abort."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def free() -> None:
    """Give memory back before the next model comes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
