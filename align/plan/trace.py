"""What a decoder layer keeps and takes, by running its code on tensors that have shapes and no contents.

A layer's own forward and backward are run under torch's ``FakeTensorMode``, with autocast and adapters as in training,
while every storage that comes and goes is counted. So no architecture needs a formula of its own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from align.engine.layout import Layout, TreeBatch
from align.engine.scoring import attach
from align.plan.weights import layers_of

_MOST_OPERATIONS = 4000  # of one layer; a layer that walks its tokens one by one is not followed


class Layer(NamedTuple):
    """Bytes of one layer for one micro-batch.

    Attributes:
        keeps: what its forward leaves for its backward, its input among it where that is needed.
        enters: its input, the hidden states: all that is kept of it under checkpointing.
        forward: the most that is held while it runs forward, above what was held before.
        backward: the same for its backward; gradients of weights are among it.
        silent: the same for a forward without gradients.
    """

    keeps: int
    enters: int
    forward: int
    backward: int
    silent: int


class Live(TorchDispatchMode):
    """Bytes of the storages that were made while this mode was on and are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self._operations = 0
        self._known: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._operations += 1
        if self._operations > _MOST_OPERATIONS:
            raise NotImplementedError("too many operations to follow")
        grouped = function is torch.ops.aten._grouped_mm.default
        out = _grouped(*args, **(kwargs or {})) if grouped else function(*args, **(kwargs or {}))
        # what goes in was made before, or is counted already
        old = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                key = storage._cdata
                if key not in self._known and key not in old:
                    self._known[key] = weakref.finalize(storage, self._gone, key, storage.nbytes())
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
        return out

    def _gone(self, key: int, size: int) -> None:
        if self._known.pop(key, None) is not None:
            self.now -= size

    def mark(self) -> int:
        """What is held now; the peak counts from here on."""
        self.peak = self.now
        return self.now


def _grouped(a: Tensor, b: Tensor, offsets: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """Experts' products, whose rule for shapes takes 16 bits alone: rows [n, K] by [E, K, N], or both by their rows."""
    if a.dim() == b.dim() == 2 and offsets is not None:
        return a.new_empty(len(offsets), a.shape[0], b.shape[1])
    return a.new_empty(*a.shape[:-1], b.shape[-1])


def trace(model: Any, batch: TreeBatch, autocast: torch.dtype | None, device: str) -> list[Layer]:
    """Every layer of a model for a packed batch, in order.

    Args:
        model: a skeleton on the meta device, its adapter put on.
        autocast: the type that forwards compute in beside the weights' own.
        device: the type of the device that is planned for, which attention depends on.

    Raises:
        NotImplementedError, RuntimeError, TypeError or such: where the code does not run without contents, as where it
            looks at values.
    """
    inner = attach(model)
    found: dict[Any, Layer] = {}
    out = []
    layers = layers_of(inner)
    calls = _calls(inner, layers, batch, _attention(device))
    for layer, call in zip(layers, calls, strict=True):
        kind = _kind(layer)
        if kind not in found:
            found[kind] = _one(layer, call, autocast)
        out.append(found[kind])
    return out


def _kind(layer: nn.Module) -> Any:
    """What tells layers apart that take different amounts."""
    shapes = tuple((name, tuple(p.shape), p.dtype, p.requires_grad) for name, p in layer.named_parameters())
    attention = getattr(layer, "self_attn", None)
    return type(layer), shapes, getattr(layer, "attention_type", None), getattr(attention, "sliding_window", None)


class _Call(NamedTuple):
    args: tuple
    kwargs: dict[str, Any]


class _Enough(Exception):
    pass


def _calls(inner: Any, layers: list[nn.Module], batch: TreeBatch, kernel: Callable) -> list[_Call]:
    """What each layer is called with, recorded while the backbone runs with layers that pass their input on."""
    calls: dict[int, _Call] = {}
    hooks = []

    def record(number: int) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            calls[number] = _Call(args, kwargs)
            if number == len(layers) - 1:
                raise _Enough

        return hook

    for number, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(record(number), with_kwargs=True))
        layer.__dict__["forward"] = lambda *args, **kwargs: args[0] if args else kwargs["hidden_states"]
    meta = torch.device("meta")
    try:
        inner.base_model(
            input_ids=batch.input_ids.to(meta),
            position_ids=batch.position_ids.to(meta),
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=meta),
            use_cache=False,
            layout=batch.layout,
            kernel=kernel,
        )
    except _Enough:
        pass
    except (IndexError, RuntimeError, TypeError, ValueError):
        if not calls:  # else a layer returns more than its hidden states, and one call stands for all
            raise
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            layer.__dict__.pop("forward", None)
    return [calls.get(number, calls[0]) for number in range(len(layers))]


def _one(layer: nn.Module, call: _Call, autocast: torch.dtype | None) -> Layer:
    """One layer forward and backward, and forward without gradients."""
    # autocast looks for a device; elsewhere tensors of the meta device do, several times as fast
    device = "meta" if autocast is None else "cpu"
    with nullcontext() if autocast is None else FakeTensorMode(allow_non_fake_inputs=True):

        def here(x: Any) -> Any:
            return torch.empty(x.shape, dtype=x.dtype, device=device) if isinstance(x, Tensor) else x

        layer.to_empty(device=device)
        layer.train()
        args, kwargs = tree_map(here, call.args), tree_map(here, call.kwargs)
        given = args[0] if args else kwargs["hidden_states"]
        enters = given.nbytes

        def run(hidden: Tensor) -> Tensor:
            with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                if args:
                    out = layer(hidden, *args[1:], **kwargs)
                else:
                    out = layer(**{**kwargs, "hidden_states": hidden})
            return out if isinstance(out, Tensor) else out[0]

        with Live() as live, torch.no_grad():
            run(given)
            silent = live.peak
        seed = torch.zeros((), dtype=given.dtype, device=device, requires_grad=True)
        with Live() as live:
            total = run(seed + given).sum()  # the sum keeps no input of its own, so the output goes if nothing needs it
            forward, keeps = live.peak, live.mark()
            total.backward()
            backward = live.peak - keeps
        for parameter in layer.parameters():
            parameter.grad = None
    return Layer(keeps, enters, forward, backward, silent)


def _attention(device: str) -> Callable:
    """A kernel that holds what the real ones hold: keys and values of a prompt once more for each of its branches."""

    def kernel(query: Tensor, key: Tensor, value: Tensor, layout: Layout, **_: Any) -> Tensor:
        return _Counted.apply(query, key, value, layout, device)

    return kernel


class _Counted(torch.autograd.Function):
    """Shapes of attention alone. ``query`` [1, H, T, D], ``key`` and ``value`` [1, G, T, D]; returns [1, T, H, D]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, device: str) -> Tensor:
        shared = [s for s in layout.segments if s.p1 > s.p0]
        if device == "cpu":  # keys of segments with a prompt before them, and a mask, as numbers, for each shape
            places = sum(s.q1 - s.q0 + s.p1 - s.p0 for s in shared)
            shapes = {(s.q1 - s.q0, s.p1 - s.p0) for s in shared}
            mask = query.new_empty(sum(q * (p + q) for q, p in shapes))
        else:
            places = layout.length + sum(s.p1 - s.p0 for s in shared)
            mask = query.new_empty(0)
        keys, values = (x.new_empty(places, x.shape[1], x.shape[3]) for x in (key, value))
        pieces = torch.empty_like(query)
        sums = query.new_empty(query.shape[1], query.shape[2], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, keys, values, mask, pieces, sums)
        return torch.empty_like(pieces).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        query, key, value, keys, values, *_ = ctx.saved_tensors
        copies = [torch.empty_like(x) for x in (keys, values)]
        del copies
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None, None
