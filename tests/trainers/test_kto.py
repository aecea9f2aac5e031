"""KTO on labelled answers: TRL's KTOTrainer is the oracle, and runs on rows of every sort."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from sample_rows import real
from tiny import tiny_tokenizer
from training import arguments, history, same_order
from transformers import TrainerCallback
from trl import KTOConfig, KTOTrainer
from zoo import tiny_model

from align.objectives import KTO
from align.trainers.preference import PreferenceTrainer

disable_progress_bars()

STEPS, ROWS = 4, 8
KEYS = ("loss", "grad_norm")
SHARED = ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")
OBJECTIVES = {
    "kto": KTO(beta=0.3, desirable_weight=1.2, undesirable_weight=0.7),
    "apo_zero_unpaired": KTO("apo_zero_unpaired", beta=0.3, desirable_weight=1.2, undesirable_weight=0.7),
}


@pytest.fixture(scope="module")
def labelled() -> list[dict]:
    """Short dialogues of the HH-RLHF test split with one answer and its label each, five good and three bad ones."""
    with gzip.open(real("hh_rlhf/helpful_test.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file]
    short = [r for r in rows if sum(len(r[k]) for k in ("prompt", "chosen", "rejected")) < 320][:ROWS]
    good = (True, False, True, True, False, True, False, True)
    return [
        {"prompt": row["prompt"], "completion": row["chosen" if label else "rejected"], "label": label}
        for row, label in zip(short, good, strict=True)
    ]


@pytest.fixture(scope="module")
def tokenizer(labelled: list[dict]) -> Any:
    return tiny_tokenizer([r["prompt"] + r["completion"] for r in labelled], vocab=400, chat=True)


def model(tokenizer: Any) -> Any:
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    return tiny_model(
        "llama", dtype=torch.float64, vocab_size=400, max_position_embeddings=1024, initializer_range=0.1, **special
    )


def oracle_and_ours(
    folder: Path,
    rows: list[dict],
    tokenizer: Any,
    objective: KTO,
    adapter: LoraConfig | None = None,
    batch: int = ROWS,
) -> tuple[Any, Any]:
    """TRL's trainer and ours on the same rows from the same weights. A batch is the whole data set, so that TRL, which
    takes mismatched answers from the same batch, has the same ones.
    """
    common = {
        "max_steps": STEPS,
        "per_device_train_batch_size": batch,
        "learning_rate": 0.05,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    weights = {"desirable_weight": objective.desirable_weight, "undesirable_weight": objective.undesirable_weight}
    config = KTOConfig(
        output_dir=str(folder / "trl"), loss_type=objective.form, beta=objective.beta, max_length=None, **weights,
        **common,
    )  # fmt: skip
    data = Dataset.from_list(rows)
    reference = None if adapter else model(tokenizer)
    oracle = KTOTrainer(
        model(tokenizer), reference, config, train_dataset=data, processing_class=tokenizer, peft_config=adapter
    )
    ours = PreferenceTrainer(
        model(tokenizer),
        objective,
        arguments(folder / "align", **common),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=adapter,
        order=same_order(range(batch)),
        max_length=None,
    )
    if adapter is not None:  # drawn at random in each
        drawn = {n: p.detach().clone() for n, p in oracle.model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, parameter in ours.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(drawn.pop(name))
        assert not drawn
    return oracle, ours


@pytest.mark.parametrize("how", ["full", "lora"])
@pytest.mark.parametrize("form", OBJECTIVES)
def test_losses_and_gradient_norms_are_those_of_trl(
    form: str, how: str, labelled: list[dict], tokenizer: Any, tmp_path: Path
) -> None:
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear") if how == "lora" else None
    oracle, ours = oracle_and_ours(tmp_path, labelled, tokenizer, OBJECTIVES[form], adapter)
    oracle.train()
    ours.train()
    theirs, mine = history(oracle, *KEYS), history(ours, *KEYS)
    assert len(mine) == STEPS
    for expected, found in zip(theirs, mine, strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=0)
    assert theirs[0][0] != pytest.approx(theirs[-1][0], rel=1e-3, abs=0)
    for expected, found in zip(history(oracle, *SHARED), history(ours, *SHARED), strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    if form == "kto":
        z = [value for (value,) in history(oracle, "kl")]
        assert [value for (value,) in history(ours, "kto/z")] == pytest.approx(z, rel=1e-4, abs=1e-5)
        assert z[0] == 0 < 0.3 < z[-1]  # which the later losses depend on


class Gradients(TrainerCallback):
    """Keeps the gradients of the first optimizer step."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.found = self.found or {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("form", OBJECTIVES)
def test_every_gradient_is_that_of_trl(form: str, labelled: list[dict], tokenizer: Any, tmp_path: Path) -> None:
    found = []
    for trainer in oracle_and_ours(tmp_path, labelled, tokenizer, OBJECTIVES[form]):
        trainer.add_callback(seen := Gradients())
        trainer.train()
        found.append(seen.found)
    theirs, mine = found
    assert theirs.keys() == mine.keys()
    assert len(mine) > 10
    for name, gradient in theirs.items():
        assert (mine[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_pairs_are_taken_apart_as_in_trl(labelled: list[dict], tokenizer: Any, tmp_path: Path) -> None:
    pairs = [
        {"prompt": a["prompt"], "chosen": a["completion"], "rejected": b["completion"]}
        for a, b in zip(labelled, labelled[1:] + labelled[:1], strict=True)
    ][:4]
    oracle, ours = oracle_and_ours(tmp_path, pairs, tokenizer, OBJECTIVES["kto"], batch=8)
    assert (len(oracle.train_dataset), len(ours.train_dataset)) == (8, 8)
    mismatched = [tokenizer.decode(row["mismatch_ids"]) for row in ours.train_dataset]
    assert mismatched == [tokenizer.decode(row["KL_completion_ids"]) for row in oracle.train_dataset]
    oracle.train()
    ours.train()
    for expected, found in zip(history(oracle, *KEYS), history(ours, *KEYS), strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=0)


def test_rows_that_trl_has_prepared_work_as_they_are(labelled: list[dict], tokenizer: Any, tmp_path: Path) -> None:
    oracle, ours = oracle_and_ours(tmp_path, labelled, tokenizer, OBJECTIVES["kto"])
    assert {"prompt_ids", "completion_ids", "label"} <= set(oracle.train_dataset.column_names)
    again = PreferenceTrainer(
        model(tokenizer),
        OBJECTIVES["kto"],
        arguments(tmp_path / "again"),
        train_dataset=oracle.train_dataset,
        processing_class=tokenizer,
    )
    assert again.train_dataset[:] == ours.train_dataset[:]
