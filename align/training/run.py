"""One recipe, one training: from its sections to a trainer with callbacks, and through it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from transformers import PrinterCallback, ProgressCallback, set_seed

from align.data.load import held_out_rows, load_data
from align.data.tokens.arguments import kept_arguments, unused_arguments
from align.data.tokens.chat import Rendered, Request, render
from align.data.tokens.tokenize import load_tokenizer
from align.errors import Stopped, UserError
from align.judges.loading import load_judge
from align.models.look import look, new_head
from align.models.policy import adapter_note, load_model, lora_config
from align.models.subject import Subject, positions
from align.objectives.base import reads_labels
from align.plan.stored import store_folder
from align.recipe import Recipe
from align.recipe.stop_rule import StopRule
from align.recipe.template_arguments import dated
from align.runs.directory import RunDirectory
from align.runs.launch import check_launch, check_launcher_files
from align.runs.processes import World
from align.runs.quiet import quieten, silent
from align.runs.report import HTML
from align.runs.result import RunResult
from align.runs.signals import SIGNALS
from align.trainers.arguments import refuse
from align.trainers.base import AlignTrainer
from align.trainers.collapse import Collapse
from align.trainers.entanglement import EntanglementProbe, can_be_read
from align.trainers.evaluation import FOLDER, Evaluation, Suite
from align.trainers.hypo import HyPOTrainer
from align.trainers.layers import Layers
from align.trainers.live import Live
from align.trainers.reward import RewardModelTrainer
from align.trainers.superhf import SuperHFTrainer
from align.trainers.unlearn import UnlearnTrainer
from align.trainers.watch import Watch
from align.training.facts import Said, add, begin_training, cost
from align.training.finish import finish, report
from align.training.lock import lock, otherwise
from align.training.planned import compared, planned
from align.training.resume import alone, check_step, go_on, newest, refuse_models_alone, swept

MakeSuite = Callable[..., Suite]  # of (evaluate section, base=, kept=, arguments=, say=); see align.eval.recipe_suite


def run(
    recipe: Recipe,
    *,
    resume: bool = False,
    allow_code: bool = False,
    anyway: bool = False,
    echo: Callable[[str], Any] = print,
    make_suite: MakeSuite | None = None,
) -> RunResult:
    """Train as a recipe says and return what came of it. Every rank calls it; only the main process prints and writes.

    Args:
        anyway: start also where the plan says that it does not fit.
        make_suite: makes the suite of the recipe's ``evaluate`` section; needed where it has one.

    Raises:
        UserError: for everything the caller can mend, before anything is lost.
        Stopped: where a guard ended the run; the last complete checkpoint is kept.
    """
    began = time.monotonic()
    main = int(os.environ.get("RANK", "0")) == 0
    check_launcher_files()
    args = recipe.training_arguments(disable_tqdm=True)
    check_launch(args)
    refuse(args)
    directory, say = RunDirectory(recipe.output_dir, writer=main), echo if main else silent
    with alone(directory, World.of(args), say):
        return _run(recipe, args, directory, began, resume, allow_code, anyway, say, make_suite)


def _run(
    recipe: Recipe,
    args: Any,
    directory: RunDirectory,
    began: float,
    resume: bool,
    allow_code: bool,
    anyway: bool,
    say: Callable[[str], Any],
    make_suite: MakeSuite | None,
) -> RunResult:
    """``run`` in a directory that no other run writes to; ``began`` is when it was called, by the monotonic clock."""
    world = World.of(args)
    # all ranks look before the first one writes
    world.together(lambda: directory.begin(recipe.dump(), resume=resume))
    quieten(world.rank == 0)
    swept(directory, say)
    checkpoint = None
    if resume:
        check_step(directory, args)
        refuse_models_alone(directory, args)
        checkpoint = newest(directory, world, say)
    objective = recipe.objective_value()
    reward = objective.scores_answers
    _look(recipe, reward, say)
    tokenizer = load_tokenizer(recipe.model, base=recipe.base, arguments=_arguments(recipe, directory, args, resume))
    for sentence in unused_arguments(tokenizer, recipe.data.template_arguments):
        say(f"warning: {sentence}")
    said = Said(say)
    data = load_data(recipe, tokenizer, objective.branches, said)
    if resume and directory.locked("data") != data.digest:
        raise UserError(f"{directory.path}: the data changed since this run was started. Put them back, or start anew.")
    plan = planned(recipe, args, data, directory, anyway, say)
    # before the model: a retain model is measured and gone by then
    suite = _suite(recipe, directory, tokenizer, make_suite, say)
    judge = _scoring_judge(recipe, args, allow_code, say)
    lora = lora_config(recipe.model.lora, reward=reward, revision=recipe.model.revision)
    set_seed(recipe.seed)  # a reward model's new head is drawn
    model = load_model(recipe.model, base=recipe.base, reward=reward)
    probed = [] if reward else held_out_rows(data, recipe)
    trainer = _trainer(recipe, model, tokenizer, objective, args, data, lora, judge, probed)
    if resume and directory.locked("reference") != trainer.digest:
        raise UserError(
            f"{directory.path}: the model that this run was started from has changed, and with it the reference. Put "
            "it back (pin model.revision for one on the Hub), or start anew."
        )
    trainer.echo = say
    _say_notes(trainer, _sync(recipe), say)
    _lock(recipe, trainer, directory, data.digest, resume, say)
    begin_training(recipe, trainer, directory, data, said.lines)
    watch, evaluation = _watched(recipe, trainer, directory, probed, suite, say)
    if resume:
        go_on(directory, checkpoint, trainer.accelerator, say)
    since = checkpoint.step if checkpoint else 0

    def account() -> dict[str, Any]:
        spent = cost(trainer, time.monotonic() - began, since, watch.budget.summary())
        return spent | compared(recipe, plan, spent)

    try:
        trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
        return finish(recipe, trainer, directory, evaluation.stopped if evaluation else "", account(), say)
    except Stopped as error:
        add(directory, {"cost": account(), "stopped": str(error)})
        if report(recipe, directory, say):
            say(f"  report   {directory.path / HTML}")
        raise
    finally:
        SIGNALS.until = ""


def _lock(
    recipe: Recipe, trainer: Any, directory: RunDirectory, data: str | None, resume: bool, say: Callable[[str], Any]
) -> None:
    """Write the lock file. That of a resumed run stays, and gets an id where it is of a version that gave none."""
    now = lock(recipe, trainer, directory.path, data)
    if not resume:
        directory.write_lock(now)
    else:
        for sentence in otherwise(directory.lock, now):
            say(sentence)
        if not directory.id:
            directory.write_lock({**directory.lock, "run": now["run"]})
    trainer.run_id = directory.id


def _watched(
    recipe: Recipe, trainer: Any, directory: RunDirectory, probed: list[dict], suite: Any, say: Callable[[str], Any]
) -> tuple[Watch, Evaluation | None]:
    """Add the callbacks that look at the run while it trains."""
    watch = _watch(recipe, trainer, directory, probed, say)
    trainer.add_callback(watch)
    if recipe.watch.live:
        trainer.add_callback(Live(directory, watch.budget, echo=say))
    if "survivor" in trainer.objective.branches:
        limit, stop = recipe.watch.similarity_limit, recipe.watch.stop_on_collapse
        trainer.add_callback(Collapse(limit, stop=stop, echo=say))
    evaluation = _evaluation(recipe, trainer, directory, suite, say) if suite is not None else None
    if evaluation is not None:
        trainer.add_callback(evaluation)
    return watch, evaluation


def _say_notes(trainer: Any, sync: tuple[int, float] | None, say: Callable[[str], Any]) -> None:
    """What one should know of the objective and its reference to read the lines of a run."""
    objective, reference = trainer.objective, trainer.reference
    if objective.coupled:
        say(f"note: {objective.coupled}")
    if reads_labels(objective.branches):
        say("note: below, chosen means desirable and rejected means undesirable; a pair is one answer of each")
    if sync is not None:
        every, mix = sync
        to = "the policy" if mix == 1 else f"{mix:g} policy + {1 - mix:g} reference"
        say(f"note: the reference moves to {to} every {every:,} steps, so margins fall back there")
    if reference is not None and reference.complete and reference.model is not None:
        say(
            "note: all reference rows are stored; the reference model is kept to judge the policy's own answers "
            "(watch.probe_answers: 0 goes without both)"
        )


def _arguments(recipe: Recipe, directory: RunDirectory, args: Any, resume: bool) -> dict[str, Any]:
    """The run's template arguments with its date: those of its lock file where it is resumed."""
    kept = directory.lock.get("template_arguments") if resume else None
    # a second may pass between two processes, and a day between two seconds
    return World.of(args).shared(kept or dated(recipe.data.template_arguments))


def _look(recipe: Recipe, reward: bool, say: Callable[[str], Any]) -> None:
    """Refuse what can be seen of the model before its weights are read."""
    look(recipe.model, recipe.base, reward=reward, say=say)
    if reward and new_head(recipe.model, recipe.base):
        say(f"model: {recipe.model.id} has no head that scores answers, so a new one is drawn (seed {recipe.seed})")
    if note := adapter_note(recipe.model, recipe.base):
        say(note)


def _trainer(
    recipe: Recipe,
    model: Any,
    tokenizer: Any,
    objective: Any,
    args: Any,
    data: Any,
    lora: Any,
    judge: Any,
    probed: list[dict],
) -> Any:
    """The trainer that goes with the rows; those that are ``probed`` will be answered, and the answers scored."""
    kind: Any = AlignTrainer
    own: dict[str, Any] = {}
    shared: dict[str, Any] = {
        "train_dataset": data.train,
        "eval_dataset": data.held_out,
        "processing_class": tokenizer,
        "peft_config": lora,
        "order": data.order,
        "max_tokens_per_microbatch": recipe.max_tokens_per_microbatch,
        "layers": Layers(**recipe.layers),
    }
    if objective.scores_answers:
        return RewardModelTrainer(model, objective, args, **shared)
    if recipe.data.forget:
        kind = UnlearnTrainer
        own = {"retain_dataset": data.retain, "partner": recipe.data.partner, "alternates_each": data.each}
    elif "sample" in objective.branches:
        kind, own = HyPOTrainer, {"sampling": recipe.sampling}
    elif "survivor" in objective.branches:
        kind, own = SuperHFTrainer, {"sampling": recipe.sampling, "judge": judge, "select": recipe.select}
    return kind(
        model,
        objective,
        args,
        **own,
        **shared,
        reference=recipe.reference.strategy,
        reference_sync=_sync(recipe),
        store_dir=store_folder(recipe),
        reference_rows=recipe.reference.rows,
        reference_asked=bool(probed) and recipe.watch.probe_answers > 0,
    )


def _scoring_judge(recipe: Recipe, args: Any, allow_code: bool, say: Callable[[str], Any]) -> Any:
    """The judge of an objective that keeps the best samples, or None."""
    if recipe.judge is None:
        return None
    return load_judge(recipe.judge, base=recipe.base, allow_code=allow_code, device=args.device, say=say)


def _suite(
    recipe: Recipe, directory: RunDirectory, tokenizer: Any, make: MakeSuite | None, say: Callable[[str], Any]
) -> Suite | None:
    """The recipe's test suite, or None; where it is compared with a model, that one is evaluated here."""
    settings = recipe.evaluate
    if settings is None:
        return None
    kept = directory.path / FOLDER / "retain.json"
    assert make is not None, "a recipe with evaluate: needs make_suite"
    suite = make(settings, base=recipe.base, kept=kept, arguments=kept_arguments(tokenizer), say=say)
    if suite.target is not None:
        directory.write_json(f"{FOLDER}/{kept.name}", suite.target.to_json())
    return suite


def _evaluation(recipe: Recipe, trainer: Any, directory: RunDirectory, suite: Any, say: Callable[[str], Any]) -> Any:
    """The callback that runs the suite."""
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
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    settings = recipe.watch
    prompts = [_prompt_ids(trainer, text) for text in settings.prompts]
    entangled = settings.entanglement_pairs and can_be_read(trainer.objective, rows)
    return Watch(
        trainer,
        directory,
        rows[: settings.probe_pairs],
        probes=[EntanglementProbe(trainer, rows, settings.entanglement_pairs)] if entangled else [],
        every=settings.every,
        budget=settings.budget,
        chosen_drop_nats=settings.chosen_drop_nats,
        stop_on_drop=settings.stop_on_drop,
        answers=settings.probe_answers,
        prompts=prompts,
        generate_every=settings.generate_every,
        echo=say,
    )


def _prompt_ids(trainer: Any, text: str) -> list[int]:
    """A prompt of the recipe as ids: one user message where the tokenizer has a chat template, else plain text."""
    tokenizer = trainer.processing_class
    if tokenizer.chat_template is None:
        ids = list(tokenizer(text).input_ids)
    else:
        rendered = render(tokenizer, [Request([{"role": "user", "content": text}], prompt=True)])[0]
        if not isinstance(rendered, Rendered):
            raise UserError(f"watch.prompts: {text[:40]!r} cannot be asked: {rendered}.")
        ids = rendered.ids
    reach = positions(trainer.model)
    if not ids or (reach is not None and len(ids) >= reach):
        most = "" if reach is None else f" and reads {reach} at most, its answer among them"
        raise UserError(f"watch.prompts: {text[:40]!r} has {len(ids)} tokens; the model needs one at least{most}.")
    return ids


def _sync(recipe: Recipe) -> tuple[int, float] | None:
    every, mix = recipe.reference.sync_every, recipe.reference.sync_mix
    return None if every is None else (every, mix)
