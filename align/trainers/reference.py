"""How a trainer keeps the reference: settled while the policy still is what it was at the start."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedModel

from align.compat import SFTConfig
from align.engine.reads import Hidden
from align.errors import UserError
from align.objectives.base import Objective
from align.reference.digest import model_digest
from align.reference.frozen import frozen
from align.reference.policy import Strategy, choose
from align.reference.store import LogProbStore
from align.runs.launch import launched_with_fsdp
from align.trainers.coverage import Coverage, coverage_of
from align.trainers.policy import compute_type

# starts of an adapter that leave the model's own weights and the model's function as they were
_HARMLESS_STARTS = (True, False, "gaussian", "orthogonal", "eva")


class Kept(NamedTuple):
    """The digest of the policy at the start, what ``ReferencePolicy`` is made of, and what the store holds of the data.

    ``coverage`` is None where that cannot be known, as for a stream. ``complete`` says that every rank has all of it.
    """

    digest: str
    strategy: Strategy
    model: nn.Module | None
    store: LogProbStore | None
    coverage: Coverage | None
    complete: bool


def keep_reference(
    objective: Objective,
    model: PreTrainedModel,
    args: SFTConfig,
    strategy: Strategy,
    store_dir: str | Path | None,
    peft_config: Any,
    *datasets: Any,
    asked: bool = False,
) -> Kept:
    """Resolve the strategy while the policy still is what it was at the start, before anything wraps it.

    ``asked``: keep a model also where the store has all rows of ``datasets``, since other text will be scored, too.

    Raises:
        UserError: where the strategy would not give the policy as it is at the start.
    """
    fresh = peft_config is not None
    if fresh and getattr(peft_config, "init_lora_weights", True) not in _HARMLESS_STARTS:
        # pissa, olora and others take a part out of the weights: with the adapter off it would be missing
        if strategy == "adapter_off":
            raise UserError(
                f"init_lora_weights={peft_config.init_lora_weights!r} changes the model's own weights, so "
                "switching the adapter off does not give the model at the start: use reference.strategy: copy."
            )
        fresh = False
    resolved = choose(strategy, model, fresh)
    mixed = compute_type(args, model)
    # rank 0's: with FSDP's efficient loading the others have no weights yet
    mine = model_digest(model, adapters=resolved != "adapter_off", compute_dtype=mixed)
    digest = gather_object([mine])[0]
    store = None
    # the store holds log-probs alone
    if store_dir is not None and not any(r.needs_reference or isinstance(r, Hidden) for r in objective.reads()):
        about = {"model": model.config._name_or_path, "digest": digest, "compute_dtype": mixed}
        # before the head's products were kept in float32, 16-bit rows were rounded otherwise: they lie elsewhere
        key = (
            digest
            if "float32" in mixed or "float64" in mixed
            else hashlib.sha256(f"{digest} wide".encode()).hexdigest()
        )
        store = LogProbStore(Path(store_dir), key, about)
    coverage = coverage_of(store, objective, datasets)
    complete = all(gather_object([store is not None and coverage is not None and coverage.computed == 0]))
    needed = resolved != "adapter_off" and (asked or not complete)
    kept = frozen(model, shared=launched_with_fsdp()) if needed else None
    return Kept(digest, resolved, kept, store, coverage, complete)
