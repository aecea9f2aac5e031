"""Reading logs of TOFU and MUSE evaluations from files of several layouts into ``TofuLog`` and ``MuseLog``.

Aggregates that a file states are never read. Layouts: open-unlearning's (commit d3d7cf9) ``TOFU_EVAL.json`` and
``MUSE_EVAL.json``, entry name to ``{"agg_value", "value_by_index": {"0": {...}}}``; and the original TOFU format
(locuslab/tofu, commit bdc209e) with one table of values for each set, as dicts by row or as lists (the NPO code's).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align.errors import UserError
from align.eval.log import EPSILON, MUSE_SETS, ROUGES, SCORES, SETS, MuseLog, SetLog, TofuLog
from align.eval.mia import ATTACKS
from align.outside.files import Refused, opened, parsed, unpacked
from align.outside.limits import LOG

_TEXT = ("input", "ground_truth", "generation")
_ORIGINAL = {"avg_gt_loss": "loss", "avg_paraphrased_loss": "para_loss", "average_perturb_loss": "wrong_loss",
             "rougeL_recall": "rougeL_recall", "rouge1_recall": "rouge1_recall", "truth_ratio": "ratio"}  # fmt: skip
Rows = dict[int, Any]
# what a value can be, by the name that it has in a file; beyond 1 and below 0 by what 16 bits round
_SHARE, _POSITIVE = (0.0, 1.0, "a number from 0 to 1"), (0.0, np.inf, "a number that is not negative")
_RANGES = {
    **dict.fromkeys(("prob", *ROUGES), _SHARE),
    **dict.fromkeys(("avg_loss", "avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss"), _POSITIVE),
    "truth_ratio": _POSITIVE,
}
_ROUNDING = 0.01


def read_log(path: str | Path) -> TofuLog:
    """Read a TOFU log: open-unlearning's or ours, or one of the original TOFU format; gzipped or plain.

    Raises UserError, one sentence, where the file is missing, is no JSON, holds aggregates only, is another suite's or
    has entries that do not fit together.
    """
    path = Path(path)
    data = load(path)
    if any(_is_original(value) for value in data.values()) or _is_original(data):
        return _original(data, path)
    names = set(data)
    if names & {f"{name}_ROUGE" for name in MUSE_SETS}:
        raise UserError(f"{path} is a log of MUSE: score it with `align eval muse --log {path}`.")
    known = [name for name in names if name.startswith(tuple(f"{s}_" for s in SETS)) or name in (*SCORES, *ATTACKS)]
    _expect_items(data, known, path, "TOFU_EVAL.json")
    notes: list[str] = []
    meta: Any = data.get("align")
    meta = meta if isinstance(meta, dict) else {}
    sets = {name: found for name in SETS if (found := _tofu_set(data, name, path, notes)) is not None}
    return TofuLog(
        sets=sets,
        scores=_scores(data, path, notes),
        mia=_attacks(data, path, notes),
        name=str(path),
        rows=str(meta.get("rows", "all")),
        epsilon=float(meta.get("epsilon", EPSILON)),
        limit=_limit(data),
        notes=tuple(notes),
    )


def read_muse_log(path: str | Path) -> MuseLog:
    """Read a ``MUSE_EVAL.json``, gzipped or plain. Raises UserError as ``read_log`` does."""
    path = Path(path)
    data = load(path)
    wanted = [f"{name}_ROUGE" for name in MUSE_SETS]
    if not set(data) & {*wanted, *SCORES, *ATTACKS} or any(name.startswith("forget_Q_A") for name in data):
        raise UserError(f"{path} is no log of MUSE: expected entries such as {wanted[0]} with values for each item.")
    _expect_items(data, [name for name in (*wanted, *SCORES, *ATTACKS) if name in data], path, "MUSE_EVAL.json")
    notes: list[str] = []
    sets = {}
    for name, entry in zip(MUSE_SETS, wanted, strict=True):
        rows = _rows(data.get(entry), entry, path)
        if rows is not None:
            columns = _rouge(rows, entry, path, notes)
            sets[name] = SetLog(**columns, index=np.array(sorted(rows)))
    return MuseLog(sets, _scores(data, path, notes), _attacks(data, path, notes), str(path), tuple(notes), _limit(data))


def _limit(data: dict[str, Any]) -> int | None:
    """The number of rows that a log of ours is limited to, or None."""
    meta: Any = data.get("align")
    found = meta.get("limit") if isinstance(meta, dict) else None
    return found if isinstance(found, int) else None


def load(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``, gzipped or not. Raises UserError for anything else."""
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if ".json" in file.name)[:4]
        hint = f" It holds {', '.join(inside)}." if inside else ""
        raise UserError(f"{path} is a folder: name the log inside it, such as TOFU_EVAL.json.{hint}")
    try:
        data = parsed(_content(path).decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no file {path}: name a log such as TOFU_EVAL.json.") from None
    except (OSError, EOFError, zlib.error) as error:
        why = error.strerror if isinstance(error, Refused) else error
        raise UserError(f"{path} cannot be read ({why}): name a complete file.") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}): name a log such as TOFU_EVAL.json.") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a JSON {type(data).__name__}: expected an object of entries, as TOFU_EVAL.json.")
    return data


def _content(path: Path) -> bytes:
    """All bytes of a file, unpacked where it is gzipped. Raises ``OSError``, ``EOFError`` and ``zlib.error``."""
    with opened(path, LOG) as file:
        content = file.read()
    if not content.startswith(b"\x1f\x8b"):
        return content
    with unpacked(path) as stream:
        content = stream.read(LOG + 1)
    if len(content) > LOG:
        raise Refused(path, f"it unpacks to more than {LOG:,} bytes")
    return content


def _expect_items(data: Mapping[str, Any], names: Sequence[str], path: Path, file: str) -> None:
    if not names:
        raise UserError(
            f"{path} has no known entry (it has {', '.join(list(data)[:4]) or 'none'}): expected the layout of "
            f"{file}, or the original TOFU format with avg_gt_loss."
        )
    if not any(isinstance(data[name], dict) and {"value_by_index", "forget"} & set(data[name]) for name in names):
        raise UserError(
            f"{path} holds aggregates only, from which nothing can be computed anew: name the {file} beside it."
        )


def _tofu_set(data: Mapping[str, Any], name: str, path: Path, notes: list[str]) -> SetLog | None:
    ratios = ("forget_truth_ratio", "forget_Truth_Ratio") if name == "forget" else (f"{name}_Truth_Ratio",)
    entries = [f"{name}_{kind}" for kind in ("Q_A_Prob", "Q_A_PARA_Prob", "Q_A_PERT_Prob", "Q_A_ROUGE")]
    tables = {e: rows for e in (*entries, *ratios) if (rows := _rows(data.get(e), e, path)) is not None}
    if not tables:
        return None
    index = _one_index(tables, path)
    columns: dict[str, Any] = {}
    for entry, prefix in zip(entries, ("", "para_", "wrong_"), strict=False):
        if entry in tables:
            columns.update(_losses(tables[entry], entry, prefix, path, notes))
    if entries[3] in tables:
        columns.update(_rouge(tables[entries[3]], entries[3], path, notes))
    for entry in ratios:
        if entry in tables:
            columns["ratio"] = _column(tables[entry], "score", entry, path, notes)
    return SetLog(**columns, index=np.array(index))


def _losses(rows: Rows, entry: str, prefix: str, path: Path, notes: list[str]) -> dict[str, np.ndarray]:
    loss = _column(rows, "avg_loss", entry, path, notes)
    prob = _column(rows, "prob", entry, path, notes if loss is None else [])
    if loss is None and prob is not None:
        with np.errstate(divide="ignore"):
            loss = -np.log(prob)
    if loss is None:
        raise UserError(f"{path}: {entry} has neither prob nor avg_loss in its items.")
    wanted = 2 if prefix == "wrong_" else 1
    if loss.ndim != wanted or (prob is not None and prob.shape != loss.shape):
        raise UserError(
            f"{path}: {entry} should hold {'a list for each row' if wanted == 2 else 'one number a row'}, prob and "
            "avg_loss alike."
        )
    if prob is not None:
        apart = np.abs(prob - np.exp(-loss)).reshape(len(loss), -1) > 0.01  # float32 and bfloat16 round by less
        if rows_apart := int(apart.any(axis=1).sum()):
            notes.append(f"{entry}: in {rows_apart} items prob is not exp(-avg_loss); truth ratios follow avg_loss")
    return {f"{prefix}loss": loss} | ({f"{prefix}prob": prob} if prob is not None else {})


def _rouge(rows: Rows, entry: str, path: Path, notes: list[str]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for key in ROUGES:
        column = _column(rows, key, entry, path, notes)
        if column is not None:
            columns[key] = column
    for key in _TEXT:
        texts = [value.get(key) if isinstance(value, dict) else None for _, value in sorted(rows.items())]
        if texts and all(isinstance(text, str) for text in texts):
            columns[key] = texts
    if not set(columns) & {*ROUGES, "generation"}:
        raise UserError(f"{path}: {entry} has neither {', '.join(ROUGES)} nor texts in its items.")
    return columns


def _scores(data: Mapping[str, Any], path: Path, notes: list[str]) -> dict[str, np.ndarray]:
    found = {}
    for name in SCORES:
        rows = _rows(data.get(name), name, path)
        column = _column(rows, "score", name, path, notes) if rows is not None else None
        if column is not None:
            found[name] = column
    return found


def _attacks(data: Mapping[str, Any], path: Path, notes: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {}
    for name in ATTACKS:
        entry = data.get(name)
        if not isinstance(entry, dict):
            continue
        sides = []
        for side in ("forget", "holdout"):
            rows = _rows(entry.get(side), f"{name}.{side}", path)
            column = _column(rows, "score", f"{name}.{side}", path, notes) if rows is not None else None
            sides.append(column)
        if sides[0] is not None and sides[1] is not None:
            found[name] = (sides[0], sides[1])
    return found


def _rows(entry: Any, name: str, path: Path) -> Rows | None:
    """Values of an entry by row, from ``value_by_index``, a dict or a plain list; None where it holds none."""
    if isinstance(entry, dict) and "value_by_index" in entry:
        entry = entry["value_by_index"]
    elif isinstance(entry, dict) and {"agg_value", "auc"} & set(entry):
        return None
    if entry is None or not isinstance(entry, dict | list):
        return None
    if isinstance(entry, list):
        return dict(enumerate(entry)) or None
    try:
        rows = {int(key): value for key, value in entry.items()}
    except ValueError:
        raise UserError(
            f"{path}: {name} numbers its rows {next(iter(entry))!r}, ...: expected whole numbers."
        ) from None
    if len(rows) != len(entry):
        raise UserError(f"{path}: {name} holds a row number twice.")
    if wrong := [row for row in rows if not 0 <= row < 2**53]:
        raise UserError(f"{path}: {name} numbers a row {str(wrong[0])[:30]}: expected whole numbers from 0 on.")
    return rows or None


def _column(rows: Rows, key: str, entry: str, path: Path, notes: list[str]) -> np.ndarray | None:
    """Values under ``key`` in row order, [n] or [n, k]; missing ones are NaN and counted in ``notes``."""
    values = [value.get(key) if isinstance(value, dict) else value for _, value in sorted(rows.items())]
    if all(value is None for value in values):
        if any(isinstance(value, dict) and key in value for value in rows.values()):
            notes.append(f"{entry}: no item holds a value for {key}")
        return None
    widths = {len(value) for value in values if isinstance(value, list)}
    if len(widths) > 1:
        raise UserError(
            f"{path}: {entry} holds lists of {min(widths)} and of {max(widths)} values: expected one length."
        )
    empty: Any = [None] * widths.pop() if widths else None
    try:
        column = np.array([empty if value is None else value for value in values], dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{path}: {entry} holds something else than numbers under {key}.") from None
    except OverflowError:
        raise UserError(f"{path}: {entry} holds a whole number under {key} that no float can hold.") from None
    _in_range(column, sorted(rows), key, entry, path)
    lost = int(np.isnan(column).reshape(len(values), -1).any(axis=1).sum())
    if lost:
        notes.append(f"{entry}: {lost} of {len(values)} items have no value for {key} and are left out")
    return column


def _in_range(column: np.ndarray, rows: Sequence[int], key: str, entry: str, path: Path) -> None:
    """Refuse values that ``key`` cannot have. Raises UserError with the first of them."""
    is_score = key == "score" and entry in SCORES[:2]
    low, high, expected = _SHARE if is_score else _RANGES.get(key, (-np.inf, np.inf, ""))
    wrong = (column < low - _ROUNDING) | (column > high + _ROUNDING)
    if wrong.any():
        place = np.argwhere(wrong)[0]
        raise UserError(
            f"{path}: {entry} holds {column[tuple(place)]:g} under {key} in row {rows[place[0]]}: expected {expected}."
        )


def _one_index(tables: Mapping[str, Rows], path: Path) -> list[int]:
    (first, rows), *others = tables.items()
    for name, other in others:
        if other.keys() != rows.keys():
            raise UserError(
                f"{path}: {first} holds {len(rows)} rows and {name} {len(other)}, or other ones: the entries of a set "
                "hold the same rows."
            )
    return sorted(rows)


def _is_original(value: Any) -> bool:
    return isinstance(value, dict) and bool({"avg_gt_loss", "avg_paraphrased_loss"} & set(value))


def _original(data: dict[str, Any], path: Path) -> TofuLog:
    notes: list[str] = []
    parts = {path.name: data} if _is_original(data) else {k: v for k, v in data.items() if _is_original(v)}
    sets: dict[str, SetLog] = {}
    for file, part in parts.items():
        name = _set_of(file, path)
        if name in sets:
            raise UserError(f"{path}: {file} is a second log of the set {name}.")
        sets[name] = _original_set(part, file, path, notes)
    rows = "legacy300" if max(map(len, sets.values())) <= 300 else "all"
    return TofuLog(sets, name=str(path), rows=rows, epsilon=0.0, notes=tuple(notes))


def _original_set(part: Mapping[str, Any], file: str, path: Path, notes: list[str]) -> SetLog:
    tables = {key: rows for key in _ORIGINAL if (rows := _rows(part.get(key), f"{file} {key}", path)) is not None}
    if not tables:
        raise UserError(f"{path}: {file} holds no values by row, of which avg_gt_loss is one.")
    index = _one_index({f"{file} {key}": rows for key, rows in tables.items()}, path)
    columns: dict[str, Any] = {}
    for key, rows in tables.items():
        column = _column(rows, key, f"{file} {key}", path, notes)
        if column is not None and column.ndim != (2 if key == "average_perturb_loss" else 1):
            raise UserError(f"{path}: {file} {key} should hold {'a list' if column.ndim == 1 else 'one number'} a row.")
        if column is not None:
            columns[_ORIGINAL[key]] = column
    texts = _rows(part.get("generated_text"), f"{file} generated_text", path) or {}
    if texts.keys() == set(index) and all(isinstance(text, list) and len(text) == 3 for text in texts.values()):
        for place, key in enumerate(("input", "generation", "ground_truth")):
            columns[key] = [str(texts[row][place]) for row in index]
    return SetLog(**columns, index=np.array(index))


def _set_of(file: str, path: Path) -> str:
    for part, name in (("forget", "forget"), ("author", "ra"), ("world", "wf"), ("eval_log", "retain")):
        if part in file:
            return name
    raise UserError(
        f"{path}: which set {file} belongs to cannot be told from its name: expected eval_log.json (retain), "
        "eval_log_forget.json, eval_real_author_wo_options.json or eval_real_world_wo_options.json."
    )
