"""The most that a micro-batch takes beside what stays, from what its layers and its head take. Arithmetic alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from align.plan.head import Taken
from align.plan.trace import Layer

_LAST_NORM = 2  # copies of the last hidden states that the last norm keeps, in float32


class Micro(NamedTuple):
    """The largest training micro-batch.

    Attributes:
        layers: bytes of each of its layers.
        head: what the head takes.
        states: bytes of the last hidden states, [T, H] in float32.
        gradients: bytes of the trained weights of each layer, which its backward leaves.
        around: the same of the embedding and of what else there is, but for a head of its own.
        head_gradient: the same of the output head; one that is ``tied`` to the embedding adds to its gradient.
        checkpointing: whether layers keep their input alone and run forward again in the backward pass.
        accumulated: whether gradients of the micro-batches before are there already.
        beside: held all the while, such as what is kept of a reference forward.
    """

    layers: Sequence[Layer]
    head: Taken
    states: int
    gradients: Sequence[int]
    around: int
    head_gradient: int
    tied: bool = False
    checkpointing: bool = False
    accumulated: bool = False
    beside: int = 0


class Peak(NamedTuple):
    """Where a micro-batch takes the most: activations, gradients that are there by then, and what the head takes."""

    activations: int
    gradients: int
    head: int

    @property
    def total(self) -> int:
        return self.activations + self.gradients + self.head


def peak(micro: Micro) -> Peak:
    """The highest point of one forward and backward.

    Activations pile up layer by layer, then the head's tiles come, then layer by layer activations go and gradients
    come. Gradients that were there before stay all the time, and new ones are added to them.
    """
    everything = sum(micro.gradients) + micro.around + (0 if micro.tied else micro.head_gradient)
    before = everything if micro.accumulated else 0
    points = []
    kept, gradients = micro.beside, before
    for layer in micro.layers:
        points.append(Peak(kept + (layer.silent + layer.enters if micro.checkpointing else layer.forward), before, 0))
        kept += layer.enters if micro.checkpointing else layer.keeps
    last = (_LAST_NORM + 1) * micro.states
    points.append(Peak(kept + last, before, micro.head.forward))
    points.append(Peak(kept + last, before, micro.head.keeps + micro.head.backward))
    new = micro.head_gradient
    gradients += 0 if micro.accumulated else new
    points.append(Peak(kept + last + micro.states, gradients, 0))
    for layer, own in zip(reversed(micro.layers), reversed(micro.gradients), strict=True):
        flowing = layer.enters  # the gradient that comes from above
        if micro.checkpointing:
            again = max(layer.forward, layer.keeps + layer.backward)
            points.append(Peak(kept + flowing + again, gradients, 0))
            kept -= layer.enters
        else:
            points.append(Peak(kept + flowing + layer.backward, gradients, 0))
            kept -= layer.keeps
        gradients += 0 if micro.accumulated else own
    points.append(Peak(kept + micro.states, gradients + micro.around, 0))
    return max(points, key=lambda point: point.total)


def silent(layers: Sequence[Layer], head: Taken, states: int, share: float = 1.0, all_states: bool = False) -> int:
    """The most that a forward without gradients takes.

    Args:
        share: positions over those that ``layers`` and ``states`` were counted for.
        all_states: whether the hidden states of all layers are kept, since one of them is read.
    """
    inside = max((layer.silent + layer.enters for layer in layers), default=0)
    inside += sum(layer.enters for layer in layers) if all_states else 0
    return int(share * max(inside, 2 * states)) + head.forward
