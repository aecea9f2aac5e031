"""The arithmetic of docs/launch.md, against numbers worked by hand and the published sizes of the models."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def task() -> ModuleType:
    spec = importlib.util.spec_from_file_location("communication", ROOT / "benchmarks" / "communication.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["communication"] = module
    spec.loader.exec_module(module)
    return module


def test_the_shapes_have_the_weights_of_the_models(task: ModuleType) -> None:
    assert [shape.weights for shape in task.SHAPES] == [1_235_814_400, 6_738_415_616, 68_976_648_192]
    # 7B: per layer 4 * (4096 + 4096) and 3 * (4096 + 11008), times 32 layers and rank 16
    assert task.SHAPES[1].adapter == 32 * 16 * (4 * 8192 + 3 * 15104)


def test_bytes_and_seconds_of_a_step_by_hand(task: ModuleType) -> None:
    seven = task.SHAPES[1]
    weights, adapter = 6_738_415_616, 39_976_960
    # all-reduce of float32 gradients over 8: 2 * 7/8 * 4 bytes
    assert task.sent(seven, "DDP", False, 8) == pytest.approx(7 * weights, rel=1e-12, abs=0)
    assert task.sent(seven, "DDP", True, 8) == pytest.approx(7 * adapter, rel=1e-12, abs=0)
    # three gathers and one reduce-scatter in two bytes, 63/64 of each
    assert task.sent(seven, "FSDP2", False, 64) == pytest.approx(63 / 64 * 8 * weights, rel=1e-12, abs=0)
    both = 6 * weights + 2 * adapter
    assert task.sent(seven, "ZeRO-3", True, 64) == pytest.approx(63 / 64 * both, rel=1e-12, abs=0)
    assert task.seconds(450e9, 8) == 1
    assert task.seconds(450e9, 64) == 9
    # 8 FLOP a weight and token, of 8,192 tokens at 4e14 a second
    assert task.compute(seven, False) == pytest.approx(8 * weights * 8192 / 4e14, rel=1e-12, abs=0)


def test_what_stays_is_shared_out(task: ModuleType) -> None:
    seven = task.SHAPES[1]
    assert task.stays(seven, "DDP", False, 512) == 20 * seven.weights
    assert task.stays(seven, "FSDP2", False, 8) == 20 * seven.weights / 8
    assert task.stays(seven, "ZeRO-3", False, 8) == 18 * seven.weights / 8
    assert task.stays(seven, "DDP", True, 8) == 2 * seven.weights + 16 * seven.adapter


def test_the_page_has_the_tables_of_the_script(task: ModuleType) -> None:
    page = task.PAGE.read_text()
    assert task.written(page) == page
