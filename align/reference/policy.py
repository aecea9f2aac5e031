"""The reference: what the policy was at the start, however it is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from align.compat import fsdp2_prepare_model, prepare_deepspeed
from align.engine.layout import TreeBatch
from align.engine.reads import Hidden, LogProb
from align.engine.scores import Scores
from align.engine.scoring import ScoringEngine, attach
from align.errors import UserError
from align.reference.narrow import narrow
from align.reference.store import LogProbStore, sequence_key

Strategy = Literal["auto", "adapter_off", "copy"]


def choose(strategy: Strategy, model: nn.Module, fresh_adapter: bool) -> Strategy:
    """Resolve ``auto``: a fresh adapter is switched off; anything else is copied."""
    if strategy == "adapter_off" and not (fresh_adapter or hasattr(model, "peft_config")):
        raise UserError("reference.strategy is adapter_off, but the model has no adapter: set model.lora, or use copy.")
    if strategy != "auto":
        return strategy
    return "adapter_off" if fresh_adapter else "copy"


@contextlib.contextmanager
def adapter_off(policy: Any) -> Iterator[None]:
    """Meanwhile the adapter of a wrapped model does nothing."""
    while hasattr(policy, "module"):
        policy = policy.module
    with policy.disable_adapter():
        yield


class ReferencePolicy:
    """Scores under the reference, from a model or from the store.

    Args:
        engine: the policy's engine, so that both are computed in the same way.
        strategy: how the reference is kept; already resolved.
        branches: what is scored; other branches of a batch are left out, unless distributions are to be kept.
        model: the frozen model; None where the adapter is switched off or the store holds every row.
        store: log-probs on disk, or None.
        complete: on every rank the store has all rows that are trained on.
        moves: whether the reference follows the policy, so that its weights must take small steps.
    """

    def __init__(
        self,
        engine: ScoringEngine,
        strategy: Strategy,
        branches: Sequence[str],
        model: nn.Module | None = None,
        store: LogProbStore | None = None,
        *,
        complete: bool = False,
        moves: bool = False,
    ) -> None:
        self.moves = moves
        self.engine, self.strategy, self.branches, self.model, self.store = engine, strategy, branches, model, store
        self.complete = complete
        self.rows_computed = 0

    def shard(self, accelerator: Any) -> None:
        """Under FSDP2, give each process its piece of the frozen model; before training, since until then the model
        shares the policy's weights (see ``frozen``).
        """
        if self.model is not None and accelerator.distributed_type == "FSDP":
            attach(self.model)
            # accelerate's own, since TRL's gathers the whole reference at once; it also deals out the weights where
            # only rank 0 has loaded them
            sharded: Any = fsdp2_prepare_model(accelerator, self.model)
            sharded.set_reshard_after_forward(True)  # the head else stays whole, for a backward pass that never comes
            self.model = sharded.eval()

    def prepare(self, accelerator: Any) -> str | None:
        """Put the frozen model on its device, wrapped as the policy is, and keep its weights no wider than they are
        used; returns the sentence about that, if it applies.
        """
        if self.model is None or accelerator.distributed_type == "FSDP":
            return None
        attach(self.model)
        # DeepSpeed rounds weights as it does the policy's; those that move in small steps stay wide, but in stage 3
        plugin = accelerator.state.deepspeed_plugin if accelerator.distributed_type == "DEEPSPEED" else None
        if plugin is not None and (plugin.zero_stage == 3 or not self.moves):
            self.model = prepare_deepspeed(self.model, accelerator)
        else:
            self.model = self.model.to(accelerator.device)
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
            if dtype is not None and not self.moves:
                return narrow(self.model, dtype, lambda batch: self._logp(batch, accelerator.autocast))
        return None

    @torch.no_grad()
    def _logp(self, batch: TreeBatch, autocast: Callable) -> torch.Tensor:
        """Log-probs [N] of a batch by the frozen model."""
        assert self.model is not None
        with autocast():
            return self.engine(self.model, batch).tokens["logp"]

    def missing(self, batch: TreeBatch) -> bool:
        """Whether a row of this batch must be computed."""
        if self.store is None:
            return True
        wanted = ((tree, branch) for tree, branch in batch.branches() if branch.name in self.branches)
        return any(sequence_key(tree, branch) not in self.store for tree, branch in wanted)

    @torch.no_grad()
    def scores(
        self,
        policy: nn.Module,
        batch: TreeBatch,
        *,
        compute: bool,
        keep: bool,
        autocast: Callable,
        hidden: tuple[Hidden, ...] = (),
    ) -> Scores:
        """Log-probs of the reference for a batch on the device.

        Args:
            policy: the wrapped policy, whose adapter is switched off where that is the strategy.
            compute: run the model; must be the same on all ranks. Otherwise every row comes from the store.
            keep: also keep hidden states and head, for reads that compare distributions.
            hidden: hidden states to read beside the log-probs; no store has them, so ``compute`` must be set.
        """
        if not keep:
            batch = batch.only(self.branches)
        if not compute:
            return self._stored(batch)
        with autocast(), self.asked(policy) as model:
            scores = self.engine(model, batch, (LogProb(), *hidden), keep=keep)
        self.rows_computed += sum(_real(branch) for _, branch in batch.branches())
        if self.store is not None:
            self._remember(batch, scores)
        return scores

    @property
    def at_hand(self) -> bool:
        """Whether it can score text that the store does not have."""
        return self.model is not None or self.strategy == "adapter_off"

    @contextlib.contextmanager
    def asked(self, policy: nn.Module) -> Iterator[nn.Module]:
        """The model that computes the reference; meanwhile the adapter of the wrapped ``policy`` may be off."""
        if self.strategy == "adapter_off":
            with adapter_off(policy):
                yield policy
        elif self.model is None:
            raise UserError(
                "The reference store was complete at the start, but a row is missing now, and no reference model "
                "was loaded. Start again; the missing row will be computed."
            )
        else:
            yield self.model

    def _remember(self, batch: TreeBatch, scores: Scores) -> None:
        assert self.store is not None
        if not batch.units["examples"]:
            return  # a dummy
        keys = [sequence_key(tree, branch) for tree, branch in batch.branches()]
        self.store.put(keys, [branch.targets() for _, branch in batch.branches()], scores.tokens["logp"])

    def _stored(self, batch: TreeBatch) -> Scores:
        assert self.store is not None
        rows = [
            self.store.get(sequence_key(tree, branch)) if _real(branch) else np.zeros(len(branch.ids), np.float32)
            for tree, branch in batch.branches()
        ]
        values = torch.from_numpy(np.concatenate(rows)).to(batch.targets.device, non_blocking=True)
        return Scores({"logp": values}, batch.owner, batch.sequences, batch.lengths, places=batch.places)


def _real(branch: Any) -> bool:
    return branch.name != "dummy"
