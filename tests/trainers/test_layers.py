"""When a trainer fuses its layers, and what it says where it does not."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft import LoraConfig
from training import arguments, history, pairs, trainer
from zoo import tiny_model

from align.errors import UserError
from align.objectives import DPO
from align.runs.launch import check_launch
from align.trainers import layers
from align.trainers.arguments import refuse
from align.trainers.layers import Layers, compile_wanted

LORA = LoraConfig(r=4, target_modules=["q_proj", "down_proj"])


def test_true_where_it_is_not_possible(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        trainer(tmp_path, DPO(), layers=Layers(use_liger_kernel=True))
    assert str(caught.value) == (
        "train.use_liger_kernel: true is not possible, because its kernels need a CUDA device, and this run computes "
        "elsewhere. Leave it out."
    )


def test_args_are_not_the_place_for_it(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        refuse(arguments(tmp_path, use_liger_kernel=True))
    assert str(caught.value) == (
        "use_liger_kernel in args would let TRL change the model a second time, and its loss. Leave it out there and "
        "give the trainer layers=Layers(use_liger_kernel=True); in a recipe it is train.use_liger_kernel."
    )


@pytest.mark.parametrize("wanted", [None, False])
def test_a_cpu_run_keeps_its_layers_in_silence(wanted: bool | None, tmp_path: Path, capsys: Any) -> None:
    made = trainer(tmp_path, DPO(), layers=Layers(use_liger_kernel=wanted))
    assert not [name for name, module in made.model.model.named_modules() if "forward" in vars(module)]
    assert "layers" not in capsys.readouterr().out


def test_obstacles_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    missing = "liger-kernel is not installed (pip install 'align-llm[gpu]')"
    assert layers._obstacle(model, True) == (None if find_spec("liger_kernel") else missing)
    monkeypatch.setattr(layers, "find_spec", lambda name: None)
    assert layers._obstacle(model, True) == missing
    monkeypatch.setattr(layers, "find_spec", lambda name: name)
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    assert layers._obstacle(model, True) == "the model lies on several devices"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert layers._obstacle(model, True) == "FSDP and ZeRO-3 cut the weights up before a check could run"


def test_compiling_in_args_and_in_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")  # transformers sets it, and it is put back here
    with pytest.raises(UserError) as caught:
        refuse(arguments(tmp_path, torch_compile=True))
    assert str(caught.value) == (
        "torch_compile in args would compile the model as a whole, sampling included. Leave it out there and give the "
        "trainer layers=Layers(torch_compile=True); in a recipe it is train.torch_compile."
    )
    plugin = SimpleNamespace(backend="INDUCTOR")
    state = SimpleNamespace(distributed_type="NO", num_processes=1, backend=None, dynamo_plugin=plugin)
    with pytest.raises(UserError) as caught:
        check_launch(SimpleNamespace(state=state), {})
    assert str(caught.value) == (
        "accelerate was asked to compile the whole model (dynamo_backend inductor), sampling included. Set "
        "dynamo_backend to no, or unset ACCELERATE_DYNAMO_BACKEND; train.torch_compile: true compiles layers."
    )


def test_what_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as caught:
        Layers(torch_compile=True, torch_compile_mode="reduce-overhead")
    assert str(caught.value) == (
        "train.torch_compile_mode is 'reduce-overhead'; it must be default or max-autotune-no-cudagraphs. Other modes "
        "replay CUDA graphs, which need the same shapes at every step."
    )
    wanted = Layers(torch_compile=True)
    with pytest.raises(UserError, match=r"^train\.torch_compile is not supported with FSDP and ZeRO-3: leave"):
        compile_wanted(wanted, tiny_model(), None, True, print)
    monkeypatch.setattr(layers.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"^train\.torch_compile needs a C\+\+ compiler: install g\+\+, or leave"):
        compile_wanted(wanted, tiny_model(), None, False, print)


@pytest.mark.slow
# of torch's own compiler
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_run_is_the_run_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = []
    for compiled in (True, False):
        made = trainer(
            tmp_path / f"{compiled}",
            DPO(0.3),
            layers=Layers(torch_compile=compiled),
            eval_dataset=pairs(4, seed=1),
            eval_strategy="steps",
            eval_steps=1,
            gradient_checkpointing=True,
            peft_config=LORA,
        )
        said = "layers: 2 compiled with torch.compile (the first batches take longer)" in capsys.readouterr().out
        assert said is compiled
        made.train()
        runs.append([history(made, "loss", "rewards/margins", "grad_norm"), made.evaluate()["eval_loss"]])
    for one, other in zip(runs[0][0], runs[1][0], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-5)


@pytest.mark.slow
def test_a_run_with_fused_layers_is_the_run_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("interpreted", reason="needs triton and liger-kernel (extra gpu)")
    rows, options = pairs(4), {"per_device_train_batch_size": 2, "max_steps": 2}
    plain = trainer(tmp_path / "plain", DPO(0.3), rows, **options)
    plain.train()
    monkeypatch.setattr(layers, "_obstacle", lambda model, on_gpu: None)  # the interpreter takes CPU tensors
    made = trainer(tmp_path / "fused", DPO(0.3), rows, **options)
    made.train()
    names = [
        [n for n, m in x.model.named_modules() if "forward" in vars(m)] for x in (made.model, made.reference.model)
    ]
    assert names[0] == names[1]
    assert "layers.1.mlp" in names[0]
    assert made.start_gap == 0.0
    keys = ("loss", "rewards/margins", "grad_norm")
    for one, other in zip(history(made, *keys), history(plain, *keys), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
