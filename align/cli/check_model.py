"""Whether rows go with the model that reads them and with the batches that they come in, as far as settings say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from align.cli.findings import Finding
from align.data.tokens.preparation import plural
from align.errors import UserError
from align.models.limits import beyond_positions, beyond_vocabulary, has_position_table, positions_of, skeleton
from align.models.load import adapter_base, first_line, model_folder
from align.runs.models import located

if TYPE_CHECKING:
    from datasets import Dataset

    from align.recipe import Recipe
    from align.recipe.sections import Model


def model_config(section: Model, base: Any) -> Any:
    """The configuration of a recipe's model. Raises ``UserError`` where there is none to read."""
    from transformers import AutoConfig

    name = located(section.id, base)
    try:
        folder = model_folder(name)
        adapter = folder is not None and (folder / "adapter_config.json").exists()
        source = adapter_base(folder) if adapter and folder is not None else str(folder or name)
        return AutoConfig.from_pretrained(source, revision=section.revision, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # over a file of somebody else
        raise UserError(
            f"model.id: {section.id!r} has no configuration that can be read ({first_line(error)})."
        ) from error


def reading(config: Any, rows: Dataset, branches: Sequence[str]) -> Iterator[Finding]:
    """Prepared rows against what the model of a configuration can read."""
    vocabulary = config.get_text_config().vocab_size
    strange = beyond_vocabulary(rows, branches, vocabulary)
    if strange.count:
        text = f"token ids beyond the model's vocabulary of {vocabulary:,}"
        note = "take the model's own tokenizer, or give the model rows for added tokens"
        yield Finding.of("error", "ids", text, strange, note)
    else:
        yield Finding("ok", "ids", f"the model has an embedding for every token id ({vocabulary:,})")
    limit = positions_of(config)
    long, most = beyond_positions(rows, branches, limit or 0)
    if limit is None or not long.count:
        return
    model = skeleton(config)
    if model is not None and has_position_table(model):
        text = f"longer than the {limit:,} positions that the model has"
        yield Finding.of("error", "positions", text, long, f"longest {most:,}; set data.max_length to {limit} or less")
    else:
        text = f"longer than the {limit:,} positions that the model was made for"
        yield Finding.of("warning", "positions", text, long, f"longest {most:,}; it was not trained that far")


def stepping(recipe: Recipe, examples: int) -> Iterator[Finding]:
    """The examples of an epoch against those of an optimizer step on one device, and the steps against the settings."""
    batch = int(recipe.train.get("per_device_train_batch_size", 8))
    accumulation = int(recipe.train.get("gradient_accumulation_steps", 1))
    steps = recipe.train.get("max_steps", -1)
    if steps <= 0:
        steps = math.ceil(recipe.train.get("num_train_epochs", 3) * math.ceil(examples / (batch * accumulation)))
    every = recipe.reference.sync_every
    if every is not None and every >= steps:
        text = f"the reference moves every {plural(every, 'step')} and the run has {steps:,}, so it never moves"
        yield Finding("warning", "sync", f"{text}: lower reference.sync_every")
    if examples >= batch * accumulation:
        return
    rows = plural(examples, "row")
    text = f"{rows} to train on, and an optimizer step takes {batch * accumulation:,} ({batch} x {accumulation})"
    if recipe.train.get("dataloader_drop_last"):
        cure = "no step would be taken: set train.dataloader_drop_last to false, or a smaller batch"
        yield Finding("error", "batch", f"{text}; {cure}")
    else:
        cure = "every step is a whole epoch: set a smaller batch if that is not meant"
        yield Finding("warning", "batch", f"{text}; {cure}")
