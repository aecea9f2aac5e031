"""The names of the files that an export is made of; what else lies in a folder belongs to none. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from align.runs.models import ADAPTER

ABOUT = "export.json"  # the digests of the others, written last: a folder that has one is a finished export
CARD = "README.md"

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json", ADAPTER)
# what belongs to an export beside weights and their configuration: tokenizers, templates, documents
DOCUMENTS = (CARD, "LICEN[CS]E*", "NOTICE*")
BESIDE = (
    "generation_config.json",
    *DOCUMENTS,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)


def belongs(name: Path, kinds: Sequence[str] = (*WEIGHTS, *BESIDE)) -> bool:
    """Whether a file of this relative name is one of ``kinds``, by default those of an export."""
    return any(fnmatchcase(name.as_posix(), kind) and name.as_posix().count("/") == kind.count("/") for kind in kinds)
