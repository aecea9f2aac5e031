"""TRL's DPOTrainer is the oracle: the same rows give the same losses and gradient norms, step after step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, disable_progress_bars
from oracle import dpo_settings, oracle_model, short_dialogues, tokenizer_of
from peft import LoraConfig
from torch.utils.data import SequentialSampler
from training import arguments, history, same_order
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from align.objectives import DPO, IPO, NLL, Hinge, Objective, SPPOHard, WeightedSum
from align.trainers.preference import PreferenceTrainer

disable_progress_bars()

STEPS = 4
KEYS = ("loss", "grad_norm")

SFT = WeightedSum(((DPO(beta=0.1), 1.0), (NLL(norm="token_mean"), 0.7)))
LOSSES: dict[str, tuple[dict[str, Any], Objective, int]] = {
    # TRL's settings, ours, accumulation steps: its token mean is one of each micro-batch, so it has no accumulation
    "sigmoid": ({"loss_type": "sigmoid", "beta": 0.1}, DPO(beta=0.1), 2),
    "hinge": ({"loss_type": "hinge", "beta": 0.1}, Hinge(beta=0.1), 2),
    "ipo": ({"loss_type": "ipo", "beta": 0.1}, IPO(tau=0.1), 2),
    "sppo_hard": ({"loss_type": "sppo_hard", "beta": 0.1}, SPPOHard(beta=0.1), 2),
    "sigmoid+sft": ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7], "beta": 0.1}, SFT, 1),
}


class OrderedDPOTrainer(DPOTrainer):
    """TRL's trainer with rows in the order in which they come."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


@pytest.fixture(scope="module")
def helpful() -> list[dict]:
    return short_dialogues()


@pytest.fixture(scope="module")
def conversational(helpful: list[dict]) -> list[dict]:
    """The same dialogues as messages."""
    rows = []
    for row in helpful:
        turns = [t.strip() for t in row["prompt"].replace("Assistant:", "\n\nHuman:").split("\n\nHuman:")]
        messages = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(t for t in turns if t)]
        if messages[-1]["role"] != "user":
            messages = messages[:-1]
        answer = {k: [{"role": "assistant", "content": row[k].strip()}] for k in ("chosen", "rejected")}
        rows.append({"prompt": messages, **answer})
    return rows


@pytest.fixture(scope="module")
def tokenizer(helpful: list[dict]) -> PreTrainedTokenizerBase:
    return tokenizer_of(helpful)


def run_both(
    folder: Path,
    rows: list[dict],
    tokenizer: Any,
    name: str,
    adapter: LoraConfig | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Any, Any]:
    """TRL's trainer and ours after a few steps on the same rows from the same weights."""
    theirs, objective, accumulation = LOSSES[name]
    data = Dataset.from_list(rows)
    how = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 0.02,
    }
    options = {"max_length": None, **dpo_settings(folder / "trl", **how), **theirs}
    reference = None if adapter else oracle_model(tokenizer, dtype)
    oracle = OrderedDPOTrainer(
        oracle_model(tokenizer, dtype),
        reference,
        DPOConfig(**options),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=adapter,
    )
    ours = PreferenceTrainer(
        oracle_model(tokenizer, dtype),
        objective,
        arguments(folder / "align", **how),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=adapter,
        order=same_order(rows),
        max_length=None,
    )
    if adapter is not None:  # drawn at random in each
        drawn = {n: p.detach().clone() for n, p in oracle.model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for parameter_name, parameter in ours.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(drawn.pop(parameter_name))
        assert not drawn
    oracle.train()
    ours.train()
    return oracle, ours


def assert_same_run(oracle: Any, ours: Any, tolerance: float = 1e-5) -> None:
    """The models are float64, so what remains is the float32 in which TRL's head computes."""
    theirs, mine = history(oracle, *KEYS), history(ours, *KEYS)
    assert len(mine) == STEPS
    for step, (expected, found) in enumerate(zip(theirs, mine, strict=True)):
        assert found == pytest.approx(expected, rel=tolerance), f"step {step}: {dict(zip(KEYS, found, strict=True))}"
    assert theirs[0] != theirs[-1]


@pytest.mark.parametrize("name", LOSSES)
def test_full_fine_tuning(name: str, helpful: list[dict], tokenizer: Any, tmp_path: Path) -> None:
    oracle, ours = run_both(tmp_path, helpful, tokenizer, name)
    assert_same_run(oracle, ours)
    shared = ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")
    if name == "sigmoid":
        for expected, found in zip(history(oracle, *shared), history(ours, *shared), strict=True):
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_float32(helpful: list[dict], tokenizer: Any, tmp_path: Path) -> None:
    oracle, ours = run_both(tmp_path, helpful, tokenizer, "sigmoid", dtype=torch.float32)
    assert_same_run(oracle, ours, 5e-5)  # rounding of sums of hundreds of nats


@pytest.mark.parametrize("name", ["sigmoid", "sigmoid+sft"])
def test_lora(name: str, helpful: list[dict], tokenizer: Any, tmp_path: Path) -> None:
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    oracle, ours = run_both(tmp_path, helpful, tokenizer, name, adapter)
    assert ours.reference.strategy == "adapter_off"
    assert_same_run(oracle, ours)


@pytest.mark.parametrize("name", ["sigmoid", "ipo"])
def test_conversations(name: str, conversational: list[dict], tokenizer: Any, tmp_path: Path) -> None:
    oracle, ours = run_both(tmp_path, conversational, tokenizer, name)
    assert_same_run(oracle, ours)


def test_rows_that_trl_has_prepared_work_as_they_are(helpful: list[dict], tokenizer: Any, tmp_path: Path) -> None:
    oracle, ours = run_both(tmp_path, helpful, tokenizer, "sigmoid")
    prepared = oracle.train_dataset
    assert {"prompt_ids", "chosen_ids", "rejected_ids"} <= set(prepared.column_names)
    again = PreferenceTrainer(
        oracle_model(tokenizer),
        DPO(beta=0.1),
        arguments(tmp_path / "again", max_steps=1, per_device_train_batch_size=4),
        train_dataset=prepared,
        processing_class=tokenizer,
        order=same_order(prepared),
    )
    again.train()
    assert history(again, *KEYS)[0] == pytest.approx(history(ours, *KEYS)[0], rel=1e-5)
