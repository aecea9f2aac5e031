"""The sources of a recipe for ``align check``: what each is for, what is read of its rows, and the rows themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from align.data.rows.questions import asked
from align.data.rows.sources import from_rows, is_table, load_source, source_name
from align.data.tokens.chunks import OPENING
from align.data.tokens.preparation import plural
from align.data.tokens.unlearning import alternate_texts, with_alternates
from align.objectives.base import sources_of

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

    from align.recipe import Recipe
    from align.recipe.sections import Source

    Rows = Sequence[Mapping[str, Any]] | Dataset | IterableDataset

STREAM_ROWS = 1000  # of a stream, the first rows are looked at


class Part(NamedTuple):
    """One source of a recipe, what it is for (train, held out, forget, retain) and what is read of its rows."""

    role: str
    source: Source
    branches: tuple[str, ...]

    def load(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """Raw rows, those to forget once with each alternate answer of their own. Raises ``UserError``."""
        rows = as_table(load_source(self.source, base=recipe.base))
        prepared = {f"{self.role}_{end}": f"completion_{end}" for end in ("ids", "mask")}
        rows = rows.rename_columns({old: new for old, new in prepared.items() if old in rows.column_names})
        if "alternate" in self.branches and "alternate_ids" not in rows.column_names:
            rows, _ = with_alternates(rows, None, 1, recipe.seed)
        return asked(rows, tokenizer, self.branches)

    def copies(self, rows: Dataset) -> int:
        """How often each row is there: once with each alternate answer of its own."""
        numbers = rows["row"][:] if "alternate" in self.branches else []
        return numbers.count(numbers[0]) if numbers else 1

    def called(self, rows: Dataset) -> str:
        """What the part is called in a report on these rows."""
        each = self.copies(rows)
        return source_name(self.source) + (f", once with each of {each} alternates" if each > 1 else "")


def parts_of(recipe: Recipe) -> list[Part]:
    """All parts, those to learn from first."""
    data, branches = recipe.data, sources_of(recipe.objective_value().branches)
    if recipe.rounds is not None:  # rows are prompts, whose answers are sampled
        branches = ()
    if data.forget is None:
        parts = [Part("train", source, branches) for source in data.train or []]
        return parts + [Part("held out", source, branches) for source in data.held_out or []]
    alternates: tuple[str, ...] = ("alternate",) if "alternate" in branches else ()
    if data.alternates is not None and alternate_texts(data.alternates, recipe.base) is not None:
        alternates = ()  # they are no part of the rows
    parts = [Part("forget", source, ("completion", *alternates)) for source in data.forget]
    return parts + [Part("retain", source, ("completion",)) for source in data.retain or []]


def alternates_lines(recipe: Recipe, plain: bool) -> list[str]:
    """What rows to forget are answered with, where that is no part of them; ``plain`` where some are plain texts."""
    settings = recipe.data.alternates
    texts = None if settings is None else alternate_texts(settings, recipe.base)
    if settings is None or texts is None:
        return []
    different = len(set(texts))
    doubled = f", {different:,} of them different" if different < len(texts) else ""
    name = settings.path or f"builtin {settings.builtin}"
    out = [f"Alternates  {name}   {plural(len(texts), 'answer')}{doubled}", "", f"  such as     {texts[0]}"]
    if plain:
        opening = f"at most {OPENING} tokens and at most a half"
        out.append(f"  plain text  has no question: the opening ({opening}) stands for it and is not trained on")
    return [*out, ""]


def as_table(rows: Rows) -> Dataset:
    """Rows in memory, of a stream the first ``STREAM_ROWS``."""
    from datasets import IterableDataset

    if isinstance(rows, IterableDataset):
        return from_rows(list(rows.take(STREAM_ROWS)))
    return rows if is_table(rows) else from_rows(list(rows))  # type: ignore[arg-type]
