"""AlpacaEval's files: instructions, answers, annotations, difficulties and anchors. Rows are joined on the instruction.

The layouts are those of the authors' package and data set (tatsu-lab/alpaca_eval). The instructions themselves are not
part of this project; ``alpaca_instructions.txt`` has the digest of each in the official order, so that a row finds its
difficulty wherever it stands in a file.
"""

from __future__ import annotations

import csv
import hashlib
import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from align.data.rows.files import read_rows
from align.errors import UserError
from align.eval.alpaca_figures import Anchors
from align.outside.files import Refused, opened, unpacked
from align.outside.limits import TEXTS

HUB = "tatsu-lab/alpaca_eval"  # where the authors publish difficulties and anchors
DIFFICULTY, ANCHORS = "instruction_difficulty.csv", "df_gamed.csv"
ANSWERS = "alpaca_eval_gpt4_baseline.json"  # the reference's, with the instructions
REFERENCE = "gpt4_1106_preview"  # AlpacaEval 2's
JUDGE = "weighted_alpaca_eval_gpt4_turbo"  # AlpacaEval 2's annotator
_DIGEST = 12  # hexadecimal digits of SHA-256


@dataclass(frozen=True)
class Annotations:
    """Judged pairs of answers; the reference's stand first.

    Attributes:
        instructions: [n].
        preference: [n], from 0 (the reference wins) to 1; NaN where the judge gave no answer that could be read.
        lengths, reference_lengths: [n], characters of both answers.
        model, reference, judge: their names; empty where the file does not say.
    """

    instructions: Sequence[str]
    preference: np.ndarray
    lengths: np.ndarray
    reference_lengths: np.ndarray
    model: str
    reference: str
    judge: str


def read_annotations(path: Path) -> Annotations:
    """Annotations in the official layout: instruction, output_1 of the reference, output_2 of the model, preference.

    A preference is a number from 1 (the reference wins) to 2, 0 is a tie, and null was not judged.

    Raises:
        UserError: naming the file and the row.
    """
    rows = list(read_rows(path))
    return annotations_of(rows, str(path))


def annotations_of(rows: Sequence[Mapping[str, Any]], where: str) -> Annotations:
    """The same from rows; ``where`` is what a message calls them."""
    texts: dict[str, list[str]] = {"instruction": [], "output_1": [], "output_2": []}
    preference = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        place = f"{where}, row {number}"
        for key, column in texts.items():
            column.append(_text(row, key, place))
        instruction = texts["instruction"][-1]
        if instruction in seen:
            raise UserError(
                f"{place}: its instruction is that of row {seen[instruction]}, too. Each instruction is judged once: "
                "give the annotations of one model by one judge."
            )
        seen[instruction] = number
        preference.append(_preference(row, place))
    names = {key: _one_name(rows, key, where) for key in ("generator_1", "generator_2", "annotator")}
    return Annotations(
        texts["instruction"],
        np.array(preference),
        np.array([len(text) for text in texts["output_2"]]),
        np.array([len(text) for text in texts["output_1"]]),
        names["generator_2"],
        names["generator_1"],
        names["annotator"],
    )


def read_outputs(path: Path) -> dict[str, dict[str, Any]]:
    """Answers in the official layout (instruction, output, generator) by instruction, in the order of the file.

    Raises:
        UserError: naming the file and the row.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(read_rows(path), 1):
        place = f"{path}, row {number}"
        instruction = _text(row, "instruction", place)
        _text(row, "output", place)
        if instruction in found:
            raise UserError(f"{place}: its instruction stands in the file before; each is answered once.")
        found[instruction] = dict(row)
    return found


def reference_outputs(name: str | None) -> dict[str, dict[str, Any]]:
    """The reference's answers: of a file, or the official ones from the Hub. Raises ``UserError``."""
    return read_outputs(_found(name or HUB, ANSWERS, "--reference"))


def official(instruction: str) -> int | None:
    """The number of an instruction in the official order, from 0; None where it is none of the 805."""
    numbers = _numbers()
    return numbers.get(_digest(instruction), numbers.get(_digest(instruction.strip())))


def official_count() -> int:
    """How many instructions the official set has."""
    return len(_numbers())


@cache
def _numbers() -> dict[str, int]:
    lines = files(__package__ or "align.eval").joinpath("alpaca_instructions.txt").read_text().split()
    return {line: number for number, line in enumerate(lines)}


def _digest(instruction: str) -> str:
    return hashlib.sha256(instruction.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]


def read_difficulty(name: str) -> dict[int, float]:
    """Difficulty of each instruction by its number. ``name`` is a file, or the Hub id of a data set with one.

    Raises:
        UserError: where it cannot be had or read.
    """
    path = _found(name, DIFFICULTY, "--difficulty")
    rows = _table(path)
    # pandas writes an index without a name
    key = next((key for key in ("index", "") if key in rows[0]), None)
    if key is None or "instruction_difficulty" not in rows[0]:
        raise UserError(f"{path}: expected the columns index and instruction_difficulty; it has {_columns(rows)}.")
    return {int(_number(row, key, path)): _number(row, "instruction_difficulty", path) for row in rows}


def read_anchors(name: str) -> Anchors:
    """The anchor models' rows. ``name`` is a file, or the Hub id of a data set with one.

    Raises:
        UserError: where it cannot be had or read.
    """
    path = _found(name, ANCHORS, "--anchors")
    rows = _table(path)
    wanted = ("preference", "std_delta_len", "instruction_difficulty")
    if missing := [key for key in wanted if key not in rows[0]]:
        raise UserError(f"{path}: it lacks {' and '.join(missing)}; it has {_columns(rows)}.")
    found = [np.array([_number(row, key, path) for row in rows]) for key in wanted]
    if found[0].min() < 0 or found[0].max() > 1:
        raise UserError(f"{path}: preference is from 0 to 1 here, and it is from {found[0].min()} to {found[0].max()}.")
    return Anchors(*found)


def difficulty_and_anchors(difficulty: str | None, anchors: str | None) -> tuple[dict[int, float] | str, Anchors | str]:
    """What the length-controlled win rate needs; where nobody named it and the Hub cannot give it, why not.

    Raises:
        UserError: where a file that was named cannot be read.
    """
    found: list[Any] = []
    for name, read in ((difficulty, read_difficulty), (anchors, read_anchors)):
        try:
            found.append(read(name or HUB))
        except UserError as error:
            if name:
                raise
            found.append(str(error))
    return found[0], found[1]


def _found(name: str, file: str, option: str) -> Path:
    """A file, or the one of that name in a data set on the Hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        path = path / file
    if path.is_file():
        return path
    if name.count("/") != 1 or name.startswith((".", "~", "/")) or path.suffix == ".csv":
        raise UserError(f"{option} {name}: there is no such file.")
    from huggingface_hub import hf_hub_download

    from align.runs.models import hub_answers

    try:
        return Path(hf_hub_download(name, file, repo_type="dataset", local_files_only=not hub_answers()))
    except (OSError, ValueError) as error:
        why = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"{option} {name}: {file} of this data set on the Hub cannot be had ({why}). Load it once with the network "
            f"on, or name a file: {option} {file}."
        ) from error


def _table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file as text, gzipped or not; a column may be without a name, as pandas leaves an index."""
    try:
        with unpacked(path) if path.suffix == ".gz" else opened(path, TEXTS) as file:
            table = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline=""))
            rows = [{key: value or "" for key, value in row.items() if key is not None} for row in table]
    except Refused:
        raise
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as CSV ({error}).") from error
    if not rows:
        raise UserError(f"{path} holds no rows.")
    return rows


def _columns(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(repr(key) for key in list(rows[0])[:8])


def _number(row: Mapping[str, str], key: str, path: Path) -> float:
    try:
        value = float(row[key])
    except (ValueError, KeyError):
        value = float("nan")
    if not np.isfinite(value):
        raise UserError(f"{path}: {key} must be a number, and one is {row.get(key, '')!r}.")
    return value


def _text(row: Mapping[str, Any], key: str, place: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        found = f"it is {value!r:.40}" if key in row else f"the row has {', '.join(map(repr, list(row)[:8]))}"
        raise UserError(f"{place}: expected text as {key}; {found}.")
    return value


def _preference(row: Mapping[str, Any], place: str) -> float:
    """From 0 to 1, NaN for none."""
    if "preference" not in row:
        raise UserError(f"{place}: it has no preference; expected a number from 1 (output_1 wins) to 2, or null.")
    value = row["preference"]
    if value is None or value == "" or value != value:
        return float("nan")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (1 <= value <= 2 or value == 0):
        raise UserError(
            f"{place}: preference is {row['preference']!r:.40}; expected a number from 1 (output_1 wins) to 2, 0 for a "
            "tie, or null."
        )
    return 0.5 if value == 0 else float(value) - 1


def _one_name(rows: Sequence[Mapping[str, Any]], key: str, where: str) -> str:
    """The name that all rows give, empty where none does."""
    names = sorted({str(row[key]) for row in rows if row.get(key) not in (None, "")})
    if len(names) > 1:
        raise UserError(
            f"{where}: {key} has {len(names)} names ({', '.join(names[:3])}); give annotations of one model by one "
            "judge."
        )
    return names[0] if names else ""
