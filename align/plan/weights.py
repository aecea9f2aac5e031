"""The weights of a model without weights: how many there are, how many are trained, and what one takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from align.engine.scoring import causal_model
from align.errors import UserError
from align.models.load import check_adapter
from align.models.look import put_on, structure
from align.models.policy import lora_config

if TYPE_CHECKING:
    from align.recipe import Recipe

# bytes that bitsandbytes keeps for one weight of a linear layer: the number, and its share of the scale of a block
_QUANTISED = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}


@dataclass(frozen=True)
class Part:
    """A layer, or what lies beside the layers.

    Attributes:
        elements: how many weights, an adapter's among them.
        bytes: what they take.
        trained: how many of them are trained, and ``trained_bytes`` what those take.
        largest: bytes of its largest trained tensor.
        rows: bytes of float32 sums over the rows and over the columns of its trained matrices, as Adafactor keeps.
    """

    elements: int
    bytes: int
    trained: int = 0
    trained_bytes: int = 0
    largest: int = 0
    rows: int = 0


@dataclass(frozen=True)
class Weights:
    """A model in parts: the embedding, the layers in order, and the rest with the output head.

    ``tied`` says that the head is the embedding's weight, which is then counted in the embedding alone. Weights that
    are not ``divisible`` are whole on every device: quantised ones are left out of what is shared out and offloaded.
    ``idle`` are those that a token does not meet, of experts that it is not sent to.
    """

    embedding: Part
    layers: tuple[Part, ...]
    rest: Part
    tied: bool
    divisible: bool = True
    idle: int = 0

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.embedding, *self.layers, self.rest)

    def sum(self, what: str) -> int:
        """``what`` of all parts, such as ``bytes``."""
        return sum(getattr(part, what) for part in self.parts)


def policy(recipe: Recipe, device: str) -> Any:
    """The recipe's policy without weights: in the types that it is kept in, with its adapter, and what is trained set.

    Args:
        device: the type of the device that is planned for, on which types depend.

    Raises:
        UserError: where the model cannot be looked at, or its architecture not be made without weights.
    """
    section, reward = recipe.model, recipe.objective_value().scores_answers
    model: Any = structure(section, recipe.base, reward)
    if model is None:
        raise UserError(
            f"model.id: {section.id} does not tell its size without its weights, so nothing can be planned."
        )
    model.to(_kept_in(recipe, model, device))
    if section.lora is not None:
        model.requires_grad_(False)
        return put_on(model, _adapter(recipe, reward))
    named = section.train_only
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(named is None or any(part in name for part in named))
    return model


def _adapter(recipe: Recipe, reward: bool) -> Any:
    """PEFT's configuration of the fresh adapter, or of the one that is loaded."""
    lora = recipe.model.lora
    assert lora is not None
    if lora.adapter is None:
        return lora_config(lora, reward=reward)
    from peft import PeftConfig

    from align.data.rows.sources import quiet_hub
    from align.runs.models import hub_options, located

    name = located(lora.adapter, recipe.base)
    try:
        with quiet_hub():
            check_adapter("model.lora.adapter", repr(lora.adapter), name, reward=reward)
            config = PeftConfig.from_pretrained(name, **hub_options(name))
    except (OSError, ValueError) as error:
        raise UserError(f"model.lora.adapter: {lora.adapter!r} cannot be read ({error}).") from error
    config.inference_mode = False
    return config


def _kept_in(recipe: Recipe, model: Any, device: str) -> torch.dtype:
    """The type of the weights that are not an adapter's; see ``models.policy.load_model``."""
    name = recipe.model.dtype
    if name == "auto" and (recipe.model.lora is None or device == "cpu"):
        name = "float32"
    if name == "auto":
        return getattr(model.config, "dtype", None) or torch.float32
    return getattr(torch, name)


def layers_of(inner: nn.Module) -> list[nn.Module]:
    """The decoder layers of a model: the longest list of modules in its backbone."""
    backbone: Any = causal_model(inner).base_model
    lists = [list(module) for module in backbone.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def weigh(model: Any, load_in: str | None = None) -> Weights:
    """The parts of a model; weights that are shared count once. ``load_in`` quantises the layers' linear maps."""
    inner: Any = causal_model(model)
    seen: set[int] = set()
    quantised = _linear(inner, _QUANTISED[load_in]) if load_in is not None else {}
    embedding = _part(inner.get_input_embeddings(), seen, quantised)
    layers = tuple(_part(layer, seen, quantised) for layer in layers_of(inner))
    head = inner.get_output_embeddings()
    tied = head is not None and getattr(head, "weight", None) is getattr(inner.get_input_embeddings(), "weight", 0)
    return Weights(embedding, layers, _part(model, seen, quantised), tied, load_in is None, _idle(inner))


def _idle(inner: Any) -> int:
    """Weights of a mixture's experts that a token is not sent to."""
    config = inner.config.get_text_config()
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((count for name in names if (count := getattr(config, name, None))), 0)
    used = getattr(config, "num_experts_per_tok", None) or experts
    # all of a layer's experts are one tensor, or each is a module
    theirs = [
        weight.numel()
        for name, weight in inner.named_parameters()
        if ".experts." in name and (weight.dim() == 2 or weight.shape[0] == experts)
    ]
    return sum(theirs) * (experts - used) // experts if experts else 0


def _linear(inner: Any, width: float) -> dict[int, float]:
    """Bytes of one weight of every linear map that is quantised, by the identity of its weight."""
    head = inner.get_output_embeddings()
    maps = (m for m in inner.modules() if isinstance(m, nn.Linear) and m is not head and "Lora" not in type(m).__name__)
    return {id(m.weight): width for m in maps if not m.weight.requires_grad}


def _part(module: nn.Module, seen: set[int], quantised: dict[int, float]) -> Part:
    """What a module has beyond what was ``seen``."""
    elements = size = trained = trained_bytes = largest = rows = 0
    for tensor in _new(module, seen):
        elements += tensor.numel()
        size += math.ceil(tensor.numel() * quantised.get(id(tensor), tensor.element_size()))
        if tensor.requires_grad:
            trained, trained_bytes = trained + tensor.numel(), trained_bytes + tensor.nbytes
            largest = max(largest, tensor.nbytes)
            folded = sum(tensor.shape[-2:]) * math.prod(tensor.shape[:-2]) if tensor.dim() > 1 else tensor.numel()
            rows += 4 * folded
    return Part(elements, size, trained, trained_bytes, largest, rows)


def _new(module: nn.Module, seen: set[int]) -> Iterator[Any]:
    for parameter in module.parameters():
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield parameter
