"""``align show RUN``: what a run is, how far it came and where its files are, read from its directory. No torch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.report.progress import FORGETTING, PAIRS, duration, header, line
from align.report.trajectory import trajectory
from align.runs.directory import LOCK, METRICS, VERDICT, RunDirectory
from align.runs.record import load_run
from align.runs.result import MODEL

_LINES = 8  # of a table
_FILES = (LOCK, METRICS, VERDICT, "README.md", MODEL, "samples", "rounds", "eval")


@dataclass(frozen=True)
class Overview:
    """A run as its directory shows it. ``records`` are those of ``metrics.jsonl``, ``verdict`` is None before its end.

    ``age`` is the time since anything was recorded, in seconds.
    """

    run: str
    recipe: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    verdict: Mapping[str, Any] | None
    checkpoints: Sequence[str]
    files: Sequence[str]
    started: str
    age: float
    notes: Sequence[str] = ()  # what could not be read

    @property
    def steps(self) -> int:
        """Optimizer steps that are recorded; of a run in rounds, of all of them."""
        in_rounds = sum(record["steps"] for record in self.rounds)
        return in_rounds or max((int(record.get("step", 0)) for record in self.records), default=0)

    @property
    def rounds(self) -> list[Mapping[str, Any]]:
        """Records of rounds, if the run goes in rounds."""
        return [record for record in self.records if "round" in record]

    @property
    def state(self) -> str:
        """Whether it is finished, and how to go on where it is not."""
        if self.verdict is not None:
            return f"finished after {self.steps:,} steps"
        kept = f"the last checkpoint is {self.checkpoints[-1]}" if self.checkpoints else "there is no checkpoint yet"
        return (
            f"not finished: {self.steps:,} steps recorded, the last sign of it {duration(self.age)} ago; {kept}. "
            "Unless it still runs, go on with the command that it was started with and --resume"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "run": self.run,
            "recipe": dict(self.recipe),
            "started": self.started,
            "finished": self.verdict is not None,
            "state": self.state,
            "steps": self.steps,
            "rounds": self.rounds,
            "probe": [{"step": record.get("step"), **record["probe"]} for record in self.records if _probed(record)],
            "evaluations": trajectory(self.records),
            "last": dict(self.records[-1]) if self.records else None,
            "verdict": self.verdict,
            "checkpoints": list(self.checkpoints),
            "files": list(self.files),
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """For people."""
        out = [f"{self.run}: {self.state}", ""]
        out += [f"  {name:<11} {text}" for name, text in self._about() if text]
        out += [f"  {'warning':<11} {note}" for note in self.notes]
        for table in (self._rounds(), self._steps(), self._evaluations(), self._verdict()):
            out += ["", *table] if table else []
        if any(name in self.files for name in ("samples", "rounds")):
            out += ["", f"samples: align show samples {self.run}"]
        return [*out, "", "files", *(f"  {Path(self.run) / name}" for name in (*self.files, *self.checkpoints))]

    def _about(self) -> list[tuple[str, str]]:
        recipe, model = self.recipe, _section(self.recipe, "model")
        objective = recipe.get("objective")
        parts = objective if isinstance(objective, list) else [objective]
        sources = [
            f"{name} {source.get('path') or source.get('id') or source.get('world')}"
            for name in ("train", "forget", "retain", "held_out")
            for source in _section(recipe, "data").get(name) or ()
        ]
        return [
            ("name", str(recipe.get("name", ""))),
            ("objective", "; ".join(_values(part) for part in parts if isinstance(part, Mapping))),
            ("model", f"{model.get('id')}{', an adapter' if model.get('lora') else ''}"),
            ("data", "; ".join(sources)),
            ("started", self.started),
        ]

    def _rounds(self) -> list[str]:
        if not self.rounds:
            return []
        from align.report.rounds import table

        return table(self.rounds)

    def _steps(self) -> list[str]:
        """Log steps with what was probed at them, evenly spaced, the first and the last among them."""
        logged = [record for record in self.records if _probed(record)] or [r for r in self.records if "loss" in r]
        logged = [] if self.rounds else logged
        forgets = _section(self.recipe, "data").get("forget")
        columns = tuple(column for column in (FORGETTING if forgets else PAIRS) if column[0] not in ("tok/s", "left"))
        return [header(5, columns), *(line(record, 5, columns) for record in _some(logged))] if logged else []

    def _evaluations(self) -> list[str]:
        readings = trajectory(self.records)
        names = list(readings[-1]) if readings else []
        cells = [[f"{reading[name]:.4g}" if name in reading else "-" for name in names] for reading in _some(readings)]
        widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
        rows = [names, *cells] if names else []
        return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]

    def _verdict(self) -> list[str]:
        findings = (self.verdict or {}).get("findings") or {}
        return [f"  {name:<14}{found.get('word', ''):<14}{found.get('text', '')}" for name, found in findings.items()]


def overview(run: str) -> Overview:
    """What the directory ``run`` shows. Raises UserError where it is none of a run, or cannot be read."""
    found, path = load_run(run), Path(run)
    recorded = [path / name for name in (LOCK, METRICS, VERDICT) if (path / name).exists()]
    return Overview(
        run,
        found.recipe,
        found.metrics,
        found.verdict,
        [checkpoint.name for checkpoint in RunDirectory(path).checkpoints()],
        [name for name in _FILES if (path / name).exists()],
        time.strftime("%Y-%m-%d %H:%M", time.localtime((path / LOCK).stat().st_mtime)),
        time.time() - max(file.stat().st_mtime for file in recorded),
        found.notes,
    )


def _probed(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("probe"), Mapping)


def _section(recipe: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = recipe.get(name)
    return found if isinstance(found, Mapping) else {}


def _values(part: Mapping[str, Any]) -> str:
    fields = ", ".join(f"{key} {value}" for key, value in part.items() if key != "name")
    return f"{part.get('name')} ({fields})" if fields else str(part.get("name"))


def _some(rows: Sequence[Any]) -> list[Any]:
    """At most ``_LINES`` rows, evenly spaced, first and last among them."""
    if len(rows) <= _LINES:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (_LINES - 1))] for i in range(_LINES)]
