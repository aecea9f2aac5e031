"""Which chip a driver's name means."""

from __future__ import annotations

import pytest

from align.plan.device import CHIPS, chip_of


@pytest.mark.parametrize(
    ("name", "chip"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", None),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", None),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090", "RTX-3090"),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 3060", None),
        ("NVIDIA RTX A6000", None),
        ("Tesla T4", "T4"),
        ("NVIDIA T400", None),
        ("NVIDIA GH200 480GB", None),
        ("mps", None),
    ],
)
def test_a_chip_is_known_by_its_whole_name(name: str, chip: str | None) -> None:
    assert chip_of(name) == chip
    if chip == "A100-80GB":  # the rate of one is that of the other
        assert CHIPS["A100-40GB"][2] == CHIPS[chip][2]
