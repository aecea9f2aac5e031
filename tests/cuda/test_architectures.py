"""Every architecture on the device: the way that the probe chooses, log-probs and gradients against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from precision import PRECISIONS, assert_as_good, compute_dtype, computing, exact, own_padded, read, weights_of
from zoo import ARCHITECTURES, own_rows, tiny_model, tree_batch

from align.engine.probe import probe
from align.engine.scoring import ScoringEngine, attach

# (device, architecture, precision) whose products depend on what else is in the batch, so that trees cannot be exact
PADDED = {("cuda", "qwen3_moe", "fp32")}


# A router's choice and a ReLU's slope jump with 16-bit rounding, ours or the model's own, and one jump is more than all
# other errors together. So a token goes to all experts there, and the ReLU is a smooth function.
SMOOTH = {"qwen3_moe": {"num_experts_per_tok": 4}, "opt": {"activation_function": "gelu"}}


def model_of(name: str, precision: str) -> Any:
    changes = SMOOTH.get(name, {}) if precision != "fp32" else {}
    return weights_of(tiny_model(name, **changes), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_log_probs_and_gradients_are_as_good_as_the_models_own(device: torch.device, name: str, precision: str) -> None:
    model, batch = model_of(name, precision), tree_batch()
    truth = read(exact(model), "fp32", lambda wide: torch.cat(own_rows(wide, batch)))
    model, batch = model.to(device), batch.to(device)
    own = [read(model, precision, lambda m, rows=rows: torch.cat(rows(m, batch))) for rows in (own_rows, own_padded)]
    attach(model)
    engine = ScoringEngine()
    with computing(precision, device):
        result = probe(engine, model, device, compute_dtype=compute_dtype(precision))
    expected = "padded" if (device.type, name, precision) in PADDED else "tree"
    assert (result.mode, engine.mode) == (expected, expected), result.sentence()
    assert_as_good(read(model, precision, lambda m: engine(m, batch).tokens["logp"]), own, truth)
