"""Rows of the public benchmarks of reward models, from local files; which benchmark it is follows from the columns.

Layouts: RM-Bench (arXiv 2410.16184), RewardBench (2403.13787), RewardBench 2 (2506.01937) and M-RewardBench
(2410.15522), from their descriptions and their authors' code. They were not tried on the published files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from align.data.rows.files import SUFFIXES, file_kind, file_stem, read_rows
from align.data.rows.sources import did_you_mean
from align.errors import UserError
from align.outside.files import parsed

Kind = Literal["rm_bench", "rewardbench", "rewardbench2", "m_rewardbench"]

TITLES: dict[str, str] = {
    "rm_bench": "RM-Bench",
    "rewardbench": "RewardBench",
    "rewardbench2": "RewardBench 2",
    "m_rewardbench": "M-RewardBench",
}
TIES = "Ties"  # the subset of RewardBench 2 with several correct answers
STYLES = 3  # of RM-Bench: concise, detailed, detailed with markdown
# RewardBench's subsets by section, as its code has them
SECTIONS: dict[str, tuple[str, ...]] = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard",
        "llmbar-natural",
        "llmbar-adver-neighbor",
        "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous",
        "refusals-offensive",
        "xstest-should-refuse",
        "xstest-should-respond",
        "donotanswer",
    ),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}
_SECTION_OF = {subset: section for section, subsets in SECTIONS.items() for subset in subsets}
_COLUMNS = {
    "rm_bench": "prompt, chosen and rejected (lists of 3 answers) and domain",
    "rewardbench": "prompt, chosen, rejected and subset",
    "rewardbench2": "prompt, chosen and rejected (lists of answers), subset and, in the subset Ties, id",
    "m_rewardbench": "prompt, chosen, rejected, language, and category or source",
}


@dataclass(frozen=True)
class Item:
    """One question. The first ``correct`` of ``answers`` are right, all others wrong.

    Attributes:
        subset: the domain of RM-Bench (safety-refuse and safety-response are safety, as in its code), else the subset.
        section: of RewardBench and M-RewardBench; empty where a subset belongs to none.
        language: of M-RewardBench.
        key: of the subset Ties, ``ref:NUMBER`` or ``tied:NUMBER``.
    """

    prompt: str
    answers: tuple[str, ...]
    correct: int
    subset: str
    section: str = ""
    language: str = ""
    key: str = ""

    @property
    def group(self) -> tuple[str, str, str]:
        """What ``limit`` counts by, so that a trial sees all parts of a benchmark."""
        return self.subset, self.language, self.key.partition(":")[0]


def load_benchmark(data: str, kind: Kind | None = None, limit: int | None = None) -> tuple[Kind, list[Item], list[str]]:
    """The benchmark that a file or folder holds, its items in order, and sentences about what was left out.

    Args:
        data: a file of JSON, JSON lines, CSV or Parquet (also .gz), or a folder of them, with its folders.
        kind: which benchmark it is, where the columns do not tell.
        limit: only the first so many items of each subset (and language), for a trial.

    Raises:
        UserError: where there is nothing to read, the columns are those of something else, or a row is not as expected.
    """
    files, notes = _files(Path(data).expanduser())
    items: list[Item] = []
    seen: set[Item] = set()  # of earlier files
    repeated = empty = 0
    for file in files:
        rows = list(read_rows(file))
        found = _kind_of(rows[0], str(file), kind)
        if kind is not None and found != kind:
            raise UserError(
                f"{file}: {TITLES[kind]} was expected, but the columns are those of {TITLES[found]} "
                f"({_listed(rows[0])}). Give one benchmark at a time."
            )
        kind = found
        own = [_item(kind, row, f"{file}, row {number}") for number, row in enumerate(rows)]
        whole = [item for item in own if all(text.strip() for text in item.answers)]
        empty += len(own) - len(whole)
        new = [item for item in whole if item not in seen]
        repeated += len(whole) - len(new)
        items += new
        seen.update(new)
    if not items:
        raise UserError(f"{data}: every row has an empty answer; there is nothing to judge.")
    if empty:
        notes.append(f"rows with an empty answer are left out: {empty:,}")
    if repeated:
        notes.append(f"rows that an earlier file holds, too, count once: {repeated:,}")
    assert kind is not None  # there is at least one file, and each has a kind
    return kind, items if limit is None else _first(items, limit), notes


def _first(items: Sequence[Item], limit: int) -> list[Item]:
    """The first ``limit`` items of each group."""
    counts: dict[tuple[str, str, str], int] = {}
    kept = []
    for item in items:
        counts[item.group] = counts.get(item.group, 0) + 1
        if counts[item.group] <= limit:
            kept.append(item)
    return kept


def _files(path: Path) -> tuple[list[Path], list[str]]:
    """The data files of a path, and what is said of those that are left out."""
    if path.is_file():
        return [path], []
    if not path.is_dir():
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise UserError(f"{path}: no such file or folder.{near}")
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and file_kind(p)]
    if not files:
        raise UserError(f"{path}: holds no data files; expected some of {', '.join(SUFFIXES)} (or .gz).")
    raw = [file for file in files if file_stem(file).startswith("raw")]
    if raw and any(file_stem(file).startswith("filtered") for file in files):
        names = ", ".join(file.name for file in raw[:2])
        return [file for file in files if file not in raw], [
            f"{names} is left out, since the benchmark's figures are those of the filtered rows"
        ]
    return files, []


def _kind_of(row: Mapping[str, Any], where: str, given: Kind | None) -> Kind:
    """The benchmark that a row belongs to by its columns; what they leave open is ``given``. Raises UserError."""
    there = {name for name, value in row.items() if value is not None}
    if {"query", "retrieval"} <= there or {"instruction_j", "response_j"} <= there:
        raise UserError(f"{where}: holds contrast pairs ({_listed(row)}), no benchmark: align probe consistency.")
    pair = [_texts(row.get(name)) for name in ("chosen", "rejected")]
    lists = all(isinstance(value, list) for value in pair)
    texts = all(isinstance(value, str) for value in pair)
    if lists and "domain" in there:
        return "rm_bench"
    if lists and "subset" in there:
        return "rewardbench2"
    if texts and "language" in there:
        return "m_rewardbench"
    if texts and "subset" in there:
        return "rewardbench"
    if given is not None:
        return given
    if lists:
        raise UserError(
            f"{where}: lists of answers, but neither domain nor subset ({_listed(row)}): say --kind rm_bench or "
            "--kind rewardbench2, and rename the columns that these have under other names."
        )
    if {"chosen", "rejected"} <= there:
        raise UserError(
            f"{where}: holds plain preference pairs ({_listed(row)}), no benchmark: those of RewardBench have a column "
            "subset, those of M-RewardBench a column language."
        )
    raise UserError(
        f"{where}: holds no benchmark of reward models (columns: {_listed(row)}). Expected "
        + "; or ".join(f"{TITLES[kind]}: {columns}" for kind, columns in _COLUMNS.items())
        + "."
    )


def _item(kind: Kind, row: Mapping[str, Any], where: str) -> Item:
    """A row as an item. Raises UserError."""
    prompt = _text(row, "prompt", kind, where)
    if not prompt.strip():
        raise UserError(f"{where}: prompt is empty; there is nothing to answer.")
    if kind == "rm_bench":
        chosen, rejected = (_list(row, name, kind, where) for name in ("chosen", "rejected"))
        for name, texts in (("chosen", chosen), ("rejected", rejected)):
            if len(texts) != STYLES:
                raise UserError(
                    f"{where}: {name} has {len(texts)} answers; RM-Bench has {STYLES}: concise, detailed, markdown."
                )
        domain = _text(row, "domain", kind, where).partition("-")[0]
        return Item(prompt, (*chosen, *rejected), STYLES, domain)
    if kind == "rewardbench2":
        return _of_rewardbench2(row, prompt, where)
    answers = tuple(_text(row, name, kind, where) for name in ("chosen", "rejected"))
    if kind == "rewardbench":
        subset = _text(row, "subset", kind, where)
        return Item(prompt, answers, 1, subset, _SECTION_OF.get(subset, ""))
    category, source = row.get("category"), row.get("source") or row.get("subset")
    section = _SECTION_OF.get(str(source)) or (category if isinstance(category, str) else "")
    if not section:
        raise UserError(
            f"{where}: no category, and source {source!r} is no subset of RewardBench; expected {_COLUMNS[kind]}."
        )
    return Item(prompt, answers, 1, str(source or section), section, _text(row, "language", kind, where))


def _of_rewardbench2(row: Mapping[str, Any], prompt: str, where: str) -> Item:
    kind: Kind = "rewardbench2"
    chosen, rejected = (_list(row, name, kind, where) for name in ("chosen", "rejected"))
    subset = _text(row, "subset", kind, where)
    number = row.get("num_correct")
    if number is not None and int(number) != len(chosen):
        raise UserError(f"{where}: num_correct is {number}, but chosen has {len(chosen)} answers.")
    if subset.lower() != TIES.lower():
        if len(chosen) != 1:
            raise UserError(f"{where}: chosen has {len(chosen)} answers; outside of the subset {TIES} it has one.")
        return Item(prompt, (*chosen, *rejected), 1, subset)
    parts = _text(row, "id", kind, where).split(":")
    if len(parts) < 2 or parts[0] not in ("ref", "tied"):
        raise UserError(
            f"{where}: id is {row['id']!r}; in the subset {TIES} it is ref:NUMBER (one correct answer) or tied:NUMBER."
        )
    if parts[0] == "tied" and len(chosen) < 2:
        raise UserError(f"{where}: a tied row has two correct answers or more, but chosen has {len(chosen)}.")
    return Item(prompt, (*chosen, *rejected), len(chosen), TIES, key=":".join(parts[:2]))


def _text(row: Mapping[str, Any], name: str, kind: Kind, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise UserError(
            f"{where}: the column {name} holds {_called(value)}, but a text was expected. {TITLES[kind]} has "
            f"{_COLUMNS[kind]}."
        )
    return value


def _list(row: Mapping[str, Any], name: str, kind: Kind, where: str) -> list[str]:
    value = _texts(row.get(name))
    if not isinstance(value, list) or not value:
        raise UserError(
            f"{where}: the column {name} holds {_called(row.get(name))}, but a list of texts was expected. "
            f"{TITLES[kind]} has {_COLUMNS[kind]}."
        )
    return value


def _texts(value: Any) -> Any:
    """A list of texts, also one that a CSV file holds as JSON; a text as it is; anything else is None."""
    if isinstance(value, str) and value.startswith('["'):
        try:
            value = parsed(value)
        except ValueError:
            return value
    if isinstance(value, list):
        return value if value and all(isinstance(text, str) for text in value) else None
    return value if isinstance(value, str) else None


def _called(value: Any) -> str:
    return "nothing" if value is None else f"{str(value)[:30]!r} ({type(value).__name__})"


def _listed(row: Mapping[str, Any]) -> str:
    return ", ".join(row)
