"""What a verdict is: findings in words with the numbers that they rest on. Imports no torch.

Each word follows from recorded numbers by a rule with a threshold. What was not measured is called so, and no word
rests on a point estimate where an interval is known. What the words are is in ``preference.py`` for pairs, and in
``unlearning.py`` and ``survivors.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from align.report.progress import duration

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Finding:
    """One line: ``word`` is the verdict, ``text`` says on what it rests, ``facts`` are the numbers (JSON)."""

    name: str
    word: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """All findings of a run. ``lines`` prints those named in ``shown``, ``to_json`` gives every one."""

    headline: str
    findings: tuple[Finding, ...]
    paths: Mapping[str, str]
    shown: tuple[str, ...]

    def __getitem__(self, name: str) -> Finding:
        return next(finding for finding in self.findings if finding.name == name)

    def body(self, *, full: bool = False) -> list[str]:
        """A line for each finding of the end block; with ``full``, for those that it leaves out too."""
        shown = [finding for finding in self.findings if full or finding.name in self.shown]
        width = max(12, *(len(finding.word) + 2 for finding in shown))
        return [f"  {f.name:<14}{f.word.ljust(width) if f.word else ''}{f.text}".rstrip() for f in shown]

    def lines(self, *, full: bool = False) -> list[str]:
        """The end block."""
        ends = [f"  {name:<8} {path}" for name, path in self.paths.items()]
        return [self.headline, "", *self.body(full=full), *([""] if ends else []), *ends]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON for the run directory and the report."""
        findings = {f.name: {"word": f.word, "text": f.text, **f.facts} for f in self.findings}
        return {"headline": self.headline, "findings": findings, "paths": dict(self.paths), "shown": list(self.shown)}


def headline(run: str, seconds: float | None, stopped: str) -> str:
    """The first line: whether the run ended by itself, how long it took, where it is."""
    took = "" if seconds is None else f" {'after' if stopped else 'in'} {duration(seconds)}"
    reason = f": {stopped.rstrip('.')}" if stopped else ""
    return f"{'Stopped' if stopped else 'Done'}{took}{reason}." + (f"  {run}" if run else "")
