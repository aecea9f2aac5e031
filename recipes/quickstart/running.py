"""What both parts of the quickstart need: to run a recipe of this folder quietly, and to say what was done."""

from __future__ import annotations

import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from align import train
from align.data.rows import world
from align.recipe import load_recipe
from align.recipes.quickstart.small_model import save_new
from align.runs.directory import LOCK
from align.runs.result import MODEL

RECIPES = Path(__file__).parent
Echo = Callable[[str], None]


class Steps:
    """One line for each finished step, with the seconds since the one before."""

    def __init__(self, echo: Echo) -> None:
        self.echo, self.last = echo, time.perf_counter()

    def __call__(self, name: str, text: str) -> None:
        now = time.perf_counter()
        self.echo(f"  {name:<13}{text:<92}{now - self.last:5.1f} s")
        self.last = now


def run_recipe(name: str, run: Path, seed: int, places: Mapping[str, Any]) -> Path:
    """Run one recipe of this folder in ``run``, which is begun anew, with other ``places`` (overrides by key)."""
    overrides = [f"{key}={json.dumps(value)}" for key, value in {**places, "output": str(run), "seed": seed}.items()]
    if (run / LOCK).exists():  # of an earlier quickstart
        shutil.rmtree(run)
    train.run(load_recipe(RECIPES / f"{name}.yaml", overrides), echo=lambda *_: None)
    return run


def trained_model(run: Path) -> Path:
    """The folder in which a finished run keeps its model."""
    return run / MODEL


def learn_base(out: Path, made: world.World) -> Path:
    """Train a new model on everything but the people; returns its folder."""
    save_new(out / "start", world.corpus(made), made.seed)
    write_rows(out / "base.jsonl", world.base_rows(made))
    places = {"model.id": str(out / "start"), "data.train.path": str(out / "base.jsonl")}
    return trained_model(run_recipe("learn_base", out / "learn-base", made.seed, places))


def learn_people(out: Path, made: world.World, *, base: Path, facts: list[world.Row], name: str) -> Path:
    """Teach the ``base`` model ``facts`` about people, in the run ``learn-<name>``; returns the folder of its model."""
    write_rows(out / f"{name}.jsonl", world.tune_rows(made, facts))
    places = {"model.id": str(base), "data.train.path": str(out / f"{name}.jsonl")}
    return trained_model(run_recipe("learn_people", out / f"learn-{name}", made.seed, places))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@contextmanager
def calm() -> Iterator[None]:
    """No bars and notices, which would bury the result; and one thread, since so small matrices are not worth two."""
    from transformers.utils import logging as bars

    # DeepSpeed, where installed, is imported with transformers and announces that there is no GPU
    logging.getLogger("DeepSpeed").addFilter(_not_about_the_cpu)
    shown, threads = bars.is_progress_bar_enabled(), torch.get_num_threads()
    bars.disable_progress_bar()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        torch.set_num_threads(threads)
        if shown:
            bars.enable_progress_bar()


def _not_about_the_cpu(record: logging.LogRecord) -> bool:
    return "Setting accelerator to CPU" not in record.getMessage()


def short(path: Path) -> str:
    """A path as people read it: relative where it is below the working directory."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
