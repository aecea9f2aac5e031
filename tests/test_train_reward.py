"""A whole run of a reward model: what it prints and leaves, that it goes on and judges, and what it cannot be asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from zoo import tiny_classifier, tiny_model

from align.errors import UserError
from align.judges.loading import load_judge
from align.models.load import load_checkpoint
from align.recipe import Recipe
from align.recipe.sampling import Judge
from align.runs.directory import RunDirectory
from align.train import run
from align.training.finish import longer_share

disable_progress_bars()

PLACES = ("Paris", "the sea", "the north", "France", "the book", "a basket", "the fox")
END = [("max_steps", 12), ("per_device_train_batch_size", 8), ("learning_rate", 3e-3), ("logging_steps", 3)]


def pairs(count: int, first: int) -> list[dict]:
    """A polite answer beside one that is not, either of them the longer; some pairs are ties, some labels soft."""
    return [
        {
            "prompt": f"Question {i}: what is {PLACES[i % 7]}?",
            "chosen": f" Hello, it is {PLACES[i % 5]}{' with apples' * (i % 2)}.",
            "rejected": f" Nothing more, {PLACES[(i + 1) % 5]}{' with apples' * (1 - i % 2)}.",
            "preference": 0.5 if i % 8 == 0 else 0.9 if i % 9 == 0 else None,
        }
        for i in range(first, first + count)
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny language model, 48 training and 120 held-out pairs."""
    folder = tmp_path_factory.mktemp("world")
    for name, rows in (("train", pairs(48, 0)), ("held_out", pairs(120, 48))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_tokenizer([row["prompt"] + row["chosen"] + row["rejected"] for row in pairs(48, 0)], chat=False)
    tokenizer.save_pretrained(folder / "model")
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    return folder


def recipe(world: Path, out: Path, **changes: Any) -> Recipe:
    train = {
        **dict(END),
        "save_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 6,
        "use_cpu": True,
        "gradient_checkpointing": False,
    } | changes.pop("train", {})
    values: dict[str, Any] = {
        "name": "tiny",
        "model": {"id": str(world / "model"), "dtype": "float32"},
        "data": {name: {"path": str(world / f"{name}.jsonl")} for name in ("train", "held_out")},
        "objective": {"name": "bradley_terry", "center": 0.01},
        "seed": 2,
        "watch": {"report": False, **changes.pop("watch", {})},
        "output": str(out / "{name}"),
    }
    return Recipe.from_dict({**values, **changes, "train": train})


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[str], Path]:
    out = tmp_path_factory.mktemp("finished")
    lines: list[str] = []
    result = run(recipe(world, out), echo=lines.append)
    return result, lines, out / "tiny"


def test_what_a_run_says(finished: tuple[Any, list[str], Path], world: Path) -> None:
    _, lines, _ = finished
    text = "\n".join(lines)
    assert f"model: {world / 'model'} has no head that scores answers, so a new one is drawn (seed 2)" in text
    assert "scoring: prompts shared and packed (largest gap to the model's own scores" in text
    assert " step     loss   margin   accuracy   chosen   rejected" in text
    ranks = next(line for line in lines if line.startswith("  ranks "))
    # 15 of 120 rows are ties
    assert "yes" in ranks
    assert "n 105" in ranks
    for absent in ("suppression", "dispersion", "length  "):
        assert not any(line.startswith(f"  {absent}") for line in lines)


def test_what_a_run_leaves(finished: tuple[Any, list[str], Path]) -> None:
    result, _, folder = finished
    evaluation = result.evaluation
    assert evaluation["eval_rewards/accuracies"] > 0.95
    assert 0 <= evaluation["eval_calibration_error"] < 0.5
    start = next(record for record in RunDirectory(folder).metrics() if "eval_loss" in record)
    assert start["step"] == 0
    assert start["eval_rewards/accuracies"] < evaluation["eval_rewards/accuracies"]
    assert (folder / "calibration.svg").read_text().startswith("<?xml")
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["findings"]["ranks"]["word"] == "yes"
    config = json.loads((folder / "model/config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert len(config["id2label"]) == 1


def test_the_share_of_longer_answers_goes_by_the_preferred_one() -> None:
    """Longer, shorter, equal, longer but the other is preferred, longer but a tie: (1 + 0 + 1/2 + 0) / 4."""
    lengths = [(3, 1), (1, 3), (2, 2), (3, 1), (3, 1)]
    rows = [{"chosen_ids": [5] * a, "rejected_ids": [5] * b} for a, b in lengths]
    labels = [None, 1.0, 0.9, 0.2, 0.5]
    assert longer_share(Dataset.from_list(rows)) == pytest.approx(3.5 / 5)
    assert longer_share(Dataset.from_list(rows).add_column("preference", labels)) == pytest.approx(1.5 / 4)


def test_the_run_judges_and_plain_transformers_agrees(finished: tuple[Any, list[str], Path]) -> None:
    _, _, folder = finished
    judge = load_judge(Judge(reward=str(folder)), say=lambda _: None)
    rows = pairs(4, 500)
    prompts = [row["prompt"] for row in rows]
    chosen = judge.score(prompts, [row["chosen"] for row in rows])
    rejected = judge.score(prompts, [row["rejected"] for row in rows])
    assert all(a > b for a, b in zip(chosen, rejected, strict=True))
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="right")
    batch = tokenizer(
        [r["prompt"] + r["chosen"] + tokenizer.eos_token for r in rows], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        plain = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, 0]
    if tokenizer.pad_token == tokenizer.eos_token:  # it has no other, and the run says so
        assert plain.tolist() != pytest.approx(chosen, abs=1e-4)
    else:
        assert plain.tolist() == pytest.approx(chosen, abs=1e-5)


def test_a_resumed_run_ends_with_the_same_weights(world: Path, tmp_path: Path) -> None:
    made, folder = recipe(world, tmp_path), tmp_path / "tiny"
    run(made, echo=lambda _: None)
    theirs = load_file(folder / "model/model.safetensors")
    for left in ("checkpoint-12", "model"):
        shutil.rmtree(folder / left)
    (folder / "verdict.json").unlink()
    lines: list[str] = []
    run(made, resume=True, echo=lines.append)
    assert "resuming from checkpoint-6" in lines
    ours = load_file(folder / "model/model.safetensors")
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_seed_draws_the_head(world: Path, tmp_path: Path) -> None:
    short = {"train": {"max_steps": 1, "save_strategy": "no", "eval_strategy": "no", "eval_steps": None}}
    heads = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(recipe(world, tmp_path, name=name, seed=seed, **short), echo=lambda _: None)
        heads.append(load_file(tmp_path / name / "model/model.safetensors")["score.weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_an_adapter_is_a_judge_and_is_trained_on(world: Path, tmp_path: Path) -> None:
    short = {"train": {"max_steps": 2, "save_strategy": "no", "eval_strategy": "no", "eval_steps": None}}
    lora = {"id": str(world / "model"), "lora": {"rank": 4}}
    run(recipe(world, tmp_path, model=lora, **short), echo=lambda _: None)
    saved = load_file(tmp_path / "tiny/model/adapter_model.safetensors")
    assert any("score" in name for name in saved)
    judge = load_judge(Judge(reward=str(tmp_path / "tiny")), say=lambda _: None)
    assert len(judge.score(["Question 1: what is it?"], [" Hello."])) == 1
    more = {"id": str(world / "model"), "lora": {"adapter": str(tmp_path / "tiny/model")}}
    run(recipe(world, tmp_path, name="more", model=more, **short), echo=lambda _: None)
    again = load_file(tmp_path / "more/model/adapter_model.safetensors")
    assert set(again) == set(saved)
    moved = [name for name in saved if not torch.equal(saved[name], again[name])]
    assert any("score" in name for name in moved)
    assert any("lora" in name for name in moved)
    # it is no policy's, neither to be trained nor to be sampled from
    sentence = "is the adapter of a reward model, which scores answers and writes none: name that of a language model."
    with pytest.raises(UserError, match=f"^model.lora.adapter: .*/model' {sentence}"):
        run(recipe(world, tmp_path, name="dpo", model=more, objective={"name": "dpo"}, **short), echo=lambda _: None)
    with pytest.raises(UserError, match=f"^model: .*/tiny {sentence}"):
        load_checkpoint(str(tmp_path / "tiny"))


def test_a_policys_adapter_is_no_reward_models(world: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(world / "model")
    get_peft_model(base, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(tmp_path / "a")
    model = {"id": str(world / "model"), "lora": {"adapter": str(tmp_path / "a")}}
    with pytest.raises(UserError, match=r"^model\.lora\.adapter: .*/a' is the adapter of a language model"):
        run(recipe(world, tmp_path, model=model), echo=lambda _: None)


def test_held_out_ties_alone_measure_nothing_and_are_said(world: Path, tmp_path: Path) -> None:
    rows = [{**row, "preference": 0.5} for row in pairs(8, 48)]
    (tmp_path / "ties.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": {"path": str(world / "train.jsonl")}, "held_out": {"path": str(tmp_path / "ties.jsonl")}}
    lines: list[str] = []
    run(recipe(world, tmp_path, data=data, train={"max_steps": 1}), echo=lines.append)
    assert "  ranks         not measured  all 8 held-out pairs are ties" in lines
    told = "set data.held_out to pairs with a preference, so that the next run can be judged"
    assert f"  next          {told}" in lines
    assert not (tmp_path / "tiny/calibration.svg").exists()


# ---- what cannot be


def test_a_classifier_with_two_labels_is_refused(world: Path, tmp_path: Path) -> None:
    tiny_classifier(num_labels=2).save_pretrained(tmp_path / "two")
    shutil.copyfile(world / "model/tokenizer.json", tmp_path / "two/tokenizer.json")
    shutil.copyfile(world / "model/tokenizer_config.json", tmp_path / "two/tokenizer_config.json")
    with pytest.raises(UserError) as found:
        run(recipe(world, tmp_path, model={"id": str(tmp_path / "two")}), echo=lambda _: None)
    assert str(found.value) == (f"model.id: {tmp_path / 'two'} gives 2 numbers (num_labels); a reward model gives one.")


def test_a_reward_model_is_no_policy(finished: tuple[Any, list[str], Path], world: Path, tmp_path: Path) -> None:
    _, _, folder = finished
    with pytest.raises(UserError, match=r"is a LlamaForSequenceClassification, which scores answers and writes none"):
        run(recipe(world, tmp_path, model={"id": str(folder)}, objective={"name": "dpo"}), echo=lambda _: None)


def test_a_recipe_that_was_written_out_can_be_read_again(world: Path, tmp_path: Path) -> None:
    made = recipe(world, tmp_path)
    assert Recipe.from_dict(made.dump()).dump() == made.dump()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sampling": {"samples": 2}}, "sampling: a reward model writes nothing; remove this."),
        ({"reference": {"sync_every": 5}}, "reference.sync_every: a reward model is compared with no reference"),
        ({"watch": {"probe_pairs": 8}}, "watch.probe_pairs: no log-probs are followed that could drop"),
        ({"watch": {"stop_on_drop": True}}, "watch.stop_on_drop: no log-probs are followed that could drop"),
        (
            {"objective": [{"name": "bradley_terry"}, {"name": "dpo"}]},
            "objective: BradleyTerry trains a reward model, and DPO reads log-probs, which it has none of",
        ),
    ],
)
def test_recipes_ask_no_text_of_a_reward_model(
    changes: dict[str, Any], sentence: str, world: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as found:
        recipe(world, tmp_path, **changes)
    assert sentence.replace(": ", "  ", 1) in str(found.value) or sentence in str(found.value)
