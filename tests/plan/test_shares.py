"""What each process holds under a launch, by hand: 1,000 trained weights in float32, two layers of 300."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from accelerate.utils import DeepSpeedPlugin

from align.errors import UserError
from align.plan.plan import launched, on
from align.plan.shares import BOTH, Held, Launch, Optimizer, deepspeed, held, launch_of, optimizer
from align.plan.weights import Part, Weights
from align.runs.launcher import configuration, configurations

LAYER = Part(300, 1200, 300, 1200, 400, 40)
MODEL = Weights(Part(250, 1000, 250, 1000, 1000, 20), (LAYER, LAYER), Part(150, 600, 150, 600, 600, 30), tied=False)
ADAM = Optimizer()


def under(name: Any, processes: int, how: Optimizer = ADAM, reference: int = 4000, narrow: bool = False) -> Held:
    return held(MODEL, Launch(name, processes, name), how, reference, narrow, on_cpu=True)


def test_one_process_holds_everything() -> None:
    found = under("one", 1)
    assert (found.weights, found.reference, found.optimizer, found.gradients) == (4000, 4000, 8000, 4000)
    assert (found.buckets, found.gathered, found.host, found.states) == (0, 0, 0, 8000)
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
    assert found.buckets == 2 * 1000  # of at most all weights
    fast = deepspeed("zero2", 4, {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 300})
    for on_cpu, launch, numbers in (
        (True, fast, 2 * 300),  # two of them
        (False, fast, 2 * 300),
        (True, Launch("zero2", 4, "zero2"), 1000),
        (False, Launch("zero2", 4, "zero2"), 500_000_000),  # on a GPU all of it, whatever is put into it
        (False, deepspeed("zero3", 4, {"stage": 3, "overlap_comm": True, "reduce_bucket_size": 300}), 300),
    ):
        assert held(MODEL, launch, ADAM, 0, True, on_cpu=on_cpu).buckets == 2 * numbers
    assert under("zero2", 4).optimizer == (8000 + 4000) // 4  # a copy also where it is of the same type
    assert under("zero3", 4).optimizer == 8000 // 4
    assert under("zero1", 4, narrow=True) == replace(found, gradients=2000)  # stage 1 keeps them whole


def test_zero3_shares_everything_and_offload_moves_it_to_the_host() -> None:
    found = under("zero3", 4, narrow=True)
    assert (found.weights, found.reference, found.optimizer, found.gradients) == (500, 500, 3000, 500)
    assert found.gathered == 2 * 600 + 500 + 300 + 600
    assert found.host == 0
    # gradients go where the optimizer is
    for offloaded, stays, host in (
        ({"weights", "optimizer"}, (0, 0, 0, 0), 4 * (500 + 500 + 3000 + 500)),
        ({"optimizer"}, (500, 500, 0, 0), 4 * (3000 + 500)),
        ({"weights"}, (0, 0, 3000, 500), 4 * (500 + 500)),
    ):
        away = held(MODEL, Launch("zero3", 4, "zero3", frozenset(offloaded)), ADAM, 4000, True)  # type: ignore[arg-type]
        assert (away.weights, away.reference, away.optimizer, away.gradients) == stays
        assert (away.host, away.gathered, away.states) == (host, found.gathered, 4 * 3000)
    away = held(MODEL, Launch("fsdp2", 4, "fsdp2", BOTH), ADAM, 4000, False)
    assert (away.weights, away.optimizer, away.gradients, away.stepping, away.layer_gradients) == (0, 0, 0, 0, ())
    assert away.host == 4 * (1000 + 1000 + 2000 + 1000 + 1000 // 4)


def test_quantised_weights_are_whole_everywhere() -> None:
    """accelerate leaves them out of what FSDP2 shares out, and nothing offloads them."""
    whole = replace(MODEL, divisible=False)
    for kind in ("fsdp2", "zero3"):
        shared = held(MODEL, Launch(kind, 4, kind, BOTH), ADAM, 4000, False)
        found = held(whole, Launch(kind, 4, kind, BOTH), ADAM, 4000, False)
        assert (shared.weights, found.weights) == (0, 4000)
        assert (found.reference, found.optimizer) == (0, 0)
        assert found.host == shared.host - 4000
        assert held(whole, Launch(kind, 4, kind), ADAM, 0, False).weights == 4000


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
    ("content", "zero", "processes", "kind", "offloaded"),
    [
        ({"distributed_type": "NO"}, {}, 1, "one", set()),
        ({"distributed_type": "MULTI_GPU"}, {}, 8, "ddp", set()),
        ({"distributed_type": "FSDP"}, {}, 8, "fsdp2", set()),
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_offload_params": False}}, {}, 8, "fsdp2", set()),
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_offload_params": True}}, {}, 8, "fsdp2", BOTH),
        ({"distributed_type": "DEEPSPEED"}, {"stage": 0}, 8, "ddp", set()),
        ({"distributed_type": "DEEPSPEED"}, {"stage": 1}, 8, "zero1", set()),
        ({"distributed_type": "DEEPSPEED"}, {"stage": 2}, 8, "zero2", set()),
        ({"distributed_type": "DEEPSPEED"}, {"stage": 3, "offload_param": {"device": "none"}}, 8, "zero3", set()),
        ({"distributed_type": "DEEPSPEED"}, {"stage": 3, "offload_param": {"device": "cpu"}}, 8, "zero3", {"weights"}),
        (
            {"distributed_type": "DEEPSPEED"},
            {"stage": 2, "offload_optimizer": {"device": "nvme"}},
            8,
            "zero2",
            {"optimizer"},
        ),
    ],
)
def test_what_a_configuration_does(
    content: dict[str, Any], zero: dict[str, Any], processes: int, kind: Any, offloaded: Any
) -> None:
    assert launch_of("x", content, zero, processes) == Launch("x", processes, kind, frozenset(offloaded))


def test_the_packaged_configurations_are_known() -> None:
    found = {name: on(configuration(name), 2) for name in configurations() if name != "cpu1"}
    assert {name: launch.kind for name, launch in found.items()} == {
        "cpu2-ddp": "ddp",
        "cpu2-fsdp2": "fsdp2",
        "cpu2-zero2": "zero2",
        "cpu2-zero3": "zero3",
        "ddp": "ddp",
        "fsdp2": "fsdp2",
        "zero2": "zero2",
        "zero3": "zero3",
        "zero3-offload": "zero3",
    }
    assert {name: launch.offloaded for name, launch in found.items() if launch.offloaded} == {"zero3-offload": BOTH}


def test_a_deepspeed_file_is_read_and_not_guessed_by_its_name(tmp_path: Path) -> None:
    """Its name says nothing, its content everything."""
    mine, settings = tmp_path / "mine.yaml", tmp_path / "zero2-fast.json"
    about = {"deepspeed_config_file": str(settings), "zero3_init_flag": True}
    mine.write_text(yaml.safe_dump({"distributed_type": "DEEPSPEED", "deepspeed_config": about}))
    with pytest.raises(UserError, match=rf"^deepspeed_config_file: {settings} is not there\. "):
        on(configuration(str(mine)), 4)
    about = '{"stage": 3, "offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": 2e8}'  # as DeepSpeed's pages do
    settings.write_text(f'{{"zero_optimization": {about}}}')
    assert on(configuration(str(mine)), 4) == Launch(str(mine), 4, "zero3", frozenset({"optimizer"}), 200_000_000)
    for text, said in (
        ("{}", f"--on {mine}: {settings} has no section zero_optimization."),
        ('{"zero_optimization": 3}', f"--on {mine}: {settings} has no section zero_optimization."),
        ("{", f"--on {mine}: {settings} holds no JSON object."),
    ):
        settings.write_text(text)
        with pytest.raises(UserError) as caught:
            on(configuration(str(mine)), 4)
        assert str(caught.value).startswith(said)


def test_how_this_process_was_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what accelerate leaves, which is a plugin or variables of the environment."""

    def found(world_size: int, zero: dict[str, Any] | None = None) -> Launch:
        plugin = None
        if zero is not None:
            pytest.importorskip("deepspeed")
            plugin = DeepSpeedPlugin(hf_ds_config={"zero_optimization": zero, "train_micro_batch_size_per_gpu": 1})
        return launched(SimpleNamespace(world_size=world_size, deepspeed_plugin=plugin))

    assert found(1) == Launch("one process", 1, "one")
    assert found(2) == Launch("ddp", 2, "ddp")
    assert found(2, {}) == Launch("ddp", 2, "ddp")
    assert found(2, {"stage": 2}) == Launch("zero2", 2, "zero2")
    assert found(2, {"stage": 3}) == Launch("zero3", 2, "zero3")
    cpu = {"device": "cpu"}
    assert found(2, {"stage": 3, "offload_param": cpu, "offload_optimizer": cpu}) == Launch(
        "zero3-offload", 2, "zero3", BOTH
    )
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert found(2) == Launch("fsdp2", 2, "fsdp2")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    assert found(2) == Launch("fsdp2", 2, "fsdp2", BOTH)
