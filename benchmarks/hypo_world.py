"""HyPO beside DPO on the generated world: how far each goes from the reference, and what it learns, in a few minutes.

    python benchmarks/hypo_world.py              chooses the KL weight on seed 0, then reports six others
    python benchmarks/hypo_world.py --json       the numbers

Both train on the quickstart's pairs with its settings and differ in the KL term alone. The weight is the one of
``WEIGHTS`` with the highest accuracy on seed 0's held-out pairs, of equal ones the largest.
KL(policy || reference) is estimated with fresh samples at the end: the mean of log pi(y|x) - log pi_ref(y|x) over
``SAMPLES`` answers to each prompt, in nats per answer, its interval a bootstrap over prompts. Accuracy is the share of
held-out pairs with a positive margin, its interval Wilson's.
"""

from __future__ import annotations

import argparse
import json
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
from align.recipes.quickstart.running import calm
from align.sampling.sampler import Sampler
from align.stats import Interval, bootstrap_mean
from align.train import run

WEIGHTS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
ALLOWED = 0.02  # accuracy that HyPO may lose
SAMPLES, NEW_TOKENS = 16, 24


@dataclass(frozen=True)
class Outcome:
    """One run: accuracy on held-out pairs, and KL on their prompts and on the training prompts, in nats."""

    accuracy: dict[str, Any]
    kl_held_out: dict[str, Any]
    kl_train: dict[str, Any]
    seconds: float


def trained(folder: Path, seed: int, weight: float, name: str) -> Outcome:
    """Train with one KL weight (0: DPO) and measure."""
    began = time.perf_counter()
    out = folder / name
    shutil.rmtree(out, ignore_errors=True)
    recipe = load_recipe(
        "online/world-hypo",
        [
            f"seed={seed}",
            f"model.id={json.dumps(str(folder / 'model'))}",
            f"data.train.path={json.dumps(str(folder / 'pairs.jsonl'))}",
            f"data.held_out.path={json.dumps(str(folder / 'held_out.jsonl'))}",
            f"objective.kl_weight={weight}",
            *([] if weight else ["sampling=null"]),
            f"output={json.dumps(str(out))}",
        ],
    )
    with calm():
        result = run(recipe, echo=lambda *_: None)
        kls = [sampled_kl(folder, out, folder / f"{rows}.jsonl") for rows in ("held_out", "pairs")]
    accuracy = result.verdict["findings"]["learned"]["accuracy"]
    return Outcome(accuracy, *(kl.to_json() for kl in kls), time.perf_counter() - began)


def sampled_kl(folder: Path, run_folder: Path, rows: Path) -> Interval:
    """Reverse KL to the reference on fresh samples for the prompts of a file, with an interval over prompts."""
    policy = Subject.load(str(run_folder), echo=lambda *_: None)
    reference = Subject.load(str(folder / "model"), echo=lambda *_: None)
    texts = [json.loads(line)["prompt"] for line in rows.read_text().splitlines()]
    prompts = [policy.tokenizer(text).input_ids for text in texts]
    sampler = Sampler(Sampling(samples=SAMPLES, max_new_tokens=NEW_TOKENS, batch_size=256), policy.tokenizer, seed=123)
    with torch.no_grad():
        drawn = sampler(
            policy.model, prompts, [prompt_key(p, i) for i, p in enumerate(prompts)], 0, device=policy.device
        )
    branches = [{str(s.index): s.ids for s in samples} for samples in drawn]
    ours, theirs = policy.score(prompts, branches), reference.score(prompts, branches)
    gaps = [sum(a[k]["logp"].sum() - b[k]["logp"].sum() for k in a) / len(a) for a, b in zip(ours, theirs, strict=True)]
    return bootstrap_mean(gaps, seed=0)


def choose(outcomes: dict[float, Outcome]) -> float:
    """The weight with the highest accuracy, of equal ones the largest; ``outcomes`` by weight, 0 is DPO."""
    return max((w for w in outcomes if w), key=lambda w: (outcomes[w].accuracy["value"], w))


def measure(root: Path, seeds: tuple[int, ...], say: Any) -> dict[str, Any]:
    """Choose on the first seed, report the others."""
    first = prepared(root, seeds[0])
    tried: dict[float, Outcome] = {}
    for weight in (0.0, *WEIGHTS):
        tried[weight] = trained(first, seeds[0], weight, f"weight-{weight:g}")
        say(line(seeds[0], "DPO" if not weight else f"HyPO {weight:g}", tried[weight]))
    weight = choose(tried)
    say(f"KL weight {weight:g}, chosen on seed {seeds[0]}; from here on it is fixed")
    reported: dict[int, dict[str, Outcome]] = {}
    for seed in seeds[1:]:
        folder = prepared(root, seed)
        reported[seed] = {
            "DPO": trained(folder, seed, 0.0, "dpo"),
            "HyPO": trained(folder, seed, weight, "hypo"),
        }
        for name, outcome in reported[seed].items():
            say(line(seed, name, outcome))
    claims = {
        "lower KL on held-out prompts": all(
            found["HyPO"].kl_held_out["high"] < found["DPO"].kl_held_out["low"] for found in reported.values()
        ),
        "accuracy at most 2 points below": all(
            found["HyPO"].accuracy["value"] >= found["DPO"].accuracy["value"] - ALLOWED for found in reported.values()
        ),
    }
    for claim, holds in claims.items():
        say(f"{claim}, on every reported seed: {'holds' if holds else 'does not hold'}")
    return {
        "kl_weight": weight,
        "tried": {str(w): asdict(o) for w, o in tried.items()},
        "reported": {seed: {n: asdict(o) for n, o in found.items()} for seed, found in reported.items()},
        "claims": claims,
    }


def line(seed: int, name: str, found: Outcome) -> str:
    """One run as people read it."""

    def shown(value: dict[str, Any]) -> str:
        return f"{value['value']:6.2f} [{value['low']:.2f}, {value['high']:.2f}]"

    return (
        f"seed {seed}  {name:<10} accuracy {shown(found.accuracy)}  KL held-out {shown(found.kl_held_out)}  "
        f"train {shown(found.kl_train)}  {found.seconds:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 7, 8, 9], help="the first one chooses")
    parser.add_argument("--folder", type=Path, help="keep models here, and use those that are there")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = args.folder or Path(temporary)
        found = measure(root.resolve(), tuple(args.seeds), (lambda *_: None) if args.json else print)
    if args.json:
        json.dump(found, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
