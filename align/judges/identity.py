"""What a judge's verdicts depend on, so that those that were kept of another judge are not taken for its own."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from align.judges.endpoint import template_of
from align.judges.function import load_function
from align.models.load import model_folder
from align.models.weights import weights_digest
from align.recipe.sampling import Judge
from align.runs.models import located

# of an endpoint: how it is asked, and not what it says
_HOW = {"key_env", "concurrency", "timeout", "retries", "max_calls", "price_in", "price_out", "cache", "template"}


def identity(settings: Judge, base: Path | None) -> dict[str, Any]:
    """A judge's settings, as plain JSON, with a digest of its weights, its question, or the file of its function.

    Two judges of one name differ where one was trained again, has another question, or was written anew.

    Args:
        base: where relative places in the settings start.

    Raises:
        UserError: where the judge cannot be had. A function is imported: whether it may be was seen before.
    """
    about = settings.model_dump(mode="json", exclude={"endpoint": _HOW})
    if settings.endpoint is not None:
        about["question"] = template_of(settings.endpoint.template, base)
    if settings.function is not None:
        about["code"] = _source(load_function(settings.function, base))
    for name in (settings.reward, settings.pair):
        if name is not None:
            folder = model_folder(located(name, base))
            about["weights"] = None if folder is None else weights_digest(str(folder))
    return about


def _source(function: Any) -> str | None:
    """The text of the file that a function stands in; None where it has none."""
    try:
        return inspect.getsource(inspect.getmodule(function) or function)
    except (OSError, TypeError):
        return None
