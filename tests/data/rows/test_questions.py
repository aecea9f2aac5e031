"""Questions and their answers as prompts and completions."""

from __future__ import annotations

from sample_rows import PAIR, assistant, user
from tiny import tiny_tokenizer

from align.data.rows.questions import asked
from align.data.rows.sources import from_rows

ALPACA = [
    {"instruction": "Translate.", "input": "The house", "output": "Haus"},
    {"instruction": "Say a word.", "input": "", "output": "Word"},
    {"instruction": None, "input": "x", "output": "y"},
]


def put(rows: list[dict], chat: bool, branches: tuple[str, ...] = ("completion",)) -> list[dict]:
    return list(asked(from_rows(rows), tiny_tokenizer(chat=chat), branches))


def test_an_instruction_stands_above_its_input():
    assert put(ALPACA, chat=True) == [
        {"prompt": [user("Translate.\n\nThe house")], "completion": [assistant("Haus")]},
        {"prompt": [user("Say a word.")], "completion": [assistant("Word")]},
        {"prompt": None, "completion": [assistant("y")]},
    ]
    assert put(ALPACA, chat=False)[0] == {
        "prompt": "Question: Translate.\n\nThe house\nAnswer:",
        "completion": " Haus",
    }


def test_a_question_with_two_answers_and_a_column_called_input():
    rows = [{"question": "Who?", "answer": "Ann", "alternate": "Nobody", "input": "kept"}]
    assert put(rows, True, ("completion", "alternate")) == [
        {
            "prompt": [user("Who?")],
            "completion": [assistant("Ann")],
            "alternate": [assistant("Nobody")],
            "input": "kept",
        }
    ]


def test_rows_that_are_something_else_stay_as_they_are():
    named = [{"prompt": "Say", "instruction": "a", "output": "b"}]
    assert put(named, True) == named
    assert put(ALPACA, True, PAIR) == ALPACA
