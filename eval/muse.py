"""MUSE (arXiv 2407.06460) on a model: what it knows of a corpus, recites of it, and betrays of having read it.

Everything is plain text: MUSE's models are not chat models. Questions come behind a few worked examples (``*_icl``).
Settings follow open-unlearning (commit d3d7cf9) and the reference (muse_bench, commit fcd6651) where the two agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from align.data.rows.sources import did_you_mean, load_source
from align.errors import UserError
from align.eval.log import MuseLog, SetLog
from align.eval.membership import TOKEN_READS, attack_scores, gradient_norms, mean_loss
from align.eval.memorization import exact_memorization, extraction_strength
from align.eval.rouge import rouge
from align.eval.texts import encode_pairs, encode_prompts
from align.recipe.sections import Source

if TYPE_CHECKING:
    from align.models.subject import Subject, Values

Row = dict[str, str]

KNOWMEM_TOKENS, VERBMEM_TOKENS = 32, 128
_STOPS = ("\n\n", "\nQuestion", "Question:")
_KNOWMEM = ("forget_qa", "retain_qa", "forget_qa_icl", "retain_qa_icl")
_COLUMNS = {"knowmem": ("question", "answer"), "verbmem": ("prompt", "gt"), "privleak": ("text",)}


@dataclass(frozen=True)
class MuseSets:
    """The rows of MUSE. ``knowmem`` by forget_qa, retain_qa and the worked examples forget_qa_icl, retain_qa_icl;

    ``verbmem`` are the forgotten texts, ``privleak`` texts by forget and holdout; empty where the source has none.
    ``limit``: rows of each set that are asked, where some set has more.
    """

    knowmem: Mapping[str, list[Row]] = field(default_factory=dict)
    verbmem: list[Row] = field(default_factory=list)
    privleak: Mapping[str, list[Row]] = field(default_factory=dict)
    limit: int | None = None


def load_sets(source: str, limit: int | None = None) -> MuseSets:
    """The sets of a Hub id such as ``muse-bench/MUSE-News``, or of a folder with ``knowmem/forget_qa.json`` and so on.

    Raises:
        UserError: where the source, a set or a column is not there.
    """
    knowmem = {split: _read(source, "knowmem", split) for split in _KNOWMEM}
    verbmem = _read(source, "verbmem", "forget")
    privleak = {split: _read(source, "privleak", split) for split in ("forget", "holdout")}
    asked = [rows for split, rows in knowmem.items() if not split.endswith("_icl")]
    if limit is None or all(len(rows) <= limit for rows in (*asked, verbmem, *privleak.values())):
        return MuseSets(knowmem, verbmem, privleak)
    # worked examples are shown, not asked
    knowmem = {split: rows if split.endswith("_icl") else rows[:limit] for split, rows in knowmem.items()}
    return MuseSets(knowmem, verbmem[:limit], {split: rows[:limit] for split, rows in privleak.items()}, limit)


def _read(source: str, subset: str, split: str) -> list[Row]:
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / subset).is_dir():
            near = did_you_mean(subset, [p.name for p in folder.iterdir()])
            raise UserError(f"{source}: no folder {subset}, which should hold {subset}/{split}.json.{near}")
        place = Source(path=str(folder / subset), split=split)
    elif source.count("/") == 1 and not source.startswith((".", "/", "~")):
        place = Source(id=source, subset=subset, split=split)
    else:
        raise UserError(f"{source}: no such folder. Give one with MUSE's files, or a Hub id.")
    rows: list[dict[str, Any]] = list(load_source(place, base=Path()))
    names = _COLUMNS[subset]
    for number, row in enumerate(rows):
        for name in names:
            if not isinstance(row.get(name), str) or not row[name].strip():
                there = ", ".join(sorted(k for k in row if k != "row"))
                raise UserError(
                    f"{source}: {subset}/{split}, row {number} has no text in the column {name!r}; it has: {there}."
                )
    return [{name: row[name] for name in names} for row in rows]


def evaluate(
    subject: Subject,
    sets: MuseSets,
    *,
    reference: Subject | None = None,
    gradnorm: bool = False,
    last_token: Literal["drop", "keep"] = "drop",
    stemmer: bool = True,
) -> MuseLog:
    """Measure a model; items in the order of the rows, the same on every process.

    Args:
        reference: a model that membership scores are compared with (``mia_reference``).
        gradnorm: also ``mia_gradnorm``, at a backward pass a row.
        last_token: MUSE's texts have no end token, yet open-unlearning leaves out their last one from all scores but
            loss and zlib (``drop``); the reference keeps it (``keep``).
        stemmer: whether ROUGE stems words: open-unlearning does, the reference does not.
    """
    rouge((), ())  # a library that is missing is missed now, not after the scoring
    drop = int(last_token == "drop")
    logs: dict[str, SetLog] = {}
    for side in ("forget", "retain"):
        if rows := sets.knowmem.get(f"{side}_qa"):
            shots = few_shot(sets.knowmem.get(f"{side}_qa_icl", ()))
            prompts = [f"{shots}Question: {row['question']}\nAnswer: " for row in rows]
            truths = [row["answer"] for row in rows]
            logs[f"{side}_knowmem"] = _generated(subject, prompts, truths, KNOWMEM_TOKENS, _STOPS, stemmer)
    scores: dict[str, np.ndarray] = {}
    if sets.verbmem:
        prompts, truths = [row["prompt"] for row in sets.verbmem], [row["gt"] for row in sets.verbmem]
        logs["forget_verbmem"] = _generated(subject, prompts, truths, VERBMEM_TOKENS, (), stemmer)
        scores = _memorised(subject, prompts, truths, drop)
    attacks: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if sets.privleak:
        first, second = (
            _attacks(subject, [row["text"] for row in sets.privleak[side]], drop, reference, gradnorm, side)
            for side in ("forget", "holdout")
        )
        attacks = {name: (first[name], second[name]) for name in first}
    return MuseLog(logs, scores, attacks, subject.name, limit=sets.limit)


def few_shot(examples: Sequence[Row]) -> str:
    """Worked examples as blocks of question and answer, a blank line after each."""
    return "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in examples)


def _generated(
    subject: Subject, prompts: list[str], truths: list[str], tokens: int, stop: Sequence[str], stemmer: bool
) -> SetLog:
    texts = subject.generate(encode_prompts(subject.tokenizer, prompts), tokens, stop)
    scores = rouge(truths, texts, stemmer=stemmer)
    return SetLog(generation=texts, ground_truth=truths, input=prompts, **scores)


def _memorised(subject: Subject, prompts: list[str], truths: list[str], drop: int) -> dict[str, np.ndarray]:
    """Exact memorisation and extraction strength of the true continuations, of at most 128 tokens each."""
    # MUSE cut its texts between tokens, where decoding the second part loses its space
    joined = [truth if prompt[-1:].isspace() or truth[:1].isspace() else f" {truth}"
              for prompt, truth in zip(prompts, truths, strict=True)]  # fmt: skip
    values = _score(subject, prompts, joined, "verbmem/forget row", VERBMEM_TOKENS)[0]
    hits = [v["argmax_hit"][: len(v["argmax_hit"]) - drop] for v in values]
    return {
        "exact_memorization": np.array([exact_memorization(h) for h in hits]),
        "extraction_strength": np.array([extraction_strength(h) for h in hits]),
        "extraction_strength_corrected": np.array([extraction_strength(h, corrected=True) for h in hits]),
    }


def _attacks(
    subject: Subject, texts: list[str], drop: int, reference: Subject | None, gradnorm: bool, side: str
) -> dict[str, np.ndarray]:
    """Membership scores [n] of whole texts by name."""
    where = f"privleak/{side} row"
    values, pairs = _score(subject, [""] * len(texts), texts, where)
    kept = [len(ids) - drop for _, ids in pairs]
    rows = [attack_scores(v, text, k) for v, text, k in zip(values, texts, kept, strict=True)]
    scores = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    if gradnorm:
        scores["mia_gradnorm"] = gradient_norms(subject, [p for p, _ in pairs], [ids for _, ids in pairs], kept)
    if reference is not None:
        theirs = _score(reference, [""] * len(texts), texts, where)[0]
        scores["mia_reference"] = scores["mia_loss"] - np.array([mean_loss(v) for v in theirs])
    return scores


def _score(
    subject: Subject, prompts: list[str], texts: list[str], where: str, longest: int | None = None
) -> tuple[list[dict[str, np.ndarray]], list[tuple[list[int], list[int]]]]:
    """What ``TOKEN_READS`` see of texts, without an end token, and the token ids of prompts and texts.

    A text without a prompt begins behind its first token (the beginning-of-text token, where there is one).
    """
    closed = encode_pairs(subject.tokenizer, list(prompts), list(texts), where=where)
    pairs = [(prompt, ids[:-1][:longest]) for prompt, ids in closed]
    for row, (_, ids) in enumerate(pairs):
        if not ids:
            raise UserError(f"{where} {row} has one token only: there is nothing to score.")
    found: list[Values] = subject.score(
        [p for p, _ in pairs], [{"text": ids} for _, ids in pairs], TOKEN_READS, where=where
    )
    return [named["text"] for named in found], pairs
