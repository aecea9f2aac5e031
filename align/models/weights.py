"""Which weights a name stands for, told without loading them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from align.errors import loading
from align.models.load import adapter_base, adapter_revision, first_line, model_folder
from align.runs.files import digest_of
from align.runs.models import ADAPTER, hub_options

_READ = (".safetensors", ".json", ".jinja", ".model", ".txt")  # what a model or its tokenizer is loaded from


def weights_digest(name: str) -> str:
    """Hex SHA-256 of the files of a run's model, of a folder, or of a commit on the Hub.

    An adapter stands for itself and the model under it. Raises ``UserError`` where there is no such model.
    """
    folder = model_folder(name)
    if folder is None:
        return hashlib.sha256(f"{name}@{_commit(name, None)}".encode()).hexdigest()
    hasher = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.suffix in _READ and path.is_file()):
        with open(file, "rb") as opened:
            hasher.update(f"{file.name} {digest_of(opened)}\n".encode())
    if (folder / ADAPTER).is_file():
        base = adapter_base(folder)
        under = weights_digest(base) if Path(base).is_dir() else f"{base}@{_commit(base, adapter_revision(folder))}"
        hasher.update(under.encode())
    return hasher.hexdigest()


def _commit(name: str, revision: str | None) -> str:
    """The commit of a model on the Hub, or in its local cache."""
    from transformers import AutoConfig

    with loading(lambda error: f"{name} cannot be found ({first_line(error)})."):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False, **hub_options(name))
    return str(getattr(config, "_commit_hash", None))
