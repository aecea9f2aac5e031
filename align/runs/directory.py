"""A run is a directory: the resolved recipe, metrics, checkpoints. Everything is written whole or not at all."""

from __future__ import annotations

import json
import operator
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from align.errors import UserError
from align.outside.files import only_files
from align.recipe import Recipe
from align.runs import checkpoints
from align.runs.damage import counts, damaged, json_object, read_lock
from align.runs.files import write_atomically

LOCK = "recipe.lock.yaml"
METRICS = "metrics.jsonl"
PROBE = "probe.json"
# keys of a recipe that change where a run lies, how fast or from where something comes or what is drawn of it, and
# nothing that comes but for rounding
_MAY_CHANGE = (
    "name:",
    "output:",
    *(f"output.{key}:" for key in ("path", "push", "private")),
    "train.per_device_train_batch_size:",  # as far as a step has as many examples as before; see training/resume.py
    "train.gradient_accumulation_steps:",
    "train.use_cpu:",
    "train.ddp_",
    *(f"train.dataloader_{key}:" for key in ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor")),
    "train.max_tokens_per_microbatch:",
    "train.per_device_eval_batch_size:",
    *(f"train.{kind}_checkpointing:" for kind in ("activation", "gradient")),
    "watch.report:",
    "watch.live:",
    "sampling.batch_size:",
    "rounds.load:",
    "rounds.keep_checkpoints:",
    *(f"sampling.server.{key}:" for key in ("url", "key_env", "concurrency", "timeout", "retries")),
    *(f"judge.endpoint.{key}:" for key in ("url", "key_env", "concurrency", "timeout", "retries", "max_calls")),
    *(f"judge.endpoint.{key}:" for key in ("price_in", "price_out", "cache")),
)
VERDICT = "verdict.json"  # written last: a run that has one is finished


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
        """The lock file, or an empty mapping. Raises UserError where it is damaged."""
        return read_lock(self.path / LOCK) if (self.path / LOCK).exists() else {}

    def locked(self, key: str) -> Any:
        """What the lock file says under a key that it must have. Raises UserError."""
        lock = self.lock
        if key not in lock:
            raise damaged(self.path / LOCK, f"it has no {key}")
        return lock[key]

    @property
    def id(self) -> str:
        """The id of the run, by which its checkpoints are known; empty where nothing has started, or before ids."""
        return str(self.lock.get("run", ""))

    def write_lock(self, content: Mapping[str, Any]) -> None:
        self.write(LOCK, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file of the run atomically, on the writing process."""
        if self.writer:
            write_atomically(self.path / name, content)
        return self.path / name

    def write_json(self, name: str, value: Any) -> Path:
        return self.write(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def begin(self, recipe: Mapping[str, Any], *, resume: bool) -> None:
        """Check that this run may start here, or go on here.

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
            self.rewind({})  # of a start that failed before its first step
            return
        if not lock:
            raise UserError(f"{self.path} holds no run to resume (no {LOCK}). Start it without --resume.")
        same = self._same_place(lock.get("directory"))
        lines = differences(_completed(lock.get("recipe", {})), dict(recipe), same=same)
        changed = [line for line in lines if not line.startswith(_MAY_CHANGE)]
        if changed:
            raise UserError(
                f"{self.path} was started with another recipe, so it cannot be resumed with this one:\n"
                + "\n".join(f"  {line}" for line in changed)
                + "\nPut these back, or start a new run under another name."
            )
        if (self.path / VERDICT).exists():
            raise UserError(f"{self.path} holds a finished run: there is nothing to resume.")

    def _same_place(self, former: str | None) -> Callable[[Any, Any], bool]:
        """Whether two values of a recipe are equal, or name the same place as seen from where the run was and is."""

        def same(before: Any, after: Any) -> bool:
            if before == after or former is None or not (isinstance(before, str) and isinstance(after, str)):
                return bool(before == after)
            paths = os.path.isabs(before) and os.path.isabs(after)
            return paths and os.path.relpath(before, former) == os.path.relpath(after, self.path.resolve())

        return same

    def _has_begun(self) -> bool:
        """Whether there is anything to lose: a step that was recorded, a checkpoint, a round, or an end."""
        stepped = any(record.get("step", 0) for record in self.metrics())
        kept = bool(checkpoints.folders(self.path))
        return stepped or kept or (self.path / VERDICT).exists() or (self.path / "rounds").exists()

    def require_writable(self) -> None:
        """Make the directory and try a file in it. Raises UserError where that fails, or something leads out of it."""
        if not self.writer:
            return
        if self.path.exists():
            only_files(self.path, own=True)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            raise UserError(f"output: {self.path} cannot be written to ({error.strerror}).") from error

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints of this run, oldest first; see ``runs/checkpoints.py``."""
        return [found.path for found in checkpoints.complete_ones(self.path, self.id)]

    def metrics(self) -> list[dict[str, Any]]:
        """Records of ``metrics.jsonl``; what is none, such as a line cut off by a kill, is left out."""
        file = self.path / METRICS
        records = []
        # only a line feed ends a line: texts of a model may hold characters that str.splitlines takes for one
        for line in file.read_bytes().split(b"\n") if file.is_file() else []:
            value = json_object(line)
            if value is not None and any(counts(value.get(place)) for place in ("step", "round")):
                records.append(value)
        return records

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one record to ``metrics.jsonl``."""
        self.append(METRICS, [record])

    def append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Add lines of JSON to a file of the run, all or none of them, on the writing process."""
        if not self.writer:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(dict(record), ensure_ascii=False) + "\n" for record in records).encode()
        with open(self.path / name, "a+b", buffering=0) as file:  # a buffer would be written again when it closes
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":  # a kill cut the last line
                lines = b"\n" + lines
            try:
                while lines:
                    lines = lines[file.write(lines) :]
            except OSError:  # a full disk has taken a part
                os.ftruncate(file.fileno(), size)
                raise

    def rewind(self, records: Mapping[str, Any]) -> list[str]:
        """Put the records back to what ``recorded`` gave, on the writing process; sentences say what is missing.

        An empty mapping leaves no records: the run starts from its beginning.
        """
        if not self.writer:
            return []
        said = []
        lengths: Mapping[str, int] = records.get("lengths", {})
        for name in sorted({*lengths, *(file.name for file in self.path.glob("*.jsonl"))}):
            file = self.path / name
            content = file.read_bytes() if file.exists() else b""
            if len(content) < lengths.get(name, 0):
                said.append(f"warning: {name} has lost records from before the checkpoint; they stay missing")
            elif len(content) > lengths.get(name, 0):
                self.write(name, content[: lengths.get(name, 0)])
        for name, text in records.get("texts", {}).items():
            self.write(name, text)
        return said

    def recorded(self) -> dict[str, Any]:
        """What ``rewind`` needs to come back to the records as they are now, all of which are on the disk then."""
        lengths = {}
        for file in sorted(self.path.glob("*.jsonl")):
            with open(file, "rb") as lines:
                os.fsync(lines.fileno())
                lengths[file.name] = os.fstat(lines.fileno()).st_size
        texts = {name: (self.path / name).read_text() for name in (PROBE,) if (self.path / name).exists()}
        return {"lengths": lengths, "texts": texts}


def differences(
    before: Any, after: Any, path: str = "", *, same: Callable[[Any, Any], bool] = operator.eq
) -> Iterator[str]:
    """Lines ``key: was X, is Y`` for all leaves that are not the ``same``."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            yield from differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key), same=same)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (a, b) in enumerate(zip(before, after, strict=True)):
            yield from differences(a, b, f"{path}.{i}", same=same)
    elif not same(before, after):
        yield f"{path}: was {before!r}, is {after!r}"


def _completed(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a lock file; keys that came after the version that wrote it have their defaults."""
    try:
        return Recipe.from_dict(recipe).dump()
    except UserError:  # such as one with an objective of the user's own: it is compared as it stands
        return recipe
