"""Gradients that an operation cuts off. torch warns of them and goes on, so that a run could end without learning."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from align.errors import UserError

_CUT = "an autograd kernel was not registered"  # from torch's warning


@contextmanager
def uncut() -> Iterator[None]:
    """Within, no gradient is lost in an operation.

    Raises:
        UserError: naming the first operation without a derivative that a gradient came to.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{_CUT}", category=UserWarning)
        try:
            yield
        except UserWarning as error:
            if _CUT not in str(error):
                raise
            operation = str(error).partition(": ")[0]
            raise UserError(
                f"The operation {operation} passes no gradient on, so what is below it in the model would learn "
                "nothing. It belongs to a package that computes a part of the model, such as quantised layers or "
                "attention. Update that package, or leave out the setting that brings it in (model.load_in, "
                "model.attention)."
            ) from error
