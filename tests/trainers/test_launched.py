"""What a process sees in its first step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from align.errors import UserError
from align.trainers.launched import Launched, gradient_norm


def model() -> nn.Module:
    made = nn.Linear(2, 1)
    made.weight.grad = torch.tensor([[3.0, 4.0]])
    made.bias.grad = torch.tensor([12.0])
    return made


def test_the_norm_is_of_all_gradients_that_are_held_whole() -> None:
    assert gradient_norm(model()) == pytest.approx(13, rel=1e-6, abs=0)
    assert gradient_norm(nn.Linear(2, 1)) is None  # DeepSpeed keeps them elsewhere
    shared = SimpleNamespace(parameters=lambda: [SimpleNamespace(grad=SimpleNamespace(to_local=None))])
    assert gradient_norm(shared) is None  # type: ignore[arg-type]


def test_a_process_that_is_alone_and_should_not_be_is_refused_once() -> None:
    state: Any = SimpleNamespace(value="FSDP")
    accelerator = SimpleNamespace(num_processes=1, distributed_type=state, state=SimpleNamespace(backend="gloo"))
    look = Launched(SimpleNamespace(accelerator=accelerator, model_wrapped=model()))
    with pytest.raises(UserError, match="1 process of type FSDP must train a FSDPModule, but the model of rank 0 is a"):
        look.on_pre_optimizer_step(None, None, None)  # type: ignore[arg-type]
    look.on_pre_optimizer_step(None, None, None)  # type: ignore[arg-type]
