"""RewardModelTrainer: TRL's loss and gradients where its padding is right, and what TRL reads where it is not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from oracle import short_answers, tokenizer_of
from peft import LoraConfig
from tiny import tiny_tokenizer
from torch import Tensor
from training import arguments, history, pairs, weights, word_tokenizer
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer
from zoo import tiny_classifier, tiny_model

from align import DPO, BradleyTerry, PreferenceTrainer, RewardModelTrainer
from align.errors import UserError


def trainer(folder: Path, rows: Dataset, *, model: Any = None, objective: Any = None, **options: Any) -> Any:
    own = ("eval_dataset", "peft_config", "processing_class", "order", "max_tokens_per_microbatch")
    mine = {key: options.pop(key) for key in own if key in options}
    return RewardModelTrainer(
        tiny_classifier() if model is None else model,
        objective,
        arguments(folder, **options),
        train_dataset=rows,
        **{"processing_class": word_tokenizer(), **mine},
    )


def oracle(folder: Path, rows: list[dict], tokenizer: Any, model: Any, **changes: Any) -> Any:
    """TRL's trainer on the same rows in the same order, which is that of the data set."""
    center = changes.pop("center_rewards_coefficient", None)
    peft_config = changes.pop("peft_config", None)
    given = {k: v for k, v in arguments(folder, **changes).to_dict().items() if k in RewardConfig.__dataclass_fields__}
    given = {k: v for k, v in given.items() if not (isinstance(v, str) and v.startswith("<"))}
    given |= {"max_length": None, "center_rewards_coefficient": center, "remove_unused_columns": True}
    return RewardTrainer(
        model,
        RewardConfig(**given),
        train_dataset=Dataset.from_list(rows),
        processing_class=copy.deepcopy(tokenizer),
        peft_config=peft_config,
    )


def gradient(trained: Any, batch: Any) -> tuple[float, dict[str, Tensor]]:
    """Loss of one batch under a trainer, and its gradients by name."""
    model = trained.model
    model.train()
    model.zero_grad()
    if isinstance(trained, RewardModelTrainer):
        (window, _) = trained.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
        loss = trained.compute_loss(model, window[0])
    else:
        loss = trained.compute_loss(model, batch)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def both(tmp_path: Path, rows: list[dict], tokenizer: Any, objective: Any, **changes: Any) -> tuple[Any, Any]:
    """Loss and gradients of the same pairs by TRL's trainer and by ours."""
    size = {"per_device_train_batch_size": len(rows)}
    lora = changes.pop("peft_config", None)
    vocabulary = len(tokenizer)
    theirs = oracle(
        tmp_path / "theirs",
        rows,
        tokenizer,
        tiny_classifier(vocab_size=vocabulary),
        peft_config=lora,
        **size,
        **changes,
    )
    ours = trainer(
        tmp_path / "ours",
        Dataset.from_list(rows),
        model=tiny_classifier(vocab_size=vocabulary),
        objective=objective,
        processing_class=copy.deepcopy(tokenizer),
        peft_config=lora,
        **size,
    )
    if lora is not None:  # adapters are drawn at random
        ours.model.load_state_dict(theirs.model.state_dict())
    batch = next(iter(theirs.get_train_dataloader()))
    return gradient(theirs, batch), gradient(ours, next(iter(ours.get_train_dataloader())))


def assert_equal(theirs: tuple, ours: tuple) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5, abs=0)
    assert set(ours[1]) == set(theirs[1])
    total = torch.cat([g.flatten() for g in theirs[1].values()]).norm()
    for name, value in theirs[1].items():
        assert (ours[1][name] - value).norm() <= 1e-5 * total, name
    assert total > 1e-3


MARGINS = (0.5, 0.0, 2.0, -1.0, 0.25, 1.0)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("form", ["plain", "margin", "center"])
def test_loss_and_gradients_are_trls(form: str, adapter: bool, tmp_path: Path) -> None:
    rows = short_answers(6)
    tokenizer = tokenizer_of(rows)  # pads with another token than EOS
    objective, changes = BradleyTerry(), {}
    if form == "margin":
        rows = [row | {"margin": margin} for row, margin in zip(rows, MARGINS, strict=True)]
        objective = BradleyTerry(margin=True)
    if form == "center":
        objective, changes = BradleyTerry(center=0.05), {"center_rewards_coefficient": 0.05}
    lora = {"target_modules": "all-linear", "task_type": "SEQ_CLS", "init_lora_weights": False}
    peft_config = LoraConfig(**lora) if adapter else None
    assert_equal(*both(tmp_path, rows, tokenizer, objective, peft_config=peft_config, **changes))


def test_where_eos_pads_trl_reads_the_token_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = short_answers(6)
    tokenizer = tokenizer_of(rows)
    right, _ = both(tmp_path, rows, tokenizer, BradleyTerry())
    tokenizer.pad_token = tokenizer.eos_token
    theirs, ours = both(tmp_path / "eos", rows, tokenizer, BradleyTerry())
    assert ours[0] == pytest.approx(right[0], rel=1e-5, abs=0)
    assert abs(theirs[0] - right[0]) > 1e-3
    assert "warning: <|im_end|> ends answers and pads" in capsys.readouterr().out


def test_another_pad_token_makes_plain_transformers_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is saved is scored alike by transformers' own padded forward and by the judge."""
    from align.judges.reward import RewardModel

    rows = short_answers(6)
    tokenizer = tokenizer_of(rows)
    tokenizer.unk_token, tokenizer.pad_token = "<|endoftext|>", tokenizer.eos_token
    ours = trainer(
        tmp_path, Dataset.from_list(rows), model=tiny_classifier(vocab_size=len(tokenizer)), processing_class=tokenizer
    )
    assert "<|endoftext|> becomes the pad token of what is saved, since <|im_end|> ends" in capsys.readouterr().out
    ours.save_model(str(tmp_path / "model"))
    judge = RewardModel(str(tmp_path / "model"), say=lambda _: None)
    found = judge.score([row["prompt"] for row in rows], [row["chosen"] for row in rows])
    tokenizer.padding_side = "right"
    batch = tokenizer(
        [row["prompt"] + row["chosen"] + tokenizer.eos_token for row in rows], padding=True, return_tensors="pt"
    )
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        scores = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    assert found == pytest.approx(scores.tolist(), abs=1e-5)
    # and the tokens that were trained on are those that are judged
    batch = next(iter(ours.get_train_dataloader()))["tree"]
    trained = sorted((*tree.prompt, *b.ids) for tree, b in batch.branches() if b.name == "chosen")
    assert trained == sorted(map(tuple, judge._tokens([r["prompt"] for r in rows], [r["chosen"] for r in rows])))


# ---- soft labels, ties, metrics


def with_values(rows: Dataset, **columns: list[Any]) -> Dataset:
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return rows


def test_soft_labels_and_ties(tmp_path: Path) -> None:
    """By hand from the scores: a label of 1/4 turns the pair around, one of 1/2 says that neither is better."""
    rows = with_values(pairs(4), preference=[1.0, None, 0.25, 0.5])
    ours = trainer(tmp_path, rows, eval_dataset=rows, per_device_train_batch_size=4)
    batch = next(iter(ours.get_eval_dataloader()))["tree"]
    ours.get_ready(ours.model, batch)
    with torch.no_grad():
        policy, terms = ours.score(ours.model, batch)
    gap = policy.score("chosen") - policy.score("rejected")
    p = torch.tensor([1.0, 1.0, 0.25, 0.5])
    expected = -(p * gap.sigmoid().log() + (1 - p) * (-gap).sigmoid().log())
    assert torch.allclose(terms.losses[0].losses, expected, atol=1e-6)
    hits = [float(gap[0] > 0), float(gap[1] > 0), float(gap[2] < 0)]
    logs = ours.evaluate()
    assert logs["eval_rewards/accuracies"] == pytest.approx(sum(hits) / 3)
    assert logs["eval_loss"] == pytest.approx(expected.mean().item(), rel=1e-5, abs=0)
    turned = (gap[0] + gap[1] - gap[2] + gap[3]).item() / 4
    assert logs["eval_rewards/margins"] == pytest.approx(turned, rel=1e-5, abs=0)
    assert ours.ties == 1
    # calibration: bins of sigmoid(|gap|)
    assert sum(found["n"] for found in ours.calibration) == 3
    right = sum(found["n"] * found["accuracy"] for found in ours.calibration)
    sure = sum(found["n"] * found["confidence"] for found in ours.calibration)
    assert right == pytest.approx(sum(hits))
    assert sure == pytest.approx(gap[:3].abs().sigmoid().sum().item(), rel=1e-5, abs=0)
    off = sum(found["n"] * abs(found["confidence"] - found["accuracy"]) for found in ours.calibration) / 3
    assert logs["eval_calibration_error"] == pytest.approx(off, rel=1e-5, abs=0)


def test_an_evaluation_does_not_depend_on_its_batches(tmp_path: Path) -> None:
    rows = pairs(7)
    found = [
        trainer(tmp_path, pairs(4), eval_dataset=rows, per_device_eval_batch_size=size).evaluate() for size in (1, 3, 7)
    ]
    for key in ("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins", "eval_calibration_error"):
        assert [logs[key] for logs in found] == pytest.approx([found[0][key]] * 3, rel=1e-4)


# ---- layouts of a batch


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3_next", "bert", "roberta"])
def test_steps_do_not_depend_on_accumulation_and_packing(name: str, tmp_path: Path) -> None:
    """Three steps of 8 pairs: in one batch, in micro-batches of 2, and packed to a budget of tokens."""
    runs = []
    for i, options in enumerate(
        [
            {},
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
            {"max_tokens_per_microbatch": 60},
        ]
    ):
        ours = trainer(tmp_path / str(i), pairs(20), model=tiny_classifier(name), **options)
        ours.train()
        runs.append((history(ours, "loss", "grad_norm"), weights(ours)))
    for losses, trained in runs[1:]:
        assert losses == [pytest.approx(step, rel=2e-4) for step in runs[0][0]]
        assert torch.allclose(trained, runs[0][1], atol=2e-5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama", "prompts shared and packed (largest gap to the model's own scores"),
        ("qwen3_next", "FALLING BACK to padded rows, because"),
        (
            "bert",
            "FALLING BACK to padded rows and the model's own forward, because BertForSequenceClassification has a",
        ),
    ],
)
def test_how_scores_are_computed_is_said(name: str, said: str, tmp_path: Path, capsys: Any) -> None:
    ours = trainer(tmp_path, pairs(8), model=tiny_classifier(name), max_steps=1)
    ours.train()
    assert f"scoring: {said}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_the_score_is_that_of_the_plain_model_on_single_rows(name: str, tmp_path: Path) -> None:
    ours = trainer(tmp_path, pairs(5), model=tiny_classifier(name), per_device_train_batch_size=5)
    batch = next(iter(ours.get_train_dataloader()))["tree"]
    ours.get_ready(ours.model, batch)
    with torch.no_grad():
        policy, _ = ours.score(ours.model, batch)
        plain = tiny_classifier(name)
        plain.config.pad_token_id = None
        alone = [plain(input_ids=torch.tensor([[*t.prompt, *b.ids]])).logits.item() for t, b in batch.branches()]
    assert policy.tokens["score"].tolist() == pytest.approx(alone, abs=1e-5)


def test_scores_are_float32_under_bfloat16(tmp_path: Path) -> None:
    """In 16 bits they would have three digits, and near pairs would tie."""
    ours = trainer(tmp_path, pairs(8), bf16=True)
    batch = next(iter(ours.get_train_dataloader()))["tree"]
    ours.get_ready(ours.model, batch)
    with ours.accelerator.autocast(), torch.no_grad():
        policy, _ = ours.score(ours.model, batch)
    scores = policy.tokens["score"]
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())


# ---- saving, resuming, adapters


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(tmp_path: Path) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "learning_rate": 1e-2}
    whole = trainer(tmp_path / "a", pairs(20), **options)
    whole.train()
    again = trainer(tmp_path / "b", pairs(20), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert torch.equal(weights(whole), weights(again))
    assert history(whole, "loss")[2:] == history(again, "loss")[2:]


def test_an_adapter_trains_its_head_and_judges(tmp_path: Path) -> None:
    from align.judges.reward import RewardModel

    tokenizer = tiny_tokenizer()
    base = tiny_model(vocab_size=len(tokenizer))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    answers = ((" Paris.", " Lyon."), (" No.", " Yes."))
    rows = [{"prompt": "What is it?", "chosen": chosen, "rejected": rejected} for chosen, rejected in answers]
    torch.manual_seed(3)
    ours = trainer(
        tmp_path / "run",
        Dataset.from_list(rows),
        model=str(tmp_path / "base"),
        processing_class=tokenizer,
        peft_config=LoraConfig(target_modules="all-linear", task_type="SEQ_CLS"),
        max_steps=20,
        learning_rate=0.5,
    )
    before = ours.evaluate(ours.train_dataset)["eval_rewards/margins"]
    ours.train()
    after = ours.evaluate(ours.train_dataset)
    assert after["eval_rewards/margins"] > before + 1
    ours.save_model(str(tmp_path / "adapter"))
    judge = RewardModel(str(tmp_path / "adapter"), say=lambda _: None)
    scores = judge.score(["What is it?"] * 4, [row[side] for side in ("chosen", "rejected") for row in rows])
    margin = (scores[0] + scores[1] - scores[2] - scores[3]) / 2
    assert margin == pytest.approx(after["eval_rewards/margins"], rel=1e-4, abs=0)


def test_an_adapters_dropout_does_not_look_like_answers_that_see_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Adapters that are trained on, or resumed, change scores by their dropout; the probe looks without it."""
    lora = LoraConfig(target_modules="all-linear", task_type="SEQ_CLS", init_lora_weights=False, lora_dropout=0.3)
    ours = trainer(tmp_path, pairs(8), peft_config=lora, max_steps=1)
    ours.train()
    assert ours.engine.mode == "tree"
    assert "scoring: prompts shared and packed" in capsys.readouterr().out


# ---- what is refused


REFUSED = {
    "a causal model": (
        lambda: tiny_model(),
        "LlamaForCausalLM has no head that scores answers: load the model with "
        "transformers.AutoModelForSequenceClassification.from_pretrained(name, num_labels=1), or give its name.",
    ),
    "two labels": (
        lambda: tiny_classifier(num_labels=2),
        "This LlamaForSequenceClassification gives 2 numbers (num_labels); a reward model gives one: num_labels=1.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_score_nothing_are_refused(case: str, tmp_path: Path) -> None:
    make, sentence = REFUSED[case]
    with pytest.raises(UserError) as found:
        trainer(tmp_path, pairs(4), model=make())
    assert str(found.value) == sentence


def test_an_adapter_that_leaves_the_head_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^peft_config has the task_type CAUSAL_LM, with which the head that scores"):
        trainer(tmp_path, pairs(4), peft_config=LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))


def test_a_margin_that_no_row_has_is_not_passed_over(tmp_path: Path) -> None:
    for rows in (pairs(4), with_values(pairs(4), margin=[None, None, None, None])):
        with pytest.raises(UserError, match=r"^objective\.margin: no training row has a number in a column margin"):
            trainer(tmp_path, rows, objective=BradleyTerry(margin=True))
    trainer(tmp_path, with_values(pairs(4), margin=[None, 0.5, None, None]), objective=BradleyTerry(margin=True))


def test_preferences_of_prepared_rows_are_probabilities(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^A row has the preference 2; expected a number from 0 \(rejected"):
        trainer(tmp_path, with_values(pairs(4), preference=[1.0, None, 2.0, 0.5]))


def test_objectives_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^DPO reads log-probs, which a reward model has none of: use BradleyTerry"):
        trainer(tmp_path, pairs(4), objective=DPO())
    with pytest.raises(UserError, match=r"^BradleyTerry reads the scores of a reward model: use align\.RewardModel"):
        PreferenceTrainer(
            tiny_model(),
            BradleyTerry(),
            arguments(tmp_path),
            train_dataset=pairs(4),
            processing_class=word_tokenizer(),
        )


def test_a_weight_that_trl_keeps_in_its_arguments_is_not_lost(tmp_path: Path) -> None:
    args = RewardConfig(str(tmp_path), center_rewards_coefficient=0.01, use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(UserError, match=r"objective=BradleyTerry\(center=0\.01\)\.$"):
        RewardModelTrainer(tiny_classifier(), args=args, train_dataset=pairs(4), processing_class=word_tokenizer())
