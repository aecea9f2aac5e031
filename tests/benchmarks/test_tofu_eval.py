"""The benchmark of TOFU's teacher-forced part: both ways give the same losses on real rows."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tofu_eval.py"
spec = importlib.util.spec_from_file_location("tofu_eval", SCRIPT)
assert spec is not None
assert spec.loader is not None
benchmark = importlib.util.module_from_spec(spec)
sys.modules["tofu_eval"] = benchmark
spec.loader.exec_module(benchmark)


@pytest.mark.skipif(not benchmark.data_folder().is_dir(), reason="ALIGN_TEST_DATA has no folder tofu")
def test_both_ways_give_the_same_losses_on_real_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(benchmark, "BATCH", 4)
    try:
        report = benchmark.measure(rows=6, rounds=1, layers=1, hidden=64)
    finally:
        torch.set_num_threads(threads)
    assert report["answers"] == 42
    assert report["same_losses"]
    assert report["loss_gap"] > 0  # computed twice, not once
    # seven answers share a question, and no batch is padded
    assert report["positions"]["usual"] > 1.8 * report["positions"]["ours"]
    assert f"{report['times_as_fast']:.2f} times as fast" in benchmark.table(report)


@pytest.mark.skipif(not benchmark.data_folder().is_dir(), reason="ALIGN_TEST_DATA has no folder tofu")
def test_a_whole_evaluation_with_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    load = benchmark.load_sets
    monkeypatch.setattr(benchmark, "load_sets", lambda *args, **how: replace(load(*args, **how), new_tokens=3))
    report = benchmark.measure_whole(2, layers=1, hidden=64)
    assert report["rows"] == {"forget": 2, "retain": 2, "ra": 2, "wf": 2}
    assert report["answers"] == report["rouge_rows"] == 8
    assert report["largest_batch"] == 8
    seconds = report["seconds"]
    assert 0 < seconds["generation"] < seconds["all"] == pytest.approx(seconds["generation"] + seconds["scoring"])
    assert report["answer_tokens_per_second"] == pytest.approx(24 / seconds["generation"])
    assert f"a TOFU evaluation of 8 rows: {seconds['all']:.1f} s" in benchmark.whole_table(report)
