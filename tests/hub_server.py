"""A real HTTP server of this machine that speaks the part of the Hub's API that ``huggingface_hub`` uses here.

It keeps repositories in memory: commits with their files, byte for byte, branches, tags and pull requests. It fails as
it is told to: a plan gives, for each kind of request, the faults of the next requests of that kind, in their order.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from hub_handler import handler
from hub_repos import LFS, File, Refused, Repo, User
from huggingface_hub import constants
from local_server import LocalServer


class HubServer(LocalServer):
    """A context manager; ``url`` is the address while it runs.

    Args:
        tokens: who they belong to; by default one of ada, who is of the organisation lab.
        plan: by kind of request (``whoami``, ``create``, ``info``, ``tree``, ``preupload``, ``batch``, ``put``,
            ``commit``, ``branch``, ``tag``, ``refs``, ``discussions``, ``resolve``, ...) the faults to come.
        part: bytes above which a large file goes in parts of so many.
        retry_after: what a 429 and a 503 ask for, in seconds; None asks nothing.
    """

    def __init__(
        self,
        tokens: Mapping[str, User] = {"hf_" + "a" * 34: User("ada", orgs=("lab",))},
        plan: Mapping[str, Sequence[str]] | None = None,
        *,
        part: int = 1 << 30,
        retry_after: int | None = None,
    ) -> None:
        self.tokens = dict(tokens or {"hf_" + "a" * 34: User("ada", orgs=("lab",))})
        self.part, self.retry_after = part, retry_after
        self.plan = defaultdict(list, {kind: list(faults) for kind, faults in (plan or {}).items()})
        self.repos: dict[tuple[str, str], Repo] = {}  # by models or datasets, and id
        self.stored: dict[str, bytes] = {}  # large files by SHA-256, committed or not
        self.parts: dict[tuple[str, int], bytes] = {}
        self.seen: list[tuple[str, str]] = []  # kind of every request, and its status or how it broke
        self.unknown: list[str] = []
        self.hold = ""  # SHA-256 of a file that is never taken in, so that a client can be killed meanwhile
        self.held = threading.Event()
        self.lock = threading.RLock()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        return handler(self)

    # ---- what tests ask and say

    @property
    def token(self) -> str:
        """The first user's."""
        return next(iter(self.tokens))

    def environment(self, home: Path, token: str | None = "") -> dict[str, str]:
        """Variables with which a process talks to this server, from a cache of its own and as the first user."""
        given = self.token if token == "" else token
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **({"HF_TOKEN": given} if given else {}),
        }

    def here(self, patch: Any, home: Path, token: str | None = "") -> None:
        """Let ``huggingface_hub`` in this process talk to this server; ``patch`` is pytest's ``monkeypatch``."""
        patch.setattr(constants, "ENDPOINT", self.url)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + template)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        given = self.token if token == "" else token
        patch.setenv("HF_TOKEN", given) if given else patch.delenv("HF_TOKEN", raising=False)

    def files(self, name: str, kind: str = "models", revision: str = "main") -> dict[str, bytes]:
        """What a repository holds, but for the file that it is created with."""
        repo = self.repos[kind, name]
        return {path: f.content for path, f in repo.commits[repo.at(revision)].items() if path != ".gitattributes"}

    def put(self, name: str, files: Mapping[str, bytes], kind: str = "models", **how: bool) -> str:
        """A repository with these files, as if they had been pushed before; its commit."""
        repo = self.repos.setdefault((kind, name), Repo(**{"private": False, **how}))
        return repo.commit("main", "put", {path: File(c, path.endswith(LFS)) for path, c in files.items()})

    def put_folder(self, name: str, folder: Path, kind: str = "models", **how: bool) -> str:
        """``put`` of all files of a folder."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return self.put(name, {str(path.relative_to(folder)): path.read_bytes() for path in paths}, kind, **how)

    def count(self, kind: str) -> int:
        """Requests of a kind."""
        return sum(one == kind for one, _ in self.seen)

    def fault(self, kind: str) -> str:
        """The next fault of a kind of request, or nothing."""
        with self.lock:
            return self.plan[kind].pop(0) if self.plan[kind] else ""

    # ---- what the Hub does

    def user(self, token: str | None) -> User | None:
        if token is not None and token not in self.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.tokens[token] if token else None

    def owned(self, user: User | None, name: str) -> None:
        """Raises ``Refused`` unless the user may write to the namespace of a repository."""
        if user is None:
            raise Refused(401, "Invalid username or password.")
        if user.role == "read" or name.partition("/")[0] not in (user.name, *user.orgs):
            raise Refused(403, "You don't have the rights to write to this namespace")

    def repo(self, kind: str, name: str, user: User | None, *, write: bool = False) -> Repo:
        """A repository that the user may see. Raises ``Refused``."""
        repo = self.repos.get((kind, name))
        mine = user is not None and name.partition("/")[0] in (user.name, *user.orgs)
        if repo is None or (repo.private and not mine):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if write:
            self.owned(user, name)
        return repo

    def whoami(self, user: User | None) -> dict[str, Any]:
        if user is None:
            raise Refused(401, "Invalid username or password.")
        orgs = [{"name": name, "roleInOrg": "write"} for name in user.orgs]
        return {"name": user.name, "orgs": orgs, "auth": {"accessToken": {"role": user.role}}}

    def create(self, user: User | None, asked: Mapping[str, Any]) -> dict[str, Any]:
        kind = f"{asked.get('type') or 'model'}s"
        name = f"{asked.get('organization') or (user.name if user else '')}/{asked['name']}"
        self.owned(user, name)
        prefix = "" if kind == "models" else f"{kind}/"
        answer = {"url": f"{self.url}/{prefix}{name}"}
        if (kind, name) in self.repos:
            raise Refused(409, "You already created this model repo", **{"X-Body": json.dumps(answer)})
        private = asked.get("visibility") == "private" or asked.get("private") is True
        repo = self.repos[kind, name] = Repo(private)
        repo.commit("main", "initial commit", {".gitattributes": File(b"*.safetensors filter=lfs\n", False)})
        return answer

    def preupload(self, repo: Repo, revision: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        files = repo.commits[repo.at(revision)]
        out = []
        for file in asked["files"]:
            mode = "lfs" if file["path"].endswith(LFS) or file["size"] > 10 << 20 else "regular"
            there = files.get(file["path"])
            out.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
            if there is not None:
                out[-1]["oid"] = there.etag
        return {"files": out}

    def batch(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        out = []
        for one in asked["objects"]:
            oid, size = one["oid"], one["size"]
            found: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.stored and size > self.part:
                urls = {f"{i + 1:05d}": f"{self.url}/lfs/{oid}?part={i + 1}" for i in range(-(-size // self.part))}
                upload = {"href": f"{self.url}/lfs/{oid}/complete", "header": {"chunk_size": str(self.part), **urls}}
                found["actions"] = {"upload": upload}
            elif oid not in self.stored:
                found["actions"] = {"upload": {"href": f"{self.url}/lfs/{oid}?signature=of-the-storage"}}
            out.append(found)
        return {"transfer": "basic", "objects": out}

    def store(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refused(400, "The content is not what its name says")
        self.stored[oid] = content

    def commit(self, kind: str, name: str, revision: str, user: User | None, body: bytes, pull: bool) -> dict[str, Any]:
        ours = [
            f"refs/pr/{one['num']}" for one in self.repo(kind, name, user).pulls if user and one["author"] == user.name
        ]
        repo = self.repo(kind, name, user, write=not pull and revision not in ours)
        lines = [json.loads(line) for line in body.splitlines()]
        header, files = lines[0]["value"], {}
        base = repo.at(revision)
        if header.get("parentCommit") not in (None, base):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif value["oid"] not in self.stored:
                raise Refused(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
            else:
                files[value["path"]] = File(self.stored[value["oid"]], True)
        head, answer = revision, {}
        if pull:
            assert user is not None
            number = len(repo.pulls) + 1
            head = f"refs/pr/{number}"
            repo.pulls.append({"num": number, "title": header["summary"], "author": user.name})
            answer = {"pullRequestUrl": f"{self.url}/{name}/discussions/{number}"}
        sha = repo.commit(head, header["summary"], files, base)
        return {"commitUrl": f"{self.url}/{name}/commit/{sha}", "commitOid": sha, **answer}
