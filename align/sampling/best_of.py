"""``align sample``: completions of prompts, judged, and the best of them kept as a data set.

Sampling first and judging after it, so that the model and its judge need not fit into memory together. Both go in parts
that are kept on disk; under a launcher with several processes these are dealt out. Draws depend on seed, row and prompt
alone, so neither parts nor processes nor a resume change them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.data.load import digest
from align.data.rows.sources import load_source
from align.data.tokens.arguments import keep_arguments, kept_arguments, unused_arguments
from align.data.tokens.preparation import plural
from align.data.tokens.prompts import conversational, prompt_of, prompt_rows
from align.data.tokens.samples import Sample, prompt_key
from align.errors import UserError
from align.export.listing import card_of
from align.judges.calls import CALLS
from align.judges.judge import CompareJudge, Judging
from align.judges.loading import early_judge, judging, load_judge
from align.judges.trial import try_judge
from align.models.load import checkpoint_tokenizer, load_checkpoint, model_folder
from align.models.subject import positions
from align.recipe.sampling import Judge
from align.recipe.template_arguments import DATE, dated
from align.reference.digest import model_digest
from align.runs.files import write_atomically
from align.runs.processes import World, free
from align.runs.terminal import Work, echo
from align.sampling.card import data_card
from align.sampling.choose import Keep, compare, score
from align.sampling.files import by_prompt, sample_of, sample_row
from align.sampling.job import Job
from align.sampling.kept import completion_row, extras, pair_row, tokenised_otherwise, write
from align.sampling.parts import STAGES, Parts, Stage
from align.sampling.result import Result
from align.sampling.serving import policy_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.sampling.server import ServerSampler

Line = dict[str, Any]  # of a table of samples
# prompts, their keys, and what is told how many completions were drawn, to samples
Draw = Callable[[list, list, Callable[[int], Any]], list[list[Sample]]]
Say = Callable[[str], Any]

PART = 32  # prompts of a part; a constant, so that a resume finds the same parts


def sample(job: Job, *, resume: bool = False, again: str = "with --resume", say: Say = echo) -> Result | None:
    """Do a job and write its data set. Under a launcher every process calls it; all but the first return None.

    Args:
        resume: go on with a call that was interrupted; its settings must have been the same.
        again: how the caller goes on with one, as the end of a sentence.
        say: takes a sentence for people.

    Raises:
        UserError: for everything the caller can mend; what was sampled and judged by then stays on disk.
    """
    from accelerate.utils import gather_object

    world = World.here()
    work = _Work(job, world, say if world.rank == 0 else _silent, again)
    world.together(lambda: work.prepare(resume))
    world.together(work.begin)  # all have looked before one writes
    world.together(work.check)
    world.together(work.draw)
    free()  # the judge may need the memory
    if job.judge is not None:
        world.together(work.ask)
    drawn = sum(gather_object([work.tokens])) if world.size > 1 else work.tokens
    return _finish(work, drawn) if world.rank == 0 else None


class _Work:
    """One call on one process. ``extras`` are by row; ``tokens`` were drawn by this process within ``seconds``."""

    def __init__(self, job: Job, world: World, say: Say, again: str) -> None:
        self.job, self.world, self.say, self.again = job, world, say, again
        self.tokens, self.seconds = 0, 0.0
        self.judge: Judging | None = None
        self.now = world.shared(dated({}))

    def prepare(self, resume: bool) -> None:
        """Look at everything that can be wrong, the judge among it, which is asked once; no sample is written."""
        job = self.job
        self.parts = Parts(job.out, resume=resume)
        rows: Any = load_source(job.source, base=Path())
        if job.judge is not None:
            self._early_judge(job.judge)
            if not resume and self.world.rank == 0:
                self._try_judge(conversational(rows, checkpoint_tokenizer(job.model)))
        model, self.tokenizer = load_checkpoint(job.model, job.dtype, job.template_arguments)
        for sentence in unused_arguments(self.tokenizer, job.template_arguments):
            self.say(f"warning: {sentence}")
        # a call that goes on another day renders what it began with
        begun = self.parts.settings().get("template_arguments", self.now)
        arguments = {DATE: begun[DATE], **kept_arguments(self.tokenizer)}
        keep_arguments(self.tokenizer, arguments)
        found, self.prompts = _prompts(rows, self.tokenizer, positions(model), job.source.system, self.say)
        self.extras = {p["row"]: extras(rows[p["row"]]) for p in self.prompts}
        weights = model_digest(model, adapters=True, compute_dtype="")
        self.settings = {**job.settings(), "template_arguments": arguments, "digest": weights, "prompts": digest(found)}
        self.parts.check(self.settings)
        # listed before any process writes, so that all deal the same parts
        self.todo = {stage: self.parts.missing(stage, range(self.count)) for stage in STAGES}
        self._model: Any = model
        self._served = self._remote(weights) if job.sampling.server is not None else None

    def begin(self) -> None:
        """Start the folder of parts, on the first process."""
        if self.world.rank == 0:
            self.parts.begin(self.settings)
        self.say(f"what is done is kept in {self.parts.folder}: a call that is interrupted goes on {self.again}")

    @property
    def count(self) -> int:
        """Parts of the prompts."""
        return math.ceil(len(self.prompts) / PART)

    # ---- sampling

    def draw(self) -> None:
        """Sample this process's share of what is missing, and let go of the model."""
        began = time.monotonic()
        mine = self._mine("samples", "sampled")
        drawer = self._drawer()
        with Work("completions drawn", self._prompts_of(mine) * self.job.sampling.samples) as work:
            for number in mine:
                prompts, ids, keys = self._part(number)
                drawn = drawer(ids, keys, work.add)
                rows = [sample_row(0, p, s) for p, group in zip(prompts, drawn, strict=True) for s in group]
                self.tokens += sum(len(row["ids"]) for row in rows)
                self.parts.write("samples", number, rows, {})
        self.seconds = time.monotonic() - began

    def _drawer(self) -> Draw:
        """What draws: the server, or the model, which is let go of with it."""
        served, model = self._served, self._model
        self._served = self._model = None
        if served is not None:

            def ask(prompts: list, keys: list, drawn: Callable[[int], Any]) -> list[list[Sample]]:
                found = served(prompts, keys, 0)
                drawn(sum(map(len, found)))
                return found

            return ask
        import torch

        from align.sampling.sampler import Sampler

        device = self.world.device
        model = model.to(device).eval()
        sampler = Sampler(self.job.sampling, self.tokenizer, self.job.seed, say=self.say)

        def draw(prompts: list, keys: list, drawn: Callable[[int], Any]) -> list[list[Sample]]:
            with torch.no_grad():
                return sampler(model, prompts, keys, 0, device=device, drawn=drawn)

        return draw

    def _remote(self, weights: str) -> ServerSampler:
        """Raises ``UserError`` where the server does not serve the model, or cannot be asked."""
        from align.sampling.server import ServerSampler

        job = self.job
        served = ServerSampler(
            job.sampling,
            self.tokenizer,
            job.seed,
            policy_name(weights),
            cache=self.parts.folder / "answers",
            checkpoint=model_folder(job.model) or job.model,
            # before a call has begun there is nothing to go on with
            again=lambda: f"go on {self.again}" if self.parts.settings() else "make the same call again",
            say=self.say,
        )
        if self.todo["samples"]:
            served.prepare([p["prompt_ids"] for p in self.prompts])
        return served

    def check(self) -> None:
        """Where a server draws: see on the first process that it draws from the model, and let go of that."""
        if self._served is None:
            return
        from align.sampling.served import require_fit

        if self.world.rank == 0 and self.todo["samples"]:
            parts = [self._part(number) for number in self.todo["samples"]]
            ids = [one for _, of, _ in parts for one in of]
            keys = [one for _, _, of in parts for one in of]
            require_fit(self._served, self._model, ids, keys, 0, self.say)
        self._model = None

    def _part(self, number: int) -> tuple[list[dict[str, Any]], list[list[int]], list[int]]:
        """The prompts of a part, their tokens, and what their draws are keyed by."""
        prompts = self.prompts[number * PART : (number + 1) * PART]
        ids = [p["prompt_ids"] for p in prompts]
        return prompts, ids, [prompt_key(i, p["row"]) for i, p in zip(ids, prompts, strict=True)]

    def _mine(self, stage: Stage, done: str) -> list[int]:
        """The missing parts that this process makes; says what was there before."""
        missing = self.todo[stage]
        if 0 < len(missing) < self.count:
            self.say(f"{done} before: {self.count - len(missing):,} of {self.count:,} parts")
        return missing[self.world.rank :: self.world.size]

    def _prompts_of(self, parts: list[int]) -> int:
        return sum(len(self.prompts[number * PART : (number + 1) * PART]) for number in parts)

    # ---- judging

    def ask(self) -> None:
        """Judge this process's share of what is missing, and mark what is kept."""
        job = self.job
        mine = self._mine("judged", "judged")
        with judging(), Work("prompts judged", self._prompts_of(mine)) as work:
            judge = self.judge or self._load_judge()
            for number in mine:
                rows = self.parts.rows("samples", number)
                groups = list(by_prompt(rows))
                if isinstance(judge, CompareJudge):
                    notes = compare(judge, groups, pairs=job.keep == "pair")
                else:
                    notes = score(judge, groups, job.keep, job.amount, job.length_penalty)
                self.parts.write("judged", number, rows, notes)
                work.add(len(groups))

    def _early_judge(self, settings: Judge) -> None:
        """What is wrong with a judge is said before anything is drawn."""
        self.judge = early_judge(
            settings,
            base=Path(),
            allow_code=self.job.allow_code,
            device=self.world.device,
            say=self.say,
            calls=self.parts.folder / CALLS,
        )
        if isinstance(self.judge, CompareJudge):
            self.job.check_compares()

    def _try_judge(self, turns: bool) -> None:
        """Ask the judge once; one with weights has the memory for itself, and lets go of it again."""
        try_judge(lambda: self.judge or self._load_judge(), conversational=turns)

    def _load_judge(self) -> Judging:
        job = self.job
        assert job.judge is not None
        device = self.world.device
        judge = load_judge(job.judge, base=Path(), allow_code=job.allow_code, device=device, say=self.say)
        if isinstance(judge, CompareJudge):
            job.check_compares()
        return judge


def _prompts(
    rows: Any, tokenizer: PreTrainedTokenizerBase, limit: int | None, system: str | None, say: Say
) -> tuple[Any, list[dict[str, Any]]]:
    """Prompts that leave room for a token, as a data set and as rows that can be answered; what is dropped is said.

    Raises:
        UserError: where none is left.
    """
    if "prompt_ids" in rows.column_names:
        raise UserError(
            "The rows are tokenised already (prompt_ids), and whoever reads completions needs prompts as text: give "
            "text or messages."
        )
    found = prompt_rows(rows, tokenizer, say, system=system, max_length=None if limit is None else limit - 1)
    listed: list[dict[str, Any]] = list(found)
    # a completion is written as a turn of its own, so a turn that is only begun cannot be gone on with
    prompts = [p for p in listed if isinstance(t := prompt_of(p["prompt"]), str) or t[-1]["role"] != "assistant"]
    if len(prompts) < len(listed):
        say(f"  {plural(len(listed) - len(prompts), 'row')} dropped: the prompt ends with an assistant's turn.")
    if not prompts:
        raise UserError("No row has a prompt that can be answered: give prompts that end with the user's turn.")
    return found, prompts


# ---- output


def _finish(work: _Work, tokens: int) -> Result:
    """Write the data set from what is kept, take the parts away, and count."""
    job, parts = work.job, work.parts
    result = Result(str(job.out), job.keep, len(work.prompts), tokens=tokens, seconds=work.seconds)
    rows: list[dict[str, Any]] = []
    drawn: list[dict[str, tuple[list[int], Sample]]] = []
    stage: Stage = "samples" if job.judge is None else "judged"
    for number in range(work.count):
        result.add_notes(parts.notes(stage, number))
        for group in by_prompt(parts.rows(stage, number)):
            for line in group:
                result.add(line)
            for made, of in _rows(job.keep, group, work.extras[group[0]["row"]]):
                rows.append(made)
                drawn.append({name: (line["prompt_ids"], sample_of(line)) for name, line in of.items()})
    if not rows:
        raise UserError(
            f"Nothing is left to keep of {result.samples:,} samples ({result.reasons()}). They and their scores are in "
            f"{parts.folder / stage}."
        )
    result.rows = len(rows)
    result.otherwise, result.unusable = tokenised_otherwise(rows, drawn, work.tokenizer)
    write_atomically(card_of(job.out), data_card(job, work.settings["digest"], result))
    write(job.out, rows)
    parts.remove()
    return result


def _rows(keep: Keep, group: list[Line], extra: Line) -> Iterator[tuple[dict[str, Any], dict[str, Line]]]:
    """Rows of the data set from the samples of one prompt, each with what its branches were made from."""
    if keep == "pair":
        marked = {line["selected"]: line for line in group}
        if "chosen" in marked:
            chosen, rejected = marked["chosen"], marked["rejected"]
            yield pair_row(chosen, rejected, extra), {"chosen": chosen, "rejected": rejected}
        return
    scored = any(line["score"] is not None for line in group)
    for line in group:
        if keep == "all" or line["selected"]:
            yield completion_row(line, extra, scored=scored, whole=keep == "all"), {"completion": line}


def _silent(_: str) -> None:
    """Where the first process speaks for all."""
