"""The verdict on a run that imitates its own samples: each word follows from numbers, and by which rule."""

from __future__ import annotations

from typing import Any

import pytest

from align.cli.terms import TERMS
from align.cli.terms_online import ONLINE
from align.cli.terms_own_text import OWN_TEXT
from align.objectives import OBJECTIVES, HyPO, SuperHF
from align.report.own_text import LAST
from align.report.preference import preference_verdict
from align.report.progress import HYBRID, PAIRS, SURVIVORS, columns_for, header, line
from align.report.survivors import survivors_verdict


def records(rewards: list[float], alike: float = 0.1, kl: float | None = 0.2) -> list[dict[str, Any]]:
    """Log steps with these rewards; samples grow by a token a step from 10 on, a fifth of them is cut off."""
    out: list[dict[str, Any]] = [{"step": 0}]
    for step, reward in enumerate(rewards, 1):
        values = {"reward/samples": reward, "similarity/survivors": alike, "similarity/random": alike / 2}
        values |= {"samples/tokens": 9.0 + step, "samples/truncated": 0.2}
        out.append({"step": step, "loss": 1.0, **values, **({} if kl is None else {"kl_forward/survivor": kl})})
    return out


RISING = [0.0, 0.1, 0.2, 1.0, 1.1, 1.2, 1.5, 1.6, 1.7, 2.0, 2.1, 2.2]  # quarters of three: 0.1 and 2.1


@pytest.mark.parametrize(
    ("rewards", "word", "text"),
    [
        (RISING, "rose", "2.10, start 0.10 (mean over log steps, n 3 each)"),
        (RISING[::-1], "fell", "0.10, start 2.10"),
        # two standard errors of quarters that spread by 1 are 2 sqrt(2 / 3) = 1.63
        ([0.0, 1.0, 2.0, *[1.0] * 6, 1.6, 2.6, 3.6], "not clear", "2.60, start 1.00"),
        ([0.0, 1.0, 2.0, *[1.0] * 6, 1.7, 2.7, 3.7], "rose", "2.70, start 1.00"),
        ([0.0, 5.0], "not clear", "too few log steps to tell"),
        ([1.0], "not measured", "needs two log steps"),
    ],
)
def test_the_reward(rewards: list[float], word: str, text: str) -> None:
    found = survivors_verdict(records(rewards))["reward"]
    assert found.word == word
    assert text in found.text


def test_a_collapse_is_named_first_whatever_the_reward() -> None:
    collapsed = survivors_verdict(records(RISING, alike=0.31))
    assert collapsed["alike"].word == "collapsed"
    assert (
        "METEOR 0.31 between kept answers to different prompts, start 0.31; between all samples 0.15 (limit 0.3)"
        in (collapsed["alike"].text)
    )
    assert collapsed["next"].text.startswith("raise objective.kl_weight")
    bare = survivors_verdict(records(RISING, alike=0.31, kl=None))
    assert bare["distance"].word == "not measured"
    assert bare["next"].text.startswith("give the objective a KL term")
    assert survivors_verdict(records(RISING, alike=0.3))["alike"].word == "no"
    assert survivors_verdict(records(RISING, alike=0.31), similarity_limit=0.5)["alike"].word == "no"


def test_distance_length_and_advice() -> None:
    found = survivors_verdict(records(RISING), run="runs/x", seconds=60.0, paths={"model": "m"})
    assert found["distance"].word == "0.200"
    assert found["length"].word == "+82%"  # 11 tokens in the first quarter, 20 in the last
    assert "samples have 20 tokens, start 11; 20% are cut off" in found["length"].text
    assert found["next"].text.startswith("let another judge score the answers")
    assert survivors_verdict(records(RISING[::-1]))["next"].text.startswith("lower train.learning_rate")
    assert survivors_verdict(records([1.0] * 12))["next"].text.startswith("train longer")
    lines = found.lines()
    assert [text.split()[0] for text in lines[2:7]] == ["reward", "alike", "distance", "length", "next"]
    assert set(found.to_json()["findings"]) == {"reward", "alike", "distance", "length", "next"}


def test_the_sampled_kl_is_averaged_over_the_last_log_steps() -> None:
    seen = [{"step": i, "kl/sampled": float(i)} for i in range(1, 9)]
    found = preference_verdict(seen)["distance"]
    assert LAST == 5
    assert found.word == "6.00"
    assert all(finding.name != "distance" for finding in preference_verdict([{"step": 1}]).findings)


def test_columns_follow_from_what_is_sampled() -> None:
    assert columns_for(HyPO()) == HYBRID
    assert columns_for(HyPO(kl_weight=0)) == PAIRS
    assert columns_for(SuperHF()) == SURVIVORS
    assert header(columns=SURVIVORS).split()[:6] == ["step", "loss", "reward", "kept", "alike", "kl"]
    shown = line(records(RISING)[3] | {"reward/kept": 0.75}, columns=SURVIVORS)
    assert shown.split()[:6] == ["3", "1.0000", "0.20", "0.75", "0.10", "0.200"]


def test_every_word_is_explained() -> None:
    names = {finding.name for finding in survivors_verdict(records(RISING)).findings}
    assert names - {"next"} <= set(TERMS) | set(OWN_TEXT) | set(ONLINE)
    assert not set(ONLINE) & (set(TERMS) | set(OBJECTIVES))
