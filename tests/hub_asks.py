"""Run in a process of its own: load rows and models by their Hub ids, and print what came of each as JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from align.data.rows.sources import load_source
from align.errors import UserError
from align.models.look import look
from align.recipe.sections import Model, Source


def ask(kind: str, keys: dict[str, str]) -> str:
    """``KIND, ID`` of what was loaded, or the sentence of what went wrong."""
    try:
        if kind == "data":
            return f"{len(load_source(Source(**keys), base=Path()))} rows"
        look(Model(**keys), None)
        return "looked at"
    except UserError as error:
        return str(error)


if __name__ == "__main__":
    answers = []
    for kind, keys in json.loads(sys.argv[1]):
        began = time.monotonic()
        answers.append([ask(kind, keys), time.monotonic() - began])
    print(json.dumps(answers))
