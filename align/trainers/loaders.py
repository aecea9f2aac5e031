"""A trainer's data loaders: packs that are planned for all ranks before any of them reads a row."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from align.data.batches.collator import TreeCollator
from align.data.batches.lengths import row_lengths
from align.data.batches.packing import PackLoader, PackSampler, PackStream, sequential_packs


def train_loader(trainer: Any) -> DataLoader:
    """Planned packs of this rank, in the order of the trainer's epochs; of a stream without end."""
    world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
    packs = world * trainer.args.gradient_accumulation_steps
    collator: TreeCollator = trainer.data_collator
    dataset, examples = trainer.train_dataset, trainer.step_examples
    if not hasattr(dataset, "__len__"):
        length = collator.length
        stream = PackStream(dataset, collator, length, examples, packs, rank=rank, world=world, endless=True)
        return PackLoader(stream, batch_size=None)
    rows, lengths, order = trainer.training_rows(dataset, collator, trainer.args)
    sampler = PackSampler(
        lengths,
        examples,
        packs,
        order,
        rank=rank,
        world=world,
        budget=trainer.token_budget,
        drop_last=trainer.args.dataloader_drop_last,
    )
    return PackLoader(rows, batch_sampler=sampler, collate_fn=collator, **_options(trainer.args))


def eval_loader(trainer: Any, dataset: Any) -> DataLoader:
    """Consecutive rows, equally many packs on every rank."""
    world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
    size = trainer.args.per_device_eval_batch_size
    collator: TreeCollator = trainer.data_collator
    if not hasattr(dataset, "__len__"):
        stream = PackStream(dataset, collator, collator.length, size * world, world, rank=rank, world=world)
        return PackLoader(stream, batch_size=None)
    packs = sequential_packs(row_lengths(dataset, collator), size, rank=rank, world=world)
    return PackLoader(dataset, batch_sampler=packs, collate_fn=collator, **_options(trainer.args))


def _options(args: Any) -> dict[str, Any]:
    return {
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory and args.device.type == "cuda",
        "persistent_workers": args.dataloader_persistent_workers and args.dataloader_num_workers > 0,
    }
