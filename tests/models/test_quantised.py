"""Adapters on weights that bitsandbytes quantised: gradients, types, and what is computed afterwards."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapted import adapter, base, distance, logits
from datasets import Dataset
from tiny import tiny_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from align import DPO, PreferenceTrainer
from align.compat import training_config
from align.errors import UserError
from align.judges.checkpoint import load_judge_model
from align.models.load import load_checkpoint
from align.models.policy import load_model, lora_config
from align.models.quantised import check_quantised, plain, quantization
from align.recipe.sections import Lora, Model

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra qlora)")
pytestmark = [
    pytest.mark.skipif(torch.accelerator.is_available(), reason="what a CPU computes of them"),
    # torch's, of a flag that transformers' dequantisation sets
    pytest.mark.filterwarnings("ignore:.*dequantized"),
]
PAIRS = [
    {"prompt": "The sky is", "chosen": " blue on a clear day.", "rejected": " green."},
    {"prompt": "Two and two are", "chosen": " four.", "rejected": " five, as everybody knows."},
]


def read(under: Path, bits: Any = "4bit", kind: Any = AutoModelForCausalLM, **options: Any) -> Any:
    """A model with quantised weights; the others are of float32."""
    return kind.from_pretrained(under, quantization_config=quantization(bits), dtype="float32", **options)


def trainer_of(model: Any, folder: Path, **changes: Any) -> PreferenceTrainer:
    args = training_config(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = Dataset.from_list(PAIRS)
    return PreferenceTrainer(model, DPO(), args, train_dataset=rows, processing_class=tiny_tokenizer(), **changes)


def adapter_of(model: Any) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def test_an_adapter_learns_on_quantised_weights_what_it_learns_on_those_that_they_stand_for(tmp_path: Path) -> None:
    """A forward in evaluation mode comes first, after which bitsandbytes may leave no way for a gradient."""
    under = base(tmp_path / "base", hidden_size=128, intermediate_size=256)
    learned = []
    for model in (read(under), plain(read(under))):
        trainer = trainer_of(model, tmp_path / "run", peft_config=lora_config(Lora(rank=4)))
        before = adapter_of(trainer.model)
        assert {weight.dtype for weight in before.values()} == {torch.float32}
        with torch.no_grad():
            trainer.model.eval()(input_ids=torch.tensor([[5, 260, 31]]))
        trainer.train()
        after = adapter_of(trainer.model)
        learned.append({name: after[name] - before[name] for name in after})
    quantised, whole = learned
    assert quantised.keys() == whole.keys()
    assert len(whole) == 28
    for name, moved in whole.items():
        # Adam's steps hardly show how long a gradient is, but those of the lower layer need one that came through
        torch.testing.assert_close(quantised[name], moved, rtol=2e-3, atol=2e-6)
        assert moved.abs().max() > 1e-3


def test_an_adapter_that_is_given_keeps_its_values(tmp_path: Path) -> None:
    under = base(tmp_path / "base")
    made = adapter(tmp_path / "adapter", under)
    model = peft.PeftModel.from_pretrained(read(under), made, is_trainable=True)
    before = adapter_of(model)
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in before.values())
    after = adapter_of(trainer_of(model, tmp_path / "run").model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_no_gradient_would_pass_is_refused(tmp_path: Path) -> None:
    under = base(tmp_path / "base")
    with pytest.raises(UserError, match=r"model\.load_in: 8bit is not possible on a CPU"):
        trainer_of(read(under, "8bit"), tmp_path / "run", peft_config=lora_config(Lora(rank=4)))
    model = read(under)
    layer = next(module for module in model.modules() if type(module).__name__ == "Linear4bit")
    layer.weight.quant_state.packing_format_for_cpu = True  # as a forward leaves it where the CPU is one of those
    with pytest.raises(UserError, match=r"4-bit weights are packed for inference on a CPU.*load the model anew"):
        trainer_of(model, tmp_path / "run", peft_config=lora_config(Lora(rank=4)))


def as_run(folder: Path, made: Path, bits: str | None) -> Path:
    """A run that left the adapter ``made``, by what of its lock is read."""
    folder.mkdir()
    made.rename(folder / "model")
    (folder / "recipe.lock.yaml").write_text(json.dumps({"recipe": {"model": {"load_in": bits}}}))
    return folder


@pytest.mark.parametrize("bits", ["4bit", "8bit", None])
def test_a_run_is_loaded_with_the_weights_that_it_was_trained_on(tmp_path: Path, bits: str | None) -> None:
    under = base(tmp_path / "base")
    made = adapter(tmp_path / "adapter", under)
    whole = AutoModelForCausalLM.from_pretrained(under, dtype="float32")
    beneath = whole if bits is None else plain(read(under, bits))
    expected = logits(peft.PeftModel.from_pretrained(beneath, made))
    model, _ = load_checkpoint(str(as_run(tmp_path / "run", made, bits)))
    assert torch.equal(logits(model), expected)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    if bits is not None:
        away = logits(
            peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(under), tmp_path / "run/model")
        )
        assert distance(expected, away) > (0.01 if bits == "4bit" else 1e-3)
    if bits == "4bit":  # what plain weights hold is what quantised ones compute
        quantised = read(under)
        check_quantised(quantised)
        assert distance(logits(peft.PeftModel.from_pretrained(quantised, tmp_path / "run/model")), expected) < 1e-5


def test_the_policy_of_a_recipe_computes_in_float32_before_a_trainer_has_it(tmp_path: Path) -> None:
    """Such as one that draws samples."""
    under = base(tmp_path / "base", hidden_size=128, intermediate_size=256)
    model = load_model(Model(id=str(under), load_in="4bit", lora=Lora(rank=4)))
    assert distance(logits(model), logits(plain(read(under)))) < 1e-5


def test_the_file_that_was_quantised_does_not_stay_in_memory(tmp_path: Path) -> None:
    under = base(tmp_path / "base", hidden_size=128, intermediate_size=256)
    file = str(under / "model.safetensors")
    left = read(under)
    assert file in Path("/proc/self/maps").read_text(), "transformers lets it go by itself now"
    del left
    model = load_model(Model(id=str(under), load_in="4bit", lora=Lora(rank=4)))
    assert file not in Path("/proc/self/maps").read_text()
    assert model.get_input_embeddings().weight.abs().sum() > 0


@pytest.fixture
def reported(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What transformers logs, whether or not it hands it on."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        yield caplog
    logger.removeHandler(caplog.handler)


def test_a_judge_too(tmp_path: Path, reported: pytest.LogCaptureFixture) -> None:
    under = base(tmp_path / "base")
    made = adapter(tmp_path / "adapter", under, reward=True)
    model = plain(read(under, kind=AutoModelForSequenceClassification, num_labels=1))
    expected = logits(peft.PeftModel.from_pretrained(model, made))
    run = as_run(tmp_path / "run", made, "4bit")
    assert "score.weight" in reported.text  # transformers' report, of the adapter's head that it does not know
    reported.clear()
    judge, _ = load_judge_model("judge.reward", AutoModelForSequenceClassification, str(run), None, "float32", None)
    assert "score.weight" not in reported.text
    assert distance(logits(judge), expected) < 1e-5
