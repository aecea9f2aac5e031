"""A suite while a run trains: when it reads, what it records, when it ends the run, which step it keeps."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from tiny import tiny_tokenizer
from training import arguments
from zoo import tiny_model

from align.errors import UserError
from align.eval import tofu
from align.eval.log import SetLog, TofuLog
from align.eval.log_read import read_log
from align.eval.recipe_suite import TofuSuite, tofu_suite
from align.eval.tofu_data import TofuSets, load_sets
from align.eval.tofu_metrics import metrics
from align.models.subject import Subject
from align.objectives import NLL, NPO, WeightedSum
from align.recipe.sections import Evaluate, Source
from align.recipe.stop_rule import StopRule
from align.report.trajectory import trajectory
from align.runs.directory import RunDirectory
from align.trainers.base import AlignTrainer
from align.trainers.evaluation import Evaluation
from align.trainers.unlearn import UnlearnTrainer


@pytest.fixture(scope="module")
def sets() -> TofuSets:
    """A few rows of the generated world."""
    whole = load_sets("forget", "world:1")
    return replace(whole, sets={name: facts[:6] for name, facts in whole.sets.items()}, holdout=None)


@pytest.fixture(scope="module")
def suite(sets: TofuSets) -> TofuSuite:
    """Compared with a model that was taught everything but what is to be forgotten."""
    known = {name: facts for name, facts in sets.sets.items() if name != "forget"}
    return TofuSuite(sets, tofu.evaluate(subject_of(taught(known)), sets, mia=False))


@pytest.fixture(scope="module")
def knows(sets: TofuSets) -> Any:
    """A model that was taught all of it, so that it has a utility to lose."""
    return taught(sets.sets)


def untaught() -> Any:
    return tiny_model(vocab_size=len(tiny_tokenizer()), max_position_embeddings=96)


def taught(facts: dict[str, list[Any]]) -> Any:
    """A tiny model that learned these facts by heart."""
    made = untaught()
    rows = [{"question": f.question, "answer": f.answer} for known in facts.values() for f in known]
    with tempfile.TemporaryDirectory() as folder:
        options = {"max_steps": 60, "optim": "adamw_torch", "learning_rate": 1e-2, "logging_steps": 60}
        trainer = AlignTrainer(
            made,
            NLL(branch="completion"),
            arguments(Path(folder), **options),
            train_dataset=Dataset.from_list(rows),
            processing_class=tiny_tokenizer(),
        )
        trainer.echo = lambda _: None
        trainer.train()
    return made


def subject_of(plain: Any) -> Subject:
    from align.engine.scoring import ScoringEngine, attach

    attach(plain)
    return Subject(plain, tiny_tokenizer(), ScoringEngine(), say=lambda _: None)


def unlearner(folder: Path, model: Any, sets: TofuSets, **changes: Any) -> UnlearnTrainer:
    """Two steps an epoch."""

    def table(name: str) -> Dataset:
        return Dataset.from_list([{"question": f.question, "answer": f.answer} for f in sets.sets[name]])

    fresh = untaught()  # not a deepcopy: TRL leaves a forward in the model that would call the original
    fresh.load_state_dict(model.state_dict())
    return UnlearnTrainer(
        fresh,
        WeightedSum(((NPO(), 1.0), (NLL(branch="retain"), 1.0))),
        arguments(folder, **{"per_device_train_batch_size": 3, "max_steps": 6, **changes}),
        train_dataset=table("forget"),
        retain_dataset=table("retain"),
        processing_class=tiny_tokenizer(),
    )


def watched(folder: Path, model: Any, suite: TofuSuite, *, resume: str | None = None, **options: Any) -> Evaluation:
    """Train with the suite beside and return the callback."""
    own = {k: options.pop(k) for k in ("every", "keep_utility", "stop_when") if k in options}
    trainer = unlearner(folder / "checkpoints", model, suite.sets, **options)
    trainer.echo = lambda _: None
    said: list[str] = []
    watch = Evaluation(trainer, RunDirectory(folder), suite, lambda: Subject.of(trainer), **own, echo=said.append)
    trainer.add_callback(watch)
    trainer.train(resume_from_checkpoint=resume)
    assert all("utility" in line for line in said)  # forget quality is never said without it
    return watch


def steps(folder: Path) -> list[int]:
    return [int(r["step"]) for r in trajectory(RunDirectory(folder).metrics())]


def test_reads_at_the_start_every_epoch_and_at_the_end(tmp_path: Path, knows: Any, suite: TofuSuite) -> None:
    watched(tmp_path / "a", knows, suite, max_steps=5)
    assert steps(tmp_path / "a") == [0, 2, 4, 5]
    watched(tmp_path / "b", knows, suite, every=3, max_steps=4)
    assert steps(tmp_path / "b") == [0, 3, 4]


def test_the_last_reading_is_that_of_the_trained_model(tmp_path: Path, knows: Any, suite: TofuSuite) -> None:
    watch = watched(tmp_path, knows, suite, max_steps=4)
    log = tofu.evaluate(subject_of(watch.trainer.model), suite.sets, mia=False)
    expected = metrics(log, suite.target, seed=None)
    records = RunDirectory(tmp_path).metrics()
    kept = [(record["step"], record["retain"]) for record in records if "retain" in record]
    assert kept == [(0, suite.target_reading())]
    last = records[-1]["evaluation"]
    assert last["utility"] == pytest.approx(expected.values["model_utility"], rel=1e-6, abs=0)
    assert last["forget_quality"] == pytest.approx(expected.values["forget_quality"], rel=1e-6, abs=0)
    assert last["D"] == expected.ks.d
    kept = read_log(tmp_path / "eval" / "TOFU_EVAL.json")
    assert kept.sets["forget"].loss == pytest.approx(log.sets["forget"].loss, rel=1e-6, abs=0)
    assert json.loads((tmp_path / "eval" / "step-4.json").read_text())["metrics"]["model_utility"] == last["utility"]


def test_stops_when_told_to_with_everything_saved(tmp_path: Path, knows: Any, suite: TofuSuite) -> None:
    rule = StopRule.parse("utility < 2 * start")  # holds at once, but not at the start
    watch = watched(tmp_path, knows, suite, stop_when=rule, save_strategy="steps", save_steps=1)
    assert watch.trainer.state.global_step == 2
    assert watch.stopped.startswith("step 2, utility < 2 * start (utility is ")
    checkpoint = tmp_path / "checkpoints" / "checkpoint-2"
    again = watched(tmp_path, knows, suite, stop_when=rule, save_strategy="steps", save_steps=1, resume=str(checkpoint))
    assert again.trainer.state.global_step == 2  # killed behind its last save, it takes no step more
    assert again.stopped == watch.stopped


def test_keeps_the_best_step_and_says_how_it_was_selected(tmp_path: Path, knows: Any, suite: TofuSuite) -> None:
    watched(tmp_path, knows, suite, keep_utility=0.0, learning_rate=0.5)
    read = [r for r in trajectory(RunDirectory(tmp_path).metrics()) if r["step"]]
    best = max(read, key=lambda r: r["forget_quality"])  # of equals the first
    selected = json.loads((tmp_path / "best" / "selected.json").read_text())
    assert (selected["step"], selected["forget_quality"]) == (best["step"], best["forget_quality"])
    assert "selected by forget quality on the test questions" in selected["note"]
    again = Subject.load(str(tmp_path / "best"), echo=lambda _: None)
    log = tofu.evaluate(again, suite.sets, mia=False)
    assert metrics(log, suite.target, seed=None).values["forget_quality"] == pytest.approx(best["forget_quality"])


def test_keeps_nothing_that_lost_its_utility(tmp_path: Path, knows: Any, suite: TofuSuite) -> None:
    watched(tmp_path, knows, suite, keep_utility=1.0, learning_rate=0.5, max_steps=4)
    utilities = [r["utility"] for r in trajectory(RunDirectory(tmp_path).metrics())]
    assert 0 <= max(utilities[1:]) < utilities[0]
    assert not (tmp_path / "best").exists()


def test_resume_goes_on_with_the_start_of_the_first_run(tmp_path: Path, knows: Any, suite: TofuSuite) -> None:
    straight = watched(tmp_path / "a", knows, suite)
    watched(tmp_path / "b", knows, suite, max_steps=3, save_strategy="steps", save_steps=3)
    file = tmp_path / "b" / "metrics.jsonl"
    lines = [line for line in file.read_text().split("\n") if line and json.loads(line)["step"] <= 2]
    file.write_text("\n".join(lines) + "\n")  # the end of the short run is no reading of the long one
    resumed = watched(tmp_path / "b", knows, suite, resume=str(tmp_path / "b" / "checkpoints" / "checkpoint-3"))
    assert resumed.start == straight.start
    assert resumed.best == {**(straight.best or {}), "path": str(tmp_path / "b" / "best")}
    mine, theirs = (trajectory(RunDirectory(tmp_path / name).metrics()) for name in ("a", "b"))
    assert mine == theirs


def test_without_a_retain_model_there_is_no_best_step(tmp_path: Path, knows: Any, sets: TofuSets) -> None:
    watch = watched(tmp_path, knows, TofuSuite(sets), max_steps=2)
    assert "forget_quality" not in watch.start
    assert watch.start["utility"] > 0
    assert not (tmp_path / "best").exists()


def test_the_retain_models_log_is_read_and_not_made_again(tmp_path: Path, suite: TofuSuite) -> None:
    assert suite.target is not None
    whole = TofuLog({"forget": SetLog(loss=np.linspace(0.1, 3.0, 120))})
    (tmp_path / "retain.json").write_text(json.dumps(whole.to_json()))
    (tmp_path / "six.json").write_text(json.dumps(suite.target.to_json()))
    settings = Evaluate(split="forget", source=Source(world="1"), retain="retain.json")
    said: list[str] = []
    found = tofu_suite(settings, base=tmp_path, say=said.append)
    assert found.target is not None
    assert found.target.sets["forget"].loss == pytest.approx(whole.sets["forget"].loss)
    assert said == []
    with pytest.raises(UserError, match="has 6 forget rows, but forget has 120"):  # before anything is measured
        tofu_suite(settings.model_copy(update={"retain": "six.json"}), base=tmp_path, say=said.append)
    with pytest.raises(UserError):
        tofu_suite(settings.model_copy(update={"retain": "./missing"}), base=tmp_path, say=said.append)
