"""The small online recipes on a smaller world: what each leaves behind, and (slow) what their headers claim."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_world import SMALL, trained

from align.data.rows import world
from align.data.tokens.samples import Sample, prompt_key
from align.models.subject import Subject
from align.recipe import load_recipe
from align.recipe.sampling import Sampling
from align.runs.directory import RunDirectory
from align.sampling.files import read_tables
from align.sampling.sampler import Sampler
from align.training.lock import repeatable


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from a second thread, and wait for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


RULE = 'judge={function: "align.recipes.online.rules:plain_words"}'


def online(name: str, folder: Path, out: Path, *more: str) -> tuple[Any, list[str]]:
    """Run one of the small recipes on the small world."""
    places = {"model.id": folder / "model", "data.train.path": folder / "pairs.jsonl"}
    if name == "hypo":
        places["data.held_out.path"] = folder / "held_out.jsonl"
    elif RULE not in more:
        places["judge.reward"] = folder / "reward"
    return trained(f"online/world-{name}", places, out, *more, allow_code=RULE in more)


def answers(model: Path, texts: list[str]) -> tuple[Subject, list[list[int]], list[list[Sample]]]:
    """The saved model, the prompts as ids, and four fresh answers to each."""
    policy = Subject.load(str(model), echo=lambda *_: None)
    prompts = [policy.tokenizer(text).input_ids for text in texts]
    keys = [prompt_key(prompt, row) for row, prompt in enumerate(prompts)]
    sampler = Sampler(Sampling(samples=16, max_new_tokens=24, batch_size=320), policy.tokenizer, seed=9)
    with torch.no_grad():
        return policy, prompts, sampler(policy.model, prompts, keys, 0, device=policy.device)


def kl_to_start(folder: Path, model: Path) -> float:
    """Mean log-ratio of fresh answers to the pairs' questions, in nats."""
    texts = [json.loads(line)["prompt"] for line in (folder / "pairs.jsonl").read_text().splitlines()]
    policy, prompts, drawn = answers(model, texts)
    start = Subject.load(str(folder / "model"), echo=lambda *_: None)
    branches = [{str(s.index): s.ids for s in samples} for samples in drawn]
    ours, theirs = policy.score(prompts, branches), start.score(prompts, branches)
    gaps = [a[k]["logp"].sum() - b[k]["logp"].sum() for a, b in zip(ours, theirs, strict=True) for k in a]
    return float(sum(gaps) / len(gaps))


@pytest.mark.slow
def test_hypo_stays_near_where_dpo_runs_away(taught: Path, tmp_path: Path) -> None:
    hypo, lines = online("hypo", taught, tmp_path / "hypo")
    assert any(re.match(r" step +loss +margin +accuracy +kl ", line) for line in lines)
    assert hypo.verdict["findings"]["learned"]["word"] == "yes"
    assert float(hypo.verdict["findings"]["distance"]["word"]) < 10
    drawn = read_tables(sorted((tmp_path / "hypo/samples").iterdir()))
    assert len(drawn) == 6 * 80 * 2
    assert RunDirectory(tmp_path / "hypo").lock["samples"] == "exactly: float32 on a CPU"
    rough = load_recipe("online/world-hypo", ["model.dtype=bfloat16"])
    assert repeatable(rough, on_cpu=True, mixed=False).startswith("for this shape of batches (sampling.batch_size 64")
    rough = load_recipe("online/world-hypo", ["model.dtype=bfloat16", "sampling.batch_size=null"])
    assert repeatable(rough, on_cpu=True, mixed=False) == (
        "not exactly: batches follow the memory that is free, until sampling.batch_size is a number"
    )
    dpo, _ = online("hypo", taught, tmp_path / "dpo", "objective.kl_weight=0", "sampling=null")
    distance = dpo.verdict["findings"]["distance"]  # of the probe, since the run draws none of its own
    assert "trained" not in distance
    assert float(distance["word"]) > 10
    near, far = kl_to_start(taught, tmp_path / "hypo/model"), kl_to_start(taught, tmp_path / "dpo/model")
    assert 0 < near < far / 3


@pytest.mark.slow
def test_inpo_goes_its_rounds_and_the_judge_likes_what_came(taught: Path, reward: Any, tmp_path: Path) -> None:
    result, lines = online("inpo", taught, tmp_path / "inpo", "rounds.prompts=20", "rounds.count=2")
    rounds = result.verdict["rounds"]
    assert RunDirectory(tmp_path / "inpo").lock["samples"] == "exactly: float32 on a CPU"
    assert [r["round"] for r in rounds] == [1, 2]
    assert [r["prompts"] for r in rounds] == [20, 20]
    for number in (1, 2):
        judged = read_tables(sorted((tmp_path / f"inpo/rounds/{number:02d}/judged").glob("*.parquet")))
        assert len(judged) == 20 * 8
        scores: dict[int, list[float]] = {}
        for r in judged:
            scores.setdefault(r["row"], []).append(r["score"])
        chosen = {r["row"]: r["score"] for r in judged if r["selected"] == "chosen"}
        rejected = {r["row"]: r["score"] for r in judged if r["selected"] == "rejected"}
        assert chosen == {row: max(scores[row]) for row in chosen}
        assert rejected == {row: min(scores[row]) for row in chosen}
        assert len(chosen) == rounds[number - 1]["pairs"] == sum(max(s) > min(s) for s in scores.values()) > 15
    # INPO's loss of a policy that is both of its anchors is (1 / (2 eta))^2
    first = next(r for r in RunDirectory(tmp_path / "inpo/rounds/01/train").metrics() if "loss" in r)
    assert first["loss"] < 25 + 1e-3
    assert (tmp_path / "inpo/model/config.json").exists()
    assert any(line.startswith("round  pairs  dropped") for line in lines)


@pytest.mark.slow
def test_superhf_keeps_the_best_and_says_how_alike_they_are(taught: Path, reward: Any, tmp_path: Path) -> None:
    result, lines = online("superhf", taught, tmp_path / "superhf", "train.max_steps=10")
    assert set(result.verdict["findings"]) == {"reward", "alike", "distance", "length", "next"}
    assert any(re.match(r" step +loss +reward +kept +alike +kl ", line) for line in lines)
    drawn = read_tables(sorted((tmp_path / "superhf/samples").iterdir()))
    assert len(drawn) == 10 * 16 * 8
    kept = [r for r in drawn if r["selected"] == "kept"]
    assert len(kept) == 10 * 16
    assert sum(r["score"] for r in kept) / len(kept) > sum(r["score"] for r in drawn) / len(drawn) + 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seeds", "more"), [("superhf", 1, []), ("inpo", 4, ["rounds.prompts=26"])])
def test_answers_become_right_as_the_reward_model_says(
    name: str, seeds: int, more: list[str], taught: Path, reward: Any, tmp_path: Path
) -> None:
    """By the world's facts and not by the reward: the policy is right more often than it was.

    78 questions in all teach INPO little: of four seeds one gains nothing, and four are 0.03 better on average.
    """
    facts = world.build(0, SMALL).forget

    def right(model: Path) -> float:
        _, _, drawn = answers(model, [world.prompt(fact["question"]) for fact in facts])
        hits = [
            sample.text.strip() in (fact["answer"], fact["paraphrased_answer"])
            for fact, group in zip(facts, drawn, strict=True)
            for sample in group
        ]
        return sum(hits) / len(hits)

    for seed in range(seeds):
        online(name, taught, tmp_path / str(seed), f"seed={seed}", *more)
    after = [right(tmp_path / str(seed) / "model") for seed in range(seeds)]
    assert sum(after) / seeds > right(taught / "model") + 0.02


@pytest.mark.slow
def test_without_its_prior_a_rule_makes_superhf_collapse_and_with_it_it_does_not(taught: Path, tmp_path: Path) -> None:
    free, said = online("superhf", taught, tmp_path / "free", "objective.kl_weight=0", RULE)
    held, quiet = online("superhf", taught, tmp_path / "held", RULE)
    assert any("a collapse, not an improvement" in line for line in said)
    assert not any("a collapse, not an improvement" in line for line in quiet)
    assert free.verdict["findings"]["reward"]["word"] == "rose"
    assert free.verdict["findings"]["alike"]["word"] == "collapsed"
    assert free.verdict["findings"]["alike"]["end"] > 0.5
    assert held.verdict["findings"]["alike"]["word"] == "no"
    assert held.verdict["findings"]["reward"]["end"] > held.verdict["findings"]["reward"]["start"]
