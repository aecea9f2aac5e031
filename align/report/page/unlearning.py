"""The front of an unlearning run: how much was forgotten, against what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from align.report.figures import shown as number
from align.report.page.blocks import Block, Chart, Charts, Key, Section, Table, Text
from align.report.record import RunRecord
from align.report.trajectory import draw_front, trajectory

_COLUMNS = {
    "step": "step",
    "forget_quality": "forget quality",
    "D": "D",
    "n": "n",
    "utility": "utility",
    "utility_retain": "on retained rows",
    "forget_probability": "P(forgotten answer)",
    "forget_rouge": "ROUGE-L",
}


def front(run: RunRecord) -> Section:
    """Forget quality against utility, and every reading in a table."""
    title, readings = "Forgetting and its cost", trajectory(run.metrics)
    if not readings:
        text = (
            "No test suite was run (evaluate: {suite: tofu}), so it is not known what was forgotten and what it cost."
        )
        return Section(title, [Text(text, quiet=True)])
    blocks: list[Block] = []
    if (chart := front_chart({run.name: run})) is not None:
        blocks.append(Charts((chart,)))
    else:
        text = "Forget quality was not measured: it needs evaluate.retain, a model that never saw the forgotten rows."
        blocks.append(Text(text, quiet=True))
    names = [name for name in _COLUMNS if any(name in reading for reading in readings)]
    cells = [[_cell(reading.get(name)) for name in names] for reading in readings]
    return Section(title, [*blocks, Table([_COLUMNS[name] for name in names], cells, title="Every reading")])


def front_chart(runs: Mapping[str, RunRecord]) -> Chart | None:
    """The picture of one run or of several that forget the same; None where one of them has not all it needs."""
    readings = {name: trajectory(run.metrics) for name, run in runs.items()}
    if any(not own or not all({"forget_quality", "utility"} <= set(r) for r in own) for own in readings.values()):
        return None
    first = next(iter(readings.values()))[0]
    retain = next((found for run in runs.values() if (found := retain_reading(run)) is not None), None)
    kept = {name: step for name, run in runs.items() if (step := kept_step(run)) is not None}
    about = (
        "Up and to the right is better. Open marks on the way, filled at the end, a ring around the step that was kept."
    )
    if retain is None:
        about += " The retain model's utility was not recorded."
    says = "Forget quality against utility. " + " ".join(_says(name, own, kept) for name, own in readings.items())
    legend = tuple(Key(name, number) for number, name in enumerate(runs)) if len(runs) > 1 else ()
    draw = partial(draw_front, full=first, retain=retain, runs=readings, kept=kept)
    return Chart("Forget quality against utility", about, says, draw, legend, "p-value", height=3.8)


def retain_reading(run: RunRecord) -> Mapping[str, float] | None:
    """What the suite read of the retain model, where that was recorded."""
    found = (record["retain"] for record in run.metrics if isinstance(record.get("retain"), Mapping))
    return next((reading for reading in found if reading.get("utility") is not None), None)


def kept_step(run: RunRecord) -> int | None:
    """The step in ``best/``."""
    steps = [record["best"].get("step") for record in run.metrics if isinstance(record.get("best"), Mapping)]
    return steps[-1] if steps else None


def _says(name: str, readings: Sequence[Mapping[str, Any]], kept: Mapping[str, int]) -> str:
    ends = (readings[0], readings[-1])
    places = [f"{number(r['forget_quality'])} at utility {number(r['utility'])}" for r in ends]
    step = f", step {kept[name]} was kept" if name in kept else ""
    return f"{name}: from {places[0]} to {places[1]}{step}."


def _cell(value: Any) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else number(value)
