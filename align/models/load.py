"""A checkpoint to measure: the model of a run, a folder, an adapter's folder, or a Hub id. Remote code stays off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from align.data.rows.sources import did_you_mean, quiet_hub
from align.data.tokens.arguments import keep_arguments, kept_arguments
from align.data.tokens.tokenize import load_tokenizer
from align.errors import UserError, loading, told
from align.models.complete import language_model, with_adapter
from align.models.quantised import Bits, plain, quantization, trained_in
from align.outside.files import json_file
from align.outside.limits import JSON
from align.recipe.sections import Model
from align.runs.models import ADAPTER, hub_options, model_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION = "generation_config.json"
SAFE = {"trust_remote_code": False, "use_safetensors": True}  # how every model is loaded: no program of others' runs
DType = Literal["auto", "float32", "bfloat16", "float16"]


def load_checkpoint(
    name: str, dtype: DType | None = None, arguments: Mapping[str, Any] | None = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Model and tokenizer of ``name``; weights in ``dtype``, None or ``auto`` for ``usual_type``.

    Weights under an adapter are rounded as they were quantised in the run that trained it. ``arguments`` of its chat
    template win over those that it was saved with.

    Raises:
        UserError: where there is no such model or it cannot be read.
    """
    where = model_folder(name)
    source = str(where or name)
    adapter = where is not None and (where / ADAPTER).exists()
    base = adapter_base(where) if adapter and where is not None else source
    if adapter:
        check_adapter("model", name, source, reward=False)
    revision = adapter_revision(where) if adapter and where is not None else None
    bits = trained_in(where) if adapter and where is not None else None
    model = _model(base, source, usual_type() if dtype in (None, "auto") else dtype, revision, bits)
    if adapter:
        from transformers import GenerationConfig

        with loading(lambda error: f"{source}: the adapter cannot be loaded ({first_line(error)})."):
            model = with_adapter(model, source)
            if Path(source, GENERATION).is_file():  # its training may have named other ends than the model under it
                model.get_base_model().generation_config = GenerationConfig.from_pretrained(source)
    return model, checkpoint_tokenizer(name, arguments)


def checkpoint_tokenizer(name: str, arguments: Mapping[str, Any] | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer alone, as ``load_checkpoint`` gives it."""
    where = model_folder(name)
    source = str(where or name)
    own = where is None or not (where / ADAPTER).exists() or (where / "tokenizer_config.json").exists()
    try:
        tokenizer = load_tokenizer(Model(id=source if own or where is None else adapter_base(where)))
    except UserError as error:
        raise UserError(str(error).removeprefix("model.id: ")) from error
    if arguments:
        keep_arguments(tokenizer, {**kept_arguments(tokenizer), **arguments})
    return tokenizer


def model_folder(name: str) -> Path | None:
    """The folder that holds the model, or None for a Hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        return model_of(path)
    if path.exists():
        raise UserError(f"{name} is a file; a model is a folder with config.json and safetensors, or a Hub id.")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        if name.count("/") or near:
            raise UserError(f"{name}: no such folder.{near} A model is a run, a folder, or a Hub id.")
    return None


def adapter_base(adapter: Path) -> str:
    """The model under an adapter, as its configuration names it; a relative folder may start beside the adapter."""
    base = adapter_settings(adapter).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{adapter / ADAPTER} does not name the model under the adapter (base_model_name_or_path).")
    return str(adapter / base) if not Path(base).is_dir() and (adapter / base).is_dir() else str(base)


def adapter_revision(adapter: Path) -> str | None:
    """The revision on the Hub of the model under an adapter, or None."""
    found = adapter_settings(adapter).get("revision")
    return None if found is None else str(found)


def adapter_settings(adapter: Path) -> dict[str, Any]:
    """The configuration of an adapter. Raises UserError where it cannot be read."""
    with loading(lambda error: f"{adapter / ADAPTER} cannot be read ({first_line(error)})."):
        return dict(json_file(adapter / ADAPTER, JSON))


def made_as(config: Any) -> str:
    """The architectures that a checkpoint names, as text; empty where it names none."""
    return ", ".join(getattr(config, "architectures", None) or ())


def check_labels(key: str, name: str, config: Any) -> None:
    """Refuse a classifier that gives several numbers. Raises UserError."""
    if "SequenceClassification" in made_as(config) and config.num_labels != 1:
        raise UserError(f"{key}: {name} gives {config.num_labels} numbers (num_labels); a reward model gives one.")


def refuse_classifier(key: str, name: str, config: Any) -> None:
    """Refuse a classifier where a language model is meant: its head over the vocabulary would be random."""
    if "SequenceClassification" in made_as(config):
        raise UserError(
            f"{key}: {name} is a {made_as(config)}, which scores answers and writes none: name a language model. A "
            "reward model is trained with objective: {name: bradley_terry} and judges as judge.reward."
        )


def check_adapter(key: str, name: str, source: str, *, reward: bool) -> None:
    """Refuse a reward model's adapter for a language model, and the other way round. Raises UserError.

    Args:
        source: where the adapter is; ``name`` is what it is called.
        reward: whether the model that it shall be put on is a reward model.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError
    from peft import PeftConfig

    if not Path(source).is_dir():
        try:
            hf_hub_download(source, "adapter_model.safetensors", local_files_only=bool(hub_options(source)))
        except EntryNotFoundError as error:
            raise UserError(
                f"{key}: {name} has no adapter_model.safetensors, on the Hub or in the local cache. Pickled weights "
                "(adapter_model.bin) are never read."
            ) from error
    scored = PeftConfig.from_pretrained(source, **hub_options(source)).task_type == "SEQ_CLS"
    if scored and not reward:
        raise UserError(
            f"{key}: {name} is the adapter of a reward model, which scores answers and writes none: name that of a "
            "language model. A reward model judges as judge.reward."
        )
    if reward and not scored:
        raise UserError(
            f"{key}: {name} is the adapter of a language model, under which the head that scores answers would not be "
            f"trained: merge it into its model (align export {name} --merge), and name the merged folder in model.id."
        )


def usual_type() -> DType:
    """The type of weights where nobody asks for one: the checkpoint's own, and float32 on a CPU.

    There 16 bits are no faster, and round log-probs by tenths of a nat.
    """
    return "auto" if torch.accelerator.is_available() else "float32"


def _model(base: str, source: str, dtype: DType, revision: str | None, bits: Bits | None) -> Any:
    from transformers import AutoConfig

    under = "" if base == source else f", which the adapter {source} was trained on,"

    def not_loaded(error: Exception) -> str:
        return (
            f"{base}{under} cannot be loaded ({first_line(error)}). It must be a run, a folder with config.json and "
            "safetensors, or a Hub id that can be reached (HF_HUB_OFFLINE is honoured)."
        )

    with loading(not_loaded), quiet_hub():
        options: dict[str, Any] = {"revision": revision, **hub_options(base)}
        refuse_classifier("model", base, AutoConfig.from_pretrained(base, trust_remote_code=False, **options))
        if bits is not None:
            options["quantization_config"] = quantization(bits)
        model = language_model("model", base, dtype=dtype, **SAFE, **options)
        return model if bits is None else plain(model)


def first_line(error: Exception) -> str:
    """What an error says first; its type too, where it is none of those that are written for people."""
    line = str(error).strip().split("\n")[0].rstrip(".")
    return line if line and isinstance(error, (OSError, ValueError, ImportError, RuntimeError)) else told(error)
