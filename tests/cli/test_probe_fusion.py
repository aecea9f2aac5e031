"""``align probe`` with RewardFusion."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_tokenizer
from transformers import AutoModelForSequenceClassification
from zoo import tiny_config

from align.cli.probe import load
from align.errors import UserError
from align.judges.fusion import RewardFusion
from align.judges.loading import early_judge
from align.recipe.sampling import Fusion, Judge
from align.recipe.sections import Source


def test_a_probe_asks_the_fused_judge(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = tiny_config("llama", vocab_size=len(tokenizer), num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    question, answer, same = "Who wrote the book?", " A person in the north", " in the north A person"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": question, "chosen": answer, "rejected": " Nobody"}))
    common: dict[str, Any] = {
        "model": str(tmp_path / "reward"),
        "dtype": "float32",
        "json": True,
        "function": None,
        "allow_code": False,
        "fusion_encoder": None,
    }
    missing = Judge(reward=common["model"], fusion=Fusion(corpus=Source(path="none.jsonl")))
    with pytest.raises(UserError, match=r"none\.jsonl: no such file or folder"):
        early_judge(missing, base=tmp_path)  # before anything is drawn, and without the weights
    plain = load(Namespace(**common, fusion=None))
    fused = load(Namespace(**common, fusion=str(tmp_path / "rows.jsonl")))
    assert isinstance(fused, RewardFusion)
    assert fused.fits([question] * 2, [same, answer * 99]) == [True, False]
    own, other = plain.score([question] * 2, [same, answer])
    assert abs(own - other) > 1e-3
    assert fused.score([question], [same]) == pytest.approx([(own + other) / 2], abs=1e-6)


def test_an_encoder_without_rows_is_refused() -> None:
    with pytest.raises(UserError) as told:
        load(Namespace(model="some/model", function=None, fusion=None, fusion_encoder="some/encoder"))
    assert str(told.value) == (
        "--fusion-encoder finds similar answers, and --fusion names none: give both, or neither."
    )
