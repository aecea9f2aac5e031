"""SuperHF on the generated world with and without its KL prior: reward, and whether answers become one answer.

    python benchmarks/superhf_world.py              ten seeds, two runs each, in a few minutes
    python benchmarks/superhf_world.py --json       the numbers

The recipe online/world-superhf, whose settings were chosen on seeds 0 and 3, with a rule for a judge in place of its
reward model: one that likes plain words and does not look at the question, so that one answer to all questions has the
highest reward. Before and after training ``SAMPLES`` answers are drawn to each of the 120 questions and scored with the
rule that was trained against. The change
of the reward has an interval over questions (paired bootstrap); similarity is METEOR between best-of-``SAMPLES``
answers to different questions, mean over ``PAIRS`` random pairs.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from worlds import prepared

from align.data.tokens.samples import prompt_key
from align.models.subject import Subject
from align.recipe import load_recipe
from align.recipe.sampling import Sampling
from align.recipes.online.rules import plain_words
from align.recipes.quickstart.running import calm
from align.sampling.sampler import Sampler
from align.sampling.similarity import similarity
from align.stats import bootstrap_mean
from align.train import run

SAMPLES, NEW_TOKENS, PAIRS = 8, 24, 200
LIMIT = 0.3
WEIGHTS = (1.0, 0.0)
RULE = 'judge={function: "align.recipes.online.rules:plain_words"}'


@dataclass(frozen=True)
class Outcome:
    """One run: mean rewards in [-inf, 1], the change with its interval, similarities in [0, 1], whether it warned."""

    reward_before: float
    reward_after: float
    change: dict[str, Any]
    similarity_before: float
    similarity_after: float
    warned: bool
    seconds: float


def answers(model: str, questions: list[str]) -> list[list[str]]:
    """Fresh answers of a saved model to every question."""
    subject = Subject.load(model, echo=lambda *_: None)
    prompts = [subject.tokenizer(question).input_ids for question in questions]
    settings = Sampling(samples=SAMPLES, max_new_tokens=NEW_TOKENS, batch_size=256)
    keys = [prompt_key(prompt, row) for row, prompt in enumerate(prompts)]
    with torch.no_grad():
        drawn = Sampler(settings, subject.tokenizer, seed=321)(subject.model, prompts, keys, 0, device=subject.device)
    return [[sample.text for sample in group] for group in drawn]


def rewards(drawn: list[list[str]]) -> list[list[float]]:
    """The rule's scores."""
    return [plain_words([""] * len(group), group) for group in drawn]


def likeness(drawn: list[list[str]]) -> float:
    """Similarity of the best answers to different questions."""
    best = [max(zip(scores, group, strict=True))[1] for scores, group in zip(rewards(drawn), drawn, strict=True)]
    draw = random.Random(0)
    pairs = [draw.sample(best, 2) for _ in range(PAIRS)]
    return sum(similarity(a, b) for a, b in pairs) / len(pairs)


def trained(folder: Path, seed: int, weight: float) -> Outcome:
    """Train with one KL weight and measure."""
    began = time.perf_counter()
    out = folder / f"superhf-{weight:g}"
    shutil.rmtree(out, ignore_errors=True)
    places = {"model.id": folder / "model", "data.train.path": folder / "pairs.jsonl", "output": out}
    overrides = [f"{key}={json.dumps(str(value))}" for key, value in places.items()]
    recipe = load_recipe("online/world-superhf", [RULE, f"seed={seed}", f"objective.kl_weight={weight}", *overrides])
    said: list[str] = []
    questions = [json.loads(line)["prompt"] for line in (folder / "pairs.jsonl").read_text().splitlines()]
    with calm():
        before = answers(str(folder / "model"), questions)
        run(recipe, allow_code=True, echo=said.append)
        after = answers(str(out), questions)
    first, last = rewards(before), rewards(after)
    gains = [sum(b) / len(b) - sum(a) / len(a) for a, b in zip(first, last, strict=True)]
    return Outcome(
        reward_before=_mean(first),
        reward_after=_mean(last),
        change=bootstrap_mean(gains, seed=0).to_json(),
        similarity_before=likeness(before),
        similarity_after=likeness(after),
        warned=any(text.startswith("warning: the reward rose") for text in said),
        seconds=time.perf_counter() - began,
    )


def _mean(scores: list[list[float]]) -> float:
    return sum(map(sum, scores)) / sum(map(len, scores))


def line(seed: int, weight: float, found: Outcome) -> str:
    """One run as people read it."""
    change = found.change
    return (
        f"seed {seed}  KL weight {weight:<5g} reward {found.reward_before:.2f} to {found.reward_after:.2f} "
        f"({change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}])  "
        f"similarity {found.similarity_before:.2f} to {found.similarity_after:.2f}"
        f"{'  warned of a collapse' if found.warned else ''}  {found.seconds:.0f} s"
    )


def claims(found: dict[float, list[Outcome]]) -> dict[str, bool]:
    """What ought to hold on every seed."""
    with_prior, without = found[WEIGHTS[0]], found[0.0]
    return {
        "without the KL the reward rises": all(o.change["low"] > 0 for o in without),
        f"without the KL similarity passes {LIMIT}, and the run warns": all(
            o.similarity_after > LIMIT and o.warned for o in without
        ),
        "with it the reward rises": all(o.change["low"] > 0 for o in with_prior),
        f"with it similarity ends below {LIMIT}": all(o.similarity_after < LIMIT for o in with_prior),
        "with it no run warns on its way": not any(o.warned for o in with_prior),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 3, 1, 2, 7, 8, 10, 11, 12, 13])
    parser.add_argument("--folder", type=Path, help="keep models here, and use those that are there")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    say: Any = (lambda *_: None) if args.json else print
    found: dict[float, list[Outcome]] = {weight: [] for weight in WEIGHTS}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in args.seeds:
            folder = prepared((args.folder or Path(temporary)).resolve(), seed)
            for weight in WEIGHTS:
                found[weight].append(trained(folder, seed, weight))
                say(line(seed, weight, found[weight][-1]))
    held = claims(found)
    for claim, holds in held.items():
        say(f"{claim}, on every seed: {'holds' if holds else 'does not hold'}")
    if args.json:
        runs = {str(weight): [asdict(outcome) for outcome in outcomes] for weight, outcomes in found.items()}
        json.dump({"seeds": args.seeds, "runs": runs, "claims": held}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
