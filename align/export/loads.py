"""Whether an export loads where there is no align: in a fresh process, by transformers and peft alone."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from align.errors import UserError
from align.export.logits import SAME
from align.export.source import Source

_PROGRAM = Path(__file__).with_name("plain.py")


@dataclass(frozen=True)
class Loaded:
    """What another process found: the largest difference of logits, what it writes, and the versions it has."""

    largest: float
    text: str | None
    versions: dict[str, str]

    def sentence(self) -> str:
        """One line for people."""
        writes = "" if self.text is None else f"; it goes on to write {self.text!r}"
        return (
            f"load: transformers {self.versions['transformers']} alone reads it in another process, and its logits "
            f"differ by {self.largest:.2g} at most{writes}"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def load_elsewhere(
    folder: Path, source: Source, *, adapter: bool, rows: Sequence[Sequence[int]], expected: Sequence[Tensor]
) -> Loaded:
    """Load ``folder`` in a process that cannot import align, and compare its logits of ``rows`` with ``expected``.

    Raises:
        UserError: where it does not load, or computes something else.
    """
    with tempfile.TemporaryDirectory(prefix="align-export-") as place:
        job = {
            "folder": str(folder.resolve()),
            "base": source.base if adapter else None,
            "revision": source.revision,
            "reward": source.scores(),
            "rows": [list(row) for row in rows],
        }
        Path(place, "job.json").write_text(json.dumps(job))
        save_file(
            {str(i): one.contiguous() for i, one in enumerate(expected)}, str(Path(place, "expected.safetensors"))
        )
        command = [sys.executable, "-I", str(_PROGRAM), place]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        why = ([line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"])[-1]
        raise UserError(
            f"The export does not load by transformers alone, so it is not kept: {why[:300]} (--no-load-check leaves "
            "this check out)."
        )
    found = Loaded(**json.loads(done.stdout.splitlines()[-1]))
    scale = max(1.0, *(float(one.abs().max()) for one in expected))
    if not found.largest <= SAME * scale:
        raise UserError(
            f"The export loads by transformers alone, but as another model, so it is not kept: logits differ by "
            f"{found.largest:.2g}, where the largest is {scale:.3g}."
        )
    return found
