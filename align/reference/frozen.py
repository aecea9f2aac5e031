"""A frozen copy of the policy at its start, made without a whole model more on any process of a sharded run."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from align.reference.digest import whole


def frozen(model: nn.Module, *, shared: bool = False) -> nn.Module:
    """A copy that takes no gradient and is in evaluation mode.

    Weights that ZeRO-3 has cut up are put together, copied and cut up again one after another; every process takes part
    and holds one of them whole at a time.

    Args:
        shared: let the copy have parameters of its own over the model's memory. That costs nothing, and is right where
            each process copies its piece of them before the model is trained, as FSDP2 does when it shards.
    """
    own = {id(weight): weight for weight in model.parameters() if shared and type(weight) is nn.Parameter}
    made = copy.deepcopy(model, {key: nn.Parameter(weight.detach(), False) for key, weight in own.items()})
    pairs: Any = zip(made.parameters(), model.parameters(), strict=True)
    for mine, theirs in pairs:
        if hasattr(theirs, "ds_id"):  # of its copy deepcopy has kept neither this nor the piece
            with whole(theirs) as weight:
                mine.data = weight.detach().clone()
            theirs.convert_to_zero_parameters([mine])
    return made.eval().requires_grad_(False)
