"""Every command that silently runs something else is refused; states and environments are those that were observed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align.errors import UserError
from align.runs.launch import check_launch, check_launcher_files, check_wrapped

SIMPLE = {"ACCELERATE_DYNAMO_BACKEND": "NO", "MASTER_ADDR": "127.0.0.1"}
TWO = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}
FSDP = {**TWO, "ACCELERATE_USE_FSDP": "true", "ACCELERATE_DYNAMO_BACKEND": "NO"}
DEEPSPEED = {**TWO, "ACCELERATE_USE_DEEPSPEED": "true"}
CPU = {"ACCELERATE_USE_CPU": "true"}


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
        pytest.param(made(1, "DEEPSPEED", None), DEEPSPEED, "run of its own", "use_cpu=true", id="DeepSpeed alone"),
        pytest.param(
            made(2, "MULTI_CPU", "gloo"),
            DEEPSPEED | CPU,
            "DeepSpeed was",
            "unset ACCELERATE_USE_CPU",
        pytest.param(made(1, "DEEPSPEED", None), DEEPSPEED, "run of its own", "cpu2-zero3", id="DeepSpeed alone"),
        pytest.param(
            made(2, "MULTI_CPU", "gloo"),
            {**DEEPSPEED, "ACCELERATE_USE_CPU": "true"},
            "DeepSpeed was",
            "unset ACCELERATE",
            id="no ZeRO to come",
        ),
        pytest.param(
            made(2, "MULTI_CPU", "gloo", dynamo_plugin=None),
            DEEPSPEED,
            "DeepSpeed was",
            "unset ACCELERATE",
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


def test_what_an_accelerator_left_out_is_refused() -> None:
    with pytest.raises(UserError, match="FSDP was asked for"):
        check_launch(SimpleNamespace(state=made(2, "MULTI_GPU", "nccl", fsdp_plugin=None)), FSDP)
    with pytest.raises(UserError, match="DeepSpeed was asked for"):
        check_launch(SimpleNamespace(state=made(2, "MULTI_CPU", "gloo", deepspeed_plugin=None)), DEEPSPEED)


def test_arguments_of_this_process_pass() -> None:
    from align.compat import training_config

    check_launch(training_config(output_dir="unused", use_cpu=True, bf16=False, report_to="none"), {})


def test_the_wrapper_must_be_the_promised_one() -> None:
    class DistributedDataParallel: ...

    class FSDPModule: ...

    class FSDPLlama(FSDPModule): ...

    class DeepSpeedEngine: ...

    class Plain: ...

    promised = {"MULTI_GPU": DistributedDataParallel, "FSDP": FSDPLlama, "DEEPSPEED": DeepSpeedEngine}
    for kind, wrapper in promised.items():
        check_wrapped(wrapper(), made(2, kind, "nccl"))
        for other in (Plain, *promised.values()):
            if other is not wrapper:
                with pytest.raises(UserError, match=f"of type {kind} must train a"):
                    check_wrapped(other(), made(2, kind, "nccl"))
    check_wrapped(Plain(), made(1, "NO", None))


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
