"""Probes: what is measured of the policy now and then while it trains, each as one entry of ``metrics.jsonl``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import nn

from align.data.batches.collator import TreeCollator
from align.data.batches.packing import sequential_packs
from align.probes.displacement import Displacement, ProbeReading
from align.probes.scores import ProbeScores
from align.runs.damage import reading
from align.runs.directory import PROBE, RunDirectory
from align.runs.memory import answered, explained
from align.trainers.own_text import OwnAnswers

_PROBE_PACK = 8


class Probe(Protocol):
    """Something that is read at the start, at log steps and at the end; all ranks read it together."""

    name: str  # its key in the records of metrics.jsonl
    title: str  # what sentences call it

    def read(self, step: int) -> dict[str, Any]:
        """The reading at an optimizer step, as plain JSON."""

    def restore(self) -> None:
        """Take up what an interrupted run had left in the run directory."""


class PairProbe:
    """The log-probs of held-out pairs, and of what the policy wrote at the start, as ``Displacement`` reads them.

    Args:
        trainer: the trainer whose policy is read.
        run: the run directory.
        rows: prepared probe rows.
        own: holds samples of the starting policy; None for none.

    Attributes:
        reading: the last one, or None.
    """

    name, title = "probe", "the probe set"

    def __init__(
        self, trainer: Any, run: RunDirectory, rows: Sequence[Mapping[str, Any]], own: OwnAnswers | None = None
    ) -> None:
        self.trainer, self.run, self.rows, self.own = trainer, run, list(rows), own
        self.displacement = Displacement(objective=trainer.objective, seed=trainer.args.seed)
        self.reading: ProbeReading | None = None

    def read(self, step: int) -> dict[str, Any]:
        """Scores the pairs; the first reading is the start."""
        scores = score_probe(self.trainer, self.trainer.model_wrapped, self.rows)
        self.displacement.objective = self.trainer.objective.settled(self.trainer.running.means)
        if self.own is not None:
            scores = replace(scores, **self.own.unseen())
        self.reading = self.displacement.read(step, scores)
        state = {"rows": self.digests(), **self.displacement.state(), "end": scores.to_json()}
        self.run.write_json(PROBE, state)
        return self.reading.to_json()

    def restore(self) -> None:
        """Take up the start, so that "since the start" keeps its meaning."""
        saved = self.run.path / PROBE
        if not saved.exists():
            return
        with reading(saved):
            self.displacement.restore(json.loads(saved.read_text()))

    def digests(self) -> list[str]:
        """What each pair is, in 16 hex digits of its text, so that two runs can be compared pair by pair."""
        tokenizer = self.trainer.processing_class
        found = []
        for row in self.rows:
            prompts = [row.get(f"{side}_prompt_ids") or row["prompt_ids"] for side in ("chosen", "rejected")]
            texts = [tokenizer.decode(ids) for ids in (*prompts, row["chosen_ids"], row["rejected_ids"])]
            found.append(hashlib.blake2b(json.dumps(texts).encode(), digest_size=8).hexdigest())
        return found


def score_probe(trainer: Any, model: nn.Module, rows: Sequence[Mapping[str, Any]]) -> ProbeScores:
    """Summed log-probs of probe rows under ``model``; ranks share the work and all get the result."""
    branches = ("chosen", "rejected", "other") if "other_ids" in rows[0] else ("chosen", "rejected")
    collator = TreeCollator(branches)
    world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
    device = trainer.args.device
    sums = {name: torch.zeros(len(rows), device=device) for name in branches}
    was_training = model.training
    model.eval()
    cure = "Set watch.probe_pairs: 0 to go without, or data.max_length lower (a new run)."
    with answered(explained("while the probe set was scored", cure)), torch.no_grad(), trainer.accelerator.autocast():
        for pack in sequential_packs([1] * len(rows), _PROBE_PACK, rank=rank, world=world):
            batch = collator([dict(rows[i]) for i in pack])["tree"].to(device)
            scores = trainer.engine(model, batch)
            for name in batch.sequences:
                sums[name][torch.tensor(pack, dtype=torch.long, device=device)] = scores.sum(name).float()
    model.train(was_training)
    columns: dict[str, Any] = {}
    for name in branches:
        columns[name] = trainer.sum_over_ranks(sums[name])
        masks = [row.get(f"{name}_mask") for row in rows]
        columns[f"{name}_tokens"] = torch.tensor(
            [len(r[f"{name}_ids"]) if m is None else sum(m) for r, m in zip(rows, masks, strict=True)]
        )
    return ProbeScores(**columns)
