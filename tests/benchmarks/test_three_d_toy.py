"""The 3D toy: gradients by hand, what a table without shared parameters must do, and where the network differs."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align.objectives import DPO, RPO, FlexDPO

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "three_d_toy.py"
spec = importlib.util.spec_from_file_location("three_d_toy", SCRIPT)
assert spec is not None
assert spec.loader is not None
toy = importlib.util.module_from_spec(spec)
sys.modules["three_d_toy"] = toy  # dataclasses look their module up
spec.loader.exec_module(toy)

EPOCHS = 50
DOUBLE = torch.float64
BOTH_ON, CHOSEN_OFF = toy.SETTINGS["both on-policy"], toy.SETTINGS["chosen off-policy"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from a second thread, and wait for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def logit_gradients(objective: Any, begin: Tensor, moved: Tensor) -> Tensor:
    """Gradient of the loss on every logit of a table that started at ``begin`` and is at ``moved``."""
    policy = toy.table(moved)
    reference = toy.scores(*toy.pairs_of(begin.log()))
    loss = toy.loss_of(objective, *toy.pairs_of(policy.logp()), reference)
    return torch.autograd.grad(loss, policy.parameters)[0]


def gradients(objective: Any, p_plus: Tensor, p_minus: Tensor, reference: Any) -> tuple[Tensor, Tensor]:
    """dl/dp+ and dl/dp- at probabilities, [n] each."""
    chosen, rejected = (p.log().requires_grad_() for p in (p_plus, p_minus))
    plus, minus = toy.probability_gradients(toy.loss_of(objective, chosen, rejected, reference), chosen, rejected)
    return plus, minus


def test_the_starting_policy() -> None:
    for chosen_on, rejected_on in toy.SETTINGS.values():
        policy = toy.start(chosen_on, rejected_on, 0)
        assert policy.sum(1).tolist() == pytest.approx([1.0] * 4, rel=1e-12)
        chosen, rejected = (side.exp().tolist() for side in toy.pairs_of(policy.log()))
        assert chosen == pytest.approx([0.3 if chosen_on else 0.005] * 4, rel=1e-12)
        assert rejected == pytest.approx([0.3 if rejected_on else 0.005] * 4, rel=1e-12)
    assert toy.pairs_of(torch.arange(40).view(4, 10))[1].tolist() == [4, 15, 26, 37]


@pytest.mark.parametrize("objective", [DPO(beta=0.1), FlexDPO(beta_plus=0.1, beta_minus=0.05)])
def test_gradients_in_probabilities_have_the_ratio_of_the_theory(objective: Any) -> None:
    """dl/dp- over dl/dp+ is -(beta_minus / beta_plus) p+ / p-, and dl/dp+ = -beta_plus s / p+."""
    p_plus, p_minus = torch.tensor([0.3, 0.002, 0.9], dtype=DOUBLE), torch.tensor([0.3, 0.4, 1e-9], dtype=DOUBLE)
    reference = toy.scores(*(torch.tensor([0.2, 0.1, 0.5], dtype=DOUBLE).log() for _ in range(2)))
    plus, minus = gradients(objective, p_plus, p_minus, reference)
    lower = getattr(objective, "beta_minus", 0.1)
    expected = -lower / 0.1 * p_plus / p_minus
    assert (minus / plus).tolist() == pytest.approx(expected.tolist(), rel=1e-9)
    # second pair: m = 0.1 log(0.002 / 0.1) - lower log(0.4 / 0.1)
    s = 1 / (1 + math.exp(0.1 * math.log(0.02) - lower * math.log(4)))
    assert plus[1].item() == pytest.approx(-0.1 * s / 0.002, rel=1e-9)


def test_a_likelihood_term_pulls_on_the_chosen_response_alone() -> None:
    p = torch.tensor([0.25], dtype=DOUBLE)
    plus, minus = gradients(RPO(preset="handbook", beta=0.1, eta=0.2), p, p, toy.scores(p.log(), p.log()))
    assert plus.item() == pytest.approx(-0.1 * (0.5 + 0.2) / 0.25, rel=1e-9)
    assert minus.item() == pytest.approx(0.1 * 0.5 / 0.25, rel=1e-9)


def test_without_sharing_equal_betas_pull_on_no_unseen_logit_and_unequal_ones_do() -> None:
    begin, moved = toy.start(*CHOSEN_OFF, 0), toy.start(*BOTH_ON, 1)
    unseen = torch.ones(4, 10, dtype=torch.bool)
    unseen[range(4), range(4)] = unseen[range(4), range(4, 8)] = False
    equal = logit_gradients(DPO(beta=0.1), begin, moved)
    assert equal[unseen].abs().max() < 1e-16
    assert equal[0, 0].item() == pytest.approx(-equal[0, 4].item(), rel=1e-9, abs=0)
    assert equal[0, 0] < -0.01
    # loss = f(beta_plus l_w - beta_minus l_l), so the logit of u is pulled by s (beta_plus - beta_minus) p(u)
    flex = logit_gradients(FlexDPO(beta_plus=0.1, beta_minus=0.05), begin, moved)
    d_w, d_l = math.log(0.3 / 0.005), 0.0
    s = 1 / (1 + math.exp(0.1 * d_w - 0.05 * d_l))
    expected = s * 0.05 * moved[unseen]
    assert flex[unseen].tolist() == pytest.approx(expected.tolist(), rel=1e-9)


@pytest.mark.parametrize("setting", list(toy.SETTINGS))
def test_the_control_only_drops(setting: str) -> None:
    """Chosen never falls, rejected never rises, and unseen responses keep their odds against each other."""
    policy = toy.table(toy.start(*toy.SETTINGS[setting], 3))
    before = policy.logp().detach()
    path = toy.train(policy, DPO(beta=0.1), epochs=120)
    chosen, rejected = toy.column(path, "chosen"), toy.column(path, "rejected")
    assert chosen.diff().min() > 0
    assert chosen[-1] > 0.9
    assert rejected.diff().max() < 0
    after = policy.logp().detach()
    shift = (after - before)[:, 8:]
    assert torch.allclose(shift[:, 0], shift[:, 1], rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def paths() -> dict[tuple[str, str, str], Tensor]:
    """Two seeds of everything, 50 of the 500 epochs."""
    found: dict[tuple[str, str, str], Tensor] = toy.measure((0, 1), EPOCHS)
    return found


def test_in_the_network_chosen_responses_degrade_and_the_rest_takes_it(paths: dict[Any, Tensor]) -> None:
    for setting in ("both on-policy", "rejected off-policy"):
        for path in paths[setting, "network", "DPO"]:
            chosen, unseen = toy.column(path, "chosen"), toy.column(path, "unseen")
            assert chosen.max() > 0.9, setting
            assert chosen.max() - chosen[-1] > 0.01, setting
            assert unseen[-1] > 1.5 * unseen.min(), setting
            # and nearly all of it is on what other prompts' pairs call chosen
            assert toy.column(path, "others' chosen")[-1] > 0.9 * unseen[-1], setting


def test_every_method_starts_at_the_same_policy(paths: dict[Any, Tensor]) -> None:
    for setting in toy.SETTINGS:
        for model, worst in (("network", 2e-3), ("table", 1e-12)):
            begin = [toy.start(*toy.SETTINGS[setting], seed)[0, 0] for seed in range(2)]
            for name in toy.METHODS:
                first = toy.column(paths[setting, model, name], "chosen")[:, 0]
                assert first.tolist() == pytest.approx([x.item() for x in begin], rel=0, abs=worst), (setting, name)


def test_off_policy_chosen_responses_end_below_on_policy_ones(paths: dict[Any, Tensor]) -> None:
    for seed in range(2):
        off, on = (toy.column(paths[s, "network", "DPO"][seed], "chosen")[-1] for s in list(toy.SETTINGS)[1::-1])
        assert off < 0.6 < 0.7 < on
        remedied = toy.column(paths["chosen off-policy", "network", "RPO"][seed], "chosen")[-1]
        assert remedied > off + 0.1


def test_the_pull_on_a_vanishing_response_explodes_while_the_other_fades(paths: dict[Any, Tensor]) -> None:
    path = paths["both on-policy", "network", "DPO"]
    plus, minus = toy.column(path, "|dl/dp+|"), toy.column(path, "|dl/dp-|")
    # s is 1/2 before the first epoch: 0.1 / 2 / 0.3 on both sides, up to the network's fit
    assert plus[:, 0].tolist() == pytest.approx([1 / 6] * 2, rel=5e-3)
    assert minus[:, 0].tolist() == pytest.approx([1 / 6] * 2, rel=5e-3)
    assert (plus[:, -1] < 1e-3).all()
    assert (minus[:, -1] > 1e20).all()


def test_the_report_counts_seeds_and_holds_no_seed_twice(paths: dict[Any, Tensor]) -> None:
    report = json.loads(json.dumps(toy.report_of(paths, (0, 1), EPOCHS)))
    assert len(report["runs"]) == 4 * 2 * 3
    first = report["runs"][0]
    assert (first["setting"], first["model"], first["method"]) == ("both on-policy", "network", "DPO")
    ends = toy.column(paths["both on-policy", "network", "DPO"], "chosen")[:, -1]
    assert first["end"]["chosen"] == pytest.approx(
        {"median": ends.mean().item(), "least": ends.min().item(), "most": ends.max().item()}, rel=1e-9
    )
    claims = {(c["setting"], c["claim"]): c["seeds"] for c in report["claims"]}
    assert {n for (_, claim), n in claims.items() if claim == "control: chosen never falls"} == {2}
    assert claims["chosen off-policy", "DPO leaves less on chosen than both on-policy"] == 2
    # nothing degrades that is judged against a peak it has not left
    assert claims["both on-policy", "degradation: chosen ends below 0.9 of its peak"] == sum(
        bool(p[-1] < 0.9 * p.max()) for p in toy.column(paths["both on-policy", "network", "DPO"], "chosen")
    )
    text = toy.text_of(report)
    assert "  2 of 2: both on-policy: control: chosen never falls" in text
    assert len([line for line in text.splitlines() if line.startswith("chosen off-policy   network")]) == 3


def test_the_picture_is_drawn(paths: dict[Any, Tensor], tmp_path: Path) -> None:
    toy.draw(tmp_path / "new" / "toy.png", paths)
    for picture in (tmp_path / "new" / "toy.png", toy.PICTURE):
        png = picture.read_bytes()
        assert png.startswith(b"\x89PNG")
        assert int.from_bytes(png[16:20], "big") == 1485
