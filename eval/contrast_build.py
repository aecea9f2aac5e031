"""Contrast pairs out of a preference set: instructions that are alike but not the same, each with its chosen answer.

After ContrastInstructions (arXiv 2309.16155), whose own script is not released. There, pairs have a cosine of 0.75 to
0.9 (Twitter and WMT; the history of its files has 0.8 to 0.9 for StackExchange and 0.5 to 1 for RealSumm).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align.data.rows.embedding import load_embedder
from align.data.rows.sources import column_names, load_source, naming, source_name
from align.data.rows.text import HH_ASSISTANT, HH_HUMAN
from align.data.rows.values import BadRow, preferred
from align.data.tokens.tokenize import recognise_dataset
from align.errors import UserError
from align.eval.contrast import Contrasts, Form, listed, plain
from align.objectives.base import ROW_VALUES
from align.probes.consistency import ContrastPair, Prompt
from align.recipe.sections import Source

_PAIR = ("chosen", "rejected")
# columns in which data sets keep how good the two answers are
_SCORES = (
    ("chosen_score", "rejected_score"),
    ("score_chosen", "score_rejected"),
    ("response_j_score", "response_k_score"),
)
_BLOCK = 512  # instructions that are compared with all others at a time
_NEAREST = 16  # of an instruction that are remembered at a time
_DIGITS = 6  # of a cosine: beyond them it depends on the machine


@dataclass(frozen=True)
class Preference:
    """A prompt with its chosen answer; ``instruction`` is the prompt's last user turn, or all of a plain text."""

    prompt: Prompt
    instruction: str
    answer: str


def build_pairs(
    source: Source,
    form: Form,
    *,
    encoder: str | None = None,
    band: tuple[float, float] = (0.75, 0.9),
    not_in: Source | None = None,
    base: Path | None = None,
    say: Callable[[str], Any] = print,
) -> Contrasts:
    """Contrast pairs of a preference set in any format that can be read; deterministic.

    The likest two instructions are paired first, and each is used once. Instructions that say the same, and pairs with
    the same answer, are left out. Every loss is counted.

    Args:
        encoder: a sentence encoder; None compares by shared words, which is said.
        band: least and largest cosine of two instructions.
        not_in: rows, such as those trained on, whose instructions are left out.

    Raises:
        UserError: where rows or encoder cannot be read, or no two instructions lie in the band.
    """
    low, high = band
    if not -1 <= low < high <= 1:
        raise UserError(f"--band {low:g} {high:g}: expected two cosines between -1 and 1, the smaller one first.")
    base = base or Path.cwd()
    dropped: Counter[str] = Counter()
    found = _preferences(source, base, dropped)
    if not_in is not None:
        trained = {plain(instruction_of(row["prompt"])) for row in _rows(not_in, base, (), Counter())}
        kept = [one for one in found if plain(one.instruction) not in trained]
        dropped[f"instructions that occur in {source_name(not_in)}"] = len(found) - len(kept)
        found = kept
    name = source_name(source)
    if len(found) < 2:
        raise UserError(f"{name}: fewer than two instructions are left to be paired; dropped {listed(dropped)}.")
    instructions = [one.instruction for one in found]
    embedder = load_embedder(encoder, instructions, base=base, say=say)
    answers = np.unique([plain(one.answer) for one in found], return_inverse=True)[1]
    matched = match(embedder.encode(instructions), answers, low, high)
    if not matched:
        raise UserError(
            f"{name}: no two of its {len(found):,} instructions have a cosine from {low:g} to {high:g} by "
            f"{embedder.name}: widen --band, or give another --encoder."
        )
    pairs = []
    for i, j, _ in matched:
        sides = [(form.put_whole(found[k].prompt), found[k].answer) for k in (i, j)]
        pairs.append(ContrastPair(*sides[0], *sides[1]))
    dropped["instructions without a partner in the band"] = len(found) - 2 * len(matched)
    about = {"built_from": name, "encoder": embedder.name, "band": list(band), "instructions": len(found)}
    about["mean_cosine"] = float(np.mean([cosine for *_, cosine in matched]))
    return Contrasts(
        f"{name} by {embedder.name}, cosine {low:g} to {high:g}", pairs, form.line(whole=True), +dropped, about
    )


def match(vectors: Any, answers: np.ndarray, low: float, high: float) -> list[tuple[int, int, float]]:
    """Pairs (i, j, cosine) with i < j, the likest first, every row in one pair at most, until none is left in the band.

    Only the nearest few of every row are kept at a time, and looked for again among the rows that are left, so memory
    grows with the rows and not with their square.

    Args:
        vectors: rows of length 1 [n, d], a numpy array or a sparse scipy matrix.
        answers: a number for each row [n]; rows of equal numbers are never paired.
    """
    free = np.arange(len(answers))
    taken = np.zeros(len(answers), dtype=bool)
    matched: list[tuple[int, int, float]] = []
    while True:
        rows, columns, cosines = _candidates(vectors[free], answers[free], low, high)
        if not len(rows):
            return sorted(matched, key=lambda pair: (-pair[2], pair[:2]))
        for at in np.lexsort((columns, rows, -cosines)):
            i, j = int(free[rows[at]]), int(free[columns[at]])
            if not taken[i] and not taken[j]:
                taken[[i, j]] = True
                matched.append((i, j, float(cosines[at])))
        free = free[~taken[free]]


def _candidates(vectors: Any, answers: np.ndarray, low: float, high: float) -> tuple[np.ndarray, ...]:
    """Row, column and cosine of pairs in the band with row < column: of every row its nearest few."""
    n = len(answers)
    found = []
    for start in range(0, n, _BLOCK):
        product = vectors[start : start + _BLOCK] @ vectors[start:].T
        cosine = np.round(product.toarray() if hasattr(product, "toarray") else np.asarray(product), _DIGITS)
        outside = (cosine < low) | (cosine > high) | np.tri(*cosine.shape, dtype=np.bool_)
        outside |= answers[start : start + _BLOCK, None] == answers[None, start:]
        cosine[outside] = -np.inf
        few = min(_NEAREST, n - start)
        columns = np.argpartition(-cosine, few - 1, axis=1)[:, :few]
        nearest = np.take_along_axis(cosine, columns, axis=1)
        rows, places = np.nonzero(nearest > -np.inf)
        found.append((rows + start, columns[rows, places] + start, nearest[rows, places]))
    return tuple(np.concatenate(part) for part in zip(*found, strict=True)) if found else (np.empty(0),) * 3


def _preferences(source: Source, base: Path, dropped: Counter[str]) -> list[Preference]:
    """One preference for each instruction; what is not used is counted."""
    found: dict[str, Preference] = {}
    for row in _rows(source, base, _PAIR, dropped):
        try:
            one, other = _preference(row), _answer(row["rejected"])
        except BadRow as error:
            dropped[f"rows: {error}"] += 1
            continue
        if plain(one.answer) == plain(other) or _tied(row):
            dropped["rows without a preference (ties)"] += 1
        elif plain(one.instruction) in found:
            dropped["rows whose instruction came before"] += 1
        else:
            found[plain(one.instruction)] = one
    return list(found.values())


def _preference(row: Mapping[str, Any]) -> Preference:
    """Of a canonical row. Raises ``BadRow`` where a judge could not be asked about it."""
    prompt = row["prompt"]
    if row.get("tools"):
        raise BadRow("a prompt has tools, which judges are not shown")
    if not isinstance(prompt, str) and prompt[-1]["role"] != "user":
        raise BadRow("a prompt does not end with a user's turn")
    instruction = instruction_of(prompt)
    if not instruction.strip():
        raise BadRow("a prompt has no instruction")
    return Preference(prompt, instruction, _answer(row["chosen"]))


def _rows(source: Source, base: Path, branches: Sequence[str], dropped: Counter[str]) -> list[dict[str, Any]]:
    """Canonical rows, with the raw columns that hold scores beside them; rows that cannot be read are counted."""
    with naming(source):
        dataset: Any = load_source(source, base=base)
        names = column_names(dataset)
        form = recognise_dataset(dataset, branches)
        if form.tokenised:
            raise UserError("the rows are token ids, and instructions are compared as texts: name the texts.")
        scores = [name for pair in (*_SCORES, ROW_VALUES) for name in pair if name in names]
        found = []
        for row in dataset:
            try:
                found.append(_turned({name: row[name] for name in scores} | form.canonical(row)))
            except BadRow as error:
                dropped[f"rows: {error}"] += 1
    return found


def _turned(row: dict[str, Any]) -> dict[str, Any]:
    """With the answers exchanged where ``preference`` says that the rejected one is probably better."""
    if "rejected" in row and preferred(row) == "rejected":
        row |= {"chosen": row["rejected"], "rejected": row["chosen"]}
    return row


def instruction_of(prompt: Prompt) -> str:
    """What a prompt asks at last: the last user turn, of messages or of a transcript, or the whole text."""
    if isinstance(prompt, str):
        return prompt.rpartition(HH_HUMAN)[2].removesuffix(HH_ASSISTANT).strip() if HH_HUMAN in prompt else prompt
    asked = [message["content"] for message in prompt if message["role"] == "user"]
    return str(asked[-1]) if asked else ""


def _answer(answer: str | list[dict[str, Any]]) -> str:
    """An answer as a judge takes it: a text. Raises ``BadRow`` for more than one plain turn."""
    if isinstance(answer, str):
        return answer
    if len(answer) != 1 or set(answer[0]) - {"role", "content"}:
        raise BadRow("an answer is more than one plain turn")
    return str(answer[0]["content"])


def _tied(row: Mapping[str, Any]) -> bool:
    """Whether a row says that neither answer is better: equal scores, a margin of 0, or a preference of one half."""
    return (
        row.get("margin") == 0
        or preferred(row) is None
        or any(row.get(better) is not None and row[better] == row.get(worse) for better, worse in _SCORES)
    )
