"""What a training run answers when memory runs out: who holds it, and the smallest change that is likely to fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from align.compat import checkpoints_layers
from align.runs.directory import RunDirectory
from align.runs.memory import Memory, Shortage, amount, local, memory, tensor_bytes

_KEPT_FREE = 0.9  # share of the room that an estimate fills: the allocator's pieces never fit quite


class Passed(NamedTuple):
    """The largest micro-batch that went through forward and backward, and the bytes that it took beside what stays."""

    positions: int = 0
    bytes: int = 0


class Watermark:
    """What micro-batches took. The device is read only for one that is larger than all before it."""

    def __init__(self) -> None:
        self.passed = Passed()
        self._before = 0

    def begin(self, device: torch.device, positions: int) -> None:
        """Before a micro-batch of ``positions``."""
        if positions > self.passed.positions:
            self._before = memory(device).held

    def end(self, device: torch.device, positions: int) -> None:
        """After it."""
        if positions > self.passed.positions:
            self.passed = Passed(positions, max(memory(device).peak - self._before, 0))


@dataclass(frozen=True)
class Holdings:
    """Bytes that a trainer's live tensors hold on this process's device.

    ``coming`` are gradients and an optimizer's state that the first step has still to make.
    """

    weights: int
    gradients: int
    optimizer: int
    reference: int
    coming: int

    @classmethod
    def of(cls, trainer: Any) -> Holdings:
        device, seen = trainer.args.device, set[int]()
        model: nn.Module = trainer.model_wrapped
        parameters = list(model.parameters())
        trained = [p for p in parameters if p.requires_grad]
        weights = tensor_bytes([*parameters, *model.buffers()], device, seen)
        gradients = tensor_bytes((p.grad for p in trained if p.grad is not None), device, seen)
        kept = trainer.reference.model if trainer.reference is not None else None
        reference = tensor_bytes([*kept.parameters(), *kept.buffers()], device, seen) if kept is not None else 0
        inner = _inner(trainer.optimizer)
        optimizer = tensor_bytes(_states(inner), device, seen)
        coming = 0
        if trainer.accelerator.distributed_type != "DEEPSPEED":  # it keeps gradients and states in buffers of its own
            coming = sum(local(p).nbytes for p in trained if p.grad is None)
            if isinstance(inner, torch.optim.Adam | torch.optim.AdamW) and not inner.state:
                coming += 2 * sum(local(p).nbytes for p in trained)
        return cls(weights, gradients, optimizer, reference, coming)

    @property
    def fixed(self) -> int:
        """What is there in every step, whatever a micro-batch holds."""
        return self.weights + self.gradients + self.optimizer + self.reference + self.coming

    def line(self, now: Memory) -> str:
        """Who holds what."""
        rest = max(now.held - self.fixed + self.coming, 0)
        else_ = "activations and the program itself" if now.device == "cpu" else "activations most of all"
        parts = {"weights": self.weights, "gradients": self.gradients, "optimizer state": self.optimizer}
        if self.reference:
            parts["reference"] = self.reference
        text = ", ".join(f"{name} {amount(size)}" for name, size in parts.items())
        coming = f"; {amount(self.coming)} of gradients and optimizer state are still to come" if self.coming else ""
        return f"Of {amount(now.held)} in use: {text}, the rest ({else_}) {amount(rest)}{coming}."


def _inner(optimizer: Any) -> Any:
    """torch's optimizer inside accelerate's and DeepSpeed's."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _states(optimizer: Any) -> Iterator[torch.Tensor]:
    """Its tensors, and the wide copies of weights that it steps on where it has such."""
    if optimizer is None:
        return
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))
    for group in optimizer.param_groups:
        yield from group["params"]


class Estimate(NamedTuple):
    """Positions of a micro-batch that is thought to fit, and whether that was computed from one that did."""

    positions: int
    measured: bool


def fitting(tried: int, used: int, room: int, passed: Passed) -> Estimate:
    """How large a micro-batch fits: what it takes grows in proportion to its positions.

    Args:
        tried: positions of the one that did not fit.
        used: bytes that it held and asked for when memory ran out, so the least that it needs.
        room: bytes that there are for a micro-batch.
        passed: the largest one that did fit.
    """
    need = max(used / tried, passed.bytes / max(passed.positions, 1), 1.0)
    fits = int(_KEPT_FREE * max(room, 0) / need)
    if passed.bytes and fits < tried:
        return Estimate(fits, True)
    # nothing was seen to the end, or what was seen does not explain the failure
    likely = passed.positions if passed.positions < tried else 0
    return Estimate(min(fits, max(tried // 2, likely)), False)


def in_step(trainer: Any, error: BaseException, positions: int) -> str:
    """The answer for a micro-batch of ``positions`` in training."""
    shortage, held = Shortage.of(error, trainer.args.device), Holdings.of(trainer)
    longest = _longest(trainer)
    now = shortage.memory
    used = now.held - held.fixed + held.coming + shortage.asked
    estimate = fitting(positions, used, now.room - held.fixed, trainer.watermark.passed)
    cures = [*_smaller(trainer, positions, longest, estimate), *_others(trainer, held)]
    doing = f"in step {trainer.state.global_step + 1}, in a micro-batch of {positions:,} positions"
    return _answer(trainer, shortage, held, doing, cures)


def in_evaluation(trainer: Any, error: BaseException, positions: int) -> str:
    """The answer for a micro-batch of ``positions`` in an evaluation."""
    shortage, held = Shortage.of(error, trainer.args.device), Holdings.of(trainer)
    size = trainer.args.per_device_eval_batch_size
    cures = [] if size == 1 else [f"train.per_device_eval_batch_size: {size // 2}, which changes no result"]
    doing = f"in an evaluation at step {trainer.state.global_step}, in a micro-batch of {positions:,} positions"
    return _answer(trainer, shortage, held, doing, [*cures, *_others(trainer, held)])


def outside(trainer: Any, error: BaseException) -> str:
    """The answer where no micro-batch was under way, such as in the optimizer's first step."""
    shortage, held = Shortage.of(error, trainer.args.device), Holdings.of(trainer)
    doing = f"at step {trainer.state.global_step}, outside of micro-batches"
    return _answer(trainer, shortage, held, doing, list(_others(trainer, held)))


def _answer(trainer: Any, shortage: Shortage, held: Holdings, doing: str, cures: list[str]) -> str:
    world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
    lines = [
        shortage.sentence(doing if world == 1 else f"on rank {rank} of {world}, {doing}"),
        held.line(shortage.memory),
    ]
    if cures:
        lines.append(f"Set {cures[0]}.")
        lines += [f"If that is not enough: {cure}." for cure in cures[1:]]
    found = RunDirectory(Path(trainer.args.output_dir)).checkpoints()
    lines.append(
        f"The last complete checkpoint is kept: {found[-1]}."
        if found
        else "There was no complete checkpoint yet: the run starts from its beginning."
    )
    return "\n".join(lines)


def _smaller(trainer: Any, tried: int, longest: int | None, estimate: Estimate) -> Iterator[str]:
    """A smaller micro-batch, which changes no result but for rounding."""
    fits, passed = estimate.positions, trainer.watermark.passed
    if longest is None:
        size, steps = trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps
        smaller = max((n for n in range(1, size) if size % n == 0 and n * tried <= size * (fits + 1)), default=0)
        if smaller:
            yield (
                f"train.per_device_train_batch_size: {smaller} with train.gradient_accumulation_steps: "
                f"{steps * size // smaller}, which changes no result"
            )
        return
    if not longest <= fits < tried:
        return
    if estimate.measured:
        why = (
            f"a micro-batch of {passed.positions:,} positions took {amount(passed.bytes)} beside what stays, so "
            f"{fits:,} take about {amount(passed.bytes / passed.positions * fits)}"
        )
    elif fits == passed.positions:
        why = "the largest that has passed"
    else:
        why = "a guess, since no micro-batch of that size has passed"
    yield (
        f"train.max_tokens_per_microbatch: {fits}, which changes no result ({why}; the longest example has "
        f"{longest:,}), and go on with --resume"
    )


def _longest(trainer: Any) -> int | None:
    """Positions of the longest example, None for a stream."""
    if not hasattr(trainer.train_dataset, "__len__"):
        return None
    _, lengths, order = trainer.training_rows(trainer.train_dataset, trainer.data_collator, trainer.args)
    return max(lengths[i] for i in order(0))


def _others(trainer: Any, held: Holdings) -> Iterator[str]:
    """What else gives memory back, the cheapest first."""
    args, adapter = trainer.args, hasattr(trainer.model, "peft_config")
    if not checkpoints_layers(args):
        yield "train.activation_checkpointing: true, which changes no result and computes layers twice (--resume)"
    if held.reference and trainer.stores_reference and trainer.reference.store is None:
        yield (
            f"reference.store: true, which frees the reference's {amount(held.reference)} in the runs after one that "
            "has computed all its rows"
        )
    if held.reference and trainer.reference.complete:
        yield (
            f"watch.probe_answers: 0 in a new run, which frees the reference's {amount(held.reference)}: its rows are "
            "all stored, and it is kept for the policy's own answers alone"
        )
    if not adapter:
        freed = held.gradients + held.optimizer + held.reference + held.coming
        what = f"gradients, optimizer state{' and the reference' * (held.reference > 0)}"
        yield f"model.lora: {{}} in a new run, which frees most of the {amount(freed)} of {what}"
    elif trainer.model.dtype == torch.float32:
        yield f"model.dtype: bfloat16 in a new run, which frees {amount(held.weights / 2)}"
    if args.device.type != "cpu" and not trainer.engine.sharded:
        yield "several devices with ZeRO-3 or FSDP2 (recipes/accelerate), which share out weights and states"
