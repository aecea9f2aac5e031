"""Every command that silently runs something else is refused; states and environments are those that were observed."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align.errors import UserError
from align.runs.launch import Seen, check_launch, check_launcher_files, check_step, wrapper_of

SIMPLE = {"ACCELERATE_DYNAMO_BACKEND": "NO", "MASTER_ADDR": "127.0.0.1"}
TWO = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}
FSDP = {**TWO, "ACCELERATE_USE_FSDP": "true", "ACCELERATE_DYNAMO_BACKEND": "NO"}
DEEPSPEED = {**TWO, "ACCELERATE_USE_DEEPSPEED": "true"}


def made(processes: int, kind: str, backend: str | None, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(num_processes=processes, distributed_type=kind, backend=backend, **more)


@pytest.mark.parametrize(
    ("state", "env", "said", "cure"),
    [
        pytest.param(made(1, "NO", None), SIMPLE, "started one", "cpu2-ddp", id="accelerate launch --cpu"),
        pytest.param(made(1, "NO", None), TWO, "run of its own", "ACCELERATE_USE_CPU=true", id="torchrun on a CPU"),
        pytest.param(made(1, "NO", None), {"PMI_SIZE": "2"}, "run of its own", "ACCELERATE_USE_CPU", id="mpirun"),
        pytest.param(made(1, "NO", None), FSDP, "run of its own", "cpu2-fsdp2", id="FSDP on a CPU"),
        pytest.param(made(2, "MULTI_CPU", "gloo"), FSDP, "shards nothing", "cpu2-fsdp2", id="FSDP as DDP"),
        pytest.param(made(2, "NO", "gloo"), FSDP, "gradients never", "no train.ddp_backend", id="FSDP and ddp_backend"),
        pytest.param(made(1, "DEEPSPEED", None), DEEPSPEED, "run of its own", "cpu2-zero3", id="DeepSpeed alone"),
        pytest.param(
            made(2, "MULTI_CPU", "gloo"),
            {**DEEPSPEED, "ACCELERATE_USE_CPU": "true"},
            "DeepSpeed was",
            "unset",
            id="no ZeRO to come",
        ),
        pytest.param(
            made(2, "MULTI_CPU", "gloo", deepspeed_plugin=None),
            DEEPSPEED,
            "DeepSpeed was",
            "unset",
            id="no ZeRO",
        ),
        pytest.param(
            made(2, "FSDP", "nccl", fsdp_plugin=SimpleNamespace(fsdp_version=1)), FSDP, "version 1", "2", id="FSDP1"
        ),
    ],
)
def test_what_silently_runs_something_else_is_refused(
    state: SimpleNamespace, env: dict[str, str], said: str, cure: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        check_launch(state, env)
    assert cure in str(caught.value)


def test_several_gpus_in_one_process_are_refused() -> None:
    arguments = SimpleNamespace(distributed_state=made(1, "NO", None), n_gpu=4)
    with pytest.raises(UserError, match=r"4 GPUs.*CUDA_VISIBLE_DEVICES=0"):
        check_launch(arguments, {})


@pytest.mark.parametrize(
    ("state", "env"),
    [
        pytest.param(made(1, "NO", None), {}, id="python"),
        pytest.param(made(1, "NO", None), {"ACCELERATE_DYNAMO_BACKEND": "NO"}, id="accelerate launch of one"),
        pytest.param(made(1, "NO", None), {"MASTER_ADDR": "node-1"}, id="python inside a cluster's job"),
        pytest.param(made(2, "DistributedType.MULTI_CPU", "gloo"), TWO, id="DDP on a CPU"),
        pytest.param(made(2, "MULTI_GPU", "nccl"), FSDP, id="FSDP, before an Accelerator is made"),
        pytest.param(made(2, "FSDP", "nccl", fsdp_plugin=SimpleNamespace(fsdp_version=2)), FSDP, id="FSDP2"),
        pytest.param(made(2, "DEEPSPEED", "gloo"), DEEPSPEED, id="ZeRO"),
        pytest.param(made(2, "MULTI_CPU", "gloo"), DEEPSPEED, id="ZeRO on a CPU, before an Accelerator is made"),
    ],
)
def test_what_was_asked_for_passes(state: SimpleNamespace, env: dict[str, str]) -> None:
    check_launch(state, env)


def test_fsdp_that_an_accelerator_left_out_is_refused() -> None:
    with pytest.raises(UserError, match="FSDP was asked for"):
        check_launch(SimpleNamespace(state=made(2, "MULTI_GPU", "nccl", fsdp_plugin=None)), FSDP)


def test_arguments_of_this_process_pass() -> None:
    from align.compat import training_config

    check_launch(training_config(output_dir="unused", use_cpu=True, bf16=False, report_to="none"), {})


DDP2 = Seen(2, "MULTI_GPU", "nccl", "DistributedDataParallel", 0.5)
FSDP2 = Seen(2, "FSDP", "nccl", "FSDPModule", None)
ZERO = Seen(2, "DEEPSPEED", "nccl", "DeepSpeedEngine", None)


def test_the_wrapper_must_be_the_promised_one() -> None:
    for promised in (DDP2, FSDP2, ZERO):
        check_step([promised, promised])
        for wrapper in ("LlamaForCausalLM", *(other.wrapper for other in (DDP2, FSDP2, ZERO) if other is not promised)):
            with pytest.raises(UserError) as caught:
                check_step([promised, promised._replace(wrapper=wrapper)])
            assert str(caught.value).startswith(
                f"2 processes of type {promised.kind} must train a {promised.wrapper}, but the model of rank 1 is a "
                f"{wrapper}: its gradients would not be shared. "
            )
    check_step([Seen(1, "NO", "None", "LlamaForCausalLM", 0.5)])


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (
            DDP2._replace(processes=1),
            "Rank 1 of 2 is one of 1 processes of type MULTI_GPU, backend nccl; rank 0",
        ),
        (DDP2._replace(backend="gloo"), "Rank 1 of 2 is one of 2 processes of type MULTI_GPU, backend gloo; rank 0 is"),
        (
            DDP2._replace(gradients=0.51),
            "the gradients of rank 1 have the norm 0.51, those of rank 0 0.5: they are",
        ),
        (DDP2._replace(gradients=math.nan), "the gradients of rank 1 have the norm nan, those of rank 0 0.5: they are"),
    ],
)
def test_ranks_that_differ_in_the_first_step_are_refused_on_all(second: Seen, said: str) -> None:
    with pytest.raises(UserError) as caught:
        check_step([DDP2, second])
    assert said in str(caught.value)
    assert caught.value.shared


def test_what_may_pass_and_what_shards_nothing() -> None:
    check_step([DDP2, DDP2._replace(gradients=0.5 * (1 + 1e-6))])
    check_step([DDP2._replace(gradients=math.nan)] * 2)  # the guard speaks of that
    with pytest.raises(UserError, match="FSDP was asked for, but rank 1 holds all gradients: nothing is sharded"):
        check_step([FSDP2, FSDP2._replace(gradients=0.5)])
    with pytest.raises(UserError, match="Rank 0 of 1 is one of 2 processes"):
        check_step([DDP2])


def test_the_wrapper_is_found_among_the_classes_of_a_model() -> None:
    class FSDPModule: ...

    class FSDPLlama(FSDPModule): ...

    assert wrapper_of(FSDPLlama()) == "FSDPModule"
    assert wrapper_of(SimpleNamespace()) == "SimpleNamespace"


@pytest.mark.parametrize(
    ("arguments", "launcher", "file", "said"),
    [
        ({"bf16": True}, "no", None, None),
        ({"bf16": True}, "bf16", None, None),
        (
            {},
            "bf16",
            None,
            "The launcher asks for mixed_precision bf16 and the recipe for full precision: ",
        ),
        ({"fp16": True}, "bf16", None, "The launcher asks for mixed_precision bf16 and the recipe for float16"),
        ({}, "fp8", None, "The launcher asks for mixed_precision fp8"),
        ({"bf16": True}, "no", {"bf16": {"enabled": True}}, None),
        ({}, "no", {}, None),
        (
            {"bf16": True},
            "bf16",
            {"bf16": {"enabled": False}},
            "The DeepSpeed file says bf16 false, which DeepSpeed",
        ),
        (
            {},
            "no",
            {"bf16": {"enabled": True}},
            "The DeepSpeed file says bf16 true, which DeepSpeed would follow, and",
        ),
        ({}, "no", {"fp16": {"enabled": True}}, 'Write "fp16": {"enabled": "auto"} there, and set train.bf16: true or'),
    ],
)
def test_precision_is_the_recipes(
    arguments: dict[str, bool], launcher: str, file: dict[str, Any] | None, said: str | None
) -> None:
    given = {"bf16": False, "fp16": False, **arguments, "n_gpu": 0, "distributed_state": made(2, "MULTI_CPU", "gloo")}
    if file is not None:
        given["deepspeed_plugin"] = SimpleNamespace(deepspeed_config=file)
    env = {**TWO, "ACCELERATE_MIXED_PRECISION": launcher}
    if said is None:
        check_launch(SimpleNamespace(**given), env)
        return
    with pytest.raises(UserError) as caught:
        check_launch(SimpleNamespace(**given), env)
    assert said in str(caught.value)


def test_a_file_that_the_launcher_names_and_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "recipes/accelerate/zero3.json"}
    with pytest.raises(UserError) as caught:
        check_launcher_files(env)
    assert str(caught.value) == (
        "deepspeed_config_file: recipes/accelerate/zero3.json is not there. A path in the launcher's configuration "
        f"starts at the working directory, here {tmp_path}: start from the folder that it is meant from, or write the "
        "whole path."
    )
    (tmp_path / "recipes/accelerate").mkdir(parents=True)
    (tmp_path / "recipes/accelerate/zero3.json").write_text("{}")
    for given in (env, {}, {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "none"}, {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "e30="}):
        check_launcher_files(given)
