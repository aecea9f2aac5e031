"""Models that judge: loaded whole in every process that asks, frozen, and computed apart from training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from align.compat import loaded_whole
from align.data.rows.sources import quiet_hub
from align.data.tokens.tokenize import load_tokenizer
from align.errors import UserError, loading
from align.models.complete import with_adapter
from align.models.load import (
    DType,
    adapter_base,
    adapter_revision,
    check_labels,
    first_line,
    made_as,
    model_folder,
    usual_type,
)
from align.models.quantised import plain, quantization, trained_in
from align.recipe.sections import Model
from align.runs.models import located
from align.runs.quiet import unreported

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Found:
    """A judge's model as it is named, without its weights.

    ``source`` is its folder or Hub id, ``model`` what is under it where it is an adapter, else the same, at
    ``revision``.
    """

    source: str
    model: str
    revision: str | None
    adapter: bool
    tokenizer: PreTrainedTokenizerBase


def find_judge_model(key: str, kind: Any, name: str, revision: str | None, base: Path | None) -> Found:
    """Look for a judge's model without reading its weights. ``kind`` is the class that loads it.

    Raises:
        UserError: where there is none, or it is a model of another kind, or it has no tokenizer.
    """
    try:
        where = model_folder(located(name, base))
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    source = str(where or name)
    adapter = where is not None and (where / "adapter_config.json").exists()
    model = source
    if adapter and where is not None:
        model, revision = adapter_base(where), revision or adapter_revision(where)
    with _sentences(key, name), quiet_hub():
        if adapter:
            from peft import PeftConfig

            task = PeftConfig.from_pretrained(source).task_type
            if ("SequenceClassification" in kind.__name__) != (task == "SEQ_CLS"):
                raise UserError(f"{key}: the adapter {name} is for another kind of model (task_type {task}).")
        else:
            _check_kind(key, kind, name, source, revision)
    with_tokenizer = source if not adapter or (where and (where / "tokenizer_config.json").exists()) else model
    try:
        tokenizer = load_tokenizer(Model(id=with_tokenizer, revision=revision))
    except UserError as error:
        raise UserError(str(error).replace("model.id", key, 1)) from error
    return Found(source, model, revision, adapter, tokenizer)


def load_judge_model(
    key: str, kind: Any, name: str, revision: str | None, dtype: DType, base: Path | None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Model and tokenizer, frozen; an adapter is merged into its model. ``kind`` is the class that loads it."""
    found = find_judge_model(key, kind, name, revision, base)
    brought: set[str] = set()  # parts that an adapter has in full
    with _sentences(key, name), quiet_hub(), loaded_whole(), unreported():
        options: dict[str, Any] = {"num_labels": 1} if "SequenceClassification" in kind.__name__ else {}
        bits = trained_in(Path(found.source)) if found.adapter else None
        if bits is not None:
            options["quantization_config"] = quantization(bits)
        model, info = kind.from_pretrained(
            found.model,
            revision=found.revision,
            dtype=usual_type() if dtype == "auto" else dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        if found.adapter:
            adapted = with_adapter(model if bits is None else plain(model), found.source)
            brought = set(adapted.peft_config["default"].modules_to_save or ())
            model = adapted.merge_and_unload()
    missing = sorted(weight for weight in info["missing_keys"] if not brought & set(weight.split(".")))
    if missing:
        raise UserError(
            f"{key}: {name} has no weights for {', '.join(missing[:3])}, which would be random; name another."
        )
    return model.eval().requires_grad_(False), found.tokenizer


def _sentences(key: str, name: str) -> AbstractContextManager[None]:
    """What loading raises, as a sentence."""
    return loading(
        lambda error: (
            f"{key}: {name!r} cannot be loaded ({first_line(error)}). It must be a run, a folder with config.json and "
            "safetensors, or a Hub id that can be reached (HF_HUB_OFFLINE is honoured)."
        )
    )


@contextmanager
def apart(device: torch.device) -> Iterator[None]:
    """No gradient, and the type of the weights even where a training step computes in another."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _check_kind(key: str, kind: Any, name: str, source: str, revision: str | None) -> None:
    """Refuse a model of another kind."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    made = made_as(config)
    if "SequenceClassification" not in kind.__name__:
        if "SequenceClassification" in made:
            raise UserError(f"{key}: {name} is a {made}, which scores single answers: name it as judge.reward.")
        return
    if made and "SequenceClassification" not in made:
        raise UserError(f"{key}: {name} is a {made}; a reward model is a ...ForSequenceClassification with one label.")
    check_labels(key, name, config)
