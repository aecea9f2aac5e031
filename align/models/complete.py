"""Models and adapters whose files hold all of their weights. What is missing would be random, with a warning alone."""

from __future__ import annotations

import re
import warnings
from typing import Any

from align.errors import UserError


def language_model(key: str, name: str, **options: Any) -> Any:
    """The language model of a folder or a Hub id.

    Args:
        key: what ``name`` was given as, for the sentence.
        options: of transformers' ``from_pretrained``.

    Raises:
        UserError: where weights are missing. What transformers raises, besides.
    """
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(name, **options, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
        raise UserError(
            f"{key}: {name!r} has no weights for {', '.join(missing[:3])}{more}, which would be random. Its files are "
            f"not whole, or hold another model than {type(model).__name__}: fetch them again, or name another."
        )
    return model


def with_adapter(model: Any, source: str, **options: Any) -> Any:
    """The model with the adapter of a folder or a Hub id on it.

    Raises:
        ValueError: where weights of the adapter are missing. What peft raises, besides.
    """
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")
        try:
            return PeftModel.from_pretrained(model, source, **options)
        except UserWarning as warning:
            missing = re.findall(r"'([^']+)'", str(warning).partition("checkpoint: ")[2])
            raise ValueError(
                f"it has no weights for {len(missing):,} of the places that it changes in this model, such as "
                f"{missing[0]}"
            ) from warning
