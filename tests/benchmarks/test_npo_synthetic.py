"""NPO's synthetic task on a small size: its gradients by hand, its distances, its fronts and what it reports."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "npo_synthetic.py"
spec = importlib.util.spec_from_file_location("npo_synthetic", SCRIPT)
assert spec is not None
assert spec.loader is not None
task = importlib.util.module_from_spec(spec)
sys.modules["npo_synthetic"] = task  # dataclasses look their module up
spec.loader.exec_module(task)

SMALL = task.Size(dimension=4, features=24, retain=150, forget=30, fresh=200, pretrain_steps=1500, steps=200, every=20)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices this small gain nothing from a second thread, and wait for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def instance():
    return task.draw(7, 1, SMALL)


def slope(instance, method, weights):
    """Gradient of a method's loss at ``weights``, with the start as its reference."""
    weights = weights.clone().requires_grad_()
    rows = {"forget": instance.branches["forget"], **instance.branches}
    terms = method.objective(task.scores(rows, weights), task.scores(rows, instance.start))
    return torch.autograd.grad(task.loss_of(terms, rows), weights)[0]


def rise(rows, weights, scale=1.0):
    """Gradient of the mean over ``rows`` of log p, each row times ``scale``."""
    chance = torch.sigmoid(-(rows @ weights))
    return (rows * (scale * chance)[:, None]).mean(0)


@pytest.mark.parametrize("alpha", [1, 0])
def test_gradients_are_those_written_out_by_hand(instance, alpha):
    branches, start = instance.branches, instance.start
    generator = torch.Generator().manual_seed(0)
    moved = start + 0.1 * torch.randn(start.shape, generator=generator, dtype=torch.float64)

    def change(branch):
        rows = branches[branch]
        return logsigmoid(rows @ moved) - logsigmoid(rows @ start)

    npo_beta, dpo_beta = {1: (1.0, 0.1), 0: (10.0, 5.0)}[alpha]
    weight = 2 * torch.sigmoid(npo_beta * change("forget"))
    pull = 2 * torch.sigmoid(-dpo_beta * (change("alternate") - change("forget")))
    retain = -rise(branches["retain"], moved)
    forget, alternate = branches["forget"], branches["alternate"]
    expected = {
        "GA": rise(forget, moved),
        "GA+RT": rise(forget, moved) + retain,
        "NPO": rise(forget, moved, weight),
        "NPO+RT": rise(forget, moved, weight) + retain,
        "DPO+RT": rise(forget, moved, pull) - rise(alternate, moved, pull) + retain,
        "IDK+RT": -rise(alternate, moved) + retain,
    }
    methods = task.methods(alpha)
    assert list(methods) == list(expected)
    for name, method in methods.items():
        torch.testing.assert_close(slope(instance, method, moved), expected[name], rtol=1e-12, atol=1e-14)


def test_npo_starts_as_gradient_ascent(instance):
    methods = task.methods(1)
    ours, ascent = (slope(instance, methods[name], instance.start) for name in ("NPO", "GA"))
    torch.testing.assert_close(ours, ascent, rtol=1e-12, atol=1e-15)


def test_distance_is_the_divergence_from_the_retrained_model():
    features = torch.tensor([[1.0], [0.0]], dtype=torch.float64)  # the second sample is at p = 1/2 for both
    retrained, now = torch.tensor([[math.log(3)], [0.0]], dtype=torch.float64)
    worked = 0.5 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert task.distance(features, retrained, now) == pytest.approx(worked, rel=1e-12)
    assert task.distance(features, retrained, retrained) == 0
    assert task.distance(features, now, retrained) == pytest.approx(0.25 * math.log(4 / 3), rel=1e-12)


def test_the_draw_has_the_label_shares_and_sides_of_the_paper():
    size = task.Size(dimension=16, features=8, retain=8000, forget=8000, fresh=8000, pretrain_steps=0)
    drawn = task.draw(3, 1, size)
    grid = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    density = torch.exp(-grid.square() / 2) / math.sqrt(2 * math.pi)
    share = float(torch.trapezoid(density * torch.sigmoid(grid + 1), grid))  # 0.70
    wanted = {"forget": share, "retain": 1 - share, "alternate": 0.5}
    for branch, rows in drawn.branches.items():
        ones = (rows.sum(1) > 0).double().sum() / (rows.sum(1) != 0).double().sum()
        assert float(ones) == pytest.approx(wanted[branch], abs=0.02)
    # E relu of N(m, s) is the same for both sides only where the projection's mean m is 0
    projection = torch.randn(8, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64) / 4
    mean, spread = projection.sum(1), projection.norm(dim=1)
    normal = torch.distributions.Normal(0.0, 1.0)
    for branch, side in (("forget", 1), ("retain", -1)):
        ratio = side * mean / spread
        expected = side * mean * normal.cdf(ratio) + spread * normal.log_prob(ratio).exp()
        torch.testing.assert_close(drawn.fresh[branch].mean(0), expected, rtol=0, atol=0.06)


def test_pretraining_is_gradient_descent_on_the_mean_nll(instance):
    rows = instance.branches["retain"]
    weights = torch.zeros(rows.shape[1], dtype=torch.float64)
    for _ in range(3):
        weights = weights + 0.05 * rise(rows, weights)
    torch.testing.assert_close(task.pretrain(rows, 3), weights, rtol=1e-12, atol=1e-15)


def test_fronts_shares_and_steps():
    path = torch.tensor([[1.0, 0.2], [0.5, 0.3], [0.09, 0.25]], dtype=torch.float64)
    levels = torch.tensor([1.0, 0.6, 0.1, 0.05], dtype=torch.float64)
    assert task.front(path, levels).tolist() == [0.2, 0.25, 0.25, math.inf]
    rival = torch.tensor([[1.0, 0.2], [0.5, 0.1], [0.01, 0.9]], dtype=torch.float64)
    shares = {name: task.wins({"a": path[None], "b": rival[None]}, name)[0] for name in "ab"}
    # levels 10 ** (-i / 10), i to 20: the rival leads down to 0.5 (i = 3), then the path down to 0.09 (i = 10)
    assert float(shares["a"]) == pytest.approx(7 / 20)
    assert float(shares["b"]) == pytest.approx(13 / 20)
    closing = torch.tensor([[[0.9, 0.1], [0.004, 0.1], [0.9, 0.3]], [[0.9, 0.1], [0.005, 0.2], [0.9, 0.1]]])
    assert task.first_close(closing, 25) == [25, None]
    assert task.growth(closing).tolist() == pytest.approx([3, 1])
    assert task.growth(closing, 0.5).tolist() == pytest.approx([3, 0.5])


def test_a_small_run_from_end_to_end(tmp_path):
    seeds = (1, 2)
    results = {alpha: task.measure(alpha, seeds, SMALL) for alpha in (1, 0)}
    assert results[1].paths["GA"].shape == (2, 11, 2)
    for result in results.values():
        starts = torch.stack([path[:, 0] for path in result.paths.values()])
        assert torch.equal(starts, starts[:1].expand_as(starts))
        assert float(starts.min()) > 0
    report = task.report_of(results, seeds, SMALL)
    held = {claim["claim"]: claim["holds"] for claim in report["claims"]}
    assert held["alpha 1: GA reaches a forget distance below 0.005 within 1200 steps"] is None
    assert held["alpha 0: NPO+RT attains the smallest forget and the smallest retain distance"] is True
    rows = report["alphas"]["1"]["methods"]
    assert rows["NPO"]["final"] == pytest.approx(results[1].paths["NPO"][:, -1].mean(0).tolist())
    assert rows["NPO+RT"]["final"][1] < 0.8 * rows["NPO"]["final"][1] < rows["GA"]["final"][1]
    text = task.table(report)
    assert "not tested: alpha 1: GA reaches" in text
    assert len([line for line in text.splitlines() if line.startswith("  NPO+RT")]) == 2
    task.draw_picture(tmp_path / "new" / "picture.png", results)
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")
