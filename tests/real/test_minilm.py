"""A real encoder as a judge: no decoder, special tokens at both ends, a head of its own kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from align.judges.reward import RewardModel

ANSWERS = ["Bees make honey.", "Bees make cars, I think, and sometimes whole trains.", "Honey."]


@pytest.fixture(scope="module")
def judge(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM with a head of one number."""
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(minilm, num_labels=1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm).save_pretrained(folder)
    return folder


def test_scores_are_the_models_own_whatever_stands_beside_them(judge: Path) -> None:
    said: list[str] = []
    found = RewardModel(str(judge), say=said.append)
    scores = found.score(["What do bees make? "] * 3, ANSWERS)
    model = BertForSequenceClassification.from_pretrained(judge).eval()
    tokenizer = AutoTokenizer.from_pretrained(judge)
    for answer, score in zip(ANSWERS, scores, strict=True):
        ids = tokenizer(f"What do bees make? {answer}", return_tensors="pt")
        assert ids.input_ids[0, 0] == tokenizer.cls_token_id
        with torch.no_grad():
            assert score == pytest.approx(model(**ids).logits.item(), abs=1e-5)
    assert found.score(["What do bees make? "], ANSWERS[1:2]) == pytest.approx(scores[1:2], abs=1e-5)
    assert said == [
        "judge: FALLING BACK to rows of equal length together, because BertForSequenceClassification has a head of its "
        "own kind. Exact, but slower."
    ]
