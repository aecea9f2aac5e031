"""A model that is only asked, cut up over the processes: each keeps its share of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from align.engine.scoring import causal_model


def shard(model: nn.Module, device: torch.device) -> tuple[int, int]:
    """Cut a loaded model up in place with FSDP2; a layer's weights are whole only while it computes.

    It is called where the model is whole on this process, and needs nothing of the others: each keeps what is its own.
    From then on all processes must run equally many forwards. An adapter stays whole, since its type may be another
    and it is small.

    Returns:
        Bytes of weights on this process, and of the whole model.
    """
    inner: Any = causal_model(model)
    whole = sum(p.nbytes for p in inner.parameters())
    kept = {p for name, p in inner.named_parameters() if "lora_" in name}
    for parameter in kept:
        parameter.data = parameter.data.to(device)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    layers = set(getattr(inner, "_no_split_modules", None) or ())
    for module in [m for m in inner.modules() if type(m).__name__ in layers]:
        fully_shard(module, mesh=mesh, ignored_params=kept)
    # the model that `generate` and an adapter call, so that its embedding and its head are gathered, too
    fully_shard(inner, mesh=mesh, ignored_params=kept)
    inner.requires_grad_(False)
    return sum((p.to_local() if isinstance(p, DTensor) else p).nbytes for p in inner.parameters()), whole
