"""TOFU on a model: every answer scored, every question answered, and all of it in one log.

Question and answers are put to the model as in training (``align.data.rows.questions``). All answers to a question
share its prompt, so a question with one right answer, a paraphrase and five wrong ones is computed once and not seven
times.
Losses include the end token; exact memorisation, extraction strength, min-k, min-k++ and gradient norms leave it out,
as open-unlearning does (commit d3d7cf9).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from align.data.rows.questions import prompt_of, reply_of, talks
from align.engine.reads import LogProb, Read
from align.errors import UserError
from align.eval.log import SetLog, TofuLog
from align.eval.membership import TOKEN_READS, attack_scores, gradient_norms, mean_loss
from align.eval.memorization import exact_memorization, extraction_strength
from align.eval.rouge import rouge
from align.eval.texts import encode_pairs, encode_prompts
from align.eval.tofu_data import Fact, TofuSets

if TYPE_CHECKING:
    from align.models.subject import Subject

QuestionKey = Literal["question", "paraphrased_question", "alias_question", "two_hop_question"]
_CALLED = {"ra": "real author", "wf": "world fact"}


@dataclass(frozen=True)
class Answer:
    """One answer under a model: its token ids, and what was read of each of them, [T]."""

    prompt: list[int]
    ids: list[int]
    values: dict[str, np.ndarray]

    def kept(self, ends: Collection[int]) -> int:
        """Tokens of the answer itself: those before the end token, or all but the last where there is no such token."""
        return next((place for place, token in enumerate(self.ids) if token in ends), len(self.ids) - 1)


def evaluate(
    subject: Subject,
    sets: TofuSets,
    *,
    mia: bool = True,
    generate: bool = True,
    reference: Subject | None = None,
    question_key: QuestionKey = "question",
    gradnorm: bool = False,
) -> TofuLog:
    """Measure a model; the log has the items in the order of the rows and is the same on every process.

    Args:
        mia: also score membership of the forget rows against the held-out ones.
        generate: also let the model answer, greedily, at most ``sets.new_tokens`` tokens, for ROUGE.
        reference: a model that membership scores are compared with (``mia_reference``).
        question_key: ``paraphrased_question`` asks the sets that have one in other words, the others ask without the
            name; see ``Fact``.
        gradnorm: also ``mia_gradnorm``, at a backward pass a row.

    Raises:
        UserError: where a row cannot be scored or lacks the question asked for.
    """
    if generate:
        rouge((), ())  # a library that is missing is missed now, not after the scoring
    asked = {
        name: [_question(f, question_key, name, i) for i, f in enumerate(facts)] for name, facts in sets.sets.items()
    }
    logs = {name: _losses(subject, name, asked[name], facts) for name, facts in sets.sets.items()}
    if generate:
        logs = _with_generations(subject, asked, sets, logs)
    forget = sets.sets["forget"]
    members = _answers(subject, asked["forget"], [[f.answer] for f in forget], TOKEN_READS, "forget row")
    member = [answers[0] for answers in members]
    ends = subject.ends
    hits = [a.values["argmax_hit"][: a.kept(ends)] for a in member]
    scores = {
        "exact_memorization": np.array([exact_memorization(h) for h in hits]),
        "extraction_strength": np.array([extraction_strength(h) for h in hits]),
        "extraction_strength_corrected": np.array([extraction_strength(h, corrected=True) for h in hits]),
    }
    attacks: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if mia and sets.holdout is not None:
        outside = [f.question for f in sets.holdout]
        found = _answers(subject, outside, [[f.answer] for f in sets.holdout], TOKEN_READS, "holdout row")
        sides = ((asked["forget"], forget, member), (outside, sets.holdout, [answers[0] for answers in found]))
        first, second = (_attacks(subject, *side, reference=reference, gradnorm=gradnorm) for side in sides)
        attacks = {name: (first[name], second[name]) for name in first}
    return TofuLog(logs, scores, attacks, subject.name, sets.rows, notes=sets.notes, limit=sets.limit)


def _row(name: str) -> str:
    """What a row of a set is called in messages."""
    return f"{_CALLED.get(name, name)} row"


def _question(fact: Fact, key: QuestionKey, name: str, row: int) -> str:
    asked: str | None = getattr(fact, key)
    if asked is not None:
        return asked
    if name in ("ra", "wf"):  # the background sets have one question each, in TOFU and here
        return fact.question
    raise UserError(f"{_row(name)} {row} has no {key}; evaluate with the question itself.")


def _losses(subject: Subject, name: str, questions: Sequence[str], facts: Sequence[Fact]) -> SetLog:
    """Losses of the answer, of its paraphrase and of the wrong ones."""
    answers = [[f.answer, *([] if f.paraphrased_answer is None else [f.paraphrased_answer]), *f.wrong] for f in facts]
    found = _answers(subject, questions, answers, (LogProb(),), _row(name))
    losses = np.array([[mean_loss(a.values) for a in row] for row in found])
    paraphrased = facts[0].paraphrased_answer is not None
    wrong = losses[:, 1 + paraphrased :]
    return SetLog(
        loss=losses[:, 0],
        para_loss=losses[:, 1] if paraphrased else None,
        wrong_loss=wrong if wrong.size else None,
    )


def _answers(
    subject: Subject,
    questions: Sequence[str],
    answers: Sequence[Sequence[str]],
    reads: tuple[Read, ...],
    where: str,
) -> list[list[Answer]]:
    """Score answers [rows][answers] behind their questions. Those whose prompts are tokenised alike share one."""
    chat = talks(subject.tokenizer)
    places = [(row, k) for row, texts in enumerate(answers) for k in range(len(texts))]
    pairs = encode_pairs(
        subject.tokenizer,
        [prompt_of(questions[row], chat) for row, _ in places],
        [reply_of(answers[row][k], chat) for row, k in places],
        system=subject.system,
        where=f"answer {where}",
    )
    groups: dict[tuple[int, tuple[int, ...]], dict[str, list[int]]] = {}
    for (row, k), (prompt, ids) in zip(places, pairs, strict=True):
        groups.setdefault((row, tuple(prompt)), {})[str(k)] = ids
    # the first group of each row first, so that items are numbered as rows are
    first = {row: key for key in reversed(groups) for row in (key[0],)}
    keys = [first[row] for row in sorted(first)] + [key for key in groups if first[key[0]] != key]
    values = subject.score([key[1] for key in keys], [groups[key] for key in keys], reads, where=where)
    found: dict[tuple[int, str], Answer] = {}
    for key, named in zip(keys, values, strict=True):
        for name, read in named.items():
            found[key[0], name] = Answer(list(key[1]), groups[key][name], read)
    return [[found[row, str(k)] for k in range(len(texts))] for row, texts in enumerate(answers)]


def _attacks(
    subject: Subject,
    questions: Sequence[str],
    facts: Sequence[Fact],
    answers: Sequence[Answer],
    *,
    reference: Subject | None,
    gradnorm: bool,
) -> dict[str, np.ndarray]:
    """Membership scores [n] by name."""
    kept = [a.kept(subject.ends) for a in answers]
    rows = [attack_scores(a.values, f.answer, k) for a, f, k in zip(answers, facts, kept, strict=True)]
    scores = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    if gradnorm:
        scores["mia_gradnorm"] = gradient_norms(subject, [a.prompt for a in answers], [a.ids for a in answers], kept)
    if reference is not None:
        theirs = _answers(reference, questions, [[f.answer] for f in facts], (LogProb(),), "reference row")
        scores["mia_reference"] = scores["mia_loss"] - np.array([mean_loss(row[0].values) for row in theirs])
    return scores


def _with_generations(
    subject: Subject, asked: dict[str, list[str]], sets: TofuSets, logs: dict[str, SetLog]
) -> dict[str, SetLog]:
    """The logs with what the model answers to every question, and its ROUGE against the answer."""
    chat = talks(subject.tokenizer)
    prompts: list[list[int]] = []
    for name, questions in asked.items():
        texts = [prompt_of(question, chat) for question in questions]
        prompts += encode_prompts(subject.tokenizer, texts, system=subject.system, where=_row(name))
    answers = subject.generate(prompts, sets.new_tokens)
    out: dict[str, SetLog] = {}
    start = 0
    for name, facts in sets.sets.items():
        generated = answers[start : start + len(facts)]
        inputs = [subject.tokenizer.decode(ids) for ids in prompts[start : start + len(facts)]]
        start += len(facts)
        truths = [fact.answer for fact in facts]
        scores = rouge(truths, generated)
        out[name] = replace(logs[name], generation=generated, ground_truth=truths, input=inputs, **scores)
    return out
