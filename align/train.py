"""Run one recipe. ``align train FILE`` and ``accelerate launch ... -m align.train FILE`` are this module."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from align.errors import Stopped, UserError
from align.objectives.base import sources_of
from align.recipe import Recipe, load_recipe
from align.report.survivors import survivors_verdict
from align.report.unlearning import unlearning_verdict
from align.report.verdict import Verdict, verdict
from align.run import METRICS, VERDICT, RunDirectory
from align.sampling.sample import repeatable

MODEL = "model"


@dataclass(frozen=True)
class RunResult:
    """What a finished run left behind.

    ``reference_rows`` were computed in this run, ``stored_rows`` came from the store. ``evaluation`` is the last one.
    """

    directory: str
    steps: int
    seconds: float
    evaluation: dict[str, float]
    verdict: dict[str, Any]
    reference_rows: int
    stored_rows: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return asdict(self)


def run(
    recipe: Recipe, *, resume: bool = False, allow_code: bool = False, echo: Callable[[str], Any] = print
) -> RunResult:
    """Train as a recipe says and return what came of it. Every rank calls it; only the main process prints and writes.

    Raises:
        UserError: for everything the caller can mend, before anything is lost.
        Stopped: where a guard ended the run; the last complete checkpoint is kept.
    """
    # DeepSpeed, where installed, announces at import that there is no GPU
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    if recipe.rounds is not None:
        from align.trainers.rounds import RoundTrainer

        return RoundTrainer.of(recipe, allow_code=allow_code, echo=echo).train(resume=resume)
    from align.data.load import held_out_rows, load_data
    from align.data.tokenize import load_tokenizer
    from align.launch import check_launch
    from align.models import check_targets, load_model, lora_config

    began = time.monotonic()
    objective = recipe.objective_value()
    main = int(os.environ.get("RANK", "0")) == 0
    directory = RunDirectory(recipe.output_dir, writer=main)
    # all ranks look before any can write: what follows brings them together
    checkpoint = directory.begin(recipe.dump(), resume=resume)
    args = recipe.training_arguments(disable_tqdm=True)
    check_launch(args)
    directory.require_writable()
    quieten(main)
    say = echo if main else _silent

    tokenizer = load_tokenizer(recipe.model, base=recipe.base)
    data = load_data(recipe, tokenizer, objective.branches, say)
    if resume and directory.lock["data"] != data.digest:
        raise UserError(f"{directory.path}: the data changed since this run was started. Put them back, or start anew.")
    suite = _suite(recipe, directory, say)  # before the model: a retain model is measured and gone by then
    judge = _scoring_judge(recipe, args, allow_code, say)
    lora = lora_config(recipe.model.lora)
    model = load_model(recipe.model, base=recipe.base)
    check_targets(model, lora)
    trainer = _trainer(recipe, model, tokenizer, objective, args, data, lora, judge)
    if resume and directory.lock["reference"] != trainer.digest:
        raise UserError(
            f"{directory.path}: the model that this run was started from has changed, and with it the reference. Put "
            "it back (pin model.revision for one on the Hub), or start anew."
        )
    trainer.echo = say
    if objective.coupled:
        say(f"note: {objective.coupled}")
    if not resume:
        directory.write_lock(_lock(recipe, trainer, data.digest))
    watch = _watch(recipe, trainer, directory, held_out_rows(data, recipe), say)
    trainer.add_callback(watch)
    if "survivor" in objective.branches:
        from align.trainers.collapse import Collapse

        limit, stop = recipe.watch.similarity_limit, recipe.watch.stop_on_collapse
        trainer.add_callback(Collapse(limit, stop=stop, echo=say))
    evaluation = _evaluation(recipe, trainer, directory, suite, say) if suite is not None else None
    if evaluation is not None:
        trainer.add_callback(evaluation)
    if checkpoint is not None:
        say(f"resuming from {checkpoint.name}")
    elif resume:
        say("the run had no complete checkpoint yet: it starts from the beginning")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    stopped = evaluation.stopped if evaluation is not None else ""
    return _finish(recipe, trainer, directory, stopped, time.monotonic() - began, say)


def _trainer(
    recipe: Recipe, model: Any, tokenizer: Any, objective: Any, args: Any, data: Any, lora: Any, judge: Any
) -> Any:
    """The trainer that goes with the rows."""
    from align.trainers.base import AlignTrainer
    from align.trainers.unlearn import UnlearnTrainer

    kind: Any = AlignTrainer
    own: dict[str, Any] = {}
    if recipe.data.forget:
        kind = UnlearnTrainer
        own = {"retain_dataset": data.retain, "partner": recipe.data.partner, "alternates_each": data.each}
    elif "sample" in objective.branches:
        from align.trainers.hypo import HyPOTrainer

        kind, own = HyPOTrainer, {"sampling": recipe.sampling}
    elif "survivor" in objective.branches:
        from align.trainers.superhf import SuperHFTrainer

        kind, own = SuperHFTrainer, {"sampling": recipe.sampling, "judge": judge, "select": recipe.select}
    return kind(
        model,
        objective,
        args,
        **own,
        train_dataset=data.train,
        eval_dataset=data.held_out,
        processing_class=tokenizer,
        peft_config=lora,
        reference=recipe.reference.strategy,
        reference_sync=_sync(recipe),
        store_dir=_store_dir(recipe),
        reference_rows=recipe.reference.rows,
        order=data.order,
        max_tokens_per_microbatch=recipe.max_tokens_per_microbatch,
    )


def _scoring_judge(recipe: Recipe, args: Any, allow_code: bool, say: Callable[[str], Any]) -> Any:
    """The judge of an objective that keeps the best samples, or None."""
    if recipe.judge is None:
        return None
    from align.sampling.judge_function import load_judge

    return load_judge(recipe.judge, base=recipe.base, allow_code=allow_code, device=args.device, say=say)


def _finish(
    recipe: Recipe, trainer: Any, directory: RunDirectory, stopped: str, seconds: float, say: Callable[[str], Any]
) -> RunResult:
    """Check, save and judge."""
    from align.data.sources import source_name

    trainer.check_finite(weights=True)
    evaluation: dict[str, float] = {}
    if trainer.eval_dataset is not None:
        evaluation = trainer.evaluate()
    trainer.save_model(str(directory.path / MODEL))
    store = trainer.reference.store if trainer.reference else None
    judged = _judge(recipe, trainer, directory, evaluation, stopped, seconds)
    named = [*recipe.data.rows, *(recipe.data.retain or [])]
    data = [Path(source_name(source)).name if source.path else source_name(source) for source in named]
    trainer.create_model_card(recipe.name, ", ".join(data), verdict=judged.lines()[1:-3])
    if directory.writer:
        shutil.copyfile(directory.path / "README.md", directory.path / MODEL / "README.md")
    for line in ["", *judged.lines()]:
        say(line)
    directory.write_json(VERDICT, {**judged.to_json(), "steps": trainer.state.global_step})
    return RunResult(
        str(directory.path),
        trainer.state.global_step,
        seconds,
        evaluation,
        judged.to_json(),
        trainer.reference.rows_computed if trainer.reference else 0,
        store.rows_read if store else 0,
    )


def _judge(
    recipe: Recipe,
    trainer: Any,
    directory: RunDirectory,
    evaluation: dict[str, float],
    stopped: str,
    seconds: float,
) -> Verdict:
    """What the run's records say."""
    records = directory.metrics() if directory.writer else []
    paths = {"model": str(directory.path / MODEL), "metrics": str(directory.path / METRICS)}
    if recipe.data.forget:
        kept = "retain" in sources_of(trainer.objective.branches)
        return unlearning_verdict(
            records, run=str(directory.path), seconds=seconds, stopped=stopped, has_retain_term=kept, paths=paths
        )
    if "survivor" in trainer.objective.branches:
        limit = recipe.watch.similarity_limit
        return survivors_verdict(
            records, run=str(directory.path), seconds=seconds, stopped=stopped, similarity_limit=limit, paths=paths
        )
    held_out = None
    if "eval_rewards/accuracies" in evaluation and hasattr(trainer.eval_dataset, "__len__"):
        held_out = {"end": evaluation["eval_rewards/accuracies"], "n": len(trainer.eval_dataset)}
        start = [r for r in records if r.get("step") == 0 and "eval_rewards/accuracies" in r]
        held_out["start"] = start[0]["eval_rewards/accuracies"] if start else 0.5
    return verdict(
        records,
        run=str(directory.path),
        seconds=seconds,
        stopped=stopped,
        objective=recipe.objective[0].name,
        pairs="held-out" if trainer.eval_dataset is not None else "training",
        held_out=held_out,
        chosen_drop_nats=recipe.watch.chosen_drop_nats,
        paths=paths,
    )


def _suite(recipe: Recipe, directory: RunDirectory, say: Callable[[str], Any]) -> Any:
    """The recipe's test suite, or None; where it is compared with a model, that one is evaluated here."""
    settings = recipe.evaluate
    if settings is None:
        return None
    from align.eval.suites import tofu_suite
    from align.trainers.evaluation import FOLDER

    kept = directory.path / FOLDER / "retain.json"
    suite = tofu_suite(settings, base=recipe.base, kept=kept, say=say)
    if suite.target is not None:
        directory.write_json(f"{FOLDER}/{kept.name}", suite.target.to_json())
    return suite


def _evaluation(recipe: Recipe, trainer: Any, directory: RunDirectory, suite: Any, say: Callable[[str], Any]) -> Any:
    """The callback that runs the suite."""
    from align.eval.subject import Subject
    from align.stop_rule import StopRule
    from align.trainers.evaluation import Evaluation

    settings = recipe.evaluate
    assert settings is not None
    return Evaluation(
        trainer,
        directory,
        suite,
        lambda: Subject.of(trainer, name=str(directory.path), system=settings.source.system),
        every=settings.every,
        keep_utility=settings.keep_utility,
        stop_when=StopRule.parse(recipe.watch.stop_when) if recipe.watch.stop_when else None,
        echo=say,
    )


def _watch(recipe: Recipe, trainer: Any, directory: RunDirectory, rows: list[dict], say: Callable[[str], Any]) -> Any:
    from transformers import PrinterCallback, ProgressCallback

    from align.trainers.watch import Watch

    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    settings = recipe.watch
    prompts = [_prompt_ids(trainer.processing_class, text) for text in settings.prompts]
    return Watch(
        trainer,
        directory,
        rows[: settings.probe_pairs],
        every=settings.every,
        chosen_drop_nats=settings.chosen_drop_nats,
        stop_on_drop=settings.stop_on_drop,
        prompts=prompts,
        generate_every=settings.generate_every,
        echo=say,
    )


def _prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """A prompt of the recipe as ids: one user message where the tokenizer has a chat template, else plain text."""
    if tokenizer.chat_template is None:
        return tokenizer(text).input_ids
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def _lock(recipe: Recipe, trainer: Any, data_digest: str | None) -> dict[str, Any]:
    import torch

    from align.versions import TESTED, installed

    device = trainer.args.device
    mixed = trainer.accelerator.mixed_precision != "no"
    samples = (
        {} if recipe.sampling is None else {"samples": repeatable(recipe, on_cpu=device.type == "cpu", mixed=mixed)}
    )
    return {
        "recipe": recipe.dump(),
        "base": str(recipe.base),  # where its relative paths start
        "data": data_digest,
        "reference": trainer.digest,
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in TESTED}},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": trainer.accelerator.num_processes,
        "distributed": str(trainer.accelerator.distributed_type.value),
        **samples,  # how far another run draws the same
    }


def _sync(recipe: Recipe) -> tuple[int, float] | None:
    every, mix = recipe.reference.sync_every, recipe.reference.sync_mix
    return None if every is None else (every, mix)


def _store_dir(recipe: Recipe) -> Path | None:
    if not recipe.reference.store:
        return None
    if recipe.reference.store_dir is not None:
        return Path(recipe.reference.store_dir).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "align" / "reference"


def quieten(main: bool) -> None:
    """Keep to our own lines: no bars, and from other ranks nothing but errors."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error() if not main else transformers.utils.logging.set_verbosity_warning()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    # of no use to anyone who watches a run: token ids aligned, file times unreliable, tied weights "missing" on resume
    for name in ("trainer", "trainer_utils"):
        logging.getLogger(f"transformers.{name}").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="peft")
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*gradient_checkpointing")  # TRL's own


def _silent(*_: Any) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of ``accelerate launch ... -m align.train FILE [key=value ...] [--resume] [--allow-code]``."""
    words = list(sys.argv[1:] if argv is None else argv)
    resume, allow_code = "--resume" in words, "--allow-code" in words
    words = [w for w in words if w not in ("--resume", "--allow-code")]
    rank = int(os.environ.get("RANK", "0"))
    if not words or words[0] in ("-h", "--help"):
        if rank == 0:
            print("usage: accelerate launch [...] -m align.train FILE [key=value ...] [--resume] [--allow-code]")
        return 0 if words else 2
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        run(load_recipe(words[0], words[1:]), resume=resume, allow_code=allow_code)
        _leave(together=True)
    except (UserError, Stopped) as error:
        if rank == 0:
            print(error, file=sys.stderr, flush=True)
        _leave(together=False)
        return int(error.exit_code)
    return 0


def _leave(*, together: bool) -> None:
    """End the process group; after a good run only when every rank is there, or one that leaves early aborts."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        if together:
            torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def end(code: int) -> NoReturn:
    """Leave the process with an exit code, under a launcher at once."""
    if "RANK" in os.environ:
        # torch's threads can abort an interpreter that ends around them, and a good run would be reported as failed
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    end(main())
