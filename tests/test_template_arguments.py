"""Template arguments through whole runs: begun on one day, resumed, evaluated and sampled on another."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import CHATML, tiny_tokenizer
from zoo import tiny_model

from align.cli.main import main as align
from align.data.rows.values import BadRow
from align.data.tokens.arguments import kept_arguments
from align.data.tokens.chat import Request, render
from align.errors import UserError
from align.models.subject import Subject
from align.recipe import Recipe
from align.recipe import template_arguments as clock
from align.train import run

DATED = "{{ strftime_now('%d %b %Y') + '\n' }}" + CHATML
DAYS = {"first": datetime(2026, 3, 1, 23, 59), "second": datetime(2026, 3, 2, 0, 1)}


def on(day: str, patch: pytest.MonkeyPatch) -> None:
    """Let the run's clock stand at a moment."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return DAYS[day]

    patch.setattr(clock, "datetime", Clock)


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Any]:
    """A recipe of two steps on two conversations, and a template that asks for the date."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    (tmp_path / "dated.jinja").write_text(DATED)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Who wrote {what}?"}],
            "completion": [{"role": "assistant", "content": "A person."}],
        }
        for what in ("the book", "it")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "name": "dated",
        "model": {
            "id": str(tmp_path / "model"),
            "dtype": "float32",
            "chat_template": str(tmp_path / "dated.jinja"),
        },
        "data": {"train": {"path": str(tmp_path / "rows.jsonl")}},
        "objective": {"name": "nll", "branch": "completion"},
        "watch": {"report": False},
        "train": {"max_steps": 2, "use_cpu": True, "gradient_checkpointing": False, "save_strategy": "no"},
        "output": str(tmp_path / "runs" / "{name}"),
    }


def asked(tokenizer: Any) -> str:
    """The first line that a model is asked with."""
    rendered = render(tokenizer, [Request([{"role": "user", "content": "Who?"}], prompt=True)])[0]
    assert not isinstance(rendered, BadRow)
    return tokenizer.decode(rendered.ids).split("\n")[0]


def train(made: dict[str, Any], **options: Any) -> list[str]:
    said: list[str] = []
    run(Recipe.from_dict(made), echo=said.append, **options)
    return said


def test_a_run_keeps_its_date_when_resumed_evaluated_and_sampled_on_another_day(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs" / "dated"
    on("first", monkeypatch)
    train(made)
    lock = yaml.safe_load((folder / "recipe.lock.yaml").read_text())
    assert lock["template_arguments"] == {"strftime_now": "2026-03-01T23:59:00"}

    on("second", monkeypatch)
    (folder / "verdict.json").unlink()
    train(made, resume=True)  # on a prompt of another day it would be told that its data changed
    subject = Subject.load(str(folder), echo=lambda _: None)
    assert asked(subject.tokenizer) == "01 Mar 2026"
    given = Subject.load(str(folder), arguments={"strftime_now": "1999-12-31"}, echo=lambda _: None)
    assert asked(given.tokenizer) == "31 Dec 1999"

    out = tmp_path / "samples.jsonl"
    words = ["--n", "1", "--max-new-tokens", "1", "--out", str(out)]
    assert align(["sample", str(tmp_path / "rows.jsonl"), "--model", str(folder), *words]) == 0
    assert len(out.read_text().splitlines()) == 2

    (folder / "verdict.json").unlink()
    made["data"]["template_arguments"] = {"enable_thinking": False}
    with pytest.raises(UserError, match=r"data.template_arguments.enable_thinking: was .*, is False"):
        train(made, resume=True)
    train({**made, "name": "another"})
    again = Subject.load(str(tmp_path / "runs" / "another"), echo=lambda _: None)
    assert asked(again.tokenizer) == "02 Mar 2026"
    assert kept_arguments(again.tokenizer)["enable_thinking"] is False


def test_a_run_says_which_of_its_arguments_change_nothing(made: dict[str, Any]) -> None:
    made["data"]["template_arguments"] = {"enable_thinkin": False, "strftime_now": "2024-07-26"}
    assert [line for line in train(made) if "template argument" in line] == [
        "warning: the template argument enable_thinkin changes nothing: the chat template never reads it. "
        "Did you mean 'enable_thinking'?"
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"tools": []}, "tools is set from the rows and cannot be a template argument: leave it out"),
        (
            {"strftime_now": "today"},
            "strftime_now is the date that templates are given, such as 2024-07-26, got 'today'",
        ),
        ({"strftime_now": 2024}, "strftime_now is the date that templates are given, such as 2024-07-26, got 2024"),
    ],
)
def test_arguments_that_no_template_can_be_given_are_refused(
    made: dict[str, Any], arguments: dict[str, Any], sentence: str
) -> None:
    made["data"]["template_arguments"] = arguments
    with pytest.raises(UserError) as caught:
        Recipe.from_dict(made)
    assert f"data.template_arguments: {sentence}" in str(caught.value)


def test_arguments_of_the_command_line_are_read_as_yaml(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from align.cli.verbs import template_arguments

    def read(*texts: str) -> dict[str, Any]:
        return template_arguments(SimpleNamespace(template_argument=list(texts)))  # type: ignore[arg-type]

    assert read() == {}
    assert read("enable_thinking=false", "date_string=26 Jul 2024", "strftime_now=2024-07-26", "n=3", "e=a=b") == {
        "enable_thinking": False,
        "date_string": "26 Jul 2024",
        "strftime_now": "2024-07-26",
        "n": 3,
        "e": "a=b",
    }
    with pytest.raises(UserError, match="--template-argument thinking: expected KEY=VALUE, as in enable_thinking=fal"):
        read("thinking")
    with pytest.raises(UserError, match="--template-argument: messages is set from the rows"):
        read("messages=x")
