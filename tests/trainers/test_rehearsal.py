"""Before the first step: what the first save would end in, and steps that are too small for the weights' type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from shortage import files_of
from torch.optim import SGD, AdamW
from training import trainer
from transformers import AutoModelForCausalLM, GenerationConfig
from zoo import tiny_model

from align import DPO
from align.errors import DoesNotFit, UserError
from align.models.ends import mend_generation_config
from align.runs.disk import on_disk
from align.trainers.rounding import lost_share, rounding_warning

# an epsilon that float16 can hold
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-6, "adam_epsilon": 1e-4}


def said(made: Any) -> list[str]:
    lines: list[str] = []
    made.echo = lines.append
    return lines


def saved(folder: Path, **generation: Any) -> Path:
    """A tiny model with these settings; its tokenizer has another EOS, so that they change."""
    tiny_model().save_pretrained(folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": 5, **generation}))
    return folder


@pytest.mark.parametrize(
    ("generation", "named"),
    [
        ({"temperature": 0.6, "top_p": 0.9, "top_k": 20}, "temperature=0.6, top_p=0.9, top_k=20"),
        ({"early_stopping": True}, "early_stopping=True"),
        ({"length_penalty": 2.0, "typical_p": 0.4}, "typical_p=0.4, length_penalty=2.0"),
        ({"output_scores": True}, "output_scores=True"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_generation_config_is_mended_and_said(tmp_path: Path, generation: dict[str, Any], named: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved(tmp_path / "model", **generation))
    made = trainer(tmp_path / "out", DPO(), model=model, max_steps=1, save_strategy="steps", save_steps=1)
    lines = said(made)
    made.train()
    assert lines[0] == (
        f"note: the model's generation config sets {named} beside settings under which they do not count (such as no "
        "do_sample), and transformers refuses to save that. They are left out of the saved model, which generates as "
        "before."
    )
    written = json.loads((tmp_path / "out/checkpoint-1/generation_config.json").read_text())
    assert not set(generation) & set(written)
    assert written["eos_token_id"] == [1, 5]
    assert not list((tmp_path / "out").glob(".rehearsal-*"))


def test_settings_that_count_are_kept(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved(tmp_path / "model", do_sample=True, temperature=0.6))
    made = trainer(tmp_path / "out", DPO(), model=model, max_steps=1)
    lines = said(made)
    made.train()
    made.save_model(str(tmp_path / "end"))
    assert not any("generation config" in line for line in lines)
    assert json.loads((tmp_path / "end/generation_config.json").read_text())["temperature"] == 0.6


def test_a_contradiction_is_refused() -> None:
    config = GenerationConfig()
    config.num_return_sequences = 3
    with pytest.raises(UserError, match=r"^The model's generation config cannot be saved \(Greedy methods .* 3\)"):
        mend_generation_config(config)


@pytest.mark.parametrize("what", ["config", "tokenizer", "adapter"])
def test_what_cannot_be_saved_ends_the_run_before_its_first_step(tmp_path: Path, what: str) -> None:
    adapter = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM") if what == "adapter" else None
    made = trainer(tmp_path, DPO(), peft_config=adapter)
    name = {"config": "model's config", "tokenizer": "tokenizer", "adapter": "config of adapter 'default'"}[what]
    if what == "config":
        made.model.config.temperature = 0.5  # it belongs into the generation config
    elif what == "tokenizer":
        made.processing_class.init_kwargs["strange"] = object()
    else:
        made.model.peft_config["default"].lora_alpha = object()
    with pytest.raises(UserError, match=f"^The {name} cannot be saved .* so nothing that is trained could be kept"):
        made.train()
    assert made.state.global_step == 0


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    made = trainer(tmp_path / "out", DPO())
    made.args.output_dir = str(tmp_path / "file" / "out")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"file/out cannot be written to \(Not a directory\)"):
        made.train()


@pytest.mark.parametrize("fits", ["nothing", "config"])
def test_a_full_disk_is_no_fault_of_the_model(fits: str, tmp_path: Path) -> None:
    """The tokenizer is written by a library that raises a bare Exception."""
    made = trainer(tmp_path / "out", DPO())
    for part in (made.model.config, made.processing_class):
        part.save_pretrained(tmp_path / "parts")
    config = (tmp_path / "parts/config.json").stat().st_size
    assert (tmp_path / "parts/tokenizer.json").stat().st_size > config + 1
    size = config + 1 if fits == "config" else 10
    with pytest.raises(DoesNotFit, match=r"the file would be larger than files may be here"), on_disk(), files_of(size):
        made.train()
    assert made.state.global_step == 0


def test_the_share_of_weights_that_a_step_leaves_as_they_are() -> None:
    # bfloat16 has 8 bits: from 1 the next number is 1 + 2^-7, and below it 1 - 2^-8; a half of that rounds to even
    one = torch.ones(10, dtype=torch.bfloat16)
    assert lost_share(one, 2.0**-10) == 1.0
    assert lost_share(one, 2.0**-8 + 2.0**-12) == 0.0
    mixed = torch.tensor([1.0, 1.0, 1.0, 2.0**-10], dtype=torch.bfloat16)
    assert lost_share(mixed, 2.0**-12) == 0.75
    assert lost_share(mixed.half(), 2.0**-12) == 0.75  # float16 has 11 bits
    assert lost_share(mixed.half(), 2.0**-11 + 2.0**-15) == 0.0
    assert lost_share(mixed.float(), 2.0**-20) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_small_updates_are_warned_of_and_indeed_lost(tmp_path: Path, dtype: torch.dtype) -> None:
    made = trainer(tmp_path, DPO(), model=tiny_model(dtype=dtype), max_steps=2, **ADAM)
    lines, before = said(made), [p.detach().clone() for p in made.model.parameters()]
    made.train()
    (warning,) = (line for line in lines if line.startswith("WARNING"))
    kind = str(dtype).removeprefix("torch.")
    share = int(warning.split("%")[0].split()[-1]) / 100
    assert warning.partition("%")[2] == (
        f" of the trained weights are not changed by a step of the learning rate 1e-06: they are stored in {kind}, "
        "whose neighbouring numbers are further apart. Small updates are lost. Store the weights in float32 "
        "(model.dtype: float32) and compute in bfloat16 (train.bf16: true)."
    )
    pairs = list(zip(before, made.model.parameters(), strict=True))
    same = sum(int((a == b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)
    assert share > 0.9
    # in float16 Adam's second moment underflows, which makes its steps longer
    assert same > (0.8 if dtype == torch.float16 else share - 0.02)


def test_no_warning_where_steps_fit() -> None:
    def warned(dtype: torch.dtype, rate: float, optimizer: Any = AdamW) -> str | None:
        made = optimizer(tiny_model(dtype=dtype).parameters(), lr=rate)
        torch.optim.lr_scheduler.LambdaLR(made, lambda step: 0.0)  # as at the start of a warm-up
        return rounding_warning(made.param_groups)

    assert warned(torch.float32, 1e-6) is None
    assert warned(torch.bfloat16, 1e-2) is None
    assert (warned(torch.bfloat16, 1e-4, SGD) or "").startswith("WARNING: ")
