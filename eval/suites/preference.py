"""Held-out pairs as a suite: whether a model ranks them as people did, alone and beside the model it started from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from align.data.rows.sources import load_source, naming, source_name
from align.data.tokens.preparation import plural
from align.data.tokens.tokenize import prepare
from align.errors import UserError
from align.eval.kept_subject import KeptSubject
from align.eval.result import Result
from align.eval.suites.measuring import Measured, Measuring, digest_of_rows
from align.eval.suites.sections import HeldOut
from align.models.subject import positions
from align.probes.nulls import not_above
from align.report.thresholds import FEW_PAIRS
from align.runs.models import located
from align.runs.processes import free
from align.stats import wilson

ACCURACY, ALONE, MARGIN = "accuracy", "accuracy without reference", "margin"
_SEED = 0
_SIDES = ("chosen", "rejected")


def preference(settings: HeldOut, now: Measuring) -> Measured:
    """Accuracy and margins of held-out pairs.

    With d = log pi(chosen) - log pi(rejected), each summed over the answer's tokens, a pair is ranked right alone where
    d > 0, and beside the reference where d - d_ref > 0, the implicit reward of DPO (arXiv 2305.18290, eq. 6). Ties
    count as half.

    Raises:
        UserError: where pairs or the reference cannot be had.
    """
    reference = _reference(settings, now)
    subject = now.subject()
    pairs, limit = _pairs(settings, now, subject)
    own = _gaps(subject, pairs)
    name = f"held-out pairs, {now.model}"
    result = Result(name, {"reference": reference}, limit=limit)
    keys = [digest_of_rows([pair["prompt_ids"], *(pair[f"{side}_ids"] for side in _SIDES)]) for pair in pairs]
    _enter(result, ALONE, own, keys)
    if reference is None:
        why = "needs a reference: a run's starting model, or one that the suite file names"
        result.missing |= {ACCURACY: why, MARGIN: why}
    else:
        tokenizer = subject.tokenizer
        del subject
        free()
        beside = now.subject(reference)
        _require_same_tokens(tokenizer, beside.tokenizer, pairs, f"suite {now.suite.name}: {reference}")
        theirs = _gaps(beside, pairs)
        with np.errstate(invalid="ignore"):  # of two infinite ones there is no difference
            margins = own - theirs
        _enter(result, ACCURACY, margins, keys)
        result.add_mean(MARGIN, np.where(np.isfinite(margins), margins, np.nan), "", _SEED)
        result.items[MARGIN] = _items(margins, keys)
    result.order((ACCURACY, ALONE, MARGIN))
    if len(pairs) < FEW_PAIRS:
        result.notes.append(f"a set of {plural(len(pairs), 'pair')} is too small to say anything about accuracy")
    lengths = np.array([len(pair["chosen_ids"]) - len(pair["rejected_ids"]) for pair in pairs])
    longest = float(_right(lengths).mean())
    result.settings["longest"] = longest
    for measure in (ACCURACY, ALONE):
        if measure in result.values:
            nulls = {"longest": longest, "shortest": 1 - longest}
            doubt = not_above(measure, result.values[measure], result.intervals[measure], nulls)
            result.notes += [doubt] if doubt else []
    return Measured(result, (ACCURACY, ALONE, MARGIN))


def _reference(settings: HeldOut, now: Measuring) -> str | None:
    """What log-probs are compared with: what the suite file names, or what the run started from."""
    if settings.reference is not None:
        return located(now.suite.place(settings.reference), None)
    recipe = now.run.recipe
    if recipe is None:
        return None
    if recipe.model.revision is not None:
        raise UserError(
            f"suite {now.suite.name}: the run started from revision {recipe.model.revision} of {recipe.model.id}: save "
            "that as a folder, and name it in a copy of the suite file (reference)."
        )
    adapter = recipe.model.lora.adapter if recipe.model.lora is not None else None
    return located(adapter or recipe.model.id, recipe.base)


def _pairs(settings: HeldOut, now: Measuring, subject: KeptSubject) -> tuple[list[dict[str, Any]], int | None]:
    """Prepared pairs, cut as in training, and the limit of a trial where there are more."""
    recipe = now.run.recipe
    if settings.pairs is not None:
        sources, base = [now.source(settings.pairs)], Path()
    else:
        sources, base = now.held_out(), recipe.base if recipe is not None else Path()
    room = positions(subject.model)
    cut: dict[str, Any] = {"max_length": room}
    if recipe is not None and recipe.data.max_length is not None:
        cut = {"max_length": min(recipe.data.max_length, room or recipe.data.max_length)}
        cut["truncation"] = recipe.data.truncation
    found: list[dict[str, Any]] = []
    for source in sources:
        with naming(source):
            raw = load_source(source, base=base)
            rows, account = prepare(raw, subject.tokenizer, _SIDES, system=source.system, **cut)
        now.say(f"held out: {source_name(source)}")
        for sentence in account.summary():
            now.say(f"  {sentence}")
        found += list(rows)
    limit = now.limit if now.limit is not None and now.limit < len(found) else None
    return found[:limit], limit


def _require_same_tokens(own: Any, other: Any, pairs: list[dict[str, Any]], where: str) -> None:
    """Refuse a reference to which the tokens of the pairs are others. Raises ``UserError``."""
    used = sorted({token for pair in pairs for key in ("prompt", *_SIDES) for token in pair[f"{key}_ids"]})
    for token, here, there in zip(used, *(one.convert_ids_to_tokens(used) for one in (own, other)), strict=True):
        if here != there:
            raise UserError(
                f"{where} has another tokenizer: token {token} is {here!r} to the model and {there!r} to it, so it "
                "would score other texts. Name a reference with the same one."
            )


def _gaps(subject: KeptSubject, pairs: list[dict[str, Any]]) -> np.ndarray:
    """log pi(chosen) - log pi(rejected) of each pair [n], in nats."""
    branches = [{side: pair[f"{side}_ids"] for side in _SIDES} for pair in pairs]
    found = subject.score([pair["prompt_ids"] for pair in pairs], branches, where="pair")

    def total(row: int, side: str) -> float:
        targets = np.array(pairs[row].get(f"{side}_mask") or 1)  # where not every token is a target
        return float((found[row][side]["logp"] * targets).sum())

    return np.array([total(row, "chosen") - total(row, "rejected") for row in range(len(pairs))])


def _right(gaps: np.ndarray) -> np.ndarray:
    return np.sign(gaps) / 2 + 0.5


def _enter(result: Result, name: str, gaps: np.ndarray, keys: list[str]) -> None:
    """Enter the share of gaps above 0; those that are no number are in no figure, and a note says how many."""
    right = _right(np.where(np.isfinite(gaps), gaps, np.nan))
    known = right[~np.isnan(right)]
    if len(known) < len(right):
        result.notes.append(f"{name} is over {len(known)} of {len(right)} pairs; the others hold no number")
    if not len(known):
        result.missing[name] = "no pair holds a number"
        return
    result.values[name] = float(known.mean())
    result.intervals[name] = wilson(float(known.sum()), len(known))
    result.items[name] = _items(right, keys)


def _items(values: np.ndarray, keys: list[str]) -> dict[str, float]:
    """Values [n] by pair, without those that are no number."""
    return {key: value for key, value in zip(keys, values.tolist(), strict=True) if math.isfinite(value)}
