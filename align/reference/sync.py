"""A reference that follows the policy: every few steps by a share (TR-DPO, arXiv 2404.09656), or all the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.engine.scoring import causal_model
from align.errors import UserError


def move(reference: nn.Module, policy: nn.Module, mix: float) -> None:
    """reference <- (1 - mix) reference + mix policy, each rank its own piece of every parameter."""
    theirs = dict(causal_model(policy).named_parameters())
    with torch.no_grad():
        for name, mine in causal_model(reference).named_parameters():
            _piece(mine).lerp_(_piece(theirs[name]).to(mine.dtype), mix)
            if hasattr(mine, "ds_tensor"):  # small weights stay whole between forwards: they are put together anew
                mine.partition()


def _piece(parameter: Any) -> Tensor:
    """What this rank holds: ZeRO-3 keeps it beside the parameter, FSDP2 inside the DTensor."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor
    return (parameter.to_local() if hasattr(parameter, "to_local") else parameter).detach()


class SyncReference(TrainerCallback):
    """Moves the reference of ``trainer`` every ``every`` optimizer steps, and keeps it in checkpoints.

    Raises:
        UserError: where there is no frozen copy that could move.
    """

    def __init__(self, trainer: Any, every: int, mix: float) -> None:
        reference = trainer.reference
        if reference is None or reference.model is None:
            raise UserError("reference.sync_every needs a frozen copy of the reference (reference.strategy: copy).")
        names = {name for name, _ in causal_model(trainer.model).named_parameters()}
        if not {name for name, _ in causal_model(reference.model).named_parameters()} <= names:
            raise UserError("reference.sync_every cannot follow a fresh adapter: train the weights, or leave it out.")
        self.trainer, self.every, self.mix = trainer, every, mix
        trainer.parts.append(self)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            move(self.trainer.reference.model, self.trainer.model_wrapped, self.mix)

    def save(self, folder: Path) -> None:
        """Write the reference to a checkpoint: each process its piece, or the first one all of it."""
        file = self._file(folder)
        if file is not None:
            save_file({name: piece.contiguous().clone() for name, piece in self._pieces().items()}, file)

    def load(self, folder: Path) -> None:
        """Take up what ``save`` wrote. Raises UserError where it was cut up for other processes."""
        self.trainer.get_ready(self.trainer.model_wrapped)  # it is on its device and cut up by then
        file = self._file(folder, reads=True)
        pieces = self._pieces()
        saved = load_file(file) if file is not None and file.exists() else {}
        if {name: piece.shape for name, piece in pieces.items()} != {name: t.shape for name, t in saved.items()}:
            raise UserError(
                f"{folder}: the reference had moved (reference.sync_every), and it is kept in pieces for other "
                "processes than these. Go on with as many processes and the same launcher configuration as before."
            )
        with torch.no_grad():
            for name, piece in pieces.items():
                piece.copy_(saved[name])

    def _pieces(self) -> dict[str, Tensor]:
        """What this process holds of every weight."""
        weights = causal_model(self.trainer.reference.model).named_parameters()
        return {name: _piece(weight) for name, weight in weights}

    def _file(self, folder: Path, *, reads: bool = False) -> Path | None:
        """The file of this process's pieces, or of all; None where another process writes that."""
        accelerator = self.trainer.accelerator
        weights = self.trainer.reference.model.parameters()
        if any(hasattr(weight, "to_local") or hasattr(weight, "ds_tensor") for weight in weights):
            return folder / f"reference-{accelerator.process_index}-of-{accelerator.num_processes}.safetensors"
        return folder / "reference.safetensors" if reads or accelerator.is_main_process else None
