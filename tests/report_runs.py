"""Run directories of every kind for tests of reports, written from values; their texts try what text can try."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from align.report.preference import preference_verdict
from align.report.reward import reward_verdict
from align.report.survivors import survivors_verdict
from align.report.unlearning import unlearning_verdict
from align.report.verdict import Verdict
from align.stats import wilson

STEPS = 60
LENGTHS = {"total": 2400, "mean": 10.25, "median": 9, "p95": 20, "longest": 31}
MODEL = {"id": "/a/folder/with/a/name/that/nobody/broke/for/the/width/of/a/page/some-model-of-125m-parameters"}


def hostile(server: str = "http://127.0.0.1:9") -> str:
    """Text that closes every element it may stand in, runs scripts, and asks ``server`` for a picture."""
    return (
        f"</style></pre></title></svg>--><script>fetch('{server}/script')</script><img src={server}/image "
        f"onerror=alert(1)><link rel=stylesheet href={server}/css><style>@import '{server}/import';</style> "
        f"{{{{ 7 * 7 }}}} \"' \u202egnirts a\u202c \x00\x1b[31m \ud800 $x^2$ "
    )


def span(value: float, half: float = 0.5, n: int = 64) -> dict[str, Any]:
    """An interval as a run records it."""
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def write_run(
    folder: Path,
    metrics: Sequence[Mapping[str, Any]],
    verdict: Verdict | Mapping[str, Any] | None,
    files: Mapping[str, Any] | None = None,
    **recipe: Any,
) -> Path:
    """A run directory; ``recipe`` are the sections of its recipe, ``files`` further JSON files by name."""
    folder.mkdir(parents=True)
    whole = {"name": folder.name, "seed": 0, "model": MODEL, "objective": {"name": "dpo", "beta": 0.1}} | recipe
    lock = {"recipe": whole, "versions": {"torch": "2.13.0", "transformers": "5.23.0"}}
    (folder / "recipe.lock.yaml").write_text(yaml.safe_dump(lock), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in metrics), encoding="utf-8")
    found = verdict.to_json() if isinstance(verdict, Verdict) else verdict
    every = dict(files or {}) | ({} if found is None else {"verdict.json": found})
    for name, content in every.items():
        (folder / name).parent.mkdir(exist_ok=True)
        lines = "".join(json.dumps(line) + "\n" for line in content) if name.endswith(".jsonl") else json.dumps(content)
        (folder / name).write_text(lines, encoding="utf-8")
    return folder


def preference_run(folder: Path, *, text: str = "plain", slope: float = 1.0, prompts: int = 10, **recipe: Any) -> Path:
    """A run that suppresses, with all that is measured; ``text`` stands wherever a model or a person wrote some."""
    metrics: list[dict[str, Any]] = []
    for step in range(0, STEPS + 1, 5):
        share = step / STEPS * slope
        reading = {
            "step": step,
            "n": 64,
            "against": "reference",
            "chosen": span(-24 * share, 2),
            "rejected": span(-30 * share, 2),
            "chosen_per_token": -0.6 * share,
            "rejected_per_token": -1.4 * share,
            "below": wilson(round(50 * min(share, 1)), 64).to_json(),
            "margin": span(6 * share),
            "reward_margin": 0.6 * share,
            "accuracy": wilson(32 + round(14 * min(share, 1)), 64).to_json(),
            "longer": 0.5,
            "drift": span(0.3 * share, 0.1),
            "drift_of": text,
            "chosen_length": 40.0,
            "rejected_length": 36.0,
        }
        entangled = {
            "of": "LoRA weights",
            "n": 16,
            "cosine": span(0.8, 0.05, 16),
            "cases": {"ideal": 4, "both_up": 1, "both_down": 11, "reversed": 0},
            "low": 0.7,
            "high": 1.2,
            "best": 0.9,
            "share_at_best": 0.75,
        }
        own = {
            "n": 16,
            "reverse_kl": span(9 * share, 2, 16),
            "entropy": span(2 - share, 0.2, 16),
            "tokens": span(30 + 9 * share),
            "likeness": 0.1,
            "distinct": 0.9,
            "astray": wilson(3, 16).to_json(),
        }
        loss = 0.7 * math.exp(-share) + 0.05 * math.sin(step)
        metrics.append({"step": step, "loss": loss, "grad_norm": 3 - share, "rewards/margins": 0.5 * share})
        metrics[-1] |= {
            "rewards/accuracies": 0.5 + 0.2 * share,
            "probe": reading,
            "own_text": own,
            "entanglement": entangled,
        }
    metrics += [{"step": step, "eval_loss": 0.7 - step / 1000, "eval_rewards/accuracies": 0.7} for step in (0, STEPS)]
    answers = [
        {"step": step, "prompt": f"{i}: {text}", "text": f"{text} {'answer ' * 20}"}
        for step in (0, STEPS)
        for i in range(prompts)
    ]
    facts = {
        "data": {
            "sentences": [
                f"240 pairs, 3 of them left out: {text}",
                "Chosen answers are 12 % longer.",
                "Tokens of chosen: mean 10.",
            ],
            "sets": {"train": {"rows": 240, "tokens": {"chosen": LENGTHS, "rejected": LENGTHS}}},
            "max_length": 128,
        },
        "cost": {
            "seconds": 754.2,
            "tokens": 1_254_000,
            "peak_memory_bytes": 3 * 2**29,
            "probes": {"share": 0.043, "probes": {"probe": {"readings": 13, "skipped": 2, "seconds": 4.25}}},
        },
        "environment": {"device": "cpu", "processes": 1, "versions": {"torch": "2.13.0"}, "git": {"commit": text}},
        "reproduce": f"align train my.yaml output={text}",
    }
    verdict = preference_verdict(metrics, run=str(folder), seconds=754.2, objective="dpo")
    files = {"answers.jsonl": answers, "facts.json": facts}
    return write_run(folder, metrics, verdict, files, **({"data": {"held_out": [{"path": text}]}} | recipe))


def unlearning_run(folder: Path, *, text: str = "plain", fall: float = 0.2) -> Path:
    """A run that forgets at some cost, with a suite's readings, a retain model and a step that was kept."""
    metrics: list[dict[str, Any]] = []
    files: dict[str, Any] = {}
    for step in range(0, STEPS + 1, 20):
        share = step / STEPS
        reading = {
            "utility": 0.6 - fall * share,
            "utility_retain": 0.7 - fall * share,
            "forget_quality": 10 ** (-12 + 11.5 * share),
            "forget_probability": 0.97 - 0.9 * share,
            "forget_rouge": 0.98 - 0.9 * share,
            "D": 0.5 - 0.35 * share,
            "n": 120,
        }
        metrics.append({"step": step, "evaluation": reading, "evaluation_seconds": 2.0})
        if step == 0:
            metrics[-1]["retain"] = {"utility": 0.61}
        metrics.append({"step": step, "loss": 2 - share, "p/forget": 0.97 - 0.8 * share, "nll/retain": 0.1 + share / 9})
        files[f"eval/step-{step}.json"] = {
            "step": step,
            "name": text,
            "metrics": {f"metric_of_the_suite_{i}": 0.9 - share / (i + 2) for i in range(20)},
            "intervals": {"metric_of_the_suite_0": span(0.5, 0.1, 40)},
        }
    metrics.append({"step": 40, "best": {"step": 40, "path": "best", "forget_quality": 1e-4, "utility": 0.5}})
    attack = {"name": "8 bits", "word": "held", "rows": 120, "rise": {"forget_probability": span(0.01, 0.01, 120)}}
    files["eval/durability.json"] = {"word": "held", "attacks": [attack], "untested": [text]}
    verdict = unlearning_verdict(metrics, run=str(folder), seconds=60)
    objective = {"objective": [{"name": "npo", "beta": 0.1}, {"name": "nll", "branch": "retain", "weight": 4}]}
    return write_run(folder, metrics, verdict, files, data={"forget": [{"path": text}]}, **objective)


def reward_run(folder: Path, *, text: str = "plain") -> Path:
    """A reward model with a calibration curve and the sentences of a probe."""
    metrics: list[dict[str, Any]] = []
    for step in range(0, STEPS + 1, 5):
        share = step / STEPS
        metrics.append({"step": step, "loss": 0.7 - 0.5 * share, "grad_norm": 2 - share, "rewards/margins": 3 * share})
        metrics[-1] |= {"rewards/accuracies": 0.5 + 0.4 * share, "rewards/chosen": share, "rewards/rejected": -share}
    metrics += [{"step": s, "eval_loss": 0.7 - s / 200, "eval_rewards/accuracies": 0.5 + s / 200} for s in (0, STEPS)]
    bins = [{"confidence": c, "accuracy": a, "n": n} for c, a, n in ((0.55, 0.5, 20), (0.75, 0.8, 40), (0.97, 0.9, 60))]
    held_out = {
        "n": 120,
        "ties": 2,
        "end": 0.8,
        "start": 0.5,
        "longer": 0.45,
        "calibration": bins,
        "calibration_error": 0.05,
    }
    verdict = reward_verdict(metrics, run=str(folder), seconds=60, pairs=240, held_out=held_out)
    files = {"eval/stability.json": {"pairs": 40, "sentences": [f"It reads {text}."]}}
    return write_run(
        folder, metrics, verdict, files, objective={"name": "bradley_terry"}, data={"held_out": [{"path": text}]}
    )


def survivors_run(folder: Path) -> Path:
    """A run that imitates its own best samples."""
    metrics = [
        {
            "step": step,
            "loss": 1 - step / 100,
            "reward/samples": step / 20,
            "reward/kept": 1 + step / 20,
            "similarity/survivors": 0.1 + step / 500,
            "similarity/random": 0.1,
            "kl_forward/survivor": step / 100,
            "samples/tokens": 20.0,
            "samples/truncated": 0.0,
            "grad_norm": 1.0,
        }
        for step in range(5, STEPS + 1, 5)
    ]
    return write_run(folder, metrics, survivors_verdict(metrics, run=str(folder)), objective={"name": "superhf"})


def rounds_run(folder: Path) -> Path:
    """Three rounds of a run, as they are recorded."""
    metrics = [
        {
            "round": number,
            "prompts": 40,
            "pairs": 38,
            "samples": 320,
            "score": -3 + number / 2,
            "similarity": 0.1,
            "tokens": 12.5 + number,
            "truncated": 0.02,
            "position_bias": None,
            "loss": [6.2, 4.1 - number],
            "accuracy": 0.7 + number / 20,
            "steps": 20,
        }
        for number in (1, 2, 3)
    ]
    verdict = {"run": str(folder), "seconds": 20, "rounds": metrics, "paths": {}}
    return write_run(folder, metrics, verdict, objective={"name": "inpo"}, rounds={"count": 3}, judge={"reward": "rm"})
