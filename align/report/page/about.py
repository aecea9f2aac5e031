"""What a run came from: its fixed prompts, its data, what it cost, and how to run it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from align.report.figures import shown as number
from align.report.page.blocks import Answer, Answers, Block, Code, Facts, Points, Section, Table, Text
from align.report.progress import duration
from align.report.record import RunRecord
from align.stats import finite

# keys of facts.json, and what they are called
_LENGTHS = {"mean": "mean", "median": "half at most", "p95": "95 % at most", "longest": "longest"}
_PROBE = {"readings": "readings", "skipped": "left out", "seconds": "seconds"}


def answers(run: RunRecord) -> Section:
    """The answers to the fixed prompts at the start and at the end."""
    title = "Fixed prompts, before and after"
    start, end = by_prompt(run, first=True), by_prompt(run, first=False)
    if not start:
        return Section(title, [Text("No fixed prompts were answered.", quiet=True)])
    last = max(int(line.get("step", 0)) for line in run.answers)
    pairs = tuple(
        Answer(prompt, {"before": text, f"after {last:,} steps": end[prompt]} if prompt in end else {"before": text})
        for prompt, text in start.items()
    )
    about = (
        f"{len(pairs)} prompts, drawn by the seed before training, answered greedily. An impression, no measurement."
    )
    return Section(title, [Text(about), Answers(pairs)])


def by_prompt(run: RunRecord, *, first: bool) -> dict[str, str]:
    """The answer to each prompt at step 0, or at the last step behind it."""
    lines = [line for line in run.answers if (line.get("step") == 0) == first]
    return {str(line.get("prompt", "")): str(line.get("text", "")) for line in lines}


def data(run: RunRecord) -> Section:
    """What became of the rows, and how long they are."""
    found = run.facts.get("data") or {}
    rows = [
        (f"{name}: {part}", *(_value(value) for value in (table.get("rows"), *(lengths.get(key) for key in _LENGTHS))))
        for name, table in (found.get("sets") or {}).items()
        for part, lengths in (table.get("tokens") or {}).items()
    ]
    sentences = found.get("sentences") or []
    # lengths are in the table
    blocks = told([line for line in sentences if not (rows and str(line).startswith("Tokens of "))])
    if rows:
        blocks.append(Table(("tokens of", "rows", *_LENGTHS.values()), rows))
    blocks += told({key: value for key, value in found.items() if key not in ("sentences", "sets")})
    return Section("Data", blocks or [Text("Nothing was recorded about the rows.", quiet=True)])


def cost(run: RunRecord) -> Section:
    """Time, tokens and memory, and what the probes took of the time."""
    facts = cost_facts(run)
    blocks: list[Block] = [Facts(facts)] if facts else []
    blocks += _against_plan((run.facts.get("cost") or {}).get("planned"))
    probes = (run.facts.get("cost") or {}).get("probes") or {}
    if each := probes.get("probes"):
        taken = [(name, *(_value(one.get(key)) for key in _PROBE)) for name, one in each.items()]
        share = "" if probes.get("share") is None else f": {probes['share']:.1%} of the training time"
        blocks.append(Table(("probe", *_PROBE.values()), taken, title=f"Probes{share}"))
    return Section("Cost", blocks or [Text("Time and memory were not recorded.", quiet=True)])


def _against_plan(found: Any) -> list[Block]:
    """Planned beside measured memory and time; time only where all planned steps were taken."""
    if not isinstance(found, Mapping):
        return []
    rows = []
    for name, key, said in (("memory", "memory_bytes", _gib), ("training", "seconds", duration)):
        planned, measured = finite(found.get(key)), finite(found.get(f"measured_{key}"))
        whole = key != "seconds" or found.get("steps") == found.get("measured_steps")
        if planned and measured and whole:
            rows.append((name, said(planned), said(measured), f"{planned / measured:.2f}"))
    return [Table(("", "planned", "measured", "ratio"), rows, title="The plan and what was measured")] if rows else []


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def cost_facts(run: RunRecord) -> dict[str, str]:
    """What a run took, by name; empty where that was not recorded."""
    found = dict(run.facts.get("cost") or {})
    for key in ("probes", "planned"):
        found.pop(key, None)
    seconds, memory = (finite(found.pop(key, None)) for key in ("seconds", "peak_memory_bytes"))
    facts = {} if seconds is None else {"time": duration(seconds)}
    facts |= {} if memory is None else {"peak memory": _gib(memory)}
    return facts | _named(found)


def reproduce(run: RunRecord) -> Section:
    """One command, the recipe as it ran, and what it ran on."""
    blocks: list[Block] = []
    if command := run.facts.get("reproduce"):
        blocks.append(Code(str(command)))
    else:
        text = "The command was not recorded. The recipe below runs again with align train FILE."
        blocks.append(Text(text, quiet=True))
    environment = run.facts.get("environment") or {"versions": run.lock.get("versions")}
    blocks += told(environment)
    recipe = yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=True)
    return Section("Reproduce", [*blocks, Code(recipe, title="The recipe with every default")])


def told(found: Any) -> list[Block]:
    """Recorded facts, whatever their layout: sentences one below the other, names with their values."""
    if isinstance(found, Mapping):
        return [Facts(facts)] if (facts := _named(found)) else []
    if isinstance(found, Sequence) and not isinstance(found, str):
        return [Points([_value(item) for item in found])] if found else []
    return [Text(str(found))] if found else []


def _named(found: Mapping[str, Any]) -> dict[str, str]:
    return {str(name).replace("_", " "): _value(value) for name, value in found.items() if value not in (None, "")}


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {_value(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "\n".join(map(_value, value))
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else number(value)
