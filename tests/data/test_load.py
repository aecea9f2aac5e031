"""A recipe's data section: that what is rewritten reaches the tokens, and no row that is held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny import tiny_tokenizer

from align.data.load import Data, load_data
from align.recipe import Recipe

PAIR = ("chosen", "rejected")
TOKENIZER = tiny_tokenizer()


def loaded(base: Path, objective: str = "dpo", **data: Any) -> tuple[Data, list[str], Recipe]:
    source = {"path": "pairs.jsonl"}
    raw = {"name": "r", "model": {"id": "m"}, "objective": {"name": objective}, "data": {"train": source, **data}}
    recipe = Recipe.from_dict(raw, base=base)
    said: list[str] = []
    return load_data(recipe, TOKENIZER, PAIR, said.append), said, recipe


def test_convex_changes_training_rows_their_digest_and_nothing_that_is_held_out(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Question {i}:", "chosen": f" It is not the big house {i}", "rejected": f" They do not start {i}"}
        for i in range(12)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = {"held_out": {"path": "pairs.jsonl"}}
    plain, _, _ = loaded(tmp_path, **held)
    data, said, recipe = loaded(tmp_path, convex={"pick": "farthest"}, **held)
    assert data.digest != plain.digest
    assert data.held_out is not None
    assert plain.held_out is not None
    assert data.held_out[:] == plain.held_out[:]
    assert data.train["row"][:] == list(range(12))
    assert all(data.train[i]["chosen_ids"] != plain.train[i]["chosen_ids"] for i in range(12))
    assert all(data.train[i]["rejected_ids"] != plain.train[i]["rejected_ids"] for i in range(12))
    assert all(data.train[i]["prompt_ids"] == plain.train[i]["prompt_ids"] for i in range(12))
    assert "warning: 12 of the training rows are held out as well: align check lists them" in said  # as they were given
    assert "  ConvexDA of answers (pick: farthest): 12 of 12 rows with a rewritten text" in said
    again = Recipe.from_dict(recipe.dump(), base=tmp_path)
    assert load_data(again, TOKENIZER, PAIR, lambda _: None).digest == data.digest


def test_the_digest_sees_the_numbers_of_rows_that_the_objective_reads(tmp_path: Path) -> None:
    found = {}
    for objective in ("bradley_terry", "dpo"):
        for preference in (0.9, 0.6):
            row = {"prompt": "What is it?", "chosen": " Yes.", "rejected": " No.", "preference": preference}
            (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
            found[objective, preference] = loaded(tmp_path, objective)[0].digest
    assert found["bradley_terry", 0.9] != found["bradley_terry", 0.6]
    assert found["dpo", 0.9] == found["dpo", 0.6]


def test_convex_rewrites_answers_to_questions_in_the_form_that_they_are_put_in(tmp_path: Path) -> None:
    rows = [
        {"question": f"What is {i}?", "chosen": f"It is not the big house {i}", "rejected": f"They do not start {i}"}
        for i in range(6)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain, _, _ = loaded(tmp_path)
    data, said, _ = loaded(tmp_path, convex={"pick": "farthest"})
    assert "  ConvexDA of answers (pick: farthest): 6 of 6 rows with a rewritten text" in said
    prompt = "<|im_start|>user\nWhat is 3?<|im_end|>\n<|im_start|>assistant\n"
    assert [TOKENIZER.decode(one.train[3]["prompt_ids"]) for one in (plain, data)] == [prompt, prompt]
    assert TOKENIZER.decode(plain.train[3]["chosen_ids"]) == "It is not the big house 3<|im_end|>\n"
    assert all(data.train[i]["chosen_ids"] != plain.train[i]["chosen_ids"] for i in range(6))
