"""``facts.json``: what a run knows of its data, its surroundings and its cost, for its report.

It is written at the start and completed at the end, so that a run that dies leaves what it knew. A recipe holds no
secrets (keys are read from the environment), and nothing else of the environment gets here.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from align.data.batches.lengths import column_lengths, rows_with
from align.data.load import Data
from align.data.tokens.preparation import Lengths
from align.recipe import Recipe
from align.recipe.template_arguments import DATE
from align.runs.damage import json_object
from align.runs.directory import LOCK, RunDirectory
from align.runs.memory import peak
from align.runs.record import FACTS
from align.versions import DISTRIBUTION, installed

_GIT_SECONDS = 5  # a repository on a slow disk is left out rather than waited for


class Said:
    """Says lines, and keeps them."""

    def __init__(self, say: Callable[[str], Any]) -> None:
        self.say, self.lines = say, list[str]()

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self.say(line)


def begin(
    recipe: Recipe,
    directory: RunDirectory,
    *,
    said: Sequence[str],
    sets: Mapping[str, Any],
    precision: str,
    asks_date: bool,
) -> None:
    """Write what is known at the start, where the lock file is there already.

    Args:
        said: the sentences on what became of the rows.
        sets: prepared rows by what they are for; what is no table is left out.
        precision: of weights and forwards.
        asks_date: whether the chat template asks for the date, which a repeated run must be given.
    """
    if not directory.writer:
        return
    lock = directory.lock
    tables = {name: _counts(rows) for name, rows in sets.items() if isinstance(rows, Dataset)}
    limits = {"max_length": recipe.data.max_length, "truncation": recipe.data.truncation}
    environment: dict[str, Any] = {
        "align": installed(DISTRIBUTION),
        **{name: lock[name] for name in ("device", "processes", "distributed", "versions") if name in lock},
        "precision": precision,
        "platform": platform.platform(),
        "seed": recipe.seed,
        "recipe_digest": digest(recipe),
        "git": git(recipe.base, recipe.path),
    }
    known = {
        "data": {"sentences": [line.strip() for line in said], "sets": tables, **limits},
        "environment": environment,
        "reproduce": command(recipe, directory.path, lock, asks_date),
    }
    directory.write_json(FACTS, known)


def begin_training(recipe: Recipe, trainer: Any, directory: RunDirectory, data: Data, said: Sequence[str]) -> None:
    """``begin`` of one training."""
    retained = {f"retain {number}": rows for number, rows in enumerate(data.retain or (), start=1)}
    tokenizer, mixed = trainer.processing_class, trainer.accelerator.mixed_precision
    kind = str(next(trainer.model.parameters()).dtype).removeprefix("torch.")
    weights = recipe.model.load_in or kind
    begin(
        recipe,
        directory,
        said=said,
        sets={"forget" if recipe.data.forget else "train": data.train, "held out": data.held_out, **retained},
        precision=f"weights {weights}, forwards {kind if mixed == 'no' else mixed}",
        asks_date=DATE in str(tokenizer.chat_template),
    )


def cost(trainer: Any, seconds: float, since: int, probes: Mapping[str, Any]) -> dict[str, Any]:
    """What training cost. Every rank calls it.

    Args:
        seconds: from the start of the process.
        since: the step that it started at, of a run that was resumed.
        probes: what the probes took; see ``Budget.summary``.
    """
    device, training, reference = trainer.args.device, probes["training_seconds"], trainer.reference
    tokens = int(trainer.sum_over_ranks(torch.tensor(trainer.train_tokens, device=device)))
    found = {
        "seconds": round(seconds, 1),
        "steps": trainer.state.global_step - since,
        "tokens": tokens,
        "tokens_per_second": round(tokens / training, 1) if training else None,
        "peak_memory_bytes": peak(device),
        "peak_memory_of": f"tensors on one {device.type}" if device.type != "cpu" else "the main process",
        "probes": dict(probes),
    }
    if since:
        found["since_step"] = since  # what came before it is not known
    if reference is not None:
        stored = reference.store.rows_read if reference.store else 0
        found["reference_answers"] = {"computed": reference.rows_computed, "from_the_store": stored}
    return found


def add(directory: RunDirectory, more: Mapping[str, Any]) -> None:
    """Complete the file, on the writing process."""
    if directory.writer:
        file = directory.path / FACTS
        # damaged, it is of no use to anyone; what is added now is
        known = (json_object(file.read_bytes()) if file.exists() else None) or {}
        directory.write_json(FACTS, {**known, **more})


def git(folder: Path, file: Path | None) -> dict[str, Any] | None:
    """Commit of the repository that ``folder`` lies in, and whether it holds what is there; None without one.

    ``dirty``: a file of the repository was changed since, or ``file``, the recipe, is not in it.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if not commit or changed is None:
        return None
    own = _git(folder, "status", "--porcelain", "--", file.name) if file is not None else ""
    return {"commit": commit, "dirty": bool(changed or own)}


def _git(folder: Path, *words: str) -> str | None:
    """What git prints; None where there is no git, no repository, or no answer in time."""
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", *words]  # no program that a repository names
    settings = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, env=settings)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def digest(recipe: Recipe) -> str:
    """Hex digest of a recipe with every default, without its name and its folder."""
    values = {key: value for key, value in recipe.dump().items() if key not in ("name", "output")}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def command(recipe: Recipe, run: Path, lock: Mapping[str, Any], asks_date: bool) -> str:
    """The command that repeats a run from its lock file, into a folder beside it."""
    words = [str(run / LOCK), f"output={run}-again"]
    date = (lock.get("template_arguments") or {}).get(DATE)
    if asks_date and date and DATE not in recipe.data.template_arguments:
        words.append(f"data.template_arguments.{DATE}={date}")
    own = [part.name for part in recipe.objective if ":" in part.name]
    if own or (recipe.judge is not None and recipe.judge.function is not None):
        words.append("--allow-code")
    processes = lock.get("processes", 1)
    # how weights are shared out is the launcher's configuration, of which only the kind is known
    launch = ["accelerate", "launch", "--num_processes", str(processes), "-m", "align.train"]
    return shlex.join([*(launch if processes > 1 else ["align", "train"]), *words])


def _counts(rows: Dataset) -> dict[str, Any]:
    """How many rows, and how many tokens their parts have."""
    names = [name.removesuffix("_ids") for name in rows.column_names if name.endswith("_ids")]
    tokens = {}
    for name in names:
        found = column_lengths(rows, f"{name}_ids")[rows_with(rows, name)]
        tokens[name] = Lengths(Counter(found.tolist())).to_dict()
    return {"rows": len(rows), "tokens": tokens}
