"""Which configuration a run fits on: cases worked by hand, in GiB."""

from __future__ import annotations

import pytest

from align.errors import DoesNotFit, UserError
from align.runs.placement import Machine, Size, place

GIB = 2**30


def size(weights: float, trained: float, reference: float = 0, divisible: bool = True) -> Size:
    return Size(int(weights * GIB), int(trained * GIB), int(reference * GIB), divisible)


def machine(*devices: float, host: float = 64, deepspeed: bool = True) -> Machine:
    return Machine(tuple(int(d * GIB) for d in devices), int(host * GIB), deepspeed)


def test_what_stays_is_weights_gradients_two_means_and_the_reference() -> None:
    # 7B in float32 with its reference: 4 bytes of weight, 4 of gradient, 8 of Adam and 4 of reference each
    full = Size(weights=28_000_000_000, trained=28_000_000_000, reference=28_000_000_000)
    assert full.stays == 7_000_000_000 * 20
    # the same in bfloat16 under an adapter of 40M weights in float32
    assert Size(weights=14_000_000_000 + 160_000_000, trained=160_000_000).stays == 14_640_000_000


@pytest.mark.parametrize(
    ("run", "there", "processes", "name", "count", "reason"),
    [
        pytest.param(
            size(4, 4, 4), machine(80, 80), None, "ddp", 2, "20.0 GiB stay on each of 2 GPUs of 80.0 GiB", id="whole"
        ),
        pytest.param(size(4, 4, 4), machine(80, 80), 1, "ddp", 1, "20.0 GiB stay on each of 1 GPU of", id="one of two"),
        # 56 GiB are 70 % of 80
        pytest.param(size(14, 14), machine(80, 80), None, "ddp", 2, "56.0 GiB stay", id="just fits"),
        pytest.param(
            size(14, 14, 0.2), machine(80, 80), None, "fsdp2", 2,
            "56.2 GiB are too much for each of 2 GPUs of 80.0 GiB, and shared out they are 28.1 GiB", id="just not",
        ),
        pytest.param(size(26, 26, 26), machine(*[80] * 8), None, "fsdp2", 8, "16.2 GiB", id="7B on eight"),
        pytest.param(size(14, 0.2), machine(*[24] * 8), None, "ddp", 8, "14.6 GiB stay", id="7B under an adapter"),
        pytest.param(size(14, 14), machine(80, 40), None, "fsdp2", 2, "of 40.0 GiB", id="the smaller GPU counts"),
        pytest.param(
            size(26, 26, 26), machine(80, host=512), None, "zero3-offload", 1,
            "130.0 GiB are too much for 1 GPU of 80.0 GiB, and the host has 512.0 GiB for them", id="on the host",
        ),
        pytest.param(size(1, 1), machine(), None, "cpu1", 1, "one process uses all cores", id="a CPU"),
        pytest.param(size(1, 1), machine(), 2, "cpu2-ddp", 2, "several processes were asked for", id="a CPU, two"),
    ],
)  # fmt: skip
def test_the_simplest_configuration_that_fits(
    run: Size, there: Machine, processes: int | None, name: str, count: int, reason: str
) -> None:
    found = place(run, there, processes)
    assert (found.name, found.processes) == (name, count)
    assert reason in found.reason


@pytest.mark.parametrize(
    ("run", "there"),
    [
        pytest.param(size(26, 26, 26), machine(80, host=128), id="neither GPU nor host"),
        pytest.param(size(26, 26, 26), machine(80, host=512, deepspeed=False), id="no DeepSpeed"),
        pytest.param(size(26, 26, divisible=False), machine(80, 80, host=512), id="quantised weights"),
    ],
)
def test_what_fits_nowhere_is_refused_with_the_numbers(run: Size, there: Machine) -> None:
    with pytest.raises(DoesNotFit) as caught:
        place(run, there)
    assert f"This run keeps {run.stays / GIB:.1f} GiB of weights, gradients, optimizer and reference" in str(
        caught.value
    )
    assert str(caught.value).endswith("Train an adapter (model.lora: {}), take a smaller model, or more accelerators.")


def test_a_cpu_without_room_is_refused_per_process() -> None:
    assert place(size(5, 5), machine(), 2).name == "cpu2-ddp"  # 40 of 44.8 GiB
    with pytest.raises(DoesNotFit, match=r"keeps 24\.0 GiB .* in each of 2 processes; the machine has 64\.0 GiB"):
        place(size(6, 6), machine(), 2)
    with pytest.raises(DoesNotFit, match=r"in each of 1 process; the machine has 64\.0 GiB\. Take a smaller model"):
        place(size(60, 0.1), machine())


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        place(size(1, 1), machine(80, 80), 3)
    assert str(caught.value) == "--processes 3: this machine has 2 GPUs, one for each process."
