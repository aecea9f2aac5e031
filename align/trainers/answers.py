"""Greedy answers to fixed prompts of the probe set, at the start of a run and at its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align.models.subject import Subject, positions
from align.probes.probe_set import choose_prompts, choose_rows, longest_answer
from align.runs.damage import json_object
from align.runs.directory import RunDirectory

ANSWERS = "answers.jsonl"
_MOST_TOKENS = 256  # of an answer
_WRITTEN = 10  # answers whose text is kept


class Answers:
    """Answers the same prompts at the start and at the end: the lengths of all go to the records, some texts to a file.

    Args:
        trainer: the trainer whose policy answers.
        run: the run directory.
        rows: prepared probe rows.
        count: how many different prompts of them are answered, drawn by the seed; 0 for none.
        echo: takes one line of text, on the main process.
    """

    def __init__(
        self,
        trainer: Any,
        run: RunDirectory,
        rows: Sequence[Mapping[str, Any]],
        count: int,
        echo: Callable[[str], Any] = print,
    ) -> None:
        self.trainer, self.run, self.echo = trainer, run, echo
        self.prompts = choose_prompts(rows, count, trainer.args.seed)
        # twice what the pairs have leaves room to grow; what never ends costs no more than that
        self.limit = min(_MOST_TOKENS, 2 * longest_answer(rows)) if rows else 0
        self._counted = False

    def give(self, step: int) -> None:
        """Answer, and record it as of an optimizer step."""
        if not self.prompts:
            return
        subject = Subject.of(self.trainer)
        prompts = self._with_room(positions(subject.model))
        if not prompts:
            return
        texts = subject.generate(prompts, self.limit)
        counts = [len(subject.tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
        tokens = [min(max(1, count), self.limit) for count in counts]  # bytes that are no text count more than once
        self.run.append_metrics({"step": step, "answer_tokens": tokens, "answer_limit": self.limit})
        self._write(step, [(subject.tokenizer.decode(p), text) for p, text in zip(prompts, texts, strict=True)])

    def _with_room(self, reach: int | None) -> list[list[int]]:
        """The prompts that leave room for an answer in the positions that the model reads; the others are counted."""
        if reach is None:
            return self.prompts
        prompts = [prompt for prompt in self.prompts if len(prompt) + self.limit <= reach]
        if len(prompts) < len(self.prompts) and not self._counted:
            self._counted = True
            self.echo(
                f"watch.probe_answers: {len(prompts)} of {len(self.prompts)} prompts are answered; the others "
                f"leave no room for {self.limit} tokens in the {reach:,} that the model reads"
            )
        return prompts

    def _write(self, step: int, answered: Sequence[tuple[str, str]]) -> None:
        """The texts of the first and of this step; what an interrupted run wrote in between is replaced."""
        file, seed = self.run.path / ANSWERS, self.trainer.args.seed
        lines = file.read_bytes().split(b"\n") if step and file.exists() else []
        kept = [line.decode() + "\n" for line in lines if (json_object(line) or {}).get("step") == 0]
        for i in choose_rows(len(answered), _WRITTEN, seed):
            prompt, text = answered[i]
            kept.append(json.dumps({"step": step, "prompt": prompt, "text": text}, ensure_ascii=False) + "\n")
        self.run.write(ANSWERS, "".join(kept))
