"""The quickstart from end to end: a world, models that learned it, three ways to align one, five ways to forget.

What may be read into models of half a million parameters is said in ``summary.py`` and ``unlearning_summary.py``.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from align.data.rows import world
from align.recipes.quickstart.measure import Masses, Scorer
from align.recipes.quickstart.picture import draw
from align.recipes.quickstart.running import (
    Echo,
    Steps,
    calm,
    learn_base,
    learn_people,
    run_recipe,
    short,
    trained_model,
    write_rows,
)
from align.recipes.quickstart.summary import summary
from align.recipes.quickstart.unlearning import Unlearned, unlearn
from align.runs.directory import VERDICT, RunDirectory
from align.runs.record import load_run
from align.runs.report import HTML, write_report

METHODS = {"DPO": "dpo", "Flex-DPO": "flex_dpo", "RPO": "rpo"}  # what it is called, its recipe


@dataclass(frozen=True)
class Demonstration:
    """Masses on the training pairs at the ``start`` and after each of ``METHODS``, and what unlearning came to."""

    masses: dict[str, Masses]
    unlearned: Unlearned


def demonstrate(out: Path, *, seed: int = 0, size: world.Size | None = None, echo: Echo = print) -> Demonstration:
    """Run everything into the folder ``out``, say what happened through ``echo``."""
    with calm():
        out = out.resolve()
        began = time.perf_counter()
        out.mkdir(parents=True, exist_ok=True)
        made = world.build(seed, size)
        say = Steps(echo)
        say("world", f"{len(made.full)} facts about {made.size.people} invented people, seed {seed}")
        model = learn(out, made)
        masses = align_model(out, made, model, say)
        echo("")
        say.last = time.perf_counter()
        unlearned = unlearn(out, made, retain=model, base=trained_model(out / "learn-base"), say=say)
        pictures = " and ".join(short(out / name) for name in ("quickstart.png", "unlearning.png"))
        echo(f"\n  pictures {pictures}")
        echo(f"  report   {short(out / HTML)}: the three preference runs side by side; every run has one of its own")
        echo(f"  done in  {time.perf_counter() - began:.0f} s")
        return Demonstration(masses, unlearned)


def learn(out: Path, made: world.World) -> Path:
    """Train a new model in two stages on everything but the forget people; returns its folder, ``out/model``."""
    base = learn_base(out, made)
    people = learn_people(out, made, base=base, facts=made.retain, name="people")
    shutil.copytree(people, out / "model", dirs_exist_ok=True)
    return out / "model"


# --- preference ------------------------------------------------------------------------------------------------------


def align_model(out: Path, made: world.World, model: Path, say: Steps) -> dict[str, Masses]:
    """Make pairs, run every method of ``METHODS`` on them, draw and say what became of the probability."""
    scorer = Scorer(model)
    taught, never = scorer.recalled(made.retain), scorer.recalled(made.forget)
    say("learn", f"recalls {taught:.0%} about people it was taught, {never:.0%} about the others (chance 8%)")
    asked = world.candidate_rows(made.forget)
    pairs = make_pairs(scorer, asked)
    strangers = make_pairs(scorer, world.candidate_rows(made.strangers))
    write_rows(out / "pairs.jsonl", pairs)
    write_rows(out / "held_out.jsonl", strangers)
    say("pairs", f"{len(pairs)} (held out {len(strangers)}): chosen its unlikeliest answer, rejected its likeliest")
    masses, said = {"start": scorer.masses(asked, pairs)}, {"start": scorer.samples(pairs[0]["prompt"])}
    runs: dict[str, Path] = {}
    for title, name in METHODS.items():
        runs[title] = align_with(name, out, model, made.seed)
        aligned = Scorer(trained_model(runs[title]))
        masses[title], said[title] = aligned.masses(asked, pairs), aligned.samples(pairs[0]["prompt"])
        gone = astray(runs[title])
        say(name, f"P(chosen) {masses['start'].chosen:.3f} to {masses[title].chosen:.3f}; own answers astray: {gone}")
    (out / "masses.json").write_text(json.dumps({k: asdict(v) for k, v in masses.items()}, indent=1) + "\n")
    draw(out / "quickstart.png", masses, {title: trajectory(run) for title, run in runs.items()})
    write_report([load_run(run) for run in runs.values()], out)
    for line in summary(masses, said, pairs[0], {title: accuracy(run) for title, run in runs.items()}):
        say.echo(line)
    return masses


def make_pairs(scorer: Scorer, asked: list[world.Row]) -> list[world.Row]:
    """Pairs against the model's own habit: chosen is its unlikeliest candidate, rejected its likeliest."""
    return world.preference_pairs(asked, scorer.logps(asked).tolist(), chosen="off", rejected="on")


def align_with(name: str, out: Path, model: Path, seed: int) -> Path:
    """Run one of the preference recipes on the pairs in ``out``; returns the run directory."""
    places = {
        "model.id": str(model),
        "data.train.path": str(out / "pairs.jsonl"),
        "data.held_out.path": str(out / "held_out.jsonl"),
        "reference.store_dir": str(out / "reference"),
    }
    return run_recipe(name, out / name.replace("_", "-"), seed, places)


def trajectory(run: Path) -> list[tuple[float, float, float]]:
    """Step, and how far both answers of the held-out pairs moved since the start, in nats; from ``metrics.jsonl``."""
    probes = [record["probe"] for record in RunDirectory(run).metrics() if "probe" in record]
    return [(probe["step"], probe["chosen"]["value"], probe["rejected"]["value"]) for probe in probes]


def astray(run: Path) -> str:
    """The run's own verdict on whether the model writes what neither the pairs nor the model at the start had."""
    return str(json.loads((run / VERDICT).read_text())["findings"]["astray"]["word"])


def accuracy(run: Path) -> float:
    """Share of held-out pairs whose implicit reward prefers the chosen answer at the end, in [0, 1]."""
    key = "eval_rewards/accuracies"
    return [record[key] for record in RunDirectory(run).metrics() if key in record][-1]
