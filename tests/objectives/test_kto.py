"""KTO: its reference point, its metrics, and what it says about the balance of labels."""

from __future__ import annotations

import pytest
import torch
from objectives.test_objectives import scored, summed

from align.objectives import DPO, KTO, NLL, WeightedSum

HALF = torch.tensor(0.5, dtype=torch.float64)


def scores(desirable: tuple = (), undesirable: tuple = (), mismatch: tuple = ()):
    return scored({"desirable": summed(*desirable), "undesirable": summed(*undesirable), "mismatch": summed(*mismatch)})


def means(objective: KTO, policy, reference) -> dict[str, float]:
    found = objective(policy, reference).metrics
    return {name: (total / count).item() for name, (total, count) in found.items() if count}


def test_a_reference_point_below_zero_is_zero() -> None:
    policy = scores((-1.0,), (-2.0,), (-3.0, -9.0))
    reference = scores((-2.0,), (-2.5,), (-4.0, -5.0))  # mismatched: +1 and -4
    apo = KTO("apo_zero_unpaired", beta=0.7)
    for mine, theirs in zip(KTO(beta=0.7)(policy, reference).losses, apo(policy, reference).losses, strict=True):
        assert torch.equal(mine.losses, theirs.losses)
    assert means(KTO(), policy, reference)["kto/z"] == 0
    above = scores((-1.0,), (-2.0,), (-3.0, -5.0))  # +1 and 0
    assert means(KTO(), above, reference)["kto/z"] == 0.5
    good, bad = KTO(beta=0.7)(above, reference).losses
    assert good.losses.item() == pytest.approx(0.4133824211, rel=1e-9, abs=0)  # 1 - sigmoid(0.7 (1 - 0.5))
    assert bad.losses.item() == 0.5  # d = z


def test_no_gradient_goes_through_the_reference_point() -> None:
    mismatch = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    good = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    policy = scored({"desirable": [good], "undesirable": summed(-2.0), "mismatch": [mismatch]})
    terms = KTO()(policy, scores((-2.0,), (-2.0,), (-3.0,)))
    sum(term.losses.sum() for term in terms.losses).backward()
    assert good.grad.item() < 0
    assert mismatch.grad is None or mismatch.grad.item() == 0


def test_at_the_start_every_loss_is_half_its_weight() -> None:
    policy = scores((-1.0, -2.0), (-3.0,), (-4.0, -5.0, -6.0))
    good, bad = KTO(desirable_weight=1.5, undesirable_weight=3.0)(policy, policy).losses
    assert torch.equal(good.losses, HALF.expand(2))
    assert torch.equal(bad.losses, HALF.expand(1))
    assert (good.weight, bad.weight) == (1.5, 3.0)


def test_metrics_count_either_side_by_itself() -> None:
    policy = scores((-1.0, -2.0, -3.0), (-4.0,), (-1.0,))
    reference = scores((-2.0, -2.5, -4.5), (-2.0,), (-1.0,))
    assert means(KTO(beta=0.5), policy, reference) == {
        "rewards/chosen": 0.5,  # 0.5 (1 + 0.5 + 1.5) / 3
        "rewards/rejected": -1.0,
        "rewards/margins": 1.5,
        "logps/chosen": -2.0,
        "logps/rejected": -4.0,
        "kto/z": 0.0,
    }
    alone = means(KTO("apo_zero_unpaired", beta=0.5), scores((-1.0,)), scores((-3.0,)))
    assert alone == {"rewards/chosen": 1.0, "logps/chosen": -1.0}  # no margin where one side is missing


@pytest.mark.parametrize(
    ("desirable", "undesirable", "weights", "sentence"),
    [
        (100, 100, {}, ""),
        (133, 100, {}, ""),
        (100, 90, {"undesirable_weight": 1.0}, ""),
        (100, 300, {"desirable_weight": 3.0}, ""),
        (
            3000,
            1000,
            {},
            "3,000 desirable rows of weight 1 count 3.00 times as much as 1,000 undesirable rows of weight 1, and the "
            "paper recommends 1 to 1.33 times: set desirable_weight between 0.333 and 0.444",
        ),
        (
            100,
            100,
            {"undesirable_weight": 2.0},
            "100 desirable rows of weight 1 count 0.50 times as much as 100 undesirable rows of weight 2, and the "
            "paper recommends 1 to 1.33 times: set desirable_weight between 2 and 2.67",
        ),
        (5, 0, {}, "all rows are desirable, so nothing is set against them: add rows with the other label"),
        (0, 5, {}, "all rows are undesirable, so nothing is set against them: add rows with the other label"),
    ],
)
def test_the_balance_of_labels(desirable: int, undesirable: int, weights: dict, sentence: str) -> None:
    rows = {"desirable": desirable, "undesirable": undesirable, "mismatch": desirable + undesirable}
    assert KTO(**weights).balance(rows) == sentence
    assert WeightedSum(((NLL("desirable"), 0.1), (KTO(**weights), 1.0))).balance(rows) == sentence


@pytest.mark.parametrize("named", ["low", "high"])
def test_the_weights_that_it_names_are_in_the_range(named: str) -> None:
    for desirable in (7, 77, 777):
        rows = {"desirable": desirable, "undesirable": 100 - desirable % 60}
        first, last = KTO().balance(rows).rpartition("between ")[2].split(" and ")
        weight = float(first if named == "low" else last)
        assert KTO(desirable_weight=weight).balance(rows) == ""


def test_pairs_have_no_balance() -> None:
    assert DPO().balance({"chosen": 5, "rejected": 5}) == ""
