"""What happens to a tile of logits between two matrix products: one pass forward, one pass backward.

On a GPU each pass is a kernel of ``triton_kernels.py`` that reads the tile once. Elsewhere, and where those kernels do
not work, torch's own operations do the same.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# What the kernels may differ by from torch's operations: log-probs in nats, and gradients of about 1 by type, both some
# units of the last place.
_LOGPROBS = 1e-5
_GRADIENTS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@dataclass(frozen=True)
class Finish:
    """What a model does to the logits of its head: a scale, then a soft cap, ``cap * tanh(scale * x / cap)``."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


class Tile(NamedTuple):
    """Logits [n, v] before ``finish``, of n tokens and the words from ``first`` on; ``targets`` [n] of the vocabulary.

    Every operation below may overwrite ``logits``.
    """

    logits: Tensor
    first: int
    targets: Tensor
    finish: Finish

    def places(self) -> tuple[Tensor, Tensor]:
        """Columns of the targets [n, 1], and whether the tile has them [n]; columns outside are moved to its edge."""
        places, width = self.targets - self.first, self.logits.shape[1]
        return places.clamp(0, width - 1)[:, None], (places >= 0) & (places < width)


def new_state(tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """State [3, N] before the first tile: largest logit, sum of exp(logit - largest), and the target's logit."""
    state = torch.zeros(3, tokens, dtype=dtype, device=device)
    state[0] = torch.finfo(dtype).min  # not -inf, which minus itself is no number
    return state


def absorb(tile: Tile, state: Tensor, *, fused: bool) -> None:
    """Take a tile into the ``state`` [3, n] of its tokens."""
    largest, total, chosen = state
    if fused:
        from align.engine import triton_kernels

        logits, first, targets, finish = tile
        triton_kernels.absorb(logits, first, targets, finish.scale, finish.cap, largest, total, chosen)
        return
    logits = tile.finish(tile.logits)
    places, inside = tile.places()
    chosen.copy_(torch.where(inside, logits.gather(1, places)[:, 0], chosen))
    top = torch.maximum(largest, logits.amax(1))
    total.mul_((largest - top).exp_()).add_(logits.sub_(top[:, None]).exp_().sum(1))
    largest.copy_(top)


def results(state: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of the targets and logs of the sum of exp(logit), each [N], once every tile was taken in."""
    largest, total, chosen = state
    logs = total.log()
    return (chosen - largest) - logs, largest + logs  # small differences first: large logits would swallow the log


def differentiate(tile: Tile, normaliser: Tensor, upstream: Tensor, out: Tensor, *, fused: bool) -> None:
    """Write the gradient with respect to a tile's logits to ``out`` [n, v], which may be the tile itself.

    d log p(y) / dx = (onehot(y) - softmax) * d finish(x) / dx, where a cap has the derivative 1 - (finish(x) / cap)^2.

    Args:
        normaliser: log of the sum of exp(logit) over the whole vocabulary [n].
        upstream: gradients with respect to the log-probs [n].
    """
    finish = tile.finish
    if fused:
        from align.engine import triton_kernels

        logits, first, targets, _ = tile
        triton_kernels.differentiate(logits, first, targets, finish.scale, finish.cap, normaliser, upstream, out)
        return
    logits = finish(tile.logits)
    slope = (upstream * -finish.scale)[:, None]
    if finish.cap is not None:
        slope = slope * (1 - (logits / finish.cap).square())
    places, inside = tile.places()
    logits.sub_(normaliser[:, None]).exp_()
    logits.scatter_add_(1, places, -inside[:, None].to(logits.dtype))
    torch.mul(logits, slope, out=out)


@functools.cache
def fused_works(device: torch.device, dtype: torch.dtype) -> str | None:
    """None where the kernels run for factors of ``dtype`` on ``device``, else why torch's own operations run instead.

    Tried once, on a small case: the kernels must compile there and agree with torch's operations.
    """
    if device.type != "cuda":
        return f"there are no fused kernels for {device.type}"
    if dtype not in _GRADIENTS:
        return f"there are no fused kernels for {str(dtype).removeprefix('torch.')}"
    try:
        logprobs, gradients = differences(device, dtype)
    except ImportError:
        return "triton is not installed"
    except Exception as error:  # a compiler has many ways to fail, and none of them may end a training
        return f"the fused kernels fail here ({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})"
    if logprobs <= _LOGPROBS and gradients <= _GRADIENTS[dtype]:  # nan is no agreement
        return None
    return (
        f"the fused kernels differ here from torch's own operations, log-probs by {logprobs:.1e} nats and gradients by "
        f"{gradients:.1e}"
    )


def differences(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Largest difference between kernels and torch's operations on a small case: log-probs in nats, and gradients.

    Two tiles, with and without scale and cap. The second is wider than a kernel's block and no multiple of anything;
    the targets are the first and the last word of each.
    """
    generator = torch.Generator().manual_seed(0)
    firsts, widths = (0, 64), (64, 4199)
    logits = [3 * torch.randn(4, width, generator=generator).to(device) for width in widths]
    targets = torch.tensor([0, 63, 64, 64 + 4198], device=device)
    upstream = torch.tensor([1.0, -1.0, 0.5, 2.0], device=device)
    gaps = []
    for finish in (Finish(), Finish(scale=0.5, cap=4.0)):
        found = []
        for fused in (False, True):
            state = new_state(4, torch.float32, device)
            for x, first in zip(logits, firsts, strict=True):
                absorb(Tile(x.clone(), first, targets, finish), state, fused=fused)
            logprobs, normaliser = results(state)
            outs = [torch.empty_like(x, dtype=dtype) for x in logits]
            for x, first, out in zip(logits, firsts, outs, strict=True):
                differentiate(Tile(x.clone(), first, targets, finish), normaliser, upstream, out, fused=fused)
            found.append((logprobs, torch.cat(outs, 1).float()))
        (own, own_gradient), (ours, our_gradient) = found
        gaps.append(torch.stack([(own - ours).abs().max(), (own_gradient - our_gradient).abs().max()]))
    largest = torch.stack(gaps).amax(0).tolist()
    return largest[0], largest[1]
