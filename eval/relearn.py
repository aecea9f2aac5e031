"""Attacks on a model that was made to forget: relearning, rounded weights, other questions, many samples.

Every state starts from the checkpoint as it lies on disk, and nothing of a run is changed. How much of a rise any model
would show is what the control measures: the same attacks on a model that never saw the rows. ``align.eval.durability``
judges what was read.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from align.errors import UserError
from align.eval import tofu
from align.eval.durability import AS_IT_IS, BEFORE, Attack, Durability, answered, attacked, reading
from align.eval.leak import LEAK, Leaking, Leaks, draw, leaked
from align.eval.log import TofuLog
from align.eval.quantise import round_nf4, round_rows, round_weights
from align.eval.relearning import Relearning, relearned
from align.eval.tofu_data import TofuSets
from align.models.subject import Subject

RELEARNED = "relearned"
_REWORDED: dict[str, tofu.QuestionKey] = {
    "paraphrased": "paraphrased_question",
    "alias": "alias_question",
    "two hops": "two_hop_question",
}
_UNNAMED = ("alias", "two hops")  # a model that holds may not follow these questions
_ROUNDED = {"8 bits": partial(round_rows, bits=8), "4 bits": partial(round_rows, bits=4), "NF4": round_nf4}
_UNTESTED = (
    "other tools' rounding: GPTQ, AWQ",
    "prompts made to break it: jailbreaks, prefixes of the answer, examples in context",
    "questions in other languages",
    "probing of activations",
    "longer relearning, relearning on related texts, and pruning",
)
_ASKED = {
    "paraphrased": "paraphrased: the rows' own questions in other words",
    "alias": "alias: the people described by other facts, never by name",
    "two hops": "two hops: the people described as those who share a fact with somebody else",
}

Say = Callable[[str], Any]


def relearn(
    model: str,
    sets: TofuSets,
    *,
    relearning: Relearning | None = None,
    leaking: Leaking | None = None,
    target: TofuLog | None = None,
    control: str | None = None,
    system: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    before: Mapping[str, float] | None = None,
    say: Say = print,
) -> Durability:
    """Attack a model and read a suite after each attack.

    Args:
        model: a run, a folder or a Hub id.
        sets: what it is measured on; the relearned rows come from its forget set.
        leaking: how often each question is asked for leak@k, and what is a leak.
        target: log of a model that never saw the forget rows, or None. A ``control`` takes its place.
        control: such a model, which is attacked in the same way.
        system: system message of every conversation, in training and in evaluation.
        arguments: of chat templates; they win over those that the models were trained with.
        before: the suite's reading before the model was made to forget, to stand beside the others.
        say: takes a sentence for people.

    Raises:
        UserError: where a model, the rows or the settings do not allow it.
        Stopped: where relearning diverges.
    """
    relearning = relearning or Relearning()
    forget = sets.sets["forget"]
    drawn = relearning.drawn(len(forget))
    _check(sets, target)
    leaking = leaking or Leaking()
    asked = {"system": system, "arguments": arguments}
    measure = partial(_states, sets=sets, drawn=drawn, relearning=relearning, leaking=leaking, asked=asked, say=say)
    states, rounding, leaks = measure(model)
    beside, _, theirs = measure(control) if control is not None else ({}, "", None)
    if (sets.rows == "legacy300" or sets.limit is not None) and target is not None:
        target = target.first(len(forget))
    target = beside.get(AS_IT_IS, target)
    # without a control the retain model was not asked in other words
    known = {name: beside.get(name, target if name not in _REWORDED else None) for name in states}
    unseen = np.setdiff1d(np.arange(len(forget)), drawn)
    often = () if leaks is None else (leaked(leaks, theirs),)
    attacks = (*(_judged(name, states, beside, known, unseen) for name in states if name != AS_IT_IS), *often)
    readings = {BEFORE: dict(before)} if before else {}
    if target is not None and not beside:
        readings["retain model"] = reading(target, None)
    return Durability(
        model,
        {**_settings(sets, drawn, relearning, target), "leak": leaking.settings(leaks, theirs)},
        {**readings, **_readings(states, known, unseen)},
        _readings(beside, dict.fromkeys(beside), unseen),
        attacks,
        (
            *_tested(relearning, rounding),
            *(_ASKED[name] for name in states if name in _REWORDED),
            *leaking.tested(relearning.seed),
        ),
        (
            *_UNTESTED,
            *(f"{name}: the rows lack the column {key}" for name, key in _REWORDED.items() if name not in states),
            *leaking.untested,
        ),
        (*sets.notes, *_notes(states[AS_IT_IS], target, attacks, controlled=bool(beside))),
        sets.limit,
    )


# ---- the model in each of its states


def _states(
    name: str,
    *,
    sets: TofuSets,
    drawn: np.ndarray,
    relearning: Relearning,
    leaking: Leaking,
    asked: dict[str, Any],
    say: Say,
) -> tuple[dict[str, TofuLog], str, Leaks | None]:
    """Logs by state, a sentence about the rounding, and what leaked of the model as it is, if samples were drawn.

    ``asked`` are system message and template arguments.
    """
    measure = partial(tofu.evaluate, sets=sets, mia=False)
    say(f"{name}: measuring it as it is")
    subject = Subject.load(name, **asked, echo=say)
    logs = {AS_IT_IS: measure(subject)}
    reworded: dict[str, TofuLog] = {}
    for state, column in _REWORDED.items():
        if all(getattr(fact, column) for key in ("forget", "retain") for fact in sets.sets[key]):
            say(f"{name}: asking in other words ({state})")
            reworded[state] = measure(subject, question_key=column)
    leaks = None
    if leaking.count:
        say(f"{name}: asking each forgotten question {leaking.count} times")
        leaks = draw(subject, sets.sets["forget"], sets.new_tokens, leaking, relearning.seed, say)
    del subject
    say(f"{name}: relearning {len(drawn)} rows in {relearning.steps} steps")
    logs[RELEARNED] = measure(relearned(name, [sets.sets["forget"][i] for i in drawn], relearning, **asked))
    rounding = ""
    for state, how in _ROUNDED.items():
        gc.collect()  # trainers hold themselves in cycles, and with them a model
        say(f"{name}: rounding its weights to {state}")
        subject = Subject.load(name, **asked, echo=_silent)
        if (merge := getattr(subject.model, "merge_adapter", None)) is not None:
            merge()
        done = round_weights(subject.model, how)
        rounding = f"{done.layers} linear layers, {done.share:.1%} of the weights outside the embeddings"
        logs[state] = measure(subject)
        del subject
    return {**logs, **reworded}, rounding, leaks


# ---- what is said about it


def _check(sets: TofuSets, target: TofuLog | None) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("align eval relearn trains in one process: start it without a launcher.")
    if target is None:
        return
    count, there = len(sets.sets["forget"]), len(target.sets["forget"]) if "forget" in target.sets else 0
    if there < count or (there > count and sets.rows == "all" and sets.limit is None):
        raise UserError(
            f"The retain model's log has {there} forget rows and {sets.split} is measured on {count}: name the log of "
            "the same split and rows."
        )


def _judged(
    name: str,
    states: Mapping[str, TofuLog],
    beside: Mapping[str, TofuLog],
    known: Mapping[str, TofuLog | None],
    unseen: np.ndarray,
) -> Attack:
    attack = attacked(
        name,
        states[AS_IT_IS],
        states[name],
        control=(beside[AS_IT_IS], beside[name]) if beside else None,
        retain=known[name],
        rows=unseen if name == RELEARNED else None,
    )
    followed = (answered(states[AS_IT_IS]), answered(states[name])) if name in _UNNAMED else None
    return replace(attack, retained=followed)


def _settings(sets: TofuSets, drawn: np.ndarray, relearning: Relearning, target: TofuLog | None) -> dict[str, Any]:
    return {
        "split": sets.split,
        "rows": sets.rows,
        "forget_rows": len(sets.sets["forget"]),
        "retain": target.name if target else None,
        "steps": relearning.steps,
        "relearned_rows": drawn.tolist(),
        "learning_rate": relearning.learning_rate,
        "seed": relearning.seed,
    }


def _readings(
    states: Mapping[str, TofuLog], known: Mapping[str, TofuLog | None], unseen: np.ndarray
) -> dict[str, dict[str, float]]:
    """Lines of the table; the relearned model once more on the rows that it was not shown."""
    out: dict[str, dict[str, float]] = {}
    for name, log in states.items():
        out[name] = reading(log, known[name])
        if name == RELEARNED:
            out[f"{name}, other rows"] = reading(log, known[name], unseen)
    return out


def _tested(relearning: Relearning, rounding: str) -> tuple[str, ...]:
    how = f"{relearning.steps} steps of likelihood on {relearning.rows} forget rows drawn with seed {relearning.seed}"
    return (
        f"relearning: {how}, learning rate {relearning.learning_rate:g}, judged on the other rows",
        f"8 and 4 bits: weights rounded to nearest, a scale for each output channel; {rounding}",
        "NF4: the same layers in the 4 bits of bitsandbytes and QLoRA, a scale for 64 weights, not quantised itself",
    )


def _notes(log: TofuLog, target: TofuLog | None, attacks: tuple[Attack, ...], *, controlled: bool) -> list[str]:
    notes = []
    if target is None:
        notes.append("no retain model: nothing says how much of a rise any model would show")
    else:
        gap = attacked(AS_IT_IS, target, log).rise["forget_probability"]
        if gap.low > 0:
            text = f"as it is, its P is {gap.value:.3f} [{gap.low:.3f}, {gap.high:.3f}] above the retain model's"
            notes.append(f"{text}: what was not forgotten cannot come back")
    risen = {a.name for a in attacks if a.word in ("rose", "came back")}
    if not controlled and RELEARNED in risen:
        notes.append("rows on one subject teach about each other, in any model: --control says by how much")
    if not controlled and LEAK in risen:
        notes.append("answers are hit by guessing, too, by any model that is asked often: --control says how often")
    return notes


def _silent(_: str) -> None:
    pass
