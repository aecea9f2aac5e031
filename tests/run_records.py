"""Records of runs for tests of reports, made from values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.report.record import Kind, RunRecord

DPO = {
    "name": "first",
    "seed": 0,
    "model": {"id": "some/model", "lora": None},
    "data": {"train": [{"path": "rows.jsonl", "split": "train"}], "held_out": [{"path": "kept.jsonl"}]},
    "objective": {"name": "dpo", "beta": 0.1},
    "train": {"learning_rate": 1e-6},
    "output": "runs/{name}",
}


def span(value: float, half: float = 0.0, n: int = 64) -> dict[str, Any]:
    """An interval as a run records it."""
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def record(
    path: str = "runs/a",
    kind: Kind = "preference",
    recipe: Mapping[str, Any] = DPO,
    metrics: Sequence[Mapping[str, Any]] = (),
    findings: Mapping[str, Any] | None = None,
    lock: Mapping[str, Any] | None = None,
    **more: Any,
) -> RunRecord:
    """One run; with ``findings`` it has ended."""
    verdict = None if findings is None else {"headline": "Done.", "findings": findings, "steps": 10}
    return RunRecord(Path(path), kind, {"recipe": recipe, **(lock or {})}, recipe, metrics, verdict, **more)


def probed(
    chosen: Sequence[float], rejected: Sequence[float], rows: Sequence[str], start: float = -10.0
) -> dict[str, Any]:
    """A ``probe.json`` whose pairs all began at ``start`` and changed by ``chosen`` and ``rejected``."""
    return {
        "rows": list(rows),
        "start": {"chosen": [start] * len(rows), "rejected": [start] * len(rows)},
        "end": {"chosen": [start + c for c in chosen], "rejected": [start + r for r in rejected]},
    }


def asked(values: Sequence[float], question: str = "who?") -> dict[str, Any]:
    """An item log of an unlearning suite with the forgotten answers' probabilities and ROUGE."""
    items = {str(i): {"prob": value} for i, value in enumerate(values)}
    texts = {
        str(i): {"rougeL_recall": value / 2, "input": f"{question} {i}", "ground_truth": "he"}
        for i, value in enumerate(values)
    }
    return {
        "forget_Q_A_Prob": {"agg_value": None, "value_by_index": items},
        "forget_Q_A_ROUGE": {"agg_value": None, "value_by_index": texts},
    }
