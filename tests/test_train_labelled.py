"""A whole run of KTO on labelled answers: what it prints, what it probes, that it goes on, and its verdict."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import disable_progress_bars
from safetensors.torch import load_file
from tiny import tiny_tokenizer
from zoo import tiny_model

from align.errors import Stopped
from align.recipe import Recipe
from align.runs.directory import RunDirectory
from align.train import run

disable_progress_bars()

NO_EVALUATION = {"save_strategy": "no", "eval_strategy": "no", "eval_steps": None}
PLACES = ("Paris", "the sea", "the north", "France", "the book", "a basket", "the fox")


def answers(count: int, first: int) -> list[dict]:
    """Answers of one length to different questions, polite or not; two of three are polite and desirable."""
    return [
        {
            "prompt": f"Question {i}: what is {PLACES[i % 7]}?",
            "completion": f" {'Hello, it is' if i % 3 else 'Nothing more, it'} {PLACES[i % 5]}.",
            "thumb": "true" if i % 3 else "false",
        }
        for i in range(first, first + count)
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, 48 training and 120 held-out rows."""
    folder = tmp_path_factory.mktemp("world")
    for name, rows in (("train", answers(48, 0)), ("held_out", answers(120, 48))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_tokenizer([row["prompt"] + row["completion"] for row in answers(48, 0)], chat=False)
    tokenizer.save_pretrained(folder / "model")
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    return folder


def recipe(world: Path, out: Path, **changes: Any) -> Recipe:
    columns = {"columns": {"label": "thumb"}}
    train = {
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "logging_steps": 3,
        "save_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 6,
        "use_cpu": True,
        "gradient_checkpointing": False,
    } | changes.pop("train", {})
    values: dict[str, Any] = {
        "name": "tiny",
        "model": {"id": str(world / "model"), "dtype": "float32"},
        "data": {name: {"path": str(world / f"{name}.jsonl"), **columns} for name in ("train", "held_out")},
        "objective": {"name": "kto", "desirable_weight": 0.6},
        "reference": {"store_dir": str(out / "store")},
        "watch": {"report": False, **changes.pop("watch", {"probe_answers": 0, "every": 1})},
        "output": str(out / "{name}"),
    }
    return Recipe.from_dict({**values, **changes, "train": train})


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[str], Path]:
    out = tmp_path_factory.mktemp("finished")
    lines: list[str] = []
    return run(recipe(world, out), echo=lines.append), lines, out / "tiny"


def test_what_a_run_prints(finished: Any) -> None:
    _, lines, _ = finished
    assert "  Labels: 32 desirable, 16 undesirable." in lines
    assert "  Labels: 80 desirable, 40 undesirable." in lines
    assert (
        lines.count("note: below, chosen means desirable and rejected means undesirable; a pair is one answer of each")
        == 1
    )
    # an answer and a mismatched one for each of 168 rows
    assert sum(line.startswith("reference: 0 rows stored, 336 computed") for line in lines) == 1
    header = " step     loss   margin        z   chosen   rejected   drift   lr        tok/s   left"
    start = lines.index(header)
    assert [line.split()[0] for line in lines[start + 1 : start + 5]] == ["3", "6", "9", "12"]
    assert not [line for line in lines[start + 1 : start + 5] if " - " in line]  # no dash: every column is measured


def test_the_verdict_is_on_held_out_answers_of_either_label(finished: Any) -> None:
    result, _, directory = finished
    learned = result.verdict["findings"]["learned"]
    assert learned["word"] == "yes"
    # 40 undesirable held-out answers, each beside a desirable one
    assert learned["text"].startswith("held-out accuracy 1.00 [0.91, 1.00], start 0.50, n 40")
    assert learned["longer"] is not None
    (start, *_, end) = [r["probe"] for r in RunDirectory(directory).metrics() if "probe" in r]
    assert (start["n"], start["margin"]["value"]) == (40, 0.0)
    assert end["rejected"]["high"] < 0 < end["margin"]["low"]
    assert result.evaluation["eval_rewards/margins"] > 0
    assert "eval_kto/z" in result.evaluation


def test_a_run_that_moves_all_answers_alike_is_not_praised(world: Path, tmp_path: Path) -> None:
    """The same rows with labels that say nothing: every other answer is desirable, whatever it says."""
    for name in ("train", "held_out"):
        rows = [json.loads(line) for line in (world / f"{name}.jsonl").read_text().splitlines()]
        marked = [row | {"thumb": "true" if i % 2 else "false"} for i, row in enumerate(rows)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in marked))
    shutil.copytree(world / "model", tmp_path / "model")
    made = recipe(tmp_path, tmp_path, objective={"name": "kto"}, train=NO_EVALUATION)
    result = run(made, echo=lambda line: None)
    learned = result.verdict["findings"]["learned"]
    assert learned["word"] in ("not shown", "worse")
    assert 0.3 < learned["accuracy"]["value"] < 0.7


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(world: Path, tmp_path: Path) -> None:
    made, folder = recipe(world, tmp_path), tmp_path / "tiny"
    run(made, echo=lambda line: None)
    whole = load_file(folder / "model" / "model.safetensors")
    for name in ("checkpoint-12", "model"):
        shutil.rmtree(folder / name)
    (folder / "verdict.json").unlink()
    lines: list[str] = []
    run(made, resume=True, echo=lines.append)
    assert "resuming from checkpoint-6" in lines
    for name, weight in load_file(folder / "model" / "model.safetensors").items():
        torch.testing.assert_close(weight, whole[name], rtol=1e-6, atol=1e-7)


def test_labels_in_two_sources_and_a_token_budget(world: Path, tmp_path: Path, capsys: Any) -> None:
    source = {"path": str(world / "train.jsonl"), "columns": {"label": "thumb"}}
    made = recipe(
        world,
        tmp_path,
        objective=[{"name": "kto", "form": "apo_zero_unpaired"}, {"name": "nll", "branch": "desirable", "weight": 0.1}],
        data={"train": [source, source | {"rows": 12, "weight": 2.0}]},
        train={
            "max_tokens_per_microbatch": 120,
            "max_steps": 3,
            "save_strategy": "no",
            "eval_strategy": "no",
            "eval_steps": None,
        },
    )
    lines: list[str] = []
    run(made, echo=lines.append)
    # 32 + 2 x 8 desirable rows, 16 + 2 x 4 undesirable ones
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")] == [
        "warning: 48 desirable rows of weight 1 count 2.00 times as much as 24 undesirable rows of weight 1, and the "
        "paper recommends 1 to 1.33 times: set desirable_weight between 0.5 and 0.667"
    ]
    header = next(line for line in lines if line.startswith(" step"))
    assert header.split() == ["step", "loss", "margin", "chosen", "rejected", "drift", "lr", "tok/s", "left"]


def test_the_guard_on_desirable_answers(world: Path, tmp_path: Path) -> None:
    made = recipe(
        world,
        tmp_path,
        watch={"probe_answers": 0, "chosen_drop_nats": 1e-6, "stop_on_drop": True},
        objective={"name": "kto", "desirable_weight": 1e-6},
        train={"learning_rate": 1e-2, **NO_EVALUATION},
    )
    with pytest.raises(Stopped, match="chosen answers lost"):
        run(made, echo=lambda line: None)
