"""Runs in rounds: what every stage leaves, that numbers are right, and that nothing is ever done twice."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import peft
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import Dataset
from hub_server import HubServer
from policy_server import PolicyServer
from round_runs import PROMPTS, make_world, values, write_recipe
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from align.data.tokens.samples import prompt_key
from align.errors import Stopped, UserError
from align.export.listing import listing
from align.judges.judge import ScoreJudge
from align.objectives import DPO, INPO
from align.recipe import Recipe, load_recipe
from align.recipe.sampling import Judge, Rounds, Sampling, Select
from align.report.figures import shown
from align.rounds import stages
from align.rounds.finish import remove_checkpoints
from align.rounds.inpo import INPOTrainer
from align.rounds.judging import estimate
from align.rounds.policy import train_recipe
from align.rounds.prompts import deal
from align.rounds.stages import Round
from align.rounds.trainer import RoundTrainer
from align.runs.directory import RunDirectory
from align.runs.processes import World
from align.runs.record import load_run
from align.runs.running import Running
from align.sampling.sampler import Sampler
from align.train import RunResult, run

# memory is looked through for garbage between stages; what is imported by now need not be
gc.collect()
gc.freeze()

ROOT = Path(__file__).parents[2]
KEPT = {"count": 2, "prompts": 8, "keep_checkpoints": True}
ONE = {"rounds": {"count": 1, "prompts": 8}, "train": {"max_steps": 1, "save_strategy": "no"}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "PART", 3)


def go(world: Path, out: Path, *, resume: bool = False, allow_code: bool = True, **changes: Any) -> list[str]:
    """Run the recipe; what it said."""
    lines: list[str] = []
    made = load_recipe(write_recipe(world, out, **changes))
    result = run(made, resume=resume, allow_code=allow_code, echo=lines.append)
    assert isinstance(result, RunResult)
    return lines


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Two rounds of INPO, not interrupted."""
    out = tmp_path_factory.mktemp("finished")
    before, stages.PART = stages.PART, 3
    lines = go(world, out, rounds=KEPT, watch={"probe_pairs": 0, "report": True})
    stages.PART = before
    return out / "tiny", lines


def rows(run: Path, number: int, name: str) -> list[dict[str, Any]]:
    found = sorted((run / "rounds" / f"{number:02d}").glob(name))
    return [row for file in found for row in pq.read_table(file).to_pylist()]


def judged_calls(world: Path) -> list[tuple[str, int]]:
    file = world / "judged.log"
    return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def logp(model: Any, prompt: list[int], answer: list[int]) -> float:
    """Log-prob of an answer by the model's own forward."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))


def test_rounds_leave_facts_a_report_and_a_card(finished: Any) -> None:
    run, lines = finished
    found = load_run(run)
    assert (found.kind, found.finished, found.steps) == ("rounds", True, 6)
    assert [one.kind for one in found.rounds] == ["preference", "preference"]
    data, cost = found.facts["data"], found.facts["cost"]
    assert "23 rows of 23 kept." in data["sentences"]
    assert data["sets"]["prompts"]["rows"] == 16  # of two rounds
    assert cost["steps"] == 6
    assert cost["trained_tokens"] == sum(one.facts["cost"]["tokens"] for one in found.rounds) > 0
    assert found.facts["reproduce"].startswith(f"align train {run}/recipe.lock.yaml output={run}-again ")
    assert found.facts["reproduce"].endswith(" --allow-code")
    pages = [run, *(run / "rounds" / number / "train" for number in ("01", "02"))]
    assert all((page / "report.html").read_text().rstrip().endswith("</html>") for page in pages)
    assert lines[-2:] == [f"report  {run}/report.html", f"model   {run}/model"]
    card = (run / "model" / "README.md").read_text()
    assert "The judge that chose the training samples is the only one that was asked: another may disagree." in card
    assert f"| length of samples, last round (tokens) | {shown(found.metrics[-1]['tokens'])} |" in card
    assert str(run.parent) not in card
    about = json.loads((run / "model" / "export.json").read_text())
    assert about["of"] == {"run": RunDirectory(run).id} != {"run": ""}
    assert about["files"]["model.safetensors"]["sha256"] in card


def test_checkpoints_of_a_finished_round_are_removed_unless_they_shall_stay(
    finished: Any, world: Path, tmp_path: Path
) -> None:
    run, lines = finished
    assert not [line for line in lines if "removed" in line]
    assert len(list(run.glob("rounds/*/train/checkpoint-*"))) == 4
    lines = go(world, tmp_path, rounds={"count": 1, "prompts": 4})
    (removed,) = [line for line in lines if "removed" in line]
    assert re.fullmatch(
        r"round 1: 2 checkpoints removed \(\d\.\d MB\), the round being finished; its model stays "
        r"\(rounds\.keep_checkpoints: true keeps them\)",
        removed,
    )
    train = tmp_path / "tiny" / "rounds" / "01" / "train"
    assert not list(train.glob("checkpoint-*"))
    shutil.copytree(run / "rounds/01/train/checkpoint-3", train / "checkpoint-3")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (train / "checkpoint-9").symlink_to(elsewhere)
    (train / "checkpoint-10").write_text("a file of somebody's")
    assert remove_checkpoints(train, RunDirectory(train, writer=False)) == ""
    assert remove_checkpoints(train, RunDirectory(train)).startswith("1 checkpoint removed")
    assert sorted(path.name for path in train.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-9"]
    assert elsewhere.is_dir()


def test_an_endpoint_that_may_be_asked_too_little_is_said_at_the_start_and_not_when_a_run_goes_on(
    world: Path, tmp_path: Path
) -> None:
    endpoint = {"url": "http://localhost:9/v1", "model": "m", "max_calls": 160}
    made = Recipe.from_dict(values(world, tmp_path, judge={"endpoint": endpoint}, select={"how": "tournament"}))
    rounds = [Round(1, tmp_path / "rounds" / "01", [{}] * 16)]
    said: list[str] = []
    with pytest.raises(UserError, match=r"160 calls are allowed, and .* 4 samples of 16 prompts may take 161"):
        estimate(made, rounds, tmp_path / "judge-calls", said.append)
    (tmp_path / "judge-calls").write_text("." * 41)
    estimate(made, rounds, tmp_path / "judge-calls", said.append)
    assert said[-1].endswith("in both orders; 41 were made before, and what they answered is not asked again")


def test_rounds_that_a_guard_stopped_say_in_which_round_and_why(world: Path, tmp_path: Path) -> None:
    watch = {"probe_pairs": 0, "report": True}
    with pytest.raises(Stopped) as stop:
        go(world, tmp_path, rounds={"count": 2, "prompts": 8}, train={"learning_rate": 1e30}, watch=watch)
    found = load_run(tmp_path / "tiny")
    assert found.facts["stopped"] == f"round 1: {stop.value}"
    assert not found.finished
    trained = tmp_path / "tiny" / "rounds" / "01" / "train"
    assert load_run(trained).facts["stopped"] == str(stop.value)
    assert "was stopped before its end" in (trained / "report.html").read_text()


def test_rounds_take_fresh_prompts_and_every_prompt_has_its_samples(finished: Any) -> None:
    run = finished[0]
    prompts = pq.read_table(run / "prompts.parquet").to_pylist()
    assert [line["round"] for line in prompts] == [1] * 8 + [2] * 8
    assert len({line["row"] for line in prompts}) == 16
    assert [line["row"] for line in prompts] != sorted(line["row"] for line in prompts)
    for number in (1, 2):
        samples = rows(run, number, "samples/*.parquet")
        mine = [line["row"] for line in prompts if line["round"] == number]
        assert [(s["row"], s["index"]) for s in samples] == [(row, k) for row in mine for k in range(4)]
        assert [file.name for file in sorted((run / f"rounds/0{number}/samples").iterdir())] == [
            f"part-0000{i}.parquet" for i in range(3)
        ]


def test_samples_are_those_of_the_rounds_policy_however_they_are_dealt_out(world: Path, finished: Any) -> None:
    run = finished[0]
    prompts = pq.read_table(run / "prompts.parquet").to_pylist()
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    for number, folder in ((1, world / "model"), (2, run / "rounds/01/train/model")):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        mine = [line for line in prompts if line["round"] == number]
        ids = [line["prompt_ids"] for line in mine]
        keys = [prompt_key(line["prompt_ids"], line["row"]) for line in mine]
        sampler = Sampler(Sampling(samples=4, max_new_tokens=6, batch_size=7), tokenizer, 5)
        with torch.no_grad():
            drawn = sampler(model, ids, keys, number, device=torch.device("cpu"))
        assert [list(s.ids) for group in drawn for s in group] == [
            s["ids"] for s in rows(run, number, "samples/*.parquet")
        ]


def test_pairs_are_the_best_and_the_worst_by_the_rule(finished: Any) -> None:
    run = finished[0]

    def worth(text: str) -> float:
        words = [int(word[1:]) for word in text.split()]
        return sum(word % 7 for word in words) / max(len(words), 1)

    for number in (1, 2):
        judged = rows(run, number, "judged/*.parquet")
        pairs = {pair["row"]: pair for pair in rows(run, number, "pairs.parquet")}
        for row in {line["row"] for line in judged}:
            group = [line for line in judged if line["row"] == row]
            assert [line["score"] for line in group] == pytest.approx([worth(line["text"]) for line in group])
            best = max(group, key=lambda line: line["score"])
            worst = min(group, key=lambda line: line["score"])
            assert pairs[row]["chosen_ids"] == best["ids"]
            assert pairs[row]["rejected_ids"] == worst["ids"]
            assert {line["selected"]: line["index"] for line in group if line["selected"]} == {
                "chosen": best["index"],
                "rejected": worst["index"],
            }


def test_the_four_log_probs_are_those_of_the_initial_and_the_previous_policy(world: Path, finished: Any) -> None:
    run = finished[0]
    initial = AutoModelForCausalLM.from_pretrained(world / "model", dtype="float32").eval()
    previous = AutoModelForCausalLM.from_pretrained(run / "rounds/01/train/model", dtype="float32").eval()
    for number, models in ((1, (initial, initial)), (2, (initial, previous))):
        pairs = rows(run, number, "pairs.parquet")
        for pair in pairs:
            for name, model in zip(("initial", "previous"), models, strict=True):
                for branch in ("chosen", "rejected"):
                    expected = logp(model, pair["prompt_ids"], pair[f"{branch}_ids"])
                    assert pair[f"{branch}_logp_{name}"] == pytest.approx(expected, abs=2e-5)
        apart = [abs(pair["chosen_logp_initial"] - pair["chosen_logp_previous"]) for pair in pairs]
        assert (max(apart) > 1e-3) == (number == 2)


def test_training_starts_at_the_loss_that_the_log_probs_say(finished: Any) -> None:
    run = finished[0]
    lines = [json.loads(line) for line in (run / "rounds/02/train/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    pairs = rows(run, 2, "pairs.parquet")
    h = [
        0.25
        * (
            (p["chosen_logp_previous"] - p["rejected_logp_previous"])
            - (p["chosen_logp_initial"] - p["rejected_logp_initial"])
        )
        for p in pairs
    ]
    # the first step, before any update, is over four of the eight pairs
    steps = [sum((x - 5) ** 2 for x in four) / 4 for four in combinations(h, 4)]
    assert min(abs(losses[0] - loss) for loss in steps) < 1e-4
    assert losses[0] != pytest.approx(25.0, abs=1e-3)


def test_only_the_first_round_warms_up(finished: Any) -> None:
    """A tenth of six steps is one step, where each round alone would give one of three."""
    locks = [yaml.safe_load((finished[0] / f"rounds/0{n}/train/recipe.lock.yaml").read_text()) for n in (1, 2)]
    assert [lock["recipe"]["train"]["warmup_steps"] for lock in locks] == [1, 0]


def test_the_run_ends_with_a_model_a_card_a_verdict_and_a_line_for_each_round(finished: Any) -> None:
    run, said = finished
    final, last = (load_file(run / name / "model.safetensors") for name in ("model", "rounds/02/train/model"))
    assert all(torch.equal(final[key], last[key]) for key in last)
    verdict = json.loads((run / "verdict.json").read_text())
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics == verdict["rounds"]
    assert [line["round"] for line in metrics] == [1, 2]
    for line in metrics:
        judged = rows(run, line["round"], "judged/*.parquet")
        assert line["samples"] == 32
        assert line["pairs"] == 8
        assert line["score"] == pytest.approx(sum(row["score"] for row in judged) / 32)
        assert line["truncated"] == sum(len(row["ids"]) == 6 for row in judged) / 32
        assert line["loss"][0] > line["loss"][1]
    assert "Iterative Nash Policy Optimization" in (run / "model/README.md").read_text()
    assert "/tmp" not in (run / "README.md").read_text()
    assert sum(line.startswith("round  pairs") for line in said) == 3
    lock = yaml.safe_load((run / "recipe.lock.yaml").read_text())
    assert Recipe.from_dict(lock["recipe"]).dump() == lock["recipe"]
    assert "set data.held_out" not in "\n".join(said)


def test_stages_that_are_there_are_not_done_again(world: Path, finished: Any, tmp_path: Path) -> None:
    run, kept = finished[0], tmp_path / "kept"
    shutil.copytree(run, kept)
    with pytest.raises(UserError, match="already holds a run"):
        go(world, run.parent)
    with pytest.raises(UserError, match="holds a finished run"):
        go(world, run.parent, resume=True)
    (run / "verdict.json").unlink()
    shutil.rmtree(run / "model")
    second = run / "rounds/02"
    shutil.rmtree(second / "train")
    for name in (
        "pairs.parquet",
        "samples/part-00002.parquet",
        "judged/part-00001.parquet",
        "judged/part-00002.parquet",
    ):
        (second / name).unlink()
    untouched = second / "samples/part-00001.parquet"
    before, calls = untouched.stat().st_mtime_ns, len(judged_calls(world))
    lines = go(world, run.parent, resume=True, rounds=KEPT)
    assert untouched.stat().st_mtime_ns == before
    assert judged_calls(world)[calls:] == [("score", 12), ("score", 8)]
    assert not any("round 1 of 2" in line for line in lines)
    for file in (p for p in kept.rglob("*") if p.suffix in (".parquet", ".safetensors") or p.name == "metrics.jsonl"):
        mine = run / file.relative_to(kept)
        if file.name == "metrics.jsonl" and "train" in file.parts:
            continue  # has speeds
        assert mine.read_bytes() == file.read_bytes(), mine


def test_rounds_that_were_moved_go_on_where_they_lie_now(world: Path, finished: Any, tmp_path: Path) -> None:
    """In the middle of a round's training, whose recipe names files of the run by their whole paths."""
    run, moved = finished[0], tmp_path / "elsewhere" / "tiny"
    shutil.copytree(run, moved)
    (moved / "verdict.json").unlink()
    shutil.rmtree(moved / "model")
    (moved / "rounds/02/train/verdict.json").unlink()
    shutil.rmtree(moved / "rounds/02/train/model")
    lines = go(world, moved.parent, resume=True)  # and no longer keeps its checkpoints
    assert any(line.startswith("resuming from checkpoint-") for line in lines)
    same(run, moved)
    records = [(moved / name).read_text() for name in ("metrics.jsonl", "rounds/01/train/metrics.jsonl")]
    assert records == [(run / name).read_text() for name in ("metrics.jsonl", "rounds/01/train/metrics.jsonl")]


def test_rounds_hold_their_directory_and_keep_the_examples_of_a_step(
    world: Path, finished: Any, tmp_path: Path
) -> None:
    shutil.copytree(finished[0], tmp_path / "tiny")
    (tmp_path / "tiny/verdict.json").unlink()
    held = Running(tmp_path / "tiny", print)
    with pytest.raises(UserError, match="is in use by process"):
        go(world, tmp_path, resume=True)
    held.release()
    lock = yaml.safe_load((tmp_path / "tiny/recipe.lock.yaml").read_text())
    assert len(lock["run"]) == 32
    lock["examples_per_step"] *= 3
    (tmp_path / "tiny/recipe.lock.yaml").write_text(yaml.safe_dump(lock))
    with pytest.raises(UserError, match=r"Set train\.gradient_accumulation_steps=3\."):
        go(world, tmp_path, resume=True)


def test_a_lock_file_without_template_arguments_gives_a_round_those_of_the_recipe(world: Path, tmp_path: Path) -> None:
    """As an older version left it."""
    made = Recipe.from_dict(values(world, tmp_path))
    directory = RunDirectory(tmp_path / "tiny")
    directory.write_lock({"recipe": made.dump()})
    assert train_recipe(made, directory.path, 1, 0).data.template_arguments == {}
    directory.write_lock({"recipe": made.dump(), "template_arguments": {"strftime_now": "2024-07-26"}})
    assert train_recipe(made, directory.path, 1, 0).data.template_arguments == {"strftime_now": "2024-07-26"}


def test_a_changed_recipe_prompts_or_model_is_not_gone_on_with(world: Path, finished: Any, tmp_path: Path) -> None:
    out = finished[0].parent
    with pytest.raises(UserError, match=r"sampling\.samples: was 4, is 2"):
        go(world, out, resume=True, sampling={"samples": 2, "max_new_tokens": 6})
    go(world, tmp_path / "b", **ONE)
    run = tmp_path / "b" / "tiny"
    (run / "verdict.json").unlink()
    (run / "rounds/01/train/verdict.json").unlink()
    (run / "rounds/01/samples/part-00000.parquet").unlink()
    (run / "rounds/01/pairs.parquet").unlink()
    (run / "rounds/01/policy.json").write_text('{"digest": "another"}')
    with pytest.raises(UserError, match="the policy that this round was begun with has changed"):
        go(world, tmp_path / "b", resume=True, **ONE)
    table = pq.read_table(run / "prompts.parquet")
    pq.write_table(table.slice(0, 5), run / "prompts.parquet")
    with pytest.raises(UserError, match=r"prompts\.parquet is not what it was"):
        go(world, tmp_path / "b", resume=True, **ONE)


@pytest.mark.parametrize("reference", ["initial", "previous"])
def test_dpo_with_an_adapter_and_a_judge_that_compares(world: Path, tmp_path: Path, reference: str) -> None:
    """The adapter goes on; the reference is the one that rounds.reference names; bias and ties are counted."""
    go(
        world,
        tmp_path,
        model={"id": str(world / "model"), "dtype": "float32", "lora": {"rank": 4, "alpha": 32}},
        objective={"name": "dpo", "beta": 0.5},
        judge={"function": "round_rules:compare"},
        select={"how": "tournament"},
        rounds={"count": 2, "prompts": 8, "reference": reference},
        train={"max_steps": 2, "save_strategy": "no", "learning_rate": 0.02, "warmup_steps": 0},
    )
    run = tmp_path / "tiny"
    first, second = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    assert first["loss"][0] == pytest.approx(0.6931472, abs=1e-5)
    assert first["loss"][1] != pytest.approx(0.6931472, abs=1e-3)
    at_start = second["loss"][0] == pytest.approx(0.6931472, abs=1e-5)
    assert at_start == (reference == "previous")
    one, two = (load_file(run / f"rounds/0{n}/train/model/adapter_model.safetensors") for n in (1, 2))
    assert set(one) == set(two)
    assert any(not torch.equal(one[key], two[key]) for key in one)
    final = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world / "model"), run / "model")
    assert final.peft_config["default"].r == 4
    notes = [json.loads(f.read_text()) for f in sorted((run / "rounds/01/judged").glob("*.json"))]
    # five comparisons to a prompt: 3 K / 2 - 1
    assert first["comparisons"] == sum(note["comparisons"] for note in notes) == 5 * 8
    # the rule says .9, .5 or .3: the mean over both orders of showing is .6 where the worth differs
    unequal = 40 - first["ties"] - first["dropped"].get("prompts whose final comparison was a tie", 0)
    assert first["position_bias"] == pytest.approx(0.1 * unequal / 40)
    assert first["pairs"] + sum(first["dropped"].values()) == 8


def test_mistakes_are_said_before_anything_is_drawn(world: Path, tmp_path: Path) -> None:
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=match):
            go(world, tmp_path, **changes)
        assert not (tmp_path / "tiny" / "rounds").exists()

    refused("add --allow-code", allow_code=False)
    refused(f"3 rounds of 8 fresh prompts each need 24, and there are {PROMPTS}", rounds={"count": 3, "prompts": 8})
    refused("round_rules:compare compares: use tournament", judge={"function": "round_rules:compare"})
    refused("compares distributions", objective=[{"name": "dpo"}, {"name": "kl"}])
    refused(r"judge\.reward: .*no such folder", judge={"reward": str(world / "nowhere")})
    endpoint = {"url": "http://localhost:9/v1", "model": "m", "max_calls": 100}
    refused(r"may take 161\. Nothing was started", judge={"endpoint": endpoint}, select={"how": "tournament"})


def test_prompts_of_several_sources_are_told_apart_and_shared_out_evenly(world: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"prompt": f"w9 w{i}"}) + "\n" for i in range(10, 15)))
    long = {"prompt": " ".join(["w7"] * 59)}  # with six new tokens it has one more than data.max_length
    few.write_text(few.read_text() + json.dumps(long) + "\n")
    data = {"train": [{"path": str(world / "prompts.jsonl")}, {"path": str(few)}], "max_length": 64}
    made = Recipe.from_dict(values(world, tmp_path, data=data, rounds={"count": 3}))
    said: list[str] = []
    deal(made, None, {}, tmp_path / "prompts.parquet", said.append)
    lines = pq.read_table(tmp_path / "prompts.parquet").to_pylist()
    assert [line["round"] for line in lines] == [n for n in (1, 2, 3) for _ in range((PROMPTS + 5) // 3)]
    assert len({line["row"] for line in lines}) == len(lines)
    assert any("1 row dropped" in line for line in said)
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    assert all(tokenizer(json.loads(line["prompt"])).input_ids == line["prompt_ids"] for line in lines)


def test_no_pair_left_is_a_sentence(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Round 1: no pair is left of 8 prompts \(8 prompts with equal scores\)"):
        go(world, tmp_path, judge={"function": "round_rules:same"}, **ONE)


def test_a_judge_that_looks_at_the_order_alone_is_named_as_the_reason(world: Path, tmp_path: Path) -> None:
    """More samples would not help it."""
    with pytest.raises(UserError) as refused:
        go(world, tmp_path, judge={"function": "round_rules:first_shown"}, select={"how": "tournament"}, **ONE)
    assert str(refused.value) == (
        "Round 1: no pair is left of 8 prompts (8 prompts whose final comparison was a tie). The judge prefers what it "
        "is shown first in nearly every question (position bias +0.500), whatever the answers are: take another judge."
    )


def test_a_server_must_serve_the_rounds_policy_and_draw_from_it(world: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(world / "model", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    with PolicyServer(model, tokenizer, "llama.cpp") as server:
        sampling = {"samples": 4, "max_new_tokens": 6, "server": {"url": server.url, "key_env": "ALIGN_TEST_KEY"}}
        options = {**ONE, "sampling": sampling}
        with pytest.raises(UserError, match=r"does not serve align-[0-9a-f]{12}, the policy as it is now") as refused:
            go(world, tmp_path / "a", **options)
        served = re.findall("align-[0-9a-f]{12}", str(refused.value))[0]
        assert f"vllm serve {world / 'model'} --served-model-name {served}" in str(refused.value)
        server.models = (served,)
        server.off = -0.4  # its log-probs are those of other weights
        with pytest.raises(UserError, match=r"differ from the policy's by 0\.4 nats a token") as other:
            go(world, tmp_path / "a", resume=True, **options)
        assert "thrown away. Start it on this checkpoint and go on with --resume:\n" in str(other.value)
        folder = tmp_path / "a" / "tiny" / "rounds" / "01"
        assert sorted(file.name for file in folder.iterdir()) == ["policy.json"]
        server.off, server.bodies = 0.0, []
        lines = go(world, tmp_path / "a", resume=True, **options)
    (fits,) = [line for line in lines if "it draws from the policy as far as" in line]
    assert float(fits.removesuffix(" nats a token").split()[-1]) < 1e-5
    drawn = [body for body in server.bodies if body["max_tokens"] == 6]
    # of two slots: eight prompts in two calls each, those of the check among them, which are not drawn twice
    assert [body["n"] for body in drawn] == [2] * 16


class Longest(ScoreJudge):
    name = "longest"

    def score(self, prompts: Any, responses: Any) -> list[float]:
        assert len(prompts) == len(responses)
        return [float(sum(int(word[1:]) % 7 for word in text.split())) for text in responses]


def test_the_trainer_in_python_is_the_run_of_the_recipe(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same settings as a recipe's give the same weights, to the bit."""
    monkeypatch.syspath_prepend(world)  # a judge's module is looked up beside the recipe, or as Python finds it
    judge = Judge(function="round_rules:score")
    (tmp_path / "py").mkdir()
    go(world, tmp_path / "a", **ONE)
    made = load_recipe(write_recipe(world, tmp_path / "a", **ONE))
    args = made.training_arguments(output_dir=tmp_path / "py" / "tiny", disable_tqdm=True)
    trainer = INPOTrainer(
        str(world / "model"),
        INPO(eta=0.1, tau_ratio=0.25),
        args,
        train_dataset=Dataset.from_json(str(world / "prompts.jsonl"), cache_dir=str(tmp_path / "cache")),
        judge=judge,
        sampling=Sampling(samples=4, max_new_tokens=6),
        rounds=Rounds(count=1, prompts=8),
        max_length=64,
        allow_code=True,
        echo=lambda _: None,
    )
    result = trainer.train()
    assert result.steps == 1
    weights = [load_file(tmp_path / name / "tiny/model/model.safetensors") for name in ("a", "py")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    with pytest.raises(UserError, match="already holds a run"):
        trainer.train()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own way with a large file
def test_what_python_has_trained_in_rounds_is_pushed_as_align_push_does(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(world)
    args = TrainingArguments(
        output_dir=str(tmp_path / "mine"), use_cpu=True, report_to="none", max_steps=1, logging_steps=1
    )
    trainer = RoundTrainer(
        str(world / "model"),
        None,
        args,
        train_dataset=Dataset.from_json(str(world / "prompts.jsonl"), cache_dir=str(tmp_path / "cache")),
        judge=Judge(function="round_rules:score"),
        sampling=Sampling(samples=4, max_new_tokens=6),
        rounds=Rounds(count=1, prompts=8),
        max_length=64,
        allow_code=True,
        echo=lambda _: None,
    )
    with HubServer() as hub:
        hub.here(monkeypatch, tmp_path / "home", token=None)
        with pytest.raises(UserError, match=r"mine: the rounds have not come to their end, so there is no model to"):
            trainer.push_to_hub(token=hub.token)
        assert not hub.repos
        trainer.train()
        assert trainer.push_to_hub(token=hub.token) == f"{hub.url}/ada/mine"
        there = {entry.name: entry.read() for entry in listing(tmp_path / "mine").entries}
        assert "model.safetensors" in there
        assert hub.files("ada/mine") == there
        repo = hub.repos["models", "ada/mine"]
        assert repo.private
        commits = len(repo.titles)
        assert trainer.push_to_hub(token=hub.token) == f"{hub.url}/ada/mine"
        assert len(repo.titles) == commits
        trainer.push_to_hub("lab/x", private=False, revision="trial", token=hub.token)
        repo = hub.repos["models", "lab/x"]
        assert (repo.private, set(repo.heads)) == (False, {"main", "trial"})
        trainer.directory.writer = False  # as on the other processes
        assert trainer.push_to_hub("lab/y", token=hub.token) == ""
        assert ("models", "lab/y") not in hub.repos


def test_arguments_in_python_are_checked(world: Path, tmp_path: Path) -> None:
    data = Dataset.from_list([{"prompt": f"w{i} w4"} for i in range(3, 9)])
    args = TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none", learning_rate=3e-4)
    common: dict[str, Any] = {"train_dataset": data, "judge": Longest()}
    made = RoundTrainer(str(world / "model"), None, args, peft_config=peft.LoraConfig(r=2, lora_alpha=3), **common)
    assert made.recipe.objective_value() == DPO()
    assert made.recipe.train["learning_rate"] == 3e-4
    assert made.recipe.model.lora is not None
    assert (made.recipe.model.lora.rank, made.recipe.model.lora.alpha) == (2, 3)
    model = AutoModelForCausalLM.from_pretrained(world / "model")
    with pytest.raises(UserError, match="loads it anew, so give its name or folder"):
        RoundTrainer(model, None, args, **common)
    with pytest.raises(UserError, match="peft_config sets use_dora"):
        RoundTrainer(str(world / "model"), None, args, peft_config=peft.LoraConfig(use_dora=True), **common)
    with pytest.raises(UserError, match="INPOTrainer trains with INPO"):
        INPOTrainer(str(world / "model"), DPO(), args, **common)
    with pytest.raises(UserError, match=r"select\.how: .*use best_worst or tournament"):
        RoundTrainer(str(world / "model"), None, args, select=Select(how="top"), **common)
    odd = TrainingArguments(output_dir=str(tmp_path / "odd"), use_cpu=True, report_to="none", neftune_noise_alpha=5.0)
    with pytest.raises(UserError, match=r"args\.neftune_noise_alpha is 5\.0, which rounds do not take"):
        RoundTrainer(str(world / "model"), None, odd, **common)
    tournament = RoundTrainer(
        str(world / "model"), None, args, select=Select(how="tournament"), echo=lambda _: None, **common
    )
    with pytest.raises(UserError, match="longest gives scores: use best_worst"):
        tournament.train()


def test_an_error_of_one_process_reaches_all(monkeypatch: pytest.MonkeyPatch) -> None:
    import align.runs.processes as module

    world = World(1, 2, torch.device("cpu"))
    monkeypatch.setattr(module, "gather_object", lambda mine: [("DoesNotFit", "too large"), *mine])
    with pytest.raises(UserError, match="too large") as caught:
        world.together(lambda: None)
    assert caught.value.exit_code == 3


# ---- killed without warning, and in several processes


LAUNCHERS = {
    "ddp": ("recipes/accelerate/cpu2-ddp.yaml",),
    # ranks beside the first would load no weights, were they not told to
    "fsdp2": ("recipes/accelerate/cpu2-fsdp2.yaml", "--fsdp_cpu_ram_efficient_loading", "true"),
}


def launch(world: Path, out: Path, *words: str, label: str = "", kill: str = "", **changes: Any) -> int:
    recipe = write_recipe(world, out, **changes)
    command = [sys.executable]
    if label:
        config, *options = LAUNCHERS[label]
        command += ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / config), *options]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "FSDP_")) and k != "WORLD_SIZE"}
    env = kept | {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "PYTHONWARNINGS": "ignore",
    }
    env |= {"ALIGN_TEST_KILL_AT": kill} if kill else {}
    script = str(ROOT / "tests/round_runs.py")
    done = subprocess.run(
        [*command, script, str(recipe), *words], env=env, capture_output=True, text=True, timeout=400, check=False
    )
    print(done.stdout, done.stderr[-5000:])
    return done.returncode


def same(one: Path, two: Path) -> None:
    """Samples, scores, pairs and weights are equal to the bit."""
    files = [*one.rglob("*.parquet"), *one.rglob("model/*.safetensors")]
    assert len(files) > 10
    for file in files:
        assert (two / file.relative_to(one)).read_bytes() == file.read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize("kill", ["sample:5", "judge:2", "pairs:2", "train:5", "finish:1"])
def test_a_run_killed_in_any_stage_goes_on_as_if_nothing_had_happened(
    world: Path, finished: Any, tmp_path: Path, kill: str
) -> None:
    before = len(judged_calls(world))
    assert launch(world, tmp_path, kill=kill) == -9
    assert not (tmp_path / "tiny" / "verdict.json").exists()
    drawn = {p: p.stat().st_mtime_ns for p in (tmp_path / "tiny").rglob("samples/*.parquet")}
    assert launch(world, tmp_path, "--resume") == 0
    same(finished[0], tmp_path / "tiny")
    assert all(p.stat().st_mtime_ns == time for p, time in drawn.items())
    # and the two answers of the trial, before anything was drawn
    assert sum(count for _, count in judged_calls(world)[before:]) == 2 + 2 * 32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "last"),
    [
        ("sample:5:SIGTERM", "Interrupted by SIGTERM."),
        ("judge:2:SIGUSR1", "Interrupted by SIGUSR1."),
        ("pairs:1:SIGTERM", "Interrupted by SIGTERM."),
        ("train:5:SIGTERM", "Stopped by SIGTERM at step 2, which is saved."),
        ("finish:1:SIGTERM", "Interrupted by SIGTERM."),
    ],
)
def test_a_signal_in_any_stage_ends_the_run_with_a_word_and_costs_nothing(
    world: Path, finished: Any, tmp_path: Path, at: str, last: str, capfd: Any
) -> None:
    assert launch(world, tmp_path, kill=at) == 4
    assert f"{last} Finished stages are kept. Go on: python -m align.train " in capfd.readouterr().out
    assert launch(world, tmp_path, "--resume") == 0
    same(finished[0], tmp_path / "tiny")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "kill", "load"),
    [("ddp", "judge:4", "each"), ("fsdp2", "", "each"), ("ddp", "", "sharded"), ("fsdp2", "", "first")],
)
def test_two_processes_draw_judge_and_score_as_one_does(
    world: Path, finished: Any, tmp_path: Path, label: str, kill: str, load: str, capfd: Any
) -> None:
    """Under DDP one of them is killed in the second round."""
    half = {
        "train": {"per_device_train_batch_size": 2},
        "rounds": {"count": 2, "prompts": 8, "load": load},
    }
    if kill:
        assert launch(world, tmp_path, label=label, kill=kill, **half) != 0
    assert launch(world, tmp_path, *(["--resume"] if kill else []), label=label, **half) == 0
    one, two = finished[0], tmp_path / "tiny"
    for file in (one / "rounds/01").rglob("*.parquet"):
        assert (two / file.relative_to(one)).read_bytes() == file.read_bytes(), file
    mine, theirs = (load_file(folder / "model/model.safetensors") for folder in (two, one))
    for key in theirs:
        torch.testing.assert_close(mine[key], theirs[key], rtol=0, atol=1e-5)
    records, expected = (json.loads((run / "verdict.json").read_text())["rounds"] for run in (two, one))
    assert [record["pairs"] for record in records] == [8, 8]
    for record, other in zip(records, expected, strict=True):
        assert record["loss"] == pytest.approx(other["loss"], abs=1e-3)
    cut_up = re.findall(
        r"the policy is cut up over 2 processes: ([\d.]+) of ([\d.]+) MB on each", capfd.readouterr().out
    )
    # sampled with, scored with; in the second round scored with the initial one, too
    assert len(cut_up) == (5 if load == "sharded" else 0)
    assert all(float(share) == pytest.approx(float(whole) / 2, abs=0.11) for share, whole in cut_up)


@pytest.mark.slow
def test_an_adapter_on_a_policy_that_is_cut_up_draws_and_scores_as_on_a_whole_one(world: Path, tmp_path: Path) -> None:
    lora = {"id": str(world / "model"), "dtype": "float32", "lora": {"rank": 4}}
    go(world, tmp_path / "one", model=lora)
    rounds = {"count": 2, "prompts": 8, "load": "sharded"}
    train = {"per_device_train_batch_size": 2}
    assert launch(world, tmp_path / "two", label="ddp", model=lora, rounds=rounds, train=train) == 0
    for number in ("01", "02"):
        files = sorted((tmp_path / "one" / "tiny" / "rounds" / number).glob("*/*.parquet"))
        assert len(files) == 6
        for file in files:
            assert (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes() == file.read_bytes(), file
    before, after = (
        [
            (row["chosen_logp_initial"], row["chosen_logp_previous"])
            for row in rows(tmp_path / name / "tiny", 2, "pairs.parquet")
        ]
        for name in ("one", "two")
    )
    assert before == [(pytest.approx(a, abs=1e-5), pytest.approx(b, abs=1e-5)) for a, b in after]
    assert any(abs(a - b) > 1e-4 for a, b in before)  # the adapter has learned something


def test_values_are_a_valid_recipe(world: Path, tmp_path: Path) -> None:
    made = Recipe.from_dict(values(world, tmp_path))
    assert Recipe.from_dict(made.dump()) == made
