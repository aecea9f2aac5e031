"""Published evaluation logs from the folder of test data, put back into the layout that their tools write."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

from sample_rows import real

OPEN = "tofu_eval/open_unlearning_logs.json.gz"
ORIGINAL = "tofu_eval/tofu_original_logs.json.gz"
MUSE = "muse_eval/muse_logs_numeric.json.gz"
FULL = "tofu_eval/TOFU_EVAL_1B_full_forget10.json.gz"
RETAIN90 = "tofu_eval/TOFU_EVAL_1B_retain90.json.gz"
_LOSSES = {"Q_A_Prob": "gt", "Q_A_PARA_Prob": "para", "Q_A_PERT_Prob": "pert"}
_ROUGES = ("rouge1_recall", "rougeL_f1", "rougeL_recall")


@cache
def _load(name: str) -> dict[str, Any]:
    with gzip.open(real(name), "rt", encoding="utf-8") as text:
        return json.load(text)


def content(name: str) -> dict[str, Any]:
    """A JSON file of the test data, to be changed at will."""
    return json.loads(json.dumps(_load(name)))


def by_index(columns: dict[str, list]) -> dict[str, Any]:
    rows = zip(*columns.values(), strict=True)
    return {"value_by_index": {str(i): dict(zip(columns, row, strict=True)) for i, row in enumerate(rows)}}


def attacks(source: dict[str, Any]) -> dict[str, Any]:
    sides = {name: value for name, value in source.items() if name.startswith("mia_")}
    return {n: {side: by_index({"score": values}) for side, values in both.items()} for n, both in sides.items()}


def tofu_entries(condensed: dict[str, Any]) -> dict[str, Any]:
    """The entries of a TOFU_EVAL.json, without aggregates, from its numbers in the file of six logs."""
    out = attacks(condensed)
    for name in ("forget", "retain", "ra", "wf"):
        part = condensed[name]
        for kind, key in _LOSSES.items():
            if f"{key}_loss" in part:
                columns = {"prob": part[f"{key}_prob"], "avg_loss": part[f"{key}_loss"]}
                out[f"{name}_{kind}"] = by_index(columns)
        out[f"{name}_Q_A_ROUGE"] = by_index({key: part[key] for key in _ROUGES})
        for score in ("exact_memorization", "extraction_strength"):
            if score in part:
                out[score] = by_index({"score": part[score]})
    return out


def muse_entries(condensed: dict[str, Any]) -> dict[str, Any]:
    """The entries of a MUSE_EVAL.json, without aggregates."""
    items = {name: value for name, value in condensed.items() if isinstance(value, list)}
    lists = {n: {"value_by_index": {str(i): item for i, item in enumerate(value)}} for n, value in items.items()}
    return attacks(condensed) | lists


def written(folder: Path, entries: dict[str, Any], name: str = "TOFU_EVAL.json") -> Path:
    path = folder / name
    text = json.dumps(entries).encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path
