"""What a check of data found, and how it is said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from align.data.tokens.preparation import FIRST, Preparation, Tally, first_rows, plural

Severity = Literal["error", "warning", "ok"]
_ORDER = ("error", "warning", "ok")
_NARROW, _WIDE = 36, 62  # columns of the text of a finding, at least and at most


@dataclass(frozen=True)
class Finding:
    """One thing that was found. ``first`` are the numbers of the first rows concerned."""

    severity: Severity
    code: str
    text: str
    count: int = 0
    first: tuple[int, ...] = ()
    amount: str = ""
    note: str = ""

    @classmethod
    def of(cls, severity: Severity, code: str, text: str, tally: Tally, note: str = "") -> Finding:
        """A finding about counted rows."""
        where = first_rows(tally)
        shown = f"{where}   {note}" if note else where
        return cls(severity, code, text, tally.count, tuple(tally.first), plural(tally.count, "row"), shown)


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """A line for each finding, the worst first."""
    out = []
    findings = sorted(findings, key=lambda finding: _ORDER.index(finding.severity))
    width = min(max((len(f.text) for f in findings if f.amount), default=0), _WIDE)
    for finding in findings:
        if not finding.amount:
            out.append(f"  {finding.severity:<8} {finding.text}")
            continue
        text = f"{finding.text:<{max(width, _NARROW)}} {finding.amount:>12}   {finding.note}"
        out.append(f"  {finding.severity:<8} {text}".rstrip())
    return out


@dataclass
class SetReport:
    """Findings on one data set, and what the model sees of one of its rows."""

    name: str
    role: str
    unit: str
    findings: list[Finding]
    preparation: Preparation
    preview: list[str] = field(default_factory=list)

    @property
    def has_errors(self) -> bool:
        """Whether anything was found that should be mended before training."""
        return any(finding.severity == "error" for finding in self.findings)

    def lines(self) -> list[str]:
        """The report as plain lines."""
        head = f"Data  {self.name}   {plural(self.preparation.rows_in, self.unit)}   {self.role}"
        return [head, "", *finding_lines(self.findings), "", *self.preview]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "role": self.role,
            "findings": [asdict(finding) for finding in self.findings],
            "preparation": self.preparation.to_dict(),
        }


@dataclass
class CheckReport:
    """The reports on all data sets of a recipe, and what was found on the recipe as a whole."""

    sets: list[SetReport]
    recipe: list[Finding] = field(default_factory=list)

    @property
    def findings(self) -> list[Finding]:
        """All findings, those of severity ``ok`` among them."""
        return [*(finding for report in self.sets for finding in report.findings), *self.recipe]

    @property
    def has_errors(self) -> bool:
        """Whether there is a finding of severity ``error``."""
        return any(finding.severity == "error" for finding in self.findings)

    def verdict(self) -> str:
        """The last line: how many errors and warnings, and what to do."""
        errors = sum(finding.severity == "error" for finding in self.findings)
        warnings = sum(finding.severity == "warning" for finding in self.findings)
        if errors:
            in_rows = any(report.has_errors for report in self.sets)
            cure = "Mend the rows, or leave them out." if in_rows else "Mend the recipe."
            return f"{plural(errors, 'error')}, {plural(warnings, 'warning')}. {cure}"
        return f"No errors, {plural(warnings, 'warning')}."

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        sets = [report.to_dict() for report in self.sets]
        return {"errors": self.has_errors, "sets": sets, "recipe": [asdict(finding) for finding in self.recipe]}

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)


def first_counted(rows: np.ndarray) -> Tally:
    """A tally of given rows, int64 [n]."""
    return Tally(len(rows), rows[:FIRST].tolist())
