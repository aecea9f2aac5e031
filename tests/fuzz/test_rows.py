"""Files of rows that nobody would write, and chat templates that nobody should."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from exploring import cases, explore
from hypothesis import strategies as st
from material import changed, damaged, json_text
from sample_rows import assistant, user
from small_run import small_world
from tiny import tiny_tokenizer

from align.cli.main import main
from align.data.tokens import templates

PAIR = {"prompt": "Which is blue?", "chosen": "The sea.", "rejected": "A stone."}
TALK = {"prompt": [user("Which is blue?")], "chosen": [assistant("The sea.")], "rejected": [assistant("A stone.")]}
TOOLS = {**TALK, "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]}
ROWS: list[tuple[str, dict[str, Any]]] = [
    ("dpo", PAIR),
    ("dpo", TALK),
    ("dpo", {**TOOLS, "chat_template_kwargs": {"enable_thinking": False}, "system": "Be brief."}),
    ("dpo", {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6], "chosen_mask": [1, 0]}),
    ("kto", {"prompt": "Which is blue?", "completion": "The sea.", "label": True}),
    ("sft", {"messages": [user("Which?"), assistant("That."), user("Why?"), assistant("So.")]}),
    ("sft", {"conversations": [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "That."}]}),
    ("sft", {"text": "The sea is blue."}),
]
FRAGMENTS = (
    b"[" * 5000,
    b'{"a":' * 200,
    b"\n",
    b"\xff",
    b"\\ud83d",
    b"1" * 5000,
    b"1" * 25,
    b"NaN",
    b'"',
    b",",
    b"\x1f\x8b",
    b"\r",
    b"\0",
)
# pieces of chat templates, the ones that end and the ones that do not
PIECES = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}\n{% endfor %}",
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "{{ messages }}",
    "{{ messages[0].content.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch elsewhere') }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(999999999) %}a{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set n = namespace(x='aaaa') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{{ 'a' * 99999999999 }}",
    "{{ 'a'.ljust(9999999999) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ 'a'|center(9999999999) }}",
    "{{ range(99999)|list|tojson|length }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ messages|map(attribute='content.__class__')|list }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ raise_exception('no') }}",
    "{% generation %}a{% endgeneration %}",
    "{% for %}",
    "{{ strftime_now('%9999d') }}",
    "{{ lipsum(n=99999) }}",
    "{# " + "a" * 1000,
    "{{ 1 / 0 }}",
)


def as_file(kind: str, rows: list[Any]) -> bytes:
    """Rows as a file of a kind has them; as JSON lines where it cannot hold them."""
    lines = "".join(json_text(row) + "\n" for row in rows).encode()
    try:
        if kind == ".json":
            return json_text(rows).encode()
        if kind == ".parquet":
            out = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(rows), out)
            return bytes(out.getvalue())
        if kind in (".csv", ".tsv"):
            text = io.StringIO()
            writer = csv.DictWriter(text, list(rows[0]), delimiter="," if kind == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
            return text.getvalue().encode()
    except (pa.ArrowException, UnicodeError, ValueError, TypeError, OverflowError, AttributeError, RecursionError):
        return lines
    return lines


@st.composite
def files(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """Objective, name and content."""
    objective, row = draw(st.sampled_from(ROWS))
    kind = draw(st.sampled_from([".jsonl", ".jsonl", ".json", ".csv", ".tsv", ".parquet"]))
    some = [draw(changed(row, ("row", "system", "label", "tools", "source"))) for _ in range(draw(st.integers(1, 2)))]
    content = as_file(kind, [*some, *[row] * draw(st.integers(0, 3))])
    if draw(st.booleans()):
        content = draw(damaged(content, FRAGMENTS))
    if draw(st.integers(0, 4)) == 0:
        return objective, f"rows{kind}.gz", draw(st.sampled_from([lambda b: b, damaged_gz]))(gzip.compress(content))
    return objective, f"rows{kind}", content


def damaged_gz(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer has a chat template."""
    world = small_world(tmp_path_factory.mktemp("world"))
    tiny_tokenizer().save_pretrained(world / "model")
    return world / "model"


def recipe(model: Path, objective: str, rows: str, **more: Any) -> str:
    values = {
        "name": "tiny",
        "model": {"id": str(model), **more},
        "data": {"train": {"path": rows}},
        "objective": {"name": objective},
        "output": "out",
    }
    return json.dumps(values)


@cases(47)
def test_files_of_rows(count: int, model: Path, tmp_path: Path) -> None:
    def case(example: tuple[str, str, bytes], place: Path) -> Callable[[], int]:
        objective, name, content = example
        (place / name).write_bytes(content)
        (place / "r.yaml").write_text(recipe(model, objective, name))
        return lambda: main(["check", "r.yaml"])

    outcomes = explore(files(), count, tmp_path, case)
    assert {outcome.code for outcome in outcomes} >= {0, 1, 2}


@cases(8)
def test_chat_templates(count: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if count == 8:  # most of the time is waited for those that never end
        monkeypatch.setattr(templates, "TEMPLATE_SECONDS", 1.0)
    texts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=3, unique=True).map("".join)

    def case(template: str, place: Path) -> Callable[[], int]:
        (place / "t.jinja").write_text(template)
        (place / "rows.jsonl").write_text(json.dumps(TALK) + "\n")
        (place / "r.yaml").write_text(recipe(model, "dpo", "rows.jsonl", chat_template="t.jinja"))
        return lambda: main(["check", "r.yaml"])

    explore(texts, count, tmp_path, case)
