"""Do more consistent reward models give better policies (arXiv 2309.16155, its last claim)? On the generated world.

    python benchmarks/consistent_rewards.py              three seeds, in about seven minutes of one core
    python benchmarks/consistent_rewards.py --json       the numbers

Two reward models are trained from the same model on equally many pairs about the same people. They differ in the wrong
answers alone:

- ``usual``: wrong answers are right for nobody. Such pairs can be told apart without looking at who is asked about: a
  value that is right for somebody is better than one that is right for nobody.
- ``contrast``: among the wrong answers are those that are right for the other people.

Both are compared on held-out pairs of the usual kind, and on contrast pairs: one question about two people, each with
the answer of the other as its wrong one. Both kinds are in a wording of question and answer that was not trained on.
Then either chooses the best of eight answers of the policy (the same answers for both), and is the judge of the
recipe online/world-superhf, at a KL weight of ``KL_WEIGHT``. An answer is right if it is one of the two wordings of the
fact. Intervals are over facts, or over contrast pairs, in which each fact comes once at most.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superhf_world import answers
from worlds import SIZE, prepared

from align.data.rows import world
from align.judges.reward import RewardModel
from align.probes.consistency import ContrastPair, consistency, scores_of
from align.recipe import load_recipe
from align.recipes.quickstart.running import calm, write_rows
from align.stats import Interval, bootstrap_mean, wilson
from align.train import run

REWARDS = ("usual", "contrast")
WRONG = 6  # wrong answers to a question, each in three wordings
KL_WEIGHT = 0.35  # as released (arXiv 2310.16763); chosen on seed 0, where the recipe's 1.0 changes little
START = "start"


@dataclass(frozen=True)
class Outcome:
    """What one reward model came to.

    Attributes:
        held_out: for each fact, whether the right answer of a pair of the usual kind has the higher score.
        consistency: C_res and C_ins, on both sides of the contrast pairs.
        best: for each fact, whether the answer with the highest score, of eight, is right.
        trained: for each fact, the share of right ones among eight answers of the policy trained with SuperHF.
        reward: the word of that run's verdict on its own reward, such as "rose".
    """

    held_out: list[float]
    consistency: dict[str, Interval]
    best: list[float]
    trained: list[float]
    reward: str


def right_for_somebody(facts: Sequence[world.Row]) -> dict[str, list[str]]:
    """The values of each attribute that are right for one of the people, in the table's order."""
    held = {(fact["attribute"], fact["value"]) for fact in facts}
    return {key: [v for v in found.values if (key, v) in held] for key, found in world.PEOPLE.items()}


def wrong_values(fact: world.Row, somebody: Sequence[str], kind: str, draw: random.Random) -> list[str]:
    """``WRONG`` values for one question; with ``contrast`` those of the other people come first."""
    nobody = [value for value in world.PEOPLE[fact["attribute"]].values if value not in somebody]
    others = [value for value in somebody if value != fact["value"]] if kind == "contrast" else []
    return others + draw.sample(nobody, WRONG - len(others))


def training_pairs(facts: Sequence[world.Row], kind: str, seed: int) -> list[world.Row]:
    """``WRONG`` pairs for each fact in three of the four wordings of question and answer; the fourth is held out."""
    draw, somebody = random.Random(f"pairs:{seed}"), right_for_somebody(facts)
    rows = []
    for fact, row in zip(facts, world.candidate_rows(facts), strict=True):
        wrong = wrong_values(fact, somebody[fact["attribute"]], kind, draw)
        used = (("question", "candidates"), ("question", "reworded"), ("paraphrased_question", "candidates"))
        for question, wording in used:
            texts = dict(zip(world.PEOPLE[fact["attribute"]].values, row[wording], strict=True))
            pair = {"prompt": world.prompt(fact[question]), "chosen": texts[fact["value"]]}
            rows += [pair | {"rejected": texts[value]} for value in wrong]
    return rows


def held_out_pairs(facts: Sequence[world.Row], seed: int) -> list[world.Row]:
    """One pair of the usual kind for each fact, in the wording of question and answer that is held out."""
    draw, somebody = random.Random(f"held out:{seed}"), right_for_somebody(facts)
    rows = []
    for fact in facts:
        wrong = wrong_values(fact, somebody[fact["attribute"]], "usual", draw)[0]
        question, chosen = _asked(fact)
        rows.append({"prompt": question, "chosen": chosen, "rejected": chosen.replace(fact["value"], wrong)})
    return rows


def contrast_pairs(facts: Sequence[world.Row]) -> list[ContrastPair]:
    """One attribute of two people whose answers differ by the value alone; in the wording that is held out."""
    pairs = []
    waiting = list(facts)
    while waiting:
        one = waiting.pop(0)
        other = next((fact for fact in waiting if _differ_by_value(one, fact)), None)
        if other is not None:
            waiting.remove(other)
            pairs.append(ContrastPair(*_asked(one), *_asked(other)))
    return pairs


def _asked(fact: world.Row) -> tuple[str, str]:
    """Question and right answer as they are held out."""
    return world.prompt(fact["paraphrased_question"]), world.completion(fact["paraphrased_answer"])


def _differ_by_value(one: world.Row, other: world.Row) -> bool:
    if one["attribute"] != other["attribute"] or one["value"] == other["value"]:
        return False
    return one["paraphrased_answer"].replace(one["value"], other["value"]) == other["paraphrased_answer"]


def right(fact: world.Row, text: str) -> bool:
    """The world's rule."""
    return text.strip() in (fact["answer"], fact["paraphrased_answer"])


def train(recipe: str, out: Path, seed: int, places: Mapping[str, Any]) -> Any:
    """Run a packaged recipe anew, with other ``places`` (overrides by key); returns its verdict."""
    shutil.rmtree(out, ignore_errors=True)
    overrides = [f"{key}={json.dumps(value)}" for key, value in {**places, "output": str(out), "seed": seed}.items()]
    return run(load_recipe(recipe, overrides), echo=lambda *_: None).verdict


def outcome(folder: Path, kind: str, seed: int, facts: Sequence[world.Row], drawn: list[list[str]]) -> Outcome:
    """Train one reward model, measure it, and let it judge. ``drawn`` are answers of the policy at the start."""
    pairs, model = write_rows(folder / f"{kind}.jsonl", training_pairs(facts, kind, seed)), str(folder / "model")
    data = {"data.train.world": None, "data.train.path": str(pairs), "data.held_out": None, "train.eval_strategy": "no"}
    train("reward/world", folder / f"reward-{kind}", seed, {"model.id": model, **data})
    judge = RewardModel(str(folder / f"reward-{kind}"), say=lambda _: None)
    held = held_out_pairs(facts, seed)
    prompts = [row["prompt"] for row in held]
    sides = [judge.score(prompts, [row[side] for row in held]) for side in ("chosen", "rejected")]
    contrasts = contrast_pairs(facts)
    found = consistency(contrasts, scores_of(contrasts, judge.score))
    best = []
    for fact, group in zip(facts, drawn, strict=True):
        scores = judge.score([world.prompt(fact["question"])] * len(group), group)
        best.append(float(right(fact, group[scores.index(max(scores))])))
    policy = folder / f"superhf-{kind}"
    places = {"model.id": model, "data.train.path": str(folder / "pairs.jsonl"), "objective.kl_weight": KL_WEIGHT}
    verdict = train("online/world-superhf", policy, seed, places | {"judge.reward": str(folder / f"reward-{kind}")})
    return Outcome(
        held_out=[float(a > b) for a, b in zip(*sides, strict=True)],
        consistency={figure.metric: figure.share.greater for figure in found.figures if figure.sides == "both"},
        best=best,
        trained=shares(facts, answers(str(policy), [world.prompt(fact["question"]) for fact in facts])),
        reward=verdict["findings"]["reward"]["word"],
    )


def shares(facts: Sequence[world.Row], drawn: list[list[str]]) -> list[float]:
    """For each fact the share of right answers."""
    return [sum(right(fact, text) for text in group) / len(group) for fact, group in zip(facts, drawn, strict=True)]


def measured(root: Path, seed: int, size: world.Size = SIZE) -> tuple[dict[str, Outcome], list[list[float]]]:
    """Both reward models of one seed, and for each fact whether each of the eight first answers is right."""
    folder = prepared(root, seed, size)
    facts = world.build(seed, size).forget
    with calm():
        drawn = answers(str(folder / "model"), [world.prompt(fact["question"]) for fact in facts])
        found = {kind: outcome(folder, kind, seed, facts, drawn) for kind in REWARDS}
    hits = [[float(right(fact, text)) for text in group] for fact, group in zip(facts, drawn, strict=True)]
    return found, hits


def table(seed: int, found: Mapping[str, Outcome], hits: list[list[float]]) -> dict[str, dict[str, Interval]]:
    """All figures of one seed by row and column; ``difference`` is contrast less usual, over the same facts."""
    start = bootstrap_mean([sum(group) / len(group) for group in hits], seed)
    rows = {START: {"best": bootstrap_mean([max(group) for group in hits], seed), "trained": start}}
    for kind, o in found.items():
        rows[kind] = {"held-out": _share(o.held_out), **o.consistency, "best": _share(o.best)}
        rows[kind]["trained"] = bootstrap_mean(o.trained, seed)
    usual, contrast = (found[kind] for kind in REWARDS)
    columns = {"held-out": "held_out", "best": "best", "trained": "trained"}
    rows["difference"] = {
        column: bootstrap_mean([b - a for a, b in zip(getattr(usual, f), getattr(contrast, f), strict=True)], seed)
        for column, f in columns.items()
    }
    return rows


def _share(hits: Sequence[float]) -> Interval:
    return wilson(sum(hits), len(hits))


def line(seed: int, name: str, row: Mapping[str, Interval], reward: str = "") -> str:
    """One row as people read it."""
    cells = (f"{column} {i.value:.2f} [{i.low:.2f}, {i.high:.2f}]" for column, i in row.items())
    return f"seed {seed}  {name:<10} {'  '.join(cells)}{'  its own reward ' + reward if reward else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, help="keep models here, and use those that are there")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    say: Any = (lambda *_: None) if args.json else print
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in args.seeds:
            began = time.process_time()
            found, hits = measured((args.folder or Path(temporary)).resolve(), seed)
            rows = table(seed, found, hits)
            for name, row in rows.items():
                say(line(seed, name, row, found[name].reward if name in found else ""), flush=True)
            seconds = time.process_time() - began
            say(f"seed {seed}  {seconds:.0f} s of computing", flush=True)
            named = {name: {column: i.to_json() for column, i in row.items()} for name, row in rows.items()}
            items = {kind: {"held_out": o.held_out, "best": o.best, "trained": o.trained} for kind, o in found.items()}
            results.append({"seed": seed, "seconds": seconds, "table": named, "facts": items})
    if args.json:
        json.dump(results, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
