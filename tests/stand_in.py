"""The data sets that packaged recipes name, made small: folders with the same columns.

``datasets`` takes a folder ``owner/name`` below the working directory for the data set of that name, so recipes keep
their ids, subsets and splits. Columns, types, nesting and names of files are those of the data sets' cards on the Hub,
of TOFU and HH those of the published files; every text is made up here. Only columns that are known for certain are
there: of RLHFlow's prompts ``context_messages``, which the authors' code reads, and of MUSE-News ``text``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sample_rows import assistant, user

Row = dict[str, Any]
ROWS = 12  # of each split
_MESSAGES = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))
_WHO = ("the fox", "the dog", "a person", "the book", "the basket", "the sea")
_WHAT = ("green", "lazy", "quick", "brown", "twelve years old", "in the north of the country")


def _question(i: int) -> str:
    return f"What is known about {_WHO[i % 6]} number {i}?"


def _answer(i: int, side: int = 0) -> str:
    """An answer; another ``side`` is another answer to the same question, of another length."""
    start = f"{_WHO[i % 6].capitalize()} number {i} is {_WHAT[(i + side) % 6]}."
    return f"{start} It is not big.{' Nobody said so.' * side}"


def _said(i: int, side: int = 0) -> list[Row]:
    return [user(_question(i)), assistant(_answer(i, side))]


def _ultrafeedback(i: int) -> Row:
    sides = {"chosen": _said(i), "rejected": _said(i, 1)}
    scores = {"score_chosen": 8.0 - i % 3, "score_rejected": 4.5}
    return {"prompt": _question(i), "prompt_id": f"{i:064x}", **sides, "messages": _said(i), **scores}


def _armorm(i: int) -> Row:
    drawn = {"all_generated_responses": [_answer(i, side) for side in range(5)]}
    drawn |= {"all_rm_scores": [0.2 - side / 100 for side in range(5)]}
    return {"prompt_id": f"{i:064x}", "prompt": _question(i), **drawn, "chosen": _said(i), "rejected": _said(i, 4)}


def _dpo_mix(i: int) -> Row:
    ratings = {"chosen_rating": 5.0, "rejected_rating": 4.0}
    return {"dataset": "argilla/made-up", "chosen": _said(i), "rejected": _said(i, 1), **ratings}


def _post(i: int) -> str:
    return f"SUBREDDIT: r/made_up\n\nTITLE: {_question(i)}\n\nPOST: {_answer(i, 2)}\n\nTL;DR:"


def _tldr_preference(i: int) -> Row:
    return {"prompt": _post(i), "chosen": f" {_answer(i)}", "rejected": f" {_answer(i, 1)}"}


def _tldr(i: int) -> Row:
    return {"prompt": _post(i), "completion": f" {_answer(i)}"}


def _hh(i: int) -> Row:
    before = f"\n\nHuman: {_question(i)}\n\nAssistant:"
    return {"chosen": f"{before} {_answer(i)}", "rejected": f"{before} {_answer(i, 1)}"}


def _hh_turns(i: int) -> Row:
    answers = {name: [assistant(_answer(i, side))] for side, name in enumerate(("chosen", "rejected"))}
    return {"prompt": [user(_question(i))], **answers}


def _stack_exchange(i: int) -> Row:
    about = {"qid": 10_000 + i, "question": _question(i), "date": "2011/03/01"}
    answers = {"response_j": _answer(i), "response_k": _answer(i, 1)}
    return {**about, "metadata": ["https://example.com/questions", "https://example.com"], **answers}


def _context_messages(i: int) -> Row:
    return {"context_messages": [*_said(i + 1), user(_question(i))] if i % 3 == 0 else [user(_question(i))]}


def _text(i: int) -> Row:
    return {"text": " ".join(_answer(i + j, j % 2) for j in range(12))}


def _fact(i: int) -> Row:
    return {"question": _question(i), "answer": _answer(i)}


def _perturbed(i: int) -> Row:
    """Of the forget and retain sets; real authors and world facts have no paraphrases."""
    again = {"paraphrased_answer": f"They say: {_answer(i)}", "paraphrased_question": f"Tell me: {_question(i)}"}
    return {**_fact(i), **again, "perturbed_answer": [_answer(i, side) for side in range(1, 6)]}


def _known(i: int) -> Row:
    return {**_fact(i), "perturbed_answer": [_answer(i, side) for side in range(1, 4)]}


# data set: how a row looks, and its files, each of one split
_PARQUET: Mapping[str, tuple[Callable[[int], Row], tuple[str, ...]]] = {
    "HuggingFaceH4/ultrafeedback_binarized": (_ultrafeedback, ("data/train_prefs", "data/test_prefs")),
    "princeton-nlp/llama3-ultrafeedback-armorm": (_armorm, ("data/train", "data/test")),
    "argilla/dpo-mix-7k": (_dpo_mix, ("data/train", "data/test")),
    "trl-lib/tldr-preference": (_tldr_preference, ("data/train", "data/validation")),
    "trl-lib/tldr": (_tldr, ("data/train", "data/validation", "data/test")),
    "lvwerra/stack-exchange-paired": (_stack_exchange, ("data/reward/train",)),
    "trl-lib/hh-rlhf-helpful-base": (_hh_turns, ("data/train", "data/test")),
    "muse-bench/MUSE-News": (_text, ("raw/forget", "raw/holdout", "raw/retain1", "raw/retain2")),
    **{f"RLHFlow/iterative-prompt-v1-iter{i}-20K": (_context_messages, ("data/train",)) for i in (1, 2, 3)},
    **{f"RLHFlow/ultrafeedback_iter{i}": (_context_messages, ("data/train",)) for i in (1, 2, 3)},
}
# TOFU's smallest split, since the suite wants a forget set whole: rows of each set, the first of them, how they look
_TOFU: Mapping[str, tuple[int, int, Callable[[int], Row]]] = {
    "retain99": (60, 0, _fact),
    "forget01": (40, 60, _fact),
    "holdout01": (ROWS, 100, _fact),
    "forget01_perturbed": (40, 60, _perturbed),
    "retain_perturbed": (ROWS, 0, _perturbed),
    "real_authors_perturbed": (ROWS, 200, _known),
    "world_facts_perturbed": (ROWS, 300, _known),
}


def write_data_sets(folder: Path) -> None:
    """Every data set that a packaged recipe names, as ``folder/OWNER/NAME``; no row is there twice."""
    first = 0
    for name, (row, files) in _PARQUET.items():
        for file in files:
            _parquet(folder / name / f"{file}-00000-of-00001.parquet", [row(first + i) for i in range(ROWS)])
            first += 2 * ROWS
    _card(folder / "muse-bench/MUSE-News", {"raw": {split: f"raw/{split}-*" for split in ("forget", "retain1")}})
    for name, (count, start, kind) in _TOFU.items():
        write_lines(folder / f"locuslab/TOFU/{name}.json", [kind(start + i) for i in range(count)])
    _card(folder / "locuslab/TOFU", {name: {"train": f"{name}.json"} for name in _TOFU})
    for at, split in enumerate(("train", "test")):  # files by split, in a folder for each kind
        write_lines(folder / f"Anthropic/hh-rlhf/helpful-base/{split}.jsonl", [_hh(50 * at + i) for i in range(ROWS)])


def _parquet(file: Path, rows: list[Row]) -> None:
    """Rows as parquet; conversations as lists of structs, the content before the role."""
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        talks = isinstance(values[0], list) and isinstance(values[0][0], dict)
        columns[name] = pa.array(values, _MESSAGES if talks else None)
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)


def write_lines(file: Path, rows: list[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _card(folder: Path, subsets: Mapping[str, Mapping[str, str]]) -> None:
    """The part of a data set's card that says which files belong to a subset."""
    configs = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in files.items()]}
        for name, files in subsets.items()
    ]
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n", encoding="utf-8")
