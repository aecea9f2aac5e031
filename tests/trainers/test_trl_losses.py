"""Every pairwise loss and option of TRL's trainers: the same loss and the same gradient of every trained weight.

One trainer of TRL's and one of ours stand for all cases: what a case sets, it sets on both, and both compute one batch
of real rows. The policy is moved away from the reference first, or every log-ratio would be 0.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset, disable_progress_bars
from oracle import dpo_settings, oracle_model, short_answers, tokenizer_of
from peft import LoraConfig
from torch import Tensor
from training import arguments, same_order
from trl import DPOConfig, DPOTrainer
from zoo import distance

from align.objectives import (
    AOT,
    DPO,
    IPO,
    NLL,
    AOTUnpaired,
    APODown,
    APOZero,
    BCOPair,
    DiscoPOP,
    EXOPair,
    Hinge,
    NCAPair,
    Objective,
    Robust,
    SigmoidNorm,
    SPPOHard,
    WeightedSum,
)
from align.reference.store import LogProbStore
from align.trainers.preference import PreferenceTrainer

disable_progress_bars()

BETA, TAU, PAIRS = 0.3, 0.5, 4
DIVERGING: dict[str, Objective] = {
    "sigmoid": DPO(BETA),
    "hinge": Hinge(BETA),
    "ipo": IPO(tau=BETA),
    "exo_pair": EXOPair(BETA, label_smoothing=0.05),
    "robust": Robust(BETA, label_smoothing=0.05),
    "discopop": DiscoPOP(BETA, discopop_tau=TAU),
    "sigmoid_norm": SigmoidNorm(BETA),
}
REFERENCED: dict[str, Objective] = {
    "nca_pair": NCAPair(BETA),
    "bco_pair": BCOPair(BETA),
    "sppo_hard": SPPOHard(BETA),
    "aot": AOT(BETA, label_smoothing=0.05),
    "aot_unpaired": AOTUnpaired(BETA, label_smoothing=0.05),
    "apo_zero": APOZero(BETA),
    "apo_down": APODown(BETA),
}
LOSSES = {**DIVERGING, **REFERENCED}
DIVERGENCES = {
    "forward_kl": {"f_divergence_type": "forward_kl"},
    "js_divergence": {"f_divergence_type": "js_divergence"},
    "alpha_0.5": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
    "alpha_1": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0},
    "alpha_1.5": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.5},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "ld_0": {"ld_alpha": 0.0},
    "ld_0.5": {"ld_alpha": 0.5},
    "ld_1": {"ld_alpha": 1.0},
    "wpo": {"use_weighting": True},
    "wpo+ld": {"use_weighting": True, "ld_alpha": 0.5},
}


class Pair(NamedTuple):
    """TRL's trainer with its batch, and ours with the same rows."""

    theirs: Any
    batch: Any
    ours: Any
    rows: list[dict]


def moved(model: Any, scale: float) -> None:
    """Noise on every trained weight, adapters' zeros too: answers move by some nats."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def build(folder: Path, adapter: LoraConfig | None) -> Pair:
    rows = short_answers(PAIRS)
    tokenizer = tokenizer_of(rows)
    data = Dataset.from_list(rows)
    how = {"per_device_train_batch_size": PAIRS, "max_steps": 1}
    # weights must be asked for here, for TRL's head to compute what they need
    options = {**dpo_settings(folder / "trl", **how), "max_length": None, "use_weighting": True}
    theirs = DPOTrainer(
        oracle_model(tokenizer),
        None if adapter else oracle_model(tokenizer),
        DPOConfig(**options),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=adapter,
    )
    ours = PreferenceTrainer(
        oracle_model(tokenizer),
        DPO(),
        arguments(folder / "align", **how),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=adapter,
        order=same_order(rows),
        max_length=None,
    )
    batch = theirs.data_collator([theirs.train_dataset[i] for i in range(PAIRS)])
    both = Pair(theirs, batch, ours, [ours.train_dataset[i] for i in range(PAIRS)])
    our_step(both, DPO())  # looks whether reference and policy agree at the start, and from now on they do not
    moved(theirs.model, 0.04 if adapter else 0.01)
    mine = dict(ours.model.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.model.named_parameters():
            mine[name].copy_(parameter)
    return both


@pytest.fixture(scope="module", params=["full", "lora"])
def both(request: Any, tmp_path_factory: Any) -> Pair:
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear") if request.param == "lora" else None
    return build(tmp_path_factory.mktemp(request.param), adapter)


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def their_step(both: Pair, losses: dict[str, float], **options: Any) -> tuple[float, dict[str, Tensor]]:
    """TRL's loss of its batch and the gradients, for a weighted sum of its loss types."""
    both.theirs.args.discopop_tau = options.pop("discopop_tau", TAU)
    plain = {"label_smoothing": 0.05, "f_divergence_type": "reverse_kl", "ld_alpha": None, "use_weighting": False}
    for name, value in {**plain, "beta": BETA, **options}.items():
        assert hasattr(both.theirs, name)
        setattr(both.theirs, name, value)
    both.theirs.loss_types, both.theirs.loss_weights = list(losses), list(losses.values())
    loss = both.theirs._compute_loss(both.theirs.model, both.batch, False)
    return loss.item(), gradients(both.theirs.model, loss)


def our_step(both: Pair, objective: Objective) -> tuple[float, dict[str, Tensor]]:
    """Our trainer's loss of the same rows and the gradients."""
    both.ours.objective = objective
    inputs = both.ours.make_collator()(both.rows)
    (inputs,), _ = both.ours.get_batch_samples(iter([inputs]), 1, both.ours.args.device)
    loss = both.ours.compute_loss(both.ours.model, inputs)
    return loss.item(), gradients(both.ours.model, loss)


def assert_same(
    theirs: tuple[float, dict[str, Tensor]], ours: tuple[float, dict[str, Tensor]], tolerance: float = 1e-5
) -> None:
    """The models are float64, so what remains is the float32 in which TRL's head computes.

    All gradients together to ``tolerance``, and each by itself to five times that, plus rounding of the whole.
    """
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance, abs=0)
    assert distance(ours[1], theirs[1]) <= tolerance
    whole = sum(g.square().sum() for g in theirs[1].values()).sqrt()
    assert whole > 1e-3
    for name, gradient in theirs[1].items():
        assert (ours[1][name] - gradient).norm() <= 5 * tolerance * gradient.norm() + 1e-6 * whole, name


@pytest.mark.parametrize("name", LOSSES)
def test_losses(both: Pair, name: str) -> None:
    assert_same(their_step(both, {name: 1.0}), our_step(both, LOSSES[name]))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", DIVERGING)
def test_divergences(both: Pair, name: str, divergence: str) -> None:
    options = DIVERGENCES[divergence]
    assert_same(their_step(both, {name: 1.0}, **options), our_step(both, replace(DIVERGING[name], **options)))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", [name for name in LOSSES if not name.startswith("aot")])
def test_options(both: Pair, name: str, option: str) -> None:
    options, ours = OPTIONS[option], replace(LOSSES[name], **OPTIONS[option])
    if name == "hinge" and "use_weighting" in options:
        # TRL 1.16 weighs in place what its relu needs for its gradient, so there is a loss and no gradient
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            their_step(both, {name: 1.0}, **options)
        with torch.no_grad():
            theirs = both.theirs._compute_loss(both.theirs.model, both.batch, False).item()
        assert our_step(both, ours)[0] == pytest.approx(theirs, rel=1e-5, abs=0)
        return
    assert_same(their_step(both, {name: 1.0}, **options), our_step(both, ours))


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_sorted_losses_take_no_weights(both: Pair, name: str) -> None:
    """TRL's trainer refuses that too."""
    for alpha in (0.0, 0.5, 1.0):
        theirs = their_step(both, {name: 1.0}, ld_alpha=alpha)
        assert_same(theirs, our_step(both, replace(LOSSES[name], ld_alpha=alpha)))
    with pytest.raises(ValueError, match="a weight would have no pair to belong to"):
        replace(LOSSES[name], use_weighting=True)


def test_discopop_at_its_narrow_gate(both: Pair) -> None:
    """A gate twenty times narrower than the margin makes twenty times more of the rounding of TRL's log-probs."""
    theirs = their_step(both, {"discopop": 1.0}, discopop_tau=0.05)
    assert_same(theirs, our_step(both, DiscoPOP(BETA)), tolerance=1e-4)
    assert our_step(both, DiscoPOP(BETA))[0] == pytest.approx(theirs[0], rel=1e-5, abs=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.2])
def test_label_smoothing(both: Pair, smoothing: float) -> None:
    for name in ("exo_pair", "robust", "aot", "aot_unpaired") if smoothing else ("robust", "aot", "aot_unpaired"):
        theirs = their_step(both, {name: 1.0}, label_smoothing=smoothing)
        assert_same(theirs, our_step(both, replace(LOSSES[name], label_smoothing=smoothing)))


def test_label_smoothing_that_trl_ignores(both: Pair) -> None:
    """TRL's sigmoid has the same loss for any label_smoothing, ours is conservative DPO."""
    plain, smoothed = (their_step(both, {"sigmoid": 1.0}, label_smoothing=e)[0] for e in (0.0, 0.2))
    assert plain == smoothed
    margin_loss, flipped = (their_step(both, {"sigmoid": 1.0}, beta=b)[0] for b in (BETA, -BETA))
    ours = our_step(both, DPO(BETA, label_smoothing=0.2))[0]
    assert ours == pytest.approx(0.8 * margin_loss + 0.2 * flipped, rel=1e-6, abs=0)
    assert ours != pytest.approx(plain, rel=1e-4, abs=0)


def test_sums_of_losses(both: Pair) -> None:
    weights = {"sigmoid": 0.5, "bco_pair": 1.5, "sft": 0.25}
    ours = WeightedSum(((DPO(BETA), 0.5), (BCOPair(BETA), 1.5), (NLL(), 0.25)))
    assert_same(their_step(both, weights), our_step(both, ours))
    three = {"apo_zero": 2.0, "exo_pair": 0.3, "ipo": 0.01}
    ours = WeightedSum(tuple((LOSSES[name], weight) for name, weight in three.items()))
    assert_same(their_step(both, three), our_step(both, ours))


def test_weights_of_pairs_leave_the_likelihood_term_alone(both: Pair) -> None:
    """TRL 1.16 weighs every part of a sum, and fails at ``sft``, whose losses are one number spread over the pairs."""
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        their_step(both, {"sigmoid": 1.0, "sft": 0.5}, use_weighting=True)
    weighted, plain = their_step(both, {"sigmoid": 1.0}, use_weighting=True)[0], their_step(both, {"sft": 0.5})[0]
    ours = our_step(both, WeightedSum(((DPO(BETA, use_weighting=True), 1.0), (NLL(), 0.5))))[0]
    assert ours == pytest.approx(weighted + plain, rel=1e-5, abs=0)


def test_weights_in_padded_rows_and_with_a_store(both: Pair, tmp_path: Path) -> None:
    """Neither how rows are laid out nor where the reference's log-probs come from changes weighted losses."""
    objective = DPO(BETA, use_weighting=True, ld_alpha=0.5)
    expected = our_step(both, objective)
    both.ours.engine.mode = "padded"
    try:
        assert_same(expected, our_step(both, objective), tolerance=1e-6)  # norms compute in float32
    finally:
        both.ours.engine.mode = "tree"
    both.ours.reference.store = store = LogProbStore(tmp_path, "0" * 64)
    try:
        for computed in (2 * PAIRS, 0):
            before = store.rows_computed
            assert_same(expected, our_step(both, objective), tolerance=1e-5)  # stored in float32
            assert store.rows_computed - before == computed
    finally:
        both.ours.reference.store = None
