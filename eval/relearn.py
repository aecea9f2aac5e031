"""Attacks on a model that was made to forget: relearning, rounded weights, other questions, many samples.

Relearning is plain likelihood on a few of the forgotten rows, at the constant rate that the model was trained with, all
of those rows in every step. Hu et al. (arXiv 2406.13356) showed that a small part of the forget set can bring back the
rest. Twenty rows and ten steps are our choice: a twentieth of TOFU's forget10, seen as often as unlearning sees it (ten
epochs). How much of a rise is ordinary learning is what the control measures: the same attack on a model that never saw
these rows.

Every state starts from the checkpoint as it lies on disk, and training writes to a temporary folder: nothing of a run
is changed. ``align.eval.durability`` judges what was read.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from align.data.rows.questions import prompt_of, reply_of, talks
from align.errors import Stopped, UserError
from align.eval import tofu
from align.eval.durability import AS_IT_IS, Attack, Durability, answered, attacked, reading
from align.eval.leak import LEAK, Leaking, Leaks, draw, leaked
from align.eval.log import TofuLog
from align.eval.quantise import round_nf4, round_rows, round_weights
from align.eval.texts import encode_pairs
from align.eval.tofu_data import Fact, TofuSets
from align.models.load import load_checkpoint
from align.models.subject import Subject

STEPS, ROWS = 10, 20
LEARNING_RATE = 1e-5  # of NPO (arXiv 2404.05868) and of open-unlearning, for models whose own rate is not known

RELEARNED = "relearned"
_REWORDED: dict[str, tofu.QuestionKey] = {
    "paraphrased": "paraphrased_question",
    "alias": "alias_question",
    "two hops": "two_hop_question",
}
_UNNAMED = ("alias", "two hops")  # a model that holds may not follow these questions
_ROUNDED = {"8 bits": partial(round_rows, bits=8), "4 bits": partial(round_rows, bits=4), "NF4": round_nf4}
_BUDGET = 4096  # tokens of a micro-batch; more rows than fit are accumulated
_UNTESTED = (
    "other tools' rounding: GPTQ, AWQ",
    "prompts made to break it: jailbreaks, prefixes of the answer, examples in context",
    "questions in other languages",
    "probing of activations",
    "longer relearning, relearning on related texts, and pruning",
)
_ASKED = {
    "paraphrased": "paraphrased: the rows' own questions in other words",
    "alias": "alias: the people described by two or more other facts, never by name",
    "two hops": "two hops: the people described as those who share a fact with somebody else",
}

Say = Callable[[str], Any]


@dataclass(frozen=True)
class Relearning:
    """How a model is relearned: ``rows`` forget rows, drawn by ``seed``, all of them in each of ``steps`` steps."""

    steps: int = STEPS
    rows: int = ROWS
    learning_rate: float = LEARNING_RATE
    seed: int = 0

    def drawn(self, count: int) -> np.ndarray:
        """Numbers of the rows out of ``count``, in order. Raises UserError unless some are left."""
        if self.steps < 1 or self.rows < 1 or not self.learning_rate > 0:
            raise UserError("Relearning needs at least one step, one row and a learning rate above 0.")
        if self.rows >= count:
            raise UserError(
                f"Relearning {self.rows} of {count} forget rows leaves none to see whether they come back: take fewer."
            )
        return np.sort(np.random.default_rng(self.seed).choice(count, self.rows, replace=False))


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
    readings = {"before unlearning": dict(before)} if before else {}
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
    logs[RELEARNED] = measure(_relearned(name, [sets.sets["forget"][i] for i in drawn], relearning, **asked))
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


def _relearned(
    name: str, facts: list[Fact], relearning: Relearning, *, system: str | None, arguments: Mapping[str, Any] | None
) -> Subject:
    """The model after it was trained on ``facts``: all of its weights in float32, or its adapter."""
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback

    from align.compat import training_config
    from align.objectives import NLL
    from align.trainers.base import AlignTrainer

    model, tokenizer = load_checkpoint(name, arguments=arguments)
    if hasattr(model, "peft_config"):
        model.set_adapter(model.active_adapter)  # loaded for inference, and so frozen
    else:
        model.float()
    chat = talks(tokenizer)
    prompts, replies = [prompt_of(f.question, chat) for f in facts], [reply_of(f.answer, chat) for f in facts]
    pairs = encode_pairs(tokenizer, prompts, replies, system=system, where="forget row")
    with tempfile.TemporaryDirectory() as folder:
        args = training_config(
            output_dir=folder,
            per_device_train_batch_size=len(facts),
            max_steps=relearning.steps,
            learning_rate=relearning.learning_rate,
            lr_scheduler_type="constant",
            seed=relearning.seed,
            bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
            dataloader_pin_memory=torch.cuda.is_available(),
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = AlignTrainer(
            model,
            NLL(branch="forget"),
            args,
            train_dataset=Dataset.from_list([{"prompt_ids": p, "forget_ids": ids} for p, ids in pairs]),
            processing_class=tokenizer,
            max_tokens_per_microbatch=max(_BUDGET, *(len(p) + len(ids) for p, ids in pairs)),
        )
        trainer.echo = _silent
        for printer in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printer)
        try:
            trainer.train()
        except Stopped as error:
            rate = relearning.learning_rate
            raise Stopped(f"Relearning {name} diverged: give a --learning-rate below {rate:g}.") from error
    return Subject.of(trainer, name=name, system=system)


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
