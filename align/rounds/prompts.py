"""Prompts of all rounds: each is fresh, and which round has which follows from the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from align.data.rows.mixture import Mixture, mix
from align.data.rows.sources import load_source, source_name
from align.data.tokens.arguments import unused_arguments
from align.data.tokens.prompts import prompt_rows
from align.data.tokens.tokenize import load_tokenizer
from align.errors import UserError
from align.recipe import Recipe
from align.sampling.files import write_table

if TYPE_CHECKING:
    from datasets import Dataset

PROMPTS = "prompts.parquet"
_SCHEMA = pa.schema(
    [
        ("round", pa.int32()),
        ("row", pa.int64()),
        ("prompt", pa.string()),  # JSON: a text or messages
        ("prompt_ids", pa.list_(pa.int32())),
    ]
)


class Prompts(NamedTuple):
    """All prompts of a recipe, how many sources they come from, and how many each round gets."""

    mixture: Mixture
    sources: int
    each: int


def prompts_of(
    recipe: Recipe, dataset: Dataset | None, arguments: Mapping[str, Any], say: Callable[[str], Any]
) -> Prompts:
    """The prompts that a recipe in rounds has.

    Args:
        dataset: rows to take them from; None for the recipe's sources.
        arguments: template arguments of the run.

    Raises:
        UserError: where there are too few for all rounds.
    """
    assert recipe.rounds is not None
    assert recipe.sampling is not None
    tokenizer = load_tokenizer(recipe.model, base=recipe.base, arguments=arguments)
    for sentence in unused_arguments(tokenizer, recipe.data.template_arguments):
        say(f"warning: {sentence}")
    limit = recipe.data.max_length
    limits: dict[str, Any] = {
        "max_length": None if limit is None else limit - recipe.sampling.max_new_tokens,  # answers need room
        "truncation": recipe.data.truncation,
    }
    if dataset is not None:
        parts = [prompt_rows(dataset, tokenizer, say, **limits)]
    else:
        parts = []
        for source in recipe.data.train or []:
            say(f"prompts: {source_name(source)}")
            rows: Any = load_source(source, base=recipe.base)
            parts.append(prompt_rows(rows, tokenizer, say, system=source.system, **limits))
    mixture = mix(parts, [1.0] * len(parts), seed=recipe.seed)
    count = recipe.rounds.count
    each = recipe.rounds.prompts or max(1, len(mixture) // count)
    if len(mixture) < count * each:
        raise UserError(
            f"{count} rounds of {each:,} fresh prompts each need {count * each:,}, and there are {len(mixture):,}. "
            "Lower rounds.prompts or rounds.count, or add prompts."
        )
    return Prompts(mixture, len(parts), each)


def deal(
    recipe: Recipe, dataset: Dataset | None, arguments: Mapping[str, Any], file: Path, say: Callable[[str], Any]
) -> None:
    """Write the prompts of all rounds, in a seeded order; arguments and errors as of ``prompts_of``."""
    assert recipe.rounds is not None
    mixture, sources, each = prompts_of(recipe, dataset, arguments, say)
    order = mixture.indices(0)[: recipe.rounds.count * each].tolist()
    lines = [
        # several sources number their rows alike: the place among all tells these apart
        {**row, "round": place // each + 1, "row": row["row"] if sources == 1 else index}
        for place, (index, row) in enumerate(zip(order, mixture.dataset.select(order), strict=True))
    ]
    write_table(file, [{name: line[name] for name in _SCHEMA.names} for line in lines], _SCHEMA)


def digest(file: Path) -> str:
    """Hex SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
