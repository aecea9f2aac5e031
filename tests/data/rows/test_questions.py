"""Questions and their answers in one form, with one answer and with two."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset
from sample_rows import assistant, user
from tiny import tiny_tokenizer

from align.data.rows.questions import asked
from align.data.rows.sources import load_source
from align.recipe.sections import Source

PAIR = {"question": "Who is it?", "chosen": "Anna.", "rejected": "Nobody."}


def put(row: dict, branches: tuple[str, ...], chat: bool) -> dict:
    return asked(Dataset.from_list([row]), tiny_tokenizer(chat=chat), branches)[0]


def test_a_question_with_two_answers_is_put_as_one_with_one() -> None:
    turns = put(PAIR, ("chosen", "rejected"), chat=True)
    assert turns == {
        "prompt": [user("Who is it?")],
        "chosen": [assistant("Anna.")],
        "rejected": [assistant("Nobody.")],
    }
    text = put({**PAIR, "date": "today"}, ("chosen", "rejected"), chat=False)
    assert text == {
        "prompt": "Question: Who is it?\nAnswer:",
        "chosen": " Anna.",
        "rejected": " Nobody.",
        "date": "today",
    }
    one = put({"question": "Who is it?", "answer": "Anna."}, ("completion",), chat=False)
    assert one == {"prompt": text["prompt"], "completion": text["chosen"]}


@pytest.mark.parametrize(
    "row",
    [
        {**PAIR, "prompt": "Who:"},
        {"question": "Who?", "chosen": [user("Who?"), assistant("A")], "rejected": [user("Who?"), assistant("B")]},
        {"question": "Who?", "answer": "Anna."},
    ],
    ids=["has a prompt", "conversations", "one answer"],
)
def test_other_rows_stay_as_they_are_for_an_objective_on_pairs(row: dict) -> None:
    assert put(row, ("chosen", "rejected"), chat=True) == row


def test_renamed_columns_of_a_file_do_as_well(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"question": "Who is it?", "response_j": "Anna.", "response_k": "Nobody."}\n')
    source = Source(path=str(file), columns={"chosen": "response_j", "rejected": "response_k"})
    row = asked(load_source(source, base=tmp_path), tiny_tokenizer(chat=False), ("chosen", "rejected"))[0]
    assert row["prompt"] + row["chosen"] == "Question: Who is it?\nAnswer: Anna."
