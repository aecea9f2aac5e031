"""Prepared rows that are kept: the same ids and words as made in one process, and others for whatever changes them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset
from sample_rows import PAIR, pair, talk_rows
from tiny import CHATML, CHATML_MARKED, tiny_tokenizer

from align.data.load import digest
from align.data.rows.sources import from_rows
from align.data.tokens import identity, table, tokenize
from align.data.tokens.arguments import keep_arguments
from align.data.tokens.identity import preparation_key, tokenizer_identity
from align.data.tokens.preparation import Preparation
from align.data.tokens.tokenize import prepare_rows
from align.objectives import KTO
from align.objectives.base import sources_of

FACTS = [{"question": f"Who wrote book {i}?", "answer": f"Person {i}."} for i in range(30)]
PAIRS = [pair(f"Number {i}", " one", " two" if i % 7 else " one") for i in range(30)]
SETTINGS: dict[str, Any] = {"max_length": None, "truncation": "drop", "system": None, "values": ()}


@pytest.fixture(autouse=True)
def everything_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(identity, "WORTH", 0)
    monkeypatch.setattr(table, "_PIECE", 2)
    monkeypatch.setattr(tokenize, "cores", lambda **_: 3)
    return tmp_path / "cache" / "align"


def entries(folder: Path) -> int:
    return len([entry for entry in folder.iterdir() if entry.is_dir()])


def numbered(rows: list[dict]) -> list[dict]:
    return [row | {"row": number + 100} for number, row in enumerate(rows)]


CASES: list[tuple[str, list[dict], tuple[str, ...], bool, dict[str, Any]]] = [
    ("texts", PAIRS, PAIR, False, {}),
    ("cut texts", PAIRS, PAIR, False, {"max_length": 6, "truncation": "keep_start"}),
    ("too long", PAIRS, PAIR, False, {"max_length": 6}),
    ("conversations", talk_rows() * 8, PAIR, True, {"system": "Be kind."}),
    ("questions", FACTS, ("completion",), True, {}),
    ("prompts", FACTS, (), True, {}),
    ("bad rows", [*PAIRS, pair(chosen=None), pair(rejected="")], PAIR, False, {}),
    ("numbers", [row | {"margin": 1.5} for row in PAIRS], PAIR, False, {"values": ("margin",)}),
    ("split", [{"text": "a word and " * (3 + i)} for i in range(30)], ("completion",), False, {}),
    ("labels", PAIRS, sources_of(KTO().branches), False, {"max_length": 8, "truncation": "keep_start"}),
    ("tokens", [{"prompt_ids": [1, i], "completion_ids": [2, 3]} for i in range(30)], ("completion",), False, {}),
]


@pytest.mark.parametrize(("name", "rows", "branches", "chat", "settings"), CASES, ids=[case[0] for case in CASES])
def test_kept_rows_are_those_of_one_process_and_are_said_in_the_same_words(
    name: str,
    rows: list[dict],
    branches: tuple[str, ...],
    chat: bool,
    settings: dict[str, Any],
    everything_is_kept: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "split":
        settings = {"max_length": 9, "truncation": "split"}
    given, tokenizer = from_rows(numbered(rows)), tiny_tokenizer(chat=chat)
    first, found = prepare_rows(given, tokenizer, branches, **settings)
    again, known = prepare_rows(from_rows(numbered(rows)), tiny_tokenizer(chat=chat), branches, **settings)
    assert entries(everything_is_kept) == 1
    monkeypatch.setattr(identity, "WORTH", 1 << 30)
    monkeypatch.setattr(tokenize, "cores", lambda **_: 1)
    alone, account = prepare_rows(given, tokenizer, branches, **settings)
    assert isinstance(alone, Dataset)
    for prepared in (first, again):
        assert isinstance(prepared, Dataset)
        assert prepared.features == alone.features
        assert prepared.to_list() == alone.to_list()
        assert digest(prepared) == digest(alone)
    assert found == known == account
    assert known.summary() == account.summary()
    assert known.to_dict() == account.to_dict()


def test_an_account_is_the_same_after_it_was_written() -> None:
    account = Preparation("f", ("a",), 5, "drop", labels=(1, 2), pieces=3, open_end="\n", unread=["x"])
    account.count([4, 7, 9], ["", "bad", ""], [31, 0, 1], [["u"], [], ["u"]], {"a": [2, 0, 300]})
    account.mismatch_cut.add(4)
    again = Preparation.of_record(account.record())
    assert again == account
    assert again.lengths["a"].counts == {2: 1, 300: 1}
    assert again is not account


def test_a_stage_that_fails_in_a_worker_fails_as_it_would_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any, *_: Any) -> Any:
        raise RuntimeError("the tokenizer broke")

    monkeypatch.setattr(tokenize.Encoder, "__call__", wrong)
    with pytest.raises(RuntimeError, match="the tokenizer broke"):
        prepare_rows(from_rows(PAIRS), tiny_tokenizer(chat=False), PAIR)


# ---- what the name of an entry depends on


def key(rows: list[dict] = PAIRS, tokenizer: Any = None, branches: tuple[str, ...] = PAIR, **changed: Any) -> str:
    name = preparation_key(from_rows(rows), tokenizer or tiny_tokenizer(), branches, SETTINGS | changed)
    assert name is not None
    return name


def with_template(template: str, **arguments: Any) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    keep_arguments(tokenizer, arguments)
    return tokenizer


def with_token(tokenizer: Any) -> Any:
    tokenizer.add_tokens(["<new>"])
    return tokenizer


def other_eos(tokenizer: Any) -> Any:
    tokenizer.eos_token = "<|endoftext|>"
    return tokenizer


def test_every_change_that_can_change_ids_has_a_name_of_its_own() -> None:
    names = [
        key(),
        key([*PAIRS[:-1], PAIRS[-1] | {"chosen": " onE"}]),
        key(PAIRS[::-1]),
        key(branches=("chosen",)),
        key(max_length=512),
        key(truncation="keep_end", max_length=512),
        key(system="Be brief."),
        key(values=("margin",)),
        key(tokenizer=tiny_tokenizer(vocab=399)),
        key(tokenizer=with_token(tiny_tokenizer())),
        key(tokenizer=other_eos(tiny_tokenizer())),
        key(tokenizer=tiny_tokenizer(bos=True)),
        key(tokenizer=with_template(CHATML + " ")),
        key(tokenizer=with_template(CHATML_MARKED)),
        key(tokenizer=with_template(CHATML, enable_thinking=False)),
    ]
    assert len(set(names)) == len(names)


def test_what_changes_no_ids_changes_no_name() -> None:
    used = tiny_tokenizer()
    used(["a b"], padding=True, truncation=True, max_length=1)
    named = tiny_tokenizer()
    named.name_or_path = "/elsewhere"
    dated = with_template(CHATML, strftime_now="2024-07-26")
    assert key() == key(tokenizer=used) == key(tokenizer=named) == key(tokenizer=dated)


def test_a_date_counts_as_the_template_writes_it() -> None:
    asks = "{{ strftime_now('%d %b') }}" + CHATML
    morning, evening, next_day = (
        key(tokenizer=with_template(asks, strftime_now=date))
        for date in ("2024-07-26T08:00:00", "2024-07-26T20:00:00", "2024-07-27")
    )
    assert morning == evening != next_day


def test_code_and_versions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from align.data.rows import cache

    before, real = key(), cache.installed
    for name in ("transformers", "tokenizers", "Jinja2", "align-llm"):
        cache._code.cache_clear()
        monkeypatch.setattr(cache, "installed", lambda asked, name=name: "0" if asked == name else real(asked))
        assert key() != before
    monkeypatch.setattr(cache, "installed", real)
    cache._code.cache_clear()
    assert key() == before


def test_a_slow_tokenizer_and_few_rows_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = copy.copy(tiny_tokenizer())
    monkeypatch.setattr(type(slow), "is_fast", property(lambda _: False))
    assert tokenizer_identity(slow) is None
    assert preparation_key(from_rows(PAIRS), slow, PAIR, SETTINGS) is None
    monkeypatch.undo()
    assert preparation_key(from_rows(PAIRS), tiny_tokenizer(), PAIR, SETTINGS) is None
