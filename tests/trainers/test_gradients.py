"""A gradient that an operation cuts off ends the run: torch only warns of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training import arguments, pairs, word_tokenizer
from zoo import tiny_model

from align import DPO
from align.errors import UserError
from align.trainers.gradients import uncut
from align.trainers.preference import PreferenceTrainer


@pytest.fixture(scope="module")
def scaled() -> Iterator[Any]:
    """A factor on a tensor, as a package might bring it: without a derivative."""
    library = torch.library.Library("align_tests", "FRAGMENT")
    library.define("scaled(Tensor values, float factor) -> Tensor")
    library.impl("scaled", lambda values, factor: values * factor, "CPU")
    yield torch.ops.align_tests.scaled
    library._destroy()


def trainer(folder: Path, model: Any) -> PreferenceTrainer:
    return PreferenceTrainer(
        model, DPO(), args=arguments(folder), train_dataset=pairs(8), processing_class=word_tokenizer()
    )


def test_a_model_that_cuts_gradients_is_not_trained(scaled: Any, tmp_path: Path) -> None:
    model = tiny_model()
    layer = model.model.layers[0].mlp
    own = layer.forward
    layer.forward = lambda hidden: scaled(own(hidden), 1.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"align_tests::scaled passes no gradient on.*model\.load_in"):
        trainer(tmp_path, model).train()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_operation_that_no_gradient_comes_to_is_no_fault(scaled: Any, tmp_path: Path) -> None:
    model = tiny_model()
    layer = model.model.layers[0].mlp
    own = layer.forward

    def forward(hidden: Tensor) -> Tensor:
        factor = scaled(hidden.detach().abs().amax() * 0 + 1, 1.0)
        return own(hidden) * factor

    layer.forward = forward
    assert trainer(tmp_path, model).train().global_step == 3


def test_other_warnings_stay_warnings() -> None:
    with uncut(), pytest.warns(UserWarning, match="of another kind"):
        warnings.warn("of another kind", stacklevel=1)
    with pytest.raises(UserWarning, match="made an error"), uncut():
        raise UserWarning("made an error")
