"""The judge of a run in rounds: what its calls come to, and what it can select by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from align.data.tokens.prompts import prompt_of
from align.errors import UserError
from align.judges import trial
from align.judges.calls import Calls
from align.judges.judge import CompareJudge, Judging, ScoreJudge
from align.judges.loading import load_judge
from align.recipe import Recipe
from align.recipe.sampling import Select
from align.rounds.stages import Round
from align.runs.processes import World


def judge_of(recipe: Recipe, allow_code: bool, device: torch.device, say: Callable[[str], Any]) -> Judging:
    """The recipe's judge, ready to be asked. Raises UserError."""
    assert recipe.judge is not None
    return load_judge(recipe.judge, base=recipe.base, allow_code=allow_code, device=device, say=say)


def estimate(recipe: Recipe, rounds: Sequence[Round], made: Path, say: Callable[[str], Any]) -> None:
    """Say how many calls an endpoint will get. Raises UserError for a run that would end for want of them.

    Args:
        made: file of the calls that were made before; see ``Calls``.
    """
    settings = recipe.judge.endpoint if recipe.judge is not None else None
    if settings is None:
        return
    assert recipe.sampling is not None
    samples = recipe.sampling.samples
    left = sum(now.unjudged for now in rounds)
    calls = 2 * left * (3 * samples // 2 - 1) + 1  # and one that tries it
    done = Calls(settings.max_calls, made).made
    before = f"; {done:,} were made before, and what they answered is not asked again" if done else ""
    say(f"judge: at most {calls:,} calls for {left:,} prompts, each comparison in both orders{before}")
    # of a run that goes on nobody knows what the answers on disk will save: each batch is looked at instead
    if not done and calls > settings.max_calls:
        raise UserError(
            f"judge.endpoint.max_calls: {settings.max_calls:,} calls are allowed, and tournaments of "
            f"{samples} samples of {left:,} prompts may take {calls:,}. Nothing was started: raise "
            "it (retries count too), or lower rounds.prompts or sampling.samples."
        )


def try_judge(
    recipe: Recipe,
    judge: Judging | None,
    now: Round,
    allow_code: bool,
    world: World,
    say: Callable[[str], Any],
) -> None:
    """Ask the judge once, on the first process, before anything is drawn for it, in the form of a round's prompts.

    Args:
        judge: None for one with weights, which are loaded for it and let go of again.

    Raises:
        UserError: where it cannot judge.
    """
    if world.rank:
        return
    turns = not isinstance(prompt_of(now.prompts[0]["prompt"]), str)
    trial.try_judge(lambda: judge or judge_of(recipe, allow_code, world.device, say), conversational=turns)


def check_judge(judge: Judging, select: Select) -> None:
    """Refuse a way to select that the judge gives nothing for.

    Raises:
        UserError: with the other way.
    """
    if not isinstance(judge, ScoreJudge | CompareJudge):
        raise UserError(f"judge is {judge!r}; it must be a ScoreJudge, a CompareJudge, or align.recipe.sampling.Judge.")
    if isinstance(judge, ScoreJudge) and select.how != "best_worst":
        raise UserError(f"select.how is {select.how}, but {judge.name} gives scores: use best_worst.")
    if isinstance(judge, CompareJudge) and select.how != "tournament":
        raise UserError(f"select.how is {select.how}, but {judge.name} compares: use tournament.")
