"""A digest of everything that makes a model compute what it does."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from align.engine.scoring import causal_model

# Configuration keys that do not change a log-prob.
_INERT = {
    "_name_or_path",
    "architectures",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "output_router_logits",
    "router_aux_loss_coef",
    "output_attentions",
    "output_hidden_states",
    "_attn_implementation",
    "attention_dropout",
}


def model_digest(model: nn.Module, *, adapters: bool, compute_dtype: str) -> str:
    """Hex SHA-256 over weights by tensor name, configuration, adapters, quantisation and compute type.

    Sharded parameters are put together one after another, so that the topology does not matter. All ranks must call it
    together then.

    Args:
        adapters: whether the adapter belongs to what is digested; a reference with its adapter off leaves it out.
    """
    hasher = hashlib.sha256()
    inner = causal_model(model)
    config = {k: v for k, v in dict(inner.config.to_dict()).items() if k not in _INERT}
    hasher.update(json.dumps(config, sort_keys=True, default=_plain).encode())
    hasher.update(compute_dtype.encode())
    if adapters and hasattr(model, "peft_config"):
        adapters_of: Any = model
        settings = {name: c.to_dict() for name, c in adapters_of.peft_config.items()}
        hasher.update(json.dumps(settings, sort_keys=True, default=_plain).encode())
    tensors = {name: t for name, t in _named_tensors(inner) if adapters or not _of_adapter(name)}
    for name in sorted(tensors):
        hasher.update(name.replace(".base_layer", "").replace(".original_module", "").encode())
        with whole(tensors[name]) as tensor:
            value = tensor.detach().cpu().contiguous()
            hasher.update(f"{value.dtype}{tuple(value.shape)}".encode())
            hasher.update(value.view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _plain(value: Any) -> Any:
    """What JSON does not know; sets sorted, since their order differs from one process to the next."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    persistent = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers():
        if name in persistent:
            yield name, buffer


def _of_adapter(name: str) -> bool:
    return "lora_" in name or ".modules_to_save." in name


@contextlib.contextmanager
def whole(tensor: Any) -> Iterator[Tensor]:
    """The full tensor of a parameter that ZeRO-3 or FSDP2 has cut up; any other as it is."""
    if hasattr(tensor, "full_tensor"):
        yield tensor.full_tensor()
    elif hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            yield tensor
    else:
        yield tensor
