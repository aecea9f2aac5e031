"""What is left of a loss's pull, against its formula."""

from __future__ import annotations

import pytest
import torch

from align.objectives import DPO, IPO, KTO, NLL, RPO, FlexDPO, Hinge, SimPO, WeightedSum
from align.probes.displacement import Displacement
from align.probes.margins import pull_left
from align.probes.scores import ProbeScores

T = torch.tensor


def scores(chosen: list[float], rejected: list[float]) -> ProbeScores:
    """Pairs whose answers have 4 and 5 tokens."""
    n = len(chosen)
    return ProbeScores(T(chosen), T(rejected), torch.full((n,), 4), torch.full((n,), 5))


START = scores([-10.0, -20.0, -30.0], [-12.0, -22.0, -32.0])
LATER = scores([-12.0, -21.0, -20.0], [-15.0, -52.0, -40.0])  # d_w - d_l = 1, 29, 18


def left(objective: object, now: ProbeScores = LATER) -> list[float]:
    found = pull_left(objective, now, START, START)  # type: ignore[arg-type]
    assert found is not None
    return (found[0] / found[1]).tolist()


def s(m: float) -> float:
    return torch.sigmoid(T(-m, dtype=torch.float64)).item()


def test_for_losses_of_log_sigmoid_it_is_s_over_s_at_the_start() -> None:
    dpo = [2 * s(0.1), 2 * s(2.9), 2 * s(1.8)]
    assert left(DPO(beta=0.1)) == pytest.approx(dpo, abs=1e-9)
    # the likelihood term of RPO pulls on chosen answers alone, and so does an objective beside it
    assert left(RPO(beta=0.1)) == pytest.approx(dpo, abs=1e-9)
    assert left(WeightedSum(((NLL(), 0.5), (DPO(beta=0.1), 2.0)))) == pytest.approx(dpo, abs=1e-9)
    # m = 0.1 d_w - 0.05 d_l with d_w = -2, -1, 10 and d_l = -3, -30, -8
    assert left(FlexDPO(0.1, 0.05)) == pytest.approx([2 * s(-0.05), 2 * s(1.4), 2 * s(1.4)], abs=1e-9)
    simpo = SimPO(beta=2.0, gamma=0.0)

    def margin(at: ProbeScores, i: int) -> float:
        return 2 * (at.chosen[i] / 4 - at.rejected[i] / 5).item()

    assert left(simpo) == pytest.approx([s(margin(LATER, i)) / s(margin(START, i)) for i in range(3)], abs=1e-9)


def test_for_ipo_it_is_the_rest_of_the_way_and_negative_beyond_the_target() -> None:
    # (h - 1 / (2 tau))^2 with the target 5 and h = d_w / 4 - d_l / 5 = 0.1, 5.75, 4.1
    assert left(IPO(tau=0.1)) == pytest.approx([(5 - h) / 5 for h in (0.1, 5.75, 4.1)], abs=1e-6)


def test_a_hinge_that_has_let_go_pulls_no_more() -> None:
    assert left(Hinge(beta=0.1)) == [1.0, 0.0, 0.0]


def test_objectives_without_a_pull_of_a_pair_have_none() -> None:
    assert pull_left(KTO(), LATER, START, START) is None  # judges answers one by one
    assert pull_left(NLL(), LATER, START, START) is None
    assert pull_left(DPO(beta_alpha=0.5), LATER, START, START) is None  # depends on the other pairs


def test_the_reading_has_the_mean_over_pairs_and_the_share_that_is_spent() -> None:
    probe = Displacement(objective=DPO(beta=0.1))
    first = probe.read(0, START)
    assert first.signal is not None
    assert first.spent is not None
    assert (first.signal.value, first.spent.value) == (1.0, 0.0)
    reading = probe.read(9, scores([-10.0, -20.0, 0.0], [-12.0, -22.0, -32.0]))  # d_w - d_l = 0, 0, 30
    assert reading.signal is not None
    assert reading.spent is not None
    assert reading.signal.value == pytest.approx((1 + 1 + 2 * s(3.0)) / 3, abs=1e-9)
    assert reading.spent.value == pytest.approx(1 / 3)  # 2 sigmoid(-3) = 0.095
    assert reading.spent.n == 3
    assert Displacement().read(0, START).signal is None


def test_scores_that_are_no_numbers_leave_no_signal_rather_than_a_spent_one() -> None:
    probe = Displacement(objective=DPO(beta=0.1))
    probe.read(0, START)
    data = probe.read(1, scores([float("nan"), -20.0, -30.0], [-12.0, -22.0, -32.0])).to_json()
    assert data["signal"]["value"] is None
    assert data["spent"]["value"] is None
