"""Noise as a function of its address: known values, its distribution, and that nothing beside an address matters."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from align.sampling.noise import _of_hashes, gumbel, signed

MASK = 2**64 - 1
STEP = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    """splitmix64's output function on Python's own integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def by_hand(seed: int, step: int, key: int, sample: int, position: int, token: int) -> float:
    state = STEP
    for part in (seed, step, key, sample, position):
        state = (mix(state ^ (part & MASK)) + STEP) & MASK
    uniform = ((mix((state + STEP * (token + 1)) & MASK) >> 12) + 0.5) / 2**52
    return -math.log(-math.log(uniform))


def one(seed: int, step: int, key: int, sample: int, position: int, vocabulary: int) -> torch.Tensor:
    return gumbel(seed, step, torch.tensor([signed(key)]), torch.tensor([sample]), position, vocabulary)[0]


def test_known_values() -> None:
    assert mix(STEP) == 0xE220A8397B1DCDAF  # the first output of splitmix64 from seed 0, as published
    known = [2.14532368443, -1.07693616498, -0.00042697850, 1.59748951088]
    assert one(3, 7, 11, 2, 5, 4).tolist() == pytest.approx(known, rel=1e-6)
    for address in [(0, 0, 0, 0, 0), (2**63 + 5, 1, 2**64 - 3, 7, 4095), (-1, 10**6, 2**63, 0, 1)]:
        expected = [by_hand(*address, token) for token in range(50)]
        assert one(*address, 50).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_neither_other_rows_nor_the_size_of_the_vocabulary_matter() -> None:
    keys = torch.arange(37) * 0x1234567 - 2**40
    samples = torch.arange(37) % 5
    whole = gumbel(1, 2, keys, samples, 3, 1003)
    assert whole.dtype == torch.float32
    for row in range(37):
        assert torch.equal(gumbel(1, 2, keys[row : row + 1], samples[row : row + 1], 3, 1003)[0], whole[row])
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gumbel(1, 2, keys[order], samples[order], 3, 1003), whole[order])
    for size in (1, 7, 64, 1000):
        assert torch.equal(gumbel(1, 2, keys, samples, 3, size), whole[:, :size])
    assert len(whole.unique()) > 0.999 * whole.numel()


def test_every_hash_gives_a_number() -> None:
    noise = _of_hashes(torch.tensor([0, 1, 2**63 - 1, -(2**63), -1, -2]))
    assert torch.isfinite(noise).all()
    # hashes are unsigned: -1 is the largest of them, 0 the smallest
    assert noise.min() == noise[0] == pytest.approx(-math.log(53 * math.log(2)))
    assert noise.max() == noise[4] == pytest.approx(53 * math.log(2), rel=1e-6)
    assert noise[2:4].tolist() == pytest.approx([-math.log(math.log(2))] * 2)


@pytest.mark.parametrize("along", ["token", "position", "key", "sample", "step", "seed"])
def test_noise_is_gumbel_and_neighbours_have_nothing_to_do_with_each_other(along: str) -> None:
    count = 100_000
    numbers, zeros = torch.arange(count), torch.zeros(count, dtype=torch.long)
    if along == "token":
        noise = one(0, 0, 0, 0, 0, count)
    elif along == "key":
        noise = gumbel(0, 0, numbers, zeros, 0, 1)[:, 0]
    elif along == "sample":
        noise = gumbel(0, 0, zeros, numbers, 0, 1)[:, 0]
    else:
        rows = []
        for i in range(1000):
            places = {"position": (0, 0, i), "step": (0, i, 0), "seed": (i, 0, 0)}[along]
            rows.append(gumbel(places[0], places[1], zeros[:1], zeros[:1], places[2], 100)[0])
        noise = torch.stack(rows).T.flatten()  # neighbours differ in what is tested
    noise = noise.double()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=4 * 1.2825 / math.sqrt(count))
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, rel=0.02)
    assert stats.kstest(noise.numpy(), "gumbel_r").pvalue > 1e-3
    for lag in (1, 2, 64):
        near = torch.corrcoef(torch.stack([noise[lag:], noise[:-lag]]))[0, 1]
        assert abs(float(near)) < 4 / math.sqrt(count), lag


def test_the_likeliest_with_noise_is_a_draw_from_the_softmax() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -3.0, 0.5, -math.inf])
    count = 50_000
    keys, samples = torch.arange(count) // 8, torch.arange(count) % 8
    drawn = (logits + gumbel(1, 2, keys, samples, 3, 6)).argmax(1).bincount(minlength=6)
    assert drawn[5] == 0
    expected = count * logits.double().softmax(0)[:5]
    assert stats.chisquare(drawn[:5].numpy(), expected.numpy()).pvalue > 1e-3
