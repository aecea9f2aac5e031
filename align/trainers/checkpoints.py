"""What a trainer adds to transformers' checkpoints, so that a run that goes on from one is the same run.

Transformers keeps weights, optimizer, schedule and random states. Beside them go, in ``progress.json``, what was added
up since the last log step and how long the run's records were; then the marker, last of all
(``runs/checkpoints.py``). Older checkpoints are removed only after that.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Protocol

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.errors import UserError, loading, told
from align.outside.files import json_file
from align.outside.limits import JSON
from align.runs import checkpoints
from align.runs.checkpoints import Checkpoint
from align.runs.damage import reading
from align.runs.directory import RunDirectory
from align.runs.files import write_atomically
from align.runs.launch import backend
from align.runs.processes import World
from align.trainers.conversion import converted
from align.trainers.untrusted import weights_only

if TYPE_CHECKING:
    from align.compat import SFTTrainer as _Trainer
else:
    _Trainer = object

PROGRESS = "progress.json"


def progress_of(checkpoint: Path) -> dict[str, Any]:
    """What a complete checkpoint holds beside transformers' files: ``sums`` of every process, and ``records``."""
    with reading(checkpoint / PROGRESS):
        found: dict[str, Any] = json_file(checkpoint / PROGRESS, JSON)
        if not isinstance(found["sums"], list) or not isinstance(found["records"]["lengths"], dict):
            raise ValueError("it has no sums or records")
    return found


def examine(folder: Path, run_id: str | None, world: World) -> tuple[Checkpoint | None, str]:
    """A checkpoint that is complete and undamaged, or None and what is wrong with it.

    Every process calls it: all of them read the files, each a share.
    """
    found, why = world.shared(_outline(folder, run_id) if world.rank == 0 else None)
    if found is None:
        return None, why
    sizes = {name: about["bytes"] for name, about in found.files.items()}
    mine = checkpoints.share(sizes, world.rank, world.size)
    wrong = sorted(gather_object(checkpoints.changed(found, mine)))
    return (None, f"{wrong[0]} is not what was written") if wrong else (found, "")


def _outline(folder: Path, run_id: str | None) -> tuple[Checkpoint | None, str]:
    """A checkpoint by its marker and the sizes of its files, or what is wrong with it."""
    try:
        return checkpoints.read(folder, run_id), ""
    except checkpoints.Damaged as error:
        return None, str(error)


_NUMBER = (int, float)
_STATE: Mapping[str, Any] = {
    **dict.fromkeys(("global_step", "max_steps", "num_train_epochs", "num_input_tokens_seen"), int),
    **dict.fromkeys(("epoch", "total_flos", "logging_steps", "eval_steps", "save_steps"), _NUMBER),
    **{"log_history": list, "stateful_callbacks": dict, "best_metric": (*_NUMBER, NoneType)},
    **{"best_global_step": (int, NoneType), "train_batch_size": (int, NoneType)},
}


def _check_state(checkpoint: Checkpoint) -> None:
    """Raises ValueError where ``trainer_state.json`` is none."""
    state = TrainerState(**json_file(checkpoint.path / "trainer_state.json", JSON))
    wrong = [name for name, kind in _STATE.items() if not isinstance(getattr(state, name), kind)]
    if not wrong and state.global_step != checkpoint.step:
        wrong = ["global_step"]
    if not wrong and not all(isinstance(one, dict) for one in state.log_history):
        wrong = ["log_history"]
    if wrong:
        raise ValueError(f"trainer_state.json has a {wrong[0]} that no run has")


class Part(Protocol):
    """Something with files of its own in a checkpoint; all processes save it and load it together."""

    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...


class CheckpointMixin(_Trainer):
    """Saves and takes up checkpoints.

    Attributes:
        run_id: whose checkpoints these are; that of the run's lock file, empty for a trainer without one.
        parts: what else is kept in checkpoints.
    """

    run_id = ""
    parts: list[Part]

    def _start_checkpoints(self) -> None:
        # transformers would remove an older checkpoint before the new one counts
        self._kept, self.args.save_total_limit = self.args.save_total_limit, None
        self._resumed: Path | None = None
        self.parts = []
        self.add_callback(_Edges(self))

    def sums(self) -> dict[str, Any]:
        """What this process has added up since the last log step, as plain JSON."""
        raise NotImplementedError

    def take_up(self, sums: Sequence[Mapping[str, Any]]) -> None:
        """Go on adding to what all processes of a checkpoint had added up; every process calls it."""
        raise NotImplementedError

    def say(self, sentence: str) -> None:
        """Print a sentence once, on the main process."""
        raise NotImplementedError

    def before_save(self) -> None:
        """What must be written down before a checkpoint is."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; True stands for the newest complete checkpoint of the output directory.

        Raises:
            UserError: where there is none, or the one that is named is not complete.
        """
        found = self._complete(resume_from_checkpoint) if resume_from_checkpoint else None
        self._resumed = found.path if found else None
        if found is None:
            return super().train(None, *args, **kwargs)
        with self._taking_up():
            _check_state(found)
        self.args.eval_on_start = False  # the start was long ago
        fsdp = backend(self.accelerator) == "fsdp2"
        same = fsdp == (found.backend == "fsdp2")
        layout = nullcontext(found.path) if same else converted(found.path, self, to_fsdp=fsdp)
        with weights_only(), layout as folder:
            return super().train(str(folder), *args, **kwargs)

    def _taking_up(self) -> AbstractContextManager[None]:
        """Within, transformers takes up a checkpoint: its digests say that it is whole, not that it makes sense."""
        return loading(
            lambda error: (
                f"{self._resumed} cannot be gone on from ({told(error)}): it is not what this program writes. Remove "
                "it, and the run goes on from an older one."
            )
        )

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._taking_up():
            super()._load_from_checkpoint(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with self._taking_up():
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with self._taking_up():
            super()._load_rng_state(checkpoint)

    def _complete(self, named: str | bool) -> Checkpoint:
        """A checkpoint to go on from. Raises UserError."""
        run = Path(self.args.output_dir)
        if isinstance(named, bool):
            found = checkpoints.complete_ones(run, self.run_id)
            if not found:
                raise UserError(f"{run} holds no complete checkpoint to go on from.")
            return found[-1]
        try:
            return checkpoints.read(Path(named), None)
        except checkpoints.Damaged as error:
            raise UserError(f"{named} cannot be gone on from: {error}.") from None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint: transformers' files, ours, and the marker when all of them are on the disk."""
        world, run = World.of(self.args), Path(self.args.output_dir)
        folder = run / f"checkpoint-{self.state.global_step}"
        self.before_save()
        if world.rank == 0 and checkpoints.begin(folder, self.run_id):
            self.say(f"{folder.name} was left out when the run went on, and is replaced now")
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        for part in self.parts:
            part.save(folder)
        card = run / "README.md"
        if world.rank == 0 and card.is_file():
            shutil.copyfile(card, folder / card.name)  # in place of PEFT's, which is empty
        sums = gather_object([self.sums()])
        if world.rank == 0:
            progress = {"sums": sums, "records": RunDirectory(run).recorded()}
            write_atomically(folder / PROGRESS, json.dumps(progress))
        self.accelerator.wait_for_everyone()
        sizes = world.shared(checkpoints.sizes(folder) if world.rank == 0 else None)
        mine = checkpoints.share(sizes, world.rank, world.size)
        parts = gather_object([checkpoints.digests(folder, mine, sync=True)])
        if world.rank == 0:
            files = {name: about for part in parts for name, about in sorted(part.items())}
            step, how = self.state.global_step, backend(self.accelerator)
            checkpoints.finish(Checkpoint(folder, self.run_id, step, world.size, how, files))
            checkpoints.rotate(run, self.run_id, self._kept, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    def _load_best_model(self) -> None:
        """As in transformers, unless the best checkpoint was damaged since it was written."""
        best = Path(str(self.state.best_model_checkpoint))
        found, why = examine(best, None, World.of(self.args))
        if found is None:
            self.say(f"warning: {best.name}, the best one, cannot be taken ({why}): the last step is saved instead")
            return
        super()._load_best_model()

    def _run_epoch(self, **kwargs: Any) -> None:
        """As in transformers, but a run that had done its last step when it was ended takes no other."""
        if not self.control.should_training_stop:
            super()._run_epoch(**kwargs)


class _Edges(TrainerCallback):
    """Takes up what a checkpoint holds of ours, and lets the save of an epoch's last step wait for the epoch's end.

    What happens at an epoch's end, such as an evaluation, comes after the save of its last step. A run that went on
    from that save would leave it out, since it begins with the next epoch.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer, self._waits = trainer, False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = self.trainer
        if trainer._resumed is None:
            return
        with trainer._taking_up():
            trainer.take_up(progress_of(trainer._resumed)["sums"])
            for part in trainer.parts:
                part.load(trainer._resumed)
        if state.best_global_step:
            best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(best)  # the directory may have been moved since
            if not best.is_dir():
                trainer.say(f"warning: {best.name}, the best one so far, is gone: the best is that of what comes")
                state.best_global_step = state.best_metric = state.best_model_checkpoint = None
        control.should_training_stop = state.global_step >= state.max_steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        ends = state.global_step >= state.max_steps or float(state.epoch or 0).is_integer()
        if control.should_save and ends:
            control.should_save, self._waits = False, True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_save, self._waits = control.should_save or self._waits, False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer, best = self.trainer, state.best_model_checkpoint
        if trainer._kept == 1 and best is not None and args.should_save:  # as transformers does at the end of a run
            for one in checkpoints.complete_ones(Path(args.output_dir), trainer.run_id):
                if one.path.name != Path(best).name:
                    checkpoints.remove(one.path)
