"""Contrast pairs by a real sentence encoder: it finds a rewording that shares hardly a word, which TF-IDF does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.errors import UserError
from align.eval.contrast import Form
from align.eval.contrast_build import build_pairs
from align.recipe.sections import Source

ROWS = [
    {"prompt": "How do I repair my bicycle tyre?", "chosen": "Patch it.", "rejected": "Sell it."},
    {"prompt": "What's the way of fixing a flat bike wheel?", "chosen": "Use glue.", "rejected": "Walk."},
    {"prompt": "Which planets have rings?", "chosen": "Saturn.", "rejected": "None."},
]


def test_a_rewording_is_found(minilm: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    source, form = Source(path=str(file)), Form("text")
    found = build_pairs(source, form, encoder=str(minilm), band=(0.5, 0.9), say=lambda _: None)
    assert [(p.instruction_1, p.instruction_2) for p in found.pairs] == [(ROWS[0]["prompt"], ROWS[1]["prompt"])]
    with pytest.raises(UserError, match="no two of its 3 instructions have a cosine"):
        build_pairs(source, form, band=(0.5, 0.9), say=lambda _: None)
