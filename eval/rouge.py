"""ROUGE of generated against true text with the library rouge-score, which the published numbers were made with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from align.errors import UserError


def rouge(truths: Sequence[str], texts: Sequence[str], *, stemmer: bool = True) -> dict[str, np.ndarray]:
    """``rouge1_recall``, ``rougeL_recall`` and ``rougeL_f1`` [n] of ``texts`` against ``truths``, from 0 to 1.

    TOFU and open-unlearning stem words, the code of MUSE does not. Recall ignores run-on text; F1 shows it. Raises
    UserError where rouge-score is not installed, ValueError for unequal lengths.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise UserError("ROUGE needs the library rouge-score: install it with `pip install rouge-score`.") from None
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=stemmer)
    found = [scorer.score(truth, text) for truth, text in zip(truths, texts, strict=True)]
    return {
        "rouge1_recall": np.array([item["rouge1"].recall for item in found]),
        "rougeL_recall": np.array([item["rougeL"].recall for item in found]),
        "rougeL_f1": np.array([item["rougeL"].fmeasure for item in found]),
    }
