"""The quickstart from end to end: a world, a model that learned it, preference pairs, three ways to align, one picture.

What may be read into it, a model of half a million parameters, is said in ``summary.py``.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from align import train
from align.data import world
from align.recipe import load_recipe
from align.recipes.quickstart.measure import Masses, Scorer
from align.recipes.quickstart.picture import draw
from align.recipes.quickstart.small_model import save_new
from align.recipes.quickstart.summary import summary
from align.run import LOCK, RunDirectory

RECIPES = Path(__file__).parent
METHODS = {"DPO": "dpo", "Flex-DPO": "flex_dpo", "RPO": "rpo"}  # what it is called, its recipe
Echo = Callable[[str], None]


def demonstrate(out: Path, *, seed: int = 0, size: world.Size | None = None, echo: Echo = print) -> dict[str, Masses]:
    """Run everything into the folder ``out``, say what happened through ``echo``.

    Returns the masses at the ``start`` and after each method of ``METHODS``, measured on the training pairs.
    """
    with _calm():
        return _demonstrate(out.resolve(), seed, size, echo)


def _demonstrate(out: Path, seed: int, size: world.Size | None, echo: Echo) -> dict[str, Masses]:
    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    made = world.build(seed, size)
    say = _Steps(echo)
    say("world", f"{len(made.full)} facts about {made.size.people} invented people, seed {seed}")
    model = learn(out, made, seed)
    scorer = Scorer(model)
    taught, never = scorer.recalled(made.retain), scorer.recalled(made.forget)
    say("learn", f"recalls {taught:.0%} about people it was taught, {never:.0%} about the others (chance 8%)")
    asked = world.candidate_rows(made.forget)
    pairs = make_pairs(scorer, asked)
    strangers = make_pairs(scorer, world.candidate_rows(made.strangers))
    _write(out / "pairs.jsonl", pairs)
    _write(out / "held_out.jsonl", strangers)
    say("pairs", f"{len(pairs)} (held out {len(strangers)}): chosen its unlikeliest answer, rejected its likeliest")
    masses, said = {"start": scorer.masses(asked, pairs)}, {"start": scorer.samples(pairs[0]["prompt"])}
    runs: dict[str, Path] = {}
    for title, name in METHODS.items():
        runs[title] = align_with(name, out, model, seed)
        aligned = Scorer(trained_model(runs[title]))
        masses[title], said[title] = aligned.masses(asked, pairs), aligned.samples(pairs[0]["prompt"])
        say(name, f"P(chosen) {masses['start'].chosen:.3f} to {masses[title].chosen:.3f}")
    (out / "masses.json").write_text(json.dumps({k: asdict(v) for k, v in masses.items()}, indent=1) + "\n")
    picture = draw(out / "quickstart.png", masses, {title: trajectory(run) for title, run in runs.items()})
    for line in summary(masses, said, pairs[0], {title: accuracy(run) for title, run in runs.items()}):
        echo(line)
    echo(f"\n  picture  {_short(picture)}\n  done in  {time.perf_counter() - began:.0f} s")
    return masses


class _Steps:
    """One line for each finished step, with the seconds since the one before."""

    def __init__(self, echo: Echo) -> None:
        self.echo, self.last = echo, time.perf_counter()

    def __call__(self, name: str, text: str) -> None:
        now = time.perf_counter()
        self.echo(f"  {name:<9}{text:<92}{now - self.last:5.1f} s")
        self.last = now


# --- the model that knows the world ----------------------------------------------------------------------------------


def learn(out: Path, made: world.World, seed: int) -> Path:
    """Train a new model in two stages on everything but the forget people; returns its folder, ``out/model``."""
    save_new(out / "start", world.corpus(made), seed)
    _write(out / "base.jsonl", world.base_rows(made))
    _write(out / "people.jsonl", world.tune_rows(made, made.retain))
    base = _train("learn_base", out, "learn-base", out / "start", seed, train_rows=out / "base.jsonl")
    people = _train("learn_people", out, "learn-people", trained_model(base), seed, train_rows=out / "people.jsonl")
    shutil.copytree(trained_model(people), out / "model", dirs_exist_ok=True)
    return out / "model"


def make_pairs(scorer: Scorer, asked: list[world.Row]) -> list[world.Row]:
    """Pairs against the model's own habit: chosen is its unlikeliest candidate, rejected its likeliest."""
    return world.preference_pairs(asked, scorer.logps(asked).tolist(), chosen="off", rejected="on")


def align_with(name: str, out: Path, model: Path, seed: int) -> Path:
    """Run one of the preference recipes on the pairs in ``out``; returns the run directory."""
    run = name.replace("_", "-")
    return _train(name, out, run, model, seed, train_rows=out / "pairs.jsonl", held_out=out / "held_out.jsonl")


def _train(
    recipe: str, out: Path, run: str, model: Path, seed: int, *, train_rows: Path, held_out: Path | None = None
) -> Path:
    """Run one recipe of this folder on files in ``out``; returns the run directory, which is begun anew."""
    places: dict[str, Any] = {"model.id": str(model), "data.train.path": str(train_rows), "output": str(out / run)}
    if held_out is not None:
        places |= {"data.held_out.path": str(held_out), "reference.store_dir": str(out / "reference")}
    overrides = [f"{key}={json.dumps(value)}" for key, value in {**places, "seed": seed}.items()]
    if (out / run / LOCK).exists():  # of an earlier quickstart
        shutil.rmtree(out / run)
    train.run(load_recipe(RECIPES / f"{recipe}.yaml", overrides), echo=lambda *_: None)
    return out / run


def trained_model(run: Path) -> Path:
    """The folder in which a finished run keeps its model."""
    return run / train.MODEL


@contextmanager
def _calm() -> Iterator[None]:
    """No progress bars, which would bury the result; and one thread, since matrices this small are not worth two."""
    from transformers.utils import logging

    bars, threads = logging.is_progress_bar_enabled(), torch.get_num_threads()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if bars:
            logging.enable_progress_bar()


def trajectory(run: Path) -> list[tuple[float, float, float]]:
    """Step, and how far both answers of the held-out pairs moved since the start, in nats; from ``metrics.jsonl``."""
    probes = [record["probe"] for record in RunDirectory(run).metrics() if "probe" in record]
    return [(probe["step"], probe["chosen"]["value"], probe["rejected"]["value"]) for probe in probes]


def accuracy(run: Path) -> float:
    """Share of held-out pairs whose implicit reward prefers the chosen answer at the end, in [0, 1]."""
    key = "eval_rewards/accuracies"
    return [record[key] for record in RunDirectory(run).metrics() if key in record][-1]


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
