"""Which held-out pairs the probe scores, and which answers it calls unseen: pure functions of rows and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

OTHER_ROWS = "answers of other held-out rows under this prompt, chosen and rejected in turn"


def choose_rows(available: int, wanted: int = 64, seed: int = 0) -> list[int]:
    """Numbers of ``wanted`` rows out of ``available``, drawn without replacement and sorted; all where there are fewer.

    A function of its arguments alone, so that a resumed run and every rank watch the same pairs.
    """
    if wanted >= available:
        return list(range(available))
    return sorted(np.random.default_rng(seed).choice(available, size=wanted, replace=False).tolist())


def choose_prompts(rows: Sequence[Mapping[str, Any]], wanted: int, seed: int = 0) -> list[list[int]]:
    """Token ids of ``wanted`` different prompts of prepared rows, drawn by the seed; all of them where there are fewer.

    A row whose answers have prompts of their own asks that of its chosen answer.
    """
    prompts = list(dict.fromkeys(tuple(_prompt(row)) for row in rows))
    return [list(prompts[i]) for i in choose_rows(len(prompts), wanted, seed)]


def longest_answer(rows: Sequence[Mapping[str, Any]]) -> int:
    """Tokens of the longest answer in prepared pairs."""
    return max(len(row[f"{side}_ids"]) for row in rows for side in ("chosen", "rejected"))


def labelled_pair(desirable: Mapping[str, Any], undesirable: Mapping[str, Any]) -> dict[str, Any]:
    """Two prepared rows of labelled answers as one pair, whose answers have prompts of their own."""
    out: dict[str, Any] = {"prompt_ids": desirable["prompt_ids"]}
    for side, label, row in (("chosen", "desirable", desirable), ("rejected", "undesirable", undesirable)):
        out |= {f"{side}_prompt_ids": row["prompt_ids"], f"{side}_ids": row[f"{label}_ids"]}
        if row.get(f"{label}_mask") is not None:
            out[f"{side}_mask"] = row[f"{label}_mask"]
    return out


def with_other(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Prepared preference rows with a branch ``other``: an answer that was given to another prompt.

    Dispersion asks what becomes of answers that no pair names. Samples of the starting policy would be the better
    answer to that and may be put in by the caller; an answer of a different held-out row costs nothing, is real text,
    and neither side of this row's pair. Even rows borrow a chosen answer and odd ones a rejected answer: with chosen
    answers alone, a style that training favours would pass for likelihood that went astray.

    Row i borrows from the first row after it (cyclically) that has another prompt and whose answer is neither of its
    own. Where any row finds none (one prompt, or answers that are all alike) the rows come back without ``other``.
    """
    extended = []
    for i, row in enumerate(rows):
        lender = _lender(rows, i)
        if lender is None:
            return [dict(r) for r in rows]
        branch = _branch(i)
        # the row's own prompt; the lender's lies in its own columns and is left behind
        new = dict(row) | {"other_ids": lender[f"{branch}_ids"]}
        if lender.get(f"{branch}_mask") is not None:
            new["other_mask"] = lender[f"{branch}_mask"]
        if row.get("chosen_prompt_ids") is not None:
            new["other_prompt_ids"] = row["chosen_prompt_ids"]
        extended.append(new)
    if len({"other_mask" in row for row in extended}) > 1:  # every row needs the same columns
        extended = [{"other_mask": [1] * len(row["other_ids"]), **row} for row in extended]
    return extended


def _branch(i: int) -> str:
    return "chosen" if i % 2 == 0 else "rejected"


def _lender(rows: Sequence[Mapping[str, Any]], i: int) -> Mapping[str, Any] | None:
    own = (list(rows[i]["chosen_ids"]), list(rows[i]["rejected_ids"]))
    for offset in range(1, len(rows)):
        lender = rows[(i + offset) % len(rows)]
        if _prompt(lender) != _prompt(rows[i]) and list(lender[f"{_branch(i)}_ids"]) not in own:
            return lender
    return None


def _prompt(row: Mapping[str, Any]) -> list[int]:
    own = row.get("chosen_prompt_ids")
    return list(row["prompt_ids"] if own is None else own)
