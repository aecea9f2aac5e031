"""What a run records for its report, the report at its end and while it trains, and the card from the same numbers."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from saved_model import save_model, tokenizer

from align.data.batches.collator import TreeCollator
from align.data.batches.lengths import row_lengths
from align.data.load import load_data
from align.data.tokens.tokenize import load_tokenizer
from align.errors import Stopped
from align.recipe import Recipe, load_recipe
from align.report.limits import limits
from align.runs.record import Lines, load_run
from align.train import RunResult, run
from align.training.facts import command, digest, git

REFRESH = '<meta http-equiv="refresh" content="10">'


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, 24 training and 8 held-out pairs, and the recipe of one epoch of DPO on them."""
    folder = tmp_path_factory.mktemp("world")
    source = random.Random(0)

    def words(most: int) -> str:
        return " ".join(f"w{source.randrange(3, 10)}" for _ in range(source.randint(1, most)))

    rows = [{"prompt": words(6), "chosen": f" {words(6)}", "rejected": f" {words(6)}"} for _ in range(32)]
    for name, part in (("train", rows[:24]), ("held_out", rows[24:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    tokenizer().save_pretrained(save_model(folder / "model"))
    values = {
        "name": "tiny",
        "model": {"id": "model", "dtype": "float32"},
        "data": {"train": {"path": "train.jsonl"}, "held_out": {"path": "held_out.jsonl"}},
        "objective": {"name": "dpo"},
        "watch": {"probe_answers": 0},
        "train": {
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "learning_rate": 3e-3,
            "logging_steps": 1,
            "use_cpu": True,
            "save_strategy": "no",
            "gradient_checkpointing": False,
        },
    }
    (folder / "tiny.yaml").write_text(json.dumps(values))
    return folder


def recipe(world: Path, out: Path, *changes: str) -> Recipe:
    return load_recipe(world / "tiny.yaml", [f"output={out}/run", f"reference.store_dir={out}/store", *changes])


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, list[str], Path]:
    """A whole run with its report."""
    out, lines = tmp_path_factory.mktemp("finished"), list[str]()
    return run(recipe(world, out), echo=lines.append), lines, out / "run"


def test_facts_of_the_data(finished: Any, world: Path) -> None:
    data = json.loads((finished[2] / "facts.json").read_text())["data"]
    assert data["sentences"][0] == "train: train.jsonl"
    assert "24 rows of 24 kept." in data["sentences"]
    assert "8 rows of 8 kept." in data["sentences"]
    assert (data["max_length"], data["truncation"]) == (1024, "drop")
    assert {name: found["rows"] for name, found in data["sets"].items()} == {"train": 24, "held out": 8}
    prompts = [len(json.loads(line)["prompt"].split()) for line in (world / "train.jsonl").read_text().splitlines()]
    tokens = data["sets"]["train"]["tokens"]
    assert list(tokens) == ["prompt", "chosen", "rejected"]
    assert tokens["prompt"]["total"] == sum(prompts)  # a word is a token
    assert tokens["prompt"]["longest"] == max(prompts)


def test_facts_of_the_cost(finished: Any, world: Path, tmp_path: Path) -> None:
    result, _, folder = finished
    cost = json.loads((folder / "facts.json").read_text())["cost"]
    made = recipe(world, tmp_path)
    prepared = load_data(made, load_tokenizer(made.model, base=made.base), ("chosen", "rejected"), lambda _: None)
    # one epoch, packed without padding, each prompt once for both answers
    assert cost["tokens"] == sum(row_lengths(prepared.train, TreeCollator(("chosen", "rejected"))))
    assert cost["steps"] == 3
    assert cost["seconds"] == result.seconds > 0
    assert 1e8 < cost["peak_memory_bytes"] < 1e11
    assert cost["peak_memory_of"] == "the main process"
    # all of 32 pairs once, and the first step's 8 again, to see what another pack makes of them
    assert cost["reference_answers"] == {"computed": 64 + 16, "from_the_store": 64}
    probe = cost["probes"]["probes"]["probe"]
    assert probe["readings"] + probe["skipped"] == 4  # the start and three steps
    assert probe["readings"] >= 2
    assert 0 < probe["seconds"] < cost["seconds"]
    assert "since_step" not in cost


def test_facts_of_the_environment(finished: Any, world: Path, tmp_path: Path) -> None:
    facts = json.loads((finished[2] / "facts.json").read_text())
    environment = facts["environment"]
    assert (environment["device"], environment["processes"], environment["seed"]) == ("cpu", 1, 0)
    assert environment["precision"] == "weights float32, forwards float32"
    assert environment["git"] is None  # the recipe lies in no repository
    # the folder of a run is not what it does
    elsewhere = recipe(world, tmp_path, f"reference.store_dir={finished[2].parent}/store", "name=other")
    assert environment["recipe_digest"] == digest(elsewhere) != digest(recipe(world, finished[2].parent, "seed=1"))
    assert facts["reproduce"] == f"align train {finished[2]}/recipe.lock.yaml output={finished[2]}-again"


def test_a_run_without_a_report_writes_what_it_knows_before_its_first_step(world: Path, tmp_path: Path) -> None:
    folder, seen, lines = tmp_path / "run", [], list[str]()

    def echo(line: str) -> None:
        lines.append(line)
        if line.split()[:2] == ["step", "loss"]:
            seen.append(json.loads((folder / "facts.json").read_text()))

    run(recipe(world, tmp_path, "watch.report=false"), echo=echo)
    (facts,) = seen
    assert list(facts) == ["data", "environment", "reproduce"]
    assert not list(folder.glob("report.*"))
    paths = {"model": f"{folder}/model", "metrics": f"{folder}/metrics.jsonl"}
    assert json.loads((folder / "verdict.json").read_text())["paths"] == paths
    assert lines[-2:] == [f"  {name:<8} {path}" for name, path in paths.items()]


def test_the_command_repeats_the_run_from_anywhere(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = json.loads((finished[2] / "facts.json").read_text())["reproduce"].split()
    assert words[:2] == ["align", "train"]
    again = load_recipe(words[2], [*words[3:], f"output={tmp_path}/again", "watch.report=false"])
    run(again, echo=lambda _: None)
    losses = [
        [(r["step"], r["loss"]) for r in load_run(folder).metrics if "loss" in r]
        for folder in (finished[2], tmp_path / "again")
    ]
    assert len(losses[0]) == 3
    assert losses[0] == losses[1]


def test_the_command_says_what_a_repetition_needs(world: Path, tmp_path: Path) -> None:
    made, lock = recipe(world, tmp_path), {"template_arguments": {"strftime_now": "2026-01-02T03:04:05"}}
    folder = Path("runs/my run")
    said = "align train 'runs/my run/recipe.lock.yaml' 'output=runs/my run-again'"
    assert command(made, folder, lock, asks_date=False) == said
    dated = f"{said} data.template_arguments.strftime_now=2026-01-02T03:04:05"
    assert command(made, folder, lock, asks_date=True) == dated
    asked = recipe(world, tmp_path, dated.split()[-1]).data.template_arguments
    assert asked == {"strftime_now": "2026-01-02T03:04:05"}
    assert command(made, folder, {}, asks_date=True) == said  # a lock file of a version that kept no date
    fixed = recipe(world, tmp_path, "data.template_arguments={strftime_now: 2026-01-02}")
    assert command(fixed, folder, lock, asks_date=True) == said
    several = command(made, Path("r"), {"processes": 2}, asks_date=False)
    assert several == ("accelerate launch --num_processes 2 -m align.train r/recipe.lock.yaml output=r-again")
    judged = {"judge": {"function": "mine:score"}, "sampling": {}, "objective": {"name": "superhf"}}
    values = {key: value for key, value in made.dump().items() if key in ("name", "model", "reference")}
    online = Recipe.from_dict({**values, "data": {"train": {"path": "p"}}, "train": {"max_steps": 1}, **judged})
    assert command(online, Path("r"), {}, asks_date=False).endswith(" --allow-code")


def test_the_commit_of_the_recipes_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, file = tmp_path / "repository" / "recipes", tmp_path / "repository" / "recipes" / "a.yaml"
    folder.mkdir(parents=True)
    file.write_text("one")

    def repository(*words: str) -> str:
        author = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
        return subprocess.run(["git", "-C", folder, *author, *words], check=True, capture_output=True, text=True).stdout

    assert git(folder, file) is None
    repository("init", "-q")
    assert git(folder, file) is None  # no commit yet
    repository("add", ".")
    repository("commit", "-qm", "one")
    commit = repository("rev-parse", "HEAD").strip()
    assert git(folder, file) == {"commit": commit, "dirty": False}
    (folder / "runs").mkdir()
    (folder / "runs" / "new").write_text("what a run left")
    assert git(folder, file) == {"commit": commit, "dirty": False}
    file.write_text("two")
    assert git(folder, None) == {"commit": commit, "dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git(folder, file) is None


def test_a_recipe_that_no_commit_holds_is_a_change(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "kept").write_text("")
    author = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    subprocess.run(["git", "-C", tmp_path, "add", "."], check=True)
    subprocess.run(["git", "-C", tmp_path, *author, "commit", "-qm", "one"], check=True)
    (tmp_path / "new.yaml").write_text("")
    found, own = git(tmp_path, tmp_path / "kept"), git(tmp_path, tmp_path / "new.yaml")
    assert found is not None
    assert own is not None
    assert (found["dirty"], own["dirty"]) == (False, True)


def test_the_report_is_written_and_its_path_is_in_the_last_lines(finished: Any) -> None:
    result, lines, folder = finished
    page = (folder / "report.html").read_text()
    assert page.rstrip().endswith("</html>")
    assert "refresh" not in page.partition("</head>")[0]
    assert (folder / "report.png").read_bytes()[:4] == b"\x89PNG"
    assert lines[-3:] == [
        f"  report   {folder}/report.html",
        f"  model    {folder}/model",
        f"  metrics  {folder}/metrics.jsonl",
    ]
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["paths"]["report"] == f"{folder}/report.html"
    block = [line.split()[0] for line in lines[lines.index("") + 3 : lines.index("", lines.index("") + 3)]]
    assert [name for name in verdict["shown"] if name in verdict["findings"]] == block
    assert "learned" in block
    assert result.verdict["findings"] == verdict["findings"]


def test_a_report_that_cannot_be_written_costs_the_run_nothing(world: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "report.html").mkdir(parents=True)  # a folder stands in its place
    lines: list[str] = []
    run(recipe(world, tmp_path), echo=lines.append)
    said = [line for line in lines if line.startswith("report: ")]
    assert len(said) == 1
    assert said[0].startswith(f"report: it could not be written (UserError: {tmp_path}/run cannot be written to (")
    assert said[0].endswith(f"Nothing else is lost; try align report {tmp_path}/run")
    assert load_run(tmp_path / "run").finished
    assert not any(line.startswith("  report ") for line in lines)


def test_a_run_that_a_guard_stopped_has_a_report_and_says_why(world: Path, tmp_path: Path) -> None:
    swapped = 'data.train.columns={"chosen": "rejected", "rejected": "chosen"}'
    guard = ("watch.stop_on_drop=true", "watch.chosen_drop_nats=0.01", "train.learning_rate=0.05")
    lines: list[str] = []
    with pytest.raises(Stopped) as stop:
        run(recipe(world, tmp_path, swapped, *guard), echo=lines.append)
    assert lines[-1] == f"  report   {tmp_path}/run/report.html"
    found = load_run(tmp_path / "run")
    assert found.facts["stopped"] == str(stop.value)
    assert found.facts["cost"]["steps"] == found.steps < 3
    assert not found.finished
    assert limits(found)[0] == f"The run was stopped before its end, so there is no verdict: {stop.value}"
    assert "stopped before its end" in (tmp_path / "run" / "report.html").read_text()


def test_a_live_report_is_there_from_the_start_and_its_last_version_is_not_live(world: Path, tmp_path: Path) -> None:
    file, seen, lines = tmp_path / "run" / "report.html", list[str](), list[str]()

    def echo(line: str) -> None:
        lines.append(line)
        if line.split()[:2] == ["step", "loss"]:
            seen.append(file.read_text())

    run(recipe(world, tmp_path, "watch.live=true", "watch.budget=0"), echo=echo)
    assert f"watch.live: {file} is rewritten while the run trains; open it in a browser" in lines
    (first,), last = seen, file.read_text()
    assert REFRESH in first
    assert "The run has not ended" in first
    assert "refresh" not in last.partition("</head>")[0]
    assert "The run has not ended" not in last
    cost = load_run(tmp_path / "run").facts["cost"]["probes"]["probes"]["report"]
    assert (cost["readings"], cost["skipped"]) == (1, 2)  # of three steps; the report of the last one is the run's own


def test_lines_of_a_growing_file_are_read_once(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = Lines(file)
    assert lines.read() == []
    file.write_text('{"step": 1}\n{"step": 2, "lo')
    assert [record["step"] for record in lines.read()] == [1]
    assert lines.notes() == [f"{file}: 1 line is cut off at the end and was left out."]
    with open(file, "r+") as grown:
        grown.write('{"step": 9}')  # what has been read is not looked at again
        grown.seek(0, os.SEEK_END)
        grown.write('ss": 3}\n{"step": 3}\n')
    assert lines.read() == [{"step": 1}, {"step": 2, "loss": 3}, {"step": 3}]
    assert lines.notes() == []


def test_the_card_has_the_numbers_of_the_report(finished: Any) -> None:
    _, _, folder = finished
    text, found = (folder / "model" / "README.md").read_text(), load_run(folder)
    assert found.verdict is not None
    accuracy = found.verdict["findings"]["learned"]["accuracy"]
    # an accuracy of 8 pairs stands in the table alone: the Hub would show it without its interval
    assert [result.metric_name for result in ModelCard(text).data.eval_results] == ["loss on held-out rows"]
    span = f"{accuracy['value']:.1f} [{accuracy['low']:.1f}, {accuracy['high']:.1f}]"
    assert f"| accuracy on held-out pairs | {span} | 8 | 0.5 |" in text
    for limit in limits(found):
        assert f"- {limit}" in text
    assert "align train RUN/recipe.lock.yaml output=RUN-again" in text
    assert f"- recipe (digest): {found.facts['environment']['recipe_digest'][:16]}, seed 0" in text
    assert "- lr_scheduler_type: cosine" in text
    assert str(folder.parent) not in text
