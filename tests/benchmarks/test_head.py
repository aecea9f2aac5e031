"""The benchmark of the head, on a head far too small: every way the same loss and gradients."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("head_benchmark", Path(__file__).parents[2] / "benchmarks" / "head.py")
assert spec is not None
assert spec.loader is not None
benchmark = importlib.util.module_from_spec(spec)
sys.modules["head_benchmark"] = benchmark  # dataclasses look their module up
spec.loader.exec_module(benchmark)


def test_a_small_run_from_end_to_end(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(benchmark, "CHUNK", 7)
    assert benchmark.main(["--shapes", "20x8x300", "--rounds", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    ways = report["shapes"]["20x8x300"]
    assert list(ways) == ["ours", "whole", "chunked", "liger"]
    assert ways["liger"] == {"skipped": "its kernels need a GPU"}
    assert report["about"]["fused"] == "torch's operations: there are no fused kernels for cpu"
    for name, products in (("ours", 4), ("whole", 3), ("chunked", 4)):
        way = ways[name]
        assert way["tflops"] * 1e12 * way["seconds"] == pytest.approx(products * 2 * 20 * 8 * 300)
        assert 0 < way["forward"] < way["seconds"]
        assert way["fastest"] <= way["seconds"]
        assert set(way["errors"]) == {"loss", "hidden", "weight"}
        assert 0 < max(way["errors"].values()) < 1e-5


def test_a_shape_that_is_none_is_refused(capsys: pytest.CaptureFixture) -> None:
    for wrong in ("20x8", "20x8x300:int8"):
        with pytest.raises(SystemExit):
            benchmark.main(["--shapes", wrong])
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.endswith(f"a shape is written 8192x4096x131072 or 8192x4096x131072:float32, not {wrong}")
