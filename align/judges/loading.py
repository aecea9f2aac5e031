"""The judge that a recipe's section, or a caller in Python, asks for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from align.errors import UserError
from align.judges.checkpoint import find_judge_model
from align.judges.endpoint import EndpointJudge
from align.judges.function import Function, FunctionComparison, FunctionJudge, load_function, parameters
from align.judges.fusion import corpus_of, fused
from align.judges.judge import CompareJudge, Judging, ScoreJudge
from align.judges.pair import PairModel, letters
from align.judges.reward import RewardModel
from align.recipe.sampling import Judge
from align.runs.memory import answered, explained


def load_judge(
    settings: Judge,
    *,
    base: Path | None = None,
    allow_code: bool = False,
    device: torch.device | None = None,
    say: Callable[[str], Any] = print,
    calls: Path | None = None,
) -> Judging:
    """The judge that a ``judge`` section asks for, ready to be asked.

    Args:
        base: the recipe's folder, where relative folders and functions are looked up first.
        allow_code: whether a function of the user's may be imported.
        device: where a model is put; the CPU unless given.
        say: takes a sentence for people.
        calls: file that counts an endpoint's calls for all processes of a run.

    Raises:
        UserError: where the section names none or several, or the one it names cannot be had.
    """
    given = [key for key in ("reward", "pair", "endpoint", "function") if getattr(settings, key) is not None]
    if len(given) != 1:
        found = " and ".join(given) if given else "none of them"
        raise UserError(f"judge needs exactly one of reward, pair, endpoint and function; found {found}.")
    judge = _asked_for(settings, base, allow_code, device, say, calls)
    if settings.fusion is None:
        return judge
    if isinstance(judge, CompareJudge):
        raise UserError(f"judge.fusion: scores are averaged, and {judge.name} compares answers; remove it.")
    return fused(judge, settings.fusion, base=base, say=say)


def _asked_for(
    settings: Judge,
    base: Path | None,
    allow_code: bool,
    device: torch.device | None,
    say: Callable[[str], Any],
    calls: Path | None,
) -> Judging:
    """The judge without its fusion."""
    if settings.endpoint is not None:
        return EndpointJudge(settings.endpoint, say, base=base, calls=calls)
    if settings.function is not None:
        compares = {"a", "b"} <= parameters(load_function(settings.function, base, allow_code=allow_code))
        return (FunctionComparison if compares else FunctionJudge)(settings.function, base)
    options: dict[str, Any] = {"revision": settings.revision, "dtype": settings.dtype, "base": base, "say": say}
    if device is not None:
        options["device"] = device
    if settings.reward is not None:
        return RewardModel(settings.reward, **options)
    assert settings.pair is not None
    return PairModel(settings.pair, **options)


def judging(*, trial: bool = False) -> AbstractContextManager[None]:
    """Answers memory that runs out while a judge is loaded or asked; in a ``trial`` nothing was drawn by then."""
    again = (
        "start again where more memory is free: nothing was drawn yet."
        if trial
        else "go on where more memory is free (with --resume, where the command has it): what was drawn and judged by "
        "then is kept."
    )
    cure = f"Take a judge with fewer weights, or with narrower ones (judge.dtype: bfloat16), or {again}"
    return answered(explained("while answers were judged", cure))


def early_judge(
    settings: Judge,
    *,
    base: Path | None = None,
    allow_code: bool = False,
    device: torch.device | None = None,
    say: Callable[[str], Any] = print,
    calls: Path | None = None,
) -> Judging | None:
    """A judge without weights, ready to be asked; of one with weights, None once all but the weights was looked at.

    What is wrong with a judge is so known before anything is drawn, while the policy has the memory for itself.

    Raises:
        UserError: where the judge cannot be had.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if settings.reward is not None and settings.pair is None:
        find_judge_model("judge.reward", AutoModelForSequenceClassification, settings.reward, settings.revision, base)
        if settings.fusion is not None:
            corpus_of(settings.fusion, base=base, say=lambda _: None)
    elif settings.pair is not None and settings.reward is None:
        found = find_judge_model("judge.pair", AutoModelForCausalLM, settings.pair, settings.revision, base)
        letters(settings.pair, found.tokenizer)
    else:
        return load_judge(settings, base=base, allow_code=allow_code, device=device, say=say, calls=calls)
    return None


def as_judge(
    judge: Judging | Judge | Function,
    *,
    allow_code: bool = False,
    device: torch.device | None = None,
    say: Callable[[str], Any] = print,
) -> Judging:
    """A judge from what a Python caller hands over: a judge, settings of one, or a function.

    Raises:
        UserError: where it is none of these, or as ``load_judge``.
    """
    if isinstance(judge, ScoreJudge | CompareJudge):
        return judge
    if isinstance(judge, Judge):
        return load_judge(judge, base=Path.cwd(), allow_code=allow_code, device=device, say=say)
    if not callable(judge) or isinstance(judge, type):
        raise UserError(
            f"judge is {judge!r}; it must be a judge (align.judges.judge), align.Judge(...), or a function of "
            "(prompts, responses) or (prompts, a, b)."
        )
    return (FunctionComparison if {"a", "b"} <= parameters(judge) else FunctionJudge)(judge)
