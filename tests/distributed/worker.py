"""One process of a distributed test: trains tiny models and leaves what happened in a folder.

    python tests/distributed/worker.py FOLDER CASE...

FOLDER holds ``model/`` (a saved model). Process 0 writes ``<LABEL>.json`` for each case, LABEL being the environment's
ALIGN_TEST_LABEL, and saved models beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from distributed.cases import run_cases
from peft import LoraConfig, get_peft_model
from saved_model import rows, tokenizer
from transformers import AutoModelForCausalLM, TrainerCallback

from align.compat import training_config
from align.judges.judge import ScoreJudge
from align.objectives import DPO, FLAT, KL, NLL, NPO, RMU, RPO, BradleyTerry, HyPO, SuperHF, WeightedSum
from align.recipe.sampling import Sampling
from align.reference.digest import model_digest
from align.runs.directory import RunDirectory
from align.runs.memory import peak
from align.trainers.entanglement import EntanglementProbe
from align.trainers.hypo import HyPOTrainer
from align.trainers.memory import Holdings
from align.trainers.policy import compute_type
from align.trainers.preference import PreferenceTrainer
from align.trainers.reward import RewardModelTrainer
from align.trainers.superhf import SuperHFTrainer
from align.trainers.unlearn import UnlearnTrainer
from align.trainers.watch import Watch

GLOBAL_BATCH = 8
ROWS = 33  # the fifth step of eight has one row, so most of its micro-batches are dummies
MIXED = WeightedSum(((DPO(), 1.0), (KL(branch="chosen"), 0.1)))
FORGETTING = WeightedSum(((NPO(), 1.0), (NLL(branch="retain"), 1.0)))
MOVING = WeightedSum(((RMU(layer=0), 1.0), (KL(branch="retain", positions="all"), 0.5)))


class Watching:
    """Notes, per micro-batch, whether this rank must compute reference rows."""

    flags: list[bool]
    reference: Any

    def _divisors(self, batches: list, device: Any) -> Any:
        if self.reference is not None:
            self.flags += [self.reference.missing(b) for b in batches]
        return super()._divisors(batches, device)  # type: ignore[misc]


class Watched(Watching, PreferenceTrainer):
    """Pairs."""


class Unlearning(Watching, UnlearnTrainer):
    """Rows to forget."""


class Hybrid(Watching, HyPOTrainer):
    """Pairs, and fresh samples of their prompts."""


class Imitating(Watching, SuperHFTrainer):
    """Prompts, and the best fresh samples."""


class Scoring(Watching, RewardModelTrainer):
    """Pairs, and a head that scores them."""


class Entangled(TrainerCallback):
    """Compares gradients of pairs before training and after every step."""

    def __init__(self, trainer: Any, rows: list[dict]) -> None:
        self.probe, self.trainer = EntanglementProbe(trainer, rows, 5), trainer
        self.readings: list[dict] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.get_ready(self.trainer.model_wrapped)
        self.readings.append(self.probe.read(0))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.readings.append(self.probe.read(1))


class Words(ScoreJudge):
    """Likes words of high numbers."""

    name = "words"

    def score(self, prompts: Any, responses: Any) -> list[float]:
        return [sum(int(word[1:]) for word in text.split()) / 100 for text in responses]


def online(words: list[str], data: Dataset) -> tuple[Any, dict[str, Any]]:
    """Trainer, objective and rows that draw samples while they train."""
    sampling = Sampling(samples=3, max_new_tokens=5, batch_size=4)
    if "hypo" in words:
        return Hybrid, {"objective": HyPO(kl_weight=0.5), "train_dataset": data, "sampling": sampling}
    prompts = data.select_columns(["prompt_ids"]).add_column("row", range(len(data)))
    prompts = prompts.add_column("prompt", [json.dumps(f"prompt {i}") for i in range(len(data))])
    return Imitating, {"objective": SuperHF(), "train_dataset": prompts, "sampling": sampling, "judge": Words()}


def forgetting(words: list[str], data: Dataset) -> dict[str, Any]:
    """Objective and rows: chosen answers are forgotten; rejected ones, in another order, are retained, or given."""
    forget = data.rename_column("chosen_ids", "forget_ids")
    if "flat" in words:
        return {"objective": FLAT(), "train_dataset": forget.rename_column("rejected_ids", "alternate_ids")}
    kept = data.select(range(21)).rename_column("rejected_ids", "retain_ids")
    objective = MOVING if "kl" in words else RMU(layer=0) if "rmu" in words else FORGETTING
    return {"objective": objective, "train_dataset": forget, "retain_dataset": kept}


def preferring(words: list[str]) -> Any:
    """The objective of pairs."""
    return MIXED if "kl" in words else RPO() if "rpo" in words else DPO(calibrate="calibrated" in words)


def build(folder: Path, label: str, case: str) -> Any:
    """The trainer of a case, by the words in its name."""
    words = case.split("-")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    accumulate = 1 if world == 1 else 2
    args = training_config(
        output_dir=str(folder / f"{label}-{case}"),
        per_device_train_batch_size=GLOBAL_BATCH // world // accumulate,
        per_device_eval_batch_size=GLOBAL_BATCH,
        gradient_accumulation_steps=accumulate,
        max_steps=1 if "seed" in words else 10 if "cell" in words else 5,
        learning_rate=1e-2,
        weight_decay=0.01,
        # Adam divides by the size of a gradient: where that is next to nothing, its rounding would become a whole step
        adam_epsilon=1e-6,
        lr_scheduler_type="linear",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=7,
        bf16="bf16" in words,
        gradient_checkpointing="checkpointing" in words,
        dataloader_pin_memory=False,
        use_cpu=True,
    )
    data = Dataset.from_list(rows(ROWS))
    model: Any = str(folder / ("tied" if "tied" in words else "model"))
    if "adapter" in words:  # one that has learned something, so that the reference is base and adapter
        learned = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(model), learned)
    task = {"task_type": "SEQ_CLS"} if "reward" in words else {}
    adapter = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", **task) if "lora" in words else None
    if "reward" in words:
        return Scoring(
            str(folder / ("encoder" if "own" in words else "model")),
            BradleyTerry(center=0.1),
            args,
            train_dataset=data.add_column("preference", [(0.9, 0.5, None)[i % 3] for i in range(ROWS)]),
            eval_dataset=data.select(range(11)),
            processing_class=tokenizer(),
            peft_config=adapter,
        )
    if {"hypo", "superhf"} & set(words):
        kind, options = online(words, data)
        return kind(model, args=args, processing_class=tokenizer(), peft_config=adapter, **options)
    if {"unlearn", "npo", "flat", "rmu"} & set(words):
        options = forgetting(words, data)
        return Unlearning(model, args=args, processing_class=tokenizer(), peft_config=adapter, **options)
    return Watched(
        model,
        preferring(words),
        args,
        train_dataset=data.select(range(GLOBAL_BATCH)) if "seed" in words else data,
        eval_dataset=data.select(range(11)),
        processing_class=tokenizer(),
        peft_config=adapter,
        store_dir=folder / f"store-{label}" if "store" in words else None,
        reference_sync=(2, 0.5) if "moving" in words else None,
    )


def run(folder: Path, label: str, case: str) -> None:
    gc.collect()
    forget_peak()
    trainer = build(folder, label, case)
    made = Holdings.of(trainer).reference
    trainer.flags = []
    entangled = Entangled(trainer, rows(11)) if "entangled" in case else None
    if entangled is not None:
        trainer.add_callback(entangled)
    watched = RunDirectory(folder / f"{label}-{case}", writer=trainer.accelerator.is_main_process)
    if "watched" in case.split("-"):
        # an odd number of prompts, so that processes have unequal shares
        trainer.add_callback(Watch(trainer, watched, rows(7), answers=5, every=2, echo=lambda line: None))
    trainer.train()
    history = trainer.state.log_history
    evaluated = trainer.evaluate() if trainer.eval_dataset is not None else {}
    trainer.save_model(str(folder / f"{label}-{case}"))
    reference = trainer.reference
    store = reference and reference.store
    mine = {
        "flags": trainer.flags,
        "computed": reference.rows_computed if reference else 0,
        "peak": peak(torch.device("cpu")),
        "made": made,
        "tensors": dataclasses.asdict(Holdings.of(trainer)),
    }
    if reference is not None and reference.model is not None:
        # put together from all ranks
        about = {"adapters": True, "compute_dtype": compute_type(trainer.args, trainer.model)}
        mine["digests"] = [trainer.digest, model_digest(reference.model, **about)]
    if store is not None:
        mine["in store"] = len(store)
        store.flush()
    ranks: list[Any] = [mine]
    if trainer.accelerator.num_processes > 1:
        ranks = [None] * trainer.accelerator.num_processes
        torch.distributed.all_gather_object(ranks, mine)
    if not trainer.accelerator.is_main_process:
        return
    steps = [entry for entry in history if "loss" in entry]
    out = {
        "loss": [s["loss"] for s in steps],
        "grad_norm": [s["grad_norm"] for s in steps],
        "margins": [s.get("rewards/margins", s.get("p/forget", s.get("reward/kept"))) for s in steps],
        "eval_loss": evaluated.get("eval_loss", 0.0),
        "start_gap": trainer.start_gap,
        "mode": trainer.engine.mode,
        "strategy": reference and reference.strategy,
        "held": reference is not None and reference.model is not None,
        "calibration": [evaluated.get("eval_calibration_error"), getattr(trainer, "calibration", None)],
        "wrapper": [c.__name__ for c in type(trainer.model_wrapped).__mro__],
        "type": str(trainer.accelerator.distributed_type.value),
        "ranks": ranks,
        "entanglement": entangled and entangled.readings,
        "watched": watched.metrics(),
    }
    (folder / f"{label}-{case}.json").write_text(json.dumps(out))


def forget_peak() -> None:
    """Let the process's peak of memory start anew, where the system can do that (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    run_cases(run)
