"""What a run uses where its recipe's ``train`` section is silent and transformers' own default does not suit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Name to sentence; docs/config.md and `align explain train.NAME` print these as the defaults.
EXPLAINED = {
    "report_to": "`none`: nothing leaves the machine; metrics.jsonl is the record",
    "logging_steps": "10",
    "learning_rate": "1e-6 for policies on pairs or labels, 1e-5 for reward models and others; ten times that with an "
    "adapter",
    "lr_scheduler_type": "`cosine`",
    "warmup_steps": "0.1: a tenth of all steps",
    "bf16": "true where the device computes in bfloat16, else false",
    "eval_strategy": "`steps` when there are held-out rows, else `no`",
    "eval_steps": "0.1 with eval_strategy `steps`: ten times a run",
    "per_device_eval_batch_size": "that of training",
    "save_strategy": "`steps`; that of the evaluation for load_best_model_at_end",
    "save_steps": "0.25 with save_strategy `steps`: four times a run; as eval_steps for load_best_model_at_end",
    "save_total_limit": "2",
    "dataloader_pin_memory": "false without an accelerator",
    "ddp_timeout": "1800; a week with `rounds:`, where processes that are done wait for others that sample or judge",
}


# (policy that compares answers, adapter): learning rate
_RATES = {(True, False): 1e-6, (True, True): 1e-5, (False, False): 1e-5, (False, True): 1e-4}


def train_defaults(
    train: Mapping[str, Any], *, pairs: bool, adapter: bool, held_out: bool, rounds: bool
) -> dict[str, Any]:
    """Our defaults beside a ``train`` section, whose values go over them. Imports torch.

    A strategy and its interval are filled in together, so that one given alone still means what it says.

    Args:
        pairs: whether a policy is trained to compare answers, in pairs or by their labels; a reward model is none.
        adapter: whether an adapter is trained.
        held_out: whether there are held-out rows.
        rounds: whether stages without training come between.
    """
    import torch

    on_cpu = train.get("use_cpu") is True or not torch.accelerator.is_available()
    return {
        "report_to": "none",
        "logging_steps": 10,
        "learning_rate": _RATES[pairs, adapter],
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "bf16": not on_cpu and train.get("fp16") is not True and _bf16_supported(),
        "dataloader_pin_memory": not on_cpu,
        **({"ddp_timeout": 7 * 24 * 3600} if rounds else {}),
        **_evaluation(train, held_out),
        **_saving(train, held_out),
    }


def precision_problem(arguments: dict[str, Any]) -> str | None:
    """The sentence about a precision that no device here computes in, or None. Imports torch.

    transformers names the cause of bf16 in its own words, and passes over fp16 on a CPU in silence.
    """
    import torch

    on_cpu, none = arguments.get("use_cpu") is True, not torch.accelerator.is_available()
    for name in ("bf16", "bf16_full_eval", "fp16"):
        cure = f"set train.{name}=false (override: train.{name}=false)."
        if arguments.get(name) is not True:
            continue
        if name == "fp16" and on_cpu:
            return f"train.fp16: train.use_cpu is true, and a CPU does not compute in float16 under accelerate; {cure}"
        if not on_cpu and (none or (name != "fp16" and not _bf16_supported())):
            kind = "float16" if name == "fp16" else "bfloat16"
            return f"train.{name}: this machine has no device that computes in {kind} under accelerate; {cure}"
    return None


def _bf16_supported() -> bool:
    import torch

    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported()


def _evaluation(train: Mapping[str, Any], held_out: bool) -> dict[str, Any]:
    if not held_out:
        return {"eval_strategy": "no"}
    strategy = train.get("eval_strategy", "steps")
    batch = int(train.get("per_device_train_batch_size", 8))
    given = {"eval_strategy": strategy, "per_device_eval_batch_size": batch}
    return given | ({"eval_steps": 0.1} if strategy == "steps" else {})


def _saving(train: Mapping[str, Any], held_out: bool) -> dict[str, Any]:
    kept = {"save_total_limit": 2}
    if train.get("load_best_model_at_end") is True and "save_strategy" not in train and "save_steps" not in train:
        evaluation = {**_evaluation(train, held_out), **train}
        steps = {"save_steps": evaluation["eval_steps"]} if "eval_steps" in evaluation else {}
        return {"save_strategy": evaluation["eval_strategy"], **steps, **kept}
    strategy = train.get("save_strategy", "steps")
    return {"save_strategy": strategy, **({"save_steps": 0.25} if strategy == "steps" else {}), **kept}
