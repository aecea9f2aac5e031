"""A judge is asked once before anything is drawn for it, so that one that cannot judge costs no samples."""

from __future__ import annotations

import math
from collections.abc import Callable

from align.data.tokens.samples import Prompt
from align.errors import UserError
from align.judges.judge import CompareJudge, Judging
from align.judges.loading import judging
from align.runs.processes import free

QUESTION = "What is 2 + 2?"
RIGHT, WRONG = "2 + 2 is 4.", "2 + 2 is 5."


def try_judge(load: Callable[[], Judging], *, conversational: bool = False) -> None:
    """Ask a judge once and let go of it: one with weights has the memory for itself. Raises as ``ask_once``."""
    with judging(trial=True):
        ask_once(load(), conversational=conversational)
    free()


def ask_once(judge: Judging, *, conversational: bool = False) -> None:
    """Ask a judge about two answers to an easy question.

    Args:
        conversational: whether the question is put as a user's turn, as the prompts to come are.

    Raises:
        UserError: where it cannot judge them, or one that compares names neither.
    """
    prompt: Prompt = [{"role": "user", "content": QUESTION}] if conversational else QUESTION
    if not isinstance(judge, CompareJudge):
        scores = judge.score([prompt, prompt], [RIGHT, WRONG])
        if len(scores) != 2 or not all(math.isfinite(value) for value in scores):
            raise UserError(f"judge {judge.name}: asked for the scores of two answers, it gave {scores}.")
        return
    before = judge.undecided[0]
    judge.prefer_first([prompt], [RIGHT], [WRONG])
    if judge.undecided[0] > before:
        raise UserError(
            f"judge {judge.name}: asked which of two answers is better, it named neither {judge.either}, so that "
            "nothing would be judged. Take a model that follows instructions."
        )
