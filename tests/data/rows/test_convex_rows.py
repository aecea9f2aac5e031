"""Rows with ConvexDA: what is replaced and what stays, that order changes nothing, and what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from align.data.rows import rewrites
from align.data.rows.convex import picked
from align.data.rows.convex_rows import convex_rows
from align.data.rows.embedding import load_embedder
from align.data.rows.formats import recognise
from align.data.rows.rewrites import REWORDINGS, REWRITES, variants
from align.data.rows.sources import from_rows
from align.errors import UserError
from align.recipe.sections import ConvexDA, Rewrite

PAIR = ("chosen", "rejected")
TYPOS: dict[str, Any] = {"kinds": ["swapped_letters", "dropped_letter", "doubled_letter"], "variants": 6}
GOOD = " Because the river carries water from several mountains towards the northern country."
BAD = " Nobody remembers anything about questions concerning water, rivers or mountains today."


def silent(_: str) -> None:
    pass


def texts(count: int) -> list[dict[str, Any]]:
    rows = [{"prompt": f"Question number {i}:", "chosen": f"{GOOD} Case {i}", "rejected": BAD} for i in range(count)]
    return [row | {"row": i} for i, row in enumerate(rows)]


def changed(rows: list[dict[str, Any]], say: Any = silent, seed: int = 0, **settings: Any) -> list[dict[str, Any]]:
    form = recognise(rows[0], None, PAIR)
    made = convex_rows(from_rows(rows), form, ConvexDA(**settings), seed=seed, base=Path(), say=say)
    return list(made)


def test_both_answers_are_replaced_by_vertices_of_their_own_hulls() -> None:
    rows = texts(6)
    made = changed(rows, seed=3, **TYPOS)
    assert len(made) == 6
    of = {row[n]: [row[n], *variants(row[n], 6, 3, TYPOS["kinds"])] for row in rows for n in PAIR}
    words = load_embedder(None, [version for row in rows for n in PAIR for version in of[row[n]]], say=silent)
    for before, after in zip(rows, made, strict=True):
        assert after["prompt"] == before["prompt"]
        for side, name in enumerate(PAIR):
            listed = of[before[name]]
            points = words.encode(listed).toarray()
            points = points[:, points.any(axis=0)]
            assert after[name] == listed[picked(points, 2, "random", (3, before["row"], side))[0]]
    # the defect of the released script: all rows share one object
    assert len({row["chosen"] for row in made}) == 6
    assert len({row["rejected"] for row in made}) > 1  # equal texts of different rows are drawn apart


def test_order_changes_nothing_and_the_seed_does() -> None:
    rows = texts(8)
    made = changed(rows, **TYPOS)
    assert changed(rows, **TYPOS) == made
    assert changed(rows[::-1], **TYPOS) == made[::-1]
    assert changed(rows, seed=1, **TYPOS) != made


def test_all_gives_a_row_for_every_vertex() -> None:
    said: list[str] = []
    rows = texts(2)
    made = changed(rows, said.append, pick="all", **TYPOS)
    every = {name: {row[name] for row in made if row["row"] == 0} for name in PAIR}
    for side, name in enumerate(PAIR):
        listed = [rows[0][name], *variants(rows[0][name], 6, 0, TYPOS["kinds"])]
        corpus = [v for r in rows for n in PAIR for v in (r[n], *variants(r[n], 6, 0, TYPOS["kinds"]))]
        points = load_embedder(None, corpus, say=silent).encode(listed).toarray()
        points = points[:, points.any(axis=0)]
        assert every[name] == {listed[i] for i in picked(points, 2, "all", (0, 0, side))}
    assert len([row for row in made if row["row"] == 0]) == max(len(found) for found in every.values())
    assert said[-1] == f"  ConvexDA: 2 rows became {len(made)}, one for each vertex, so an epoch is longer"


def test_the_prompt_alone_is_replaced_where_it_is_asked_for() -> None:
    rows = texts(4)
    made = changed(rows, of="prompt", pick="farthest", **TYPOS)
    assert [(row["chosen"], row["rejected"]) for row in made] == [(row["chosen"], row["rejected"]) for row in rows]
    assert all(after["prompt"] != before["prompt"] for before, after in zip(rows, made, strict=True))


def test_of_a_transcript_the_last_words_of_the_human_are_replaced() -> None:
    start = "\n\nHuman: Something about animals?\n\nAssistant: Gladly.\n\nHuman:"
    words = " Describe several elephants please"
    rows = [
        {
            "chosen": f"{start}{words}\n\nAssistant: Large{i}",
            "rejected": f"{start}{words}\n\nAssistant: Small",
            "row": i,
        }
        for i in range(3)
    ]
    for row in changed(rows, of="prompt", pick="farthest", **TYPOS):
        assert row["prompt"].startswith(start)
        assert row["prompt"].endswith("\n\nAssistant:")
        inside = row["prompt"][len(start) : -len("\n\nAssistant:")]
        assert inside in variants(words, 6, 0, TYPOS["kinds"])


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(("of", "column"), [("answers", "chosen"), ("prompt", "prompt")])
def test_of_a_conversation_the_last_turn_is_replaced(of: str, column: str) -> None:
    prompt = [turn("user", "Something about animals?"), turn("assistant", "Gladly."), turn("user", BAD)]
    rows = [
        {"chosen": [*prompt, turn("assistant", GOOD)], "rejected": [*prompt, turn("assistant", BAD)], "row": i}
        for i in range(2)
    ]
    for row in changed(rows, of=of, pick="farthest", **TYPOS):
        *before, last = row[column]
        assert before == ([] if of == "answers" else prompt[:-1])
        source = GOOD if of == "answers" else BAD
        assert last["content"] in variants(source, 6, 0, TYPOS["kinds"])
        assert last["role"] == ("assistant" if of == "answers" else "user")


def test_every_row_is_accounted_for_and_drawn_by_its_number() -> None:
    said: list[str] = []
    rows: list[dict[str, Any]] = [*texts(60), {"prompt": "Q", "chosen": None, "rejected": " b", "row": 60}]
    made = changed(rows, said.append, share=0.5, pick="farthest", **TYPOS)
    different = [i for i, (a, b) in enumerate(zip(rows, made, strict=True)) if a["chosen"] != b["chosen"]]
    assert 15 < len(different) < 45
    assert made[60] == rows[60]
    assert said[-1] == (
        f"  ConvexDA of answers (pick: farthest): {len(different)} of 61 rows with a rewritten text, "
        f"{60 - len(different)} not among the share of 0.5, 1 not readable"
    )
    half = changed(rows[30:60], share=0.5, pick="farthest", **TYPOS)
    again = [row["row"] for row, old in zip(half, rows[30:60], strict=True) if row["chosen"] != old["chosen"]]
    assert again == [i for i in different if i >= 30]


def test_rows_that_are_picked_as_they_were_are_counted() -> None:
    said: list[str] = []
    rows = texts(40)
    made = changed(rows, said.append, variants=1, kinds=["swapped_letters"])  # hulls of two ends
    same = sum(a["chosen"] == b["chosen"] and a["rejected"] == b["rejected"] for a, b in zip(rows, made, strict=True))
    assert 2 < same < 20  # a quarter
    assert said[-1] == (
        f"  ConvexDA of answers (pick: random): {40 - same} of 40 rows with a rewritten text, {same} "
        "picked as they were"
    )


def test_rows_without_any_rewrite_stay_and_no_embedding_is_asked_for() -> None:
    said: list[str] = []
    rows = [{"prompt": "Q", "chosen": " 7", "rejected": " 9", "row": 0}]
    assert changed(rows, said.append, kinds=["synonyms"]) == rows
    assert said == ["  ConvexDA of answers (pick: random): 0 of 1 rows with a rewritten text, 1 without a rewrite"]


def test_tokenised_rows_are_refused() -> None:
    with pytest.raises(UserError) as told:
        changed([{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3], "row": 0}])
    assert str(told.value) == (
        "data.convex rewrites texts, but the rows are tokenised already; give texts, or remove it."
    )


def test_the_recipe_names_all_kinds_of_rewrites_and_rewords_by_default() -> None:
    assert set(get_args(Rewrite)) == set(REWRITES)
    row = {"prompt": "Q", "chosen": " It is not big", "rejected": " They do not start now", "row": 0}
    made = changed([row], pick="farthest")
    kinds = list(REWORDINGS)
    assert made[0]["chosen"] in variants(row["chosen"], 5, 0, kinds)
    assert made[0]["rejected"] in variants(row["rejected"], 5, 0, kinds)
    assert rewrites.TYPOGRAPHICAL.keys().isdisjoint(kinds)
