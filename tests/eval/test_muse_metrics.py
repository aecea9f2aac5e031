"""MUSE's metrics against the published numbers, whose items in the test data are rounded to nine digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from published_logs import MUSE, content, muse_entries, written

from align.eval.log import MuseLog, SetLog
from align.eval.log_read import read_muse_log
from align.eval.muse_metrics import metrics


def news(folder: Path, name: str) -> MuseLog:
    entries = muse_entries(content(MUSE)[f"muse_Llama-2-7b-hf_News_{name}"])
    return read_muse_log(written(folder, entries, f"{name}.json"))


@pytest.mark.parametrize("name", ["target", "retrain"])
def test_every_published_number(tmp_path: Path, name: str) -> None:
    stated = content(MUSE)[f"muse_Llama-2-7b-hf_News_{name}"]
    retain = news(tmp_path, "retrain") if name == "target" else None
    result = metrics(news(tmp_path, name), retain, seed=None)
    expected = {**stated["agg"], **stated["summary"]}
    assert len(expected) >= 11
    for key, value in expected.items():
        tolerance = 1e-9 if key.startswith(("mia_", "priv")) else 1e-7
        assert result.values[key] == pytest.approx(value, rel=tolerance, abs=0), key


def test_the_published_table(tmp_path: Path) -> None:
    target = metrics(news(tmp_path, "target"), news(tmp_path, "retrain"))
    row = (0.644337, 0.555191, 0.578931, 0.295397, 0.944365, 0.9991, 0.9990, 0.9998, 0.9739, 0.9525, -99.8111)
    names = ("forget_knowmem_ROUGE", "retain_knowmem_ROUGE", "forget_verbmem_ROUGE", "extraction_strength",
             "exact_memorization", "mia_min_k", "mia_loss", "mia_zlib", "mia_min_k_plus_plus", "mia_gradnorm",
             "privleak")  # fmt: skip
    for name, value in zip(names, row, strict=True):
        assert target.values[name] == pytest.approx(value, abs=6e-5), name
    assert target.intervals["forget_knowmem_ROUGE"].n == 100
    alone = metrics(news(tmp_path, "retrain"))
    assert alone.values["privleak"] == pytest.approx(-4.72, abs=5e-5)
    assert any("0.5" in note for note in alone.notes)


def test_missing_parts_and_the_terminal(tmp_path: Path) -> None:
    result = metrics(MuseLog({"forget_knowmem": SetLog(generation=["a cat"], ground_truth=["the cat"])}))
    assert result.values == {"forget_knowmem_ROUGE": 0.5}  # F1, made from the texts
    assert result.missing["retain_knowmem_ROUGE"] == "the log has no ROUGE-L F1 of the retain_knowmem rows"
    assert "retain knowledge not computed" in result.lines()[1]
    shown = metrics(news(tmp_path, "target")).lines()[1]
    assert shown == "forget knowledge 0.6443; forget verbatim 0.5789; privacy leak -99.8200; retain knowledge 0.5552"


def test_extraction_strength_is_corrected_where_the_log_says_how() -> None:
    log = MuseLog(
        {}, {"extraction_strength": np.array([0.5, 0.25]), "extraction_strength_corrected": np.array([0.5, 0])}
    )
    result = metrics(log, seed=None)
    assert (result.values["extraction_strength"], result.values["extraction_strength_corrected"]) == (0.375, 0.25)
