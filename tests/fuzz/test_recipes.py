"""Recipes that nobody would write are refused in sentences, or checked as any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from exploring import cases, explore
from hypothesis import strategies as st
from material import VALUES, changed, damaged, json_text
from small_run import small_world

from align.cli.main import main
from align.recipe import packaged_recipes
from align.recipe.recipe import Recipe
from align.recipe.sampling import SECTIONS
from align.recipe.train_keys import train_keys

KEYS = tuple(sorted({*Recipe.model_fields, *(name for section in SECTIONS.values() for name in section.model_fields)}))
FRAGMENTS = (
    b"<<: *a\n",
    b"a: &a\n  <<: *a\n",
    b"&a [*a, *a]",
    b"!!python/object/apply:os.system ['touch elsewhere']",
    b"!!binary aGVsbG8=",
    b"!!set {a, b}",
    b"? [a, b]\n: c\n",
    b"[" * 700,
    b"- " * 300,
    b"\t",
    b"\xff\xfe",
    b"%YAML 9.9\n---\n",
    b"---\n",
    b"0x" + b"f" * 5000,
    b"9" * 5000,
    b"'",
    b"|+9\n",
)
BOMB = "x: &a0 [y, y, y, y, y, y, y, y, y]\n" + "".join(
    f"x{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


def recipes(world: Path) -> list[dict[str, Any]]:
    """Recipes of several kinds that are fine as they stand."""
    rows, model = {"path": str(world / "train.jsonl")}, {"id": str(world / "model")}
    plain = {"name": "tiny", "model": model, "data": {"train": rows}, "output": "out", "train": {"max_steps": 1}}
    return [
        {**plain, "objective": {"name": "dpo", "beta": 0.1}, "data": {"train": rows, "held_out": rows}},
        {**plain, "objective": [{"name": "simpo"}, {"name": "sft", "weight": 0.5}], "watch": {"prompts": ["hi"]}},
        {**plain, "objective": {"name": "kto"}, "model": {**model, "lora": {"rank": 4, "targets": ["q_proj"]}}},
        {**plain, "objective": {"name": "npo"}, "data": {"forget": rows, "retain": rows}},
        {**plain, "objective": {"name": "bradley_terry"}, "train": {"lr_scheduler_kwargs": {"a": 1}, "max_steps": 1}},
        *(yaml.safe_load(file.read_text()) for file in list(packaged_recipes().values())[:4]),
    ]


def texts(world: Path) -> st.SearchStrategy[bytes]:
    known = st.sampled_from(recipes(world))
    keys = (*KEYS, *list(train_keys())[::6])
    mutated = known.flatmap(lambda recipe: changed(recipe, keys))
    as_yaml = mutated.map(lambda value: yaml.dump(value, allow_unicode=True).encode("utf-8", "replace"))
    as_json = mutated.map(lambda value: json_text(value).encode())
    broken = known.map(lambda value: yaml.safe_dump(value).encode()).flatmap(lambda text: damaged(text, FRAGMENTS))
    as_it_is = st.sampled_from(recipes(world)[:5]).map(lambda value: json_text(value).encode())
    return st.one_of(as_yaml, as_yaml, as_json, broken, as_it_is, st.binary(max_size=40), st.just(BOMB.encode()))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world(tmp_path_factory.mktemp("world"))


@cases(52)
def test_recipe_files(count: int, world: Path, tmp_path: Path) -> None:
    def case(content: bytes, place: Path) -> Callable[[], int]:
        (place / "r.yaml").write_bytes(content)
        return lambda: main(["check", "r.yaml"])

    outcomes = explore(texts(world), count, tmp_path, case)
    codes = {outcome.code for outcome in outcomes}
    assert 2 in codes, "most are refused"
    assert codes & {0, 1}, "some get as far as their rows"


@cases(12)
def test_overrides(count: int, world: Path, tmp_path: Path) -> None:
    recipe = json.dumps(recipes(world)[0])
    paths = st.lists(st.sampled_from([*KEYS, "0", "7", ""]), min_size=1, max_size=4).map(".".join)
    overrides = st.lists(st.tuples(paths, VALUES.map(json_text)).map("=".join), min_size=1, max_size=3)

    def case(words: list[str], place: Path) -> Callable[[], int]:
        (place / "r.yaml").write_text(recipe)
        return lambda: main(["check", "r.yaml", *words])

    explore(overrides, count, tmp_path, case)
