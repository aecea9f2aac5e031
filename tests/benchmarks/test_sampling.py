"""The benchmark of scoring and drawing samples, on a model far too small: equal values, fewer positions."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
spec = importlib.util.spec_from_file_location("sampling_benchmark", FOLDER / "sampling.py")
assert spec is not None
assert spec.loader is not None
benchmark = importlib.util.module_from_spec(spec)
sys.modules["sampling_benchmark"] = benchmark  # dataclasses look their module up
sys.path.insert(0, str(FOLDER))  # the script looks for its rows beside itself
try:
    spec.loader.exec_module(benchmark)
finally:
    sys.path.remove(str(FOLDER))

SMALL = benchmark.Size(layers=1, hidden=64, vocabulary=50, prompts=2, samples=3, new_tokens=4)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from a second thread, and wait for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_small_run_from_end_to_end() -> None:
    report = benchmark.measure(["tldr"], 2, SMALL)
    scoring, sampling = report["scoring"]["tldr"], report["sampling"]["tldr"]
    assert 0 < scoring["logp_gap"] < 1e-4
    assert 0 < scoring["gradient_gap"] < 1e-4
    batches = [SMALL.batch("tldr", number) for number in range(2)]
    assert scoring["positions"]["ours"] == sum(e.tokens() for batch in batches for e in batch)
    rows = [len(e.trees[0].prompt) + len(b.ids) - 1 for batch in batches for e in batch for b in e.trees[0].branches]
    assert sum(rows) <= scoring["positions"]["padded"]
    assert scoring["fewer_positions"] == scoring["positions"]["padded"] / scoring["positions"]["ours"] > 2
    assert sampling["same_samples"] == 1
    widths = [max(len(e.trees[0].prompt) for e in batch) for batch in batches]
    steps = (sampling["positions"]["once"] - sum(2 * (width - 1) for width in widths)) / 6
    assert 2 <= steps <= 8  # the last prompt token and at most three that are drawn, in each of two rounds
    assert sampling["positions"]["each"] == sum(6 * width for width in widths) + 6 * (steps - 2)
    text = benchmark.table(report)
    assert f"{scoring['fewer_positions']:.2f} times as many" in text
    assert "samples that are the same          100%" in text


def test_caches_give_the_same_texts() -> None:
    report = benchmark.measure(["tldr"], 2, SMALL, caches=True)
    part = report["caches"]["tldr"]
    assert part["failed"] == {}
    assert part["other_texts"] == {"dynamic": 0, "static": 0, "paged": 0}
    assert part["sequences"] == 6
    lines = benchmark.table(report).splitlines()
    assert lines[1] == "caches, tldr: 6 sequences, 2 batches of other lengths"
    median, first = part["seconds"]["static"], part["first"]["static"]
    assert lines[3] == f"  static   {median:.2f} s, the first batch {first:.2f} s; 0 texts differ from dynamic's"


def test_another_text_of_a_cache_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    caches = sys.modules["caches"]
    real = caches._generate
    monkeypatch.setattr(caches, "_generate", lambda m, p, new, cache: real(m, p, new - (cache == "static"), cache))
    monkeypatch.setattr(caches, "_paged", lambda *_: [][0])
    part = benchmark.measure_caches("tldr", 1, SMALL)
    assert part["other_texts"]["static"] > 0
    assert part["failed"] == {"paged": "list index out of range"}


def test_other_log_probs_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = benchmark.pack
    monkeypatch.setattr(benchmark, "pack", lambda examples: real(examples[::-1]))
    assert benchmark.measure_scoring("tldr", 1, SMALL)["logp_gap"] > 1e-2
