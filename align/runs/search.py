"""Where Python looks for modules. ``python -m`` looks into the working directory first, before any package."""

from __future__ import annotations

import os
import sys


def not_here() -> None:
    """Stop looking into the working directory, where a ``yaml.py`` of somebody else may lie.

    Call it before anything is imported that is not of the standard library. A directory that this package itself is
    imported from stays.
    """
    here = os.path.realpath(os.getcwd())
    own = os.path.realpath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 2))
    if sys.path and os.path.realpath(sys.path[0]) == here != own:
        del sys.path[0]
