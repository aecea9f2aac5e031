"""The quickstart from end to end: a world, a model that learned it, preference pairs, three ways to align, one picture.

What it shows is in ``SHOWN`` and ``LIMITS``; nothing else should be read into a model of half a million parameters.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from align import train
from align.data import world
from align.recipe import load_recipe
from align.recipes.quickstart.measure import Masses, Scorer
from align.recipes.quickstart.picture import draw
from align.recipes.quickstart.small_model import save_new

RECIPES = Path(__file__).parent
METHODS = {"DPO": "dpo", "Flex-DPO": "flex_dpo", "RPO": "rpo"}  # what it is called, its recipe
Echo = Callable[[str], None]

SHOWN = "P(chosen) rises from DPO to Flex-DPO to RPO, and DPO leaks most to other text"
LIMITS = (
    "A toy, at a rate high enough that 48 steps show it. Every chosen answer started as the unlikeliest of twelve, so its",
    "log-prob could only rise: this shows a leak, not the fall of the chosen answer that DPO is known for elsewhere.",
)


def demonstrate(out: Path, *, seed: int = 0, size: world.Size | None = None, echo: Echo = print) -> dict[str, Masses]:
    """Run everything into the folder ``out``, say what happened through ``echo``.

    Returns the masses at the ``start`` and after each method of ``METHODS``, measured on the training pairs.
    """
    with _quiet():
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
    masses, sayings = {"start": scorer.masses(asked, pairs)}, {"start": scorer.says(asked[0]["prompt"], seed)}
    runs: dict[str, Path] = {}
    for title, name in METHODS.items():
        runs[title] = align_with(name, out, model, seed)
        aligned = Scorer(trained_model(runs[title]))
        masses[title], sayings[title] = aligned.masses(asked, pairs), aligned.says(asked[0]["prompt"], seed)
        say(name, f"P(chosen) {masses['start'].chosen:.3f} to {masses[title].chosen:.3f}")
    (out / "masses.json").write_text(json.dumps({k: asdict(v) for k, v in masses.items()}, indent=1) + "\n")
    picture = draw(out / "quickstart.png", masses, {title: trajectory(run) for title, run in runs.items()})
    for line in report(masses, sayings, asked[0]["prompt"], pairs[0]):
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
        places["data.held_out.path"] = str(held_out)
    overrides = [f"{key}={json.dumps(value)}" for key, value in {**places, "seed": seed}.items()]
    if (out / run).exists():
        shutil.rmtree(out / run)
    train.run(load_recipe(RECIPES / f"{recipe}.yaml", overrides), echo=lambda *_: None)
    return out / run


def trained_model(run: Path) -> Path:
    """The folder in which a finished run keeps its model."""
    return run / "model"


@contextmanager
def _quiet() -> Iterable[None]:
    # five short runs, whose progress bars would bury the result
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def trajectory(run: Path) -> list[tuple[float, float, float]]:
    """Step, and change of both answers' log-prob since the start on the held-out pairs in nats, from ``metrics.jsonl``."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [line for line in lines if line.get("probe/chosen") is not None]
    return [(line["step"], line["probe/chosen"], line["probe/rejected"]) for line in kept]


# --- what is said about it -------------------------------------------------------------------------------------------


def report(masses: Mapping[str, Masses], sayings: Mapping[str, str], prompt: str, pair: world.Row) -> list[str]:
    """The table, a sentence for each method, one example, and what is not shown."""
    start = masses["start"]
    lines = ["", "  Where the probability is (whole answers, mean over the training prompts)", ""]
    lines.append(f"  {'':<10}{'chosen':>9}{'rejected':>10}{'other answers':>15}{'any other text':>16}   change in nats")
    for title, now in masses.items():
        change = ""
        if title != "start":
            up, down = now.chosen_logp - start.chosen_logp, now.rejected_logp - start.rejected_logp
            change = f"   chosen {up:+.1f}, rejected {down:+.1f}"
        row = f"  {title:<10}{now.chosen:>9.3f}{now.rejected:>10.3f}{now.others:>15.3f}{now.elsewhere:>16.3f}{change}"
        lines.append(row)
    lines += ["", *(f"  {title:<10}{sentence(start, masses[title])}" for title in METHODS)]
    question = prompt.removeprefix("Question: ").removesuffix("\nAnswer:")
    lines += [
        "",
        f"  One sample each for: {question}  (chosen {pair['chosen'].strip()!r}, not {pair['rejected'].strip()!r})",
    ]
    lines += [f"  {title:<10}{says or '(nothing)'}" for title, says in sayings.items()]
    return [*lines, "", f"  {order(masses)}", *(f"  {line}" for line in LIMITS)]


def sentence(start: Masses, now: Masses) -> str:
    """Where the probability went, in one sentence that is true of any numbers."""
    parts = {"the chosen answer": now.chosen, "the world's other answers": now.others, "other text": now.elsewhere}
    most = max(parts, key=lambda part: parts[part])
    fell = "fell" if now.rejected < start.rejected else "did not fall"
    rest = ""
    if most != "the chosen answer":
        rest = f", {now.chosen:.0%} on the chosen answer"
    elif now.elsewhere > start.elsewhere:
        rest = f", {now.elsewhere:.0%} on other text ({start.elsewhere:.0%} at the start)"
    return f"The rejected answer {fell}; {parts[most]:.0%} of the probability is now on {most}{rest}."


def order(masses: Mapping[str, Masses]) -> str:
    """Whether this run came out in the order that was seen before."""
    return (
        f"As on every seed tried: {SHOWN}." if as_shown(masses) else f"Unlike on the seeds tried before, not: {SHOWN}."
    )


def as_shown(masses: Mapping[str, Masses]) -> bool:
    """Whether ``SHOWN`` holds."""
    chosen = [masses[title].chosen for title in METHODS]
    leak = [masses[title].elsewhere for title in METHODS]
    return chosen == sorted(chosen) and len(set(chosen)) == len(chosen) and leak[0] == max(leak)


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
