"""The displacement probe on numbers worked by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch

from align.engine.reads import Entropy, LogProb
from align.engine.scores import Scores
from align.objectives import DPO, IPO, KL, NLL, RPO, FlexDPO, Objective, SimPO, WeightedSum
from align.objectives.base import Terms
from align.probes.displacement import Displacement, slope
from align.probes.margins import own_metrics
from align.probes.probe_set import choose_rows, with_other
from align.probes.scores import ProbeScores
from align.stats import wilson


def scores(chosen: list[float], rejected: list[float], other: list[float] | None = None) -> ProbeScores:
    """Pairs whose answers have 4 and 5 tokens; others have 10, 20, 30, ..."""
    n = len(chosen)
    return ProbeScores(
        torch.tensor(chosen),
        torch.tensor(rejected),
        torch.full((n,), 4),
        torch.full((n,), 5),
        None if other is None else torch.tensor(other),
        None if other is None else 10 * torch.arange(1, len(other) + 1),
    )


START = scores([-10.0, -20.0, -30.0, -40.0], [-12.0, -22.0, -32.0, -42.0], [-50.0, -60.0, -70.0, -80.0])
LATER = scores([-12.0, -21.0, -33.0, -39.0], [-15.0, -27.0, -36.0, -42.0], [-49.0, -58.0, -70.0, -73.0])


def test_worked_reading() -> None:
    probe = Displacement()
    probe.read(0, START)
    reading = probe.read(100, LATER)
    # changes: chosen -2 -1 -3 +1, rejected -3 -5 -4 0, others +1 +2 0 +7 over 100 tokens
    assert reading.chosen.value == pytest.approx(-1.25, abs=1e-9)
    assert reading.rejected.value == pytest.approx(-3.0, abs=1e-9)
    assert reading.chosen_per_token == pytest.approx(-5 / 16, abs=1e-9)
    assert reading.rejected_per_token == pytest.approx(-12 / 20, abs=1e-9)
    assert reading.drop_ratio == pytest.approx(2.4, abs=1e-9)
    assert (reading.chosen_slope, reading.rejected_slope) == (pytest.approx(-0.0125), pytest.approx(-0.03))
    assert reading.below.value == 0.75
    assert reading.margin.value == pytest.approx(1.75, abs=1e-9)
    assert reading.margin_slope == pytest.approx(0.0175)
    assert reading.accuracy.value == 1.0
    assert reading.accuracy.low == pytest.approx(0.5101, abs=1e-4)
    assert reading.drift is not None
    assert reading.drift.value == pytest.approx(0.10, abs=1e-9)
    assert reading.drift.low <= 0.10 <= reading.drift.high
    # the first and the third were borrowed from chosen answers: +1 and 0 over 10 + 30 tokens
    assert reading.borrowed_chosen is not None
    assert (reading.borrowed_chosen.value, reading.borrowed_chosen.n) == (pytest.approx(0.025, abs=1e-9), 2)
    assert (reading.n, reading.against, reading.chosen_length, reading.rejected_length) == (4, "start", 4.0, 5.0)
    assert reading.reward_margin is None


def test_at_the_start_nothing_has_moved_and_every_pair_is_a_tie() -> None:
    reading = Displacement(objective=DPO()).read(0, START)
    assert (reading.chosen.low, reading.chosen.value, reading.chosen.high) == (0.0, 0.0, 0.0)
    assert reading.accuracy.value == 0.5
    assert reading.below.value == 0.0
    assert reading.chosen_slope is None
    assert reading.drop_ratio is None


def test_the_reference_may_be_another_model_than_the_start() -> None:
    reference = scores([-8.0, -20.0, -30.0, -40.0], [-12.0, -20.0, -32.0, -42.0])
    probe = Displacement(reference=reference)
    start = probe.read(0, START)
    assert start.against == "reference"
    assert start.chosen.value == 0.0
    assert start.margin.value == pytest.approx((-2.0 + 2.0) / 4)
    assert start.accuracy.value == (1 + 0.5 * 2) / 4
    assert start.below.value == 0.25


def margins(objective: Objective) -> list[float]:
    own = own_metrics(objective, LATER, START)
    assert own is not None
    return own["margins"].tolist()


def test_margins_are_the_objectives_own() -> None:
    # d_w = -2 -1 -3 +1, d_l = -3 -5 -4 0
    assert margins(DPO(beta=0.1)) == pytest.approx([0.1, 0.4, 0.1, 0.1])
    assert margins(FlexDPO(beta_plus=0.1, beta_minus=0.05)) == pytest.approx([-0.05, 0.15, -0.1, 0.1])
    assert margins(IPO(tau=1.0)) == pytest.approx([-2 / 4 + 3 / 5, -1 / 4 + 5 / 5, -3 / 4 + 4 / 5, 1 / 4])
    expected = [2 * (-12 / 4 + 15 / 5), 2 * (-21 / 4 + 27 / 5), 2 * (-33 / 4 + 36 / 5), -2.7]
    assert margins(SimPO(beta=2.0)) == pytest.approx(expected)


def test_accuracy_compares_log_ratios_at_one_scale() -> None:
    for objective, own in ((FlexDPO(0.1, 0.05), 0.5), (FlexDPO(0.1, 0.1), None), (DPO(0.3), None)):
        probe = Displacement(objective=objective, reference=START)
        probe.read(0, START)
        reading = probe.read(1, LATER)
        assert reading.accuracy is not None
        assert reading.accuracy.value == 1.0  # d_w > d_l in all four pairs
        assert (reading.own_accuracy and reading.own_accuracy.value) == own
        assert reading.margin.value == pytest.approx(1.75)
    flex = Displacement(objective=FlexDPO(0.1, 0.05), reference=START)
    assert flex.read(1, LATER).reward_margin == pytest.approx(0.025)


def test_raising_all_answers_alike_is_no_preference() -> None:
    # answers of 4 and 5 tokens; every other pair, the rejected one rose more
    risen = scores([-5.0, -14.5, -25.0, -34.5], [-7.0, -16.0, -27.5, -36.0])
    probe = Displacement(objective=FlexDPO(beta_plus=0.1, beta_minus=0.03))
    start = probe.read(0, START)
    reading = probe.read(1, risen)
    # d_w = 5 5.5 5 5.5, d_l = 5 6 4.5 6
    assert reading.accuracy is not None
    assert reading.own_accuracy is not None
    assert (reading.accuracy.value, reading.own_accuracy.value) == (0.375, 1.0)
    assert start.own_accuracy is not None
    assert start.own_accuracy.value == 0.5
    per_token = Displacement(objective=IPO(), reference=START).read(1, risen)
    assert (per_token.accuracy, per_token.own_accuracy) == (reading.accuracy, wilson(4, 4))  # all d_w / 4 > d_l / 5


def test_without_a_reference_accuracy_is_what_the_paper_compares() -> None:
    reading = Displacement(objective=SimPO(beta=2.0)).read(1, LATER)
    # mean log-probs: -3 and -3, -5.25 and -5.4, -8.25 and -7.2, -9.75 and -8.4; sums would give 4 of 4
    assert reading.accuracy == wilson(1.5, 4)
    assert reading.own_accuracy is None


def test_the_share_of_longer_chosen_answers() -> None:
    assert Displacement().read(0, START).longer == 0.0
    four, five = torch.tensor([4, 4, 5]), torch.tensor([5, 4, 4])
    zeros = torch.zeros(3)
    assert Displacement().read(0, ProbeScores(zeros, zeros, four, five)).longer == 0.5
    assert Displacement().read(0, ProbeScores(zeros, zeros, five + 1, four)).longer == pytest.approx(5 / 6)


def test_sums_of_objectives_and_objectives_without_pairs() -> None:
    assert own_metrics(NLL(), LATER, START) is None
    mixed = WeightedSum(parts=((NLL(), 0.2), (DPO(beta=0.1), 1.0)))
    assert margins(mixed) == pytest.approx([0.1, 0.4, 0.1, 0.1])
    assert margins(RPO(beta=0.1)) == pytest.approx([0.1, 0.4, 0.1, 0.1])
    # a likelihood run has no accuracy, even with the rejected answers in view
    for alone in (NLL(), WeightedSum(((NLL(), 1.0), (KL(branch="rejected"), 0.1)))):
        assert not alone.compares_pairs
        assert Displacement(objective=alone).read(1, LATER).accuracy is None


def test_slopes_look_back_five_readings() -> None:
    probe = Displacement()
    for step, level in enumerate([0.0, -100.0, -1.0, -2.0, -3.0, -4.0, -5.0]):
        reading = probe.read(10 * step, scores([-10.0 + level] * 2, [-10.0] * 2))
    assert reading.chosen_slope == pytest.approx(-0.1, abs=1e-12)
    assert slope([(0, 1.0), (1, 2.0), (2, 6.0)]) == pytest.approx(2.5)
    assert slope([(3, 1.0), (3, 2.0)]) is None


def test_resume_keeps_the_start_and_the_slope() -> None:
    probe = Displacement(seed=1)
    probe.read(0, START)
    state = json.loads(json.dumps(probe.state()))
    expected = probe.read(100, LATER)
    resumed = Displacement(seed=1)
    resumed.restore(state)
    assert resumed.read(100, LATER) == expected
    # a checkpoint may lie before the last reading: the step read again counts once
    assert resumed.read(100, LATER).chosen_slope == expected.chosen_slope


def test_scores_come_back_from_json_to_the_bit() -> None:
    third = torch.tensor([-100 / 3], dtype=torch.float64)  # no float32
    before = ProbeScores(
        third, 2 * third, torch.tensor([4]), torch.tensor([5]), unseen=third / 7, unseen_tokens=torch.tensor([9])
    )
    after = ProbeScores(**json.loads(json.dumps(before.to_json())))
    for name in ("chosen", "rejected", "unseen", "unseen_tokens"):
        assert getattr(after, name).item() == getattr(before, name).item()


def test_readings_are_json_even_where_the_model_has_diverged() -> None:
    probe = Displacement(objective=DPO())
    probe.read(0, START)
    broken = scores([math.nan, -21.0, -33.0, -39.0], [-15.0, -27.0, -math.inf, -42.0])
    data = json.loads(json.dumps(probe.read(1, broken).to_json(), allow_nan=False))
    assert data["chosen"] == {"value": None, "low": None, "high": None, "n": 4}
    assert data["rejected"]["value"] is None
    assert data["accuracy"]["value"] is None
    assert data["drift"] is None
    assert data["chosen_length"] == 4.0


def test_float32_and_bfloat16_come_in_float64_is_kept() -> None:
    half = ProbeScores(torch.tensor([-1.5], dtype=torch.bfloat16), torch.tensor([-2.0]), [3], [4])  # type: ignore[arg-type]
    assert half.chosen.dtype == half.rejected_tokens.dtype == torch.float64


def test_mismatched_input_is_refused() -> None:
    with pytest.raises(ValueError, match="of one length"):
        ProbeScores(torch.zeros(2), torch.zeros(3), torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="come together"):
        ProbeScores(*[torch.ones(2)] * 4, other=torch.zeros(2))
    probe = Displacement()
    probe.read(0, START)
    longer = ProbeScores(LATER.chosen, LATER.rejected, LATER.chosen_tokens + 1, LATER.rejected_tokens)
    with pytest.raises(ValueError, match="probe set changed"):
        probe.read(1, longer)


def test_rows_are_chosen_by_seed_alone() -> None:
    picked = choose_rows(1000, 64, seed=7)
    assert picked == choose_rows(1000, 64, seed=7) == sorted(set(picked))
    assert len(picked) == 64
    assert picked != choose_rows(1000, 64, seed=8)
    assert choose_rows(3, 64) == [0, 1, 2]


def row(prompt: int, chosen: list[int], rejected: list[int], **more: list[int]) -> dict[str, list[int]]:
    return {"prompt_ids": [1, prompt], "chosen_ids": chosen, "rejected_ids": rejected, **more}


def test_others_are_answers_to_another_prompt_chosen_and_rejected_in_turn() -> None:
    rows = [row(5, [10], [11]), row(6, [20, 21], [22]), row(6, [30], [31]), row(7, [40], [41])]
    assert [r["other_ids"] for r in with_other(rows)] == [[20, 21], [41], [40], [11]]
    assert "other_ids" not in rows[0]


def test_an_answer_of_the_pair_itself_is_never_other() -> None:
    rows = [row(5, [1], [2]), row(6, [1], [2]), row(7, [3], [4])]
    assert [r["other_ids"] for r in with_other(rows)] == [[3], [4], [1]]
    alike = [row(5, [1], [2]), row(6, [2], [1])]
    assert with_other(alike) == alike
    one_prompt = [row(5, [1], [2]), row(5, [3], [4])]
    assert with_other(one_prompt) == one_prompt


def test_masks_and_own_prompts_travel_with_the_answer() -> None:
    rows = [
        row(5, [10, 11], [12], chosen_mask=[1, 0], chosen_prompt_ids=[9, 9]),
        row(6, [20, 21], [22], chosen_mask=[0, 1]),
    ]
    first, second = with_other(rows)
    assert (first["other_ids"], first["other_mask"], first["other_prompt_ids"]) == ([20, 21], [0, 1], [9, 9])
    assert (second["other_ids"], second["other_mask"]) == ([12], [1])


class Sure(DPO):
    """One of the user's own, which reads more than log-probs."""

    def reads(self) -> tuple:
        return LogProb(), Entropy()

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        policy.sum("chosen", "entropy")
        return super().__call__(policy, reference)


class WithPrompt(DPO):
    branches = ("chosen", "rejected", "chosen_all")


@pytest.mark.parametrize("objective", [Sure(), WithPrompt(), WeightedSum(((Sure(), 1.0), (NLL(), 0.5)))])
def test_an_objective_that_reads_what_no_probe_measures_is_probed_by_log_ratios(objective: Objective) -> None:
    reading = Displacement(objective=objective, reference=START).read(5, LATER)
    assert reading.margin.value == pytest.approx(1.75, abs=1e-9)
    assert reading.accuracy is not None
    assert reading.accuracy.value == 1.0
    assert reading.reward_margin is None
