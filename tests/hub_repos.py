"""What the Hub of the tests keeps: users, files, commits, branches, tags and pull requests; and how it refuses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# what a plan may say: a status; or the connection breaks before the request is read, in the middle of it, or when it
# has been done and before the answer
BREAKS = ("before", "middle", "after")
LFS = (".safetensors", ".parquet", ".bin", ".model")


class Refused(Exception):
    """A status with the code and the sentence that the Hub sends along."""

    def __init__(self, status: int, said: str, code: str = "", **headers: str) -> None:
        super().__init__(said)
        self.status, self.headers = status, {"X-Error-Message": said, **headers}
        if code:
            self.headers["X-Error-Code"] = code


@dataclass(frozen=True)
class User:
    """Who a token belongs to."""

    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()


@dataclass(frozen=True)
class File:
    """A file of a commit: its content, and whether it is kept as a large file."""

    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob(self) -> str:
        """What git calls it: the SHA-1 of its content, or of the pointer that stands for a large one."""
        size = len(self.content)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {size}\n".encode()
        kept = pointer if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.blob

    def entry(self, path: str) -> dict[str, Any]:
        """As the tree lists it."""
        size = len(self.content)
        large = {"lfs": {"oid": self.sha256, "size": size, "pointerSize": 134}} if self.large else {}
        return {"type": "file", "path": path, "size": size, "oid": self.blob, **large}


@dataclass
class Repo:
    """A repository; ``heads`` are branches and pull requests by their names, all names lead to commits."""

    private: bool
    gated: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    heads: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: list[dict[str, Any]] = field(default_factory=list)

    def commit(self, head: str, title: str, files: Mapping[str, File], base: str | None = None) -> str:
        """Put ``files`` over those of ``head``, or of ``base`` where the head is new; the new commit."""
        before = self.commits.get(self.heads.get(head, base or ""), {})
        sha = hashlib.sha1(f"{title}{len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = {**before, **files}
        self.titles.append(title)
        self.heads[head] = sha
        return sha

    def at(self, revision: str) -> str:
        """The commit that a revision names. Raises ``Refused``."""
        found = self.heads.get(revision) or self.tags.get(revision)
        if found is None and revision not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found or revision
