"""What is refused before a weight is read: names, adapters, attention; and that nobody waits for the Hub."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from saved_model import tokenizer
from zoo import tiny_model

from align.errors import UserError
from align.models.look import check_targets, look
from align.recipe.sections import Lora, Model
from align.runs.models import hub_answers, located, require_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models: ``plain``, and ``tied``, whose embedding is its output head."""
    base = tmp_path_factory.mktemp("models")
    for name, kind in (("plain", "llama"), ("tied", "llama-tied")):
        tiny_model(kind).save_pretrained(base / name)
        tokenizer().save_pretrained(base / name)
    return base


LAYERS = "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
HEAD = "is the output head, which is scored in pieces and stays as it is under an adapter. Leave it out, or train all"


@pytest.mark.parametrize(
    ("lora", "sentence"),
    [
        ({"targets": ["q_proj", "lm_head"]}, f"model.lora.targets: 'lm_head' {HEAD}"),
        ({"targets": ".*(q_proj|lm_head)"}, f"model.lora.targets: '.*(q_proj|lm_head)' {HEAD}"),
        ({"modules_to_save": ["lm_head"]}, f"model.lora.modules_to_save: 'lm_head' {HEAD}"),
        (
            {"targets": "q_proj"},
            "model.lora.targets: text is a pattern for whole names, and 'q_proj' is none; ",
        ),
        ({"targets": "[q_proj"}, "model.lora.targets: '[q_proj' is no pattern (unterminated character set"),
        ({"targets": ["wq"]}, f"model.lora.targets: LlamaForCausalLM has no module 'wq'. Its linear layers: {LAYERS}"),
        (
            {"modules_to_save": ["nrm"]},
            "model.lora.modules_to_save: LlamaForCausalLM has no module 'nrm'. ",
        ),
        (
            {"targets": ["input_layernorm"]},
            "model.lora: peft refuses this adapter (Target module LlamaRMSNorm). ",
        ),
    ],
)
def test_adapters_that_cannot_be_made(folder: Path, lora: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        look(Model(id="plain", lora=Lora(**lora)), folder)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    "lora",
    [{}, {"targets": ["q_proj"]}, {"targets": ".*q_proj"}, {"modules_to_save": ["embed_tokens", "norm"]}],
)
def test_adapters_that_can(folder: Path, lora: dict[str, Any]) -> None:
    look(Model(id="plain", lora=Lora(**lora)), folder)


@pytest.mark.parametrize("part", ["targets", "modules_to_save"])
def test_a_tied_embedding_is_refused(folder: Path, part: str) -> None:
    look(Model(id="plain", lora=Lora(**{part: ["embed_tokens"]})), folder)
    with pytest.raises(UserError, match=rf"^model\.lora\.{part}: 'embed_tokens' shares its weight with the output"):
        look(Model(id="tied", lora=Lora(**{part: ["embed_tokens"]})), folder)


@pytest.mark.filterwarnings("ignore:Model.*tie_word_embeddings=True")
def test_why_a_tied_embedding_is_refused() -> None:
    # merging adds the update to the one weight that both share: other logits than those that were trained
    def gap(kind: str) -> float:
        model = get_peft_model(tiny_model(kind), LoraConfig(target_modules=["embed_tokens"], init_lora_weights=False))
        model.eval()
        ids = torch.arange(3, 20)[None]
        with torch.no_grad():
            before = model(input_ids=ids).logits
            return (model.merge_and_unload()(input_ids=ids).logits - before).abs().max().item()

    assert gap("llama") < 1e-4
    assert gap("llama-tied") > 0.1


@pytest.mark.parametrize("name", ["flash_attention_2", "flash"])
def test_an_attention_that_is_not_there_is_not_the_models_fault(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.attention: '{name}' cannot be used here \("):
        look(Model(id="plain", attention=name), folder)


def test_names_of_train_only(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^model\.train_only: no weight of LlamaForCausalLM has 'layers\.7\.'"):
        look(Model(id="plain", train_only=["layers.7."]), folder)


def test_a_model_that_is_not_there(folder: Path) -> None:
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        require_model(Model(id="./plian"), folder)
    assert str(caught.value) == (
        "model.id: './plian': no such folder. Did you mean 'plain'? It is a run, a folder, or a Hub id."
    )
    with pytest.raises(UserError, match=r"^model\.id: 'some/model': no such folder, it is not in the local cache, and"):
        require_model(Model(id="some/model"), folder)
    assert time.monotonic() - began < 2
    require_model(Model(id="plain"), folder)


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    hub_answers.cache_clear()
    began = time.monotonic()
    assert not hub_answers()
    assert time.monotonic() - began < 2
    hub_answers.cache_clear()


def test_where_a_name_leads(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert located("~/plain", tmp_path) == str(folder / "plain")
    assert located("plain", folder) == str(folder / "plain")
    assert located("some/model", folder) == "some/model"


def test_an_adapter_is_looked_at_on_the_model_itself() -> None:
    with pytest.raises(UserError, match=r"^model\.lora\.targets: 'lm_head' is the output head"):
        check_targets(tiny_model(), LoraConfig(target_modules=["lm_head"]))
    check_targets(tiny_model(), None)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_return_sequences": 3}, "cannot be used ("),
        ({"max_new_tokens": -1}, "cannot be used ("),
        ({"watermarking_config": {"x": 1}}, "cannot be used ("),
        ({"eos_token_id": "2"}, "has the eos_token_id '2'; expected a token id. Mend it."),
        ({"eos_token_id": [2, 3.5]}, "has the eos_token_id 3.5; expected a token id. Mend it."),
    ],
)
def test_a_generation_config_that_is_of_no_use(
    folder: Path, tmp_path: Path, settings: dict[str, Any], sentence: str
) -> None:
    shutil.copytree(folder / "plain", tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError) as caught:
        look(Model(id=str(tmp_path / "m")), None)
    assert str(caught.value).startswith(f"model.id: generation_config.json of {tmp_path / 'm'} {sentence}")
    for fine in ({"eos_token_id": [2, 3]}, {}, {"temperature": 0.6}):  # the last is mended later
        (tmp_path / "m" / "generation_config.json").write_text(json.dumps(fine))
        look(Model(id=str(tmp_path / "m")), None)


@pytest.mark.parametrize("adapter", [False, True])
def test_weights_that_exist_only_as_a_pickle_are_not_opened(adapter: bool, folder: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "harm",)

    place, file = tmp_path / "m", "adapter_model.bin" if adapter else "pytorch_model.bin"
    shutil.copytree(folder / "plain", place)
    (place / "model.safetensors").unlink()
    if adapter:
        (place / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder / "plain")}))
    torch.save({"x": Evil()}, place / file)
    with pytest.raises(UserError) as error:
        look(Model(id=str(place)), None)
    assert str(error.value) == (
        f"{place} holds its weights as a pickle ({file}), which may hold a program and is never read. Save them as "
        "safetensors where you trust them: save_pretrained of a current transformers or peft does."
    )
    assert not (tmp_path / "harm").exists()
    torch.load(place / file, weights_only=False)  # it would have
    assert (tmp_path / "harm").exists()


def test_code_that_comes_with_a_model_is_not_run_and_that_is_said(folder: Path, tmp_path: Path) -> None:
    place, said = tmp_path / "m", list[str]()
    shutil.copytree(folder / "plain", place)
    (place / "evil.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')")
    config = json.loads((place / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (place / "config.json").write_text(json.dumps(config))
    look(Model(id=str(place)), None, say=said.append)
    assert said == [
        f"note: {place} brings Python code of its own (auto_map), which is not run: LlamaForCausalLM of transformers is"
    ]
    (place / "config.json").write_text(json.dumps({**config, "model_type": "evil"}))
    with pytest.raises(UserError) as error:
        look(Model(id=str(place)), None)
    assert str(error.value) == (
        f"model.id: {str(place)!r} needs Python code of its own (auto_map in config.json), and code of a model is "
        "never run. Name a model of an architecture that transformers has."
    )
    assert not (tmp_path / "harm").exists()


def test_a_name_that_the_hub_cannot_have(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        require_model(Model(id="\x1eÞ"), tmp_path)
    assert str(error.value) == (
        "model.id: '\\x1eÞ': no such folder, and the Hub has no such names: letters, digits, '-', '_' and '.', as in "
        "NAME or OWNER/NAME."
    )
