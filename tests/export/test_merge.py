"""Merged weights compute what the adapter computed on its model; what would not is refused or kept apart."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapted import adapter, as_adapter, as_model, base, distance, whole_classifier
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from zoo import tiny_config

from align.errors import UserError
from align.export.export import export_run
from align.export.logits import gap, logits_of, token_rows
from align.export.merge import merged
from align.export.source import find
from align.models.policy import lora_config
from align.recipe.sections import Lora

# peft's own, on adapters that others may make all the same
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(tie_word_embeddings|tied|save_embedding_layers|fan_in_fan_out|ensure_weight_tying)"
)
FREE = {"load_check": False}


def silent(_: str) -> None:
    """Says nothing."""


def moved(folder: Path, under: Path) -> float:
    """How far the adapter moves the logits of its model."""
    return distance(as_adapter(folder, under), as_model(under))


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt_neox", "gpt2", "phi3", "cohere2", "qwen3_moe"])
def test_the_merged_model_is_the_adapter_on_its_model(tmp_path: Path, name: str) -> None:
    under = base(tmp_path / "base", name)
    made = adapter(tmp_path / "adapter", under, name)
    assert moved(made, under) > 0.05
    lines: list[str] = []
    export = export_run(made, tmp_path / "out", merge=True, say=lines.append, **FREE)
    assert distance(as_model(tmp_path / "out"), as_adapter(made, under)) < 1e-5
    assert (export.kind, export.dtype) == ("merged", "float32")
    assert lines[-1].startswith("merge: logits of the merged model differ from the adapter's by ")
    assert not (tmp_path / "out" / "adapter_config.json").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 32}},
        {"bias": "lora_only"},
        {"layers_to_transform": [1]},
        {"target_modules": "all-linear"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_every_kind_of_lora(tmp_path: Path, settings: dict[str, Any]) -> None:
    under = base(tmp_path / "base", "qwen2")  # which has biases
    made = adapter(tmp_path / "adapter", under, **settings)
    assert moved(made, under) > 0.02
    export_run(made, tmp_path / "out", merge=True, say=silent, **FREE)
    assert distance(as_model(tmp_path / "out"), as_adapter(made, under)) < 1e-5


TIED = (
    "merge: the adapter changes the embedding and the output head differently, which share one weight in the base "
    "model: the merged model keeps two (tie_word_embeddings: false)"
)


@pytest.mark.parametrize(
    ("settings", "apart"),
    [
        ({}, False),
        ({"target_modules": ["embed_tokens", "q_proj"]}, True),
        ({"target_modules": ["lm_head", "q_proj"]}, True),
        ({"modules_to_save": ["lm_head"]}, True),
        ({"modules_to_save": ["embed_tokens"]}, True),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, False),
        ({"trainable_token_indices": [5, 17]}, False),
    ],
    ids=["linear", "lora-embedding", "lora-head", "saved-head", "saved-embedding", "saved-both", "tokens"],
)
def test_tied_embeddings_are_kept_apart_where_the_adapter_changes_one(
    tmp_path: Path, settings: dict[str, Any], apart: bool
) -> None:
    under = base(tmp_path / "base", "llama-tied")
    made = adapter(tmp_path / "adapter", under, **settings)
    lines: list[str] = []
    export_run(made, tmp_path / "out", merge=True, say=lines.append, **FREE)
    assert distance(as_model(tmp_path / "out"), as_adapter(made, under)) < 1e-5
    assert AutoConfig.from_pretrained(tmp_path / "out").tie_word_embeddings is not apart
    assert (TIED in lines) is apart
    names = set(load_file(tmp_path / "out" / "model.safetensors"))
    assert ("lm_head.weight" in names) is apart


def test_a_reward_models_adapter_brings_its_head(tmp_path: Path) -> None:
    under = base(tmp_path / "base")
    made = adapter(tmp_path / "adapter", under, reward=True)
    export_run(made, tmp_path / "out", merge=True, say=silent, **FREE)
    with safe_open(made / "adapter_model.safetensors", "pt") as weights:
        (head,) = (weights.get_tensor(name) for name in weights.keys() if "score" in name)  # noqa: SIM118
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["score.weight"], head)
    found = as_model(tmp_path / "out", reward=True)
    assert found.shape == (3,)  # one score for each row
    assert torch.allclose(found, as_adapter(made, under, reward=True), atol=1e-5, rtol=0)


def test_an_encoder_that_scores(tmp_path: Path) -> None:
    under = whole_classifier(tmp_path / "base", "bert")
    made = adapter(tmp_path / "adapter", under, reward=True, target_modules=["query", "value"])
    export_run(made, tmp_path / "out", merge=True, say=silent, **FREE)
    difference = as_model(tmp_path / "out", reward=True) - as_adapter(made, under, reward=True)
    assert difference.abs().max() < 1e-5


def test_a_new_layer_that_no_adapter_saved_is_refused(tmp_path: Path) -> None:
    under = tmp_path / "base"
    tokenizer = tiny_tokenizer()
    AutoModelForMaskedLM.from_config(tiny_config("bert", vocab_size=len(tokenizer))).save_pretrained(under)
    tokenizer.save_pretrained(under)
    made = adapter(tmp_path / "adapter", under, reward=True, target_modules=["query"])  # beside a random pooler
    with pytest.raises(UserError, match=r"has no weights for bert\.pooler\.dense\.bias.*, which are new and random"):
        export_run(made, tmp_path / "out", merge=True, say=silent, **FREE)


def test_the_revision_of_the_base_is_kept_in_the_adapter(tmp_path: Path) -> None:
    made = adapter(tmp_path / "adapter", base(tmp_path / "base"), revision="0123abc")
    assert (find(made).revision, find(made).computed_revision) == ("0123abc", "0123abc")
    assert lora_config(Lora(), revision="0123abc").revision == "0123abc"


def test_an_adapter_on_a_whole_reward_model(tmp_path: Path) -> None:
    under = whole_classifier(tmp_path / "base")
    made = adapter(tmp_path / "adapter", under, reward=True)
    export_run(made, tmp_path / "out", merge=True, say=silent, **FREE)
    difference = as_model(tmp_path / "out", reward=True) - as_adapter(made, under, reward=True)
    assert difference.abs().max() < 1e-5


def test_a_merge_with_a_wrong_scale_is_refused_and_its_layer_named(tmp_path: Path) -> None:
    under = base(tmp_path / "base")
    made = adapter(tmp_path / "adapter", under, layers_to_transform=[1])
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(under), made).eval()
    rows = token_rows(AutoTokenizer.from_pretrained(under), model)
    layer = model.base_model.model.model.layers[1].mlp.down_proj

    class Rescaled(type(layer)):  # type: ignore[misc]
        """Merges a hundredth more than it computes."""

        def get_delta_weight(self, name: str) -> torch.Tensor:
            return 1.01 * super().get_delta_weight(name)

    layer.__class__ = Rescaled
    with pytest.raises(UserError) as error:
        merged(model, rows, silent)
    text = str(error.value)
    assert text.startswith("The merged model is not the adapter on its model: logits differ by ")
    assert "row 0 differs from layer 1 on. Nothing was written; export the adapter without --merge." in text


def test_what_float32_rounds_is_told_by_float64(tmp_path: Path) -> None:
    """The base's weights have the adapter's taken away, times 300: their sum is small, and float32 loses its end."""
    under = base(tmp_path / "base")
    made = adapter(tmp_path / "adapter", under, target_modules=["down_proj"], lora_alpha=1200)
    weights, deltas = load_file(under / "model.safetensors"), load_file(made / "adapter_model.safetensors")
    for name in [name for name in weights if "down_proj" in name]:
        a, b = (deltas[f"base_model.model.{name}".replace("weight", f"lora_{side}.weight")] for side in "AB")
        weights[name] = (weights[name].double() - 300 * b.double() @ a.double()).float()
    save_file(weights, under / "model.safetensors", metadata={"format": "pt"})
    lines: list[str] = []
    export_run(made, tmp_path / "out", merge=True, say=lines.append, **FREE)
    assert re.fullmatch(
        r"merge: in float32 logits differ by \S+ at most, \S+e-0[345] of the largest .*; float64 tells whether that is "
        r"rounding",
        lines[0],
    )
    told = re.match(r"merge: .* differ from the adapter's by \S+ at most, (\S+) of the largest", lines[1])
    assert told is not None
    assert float(told[1]) < 1e-6
    assert 1e-5 < distance(as_model(tmp_path / "out"), as_adapter(made, under)) < 1e-2


def test_what_changes_no_weights_cannot_be_merged(tmp_path: Path) -> None:
    under = base(tmp_path / "base")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(under), config).save_pretrained(tmp_path / "prompt")
    with pytest.raises(UserError, match="of the kind PROMPT_TUNING, which adds tokens and changes no weights"):
        export_run(tmp_path / "prompt", merge=True, say=silent, **FREE)


def test_sixteen_bits_are_rounded_once_and_the_difference_is_said(tmp_path: Path) -> None:
    under = base(tmp_path / "base", dtype=torch.bfloat16)
    made = adapter(tmp_path / "adapter", under)
    exact = as_adapter(made, under)
    lines: list[str] = []
    export_run(made, tmp_path / "wide", merge=True, dtype="float32", say=lines.append, **FREE)
    assert distance(as_model(tmp_path / "wide"), exact) < 1e-5
    assert not [line for line in lines if line.startswith("type:")]
    export = export_run(made, tmp_path / "out", merge=True, say=lines.append, **FREE)
    assert export.dtype == "bfloat16"
    wide, narrow = (load_file(tmp_path / name / "model.safetensors") for name in ("wide", "out"))
    assert all(torch.equal(narrow[name], wide[name].bfloat16()) for name in wide)
    model, rounded = (AutoModelForCausalLM.from_pretrained(tmp_path / n, dtype="float32") for n in ("wide", "out"))
    rows = token_rows(AutoTokenizer.from_pretrained(under), model)
    found = gap(logits_of(model, rows), logits_of(rounded, rows))
    assert 1e-4 < found.relative < 0.2
    assert lines[-1] == (
        f"type: rounding the weights to bfloat16 moves logits {found.text()}; the likeliest next token stays at "
        f"{found.likeliest:.1%} of them"
    )
    assert f"Rounding the weights to bfloat16 moves logits {found.text()}" in (tmp_path / "out/README.md").read_text()


def test_a_quantised_base_is_dequantised_first(tmp_path: Path) -> None:
    under = base(tmp_path / "base")
    plain = load_file(under / "model.safetensors")
    quantised: dict[str, torch.Tensor] = {}
    for name, weight in plain.items():
        if "proj" not in name:
            quantised[name] = weight
            continue
        scale = weight.abs().max() / 448  # the largest number of e4m3
        quantised[name] = (weight / scale).to(torch.float8_e4m3fn)
        quantised[name.replace("weight", "weight_scale_inv")] = scale.reshape(1, 1)
        plain[name] = quantised[name].float() * scale
    fp8 = tmp_path / "fp8"
    shutil.copytree(under, fp8)
    save_file(quantised, fp8 / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((fp8 / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (fp8 / "config.json").write_text(json.dumps(config))
    save_file(plain, under / "model.safetensors", metadata={"format": "pt"})  # what it is when dequantised
    made = adapter(tmp_path / "adapter", under)
    settings = json.loads((made / "adapter_config.json").read_text())
    (made / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(fp8)}))
    lines: list[str] = []
    export_run(made, tmp_path / "out", merge=True, dtype="float32", say=lines.append, **FREE)
    assert lines[0] == (
        f"base: {fp8} is quantised (fp8); it is dequantised to float32 first, and merged weights are not quantised"
    )
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert distance(as_model(tmp_path / "out"), as_adapter(made, under)) < 1e-5


def test_nan_is_no_rounding() -> None:
    same = torch.zeros(3, 4)
    broken = same.clone()
    broken[1, 2] = torch.nan
    found = gap([same], [broken])
    assert (found.same, found.token, found.largest) == (False, 1, torch.inf)
    worked = gap([torch.tensor([[0.0, 4.0], [2.0, -8.0]])], [torch.tensor([[0.5, 4.0], [2.0, -7.0]])])
    assert (worked.largest, worked.scale, worked.token, worked.likeliest) == (1.0, 8.0, 1, 1.0)
