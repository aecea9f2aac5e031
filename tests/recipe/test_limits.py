"""Recipes that are too much, or made to deceive, are refused with their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from align.recipe import Recipe, load_recipe
from align.recipe.yaml import parse

GOOD: dict[str, Any] = {
    "name": "first",
    "model": {"id": "some/model"},
    "data": {"train": {"path": "rows.jsonl"}},
    "objective": {"name": "dpo"},
}


def refused(text: str) -> str:
    with pytest.raises(UserError) as error:
        parse(text, "r.yaml")
    return str(error.value)


def bomb(levels: int, width: int = 9) -> str:
    """Lists of aliases of lists of aliases: ``width`` to the power of ``levels`` values."""
    lines = ["x0: &a0 yyyy"]
    lines += [f"x{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels + 1)]
    return "\n".join(lines)


def test_aliases_are_filled_in_as_far_as_a_limit_goes() -> None:
    assert parse(bomb(2), "r.yaml").value["x2"] == [["yyyy"] * 9] * 9
    # 9^5 texts of five characters are 300,000; 9^6 are 2.7 million
    parse(bomb(5), "r.yaml")
    said = refused(bomb(9))
    assert said.startswith(
        "r.yaml:1  not valid YAML: it has more than 1,048,576 characters once aliases are filled in."
    )
    long = "y" * 20_000  # of which 53 are too many, wherever they stand
    parse(f"a: &a {long}\nb: [{', '.join(['*a'] * 51)}]", "r.yaml")
    assert "1,048,576 characters" in refused(f"a: &a {long}\nb: [{', '.join(['*a'] * 52)}]")
    assert "r.yaml:2  not valid YAML: it has more than 100 aliases." in refused(
        f"a: &a b\nc: [{', '.join(['*a'] * 101)}]"
    )
    parse(f"a: &a b\nc: [{', '.join(['*a'] * 100)}]", "r.yaml")


@pytest.mark.parametrize("text", ["a: &a\n  <<: *a\n", "a: &a\n  - *a\n", "a: &a\n  b: {<<: [*a]}\n"])
def test_what_contains_itself(text: str) -> None:
    assert refused(text) == "r.yaml:1  not valid YAML: an alias that contains itself.\n1 error, nothing was run."


@pytest.mark.parametrize("levels", [65, 500, 20_000])
def test_levels(levels: int) -> None:
    parse("[" * 64 + "]" * 64, "r.yaml")
    said = "r.yaml:1  not valid YAML: it is nested more than 64 levels deep.\n1 error, nothing was run."
    assert refused("[" * levels + "]" * levels) == said


def test_a_large_file_and_a_device(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("#" * (256 * 1024 + 1))
    with pytest.raises(UserError) as error:
        load_recipe(file)
    assert str(error.value) == f"{file}  cannot be read: it has 262,145 bytes, and at most 262,144 are read."


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"train": {"gradient_accumulation_steps": 10**55}},
            "train.gradient_accumulation_steps: must be between -4,294,967,295 and 4,294,967,295, got a whole number "
            "of 183 bits.",
        ),
        (
            {"objective": [{"name": "dpo", "weight": 10**400}]},
            "objective.0.weight: must be between -4,294,967,295 and 4,294,967,295, got a whole number of 1329 bits.",
        ),
        (
            {"train": {"max_steps": 2**64}},
            "train.max_steps: must be between -4,294,967,295 and 4,294,967,295, got the number 18446744073709551616.",
        ),
        (
            {"model": {"id": "some/model", "lora": {"rank": 0x10 ** (10**4)}}},
            "model.lora.rank: must be between -4,294,967,295 and 4,294,967,295, got a whole number of 40001 bits.",
        ),
        (
            {"watch": {"prompts": ["\ud83d"]}},
            "watch.prompts.0: holds half of a surrogate pair, which is no character; remove it.",
        ),
        (
            {"train": {"lr_scheduler_kwargs": "min_lr: 1"}},
            "train.lr_scheduler_kwargs: expected a mapping, got the text 'min_lr: 1'.",
        ),
        (
            {"train": {"activation_checkpointing_kwargs": "hello"}},
            "train.activation_checkpointing_kwargs: expected a mapping, got the text 'hello'.",
        ),
        ({"name": "n" * 201}, "name: must have at most 200 characters, got 201."),
        (
            {"data": {"train": {"path": "o" * 300}}},
            "data.train.path: no file can be called so: a name in it has 300 bytes, and at most 255 are possible.",
        ),
        ({"model": {"id": "a\0b"}}, "model.id: no file can be called so: it holds a character 0."),
    ],
)
def test_values_that_nothing_can_hold(values: dict[str, Any], said: str) -> None:
    Recipe.from_dict(GOOD)
    with pytest.raises(UserError) as error:
        Recipe.from_dict({**GOOD, **values})
    assert str(error.value) == f"recipe  {said}\n1 error, nothing was run."


def test_the_largest_seed_is_a_number() -> None:
    assert Recipe.from_dict({**GOOD, "seed": 2**32 - 1}).seed == 2**32 - 1


@pytest.mark.parametrize("place", ["/", "~", "..", "../..", "link"])
def test_an_output_that_holds_everything_else(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "link").symlink_to("/")
    with pytest.raises(UserError) as error:
        Recipe.from_dict({**GOOD, "output": place})
    shown = str(Path.home()) if place == "~" else place
    assert str(error.value) == (
        f"recipe  output: a run needs a folder of its own, and {shown} holds everything else. Try "
        f"{Path(shown) / 'NAME'}.\n1 error, nothing was run."
    )
