"""What each process holds under a launch, by hand: 1,000 trained weights in float32, two layers of 300."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from align.plan.shares import Held, Launch, Optimizer, held, kind_of, optimizer
from align.plan.weights import Part, Weights

LAYER = Part(300, 1200, 300, 1200, 400, 40)
MODEL = Weights(Part(250, 1000, 250, 1000, 1000, 20), (LAYER, LAYER), Part(150, 600, 150, 600, 600, 30), tied=False)
ADAM = Optimizer()


def under(name: Any, processes: int, how: Optimizer = ADAM, reference: int = 4000, narrow: bool = False) -> Held:
    return held(MODEL, Launch(name, processes, name), how, reference, narrow)


def test_one_process_holds_everything() -> None:
    found = under("one", 1)
    assert (found.weights, found.reference, found.optimizer, found.gradients) == (4000, 4000, 8000, 4000)
    assert (found.buckets, found.gathered, found.host) == (0, 0, 0)
    assert found.stepping == 1000  # the largest weight
    assert found.layer_gradients == (1200, 1200)


def test_ddp_exchanges_gradients_through_buckets_as_large_as_they_are() -> None:
    assert replace(under("ddp", 4), buckets=0) == under("one", 1)
    assert under("ddp", 4).buckets == 4000


def test_fsdp2_shares_out_and_gathers_two_layers() -> None:
    found = under("fsdp2", 4)
    assert (found.weights, found.reference, found.optimizer, found.gradients) == (1000, 1000, 2000, 1000)
    # two layers, embedding and rest, and the largest part's gradient
    assert found.gathered == 2 * 1200 + 1000 + 600 + 1200
    assert under("fsdp2", 4, narrow=True).gathered == found.gathered // 2


def test_zero2_shares_the_optimizer_and_gradients() -> None:
    found = under("zero2", 4, narrow=True)
    # weights in 16 bits; their float32 copy, and both means, are shared out
    assert (found.weights, found.reference) == (2000, 2000)
    assert (found.optimizer, found.gradients) == ((8000 + 4000) // 4, 500)
    assert found.buckets == 2 * 2 * 1000  # two of at most all weights
    assert under("zero2", 4).optimizer == 2000


def test_zero3_shares_everything_and_offload_moves_it_to_the_host() -> None:
    found = under("zero3", 4, narrow=True)
    assert (found.weights, found.reference, found.optimizer, found.gradients) == (500, 500, 3000, 500)
    away = under("offload", 4, narrow=True)
    assert (away.weights, away.reference, away.optimizer, away.gradients) == (0, 0, 0, 0)
    assert away.host == 4 * (500 + 500 + 3000 + 500)
    assert away.gathered == found.gathered == 2 * 600 + 500 + 300 + 600


@pytest.mark.parametrize(
    ("name", "device", "state", "stepping"),
    [
        ("adamw_torch_fused", "cuda", 8000, 1000),
        ("adamw_torch", "cuda", 8000, 4000),  # makes a tensor for all weights at once
        ("adamw_torch", "cpu", 8000, 1000),
        ("sgd", "cuda", 0, 1000),
        ("lion_32bit", "cuda", 4000, 1000),
        ("adafactor", "cuda", 20 + 2 * 40 + 30, 1000),
        ("adamw_bnb_8bit", "cuda", int((2 + 2 * 4 / 256) * 1000), 1000),
        ("unheard_of", "cuda", 8000, 1000),
    ],
)
def test_optimizers(name: str, device: str, state: int, stepping: int) -> None:
    found = under("one", 1, optimizer(name, device))
    assert (found.optimizer, found.stepping) == (state, stepping)


@pytest.mark.parametrize(
    ("content", "processes", "kind"),
    [
        ({"distributed_type": "NO"}, 1, "one"),
        ({"distributed_type": "MULTI_GPU"}, 8, "ddp"),
        ({"distributed_type": "FSDP"}, 8, "fsdp2"),
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 2}}, 8, "zero2"),
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 3}}, 8, "zero3"),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"deepspeed_config_file": "cpu2-zero3.json"}},
            2,
            "zero3",
        ),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 3, "offload_param_device": "cpu"}},
            8,
            "offload",
        ),
    ],
)
def test_what_a_configuration_does(content: dict[str, Any], processes: int, kind: str) -> None:
    assert kind_of(content, processes) == kind


def test_the_packaged_configurations_are_known() -> None:
    from align.runs.launcher import configuration, configurations

    found = {name: kind_of(configuration(name).content, 2) for name in configurations() if name != "cpu1"}
    assert found == {
        "cpu2-ddp": "ddp",
        "cpu2-fsdp2": "fsdp2",
        "cpu2-zero2": "zero2",
        "cpu2-zero3": "zero3",
        "ddp": "ddp",
        "fsdp2": "fsdp2",
        "zero2": "zero2",
        "zero3": "zero3",
        "zero3-offload": "offload",
    }
