"""Rows of pairs with ConvexDA: texts of theirs are replaced by rewrites, before anything is tokenised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from align.data.rows.convex import picked
from align.data.rows.embedding import Embedder, load_embedder
from align.data.rows.formats import Format
from align.data.rows.mixture import random_words
from align.data.rows.rewrites import REWORDINGS, variants
from align.data.rows.sources import from_rows
from align.data.rows.text import HH_ASSISTANT, HH_HUMAN
from align.data.rows.values import BadRow, Row
from align.errors import UserError
from align.runs.terminal import Work

if TYPE_CHECKING:
    from datasets import Dataset

    from align.recipe.sections import ConvexDA

_SHARE = 3  # keeps the draw of rows apart from that of vertices


class _Text(NamedTuple):
    """A text of a row with its rewrites: itself first. ``put`` gives the column's value with another in its place."""

    column: str
    versions: list[str]
    put: Callable[[str], Any]


def convex_rows(
    rows: Dataset, form: Format, settings: ConvexDA, *, seed: int, base: Path, say: Callable[[str], Any]
) -> Dataset:
    """Raw rows of pairs in which answers or prompts are replaced by vertices of the hull of their rewrites.

    Of a conversation the last turn of the assistant, or of the user, is replaced; of a transcript's prompt the last
    words of the human. Which rows change, their rewrites and the vertex depend on ``seed``, the row's number and its
    text, not on the order of rows; without an encoder the embeddings depend on the words of all rows. Rows that cannot
    be read stay as they are, for preparation to count.

    Args:
        rows: with the column ``row``, as ``load_source`` gives them.
        form: their format, of branches ``chosen`` and ``rejected``.

    Raises:
        UserError: where the rows are tokenised already, or no encoder can be had.
    """
    if form.tokenised:
        raise UserError("data.convex rewrites texts, but the rows are tokenised already; give texts, or remove it.")
    counts: Counter[str] = Counter()
    listed = [_read(dict(row), form, settings, seed, counts) for row in rows]
    corpus = [version for _, texts in listed for text in texts for version in text.versions]
    if not corpus:
        _report(settings, counts, len(rows), len(rows), say)
        return from_rows([raw for raw, _ in listed])
    try:
        embedder = load_embedder(settings.encoder, corpus, base=base, say=say)
    except UserError as error:
        raise UserError(f"data.convex: {error}") from error
    out: list[Row] = []
    with Work("rows rewritten", len(listed)) as work:
        for raw, texts in listed:
            out += _replaced(raw, texts, settings, seed, embedder, counts) if texts else [raw]
            work.add()
    _report(settings, counts, len(rows), len(out), say)
    return from_rows(out)


def _read(row: Row, form: Format, settings: ConvexDA, seed: int, counts: Counter[str]) -> tuple[Row, list[_Text]]:
    """A row with its canonical prompt and answers, and the texts to replace; none where it stays as it is."""
    try:
        canonical = form.canonical(row)
    except BadRow:
        counts["unreadable"] += 1
        return row, []
    if "prompt" not in row:  # its turns stand in the prompt now
        row = {name: value for name, value in row.items() if name not in ("conversations", "messages")}
    row |= canonical
    if float(random_words(1, seed, _SHARE, row["row"])[0]) >= settings.share * 2.0**64:
        counts["not drawn"] += 1
        return row, []
    columns = ("prompt",) if settings.of == "prompt" else ("chosen", "rejected")
    kinds: list[str] = [*(settings.kinds or REWORDINGS)]
    texts = []
    for column in columns:
        text, put = _part(row[column], column)
        texts.append(_Text(column, [text, *variants(text, settings.variants, seed, kinds)], put))
    if all(len(text.versions) == 1 for text in texts):
        counts["without variants"] += 1
        return row, []
    return row, texts


def _replaced(
    row: Row, texts: Sequence[_Text], settings: ConvexDA, seed: int, embedder: Embedder, counts: Counter[str]
) -> list[Row]:
    """The rows that take the place of one: a single one, or with ``all`` one for each vertex."""
    chosen: list[list[str]] = []
    for side, text in enumerate(texts):
        # a call for each text, so that no other row changes a bit of its embeddings
        points = _dense(embedder.encode(text.versions))
        numbers = picked(points, settings.dims, settings.pick, (seed, row["row"], side))
        chosen.append([text.versions[number] for number in numbers])
    made = []
    for number in range(max(map(len, chosen))):  # the side with fewer vertices goes through its own again
        versions = [found[number % len(found)] for found in chosen]
        made.append(row | {t.column: t.put(version) for t, version in zip(texts, versions, strict=True)})
        changed = any(version != t.versions[0] for t, version in zip(texts, versions, strict=True))
        counts["changed" if changed else "as it was"] += 1
    return made


def _part(value: Any, column: str) -> tuple[str, Callable[[str], Any]]:
    """The part of a prompt or an answer that is rewritten, which may be empty, and what puts another in its place."""
    if isinstance(value, str):
        start = value.rfind(HH_HUMAN) + len(HH_HUMAN) if column == "prompt" and HH_HUMAN in value else 0
        stop = value.find(HH_ASSISTANT, start) if start else len(value)
        stop = len(value) if stop < 0 else stop
        return value[start:stop], lambda text: value[:start] + text + value[stop:]
    role = "user" if column == "prompt" else "assistant"
    spoken = [i for i, turn in enumerate(value) if turn["role"] == role and turn.get("content")]
    if not spoken:
        return "", lambda text: value
    at = spoken[-1]
    return value[at]["content"], lambda text: [*value[:at], {**value[at], "content": text}, *value[at + 1 :]]


def _dense(points: Any) -> Any:
    """Embeddings as an array; of sparse ones the columns that are zero throughout are left out, which moves nothing."""
    if not hasattr(points, "toarray"):
        return points
    return points[:, np.unique(points.indices)].toarray()


def _report(settings: ConvexDA, counts: Counter[str], before: int, out: int, say: Callable[[str], Any]) -> None:
    """Say what became of the rows."""
    unchanged = {
        "as it was": "kept by the hull" if settings.pick == "all" else "picked as they were",
        "without variants": "without a rewrite",
        "not drawn": f"not among the share of {settings.share:g}",
        "unreadable": "not readable",
    }
    others = [f"{counts[name]:,} {words}" for name, words in unchanged.items() if counts[name]]
    same = f", {', '.join(others)}" if others else ""
    say(
        f"  ConvexDA of {'prompts' if settings.of == 'prompt' else 'answers'} (pick: {settings.pick}): "
        f"{counts['changed']:,} of {out:,} rows with a rewritten text{same}"
    )
    if out != before:
        say(f"  ConvexDA: {before:,} rows became {out:,}, one for each vertex, so an epoch is longer")
