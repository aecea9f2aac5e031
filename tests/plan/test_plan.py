"""Whole plans: what they count of a recipe, that changes are planned by the same model, and what is remembered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_run import recipe, small_world
from zoo import tiny_model

from align.data.load import Data, load_data
from align.data.tokens.tokenize import load_tokenizer
from align.errors import UserError
from align.plan import speed
from align.plan.changes import changes
from align.plan.device import Device, named
from align.plan.plan import Plan, plan_of
from align.plan.shares import BOTH, Launch
from align.recipe import Recipe

ONE = Launch("one process", 1, "one")
GPU = named("80GiB")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def data(world: Path) -> Data:
    made = recipe(world, world)
    tokenizer = load_tokenizer(made.model, base=made.base, arguments={})
    return load_data(made, tokenizer, made.objective_value().branches, lambda line: None)


def made(world: Path, **changes: Any) -> Recipe:
    return recipe(world, world, **{"watch": {"probe_pairs": 0}} | changes)


def total(world: Path, data: Data, launch: Launch = ONE, device: Device = GPU, **changes: Any) -> int:
    return plan_of(made(world, **changes), data, launch, device).memory.total


def test_parts_add_up_and_stay_what_they_are_by_hand(world: Path, data: Data) -> None:
    plan = plan_of(made(world, train={"bf16": False}), data, ONE, GPU)
    weights = 4 * plan.memory.weights.sum("elements")
    step = plan.memory.phases["the optimizer's step"]
    assert step["weights"] == step["gradients"] == step["reference"] == weights
    assert step["optimizer state"] == 2 * weights
    assert plan.memory.total == max(sum(parts.values()) for parts in plan.memory.phases.values())
    found = plan.to_json()
    assert found["memory"]["total"] == sum(found["memory"]["parts"].values()) == plan.memory.total
    # of a context, and 3 % of what tensors take
    assert plan.memory.parts["context and fragmentation"] == pytest.approx(
        600 * 2**20 + 0.03 * found["memory"]["of_tensors"], abs=1
    )


def test_a_reference_in_16_bits_and_one_that_needs_no_copy(world: Path, data: Data) -> None:
    def reference(**changes: Any) -> int:
        return plan_of(made(world, **changes), data, ONE, GPU).memory.phases["the optimizer's step"]["reference"]

    weights = plan_of(made(world), data, ONE, GPU).memory.weights
    elements, layers = weights.sum("elements"), sum(part.elements for part in weights.layers)
    # autocast is the default on an accelerator; embedding and head stay wide unless rounding loses nothing
    assert reference(train={}) == reference(train={"bf16": True}) == 4 * elements - 2 * layers
    assert reference(train={"bf16": False}) == 4 * elements
    assert reference(model={"id": str(world / "model"), "lora": {"rank": 2}}) == 0
    assert reference(objective={"name": "simpo"}) == 0


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"train": {"per_device_train_batch_size": 4}}, {"train": {"per_device_train_batch_size": 16}}),
        ({"objective": {"name": "simpo"}}, {}),
        ({"train": {"optim": "sgd"}}, {}),
        ({"train": {"max_tokens_per_microbatch": 60}}, {"train": {"max_tokens_per_microbatch": 300}}),
    ],
)
def test_less_takes_less(world: Path, data: Data, less: dict[str, Any], more: dict[str, Any]) -> None:
    assert total(world, data, **less) < total(world, data, **more)


def test_more_processes_hold_less_each_where_weights_are_shared_out(world: Path, data: Data) -> None:
    train = {"per_device_train_batch_size": 1}
    totals = [total(world, data, Launch("fsdp2", n, "fsdp2"), train=train) for n in (2, 4, 8)]
    assert totals == sorted(totals, reverse=True)
    assert total(world, data, Launch("ddp", 2, "ddp"), train=train) > total(world, data, train=train)  # buckets


def test_offloading_on_a_cpu_moves_nothing_elsewhere(world: Path, data: Data) -> None:
    """The host is the device."""
    kept, moved = Launch("zero3", 2, "zero3"), Launch("zero3-offload", 2, "zero3", BOTH)
    cpu = named("cpu")
    found = plan_of(made(world), data, moved, cpu).memory
    beside = plan_of(made(world), data, kept, cpu).memory
    assert found.host == beside.host == 0
    step, others = found.phases["the optimizer's step"], beside.phases["the optimizer's step"]
    assert step.keys() == others.keys()
    # each of two processes has its share of the float32 weights that DeepSpeed's optimizer on the host keeps
    own = {"optimizer state": 4 * found.weights.sum("trained") // 2}
    for name in step.keys() - {"context and fragmentation"}:
        assert step[name] - others[name] == pytest.approx(own.get(name, 0), abs=1)
    on_gpu = plan_of(made(world), data, moved, GPU).memory
    assert on_gpu.host > 0
    assert on_gpu.total < total(world, data, kept)


def test_changes_are_plans_of_the_changed_recipe(tmp_path: Path, world: Path, data: Data) -> None:
    tiny_model(vocab_size=20_000).save_pretrained(tmp_path / "wide")
    start = made(world, model={"id": str(tmp_path / "wide")}, train={"bf16": False})
    small = Device("a small one", "cuda", 2**40, 627 * 2**20, 2**18, 1e12)  # 27 MiB beside the context
    plan = plan_of(start, data, ONE, small)
    assert not plan.fits
    found = changes(start, data, plan)
    assert [one.plan.memory.total for one in found] == sorted((c.plan.memory.total for c in found), reverse=True)
    assert all(one.plan.memory.total < plan.memory.total for one in found)
    # each is the plan of the recipe in which the keys that it names are set
    for one in found:
        if "align launch" in one.text:
            continue
        keys = [part.strip().split("=") for part in one.text.split(", ")]
        values: dict[str, Any] = {"true": True, "{}": {}}
        train = {"bf16": False} | {
            key.removeprefix("train."): values.get(value, int(value) if value.isdigit() else value)
            for key, value in keys
            if key.startswith("train.")
        }
        model = {"id": str(tmp_path / "wide")} | {
            key.removeprefix("model."): values.get(value, value) for key, value in keys if key.startswith("model.")
        }
        again = plan_of(made(world, model=model, train=train), data, ONE, small)
        assert again.memory.total == one.plan.memory.total
    assert "model.lora={}" in found[-1].text


@pytest.mark.slow
def test_changes_of_a_run_whose_samples_are_the_most(tmp_path: Path, world: Path, data: Data) -> None:
    tiny_model(vocab_size=20_000).save_pretrained(tmp_path / "wide")
    settings: dict[str, Any] = {"id": str(tmp_path / "wide"), "lora": {"rank": 2}}
    start = made(world, model=settings, watch={"probe_pairs": 2, "probe_answers": 4})
    plan = plan_of(start, data, ONE, Device("none", "cuda", 2**40, 1, 2**18, 1e12, known=False))
    assert plan.memory.phase == "sampling"
    texts = [one.text for one in changes(start, data, plan)]
    assert any(text.endswith("watch.probe_answers=0") for text in texts)
    assert any(text.endswith("watch.probe_answers=0, model.dtype=bfloat16") for text in texts)  # the file has float32
    narrow = made(world, model=settings | {"dtype": "bfloat16"}, watch={"probe_pairs": 2, "probe_answers": 4})
    assert not any("dtype" in one.text for one in changes(narrow, data, plan_of(narrow, data, ONE, plan.device)))
    whole = made(world, model={"id": settings["id"]}, watch={"probe_pairs": 2, "probe_answers": 4})
    offered = [one.text for one in changes(whole, data, plan_of(whole, data, ONE, plan.device))]
    assert any(text.endswith("model.lora={}, model.dtype=bfloat16") for text in offered)
    assert plan.time.source == "43% of an A100's rate, since the chip is not known; no run of this shape was seen here"


def test_a_device_by_name_or_memory() -> None:
    assert named("80GiB").total == 80 * 2**30
    assert named("24GB").total == 24 * 10**9
    assert named("h100").flops == 989e12
    assert named("80GiB").area == min(32 * 108 * 128 * 256, 80 * 2**30 // 64 // 4)
    for wrong in ("80", "0GiB", "H900", "1.2.3GiB"):
        with pytest.raises(UserError, match="expected a memory such as 80GiB, or one of cpu, H200, H100"):
            named(wrong)


def test_time_is_operations_over_the_rate_and_says_which(
    world: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def time(launch: Launch = ONE, device: str = "H100") -> Plan:
        return plan_of(made(world, train={"max_steps": 5, "num_train_epochs": 1}), data, launch, named(device))

    first = time()
    tokens = first.time.tokens
    assert tokens["policy"] == first.batches.positions
    elements = first.memory.weights.sum("elements") - first.memory.weights.embedding.elements
    expected = elements * (6 * tokens["policy"] + 2 * (tokens["reference"] + tokens["evaluations"]))
    assert first.time.flops == expected
    assert first.time.seconds == pytest.approx(expected / (0.30 * 989e12), rel=1e-9, abs=0)
    assert first.time.source == "30% of what its maker says of H100; no run of this shape was seen here"
    shape = speed.shape_of(first.memory, False)
    for rate in (1e9, 4e9, 2e9):
        speed.remember("H100", shape, rate)
    with open(tmp_path / "align" / speed.FILE, "a") as file:
        file.write("damaged\n[1]\n" + '{"device": "H100", "shape": "another", "rate": 7}\n')
    again = time()
    assert again.time.source == "the rate of 3 earlier runs of this shape on this machine"
    assert again.time.seconds == pytest.approx(expected / 2e9, rel=1e-9, abs=0)

    four = Launch("fsdp2", 4, "fsdp2")
    spread = time(four).time
    assert spread.seconds == pytest.approx(spread.flops / 2e9 / 4, rel=1e-9, abs=0)
    assert spread.source == (
        "the rate of 3 earlier runs of this shape on this machine, in one process; what processes send each other is "
        "not counted"
    )
    speed.remember("H100", speed.shape_of(first.memory, False, four), 1e9)
    assert time(four).time.seconds == pytest.approx(spread.flops / 1e9 / 4, rel=1e-9, abs=0)
    assert time(Launch("ddp", 4, "ddp")).time.seconds == pytest.approx(spread.flops / 2e9 / 4, rel=1e-9, abs=0)

    speed.remember("cpu", shape, 5e9)  # two processes share the cores that one had
    shared = time(Launch("ddp", 2, "ddp"), "cpu").time
    assert shared.seconds == pytest.approx(shared.flops / 5e9, rel=1e-9, abs=0)
    monkeypatch.setattr(speed, "product_rate", lambda: 8e9)
    (tmp_path / "align" / speed.FILE).unlink()
    assert time(Launch("ddp", 2, "ddp"), "cpu").time.seconds == pytest.approx(shared.flops / 4e9, rel=1e-9, abs=0)


def test_disk_is_the_model_and_the_checkpoints_that_are_there_at_a_time(world: Path, data: Data) -> None:
    found = plan_of(made(world, train={"max_steps": 10, "save_steps": 4, "bf16": False}), data, ONE, GPU)
    weights = 4 * found.memory.weights.sum("elements")
    assert found.disk.model == weights
    assert found.disk.checkpoint == 3 * weights  # with Adam's two means
    assert found.disk.checkpoints == 3  # 2 are kept, and one more while it is written
    assert found.disk.total == weights + 3 * 3 * weights


@pytest.mark.parametrize(("steps", "epochs"), [(5, 1), (6, 2), (15, 3), (41, 9)])
def test_by_epochs_checkpoints_and_evaluations_are_those_of_the_steps_that_are_made(
    world: Path, data: Data, steps: int, epochs: int
) -> None:
    """An epoch has 5 steps; ``num_train_epochs`` is left aside where there is a number of steps."""
    by = {"eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": None, "num_train_epochs": 3}
    found = plan_of(made(world, train={"max_steps": steps, **by}), data, ONE, GPU)
    assert found.disk.checkpoints == epochs
    assert found.time.tokens["evaluations"] == (epochs + 1) * found.batches.evaluated
    # kept from the first pass over the rows on; an epoch has five steps
    assert found.time.tokens["reference"] == int(found.batches.positions / max(1, steps / 5))


def test_a_layer_that_cannot_be_followed_is_estimated_and_said(
    world: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    from align.plan import memory
    from align.plan.show import table

    seen = plan_of(made(world), data, ONE, GPU)

    def fails(*args: Any) -> Any:
        raise RuntimeError("it looks at values")

    monkeypatch.setattr(memory, "trace", fails)
    plan = plan_of(made(world), data, ONE, GPU)
    assert not plan.memory.followed
    said = "the layers of this architecture cannot be followed without weights: activations are estimated"
    assert said in "\n".join(table(plan))
    assert 0.3 < plan.memory.total / seen.memory.total < 3


def test_steps_too_short_for_a_gpu_are_said(world: Path, data: Data) -> None:
    from align.plan.show import table

    plan = plan_of(made(world), data, ONE, GPU)
    said = f"that is {1000 * plan.time.seconds / plan.batches.steps:.2g} ms a step; so short a step waits for the host"
    assert said in "\n".join(table(plan))
    slower = replace(plan, time=replace(plan.time, seconds=0.021 * plan.batches.steps))
    assert "ms a step" not in "\n".join(table(slower))
    on_cpu = plan_of(made(world), data, ONE, named("cpu"))
    assert "ms a step" not in "\n".join(table(on_cpu))


def test_a_device_that_is_named_by_its_memory(world: Path, data: Data) -> None:
    from align.plan.show import where

    assert where(plan_of(made(world), data, ONE, GPU)) == "1 process, a device of 80.0 GiB"
