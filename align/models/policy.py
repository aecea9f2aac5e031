"""The policy and its adapter, as a recipe asks for them. Revisions pinned, remote code off, safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from align.data.rows.sources import quiet_hub
from align.engine.scoring import causal_model
from align.errors import UserError, loading
from align.models.complete import language_model, with_adapter
from align.models.load import SAFE, adapter_base, check_adapter, first_line, refuse_classifier, usual_type
from align.models.quantised import leave_unpacked, let_file_go, quantization
from align.models.reward import read_reward_model
from align.runs.models import hub_options, hub_refusal, is_adapter, located

if TYPE_CHECKING:
    from align.recipe.sections import Lora, Model


def load_model(section: Model, *, base: Path | None = None, reward: bool = False) -> PreTrainedModel:
    """Load the policy, or with ``reward`` a model with a head that scores answers.

    With ``lora.adapter`` the adapter is loaded on top, and trainable.

    Full fine-tuning keeps its weights in float32 unless the recipe names a type; under an adapter they stay in the
    checkpoint's own, on a CPU in float32.

    Args:
        base: where relative folders start; they are looked up there first, then in the working directory.

    Raises:
        UserError: where the model, its revision or its type cannot be had, or it is an adapter.
    """
    check_folders(section, base)
    options: dict[str, Any] = {"revision": section.revision, "dtype": section.dtype}
    if section.dtype == "auto":
        options["dtype"] = "float32" if section.lora is None else usual_type()
    if section.attention is not None:
        options["attn_implementation"] = section.attention
    if section.load_in is not None:
        options["quantization_config"] = quantization(section.load_in)
    model = (read_reward_model if reward else read_model)(located(section.id, base), **options)
    leave_unpacked(model)
    if section.load_in is not None:
        let_file_go(model)
    if section.lora is not None and section.lora.adapter is not None:
        return _with_adapter(model, section.lora.adapter, base)
    if section.train_only is not None:
        check_train_only(model, section.train_only)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(part in name for part in section.train_only))
    return model


def read_model(name: str, **options: Any) -> PreTrainedModel:
    """The model that a folder or a Hub id holds, with ``options`` of transformers.

    Raises:
        UserError: where there is none, or it is an adapter.
    """
    if is_adapter(name):
        raise UserError(_adapter_sentence(name, adapter_base(Path(name))))
    with (
        loading(lambda error: not_loaded(name, options.get("attn_implementation"), error, options.get("revision"))),
        quiet_hub(),
    ):
        model = language_model("model.id", name, **{**SAFE, **hub_options(name), **options})
    refuse_classifier("model.id", name, model.config)
    if getattr(model, "_hf_peft_config_loaded", False):  # of a Hub id, only loading tells
        raise UserError(_adapter_sentence(name, model.config._name_or_path))
    return model


def check_folders(section: Model, base: Path | None) -> None:
    """Refuse an adapter where a model is meant, and a model where an adapter is. Nothing is loaded."""
    name = located(section.id, base)
    if is_adapter(name):
        raise UserError(_adapter_sentence(section.id, adapter_base(Path(name))))
    adapter = None if section.lora is None else section.lora.adapter
    if adapter is None:
        return
    folder = located(adapter, base)
    if Path(folder).is_dir() and not is_adapter(folder):
        raise UserError(
            f"model.lora.adapter: {adapter!r} holds no adapter (no adapter_config.json). A model is named in model.id; "
            "a fresh adapter is made with model.lora: {rank: 16}."
        )


def adapter_note(section: Model, base: Path | None) -> str | None:
    """A sentence where ``lora.adapter`` names another model under it than ``model.id``; else None."""
    adapter = None if section.lora is None else section.lora.adapter
    folder = Path(located(adapter, base)) if adapter is not None else Path()
    if adapter is None or not is_adapter(str(folder)):
        return None
    under, name = adapter_base(folder), located(section.id, base)
    if under == name or Path(under).resolve() == Path(name).resolve():
        return None
    return (
        f"WARNING: the adapter {adapter} was trained on {under}, and model.id is {section.id}. Unless both hold the "
        "same weights, the result is neither: set model.id to the first."
    )


def _adapter_sentence(name: str, under: str) -> str:
    return (
        f"model.id: {name!r} is an adapter, not a model. To go on training it, set model.id to the model under it "
        f"({under}) and model.lora to {{adapter: {name}}}. To train anything else on top of it, merge it into that "
        f"model first (align export {name} --merge) and name the merged folder."
    )


def not_loaded(name: str, attention: str | None, error: Exception, revision: str | None) -> str:
    if attention is not None and any(word in str(error) for word in ("ttention", "attn_implementation")):
        return (
            f"model.attention: {attention!r} cannot be used here ({first_line(error)}). Leave it out, or set sdpa or "
            "eager; packed rows have an attention of their own either way."
        )
    if "trust_remote_code" in str(error):
        return (
            f"model.id: {name!r} needs Python code of its own (auto_map in config.json), and code of a model is never "
            "run. Name a model of an architecture that transformers has."
        )
    if (why := hub_refusal(name, revision, error)) is not None:
        return f"model.id: {name!r} cannot be loaded: {why}."
    return (
        f"model.id: {name!r} cannot be loaded ({first_line(error)}). It must be a run, a folder with config.json and "
        "safetensors, or a Hub id that can be reached (HF_HUB_OFFLINE is honoured)."
    )


def _with_adapter(model: PreTrainedModel, adapter: str, base: Path | None) -> Any:
    """The model with an existing adapter on it, trainable."""
    name = located(adapter, base)
    head, embedding = (type(part) for part in (model.get_output_embeddings(), model.get_input_embeddings()))
    tied = getattr(model.get_output_embeddings(), "weight", None) is model.get_input_embeddings().weight

    def not_put_on(error: Exception) -> str:
        shapes = "size mismatch" in str(error)
        why = "its weights have other shapes than this model's" if shapes else first_line(error)
        cure = f" It was trained on {adapter_base(Path(name))}: name that in model.id." if is_adapter(name) else ""
        return f"model.lora.adapter: {adapter!r} cannot be put on {model.config._name_or_path} ({why}).{cure}"

    with loading(not_put_on), quiet_hub():
        check_adapter("model.lora.adapter", repr(adapter), name, reward=model.get_output_embeddings() is None)
        adapted = with_adapter(model, name, is_trainable=True, **hub_options(name))
    inner = causal_model(adapted)
    part = None
    if type(inner.get_output_embeddings()) is not head:
        part = "the output head"
    elif tied and type(inner.get_input_embeddings()) is not embedding:
        part = "the embedding, whose weight is the output head's as well"
    if part is not None:
        raise UserError(
            f"model.lora.adapter: {adapter!r} changes {part}. The head is scored in pieces and stays as it is under an "
            "adapter: take one that leaves it alone, or a fresh one (model.lora: {rank: 16})."
        )
    return adapted


def check_train_only(model: PreTrainedModel, parts: list[str]) -> None:
    """Raises UserError where one of ``parts`` is in no weight's name."""
    names = [name for name, _ in model.named_parameters()]
    absent = [part for part in parts if not any(part in name for name in names)]
    if absent:
        raise UserError(
            f"model.train_only: no weight of {type(model).__name__} has {', '.join(map(repr, absent))} in its name; "
            f"names are such as {', '.join(names[1:4])}."
        )


def lora_config(lora: Lora | None, *, reward: bool = False, revision: str | None = None) -> Any:
    """PEFT's configuration of a fresh adapter, or None. That of a ``reward`` model trains the head in full.

    ``revision`` is that of the model under it, so that whoever loads the adapter gets the same one.
    """
    if lora is None or lora.adapter is not None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        modules_to_save=list(lora.modules_to_save) or None,
        task_type="SEQ_CLS" if reward else "CAUSAL_LM",
        revision=revision,
    )
