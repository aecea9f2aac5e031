"""Gradient entanglement on a real model and real pairs: what a reading costs, and what its cases are worth.

    python benchmarks/entanglement.py [--model build/real/smollm2] [--pairs 40] [--steps 20]

For LoRA weights and for the last block: seconds for a reading of 8 pairs; then, at the start and after some steps of
AdamW, the case of every pair by exact gradients, and in how many pairs the head's inputs come to the same case, a small
step of gradient descent on the pair really does what was predicted, and such a step as Adam scales it does. Data:
``ALIGN_TEST_DATA``, ``hh_rlhf/helpful_test.jsonl.gz``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from rows import hh_file

from align.compat import training_config
from align.objectives import DPO
from align.objectives.entanglement import CASES, SIDES, Products
from align.trainers.entanglement import EntanglementProbe, adam_scales
from align.trainers.preference import PreferenceTrainer

ROOT = Path(__file__).resolve().parents[1]
CHANGE = 0.02  # nats: about what a step shall change a log-prob by; rounding is some 1e-4


def make_trainer(folder: str, adapter: bool, args: argparse.Namespace) -> Any:
    """DPO at the usual rates: 2e-4 for an adapter, 2e-6 for all weights."""
    with gzip.open(hh_file().with_name("helpful_test.jsonl.gz"), "rt", encoding="utf-8") as lines:
        texts = [
            {k: json.loads(line)[k] for k in ("prompt", "chosen", "rejected")} for line in islice(lines, args.rows)
        ]
    config = training_config(
        output_dir=folder,
        per_device_train_batch_size=4,
        max_steps=args.steps,
        learning_rate=2e-4 if adapter else 2e-6,
        lr_scheduler_type="constant",
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        seed=0,
        use_cpu=not torch.cuda.is_available(),
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return PreferenceTrainer(
        args.model,
        DPO(),
        config,
        train_dataset=Dataset.from_list(texts),
        max_length=args.max_length,
        peft_config=lora if adapter else None,
    )


def realised(trainer: Any, probe: EntanglementProbe, measured: Any, scales: list | None) -> torch.Tensor:
    """Changes [2, n] of both log-probs by one small step for each pair on its own loss, as Adam scales it or not."""
    products = measured.exact.products if scales is None else measured.exact.scaled
    pulls = [pull[list(measured.rows)] for pull in measured.pulls]
    predicted = torch.stack(products.changes(*pulls)).abs().amax(0)
    weights, model = measured.exact.weights.tensors, trainer.accelerator.unwrap_model(trainer.model_wrapped).eval()
    changes = torch.zeros(2, len(measured.rows))
    for place, i in enumerate(measured.rows):
        batch = trainer.data_collator([probe.rows[i]])["tree"].to(trainer.args.device)
        policy, terms = trainer.score(model, batch)
        gradient = torch.autograd.grad(terms.losses[0].losses.sum(), weights)
        with torch.no_grad():
            before = [weight.clone() for weight in weights]
            for k, (weight, part) in enumerate(zip(weights, gradient, strict=True)):
                weight -= CHANGE / predicted[place] * part * (1 if scales is None else scales[k])
            after = trainer.engine(model, batch)
            changes[:, place] = torch.stack([(after.sum(s) - policy.sum(s))[0].cpu() for s in SIDES])
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)
    return changes


def agreement(products: Products, pulls: Any, changes: torch.Tensor) -> int:
    """In how many pairs both log-probs go where ``products`` say."""
    predicted = torch.stack(products.changes(*pulls)).cpu()
    return int(((predicted > 0) == (changes > 0)).all(0).sum())


def look(trainer: Any, pairs: int) -> dict[str, Any]:
    """Every number at one moment."""
    rows = trainer.train_dataset.to_list()
    seconds = EntanglementProbe(trainer, rows, 8).read(0)["seconds"]
    probe = EntanglementProbe(trainer, rows, pairs)
    measured = probe.measure()
    products, scaled = measured.exact.products, measured.exact.scaled
    pulls = [pull[list(measured.rows)] for pull in measured.pulls]
    head = Products(*(column[list(measured.rows)] for column in measured.over_head))
    reading = measured.to_json(seed=0)
    found = {key: reading[key] for key in ("of", "block", "parameters", "n", "cases", "cosine", "low", "high")}
    found |= {"head_cases": reading["head"]["cases"], "same_case_by_head": reading["head"]["same_case"]}
    changes = realised(trainer, probe, measured, None)
    found |= {"realised": agreement(products, pulls, changes), "realised_by_head": agreement(head, pulls, changes)}
    if scaled is not None:
        changes = realised(trainer, probe, measured, adam_scales(trainer.optimizer, measured.exact.weights.tensors))
        found |= {"adam": agreement(scaled, pulls, changes), "adam_by_plain": agreement(products, pulls, changes)}
        found["adam_cases"] = {k: int(v.sum()) for k, v in scaled.cases(*pulls).items()}
    assert set(found["cases"]) == set(CASES)
    return found | {"seconds_for_8": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "build/real/smollm2"))
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=160, help="of which the pairs are drawn, and trained on")
    parser.add_argument("--max-length", type=int, default=512, help="tokens; longer rows are dropped")
    parser.add_argument("--weights", nargs="+", choices=("lora", "last_block"), default=["lora", "last_block"])
    args = parser.parse_args()
    if not hh_file().exists():
        print(f"{hh_file()} is absent: set ALIGN_TEST_DATA to the folder that holds hh_rlhf.", file=sys.stderr)
        return 2
    out: dict[str, Any] = {}

    def note(moment: str, trainer: Any) -> None:
        out[moment] = look(trainer, args.pairs)
        print(moment, *(f"    {key:<20} {value}" for key, value in out[moment].items()), sep="\n", file=sys.stderr)

    for name in args.weights:
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(folder, name == "lora", args)
            trainer.get_ready(trainer.model_wrapped)
            note(f"{name} at the start", trainer)
            trainer.train()
            note(f"{name} after {args.steps} steps", trainer)
    print(json.dumps(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
