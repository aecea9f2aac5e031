"""Whole runs of recipes: what they leave behind, how they stop, and that they go on as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from small_run import recipe, small_world
from transformers import AutoTokenizer

from align.errors import Exit, Stopped, UserError
from align.models.subject import Subject
from align.recipe import Recipe
from align.runs.directory import RunDirectory, differences
from align.train import RunResult, main, run

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world(tmp_path_factory.mktemp("world"))


def quietly(made: Recipe, **options: Any) -> tuple[RunResult, list[str]]:
    lines: list[str] = []
    return run(made, echo=lines.append, **options), lines


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model" / "model.safetensors")


def losses(directory: Path) -> list[tuple[int, float, float]]:
    return [(r["step"], r["loss"], r["grad_norm"]) for r in RunDirectory(directory).metrics() if "loss" in r]


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, list[str], Path]:
    """One uninterrupted run."""
    out = tmp_path_factory.mktemp("finished")
    result, lines = quietly(recipe(world, out))
    return result, lines, out / "tiny"


def test_a_run_leaves_a_lock_metrics_checkpoints_a_model_and_a_verdict(finished: Any) -> None:
    result, lines, directory = finished
    lock = yaml.safe_load((directory / "recipe.lock.yaml").read_text())
    assert lock["recipe"]["objective"]["name"] == "dpo"
    assert len(lock["data"]) == len(lock["reference"]) == 64
    assert torch.__version__.startswith(lock["versions"]["torch"])
    assert [p.name for p in RunDirectory(directory).checkpoints()] == ["checkpoint-8", "checkpoint-10"]
    records = RunDirectory(directory).metrics()
    assert records[0]["step"] == 0
    assert records[0]["probe"]["chosen"]["value"] == 0.0
    (start,) = [r["reference"] for r in records if "reference" in r]
    assert (start["rows_stored"], start["rows_computed"]) == (0, 104)  # 40 training and 12 held-out pairs
    assert 0 <= start["noise_per_answer"] < 1e-4
    said = "reference: 0 rows stored, 104 computed; same row in another pack differs by "
    assert sum(line.startswith(said) for line in lines) == 1
    assert [r["step"] for r in records if "eval_loss" in r] == [5, 10, 10]
    assert json.loads((directory / "verdict.json").read_text())["findings"] == result.verdict["findings"]
    assert result.steps == 10
    assert any(line.split()[:2] == ["step", "loss"] for line in lines)
    assert any(line.strip().startswith("learned") for line in lines)


def test_the_card_states_objective_result_and_limits(finished: Any) -> None:
    card = (finished[2] / "model" / "README.md").read_text()
    for part in ("Direct Preference Optimization", "beta = 0.1", "learned", "## Limits", "train.jsonl", "2305.18290"):
        assert part in card
    assert "/" + "tmp" not in card  # folders of this machine are nobody's business


def test_probe_readings_are_the_held_out_log_probs_of_the_saved_model(world: Path, finished: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [json.loads(line) for line in (world / "held_out.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(world / "model")

    def chosen(folder: Path) -> float:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        total = 0.0
        for row in rows:
            prompt = len(tokenizer(row["prompt"]).input_ids)
            ids = torch.tensor([tokenizer(row["prompt"] + row["chosen"] + tokenizer.eos_token).input_ids])
            logp = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            total += logp[prompt - 1 :].sum().item()
        return total / len(rows)

    last = [r for r in RunDirectory(finished[2]).metrics() if "probe" in r][-1]["probe"]
    assert last["n"] == len(rows)
    change = chosen(finished[2] / "model") - chosen(world / "model")
    assert last["chosen"]["value"] == pytest.approx(change, abs=1e-3)


def test_a_second_run_in_the_same_place_is_refused(world: Path, finished: Any) -> None:
    with pytest.raises(UserError, match="already holds a run"):
        quietly(recipe(world, finished[2].parent))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train": {"learning_rate": 1e-3}}, "train.learning_rate: was 0.003, is 0.001"),
        ({"objective": {"name": "dpo", "beta": 0.2}}, "objective.beta: was 0.1, is 0.2"),
    ],
)
def test_resuming_with_another_recipe_says_what_differs(
    world: Path, finished: Any, changes: dict, sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        quietly(recipe(world, finished[2].parent, **changes), resume=True)
    assert sentence in str(caught.value)


def test_resuming_without_a_run_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run to resume"):
        quietly(recipe(world, tmp_path), resume=True)


def test_resuming_after_the_data_changed_is_refused(world: Path, tmp_path: Path) -> None:
    rows = (world / "train.jsonl").read_text()
    moved = tmp_path / "train.jsonl"
    moved.write_text(rows)
    made = recipe(
        world,
        tmp_path,
        data={"train": {"path": str(moved)}},
        train={"eval_strategy": "no", "eval_steps": None, "max_steps": 4},
    )
    quietly(made)
    (tmp_path / "tiny" / "verdict.json").unlink()
    moved.write_text(rows.replace("blue", "pink"))
    with pytest.raises(UserError, match="the data changed since this run was started"):
        quietly(made, resume=True)


@pytest.mark.slow  # tests/test_train_resume.py kills at some steps in make test
def test_killed_in_the_middle_and_resumed_is_bitwise_the_uninterrupted_run(
    world: Path, finished: Any, tmp_path: Path
) -> None:
    made = recipe(world, tmp_path)
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(made.dump()))
    env = {**os.environ, "ALIGN_TEST_DIE_AT": "6"}
    killed = subprocess.run([sys.executable, str(HERE / "killed.py"), str(file)], env=env, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    # a checkpoint that was being written when the power went does not count
    half = tmp_path / "tiny" / "checkpoint-6"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert [p.name for p in RunDirectory(tmp_path / "tiny").checkpoints()] == ["checkpoint-4"]
    _, lines = quietly(made, resume=True)
    assert "resuming from checkpoint-4" in lines
    assert losses(tmp_path / "tiny") == losses(finished[2])
    whole, resumed = weights(finished[2]), weights(tmp_path / "tiny")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    def probes(directory: Path) -> list:
        return [(r["step"], r["probe"]) for r in RunDirectory(directory).metrics() if "probe" in r]

    assert probes(tmp_path / "tiny") == probes(finished[2])


def test_a_sweep_pays_for_the_reference_once(world: Path, finished: Any, tmp_path: Path) -> None:
    first = finished[0]
    assert first.reference_rows >= 2 * 52  # training and held-out answers
    second, lines = quietly(
        recipe(
            world,
            tmp_path,
            objective={"name": "flex_dpo"},
            reference={"store_dir": str(finished[2].parent / "store")},
            seed=5,
            train={"learning_rate": 1e-4, "per_device_train_batch_size": 4},
        )
    )
    assert second.reference_rows == 0
    assert second.stored_rows > 0
    note = "note: all reference rows are stored; the reference model is kept to judge the policy's own answers "
    assert note + "(watch.probe_answers: 0 goes without both)" in lines


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(world: Path, tmp_path: Path) -> None:
    made = recipe(world, tmp_path, train={"learning_rate": 1e30, "max_grad_norm": 0.0, "save_steps": 1, "optim": "sgd"})
    with pytest.raises(Stopped, match="was not finite at or before step"):
        quietly(made)
    for checkpoint in RunDirectory(tmp_path / "tiny").checkpoints():
        saved = load_file(checkpoint / "model.safetensors")
        assert all(t.isfinite().all() for t in saved.values())
    assert not (tmp_path / "tiny" / "model").exists()


def test_nothing_broken_is_saved_between_log_steps_or_at_the_end(world: Path, tmp_path: Path) -> None:
    broken = {"learning_rate": 1e30, "max_grad_norm": 0.0, "optim": "sgd", "logging_steps": 100}
    made = recipe(world, tmp_path / "a", train={**broken, "save_steps": 1})
    with pytest.raises(Stopped, match="was not finite"):
        quietly(made)
    for checkpoint in RunDirectory(tmp_path / "a" / "tiny").checkpoints():
        assert all(t.isfinite().all() for t in load_file(checkpoint / "model.safetensors").values())
    made = recipe(world, tmp_path / "b", train={**broken, "save_strategy": "no"})
    with pytest.raises(Stopped, match="was not finite"):
        quietly(made)
    assert not (tmp_path / "b" / "tiny" / "model").exists()


def test_a_run_shorter_than_a_log_step_is_judged_all_the_same(world: Path, tmp_path: Path) -> None:
    short = {"max_steps": 3, "logging_steps": 10, "save_strategy": "no"}
    result, _ = quietly(recipe(world, tmp_path, train=short))
    assert result.verdict["findings"]["learned"]["word"] == "too few to say"  # of 12 pairs
    assert result.verdict["findings"]["suppression"]["word"] != "not measured"


def test_without_a_reference_the_start_is_measured_on_the_same_pairs(world: Path, tmp_path: Path) -> None:
    made = recipe(world, tmp_path, objective={"name": "simpo"}, train={"learning_rate": 1e-30, "max_steps": 2})
    result, _ = quietly(made)
    learned = result.verdict["findings"]["learned"]
    assert learned["start"] == learned["accuracy"]["value"] == result.evaluation["eval_rewards/accuracies"]
    assert learned["word"] == "too few to say"
    assert result.verdict["findings"]["moved"]["word"] == "no"
    assert result.verdict["findings"]["next"]["text"].startswith("the model hardly moved")


def test_answers_to_held_out_prompts_are_compared_in_length(world: Path, finished: Any) -> None:
    result, _, directory = finished
    found = [r for r in RunDirectory(directory).metrics() if "answer_tokens" in r]
    assert [r["step"] for r in found] == [0, 10]
    rows = [json.loads(line) for line in (world / "held_out.jsonl").read_text().splitlines()]
    for record, folder in zip(found, (world / "model", directory / "model"), strict=True):
        subject = Subject.load(str(folder), echo=str)

        def count(text: str, tokenizer: Any = subject.tokenizer) -> int:
            return len(tokenizer(text).input_ids)

        prompts = [subject.tokenizer(row["prompt"]).input_ids for row in rows]
        longest = max(count(row[side]) for row in rows for side in ("chosen", "rejected"))
        assert record["answer_limit"] == 2 * (longest + 1)  # the end token belongs to an answer
        texts = subject.generate(prompts, record["answer_limit"])
        assert record["answer_tokens"] == [min(max(1, count(text)), record["answer_limit"]) for text in texts]
    length = result.verdict["findings"]["length"]
    assert length["start_tokens"] == sum(found[0]["answer_tokens"]) / 12
    assert length["growth"] == pytest.approx(sum(found[1]["answer_tokens"]) / sum(found[0]["answer_tokens"]) - 1)


def test_prompts_that_leave_no_room_for_an_answer_are_not_answered_and_counted(world: Path, tmp_path: Path) -> None:
    """Rotary positions have no end for training, but an answer would begin beyond them."""
    shutil.copytree(world / "model", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    rows = [json.loads(line) for line in (world / "held_out.jsonl").read_text().splitlines()]
    sizes = [len(tokenizer(row["prompt"]).input_ids) for row in rows]
    longest = max(len(tokenizer(row[side]).input_ids) + 1 for row in rows for side in ("chosen", "rejected"))
    file = tmp_path / "model" / "config.json"
    reach = sorted(sizes)[len(sizes) // 2] + 2 * longest
    fits = sum(size + 2 * longest <= reach for size in sizes)
    for positions, answered in ((reach, fits), (min(sizes), 0)):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": positions}))
        name = f"tiny-{answered}"
        made = recipe(world, tmp_path, name=name, model={"id": str(tmp_path / "model")}, train={"max_steps": 1})
        _, lines = quietly(made)
        said = [line for line in lines if line.startswith("watch.probe_answers")]
        assert said == [
            f"watch.probe_answers: {answered} of 12 prompts are answered; the others leave no room for {2 * longest} "
            f"tokens in the {positions} that the model reads"
        ]
        found = [r["answer_tokens"] for r in RunDirectory(tmp_path / name).metrics() if "answer_tokens" in r]
        assert [len(tokens) for tokens in found] == ([answered] * 2 if answered else [])


def test_scales_of_its_own_have_a_column_of_their_own(world: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (world / "held_out.jsonl").read_text().splitlines()]
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    (tmp_path / "swapped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in swapped))
    data = {"train": {"path": str(world / "train.jsonl")}, "held_out": {"path": str(tmp_path / "swapped.jsonl")}}
    flex = {"name": "flex_dpo", "beta_plus": 0.1, "beta_minus": 0.0}
    made = recipe(world, tmp_path, data=data, objective=flex, train={"max_steps": 4}, watch={"probe_answers": 0})
    result, lines = quietly(made)
    columns = next(line.split() for line in lines if line.split()[:2] == ["step", "loss"])
    assert columns[:6] == ["step", "loss", "margin", "accuracy", "own", "chosen"]
    records = RunDirectory(tmp_path / "tiny").metrics()
    probe = [r["probe"] for r in records if "probe" in r][-1]
    learned = result.verdict["findings"]["learned"]
    # the probe set is all held-out pairs, so both measurements are of the same
    assert probe["accuracy"]["value"] == pytest.approx(result.evaluation["eval_rewards/accuracies"])
    assert probe["own_accuracy"]["value"] == pytest.approx(result.evaluation["eval_rewards/own_accuracies"])
    assert learned["own_accuracy"] == result.evaluation["eval_rewards/own_accuracies"]
    assert learned["accuracy"]["value"] < 0.5 < learned["own_accuracy"]  # the wrong answers rose as well
    assert learned["longer"] == pytest.approx(probe["longer"])
    assert not any("answer_tokens" in record for record in records)
    assert "own scales" in (tmp_path / "tiny/model/README.md").read_text()


def test_a_likelihood_run_has_no_accuracy(world: Path, tmp_path: Path) -> None:
    made = recipe(world, tmp_path, objective={"name": "nll"}, train={"max_steps": 4})
    result, lines = quietly(made)
    assert next(line.split() for line in lines if "loss" in line)[:3] == ["step", "loss", "lr"]
    assert set(result.verdict["findings"]) == {"loss", "next"}
    losses = [r["eval_loss"] for r in RunDirectory(tmp_path / "tiny").metrics() if "eval_loss" in r]
    text = f"held-out loss {losses[-1]:.4f}, start {losses[0]:.4f}"
    assert result.verdict["findings"]["loss"]["text"] == text
    assert losses[-1] < losses[0]
    card = (tmp_path / "tiny/model/README.md").read_text()
    assert text in card
    assert json.loads((tmp_path / "tiny/verdict.json").read_text())["findings"] == result.verdict["findings"]
    assert not any(word in line for word in ("accuracy", "learned", "suppression") for line in [*lines, card])


def test_a_finished_run_has_nothing_to_resume(world: Path, finished: Any) -> None:
    with pytest.raises(UserError, match="holds a finished run: there is nothing to resume"):
        quietly(recipe(world, finished[2].parent), resume=True)


def test_resuming_with_another_starting_model_is_refused(world: Path, tmp_path: Path) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(world / "model", model)
    made = recipe(world, tmp_path, model={"id": str(model), "dtype": "float32"}, reference={"store": False})
    quietly(made)
    (tmp_path / "tiny" / "verdict.json").unlink()
    saved = load_file(model / "model.safetensors")
    saved["model.norm.weight"] = saved["model.norm.weight"] + 0.1
    save_file(saved, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="the model that this run was started from has changed"):
        quietly(made, resume=True)


def test_an_output_that_cannot_be_written_to_is_said_before_anything_is_loaded(world: Path) -> None:
    with pytest.raises(UserError, match=r"output: .* cannot be written to"):
        quietly(recipe(world, Path("/proc/none")))


def test_targets_that_do_not_exist_are_named_with_those_that_do(world: Path, tmp_path: Path) -> None:
    lora = {"id": str(world / "model"), "dtype": "float32", "lora": {"targets": ["nosuch", "q_proj"]}}
    with pytest.raises(UserError, match=r"has no module 'nosuch'\. Its linear layers: .*q_proj"):
        quietly(recipe(world, tmp_path, model=lora))


def test_rows_that_are_held_out_as_well_are_counted(world: Path, tmp_path: Path) -> None:
    both = {"train": {"path": str(world / "held_out.jsonl")}, "held_out": {"path": str(world / "held_out.jsonl")}}
    _, lines = quietly(recipe(world, tmp_path, data=both, train={"max_steps": 1, "save_strategy": "no"}))
    assert "warning: 12 of the training rows are held out as well: align check lists them" in lines


def test_the_guard_on_chosen_answers_stops_with_its_own_exit_code(world: Path, tmp_path: Path, capsys: Any) -> None:
    made = recipe(
        world,
        tmp_path,
        watch={"chosen_drop_nats": 0.01, "stop_on_drop": True},
        objective=[{"name": "nll", "weight": 0.001}, {"name": "dpo", "beta": 0.1}],
        train={"learning_rate": 0.05, "optim": "sgd", "max_steps": 30},
    )
    file = tmp_path / "falls.yaml"
    # a negative likelihood weight is not allowed, so pairs are swapped: training lowers what the probe calls chosen
    values = made.dump()
    values["data"]["train"][0]["columns"] = {"chosen": "rejected", "rejected": "chosen"}
    file.write_text(yaml.safe_dump(values))
    assert main([str(file)]) == Exit.GUARD
    assert "chosen answers lost" in capsys.readouterr().err


def test_readings_that_the_budget_does_not_pay_for_are_left_out_and_counted(world: Path, tmp_path: Path) -> None:
    made = recipe(world, tmp_path, watch={"budget": 0}, train={"max_steps": 4, "save_strategy": "no"})
    _, lines = quietly(made)
    read = [r["step"] for r in RunDirectory(tmp_path / "tiny").metrics() if "probe" in r]
    assert read == [0, 4]
    said = [line for line in lines if line.startswith("watch: readings left out")]
    parts = ", ".join(
        f"3 of 5 of {what}" for what in ("the probe set", "the model's own text", "gradient entanglement")
    )
    assert said == [
        f"watch: readings left out to stay within 0% of the training time (watch.budget): {parts}; watch.every: N "
        "reads at every Nth step, whatever it takes"
    ]
    header = next(i for i, line in enumerate(lines) if line.split()[:2] == ["step", "loss"])
    place = lines[header].split().index("chosen")
    shown = [line.split()[place] != "-" for line in lines[header + 1 : header + 5]]
    assert shown == [False, False, False, True]


def test_the_guard_is_read_at_every_log_step_whatever_the_budget(world: Path, tmp_path: Path) -> None:
    watch = {"budget": 0, "stop_on_drop": True, "chosen_drop_nats": 1e6}
    quietly(recipe(world, tmp_path, watch=watch, train={"max_steps": 4, "save_strategy": "no"}))
    assert [r["step"] for r in RunDirectory(tmp_path / "tiny").metrics() if "probe" in r] == [0, 1, 2, 3, 4]


def test_samples_of_fixed_prompts_are_written_at_the_start_and_every_n_steps(world: Path, tmp_path: Path) -> None:
    made = recipe(
        world,
        tmp_path,
        watch={"generate_every": 2, "prompts": ["Question 1: what is green?"]},
        train={"max_steps": 4, "save_strategy": "no"},
    )
    quietly(made)
    lines = [json.loads(x) for x in (tmp_path / "tiny" / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert all(line["prompt"].endswith("what is green?") for line in lines)


def test_samples_of_fixed_prompts_are_greedy_and_end_where_the_positions_do(world: Path, tmp_path: Path) -> None:
    def sampled(name: str, positions: int, **generation: Any) -> list[str]:
        folder = tmp_path / name
        shutil.copytree(world / "model", folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
        if generation:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        made = recipe(
            world,
            tmp_path,
            name=f"run-{name}",
            model={"id": str(folder)},
            watch={"generate_every": 1, "prompts": ["Question 1: what is green?"]},
            train={"max_steps": 1, "save_strategy": "no"},
        )
        quietly(made)
        run = tmp_path / f"run-{name}"
        return [json.loads(line)["text"] for line in (run / "samples.jsonl").read_text().splitlines()]

    plain = sampled("plain", 256)
    assert sampled("penalised", 256, repetition_penalty=5.0, no_repeat_ngram_size=1) == plain
    size = len(AutoTokenizer.from_pretrained(world / "model")("Question 1: what is green?").input_ids)
    short = sampled("short", size + 3)
    assert all(len(text) < len(whole) for whole, text in zip(plain, short, strict=True))
    with pytest.raises(UserError) as refused:
        sampled("full", 4)
    assert str(refused.value) == (
        f"watch.prompts: 'Question 1: what is green?' has {size} tokens; the model needs one at least and reads 4 at "
        "most, its answer among them."
    )


def test_a_stream_gives_the_losses_of_the_same_rows_in_order(world: Path, tmp_path: Path) -> None:
    streamed = {"train": {"path": str(world / "train.jsonl"), "streaming": True}}
    made = recipe(world, tmp_path, data=streamed, train={"max_steps": 4, "eval_strategy": "no", "eval_steps": None})
    result, _ = quietly(made)
    assert result.steps == 4
    first = losses(tmp_path / "tiny")[0]
    assert first[1] == pytest.approx(0.6931472, abs=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_is_trained_and_saved_as_one(world: Path, tmp_path: Path, checkpointing: bool) -> None:
    made = recipe(
        world,
        tmp_path,
        model={"id": str(world / "model"), "dtype": "float32", "lora": {"rank": 4, "alpha": 8}},
        train={"max_steps": 3, "save_strategy": "no", "gradient_checkpointing": checkpointing},
    )
    result, _ = quietly(made)
    assert result.steps == 3
    saved = tmp_path / "tiny" / "model"
    assert (saved / "adapter_model.safetensors").is_file()
    assert not (saved / "model.safetensors").exists()
    assert "library_name: peft" in (saved / "README.md").read_text()


def test_a_token_budget_gives_the_same_losses(world: Path, finished: Any, tmp_path: Path) -> None:
    data = recipe(world, tmp_path).dump()["data"] | {"max_length": 48}
    quietly(recipe(world, tmp_path, data=data, train={"max_tokens_per_microbatch": 96}))
    for (_, a, _), (_, b, _) in zip(losses(tmp_path / "tiny"), losses(finished[2]), strict=True):
        assert a == pytest.approx(b, rel=2e-5)


def test_a_reference_that_follows_the_policy_starts_every_step_at_log_two(world: Path, tmp_path: Path) -> None:
    made = recipe(
        world,
        tmp_path,
        reference={"sync_every": 1, "sync_mix": 1.0},
        train={"max_steps": 3, "save_strategy": "no", "eval_strategy": "no"},
    )
    _, lines = quietly(made)
    assert "note: the reference moves to the policy every 1 steps, so margins fall back there" in lines
    for _, loss, _ in losses(tmp_path / "tiny"):
        assert loss == pytest.approx(0.6931472, abs=1e-6)


def test_following_by_a_share_lies_between(world: Path, finished: Any, tmp_path: Path) -> None:
    quietly(recipe(world, tmp_path, reference={"sync_every": 1, "sync_mix": 0.5}))
    followed, fixed = losses(tmp_path / "tiny")[4][1], losses(finished[2])[4][1]
    assert abs(followed - 0.6931472) < abs(fixed - 0.6931472)
    assert followed != pytest.approx(0.6931472, abs=1e-5)


def test_a_reference_moves_at_every_second_step(world: Path, tmp_path: Path) -> None:
    made = recipe(
        world,
        tmp_path,
        reference={"sync_every": 2, "sync_mix": 1.0},
        train={"max_steps": 4, "warmup_steps": 0, "save_strategy": "no", "eval_strategy": "no"},
    )
    quietly(made)
    found = [loss for _, loss, _ in losses(tmp_path / "tiny")]
    # the reference is the policy at the start and, moved behind step 2, at step 3
    assert [loss == pytest.approx(0.6931472, abs=1e-6) for loss in found] == [True, False, True, False]


def test_following_a_fresh_adapter_is_refused(world: Path, tmp_path: Path) -> None:
    lora = {"id": str(world / "model"), "lora": {}}
    with pytest.raises(UserError, match=r"reference\.sync_every"):
        quietly(recipe(world, tmp_path, model=lora, reference={"sync_every": 2}))


def test_the_module_entry_prints_one_sentence_for_a_mistake(tmp_path: Path, capsys: Any) -> None:
    assert main([str(tmp_path / "absent.yaml")]) == Exit.USAGE
    assert "no such file or packaged recipe" in capsys.readouterr().err


def test_differences_name_leaves() -> None:
    before = {"a": 1, "b": [1, {"c": 2}], "d": None}
    after = {"a": 1, "b": [1, {"c": 3}], "e": "x"}
    assert list(differences(before, after)) == ["b.1.c: was 2, is 3", "e: was None, is 'x'"]


def test_a_metrics_line_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.append_metrics({"step": 1})
    directory.append_metrics({"step": 2})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    assert directory.metrics() == [{"step": 1}, {"step": 2}]


def test_a_lock_file_of_an_older_version_goes_on_where_keys_that_came_later_have_their_defaults(
    world: Path, tmp_path: Path
) -> None:
    made = recipe(world, tmp_path)
    old = made.dump()
    del old["data"]["template_arguments"], old["watch"]["probe_answers"]
    directory = RunDirectory(made.output_dir)
    directory.write_lock({"recipe": old})
    directory.begin(made.dump(), resume=True)
    drawn = recipe(world, tmp_path, watch={"every": 1, "report": True, "live": True})  # which changes no number
    directory.begin(drawn.dump(), resume=True)
    other = recipe(world, tmp_path, watch={"every": 1, "probe_answers": 4}, objective={"name": "dpo", "beta": 0.2})
    with pytest.raises(UserError) as error:
        directory.begin(other.dump(), resume=True)
    assert str(error.value).splitlines()[1:-1] == [
        "  objective.beta: was 0.1, is 0.2",
        "  watch.probe_answers: was 16, is 4",
    ]


def test_the_lock_of_an_objective_of_the_users_own_is_compared_as_it_stands(world: Path, tmp_path: Path) -> None:
    mine = recipe(world, tmp_path).dump() | {"objective": {"name": "MyLoss"}}
    directory = RunDirectory(tmp_path / "tiny")
    directory.write_lock({"recipe": mine})
    directory.begin(mine, resume=True)
    with pytest.raises(UserError, match="seed: was 0, is 1"):
        directory.begin(mine | {"seed": 1}, resume=True)


def test_a_start_that_failed_before_its_first_step_is_no_run(tmp_path: Path) -> None:
    """Its lock is overwritten; a run with a step or a checkpoint is not."""
    run = RunDirectory(tmp_path)
    run.write_lock({"recipe": {"name": "r"}})
    run.append_metrics({"step": 0, "evaluation": {"utility": 0.5}})
    run.begin({"name": "other"}, resume=False)
    assert run.metrics() == []
    run.append_metrics({"step": 1, "loss": 0.5})
    with pytest.raises(UserError, match="already holds a run"):
        run.begin({"name": "other"}, resume=False)


def test_a_warm_up_as_long_as_the_run_is_warned_of(world: Path, tmp_path: Path) -> None:
    said = "warning: the warm-up takes 100 steps and the run 2: the learning rate never reaches 0.003. "
    for warm, warned in ((100, True), (1, False)):
        made = recipe(world, tmp_path / str(warm), train={"max_steps": 2, "warmup_steps": warm, "save_strategy": "no"})
        _, lines = quietly(made)
        assert any(line.startswith(said) for line in lines) is warned
