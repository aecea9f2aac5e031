"""Everything that a save writes beside the weights, written once before the first step: what fails, fails there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.engine.scoring import causal_model
from align.errors import UserError
from align.models.ends import mend_generation_config
from align.models.load import first_line
from align.runs.disk import is_full


def rehearse_save(model: Any, tokenizer: Any, folder: str, main: bool, say: Callable[[str], Any]) -> None:
    """Save configurations and tokenizer to a temporary folder inside ``folder``.

    A generation config that transformers refuses is mended, and ``say`` is told. Every process tries, so that all end
    alike; those beside the ``main`` one outside ``folder``, which may not be theirs to write to.

    Raises:
        UserError: with what cannot be saved and why.
        Exception: what the library that writes raises where the disk is full; ``on_disk`` knows it.
    """
    inner = causal_model(model)
    parts = {"model's config": inner.config, "tokenizer": tokenizer}
    parts |= {f"config of adapter {name!r}": config for name, config in getattr(model, "peft_config", {}).items()}
    try:
        if main:
            Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder if main else None, prefix=".rehearsal-") as place:
            for name, part in parts.items():
                _try(name, part, place)
            if getattr(inner, "generation_config", None) is not None:
                _try_generation_config(inner.generation_config, place, say)
    except OSError as error:
        if is_full(error):
            raise
        raise UserError(f"{folder} cannot be written to ({error.strerror or first_line(error)}).") from error


def _try_generation_config(config: Any, place: str, say: Callable[[str], Any]) -> None:
    try:
        config.save_pretrained(place)
    except ValueError:
        left = ", ".join(f"{name}={value}" for name, value in mend_generation_config(config).items())
        say(
            f"note: the model's generation config sets {left} beside settings under which they do not count (such as "
            "no do_sample), and transformers refuses to save that. They are left out of the saved model, which "
            "generates as before."
        )
        _try("generation config", config, place)


def _try(name: str, part: Any, place: str) -> None:
    try:
        part.save_pretrained(place)
    except OSError:
        raise  # the disk's fault
    except Exception as error:  # whatever it is, the first save would end in it
        if is_full(error):
            raise
        why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(
            f"The {name} cannot be saved ({why}), so nothing that is trained could be kept. Mend it in the model's "
            "folder."
        ) from error
