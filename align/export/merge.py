"""An adapter merged into its model, and the proof that the result computes the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align.errors import UserError
from align.export.logits import SAME, Gap, gap, logits_of
from align.models.load import first_line

Rows = Sequence[Sequence[int]]


def trained_tokens(model: Any) -> list[int]:
    """The tokens whose embedding alone an adapter trained (PEFT's ``trainable_token_indices``)."""
    found: set[int] = set()
    for config in getattr(model, "peft_config", {}).values():
        named = getattr(config, "trainable_token_indices", None) or []
        for tokens in named.values() if isinstance(named, dict) else [named]:
            found.update(tokens)
    return sorted(found)


class Unlike(UserError):
    """The merged model computes something else than the adapter on its model; ``gap`` is by how much."""

    def __init__(self, message: str, gap: Gap) -> None:
        super().__init__(message)
        self.gap = gap


def merged(model: Any, rows: Rows, say: Callable[[str], Any]) -> tuple[Any, Gap]:
    """The model under the adapter ``model`` with the adapter in its weights, and how far its logits moved.

    An embedding that shares its weight with the output head is kept apart from it where the adapter changes one of the
    two, or both in other ways; the configuration then says so.

    Args:
        model: PEFT's, in float32 or float64; it is taken apart.
        rows: token ids.

    Raises:
        UserError: where the adapter cannot be merged.
        Unlike: where the merged model computes something else.
    """
    kind = next(iter(model.peft_config.values()))
    if kind.is_prompt_learning or not hasattr(model, "merge_and_unload"):
        raise UserError(
            f"The adapter is of the kind {kind.peft_type.value}, which adds tokens and changes no weights: there is "
            "nothing to merge. Export it without --merge."
        )
    expected, behind = logits_of(model, rows), _hidden(model, rows)
    tied = _untie(model.get_base_model())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tied embeddings, which are seen to here
            model = model.merge_and_unload()
    except (ValueError, NotImplementedError, TypeError, RuntimeError) as error:
        raise UserError(f"peft cannot merge this adapter ({first_line(error)}): export it without --merge.") from error
    if tied and not _tie(model):
        say(
            "merge: the adapter changes the embedding and the output head differently, which share one weight in the "
            "base model: the merged model keeps two (tie_word_embeddings: false)"
        )
    found = gap(expected, logits_of(model, rows))
    if not found.same:
        raise Unlike(
            f"The merged model is not the adapter on its model: logits differ {found.text()}, and {found.limit:.0e} is "
            f"what may be rounding. It is largest at token {found.token} of row {found.row}; "
            f"{_first(behind, model, rows)}. Nothing was written; export the adapter without --merge.",
            found,
        )
    say(f"merge: logits of the merged model differ from the adapter's {found.text()}, which is rounding")
    return model, found


def _untie(model: nn.Module) -> bool:
    """Give embedding and output head a weight each where they share one, whatever an adapter put around them."""
    holders: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        if isinstance(module, (nn.Embedding, nn.Linear)):
            holders.setdefault(id(module.weight), []).append(module)
    shared = [modules for modules in holders.values() if len(modules) > 1]
    for _, *others in shared:
        for module in others:
            module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=False)  # type: ignore[operator]
    return bool(shared)


def _tie(model: Any) -> bool:
    """Let both share a weight again where they are equal, and the configuration say which it is."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    same = torch.equal(embedding.weight, head.weight)
    if same:
        head.weight = embedding.weight
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        if hasattr(config, "tie_word_embeddings"):
            config.tie_word_embeddings = same
    return same


@torch.no_grad()
def _hidden(model: Any, rows: Rows) -> list[Tensor]:
    """Hidden states of the first row, behind the embedding and behind every layer; nothing where a model keeps none."""
    out = model(input_ids=torch.tensor([list(rows[0])]), output_hidden_states=True)
    return list(getattr(out, "hidden_states", None) or ())


def _first(before: Sequence[Tensor], model: Any, rows: Rows) -> str:
    """Which layer is the first to differ, as a part of a sentence."""
    for layer, (old, new) in enumerate(zip(before, _hidden(model, rows), strict=False)):
        if not bool((new - old).abs().max() <= SAME * old.abs().max()):
            return f"row 0 differs from layer {layer - 1} on" if layer else "row 0 differs from its embedding on"
    return "hidden states of row 0 do not differ"
