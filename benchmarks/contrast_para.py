"""ContrastInstructions on real preferences: are reward models that were trained on tweets consistent about tweets?

    python benchmarks/contrast_para.py --out para.json     both models, three seeds, with and without ConvexDA
    python benchmarks/contrast_para.py --models minilm     one of them
    python benchmarks/contrast_para.py --leaky             training rows may hold the questions of contrast pairs

A reward model is trained for one epoch on Twitter paraphrases (arXiv 2309.16155) from all-MiniLM-L6-v2 (all weights)
and from SmolLM2-135M-Instruct (LoRA), each with a new head, and asked with and without RewardFusion: accuracy on
held-out pairs, C_res and C_ins on the 289 released contrast pairs. Training rows, held-out rows and contrast pairs
are put in one form, ``TEMPLATE``. Settings were fixed before the first run. Rows that share a question with a
contrast pair are not trained on, and no held-out row shares one with a training row. ``--out`` is written after every
run; the same call again goes on. Data: ``ALIGN_TEST_DATA`` (default ``../shared/data``), ``contrast_instructions/``.
The models' folders are those that ``make test`` makes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align.data.rows.embedding import Embedder, load_embedder
from align.data.tokens.samples import Prompt
from align.errors import UserError
from align.eval.consistency import probe
from align.eval.contrast import Contrasts, Form, plain, read_pairs
from align.judges.fusion import RewardFusion
from align.judges.judge import ScoreJudge
from align.judges.loading import load_judge
from align.probes.consistency import Consistency, consistency
from align.recipe import Recipe
from align.recipe.sampling import Judge
from align.recipes.quickstart.running import calm, write_rows
from align.runs.files import write_atomically
from align.stats import wilson
from align.train import run
from align.versions import installed

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("ALIGN_TEST_DATA", ROOT.parent / "shared" / "data")) / "contrast_instructions"
TEMPLATE = "Question: {instruction}\nAnswer: {response}"
FORM = Form.of(None, TEMPLATE)
FIGURES = ("accuracy", "C_res, both", "C_ins, both", "C_res, query", "C_ins, query")
VERSIONS = ("align-llm", "torch", "transformers", "trl", "peft", "sentence-transformers")

Row = dict[str, str]
Numbers = dict[str, dict[str, Any]]  # an interval as JSON for each of FIGURES


@dataclass(frozen=True)
class Start:
    """What a reward model is trained from; ``batch`` counts pairs."""

    folder: Path
    rows: int
    batch: int
    learning_rate: float
    lora: dict[str, Any] | None = None


@dataclass(frozen=True)
class Rows:
    """Rows of prompt, chosen and rejected, and the contrast pairs; ``dropped`` training rows share a question."""

    train: list[Row]
    held_out: list[Row]
    contrasts: Contrasts
    dropped: int


class Remembered(ScoreJudge):
    """A judge that is asked once for each answer, with RewardFusion and without."""

    def __init__(self, judge: ScoreJudge) -> None:
        self.judge, self.name = judge, judge.name
        self.known: dict[tuple[Any, str], float] = {}

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        asked = list(zip(prompts, responses, strict=True))
        if new := [answer for answer in dict.fromkeys(asked) if answer not in self.known]:
            self.known.update(zip(new, self.judge.score(*map(list, zip(*new, strict=True))), strict=True))
        return [self.known[answer] for answer in asked]


def remembered(embedder: Embedder) -> Embedder:
    """An embedder that computes every text once, since all reward models are asked about the same ones."""
    known: dict[str, np.ndarray] = {}

    def encode(texts: Sequence[str]) -> np.ndarray:
        if new := [text for text in dict.fromkeys(texts) if text not in known]:
            known.update(zip(new, embedder.encode(new), strict=True))
        return np.stack([known[text] for text in texts])

    return Embedder(embedder.name, encode)


def read_all(leaky: bool, held_out: int) -> Rows:
    """Everything in one form. Raises ``UserError`` where the data are absent."""
    if not DATA.is_dir():
        raise UserError(f"{DATA} is absent: set ALIGN_TEST_DATA to the folder that holds contrast_instructions.")
    train, test = (_preferences(f"human_preferences/twitter_{split}.json.gz") for split in ("train", "test"))
    contrasts = read_pairs(DATA / "para_contrast.json.gz", FORM)
    asked = {plain(str(prompt)) for pair in contrasts.pairs for prompt in (pair.instruction_1, pair.instruction_2)}
    clean = [row for row in train if leaky or plain(row["prompt"]) not in asked]
    seen = {plain(row["prompt"]) for row in clean}
    unseen = [row for row in test if plain(row["prompt"]) not in seen]
    return Rows(clean, unseen[:held_out], contrasts, len(train) - len(clean))


def _preferences(name: str) -> list[Row]:
    """Rows of the released preferences, in which ``_j`` is the preferred answer."""
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        rows = json.load(file)
    out = []
    for row in rows:
        (prompt, chosen), (_, rejected) = (FORM.put(row["question"], row[f"response_{side}"]) for side in "jk")
        out.append({"prompt": str(prompt), "chosen": chosen, "rejected": rejected})
    return out


def recipe(start: Start, rows: Path, seed: int, encoder: Path | None, out: Path) -> Recipe:
    """One epoch over a file of rows; ``encoder`` for ConvexDA, None without."""
    convex = {"convex": {"encoder": str(encoder)}} if encoder else {}
    return Recipe.from_dict(
        {
            "name": out.name,
            "seed": seed,
            "model": {"id": str(start.folder), "dtype": "float32", **({"lora": start.lora} if start.lora else {})},
            "data": {"train": {"path": str(rows)}, "max_length": 128, **convex},
            "objective": {"name": "bradley_terry"},
            "train": {
                "num_train_epochs": 1,
                "learning_rate": start.learning_rate,
                "warmup_steps": 0.1,
                "per_device_train_batch_size": start.batch,
                "activation_checkpointing": False,
                "eval_strategy": "no",
                "save_strategy": "no",
                "logging_steps": 1,
            },
            "output": str(out),
        }
    )


def measured(judge: ScoreJudge, rows: Rows) -> Numbers:
    """Every figure of a judge, with its interval."""
    found = probe(judge, rows.contrasts, say=lambda _: None).found
    return {"accuracy": accuracy(judge.score, rows.held_out), **shares(found)}


def accuracy(score: Callable[..., Sequence[float]], rows: Sequence[Row]) -> dict[str, Any]:
    """Share of pairs whose chosen answer scores higher, ties as half, with Wilson's interval."""
    prompts = [row["prompt"] for row in rows]
    chosen, rejected = (score(prompts, [row[side] for row in rows]) for side in ("chosen", "rejected"))
    hits = sum((a > b) + 0.5 * (a == b) for a, b in zip(chosen, rejected, strict=True))
    return wilson(hits, len(rows)).to_json()


def shares(found: Consistency) -> Numbers:
    """The figures of a contrast set, ties counted as wrong."""
    return {figure.name: figure.share.greater.to_json() for figure in found.figures}


def nulls(rows: Rows) -> dict[str, Numbers]:
    """The null models: what the longest and the shortest answer get."""
    pairs = rows.contrasts.pairs
    found = consistency(pairs, np.zeros((len(pairs), 2, 2)))
    return {
        name: {
            "accuracy": accuracy(lambda _, answers, by=by: [by * len(answer) for answer in answers], rows.held_out),
            **{figure.name: figure.nulls[name].greater.to_json() for figure in found.figures},
        }
        for name, by in (("longest", 1), ("shortest", -1))
    }


def one_run(start: Start, rows: Rows, seed: int, convex: bool, encoder: Path, embedder: Embedder) -> dict[str, Any]:
    """Train once and judge twice, without and with RewardFusion, whose corpus is the training rows as they were."""
    began = time.perf_counter()
    train = rows.train[: start.rows]
    with tempfile.TemporaryDirectory() as temporary:
        file, out = Path(temporary) / "train.jsonl", Path(temporary) / "run"
        write_rows(file, train)
        said: list[str] = []
        with calm():
            run(recipe(start, file, seed, encoder if convex else None, out), echo=said.append)
            trained = time.perf_counter() - began
            judge = load_judge(Judge(reward=str(out)), say=lambda _: None)
        assert isinstance(judge, ScoreJudge)
        known = Remembered(judge)
        corpus = [(row["prompt"], row["chosen"]) for row in train]
        fusion = RewardFusion(known, corpus, embedder, say=lambda _: None)
        results = {"no": measured(known, rows), "yes": measured(fusion, rows)}
    return {
        "fusion": results,
        "with_neighbours": fusion.with_neighbours / fusion.answers,
        "said": [text for text in said if "ConvexDA" in text],
        "seconds": {"training": trained, "all": time.perf_counter() - began},
    }


def table(found: Mapping[str, Any]) -> list[str]:
    """Markdown: for each cell the mean over seeds, their range, and the outer ends of their intervals."""
    lines = [
        "| model | ConvexDA | RewardFusion | seeds | " + " | ".join(("held-out " + FIGURES[0], *FIGURES[1:])) + " |"
    ]
    lines.append("|---" * (4 + len(FIGURES)) + "|")
    for model in dict.fromkeys(key.split("/")[0] for key in found["runs"]):
        for convex in ("no", "yes"):
            runs = [value for key, value in found["runs"].items() if key.startswith(f"{model}/{convex}/")]
            for fusion in ("no", "yes") if runs else ():
                cells = [_cell([r["fusion"][fusion][figure] for r in runs]) for figure in FIGURES]
                lines.append(f"| {model} | {convex} | {fusion} | {len(runs)} | " + " | ".join(cells) + " |")
    for name, numbers in found["nulls"].items():
        lines.append(f"| {name} answer | | | | " + " | ".join(_cell([numbers[f]]) for f in FIGURES) + " |")
    return lines


def _cell(intervals: Sequence[Mapping[str, Any]]) -> str:
    values = [interval["value"] for interval in intervals]
    low, high = min(interval["low"] for interval in intervals), max(interval["high"] for interval in intervals)
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.3f}{spread} [{low:.2f}, {high:.2f}]"


def changes(found: Mapping[str, Any]) -> list[str]:
    """What ConvexDA and RewardFusion change, seed by seed."""
    lines = []
    for model in dict.fromkeys(key.split("/")[0] for key in found["runs"]):
        runs = {tuple(key.split("/")[1:]): r for key, r in found["runs"].items() if key.startswith(f"{model}/")}
        seeds = [seed for convex, seed in runs if convex == "no"]
        for figure in FIGURES[:3]:
            value = {(c, f, s): runs[c, s]["fusion"][f][figure]["value"] for c, s in runs for f in ("no", "yes")}
            pairs = {
                "ConvexDA": [value["yes", "no", s] - value["no", "no", s] for s in seeds if ("yes", s) in runs],
                "RewardFusion": [value["no", "yes", s] - value["no", "no", s] for s in seeds],
            }
            lines += [f"{model}, {figure}: {what} {_signed(gaps)}" for what, gaps in pairs.items() if gaps]
    return lines


def _signed(gaps: Iterable[float]) -> str:
    return " / ".join(f"{gap:+.3f}" for gap in gaps)


def starts(args: argparse.Namespace) -> dict[str, Start]:
    """The models that are asked for. Raises ``UserError`` where the folder of one is absent."""
    lora = {"rank": 8, "alpha": 32, "dropout": 0.1}  # as the authors'
    known = {
        "minilm": Start(args.encoder, args.minilm_rows, batch=32, learning_rate=1e-4),
        "smollm2": Start(args.llama, args.smollm2_rows, batch=16, learning_rate=3e-4, lora=lora),
    }
    chosen = {name: known[name] for name in args.models}
    for folder in (args.encoder, *(start.folder for start in chosen.values())):
        if not (folder / "config.json").exists():
            raise UserError(f"{folder} holds no model: run make test, which makes it, or name another folder.")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("minilm", "smollm2"), default=["minilm", "smollm2"])
    parser.add_argument("--encoder", type=Path, default=ROOT / "build/real/minilm", help="all-MiniLM-L6-v2")
    parser.add_argument("--llama", type=Path, default=ROOT / "build/real/smollm2", help="SmolLM2-135M-Instruct")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minilm-rows", type=int, default=1500)
    parser.add_argument("--smollm2-rows", type=int, default=300)
    parser.add_argument("--held-out", type=int, default=300, help="held-out pairs that are scored")
    parser.add_argument("--leaky", action="store_true", help="keep training rows that share questions with the pairs")
    parser.add_argument("--out", type=Path, help="write all numbers as JSON, and go on from those that are there")
    args = parser.parse_args(argv)
    try:
        found = everything(args)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(["", *table(found), "", *changes(found)]))
    return 0


def everything(args: argparse.Namespace) -> dict[str, Any]:
    """All runs, each written as it ends. Raises ``UserError``."""
    asked, rows = starts(args), read_all(args.leaky, args.held_out)
    settings = {key: str(value) for key, value in vars(args).items() if key not in ("out", "seeds", "models")}
    found: dict[str, Any] = {"settings": settings, "nulls": nulls(rows), "runs": {}}
    if args.out and args.out.exists():
        found = json.loads(args.out.read_text())
        if found["settings"] != settings:
            raise UserError(f"{args.out} holds a run with other settings: name another file.")
    found["versions"] = {name: installed(name) for name in VERSIONS}
    found["rows"] = {"clean": len(rows.train), "dropped": rows.dropped, "held_out": len(rows.held_out)}
    print(f"{len(rows.train):,} training rows, {rows.dropped:,} left out that share a question with a contrast pair")
    print(f"{len(rows.held_out)} held-out pairs, {len(rows.contrasts.pairs)} contrast pairs; {FORM.line(whole=False)}")
    embedder = remembered(load_embedder(str(args.encoder), ()))
    for name, start in asked.items():
        for seed in args.seeds:
            for convex in ("no", "yes"):
                key = f"{name}/{convex}/{seed}"
                if key not in found["runs"]:
                    done = one_run(start, rows, seed, convex == "yes", args.encoder, embedder)
                    found["runs"][key] = done
                    if args.out:
                        write_atomically(args.out, json.dumps(found, indent=1) + "\n")
                    print(f"{key}: {done['seconds']['all']:.0f} s", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
