"""Gradient products of held-out pairs: against backward passes of the untouched model, and against real steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from training import history, trainer, weights
from transformers import TrainerCallback
from zoo import own_rows, tiny_model, token_ids

from align.data.batches.collator import TreeCollator
from align.objectives import DPO, INPO, KTO, NLL, RPO, BradleyTerry, FlexDPO, HyPO, SimPO, WeightedSum
from align.objectives.entanglement import SIDES
from align.trainers.entanglement import EntanglementProbe, adam_scales, can_be_read

ADAPTER = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


def entangled(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs whose answers differ in their first tokens alone and go on alike for a dozen more."""
    ids = token_ids(seed)
    rows = []
    for i in range(count):
        rest = ids(12 + i % 3)
        rows.append({"prompt_ids": ids(6), "chosen_ids": [*ids(1 + i % 2), *rest], "rejected_ids": [*ids(1), *rest]})
    return rows


def made(folder: Path, objective: Any = None, count: int = 6, **options: Any) -> tuple[Any, EntanglementProbe]:
    """A trainer of a tiny Llama, and a probe of entangled pairs that takes exact gradients of all of them."""
    one = trainer(folder, DPO() if objective is None else objective, **options)
    one.get_ready(one.model_wrapped)
    return one, EntanglementProbe(one, entangled(count), count)


def backward(one: Any, row: dict[str, Any], side: str, trained: list[Tensor]) -> Tensor:
    """The gradient of one answer's log-prob by the model's own logits and a plain backward pass, as one vector."""
    batch = TreeCollator((side,))([row])["tree"]
    one.model.zero_grad()
    own_rows(one.model, batch)[0].sum().backward()
    found = torch.cat([weight.grad.flatten() for weight in trained])
    one.model.zero_grad()
    return found


@pytest.mark.parametrize("adapter", [False, True])
def test_exact_products_are_those_of_plain_backward_passes(tmp_path: Path, adapter: bool) -> None:
    one, probe = made(tmp_path, **({"peft_config": peft.LoraConfig(**ADAPTER)} if adapter else {}))
    found = probe.measure()
    assert found.exact is not None
    trained = [w for name, w in one.model.named_parameters() if w.requires_grad and (adapter or "layers.1." in name)]
    both = [torch.stack([backward(one, probe.rows[i], side, trained) for i in found.rows]) for side in SIDES]
    squares = [(side * side).sum(1) for side in both]
    for mine, expected in zip(found.exact.products, (*squares, (both[0] * both[1]).sum(1)), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)
    assert found.exact.parameters == sum(weight.numel() for weight in trained)
    reading = found.to_json(seed=0)
    assert reading["of"] == ("LoRA weights" if adapter else "last block")
    assert reading["block"] == ("" if adapter else "model.layers.1")
    assert reading["n"] == 6
    assert sum(reading["cases"].values()) == 6
    assert reading["inner"] == pytest.approx((both[0] * both[1]).sum(1).double().quantile(0.5).item(), rel=1e-4, abs=0)


def test_what_the_head_says_is_the_gradient_over_its_weight(tmp_path: Path) -> None:
    one, probe = made(tmp_path)
    found = probe.measure()
    head = [one.model.lm_head.weight]
    both = [torch.stack([backward(one, row, side, head) for row in probe.rows]) for side in SIDES]
    expected = (*((side * side).sum(1) for side in both), (both[0] * both[1]).sum(1))
    for mine, theirs in zip(found.over_head, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("objective", "adapter"),
    [
        (DPO(), False),
        (DPO(), True),
        (FlexDPO(0.1, 0.05), False),
        (FlexDPO(0.05, 0.1), True),
        (RPO(), False),
        (SimPO(), True),
        (WeightedSum(((DPO(), 1.0), (NLL(norm="sum"), 0.1))), False),
    ],
    ids=("dpo", "dpo-lora", "less pull on rejected", "more pull on rejected", "rpo", "simpo", "dpo and nll"),
)
def test_a_small_step_of_gradient_descent_does_what_was_predicted(
    tmp_path: Path, objective: Any, adapter: bool
) -> None:
    """One step for each pair on its own loss, over the weights that the gradient is of; changes by the log-probs."""
    one, probe = made(
        tmp_path,
        objective,
        12,
        model=tiny_model(dtype=torch.float64),
        **({"peft_config": peft.LoraConfig(**ADAPTER)} if adapter else {}),
    )
    one.train()  # away from the reference
    found = probe.measure()
    assert found.exact is not None
    predicted = [p.double() for p in found.exact.products.changes(*(p[list(found.rows)] for p in found.pulls))]
    trained, rate = found.exact.weights.tensors, 1e-4  # RMSNorm rounds to float32, so not much smaller
    changes = torch.empty(2, len(found.rows), dtype=torch.float64)
    for place, i in enumerate(found.rows):
        batch = one.data_collator([probe.rows[i]])["tree"]
        policy, terms = one.score(one.model, batch)
        # of one pair: a mean over its tokens is what the micro-batch of the pair alone divides by
        loss = sum(t.weight * t.losses.sum() / max(batch.units[t.unit], 1) for t in terms.losses)
        gradient = torch.autograd.grad(loss, trained)
        with torch.no_grad():
            for weight, part in zip(trained, gradient, strict=True):
                weight -= rate * part
            after = one.engine(one.model, batch)
            changes[:, place] = torch.stack([(after.sum(s) - policy.sum(s))[0] for s in SIDES]) / rate
            for weight, part in zip(trained, gradient, strict=True):
                weight += rate * part
    agreed = [(a > 0) == (b > 0) for a, b in zip(torch.cat(predicted), changes.flatten(), strict=True)]
    assert sum(map(bool, agreed)) >= 0.95 * len(agreed)
    for mine, real in zip(predicted, changes, strict=True):
        torch.testing.assert_close(mine, real, rtol=0.02, atol=0.02 * real.abs().mean().item())


@pytest.mark.parametrize(
    ("objective", "case"),
    [(FlexDPO(0.1, 0.05), "both_up"), (FlexDPO(0.05, 0.1), "both_down"), (DPO(), "ideal")],
    ids=("less pull on rejected", "more pull on rejected", "equal pulls"),
)
def test_unequal_pulls_move_pairs_with_a_shared_ending_one_way(tmp_path: Path, objective: Any, case: str) -> None:
    """So the steps above meet other cases than the ideal one, too."""
    reading = made(tmp_path, objective, 12)[1].read(0)
    assert reading["cases"][case] >= 6
    assert reading["cases"]["reversed"] == reading["cases"]["still"] == 0
    assert reading["share_at_one"] == 1.0  # equal betas would serve these pairs


@pytest.mark.parametrize("adapter", [False, True])
def test_nothing_of_the_training_changes(tmp_path: Path, adapter: bool) -> None:
    """Weights are those of a run without it to the bit, and what it borrows is put back."""

    def run(probed: bool) -> tuple[Any, list[Any]]:
        config = peft.LoraConfig(**ADAPTER, lora_dropout=0.1)  # which draws from the random state
        options: dict[str, Any] = {"peft_config": config} if adapter else {}
        one = trainer(tmp_path, DPO(), optim="adamw_torch", gradient_checkpointing=True, **options)
        probe = EntanglementProbe(one, entangled(4), 4)
        seen: list[Any] = []

        class Read(TrainerCallback):
            def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
                before = [(w.requires_grad, None if w.grad is None else w.grad.clone()) for w in one.model.parameters()]
                state = torch.get_rng_state()
                seen.append(probe.read(0))
                for (flag, grad), weight in zip(before, one.model.parameters(), strict=True):
                    assert weight.requires_grad is flag
                    assert (weight.grad is None) is (grad is None)
                    assert grad is None or torch.equal(weight.grad, grad)
                assert torch.equal(torch.get_rng_state(), state)
                assert one.model_wrapped.training

        if probed:
            one.add_callback(Read())
        one.train()
        return one, seen

    (plain, _), (probed, seen) = run(False), run(True)
    assert len(seen) == 3
    assert history(plain, "loss", "grad_norm") == history(probed, "loss", "grad_norm")
    assert torch.equal(weights(plain), weights(probed))


def test_adams_scale_is_that_of_its_own_step(tmp_path: Path) -> None:
    """1 / (sqrt(v) + eps), v without its bias: two steps from zero, worked by hand; and it is part of the products."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.AdamW([weight], lr=0.0, betas=(0.9, 0.5), eps=0.1)
    assert adam_scales(optimizer, [weight]) is None
    for gradient in ([2.0, 0.0], [4.0, 1.0]):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    # v = (0.5 * 0.5 * 4 + 0.5 * 16, 0.5 * 1) / (1 - 0.25) = (12, 2/3)
    (scale,) = adam_scales(optimizer, [weight])
    torch.testing.assert_close(scale, torch.tensor([1 / (12**0.5 + 0.1), 1 / ((2 / 3) ** 0.5 + 0.1)]))
    assert adam_scales(torch.optim.SGD([weight]), [weight]) is None

    one, probe = made(tmp_path, optim="adamw_torch", count=4)
    assert "adam" not in probe.read(0)
    one.train()
    found = probe.measure()
    assert found.exact is not None
    trained, scales = found.exact.weights.tensors, adam_scales(one.optimizer, found.exact.weights.tensors)
    both = [torch.stack([backward(one, probe.rows[i], side, trained) for i in found.rows]) for side in SIDES]
    scaled = torch.cat([scale.flatten() for scale in scales])
    expected = ((both[0] ** 2 * scaled).sum(1), (both[1] ** 2 * scaled).sum(1), (both[0] * both[1] * scaled).sum(1))
    for mine, theirs in zip(found.exact.scaled, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())
    reading = found.to_json(seed=0)["adam"]
    assert reading["of"] == "last block, as Adam scales them"
    assert sum(reading["cases"].values()) == reading["n"] == 4


def test_where_no_block_is_trained_the_head_speaks_alone(tmp_path: Path) -> None:
    model = tiny_model()
    for name, weight in model.named_parameters():
        weight.requires_grad_("lm_head" in name)
    reading = made(tmp_path, model=model)[1].read(0)
    assert (reading["of"], reading["n"]) == ("head", 6)
    assert reading["note"] == "no block of the model is trained, so these are gradients over the head alone"
    assert "head" not in reading


def test_the_last_block_is_the_last_that_is_trained(tmp_path: Path) -> None:
    model = tiny_model()
    for name, weight in model.named_parameters():
        weight.requires_grad_("layers.1" not in name)
    assert made(tmp_path, model=model)[1].read(0)["block"] == "model.layers.0"


def test_more_pairs_are_read_from_the_head_and_the_seed_draws_them(tmp_path: Path) -> None:
    one = trainer(tmp_path, DPO())
    one.get_ready(one.model_wrapped)
    rows = entangled(20)
    probe, again = (EntanglementProbe(one, rows, 3) for _ in range(2))
    assert len(probe.rows) == 6
    assert len(probe.exact) == 3
    assert probe.rows == again.rows
    assert probe.exact == again.exact
    reading = probe.read(0)
    assert (reading["n"], reading["head"]["n"]) == (3, 6)
    assert 0 <= reading["head"]["same_case"] <= 3


PAIR = {"prompt_ids": [3], "chosen_ids": [4], "rejected_ids": [5]}
ANCHORED = PAIR | {f"{side}_logp_{who}": -1.0 for side in SIDES for who in ("initial", "previous")}


@pytest.mark.parametrize(
    ("objective", "row", "readable"),
    [
        (DPO(), PAIR, True),
        (WeightedSum(((NLL(), 1.0), (DPO(), 1.0))), PAIR, True),
        (HyPO(), PAIR, True),
        (NLL(), PAIR, False),  # it does not compare pairs
        (KTO(), PAIR, False),  # its answers are not pairs
        (BradleyTerry(), PAIR, False),  # it scores answers
        (INPO(), PAIR, False),  # these rows do not bring along what it reads
        (INPO(), ANCHORED, True),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, dict | bool) else "",
)
def test_what_can_be_read(objective: Any, row: dict[str, Any], readable: bool) -> None:
    assert can_be_read(objective, [row]) is readable
    assert not can_be_read(objective, [])
