"""The small online recipes on a smaller world: what each leaves behind, and (slow) what their headers claim."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from align.data.rows import world
from align.data.tokens.samples import prompt_key
from align.models.subject import Subject
from align.recipe import load_recipe
from align.recipe.sampling import Sampling
from align.recipes.quickstart.demo import learn, make_pairs
from align.recipes.quickstart.measure import Scorer
from align.recipes.quickstart.running import calm, write_rows
from align.runs.directory import RunDirectory
from align.sampling.files import read_tables
from align.sampling.sampler import Sampler
from align.train import run
from align.training.lock import repeatable

SMALL = world.Size(people=12, forgotten=4, background=6, strangers=2, base_epochs=12, tune_epochs=10)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from a second thread, and wait for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that learned a small world, 80 pairs, and 40 held-out ones."""
    folder = tmp_path_factory.mktemp("taught")
    made = world.build(0, SMALL)
    with calm():
        scorer = Scorer(learn(folder, made))
        write_rows(folder / "pairs.jsonl", make_pairs(scorer, world.candidate_rows(made.forget)))
        write_rows(folder / "held_out.jsonl", make_pairs(scorer, world.candidate_rows(made.strangers)))
    return folder


def trained(name: str, folder: Path, out: Path, *more: str) -> tuple[Any, list[str]]:
    """Run a packaged recipe in its place; its result and what it said."""
    places = {"model.id": folder / "model", "data.train.path": folder / "pairs.jsonl", "output": out}
    if name == "world-hypo":
        places["data.held_out.path"] = folder / "held_out.jsonl"
    shutil.rmtree(out, ignore_errors=True)
    lines: list[str] = []
    overrides = [f"{key}={json.dumps(str(value))}" for key, value in places.items()]
    with calm():
        result = run(load_recipe(f"online/{name}", [*overrides, *more]), allow_code=True, echo=lines.append)
    return result, lines


def kl_to_start(folder: Path, model: Path) -> float:
    """Mean log-ratio of fresh answers to the pairs' questions, in nats."""
    policy, start = (Subject.load(str(m), echo=lambda *_: None) for m in (model, folder / "model"))
    texts = [json.loads(line)["prompt"] for line in (folder / "pairs.jsonl").read_text().splitlines()]
    prompts = [policy.tokenizer(text).input_ids for text in texts]
    keys = [prompt_key(prompt, row) for row, prompt in enumerate(prompts)]
    sampler = Sampler(Sampling(samples=4, max_new_tokens=24, batch_size=320), policy.tokenizer, seed=9)
    with torch.no_grad():
        drawn = sampler(policy.model, prompts, keys, 0, device=policy.device)
    branches = [{str(s.index): s.ids for s in samples} for samples in drawn]
    ours, theirs = policy.score(prompts, branches), start.score(prompts, branches)
    gaps = [a[k]["logp"].sum() - b[k]["logp"].sum() for a, b in zip(ours, theirs, strict=True) for k in a]
    return float(sum(gaps) / len(gaps))


def test_hypo_stays_near_where_dpo_runs_away(taught: Path, tmp_path: Path) -> None:
    hypo, lines = trained("world-hypo", taught, tmp_path / "hypo")
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
    dpo, _ = trained("world-hypo", taught, tmp_path / "dpo", "objective.kl_weight=0", "sampling=null")
    assert "distance" not in dpo.verdict["findings"]
    near, far = kl_to_start(taught, tmp_path / "hypo/model"), kl_to_start(taught, tmp_path / "dpo/model")
    assert 0 < near < far / 3


def test_inpo_goes_its_rounds_and_the_judge_likes_what_came(taught: Path, tmp_path: Path) -> None:
    result, lines = trained("world-inpo", taught, tmp_path / "inpo", "rounds.prompts=20", "rounds.count=2")
    rounds = result.verdict["rounds"]
    assert RunDirectory(tmp_path / "inpo").lock["samples"] == "exactly: float32 on a CPU"
    assert [r["round"] for r in rounds] == [1, 2]
    assert [r["prompts"] for r in rounds] == [20, 20]
    for number in (1, 2):
        judged = read_tables(sorted((tmp_path / f"inpo/rounds/{number:02d}/judged").glob("*.parquet")))
        assert len(judged) == 20 * 8
        chosen = {r["row"]: r["text"] for r in judged if r["selected"] == "chosen"}
        rejected = {r["row"]: r["text"] for r in judged if r["selected"] == "rejected"}
        assert set(chosen) == set(rejected)
        assert len(chosen) == rounds[number - 1]["pairs"] > 5
    # INPO's loss of a policy that is both of its anchors is (1 / (2 eta))^2
    first = next(r for r in RunDirectory(tmp_path / "inpo/rounds/01/train").metrics() if "loss" in r)
    assert first["loss"] < 25 + 1e-3
    assert (tmp_path / "inpo/model/config.json").exists()
    assert any(line.startswith("round  pairs  dropped") for line in lines)


def test_superhf_keeps_the_best_and_says_how_alike_they_are(taught: Path, tmp_path: Path) -> None:
    result, lines = trained("world-superhf", taught, tmp_path / "superhf", "train.max_steps=10")
    assert set(result.verdict["findings"]) == {"reward", "alike", "distance", "length", "next"}
    assert any(re.match(r" step +loss +reward +kept +alike +kl ", line) for line in lines)
    drawn = read_tables(sorted((tmp_path / "superhf/samples").iterdir()))
    assert len(drawn) == 10 * 16 * 8
    kept = [r for r in drawn if r["selected"] == "kept"]
    assert len(kept) == 10 * 16
    assert sum(r["score"] for r in kept) / len(kept) > sum(r["score"] for r in drawn) / len(drawn) + 0.05


@pytest.mark.slow
def test_without_its_prior_superhf_collapses_and_with_it_it_does_not(taught: Path, tmp_path: Path) -> None:
    free, said = trained("world-superhf", taught, tmp_path / "free", "objective.kl_weight=0")
    held, quiet = trained("world-superhf", taught, tmp_path / "held")
    assert any("a collapse, not an improvement" in line for line in said)
    assert not any("a collapse, not an improvement" in line for line in quiet)
    assert free.verdict["findings"]["reward"]["word"] == "rose"
    assert free.verdict["findings"]["alike"]["word"] == "collapsed"
    assert free.verdict["findings"]["alike"]["end"] > 0.5
    assert held.verdict["findings"]["alike"]["word"] == "no"
    assert held.verdict["findings"]["reward"]["end"] > held.verdict["findings"]["reward"]["start"]
