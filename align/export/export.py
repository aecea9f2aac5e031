"""``align export``: a run, a checkpoint or a folder as a folder of its own, checked and there whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import torch
from torch import Tensor

from align.data.tokens.tokenize import load_tokenizer
from align.errors import UserError
from align.export.folder import QUANTISED, Export, about_of, complete, copy_beside
from align.export.loads import load_elsewhere
from align.export.logits import gap, logits_of, token_rows
from align.export.merge import Unlike, merged, trained_tokens
from align.export.names import ABOUT, BESIDE, WEIGHTS
from align.export.source import Source, find
from align.models.ends import mend_generation_config
from align.recipe.sections import Model
from align.runs import checkpoints
from align.runs.files import sync_folder

Say = Callable[[str], Any]
DType = Literal["float32", "checkpoint"]
_MAY_BE_ROUNDING = 1e-2  # of the largest logit; deep models and large adapters round so much in float32


def export_run(
    run: str | Path,
    out: str | Path | None = None,
    *,
    merge: bool = False,
    dtype: DType | None = None,
    max_shard_size: str | None = None,
    replaces: bool = False,
    load_check: bool = True,
    say: Say = print,
) -> Export:
    """Write the model of a run, of a checkpoint or of a folder into a folder of its own.

    An adapter, and a whole model of which no other type and no other shards are asked, are copied as they are. All
    else is computed in float32 on the CPU, 4 bytes a weight.

    Args:
        out: by default ``RUN/export`` or ``RUN/merged``, for a folder that is no run beside it.
        merge: put an adapter into the weights of its model.
        dtype: of whole weights; ``checkpoint`` for the type that the base model's configuration names. None is that for
            merged weights, and what they have for others.
        max_shard_size: such as ``5GB``, as transformers has it.
        replaces: whether an earlier export of the same model may be there, which is replaced.
        load_check: load the result in a process without align and compare its logits.

    Raises:
        UserError: where nothing can be exported, or what was written is not what was trained. Then nothing is kept.
    """
    source = find(run)
    if merge and not source.adapter:
        raise UserError(f"{source.folder} holds whole weights, so there is nothing to merge: leave --merge out.")
    if source.adapter and not merge and (dtype or max_shard_size):
        raise UserError("--dtype and --max-shard-size are for whole weights: an adapter is written as it is.")
    if max_shard_size and not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", max_shard_size):
        raise UserError(f"--max-shard-size {max_shard_size}: expected a number with KB, MB, GB or TB, such as 5GB.")
    if source.adapter and source.load_in is not None and not merge:
        say(f"note: {QUANTISED.format(source.load_in)} (--merge)")
    place = _place(source, out, merge, replaces)
    part = place.with_name(f".{place.name}.{uuid4().hex}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
    except OSError as error:
        raise UserError(f"{place} cannot be made ({error.strerror}): name another folder with --out.") from error
    try:
        made = _write(part, source, merge, dtype, max_shard_size, load_check, say)
        if place.exists():
            checkpoints.remove(place)
        os.replace(part, place)
        sync_folder(place.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return replace(made, folder=place)


def _place(source: Source, out: str | Path | None, merge: bool, replaces: bool) -> Path:
    """Where the export goes. Raises UserError where something is there that must stay."""
    name = "merged" if merge else "export"
    if out is not None:
        place = Path(out).expanduser()
    elif source.run is not None:
        step = source.of.get("step")
        place = source.run / (name if step is None else f"{name}-{step}")
    else:
        place = source.folder.with_name(f"{source.folder.resolve().name}-{name}")
    if place.resolve().is_relative_to(source.folder.resolve()):
        raise UserError(f"--out: {place} lies in the folder that is exported: name another.")
    if not place.exists() and not place.is_symlink():
        return place
    about = None if place.is_symlink() else about_of(place)
    if about is None:
        raise UserError(f"{place} is there and is no export (no {ABOUT}): name another folder with --out.")
    if about.get("of") != source.of:
        raise UserError(f"{place} holds the export of another model: name another folder with --out, or remove it.")
    if not replaces:
        raise UserError(f"{place} holds an export of this model already: --replace writes it anew.")
    if (about.get("kind") == "merged") != merge:
        raise UserError(f"{place} holds the {about.get('kind')} of this model: name another folder with --out.")
    files = about.get("files")
    own = {ABOUT, *(files if isinstance(files, dict) else {})}
    found = (path.relative_to(place).as_posix() for path in sorted(place.rglob("*")) if not path.is_dir())
    if (strange := next((name for name in found if name not in own), None)) is not None:
        raise UserError(f"{place} holds {strange}, which is none of the export that would be replaced: take it out.")
    return place


def _write(
    part: Path, source: Source, merge: bool, dtype: DType | None, shards: str | None, check: bool, say: Say
) -> Export:
    """Fill the folder ``part``."""
    own = any((source.folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json"))
    tokenizer = load_tokenizer(
        Model(id=str(source.folder) if own else source.computed, revision=source.computed_revision)
    )
    rows: list[list[int]] = []
    expected: list[Tensor] = []
    notes: list[str] = []
    copied = not merge and not dtype and not shards
    if check or not copied:
        model = source.load(say, as_trained=merge)
        rows = token_rows(tokenizer, model, trained_tokens(model))
        if merge:
            model = _merged(source, model, rows, say, notes)
        if copied:
            expected = logits_of(model, rows)
        else:
            expected = _rounded(model, _type(source, dtype), rows, say, notes)
            _save(model, part, shards)
        del model  # before another process loads it
    copy_beside(source.folder, part, BESIDE if not copied else (*WEIGHTS, *BESIDE))
    if not own:
        tokenizer.save_pretrained(part)
    made = complete(part, source, merged=merge, notes=notes)
    if check:
        say(load_elsewhere(part, source, adapter=made.kind == "adapter", rows=rows, expected=expected).sentence())
    return made


def _merged(source: Source, model: Any, rows: list[list[int]], say: Say, notes: list[str]) -> Any:
    """The merged model in float32. What float32 does not tell from rounding is merged and compared in float64."""
    try:
        model, found = merged(model, rows, say)
    except Unlike as error:
        if not error.gap.relative <= _MAY_BE_ROUNDING:
            raise
        say(f"merge: in float32 logits differ {error.gap.text()}; float64 tells whether that is rounding")
        model, found = merged(source.load(lambda _: None, as_trained=True, dtype=torch.float64).double(), rows, say)
        model.float()
    notes.append(f"logits of the merged model differ from the adapter's {found.text()}")
    return model


def _type(source: Source, dtype: DType | None) -> torch.dtype:
    """The type that whole weights are written in."""
    if dtype == "float32":
        return torch.float32
    return source.config(of_base=dtype == "checkpoint").dtype or torch.float32


def _rounded(model: Any, kind: torch.dtype, rows: list[list[int]], say: Say, notes: list[str]) -> list[Tensor]:
    """Give the weights their type; the logits that they have then, computed in float32. What changed is said."""
    before = logits_of(model, rows)
    if kind == torch.float32:
        return before
    for weight in model.parameters():  # and no buffers, which are made anew where the model is loaded
        weight.data = weight.data.to(kind).float()
    after = logits_of(model, rows)
    for weight in model.parameters():
        weight.data = weight.data.to(kind)
    found = gap(before, after)
    name = str(kind).removeprefix("torch.")
    note = (
        f"rounding the weights to {name} moves logits {found.text()}; the likeliest next token stays at "
        f"{found.likeliest:.1%} of them"
    )
    notes.append(note)
    say(f"type: {note}")
    return after


def _save(model: Any, part: Path, shards: str | None) -> None:
    """Write weights and configurations."""
    if getattr(model, "generation_config", None) is not None:
        mend_generation_config(model.generation_config)
    model.save_pretrained(part, **({"max_shard_size": shards} if shards else {}))
