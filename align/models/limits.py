"""What a model can read: token ids that it has an embedding for, and so many positions; and the rows that go beyond."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from align.data.rows.cache import let_go
from align.data.rows.sources import is_table
from align.data.tokens.preparation import Tally, first_rows, plural
from align.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    AnyDataset = Dataset | IterableDataset


def refuse_beyond(model: Any, rows: AnyDataset, branches: Sequence[str]) -> None:
    """Refuse prepared rows that the model cannot read, before it fails at one. Raises ``UserError``.

    Rotary positions have no end; only those of a table do. A stream is not read before it is trained on.
    """
    if not is_table(rows):
        return
    vocabulary = vocabulary_of(model)
    strange = beyond_vocabulary(rows, branches, vocabulary)
    if strange.count:
        raise UserError(
            f"{plural(strange.count, 'row')} ({first_rows(strange)}) {'holds' if strange.count == 1 else 'hold'} token "
            f"ids outside 0 to {vocabulary - 1:,}, for which the model has no embedding. Take the model's own "
            "tokenizer, or give the model rows for added tokens (resize_token_embeddings); -100 marks labels and is no "
            "token."
        )
    limit = positions_of(model.config)
    if limit is None:
        return
    long, most = beyond_positions(rows, branches, limit)
    if long.count and has_position_table(model):
        raise UserError(
            f"{plural(long.count, 'row')} ({first_rows(long)}) {'is' if long.count == 1 else 'are'} longer than the "
            f"{limit:,} positions that the model has; the longest has {most:,} tokens. Set data.max_length to {limit} "
            "or less."
        )


def vocabulary_of(model: Any) -> int:
    """How many token ids a model has an embedding for."""
    size = getattr(model.get_input_embeddings(), "num_embeddings", None)
    return int(model.config.get_text_config().vocab_size if size is None else size)


def positions_of(config: Any) -> int | None:
    """Positions that a configuration names, None where it names none."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def has_position_table(model: Any) -> bool:
    """Whether positions are looked up in a table, learned or computed, which ends somewhere."""
    from torch import Tensor, nn

    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and ("position" in last or last == "wpe"):
            return True
        if any(isinstance(getattr(module, table, None), Tensor) for table in ("embed_positions", "pos_encoding")):
            return True  # GPT-J, CodeGen; CTRL
    return False


def skeleton(config: Any, *, reward: bool = False, **options: Any) -> Any:
    """The model of a configuration without any weights; None for an architecture that needs them to be made.

    With ``reward`` it is the one with a head that scores answers.

    ``options`` are of ``from_config``. Raises what transformers raises for an attention that it cannot use.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    logger = logging.getLogger("transformers")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with torch.device("meta"):
            if reward:
                config.num_labels = 1
            kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
            return kind.from_config(config, trust_remote_code=False, **options)
    except (RuntimeError, NotImplementedError, TypeError):  # it computes with weights while it is being made
        return None
    finally:
        logger.setLevel(level)


def beyond_vocabulary(rows: Dataset, branches: Sequence[str], vocabulary: int) -> Tally:
    """Rows with a token id below 0, missing, or not below ``vocabulary``.

    Raises ``UserError`` where a column of token ids holds something else.
    """
    bad: set[int] = set()
    for column in _columns(rows, branches):
        start = 0
        for lists in _lists(rows, column).chunks:
            flat = pc.list_flatten(lists)
            extremes = pc.min_max(flat).as_py()
            if flat.null_count or (len(flat) and not 0 <= extremes["min"] <= extremes["max"] < vocabulary):
                ids = np.asarray(pc.fill_null(pc.cast(flat, pa.int64()), -1))
                owner = np.repeat(np.arange(len(lists)), np.asarray(pc.fill_null(pc.list_value_length(lists), 0)))
                bad |= set((start + owner[(ids < 0) | (ids >= vocabulary)]).tolist())
            start += len(lists)
            let_go()
    return _tally(rows, sorted(bad))


def beyond_positions(rows: Dataset, branches: Sequence[str], limit: int) -> tuple[Tally, int]:
    """Rows whose prompt with one of the branches has more than ``limit`` tokens, and the most tokens of any."""
    most = np.zeros(len(rows), dtype=np.int64)

    def lengths(column: str) -> np.ndarray:
        return np.asarray(pc.fill_null(pc.list_value_length(_lists(rows, column)), 0))

    for column in _columns(rows, branches):
        if column.endswith("prompt_ids"):
            most = np.maximum(most, lengths(column))
            continue
        own = column.removesuffix("_ids") + "_prompt_ids"
        most = np.maximum(most, lengths(column) + lengths(own if own in rows.column_names else "prompt_ids"))
    return _tally(rows, np.flatnonzero(most > limit).tolist()), int(most.max(initial=0))


def _columns(rows: Dataset, branches: Sequence[str]) -> list[str]:
    """Columns of token ids that an objective on ``branches`` reads."""
    wanted = ["prompt_ids", *(f"{name}{end}" for name in branches for end in ("_ids", "_prompt_ids"))]
    return [name for name in wanted if name in rows.column_names]


def _lists(rows: Dataset, column: str) -> Any:
    values: Any = rows.with_format("arrow")[column]
    kind = values.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_integer(kind.value_type):
        raise UserError(
            f"The column {column} of the prepared rows holds {kind}; expected lists of token ids (integers)."
        )
    return values


def _tally(rows: Dataset, places: Sequence[int]) -> Tally:
    tally = Tally()
    for place in places:
        tally.add(place)
    if "row" in rows.column_names:
        tally.first = [int(number) for number in rows.select(tally.first)["row"]]
    return tally
