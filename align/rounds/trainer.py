"""RoundTrainer: sample, judge, select and train, again and again; each round starts from the last one's policy.

A round is four stages over files in ``<run>/rounds/NN``: ``samples/`` and ``judged/`` in parts, ``pairs.parquet`` with
the log-probs that training reads, and ``train/``, an ordinary run with a recipe, a lock and checkpoints of its own. A
stage that has its files is never done again, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.data.rows.sources import source_name
from align.errors import Stopped, UserError
from align.export.hub import push_now
from align.export.target import MAIN, Target
from align.judges.calls import CALLS
from align.judges.function import Function
from align.judges.judge import Judging
from align.judges.loading import as_judge, early_judge, judging
from align.models.look import look
from align.models.policy import adapter_note
from align.objectives import DPO, Objective
from align.recipe import Recipe
from align.recipe.sampling import Judge, Rounds, Sampling, Select
from align.recipe.template_arguments import dated
from align.reference.rows import check_reads
from align.rounds.arguments import recipe_of
from align.rounds.facts import begin_rounds
from align.rounds.finish import finish, remove_checkpoints
from align.rounds.judging import check_judge, estimate, judge_of, try_judge
from align.rounds.pace import Pace
from align.rounds.pairs import make_pairs
from align.rounds.policy import TRAIN, is_sharded, loaded, round_folder, train_recipe
from align.rounds.prompts import PROMPTS, deal, digest
from align.rounds.report import noted, record, until_done
from align.rounds.sampling import draw_by_server, draw_parts
from align.rounds.stages import Round, Stage, judge_part
from align.runs.directory import LOCK, VERDICT, RunDirectory
from align.runs.launch import check_launch, check_launcher_files
from align.runs.processes import World, free
from align.runs.quiet import quieten
from align.runs.result import RunResult
from align.runs.signals import SIGNALS
from align.runs.terminal import Work
from align.sampling.files import read_tables
from align.trainers.online import check_settings
from align.training.facts import Said, add
from align.training.finish import report
from align.training.resume import alone, check_step, swept
from align.training.run import run as train

if TYPE_CHECKING:
    from datasets import Dataset


class RoundTrainer:
    """Trains ``model`` in rounds on pairs of its own samples: iterated DPO, IPO and SPPO, and INPO.

    Every stage loads what it needs anew, so ``model`` is a name. What a recipe with ``rounds:`` says is said here by
    the same settings; ``RoundTrainer.of`` takes such a recipe.

    Args:
        model: a Hub id or a folder.
        objective: on pairs; DPO unless given.
        args: of every round's training. ``output_dir`` is the run directory, ``seed`` that of all draws.
        train_dataset: prompts, in any format; answers in it are left aside.
        judge: scores or compares samples: a judge, settings of one (``align.Judge``), or a function of
            ``(prompts, responses)`` or ``(prompts, a, b)``.
        sampling, select, rounds: settings; see the sections of recipes.
        peft_config: ``peft.LoraConfig`` or ``align.recipe.sections.Lora``; the adapter goes on from round to round.
        processing_class: another tokenizer than the model's.
        max_length: most tokens of prompt and answer together; prompts that leave no room are dropped and counted.
        template_arguments: what the chat template is given beside the conversation; ``strftime_now`` is the date, by
            default now.
        allow_code: let ``judge.function`` import code of yours.
        echo: takes one line of text for people.

    Raises:
        UserError: for whatever the caller can mend, with a sentence.
    """

    anyway = False

    def __init__(
        self,
        model: str,
        objective: Objective | None = None,
        args: Any = None,
        *,
        train_dataset: Dataset,
        judge: Judging | Judge | Function,
        sampling: Sampling | None = None,
        select: Select | None = None,
        rounds: Rounds | None = None,
        peft_config: Any = None,
        processing_class: Any = None,
        max_length: int | None = 1024,
        template_arguments: Mapping[str, Any] | None = None,
        allow_code: bool = False,
        echo: Callable[[str], Any] = print,
    ) -> None:
        check_settings(sampling=sampling, select=select, rounds=rounds)
        if not isinstance(judge, Judge):
            judge = as_judge(judge)
        recipe = recipe_of(
            model,
            DPO() if objective is None else objective,
            args,
            judge=judge,
            sampling=sampling or Sampling(),
            select=select or Select(),
            rounds=rounds or Rounds(),
            peft_config=peft_config,
            tokenizer=processing_class,
            max_length=max_length,
            template_arguments=template_arguments or {},
            prompts=PROMPTS,
        )
        self._begin(recipe, allow_code, echo)
        self._dataset: Dataset | None = train_dataset
        self._tokenizer = processing_class
        self._judge = None if isinstance(judge, Judge) else judge

    @classmethod
    def of(
        cls, recipe: Recipe, *, allow_code: bool = False, anyway: bool = False, echo: Callable[[str], Any] = print
    ) -> RoundTrainer:
        """The trainer of a recipe with ``rounds:``; ``anyway`` trains also where a plan says that it does not fit."""
        made = cls.__new__(cls)
        made.anyway = anyway
        made._begin(recipe, allow_code, echo)
        made._dataset = made._tokenizer = made._judge = None
        return made

    def _begin(self, recipe: Recipe, allow_code: bool, echo: Callable[[str], Any]) -> None:
        assert recipe.rounds is not None
        assert recipe.sampling is not None
        self.recipe, self.allow_code = recipe, allow_code
        self.rounds, self.sampling, self.select = recipe.rounds, recipe.sampling, recipe.select or Select()
        main = int(os.environ.get("RANK", "0")) == 0
        self.say: Callable[[str], Any] = echo if main else lambda _: None
        self.echo = echo
        self.directory = RunDirectory(recipe.output_dir, writer=main)

    def train(self, *, resume: bool = False) -> RunResult:
        """All rounds that are not done yet. Every rank calls it.

        Raises:
            UserError: for everything the caller can mend.
            Stopped: where a guard ended a round's training; what was complete is kept.
        """
        began = time.monotonic()
        check_launcher_files()
        args = self.recipe.training_arguments(disable_tqdm=True)
        check_launch(args)
        self.world = World.of(args)
        self.pace = Pace.of(args)
        with alone(self.directory, self.world, self.say):
            self.world.together(lambda: self.directory.begin(self.recipe.dump(), resume=resume))
            swept(self.directory, self.say)
            if resume:
                check_step(self.directory, args)
            del args  # under DeepSpeed it would cut up every model that is loaded from here on
            return self._all(resume, began)

    def push_to_hub(
        self, repo: str | None = None, *, private: bool = True, revision: str | None = None, token: str | None = None
    ) -> str:
        """Push the finished run's model, as ``align push`` does; ``repo`` is by default the run directory's name.

        Every process calls it. ``revision`` is a branch, made where there is none.

        Returns:
            The address of the repository; an empty text on all processes but the first.

        Raises:
            UserError: where the rounds have not come to their end, or the Hub refuses.
        """
        folder = self.directory.path
        if not self.directory.writer:
            return ""
        if not (folder / VERDICT).exists():
            raise UserError(f"{folder}: the rounds have not come to their end, so there is no model to push.")
        target = Target(repo or folder.resolve().name, private, revision or MAIN)
        return push_now(folder, target, self.say, token=token)

    def _all(self, resume: bool, began: float) -> RunResult:
        """``train`` in a directory that no other run writes to; ``began`` is by the monotonic clock."""
        quieten(self.world.rank == 0)
        if self.recipe.objective_value().needs_reference:
            check_reads(self.recipe.objective_value())
        self.world.together(lambda: look(self.recipe.model, self.recipe.base))
        if note := adapter_note(self.recipe.model, self.recipe.base):
            self.say(note)
        self.world.together(self._early_judge)
        rounds = self._rounds(resume)
        estimate(self.recipe, rounds, self.directory.path / CALLS, self.say)
        if not resume:
            how = (self.allow_code, self.world, self.say)
            self.world.together(lambda: try_judge(self.recipe, self._judge, rounds[0], *how))
        records: list[dict[str, Any]] = []
        for now in rounds:
            SIGNALS.obey()  # what came while the last round's result was written
            if not (now.folder / TRAIN / VERDICT).exists():
                self._round(now, records)
            if not self.rounds.keep_checkpoints and (freed := remove_checkpoints(now.folder / TRAIN, self.directory)):
                self.say(f"round {now.number}: {freed}")
            records.append(record(now, self.recipe))
            noted(self.directory, records[-1], self.say)
            if now.number < self.rounds.count:  # the last one's is the whole run's
                report(self.recipe, self.directory, self.say)
        named = [Path(source_name(source)).name for source in self.recipe.data.train or []]
        data = named if self._dataset is None else ["prompts of the caller's own"]
        return finish(self.recipe, self.directory, self.world, records, data, time.monotonic() - began, self.say)

    # ---- stages

    def _round(self, now: Round, records: Sequence[Mapping[str, Any]]) -> None:
        of = f"round {now.number} of {self.rounds.count}"
        if not now.pairs.exists():
            if todo := self._todo(now, "samples"):
                self.say(f"{of}: {self.sampling.samples} samples each of {len(now.prompts):,} prompts")
                self._sample(now, todo)
            if todo := self._todo(now, "judged"):
                self.say(f"{of}: judge")
                self._judge_all(now, todo[self.world.rank])
        self._pairs(now)
        self.say(f"{of}: train")
        try:
            self._train(now, records)
        except Stopped as error:
            add(self.directory, {"stopped": f"round {now.number}: {error}"})
            if now.number > 1:  # the first round's own report has all there is
                report(self.recipe, self.directory, self.say)
            raise

    def _todo(self, now: Round, stage: Stage) -> list[list[int]]:
        """Parts that each process has still to do; nothing where all are there."""
        from accelerate.utils import gather_object

        # judges are not cut up
        alone = self.rounds.load == "first" or (self.rounds.load == "sharded" and stage == "judged")
        world = self.world.first() if alone else self.world
        todo = gather_object([now.missing(stage, world) if world.rank == self.world.rank else []])
        return todo if any(todo) else []

    def _by_those_who_load(self, work: Callable[[World], Any]) -> None:
        """Work of all processes, or with ``rounds.load: first`` of the first one, for which the others wait."""
        if self.rounds.load == "first":
            self.world.together(lambda: None if self.world.rank else work(self.world.first()))
        else:
            work(self.world)

    def _sample(self, now: Round, todo: list[list[int]]) -> None:
        run, parts = self.directory.path, todo[self.world.rank]
        if self.sampling.server is not None:
            draw_by_server(self.recipe, run, now, todo, self.world, self.say)
            return

        def draw(world: World) -> None:
            with loaded(self.recipe, run, now.number, world, self.say) as policy:
                # of a policy that is cut up every process needs all the others
                calls = max(map(len, todo)) if is_sharded(self.recipe, world) else None
                world.together(lambda: draw_parts(self.recipe, now, parts, world, policy, self.say, calls=calls))

        self._by_those_who_load(draw)

    def _judge_all(self, now: Round, parts: list[int]) -> None:
        def work() -> None:
            if not parts:
                return
            with judging(), Work("prompts judged", sum(len(now.of_part(part)) for part in parts)) as working:
                judge = self._judge or judge_of(self.recipe, self.allow_code, self.world.device, self.say)
                check_judge(judge, self.select)
                for part in parts:
                    judge_part(now, part, judge, self.select)
                    working.add(len(now.of_part(part)))

        self.world.together(work)
        free()

    def _early_judge(self) -> None:
        """What can be wrong with a judge is said before anything is drawn; one without weights is made at once."""
        if self._judge is None:
            assert self.recipe.judge is not None
            self._judge = early_judge(
                self.recipe.judge,
                base=self.recipe.base,
                allow_code=self.allow_code,
                device=self.world.device,
                say=self.say,
                calls=self.directory.path / CALLS,
            )
        if self._judge is not None:
            check_judge(self._judge, self.select)

    def _pairs(self, now: Round) -> None:
        there: list[bool] = []
        self.world.together(lambda: there.append(now.pairs.exists()))
        if not there[0]:
            run = self.directory.path
            self._by_those_who_load(lambda world: make_pairs(self.recipe, run, now, world, self.say))
            self.world.together(lambda: None)  # the first process has written them

    def _train(self, now: Round, records: Sequence[Mapping[str, Any]]) -> None:
        ahead = (sum(before["steps"] for before in records), self.rounds.count - now.number)
        warmup = self.pace.warmup_steps(now.paired, *ahead)
        recipe = train_recipe(self.recipe, self.directory.path, now.number, warmup)
        begun: list[bool] = []
        # all look before the first process writes
        self.world.together(lambda: begun.append((recipe.output_dir / LOCK).exists()))
        train(recipe, resume=begun[0], anyway=self.anyway, echo=until_done(self.echo))
        self.world.together(free)

    # ---- before and after

    def _rounds(self, resume: bool) -> list[Round]:
        """The rounds with their prompts, which are dealt out and written down at the start."""
        file = self.directory.path / PROMPTS

        def work() -> None:
            if resume:
                if not file.exists() or digest(file) != self.directory.locked("data"):
                    raise UserError(f"{file} is not what it was when the run was started. Put it back, or start anew.")
                add(self.directory, {"stopped": ""})
            elif self.world.rank == 0:
                if self._tokenizer is not None:
                    self._tokenizer.save_pretrained(self.recipe.model.tokenizer)
                arguments = dated(self.recipe.data.template_arguments)
                said = Said(self.say)
                deal(self.recipe, self._dataset, arguments, file, said)
                how = (self.world, self.pace.examples)
                begin_rounds(self.recipe, self.directory, *how, file, arguments, said.lines)

        self.world.together(work)
        dealt: list[list[dict[str, Any]]] = [[] for _ in range(self.rounds.count)]
        for line in read_tables([file]):
            dealt[line["round"] - 1].append(line)
        return [Round(number, round_folder(file.parent, number), lines) for number, lines in enumerate(dealt, 1)]
