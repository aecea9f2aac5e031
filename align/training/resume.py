"""Where a run goes on: alone in its directory, from the newest good checkpoint, with steps of as many examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.runs import checkpoints
from align.runs.checkpoints import Checkpoint
from align.runs.directory import RunDirectory
from align.runs.launch import backend
from align.runs.processes import World
from align.runs.running import RUNNING, Running
from align.trainers.checkpoints import examine, progress_of

Say = Callable[[str], Any]


@contextmanager
def alone(directory: RunDirectory, world: World, say: Say) -> Iterator[None]:
    """Hold the run directory meanwhile, so that no second run writes there; every process calls it.

    Raises:
        UserError: where another run holds it, or where the processes do not see one and the same folder.
    """
    held: list[Running] = []

    def hold() -> None:
        directory.require_writable()
        if world.rank == 0:
            held.append(Running(directory.path, say))

    world.together(hold)
    try:
        holder = world.shared(held[0].holder if held else None)
        world.together(lambda: _see_it(directory.path, holder))
        yield
    finally:
        for lock in held:
            lock.release()


def _see_it(path: Path, holder: str) -> None:
    try:
        seen = (path / RUNNING).read_text()
    except OSError:
        seen = ""
    if seen != holder:
        raise UserError(
            f"output: {path} is another folder here than where the main process is. Checkpoints are written by all "
            "processes together: set output= to a folder that all machines share."
        )


def swept(directory: RunDirectory, say: Say) -> None:
    """Remove what a kill left in the directory, on the writing process."""
    if directory.writer:
        for sentence in checkpoints.sweep(directory.path, directory.id):
            say(sentence)


def newest(directory: RunDirectory, world: World, say: Say) -> Checkpoint | None:
    """The newest checkpoint that is complete and undamaged, or None; others are named with the reason.

    Every process calls it: all of them read the files, each a share.
    """
    for name in world.shared([folder.name for folder in reversed(checkpoints.folders(directory.path))]):
        found, why = examine(directory.path / name, directory.id, world)
        if found is not None:
            return found
        say(f"{name} is left out: {why}")
    return None


def check_step(directory: RunDirectory, args: Any) -> None:
    """Refuse to go on with steps of more or fewer examples.

    Raises:
        UserError: with the numbers that cure it.
    """
    before = directory.lock.get("examples_per_step")
    size, steps, world = args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size
    now = size * steps * world
    if before is None or now == before:
        return
    if before % (size * world) == 0:
        cure = f"Set train.gradient_accumulation_steps={before // (size * world)}."
    elif before % world == 0:
        cure = f"Set train.per_device_train_batch_size={before // world} and train.gradient_accumulation_steps=1."
    else:
        cure = f"Start as many processes as divide {before:,}."
    raise UserError(
        f"{directory.path}: an optimizer step of this run has {before:,} examples, and now it would have {now:,} "
        f"(train.per_device_train_batch_size {size:,} x train.gradient_accumulation_steps {steps:,} x "
        f"{world:,} process{'es' * (world != 1)}). {cure}"
    )


def go_on(directory: RunDirectory, checkpoint: Checkpoint | None, accelerator: Any, say: Say) -> None:
    """Say where the run goes on, and forget what it had recorded from there on, which it will record again.

    Raises:
        UserError: see ``where_from``.
    """
    if checkpoint is None:
        say("the run had no complete checkpoint yet: it starts from the beginning")
    else:
        for sentence in where_from(checkpoint, accelerator.num_processes, backend(accelerator)):
            say(sentence)
    for sentence in directory.rewind(progress_of(checkpoint.path)["records"] if checkpoint else {}):
        say(sentence)


def where_from(checkpoint: Checkpoint, processes: int, how: str) -> list[str]:
    """What to say where a run goes on from a checkpoint, and what will not be as it would have been.

    Raises:
        UserError: where this way of sharing training out cannot take up the optimizer of the checkpoint.
    """
    then, now = (checkpoint.backend, checkpoint.processes), (how, processes)
    said = [f"resuming from {checkpoint.path.name}"]
    if then == now:
        return said
    name, was, here = checkpoint.path.name, _shared_by(*then), _shared_by(*now)
    if any(one.startswith("zero") for one in (how, checkpoint.backend)):
        raise UserError(
            f"{name} was written by {was}, and {here} cannot take up its optimizer. Go on with {was}, or start a new "
            f"run from its weights: another name=, and model.id={checkpoint.path}."
        )
    said.append(
        f"note: {name} was written by {was}. Rows come in the same order and the optimizer goes on, but {here} adds up "
        "in another order, which changes the last digits, and an adapter's dropout draws other numbers"
    )
    return said


def _shared_by(how: str, processes: int) -> str:
    return "one process" if processes == 1 else f"{processes:,} processes of {how}"


def refuse_models_alone(directory: RunDirectory, args: Any) -> None:
    """Refuse to go on from checkpoints that hold no optimizer. Raises UserError."""
    if args.save_only_model and checkpoints.folders(directory.path):
        raise UserError(
            f"{directory.path}: its checkpoints hold the model alone (train.save_only_model), so the run cannot go on "
            "from them. Start anew under another name=, with model.id naming the last checkpoint, or remove the run."
        )
