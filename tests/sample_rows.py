"""Rows that several tests of data use, made up or from the public data sets that ``ALIGN_TEST_DATA`` holds."""

from __future__ import annotations

import gzip
import json
import os
from itertools import islice
from pathlib import Path

import pytest

DATA = Path(os.environ.get("ALIGN_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
PAIR = ("chosen", "rejected")


def real(name: str) -> Path:
    """A file of the public data; skips the test where it is absent."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no {path} (set ALIGN_TEST_DATA)")
    return path


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict:
    return {"role": "system", "content": text}


def pair(prompt="The sky is", chosen=" blue.", rejected=" green."):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def hh_rows(count: int) -> list[dict]:
    with gzip.open(real("hh_rlhf/helpful_test.jsonl.gz"), "rt", encoding="utf-8") as lines:
        return [{k: json.loads(line)[k] for k in ("prompt", *PAIR)} for line in islice(lines, count)]


def talk_rows() -> list[dict]:
    """Conversations as TRL takes them: one turn, several, a system message, an answer of two assistant messages."""
    return [
        {"prompt": [user("What is the capital?")], "chosen": [assistant("Paris.")], "rejected": [assistant("Lyon.")]},
        {
            "prompt": [system("Be brief."), user("Hello"), assistant("Hi!"), user("Who wrote it?")],
            "chosen": [assistant("A person who lives in the north.")],
            "rejected": [assistant("A person who lives near the sea, and much more is known.")],
        },
        {"prompt": [user("Twelve apples?")], "chosen": [assistant("Yes.")], "rejected": [assistant("Yes, twelve.")]},
        {
            "prompt": [user("How many?")],
            "chosen": [assistant("Three of them"), assistant(" are green.")],
            "rejected": [assistant("None.")],
        },
    ]


def decoded(tokenizer, row, *names):
    return [tokenizer.decode(row[f"{name}_ids"]) for name in names]
