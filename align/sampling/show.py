"""``align show samples``: what a run drew, who scored it how, and what was trained on.

Prompts and completions are untrusted text: whatever could steer a terminal is written out before it is shown.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from align.data.rows.sources import did_you_mean
from align.data.tokens.preparation import plural
from align.errors import UserError
from align.outside.files import parsed

Order = Literal["first", "best", "worst"]

_COUNTED = ("step", "row", "score", "finish", "selected")
_SHOWN = (*_COUNTED, "prompt", "index", "text", "ids")
_PROMPT, _TEXT = 300, 1500  # characters that are shown; the middle of a longer text is left out
_LINES = 8  # steps with a line of their own in the summary
_JOINERS = "\u200c\u200d"  # letters of some scripts, and emoji, are spelled with them


@dataclass
class Tally:
    """Samples of one step or round, or of all."""

    samples: int = 0
    truncated: int = 0
    scored: int = 0
    total: float = 0.0
    selected: Counter[str] = field(default_factory=Counter)
    prompts: set[tuple[int, int]] = field(default_factory=set)

    def add(self, row: Mapping[str, Any]) -> None:
        self.samples += 1
        self.truncated += row["finish"] == "length"
        self.prompts.add((row["step"], row["row"]))
        if row["score"] is not None:
            self.scored += 1
            self.total += row["score"]
        if row["selected"]:
            self.selected[row["selected"]] += 1

    @property
    def mean(self) -> float | None:
        """Mean score of those that have one."""
        return self.total / self.scored if self.scored else None

    def to_json(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "prompts": len(self.prompts),
            "truncated": self.truncated,
            "scored": self.scored,
            "mean_score": self.mean,
            "selected": dict(self.selected),
        }

    def sentence(self) -> str:
        out = f"{plural(self.samples, 'sample')} of {plural(len(self.prompts), 'prompt')}"
        out += f", {self.truncated / self.samples:.1%} cut at the limit"
        if self.mean is not None:
            out += f", mean score {self.mean:.4g} (n {self.scored:,})"
        return out + "".join(f", {count:,} {name}" for name, count in sorted(self.selected.items()))


@dataclass(frozen=True)
class Shown:
    """Samples to be shown: ``groups`` are lines of the tables, a list for each prompt."""

    run: str
    unit: Literal["step", "round"]
    number: int
    tallies: Mapping[int, Tally]
    groups: Sequence[Sequence[Mapping[str, Any]]]

    @property
    def all(self) -> Tally:
        """Samples of all steps or rounds."""
        out = Tally()
        for tally in self.tallies.values():
            out.samples, out.truncated = out.samples + tally.samples, out.truncated + tally.truncated
            out.scored, out.total = out.scored + tally.scored, out.total + tally.total
            out.selected += tally.selected
            out.prompts |= tally.prompts
        return out

    def to_json(self) -> dict[str, Any]:
        """Plain values; texts as they were sampled."""
        return {
            "run": self.run,
            self.unit: self.number,
            "all": self.all.to_json(),
            f"{self.unit}s": [{self.unit: n, **tally.to_json()} for n, tally in sorted(self.tallies.items())],
            "samples": [{**row, "prompt": _prompt(row["prompt"])} for group in self.groups for row in group],
        }

    def print(self, console: Any) -> None:
        """Print to a console of rich; nothing in the texts is taken for its markup or for a terminal's commands."""
        from rich.text import Text

        def line(text: str, style: str = "") -> None:
            console.print(Text(text, style=style), soft_wrap=True)

        for text in self.summary():
            line(text)
        for group in self.groups:
            line("")
            line(f"{self.unit} {group[0]['step']}, row {group[0]['row']}: {_one_line(group[0]['prompt'])}", "bold")
            for row in group:
                line(f"  [{row['index']}] {_about(row)}", "green" if row["selected"] in ("chosen", "kept") else "dim")
                for text in _lines(row["text"]):
                    line(f"      {text}")

    def summary(self) -> list[str]:
        """Counts of everything, and of some steps or of the rounds."""
        out = [f"{self.run}: {self.all.sentence()}"]
        numbers = sorted(self.tallies)
        if len(numbers) > 1:
            width = len(str(numbers[-1]))
            out += [f"  {self.unit} {n:>{width}}  {self.tallies[n].sentence()}" for n in _some(numbers, self.number)]
        return out


def samples(
    run: str,
    *,
    round: int | None = None,
    step: int | None = None,
    row: int | None = None,
    count: int = 5,
    order: Order = "first",
) -> Shown:
    """Samples of a run with an online objective (of its last step), or of one in rounds (of its last round).

    Args:
        round, step, row: show those of this round, optimizer step, or row of the prompts.
        count: how many prompts with all of their samples; with ``order`` best or worst, how many samples.

    Raises:
        UserError: where there are none, with what there is.
    """
    files, unit = _files(Path(run), run, round, step)
    tallies: dict[int, Tally] = {}
    holds: dict[int, list[Path]] = {}
    for file in files:
        for line in _read(file, _COUNTED):
            tallies.setdefault(line["step"], Tally()).add(line)
            if file not in holds.setdefault(line["step"], []):
                holds[line["step"]].append(file)
    wanted = step if unit == "step" else round
    number = max(tallies, default=0) if wanted is None else wanted
    if number not in tallies:
        there = f"There are samples of {unit}s {_span(sorted(tallies))}." if tallies else "There are none at all."
        raise UserError(f"{run} has no samples of {unit} {number}. {there}")
    rows = [line for file in holds[number] for line in _read(file, _SHOWN) if line["step"] == number]
    if row is not None:
        answered = sorted({line["row"] for line in rows})
        rows = [line for line in rows if line["row"] == row]
        if not rows:
            raise UserError(f"No sample of {unit} {number} answers row {row}. Its rows are {_span(answered)}.")
    return Shown(run, unit, number, tallies, _chosen(rows, count, order, f"{run}, {unit} {number}"))


# ---- files


def _files(path: Path, run: str, round: int | None, step: int | None) -> tuple[list[Path], Literal["step", "round"]]:
    """Tables of a run, and what their column ``step`` counts."""
    if not path.is_dir():
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise UserError(f"{run}: no such folder.{near} Name a run's directory.")
    rounds = sorted(p for p in (path / "rounds").glob("*") if p.is_dir())
    if rounds:
        if step is not None:
            raise UserError(f"{run} went in rounds, so its samples are of rounds: give --round in place of --step.")
        files = [file for folder in rounds for file in _tables(folder / "judged") or _tables(folder / "samples")]
    else:
        if round is not None:
            raise UserError(f"{run} did not go in rounds: leave out --round, or give --step.")
        files = _tables(path / "samples")
    if not files:
        raise UserError(
            f"{run} has no samples: neither {path / 'samples'} nor {path / 'rounds'} holds any. Only objectives that "
            "sample (align list objectives) and training in rounds leave some."
        )
    return files, "round" if rounds else "step"


def _tables(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def _read(file: Path, columns: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Lines of a table, of which only the columns asked for are read: token ids of a long run would fill the memory."""
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(columns=list(columns)):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        first = str(error).split("\n")[0].rstrip(".")
        raise UserError(f"{file} cannot be read as a table of samples ({first}).") from error


# ---- choice


def _chosen(rows: list[dict[str, Any]], count: int, order: Order, where: str) -> list[list[dict[str, Any]]]:
    """Groups of lines to show, one for each prompt; best and worst leave single samples."""
    if order == "first":
        groups: dict[int, list[dict[str, Any]]] = {}
        for row in sorted(rows, key=lambda row: (row["row"], row["index"])):
            groups.setdefault(row["row"], []).append(row)
        return list(groups.values())[:count]
    scored = [row for row in rows if row["score"] is not None]
    if not scored:
        raise UserError(f"{where}: nothing scored these samples, so there is no best or worst. Leave --{order} out.")
    sign = -1 if order == "best" else 1
    return [[row] for row in sorted(scored, key=lambda row: (sign * row["score"], row["row"], row["index"]))[:count]]


def _some(numbers: Sequence[int], shown: int) -> list[int]:
    """At most ``_LINES`` of the numbers, evenly spaced, first and last among them; and ``shown``."""
    if len(numbers) <= _LINES:
        return list(numbers)
    spaced = {numbers[round(i * (len(numbers) - 1) / (_LINES - 1))] for i in range(_LINES)}
    return sorted(spaced | {shown})


def _span(numbers: Sequence[int]) -> str:
    """A few numbers as they are, many as a range."""
    return ", ".join(map(str, numbers)) if len(numbers) <= _LINES else f"{numbers[0]} to {numbers[-1]}"


# ---- texts


def plain(text: str) -> str:
    """The text with every character written out that a terminal could take for a command, line breaks included.

    That is what Unicode calls control, format, surrogate, private or no character, and separators of lines.
    """
    return "".join(char if _harmless(char) else _written(char) for char in text)


def _harmless(char: str) -> bool:
    return char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs"


def _written(char: str) -> str:
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    code = ord(char)
    return named.get(char) or (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )


def _prompt(text: str | None) -> Any:
    """The value of the column ``prompt``."""
    try:
        return parsed(text or "null")
    except ValueError:
        return text


def _one_line(text: str | None) -> str:
    """A prompt on one line: a text, or who says what."""
    prompt = _prompt(text)
    if isinstance(prompt, list):
        turns = [turn if isinstance(turn, dict) else {} for turn in prompt]
        prompt = " ".join(f"{turn.get('role')}: {turn.get('content')}" for turn in turns)
    return plain(_shortened("" if prompt is None else str(prompt), _PROMPT))


def _lines(text: str) -> list[str]:
    if not text.strip():
        return [f"(blank: {plain(text)!r})" if text else "(empty)"]
    return [plain(line) for line in _shortened(text, _TEXT).split("\n")]


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} ... ({len(text) - 2 * half:,} characters left out) ... {text[-half:]}"


def _about(row: Mapping[str, Any]) -> str:
    score = row["score"]
    parts = [] if score is None or math.isnan(score) else [f"score {score:.4g}"]
    parts += [plain(row["selected"])] if row["selected"] else []
    ends = {"end": "ended", "stop": "ended by a stop text", "length": "cut at the limit"}
    return ", ".join([*parts, ends.get(row["finish"], plain(str(row["finish"]))), plural(len(row["ids"]), "token")])
