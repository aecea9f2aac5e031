"""Numbers of the policy's own text, worked by hand; and that they do not call a run healthy that is not."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from align.probes.own_text import OwnSamples, rare, read_own_text
from align.stats import wilson

# two prompts with two samples each, 2, 4, 3 and 1 tokens long
TOKENS = np.array([[2.0, 4.0], [3.0, 1.0]])
LOGP = np.array([[-2.0, -4.0], [-6.0, -1.0]])
REFERENCE = np.array([[-3.0, -24.0], [-6.0, -7.0]])  # per token -1.5, -6, -2, -7
ENTROPY = np.array([[1.0, 2.0], [6.0, 1.0]])
CUT = np.array([[0.0, 1.0], [0.0, 0.0]])
SAMPLES = OwnSamples(TOKENS, LOGP, ENTROPY, CUT, REFERENCE)


def test_worked_reading() -> None:
    texts = ["a b", "c d e f", "a b", "g"]
    found = read_own_text(SAMPLES, texts, likeness=0.25, limit=4, bar=-5.0, against="reference")
    assert (found.n, found.prompts, found.limit, found.against, found.bar) == (4, 2, 4, "reference", -5.0)
    # log pi - log pi_ref is 1, 20, 0 and 6: means 10.5 and 3 of the two prompts
    assert found.reverse_kl is not None
    assert found.reverse_kl_per_token is not None
    assert found.reference_logp is not None
    assert found.astray is not None
    assert (found.reverse_kl.value, found.reverse_kl.n) == (27 / 4, 2)
    assert found.reverse_kl_per_token.value == pytest.approx(27 / 10)
    assert found.reference_logp.value == pytest.approx(-40 / 10)
    assert found.entropy.value == pytest.approx(10 / 10)
    assert found.tokens.value == 2.5
    assert (found.cut, found.distinct, found.likeness) == (0.25, 0.75, 0.25)
    # two of four samples are below -5 nats per token; the interval counts two prompts
    assert found.astray == wilson(1, 2)


def test_without_a_reference_nothing_is_claimed_about_it() -> None:
    samples = OwnSamples(TOKENS, LOGP, ENTROPY, CUT)
    found = read_own_text(samples, list("abcd"), likeness=math.nan, limit=4, bar=-5.0, against="", why="none is kept")
    assert found.reverse_kl is found.reverse_kl_per_token is found.reference_logp is found.astray is found.bar is None
    assert (found.against, found.why, found.likeness) == ("", "none is kept", None)
    assert found.entropy.value == 1.0


def test_numbers_that_are_none_are_null_and_not_a_share_of_zero() -> None:
    broken = REFERENCE.copy()
    broken[0, 0] = math.nan
    samples = OwnSamples(TOKENS, LOGP, ENTROPY, CUT, broken)
    found = read_own_text(samples, list("abcd"), likeness=0.0, limit=4, bar=-5.0, against="reference")
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["astray"] == {"value": None, "low": None, "high": None, "n": 2}
    assert data["reverse_kl"]["value"] is data["reference_logp"]["value"] is None
    assert data["entropy"]["value"] == 1.0


def test_the_bar_is_passed_by_one_text_in_twenty_of_the_rarest_kind() -> None:
    written, own = -np.arange(1.0, 101.0), np.full(40, -3.0)
    assert rare(written, own) == pytest.approx(-95.05)
    assert (written < rare(written, own)).mean() == 0.05
    assert rare(own, own) == -3.0


def test_one_prompt_has_an_interval_without_ends() -> None:
    samples = OwnSamples(*(x[:1] for x in (TOKENS, LOGP, ENTROPY, CUT, REFERENCE)))
    found = read_own_text(samples, ["a", "b"], likeness=math.nan, limit=4, bar=-5.0, against="reference")
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["reverse_kl"] == {"value": 10.5, "low": None, "high": None, "n": 1}
    assert data["astray"]["high"] > 0.9  # half of the samples, of one prompt: anything is possible


def test_intervals_of_samples_that_hang_together_by_prompt_cover() -> None:
    """Sixteen prompts that differ more than the two samples of one do; 95 % intervals of the share and of the mean."""
    draw, repeats = np.random.default_rng(0), 100
    hits = {"share": 0, "mean": 0}
    for seed in range(repeats):
        prompt = draw.normal(size=(16, 1))
        gap = 1.0 + prompt + 0.3 * draw.normal(size=(16, 2))
        ones = np.ones((16, 2))
        samples = OwnSamples(10 * ones, gap - 20, ones, 0 * ones, -20 * ones - 10 * prompt)
        # per token the reference gives -2 - prompt, which is below -2 half the time: copies, the worst case
        found = read_own_text(samples, ["x"] * 32, likeness=0.0, limit=9, bar=-2.0, against="reference", seed=seed)
        assert found.astray is not None
        hits["share"] += found.astray.low <= 0.5 <= found.astray.high
        gap_only = OwnSamples(ones, gap, ones, 0 * ones, 0 * ones)
        mean = read_own_text(gap_only, ["x"] * 32, likeness=0.0, limit=9, bar=0.0, against="reference", seed=seed)
        assert mean.reverse_kl is not None
        hits["mean"] += mean.reverse_kl.low <= 1.0 <= mean.reverse_kl.high
    assert hits["share"] >= 88
    assert hits["mean"] >= 88  # if samples of a prompt counted as independent, about 80
