"""The picture of pulls: the numbers behind it at a few points, and that it is drawn."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pulls.py"
spec = importlib.util.spec_from_file_location("pulls_benchmark", SCRIPT)
assert spec is not None
assert spec.loader is not None
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


@pytest.mark.parametrize(
    ("name", "margin", "chosen", "rejected"),
    [
        ("dpo", 0.0, 0.05, 0.05),
        ("dpo", 20.0, 0.1 / (1 + math.exp(2)), 0.1 / (1 + math.exp(2))),
        ("flex_dpo", 0.0, 0.05, 0.025),
        ("hinge", 9.5, 0.1, 0.1),
        ("hinge", 10.5, 0.0, 0.0),
        ("ipo", 7.0, -4.0, -4.0),  # 2 (5 - 7)
        ("rpo", 0.0, 0.07, 0.05),  # 0.1 (1/2 + 0.2)
        ("simpo", 20.0, 0.1 / (1 + math.e), 0.1 / (1 + math.e)),  # m = 2 - 1, divided by 20 tokens
        ("sppo_hard", 4.0, 6.0, 6.0),  # 2 (5 - 2)
    ],
)
def test_numbers_behind_the_picture(name: str, margin: float, chosen: float, rejected: float) -> None:
    up, down = script.pulls(script.made(name), torch.tensor([margin], dtype=torch.float64))
    assert (up.item(), down.item()) == pytest.approx((chosen, rejected), rel=1e-9, abs=1e-12)


def test_curves_are_in_units_of_the_pull_on_rejected_at_the_start() -> None:
    up, down = script.relative("flex_dpo")
    start = script.MARGINS.tolist().index(0.0)
    assert (up[start].item(), down[start].item()) == pytest.approx((2.0, 1.0), rel=1e-12)
    assert len(up) == len(script.MARGINS) == 241


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    script.main(["--out", str(tmp_path / "new" / "pulls.svg")])
    drawn, kept = (file.read_text() for file in (tmp_path / "new" / "pulls.svg", script.PICTURE))
    for text in (drawn, kept):  # a panel each, and the legend's
        assert len(set(re.findall(r'id="axes_\d+"', text))) == len(script.PANELS) + 1, "run make docs"
    script.main(["--out", str(tmp_path / "pulls.png")])
    png = (tmp_path / "pulls.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") == 1210
