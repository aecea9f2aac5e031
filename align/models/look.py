"""A look at the model of a recipe before its weights are read: its structure, made on torch's meta device."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from align.data.rows.sources import quiet_hub
from align.errors import UserError, loading
from align.models.limits import skeleton
from align.models.load import check_labels, first_line, made_as, refuse_classifier
from align.models.policy import check_folders, check_train_only, lora_config, not_loaded
from align.runs.models import hub_options, located, require_model
from align.runs.quiet import silent

if TYPE_CHECKING:
    from align.recipe.sections import Model


def look(section: Model, base: Path | None, *, reward: bool = False, say: Callable[[str], Any] = silent) -> None:
    """Refuse what can be seen without weights: folders, the attention, the names in ``train_only`` and ``lora``.

    Raises:
        UserError: naming the key. An architecture that cannot be made without weights is passed over.
    """
    require_model(section, base)
    check_folders(section, base)
    _check_generation(section, base)
    model = structure(section, base, reward)
    if model is None:
        return
    if getattr(model.config, "auto_map", None):
        kind = type(model).__name__
        say(f"note: {section.id} brings Python code of its own (auto_map), which is not run: {kind} of transformers is")
    if section.train_only is not None:
        check_train_only(model, section.train_only)
    config = lora_config(section.lora, reward=reward)
    check_targets(model, config)
    if config is not None:
        put_on(model, config)


def structure(section: Model, base: Path | None, reward: bool) -> PreTrainedModel | None:
    """The recipe's model without weights; see ``skeleton``. Raises UserError where it cannot be looked at."""
    name = located(section.id, base)
    attention = {} if section.attention is None else {"attn_implementation": section.attention}
    with loading(lambda error: not_loaded(section.id, None, error, section.revision)), quiet_hub():
        options: Any = {"revision": section.revision, "trust_remote_code": False, **hub_options(name)}
        config = AutoConfig.from_pretrained(name, **options)
    if reward:
        check_labels("model.id", section.id, config)
    else:
        refuse_classifier("model.id", section.id, config)
    with loading(lambda error: not_loaded(section.id, section.attention, error, section.revision)):
        return skeleton(config, reward=reward, **attention)


def new_head(section: Model, base: Path | None) -> bool:
    """Whether the model of a recipe has no head that scores answers, so that a reward model begins with a new one."""
    name = located(section.id, base)
    with quiet_hub():
        config = AutoConfig.from_pretrained(
            name, revision=section.revision, trust_remote_code=False, **hub_options(name)
        )
    return "SequenceClassification" not in made_as(config)


def _check_generation(section: Model, base: Path | None) -> None:
    """Refuse a generation config that cannot be read, or whose ends of text are no token ids."""
    name = located(section.id, base)
    cure = f"generation_config.json of {section.id}"
    try:
        with quiet_hub():
            config = GenerationConfig.from_pretrained(name, revision=section.revision, **hub_options(name))
    except OSError:
        return  # there is none
    except Exception as error:
        raise UserError(f"model.id: {cure} cannot be used ({first_line(error)}). Mend it, or remove it.") from error
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if wrong := [end for end in ends if end is not None and (isinstance(end, bool) or not isinstance(end, int))]:
        raise UserError(f"model.id: {cure} has the eos_token_id {wrong[0]!r}; expected a token id. Mend it.")


def check_targets(model: nn.Module, config: Any) -> None:
    """Refuse a fresh adapter whose modules are not there, or are such that the merged model would be another.

    Args:
        config: PEFT's; None is no adapter.

    Raises:
        UserError: with the names that exist.
    """
    if config is None:
        return
    if hasattr(model, "peft_config"):
        raise UserError(
            "The model has an adapter already: leave peft_config out to go on training that one, or merge it first "
            "(merge_and_unload)."
        )
    targets = getattr(config, "target_modules", None)
    if targets and targets != "all-linear":
        _check_names(model, "model.lora.targets", targets)
    heads = ("classifier", "score") if getattr(config, "task_type", None) == "SEQ_CLS" else ()  # PEFT adds both
    if kept := [name for name in getattr(config, "modules_to_save", None) or () if name not in heads]:
        _check_names(model, "model.lora.modules_to_save", kept)


def _check_names(model: Any, key: str, wanted: str | Sequence[str]) -> None:
    if isinstance(wanted, str):
        try:
            re.compile(wanted)
        except re.error as error:
            raise UserError(f"{key}: {wanted!r} is no pattern ({error}); write a list of names.") from error
    modules = dict(model.named_modules())
    listed = [wanted] if isinstance(wanted, str) else sorted(wanted)
    fits = _pattern if isinstance(wanted, str) else _named if key.endswith("targets") else str.endswith
    absent = [w for w in listed if not any(fits(name, w) for name in modules)]
    if absent:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in modules.items() if isinstance(m, nn.Linear)})
        if isinstance(wanted, str) and any(_named(name, wanted) for name in modules):
            raise UserError(f"{key}: text is a pattern for whole names, and {wanted!r} is none; write [{wanted}].")
        raise UserError(
            f"{key}: {type(model).__name__} has no module {', '.join(map(repr, absent))}. "
            f"Its linear layers: {', '.join(linear)}" + ("; or all-linear." if key.endswith("targets") else ".")
        )
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    for name, module in modules.items():
        hit = next((w for w in listed if fits(name, w)), None)
        if hit is None:
            continue
        if module is head:
            raise UserError(
                f"{key}: {hit!r} is the output head, which is scored in pieces and stays as it is under an adapter. "
                "Leave it out, or train all weights without model.lora."
            )
        if module is embedding and head is not None and head.weight is module.weight:
            raise UserError(
                f"{key}: {hit!r} shares its weight with the output head. The adapter would change one of the two, and "
                "merging it would change both, so that the merged model is not what was trained: leave it out."
            )


# how PEFT tells whether the module ``name`` is meant: text is a pattern of whole names, a target of a list is a whole
# part of a name, and one of modules_to_save any end of it
def _pattern(name: str, wanted: str) -> bool:
    return re.fullmatch(wanted, name) is not None


def _named(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def put_on(model: PreTrainedModel, config: Any) -> nn.Module:
    """A skeleton under an adapter. Raises UserError where PEFT refuses."""
    from peft import get_peft_model

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they are about is refused above, or comes again with the weights
            return get_peft_model(model, config)
    except (ValueError, TypeError) as error:
        why = first_line(error).split("(")[0]  # behind it stands the whole module
        raise UserError(
            f"model.lora: peft refuses this adapter ({why}). Adapters go on linear layers: targets: all-linear, or a "
            "list such as [q_proj, v_proj]."
        ) from error
