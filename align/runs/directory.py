"""A run is a directory: the resolved recipe, metrics, checkpoints. Everything is written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from align.errors import UserError
from align.recipe import Recipe

LOCK = "recipe.lock.yaml"
METRICS = "metrics.jsonl"
# keys of a recipe that change how fast or from where something comes or what is drawn of it, and nothing that comes
# but for rounding
_MAY_CHANGE = (
    "train.max_tokens_per_microbatch:",
    "train.per_device_eval_batch_size:",
    *(f"train.{kind}_checkpointing:" for kind in ("activation", "gradient")),
    "watch.report:",
    "watch.live:",
    "sampling.batch_size:",
    *(f"sampling.server.{key}:" for key in ("url", "key_env", "concurrency", "timeout", "retries")),
    *(f"judge.endpoint.{key}:" for key in ("url", "key_env", "concurrency", "timeout", "retries", "max_calls")),
    *(f"judge.endpoint.{key}:" for key in ("price_in", "price_out", "cache")),
)
VERDICT = "verdict.json"  # written last: a run that has one is finished


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader finds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")  # with the rights of any new file, unlike mkstemp's
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class RunDirectory:
    """Paths and files of one run.

    Args:
        path: the directory; it need not exist.
        writer: whether this process writes; the others only read.
    """

    def __init__(self, path: Path, *, writer: bool = True) -> None:
        self.path, self.writer = Path(path), writer

    @property
    def lock(self) -> dict[str, Any]:
        """The lock file, or an empty mapping."""
        file = self.path / LOCK
        return yaml.safe_load(file.read_text()) if file.exists() else {}

    def write_lock(self, content: Mapping[str, Any]) -> None:
        self.write(LOCK, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file of the run atomically, on the writing process."""
        if self.writer:
            write_atomically(self.path / name, content)
        return self.path / name

    def write_json(self, name: str, value: Any) -> Path:
        return self.write(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def begin(self, recipe: Mapping[str, Any], *, resume: bool) -> Path | None:
        """Check that this run may start here and return the checkpoint to go on from, if any.

        Raises:
            UserError: if a run is there already, if there is none to resume, or if its recipe was another.
        """
        lock = self.lock
        if not resume:
            if lock and self._has_begun():
                raise UserError(
                    f"{self.path} already holds a run. Go on with it: --resume (in Python resume=True); or "
                    "start another: set name= or output=, or remove the directory."
                )
            if lock:  # of a start that failed before its first step
                self.write(METRICS, "")
            return None
        if not lock:
            raise UserError(f"{self.path} holds no run to resume (no {LOCK}). Start it without --resume.")
        lines = differences(_completed(lock.get("recipe", {})), dict(recipe))
        changed = [line for line in lines if not line.startswith(_MAY_CHANGE)]
        if changed:
            raise UserError(
                f"{self.path} was started with another recipe, so it cannot be resumed with this one:\n"
                + "\n".join(f"  {line}" for line in changed)
                + "\nPut these back, or start a new run under another name."
            )
        if (self.path / VERDICT).exists():
            raise UserError(f"{self.path} holds a finished run: there is nothing to resume.")
        found = self.checkpoints()
        return found[-1] if found else None

    def _has_begun(self) -> bool:
        """Whether there is anything to lose: a step that was recorded, a checkpoint, a round, or an end."""
        stepped = any(record.get("step", 0) for record in self.metrics())
        return stepped or bool(self.checkpoints()) or (self.path / VERDICT).exists() or (self.path / "rounds").exists()

    def require_writable(self) -> None:
        """Make the directory and try a file in it. Raises UserError where that fails."""
        if not self.writer:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            raise UserError(f"output: {self.path} cannot be written to ({error.strerror}).") from error

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first. One that was being written when the run died does not count."""
        found = [p for p in self.path.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name) and _complete(p)]
        return sorted(found, key=lambda p: int(p.name.split("-")[1]))

    def metrics(self) -> list[dict[str, Any]]:
        """Records of ``metrics.jsonl``; a line cut off by a kill is left out."""
        file = self.path / METRICS
        records = []
        # only a line feed ends a line: texts of a model may hold characters that str.splitlines takes for one
        for line in file.read_text().split("\n") if file.exists() else []:
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one record to ``metrics.jsonl``."""
        self.append(METRICS, [record])

    def append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Add lines of JSON to a file of the run, on the writing process."""
        if not self.writer:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / name, "a") as file:
            file.writelines(json.dumps(dict(record), ensure_ascii=False) + "\n" for record in records)

    def rewind_metrics(self, step: int) -> None:
        """Forget records after ``step``: the resumed run will write them again."""
        kept = [r for r in self.metrics() if r.get("step", 0) <= step]
        self.write(METRICS, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Lines ``key: was X, is Y`` for all leaves that differ."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            yield from differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (a, b) in enumerate(zip(before, after, strict=True)):
            yield from differences(a, b, f"{path}.{i}")
    elif before != after:
        yield f"{path}: was {before!r}, is {after!r}"


def _completed(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a lock file; keys that came after the version that wrote it have their defaults."""
    try:
        return Recipe.from_dict(recipe).dump()
    except UserError:  # such as one with an objective of the user's own: it is compared as it stands
        return recipe


def _complete(checkpoint: Path) -> bool:
    """Whether transformers finished writing it: weights, then optimizer, then random states, then its own state."""
    state = checkpoint / "trainer_state.json"
    try:
        json.loads(state.read_text())
    except (OSError, json.JSONDecodeError):
        return False
    optimizer = any(checkpoint.glob("optimizer*")) or any(checkpoint.glob("global_step*"))
    return optimizer and any(checkpoint.glob("rng_state*.pth"))
