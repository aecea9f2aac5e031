"""A reference that follows the policy: TRL's DPOTrainer with ``sync_ref_model`` is the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, disable_progress_bars
from tiny import tiny_tokenizer
from torch.utils.data import SequentialSampler
from training import arguments, history, same_order
from trl import DPOConfig, DPOTrainer
from zoo import tiny_model

from align.objectives import DPO
from align.trainers.preference import PreferenceTrainer

disable_progress_bars()

STEPS = 8
ROWS = [
    {"prompt": f"What is {i} and the fox?", "chosen": f" The book number {i}.", "rejected": f" {i} lazy dogs of Paris."}
    for i in range(16)
]


class OrderedDPOTrainer(DPOTrainer):
    """TRL's trainer with rows in the order in which they come."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def runs(folder: Path, sync: tuple[int, float] | None) -> tuple[Any, Any]:
    """TRL's run and ours from the same weights; ``sync`` is (every, mix)."""
    tokenizer = tiny_tokenizer(vocab=400, chat=False)

    def model() -> Any:
        special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        return tiny_model("llama", dtype=torch.float64, vocab_size=400, initializer_range=0.1, **special)

    common = {"max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 0.05}
    plain = arguments(folder / "align", **common)
    kept = ("optim", "lr_scheduler_type", "logging_steps", "save_strategy", "report_to", "use_cpu", "bf16", "seed")
    given = {name: getattr(plain, name) for name in (*kept, "gradient_checkpointing", "disable_tqdm")}
    moves = {} if sync is None else {"ref_model_sync_steps": sync[0], "ref_model_mixup_alpha": sync[1]}
    config = DPOConfig(
        output_dir=str(folder / "trl"), sync_ref_model=sync is not None, max_length=None, **moves, **given, **common
    )
    data = Dataset.from_list(ROWS)
    oracle = OrderedDPOTrainer(model(), model(), config, train_dataset=data, processing_class=tokenizer)
    ours = PreferenceTrainer(
        model(),
        DPO(beta=0.1),
        plain,
        train_dataset=data,
        processing_class=tokenizer,
        order=same_order(ROWS),
        max_length=None,
        reference_sync=sync,
    )
    oracle.train()
    ours.train()
    return oracle, ours


@pytest.mark.parametrize(("every", "mix"), [(3, 1.0), (2, 0.6)], ids=["hard", "soft"])
def test_tr_dpo_is_that_of_trl(every: int, mix: float, tmp_path: Path) -> None:
    oracle, ours = runs(tmp_path, (every, mix))
    theirs, mine = (history(run, "loss", "grad_norm") for run in (oracle, ours))
    assert len(mine) == STEPS
    for expected, found in zip(theirs, mine, strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=0)
    # the reference that is left behind is TRL's, too
    theirs_end = dict(oracle.accelerator.unwrap_model(oracle.ref_model).named_parameters())
    for name, weight in ours.reference.model.named_parameters():
        torch.testing.assert_close(weight, theirs_end[name], rtol=1e-6, atol=1e-7)


def test_a_reference_that_stays_gives_other_losses(tmp_path: Path) -> None:
    _, still = runs(tmp_path / "still", None)
    _, moved = runs(tmp_path / "moved", (2, 0.6))
    plain, followed = ([loss for (loss,) in history(run, "loss")] for run in (still, moved))
    assert followed[:2] == plain[:2]
    assert all(abs(a - b) > 1e-4 for a, b in zip(followed[2:], plain[2:], strict=True))
