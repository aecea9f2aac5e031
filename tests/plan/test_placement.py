"""Which configuration a run fits on: cases worked by hand, in GiB."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from align.errors import DoesNotFit, UserError
from align.plan.placement import Machine, Need, place
from align.plan.shares import BOTH, Launch

GIB = 2**30


def run(stays: float, activations: float = 0.0) -> Callable[[Launch], Need]:
    """A run of which ``stays`` GiB can be shared out and ``activations`` cannot."""

    def need(launch: Launch) -> Need:
        if launch.offloaded == BOTH:
            return Need(int(activations * GIB), int(stays * GIB))
        share = launch.processes if launch.kind == "fsdp2" else 1
        return Need(int((stays / share + activations) * GIB))

    return need


def machine(*devices: float, host: float = 64, deepspeed: bool = True) -> Machine:
    return Machine(tuple(int(d * GIB) for d in devices), int(host * GIB), deepspeed)


@pytest.mark.parametrize(
    ("needs", "there", "processes", "name", "count", "reason"),
    [
        pytest.param(
            run(20, 9), machine(80, 80), None, "ddp", 2, "it takes 29.0 GiB on each of 2 GPUs of 80.0 GiB", id="whole"
        ),
        pytest.param(
            run(20), machine(80, 80), 1, "ddp", 1, "it takes 20.0 GiB on each of 1 GPU of 80.0 GiB", id="one of two"
        ),
        pytest.param(run(70, 10), machine(80, 80), None, "ddp", 2, "it takes 80.0 GiB", id="just fits"),
        pytest.param(
            run(70, 10.5),
            machine(80, 80),
            None,
            "fsdp2",
            2,
            "it takes 45.5 GiB on each of 2 GPUs of 80.0 GiB (ddp would take 80.5 GiB)",
            id="just not",
        ),
        pytest.param(run(104, 20), machine(*[80] * 8), None, "fsdp2", 8, "it takes 33.0 GiB", id="7B on eight"),
        pytest.param(
            run(40, 2),
            machine(80, 40),
            None,
            "fsdp2",
            2,
            "it takes 22.0 GiB on each of 2 GPUs of 40.0 GiB",
            id="the smaller GPU counts",
        ),
        pytest.param(
            run(130, 9),
            machine(80, host=512),
            None,
            "zero3-offload",
            1,
            "it takes 9.0 GiB on each of 1 GPU of 80.0 GiB and 130.0 GiB on the host (ddp would take 139.0 GiB)",
            id="host",
        ),
        pytest.param(
            run(1), machine(), None, "cpu1", 1, "there is no accelerator, and one process uses all cores", id="a CPU"
        ),
        pytest.param(run(1), machine(), 2, "cpu2-ddp", 2, "several processes were asked for", id="a CPU, two"),
    ],
)
def test_the_simplest_configuration_that_fits(
    needs: Callable[[Launch], Need], there: Machine, processes: int | None, name: str, count: int, reason: str
) -> None:
    found = place(needs, there, processes)
    assert (found.name, found.processes) == (name, count)
    assert reason in found.reason


@pytest.mark.parametrize(
    ("there", "tried"),
    [
        (machine(80, host=128), "ddp would take 135.0 GiB, zero3-offload would take 5.0 GiB and 130.0 GiB on the host"),
        (machine(80, host=512, deepspeed=False), "ddp would take 135.0 GiB"),
        (
            machine(40, 40, host=128),
            "ddp would take 135.0 GiB, fsdp2 would take 70.0 GiB, "
            "zero3-offload would take 5.0 GiB and 130.0 GiB on the host",
        ),
    ],
)
def test_what_fits_nowhere_is_refused_with_the_numbers(there: Machine, tried: str) -> None:
    with pytest.raises(DoesNotFit) as caught:
        place(run(130, 5), there)
    assert str(caught.value).endswith(f" of the host: {tried}. What would fit: align plan FILE.")


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        place(run(1), machine(80, 80), 3)
    assert str(caught.value) == "--processes 3: this machine has 2 GPUs, one for each process."


def test_a_launch_that_is_not_in_question_is_not_planned() -> None:
    asked: list[str] = []

    def need(launch: Launch) -> Need:
        asked.append(launch.name)
        return Need(GIB)

    place(need, machine(80, 80))
    assert asked == ["ddp"]
