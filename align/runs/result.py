"""What a finished run leaves behind, as a value and as a folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MODEL = "model"  # the folder of the trained model, in the run directory


@dataclass(frozen=True)
class RunResult:
    """What a finished run left behind.

    ``reference_rows`` were computed in this run, ``stored_rows`` came from the store. ``evaluation`` is the last one.
    """

    directory: str
    steps: int
    seconds: float
    evaluation: dict[str, float]
    verdict: dict[str, Any]
    reference_rows: int
    stored_rows: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return asdict(self)
