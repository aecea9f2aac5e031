"""The paths of the Hub's API and what each of them answers, for ``hub_server.py``."""

from __future__ import annotations

import json
import re
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repos import BREAKS, File, Refused

if TYPE_CHECKING:
    from hub_server import HubServer

_API = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
_ROUTES = tuple(
    (methods, re.compile(pattern), kind)
    for methods, pattern, kind in (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(/(?P<path>.*))?", "tree"),
        ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", "paths"),
        ("GET", rf"{_API}/refs", "refs"),
        ("GET", rf"{_API}/discussions", "discussions"),
        ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", rf"{_API}/branch/(?P<revision>[^/]+)", "branch"),
        ("POST", rf"{_API}/tag/(?P<revision>[^/]+)", "tag"),
        ("GET", rf"{_API}(/revision/(?P<revision>[^/]+))?", "info"),
        ("POST", r"/(datasets/)?[^/]+/[^/]+\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "put"),
        ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/complete", "complete"),
        (
            "GET HEAD",
            r"/((?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.*)",
            "resolve",
        ),
        ("GET HEAD", r"/", "home"),
    )
)


def handler(server: HubServer) -> type[BaseHTTPRequestHandler]:
    """The class that answers one connection of a server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or every answer would wait for 40 ms behind its headers

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer()

        do_HEAD = do_POST = do_PUT = do_GET

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            self.query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            route = next(
                ((found, kind) for m, p, kind in _ROUTES if self.command in m and (found := p.fullmatch(parts.path))),
                None,
            )
            if route is None:
                server.unknown.append(f"{self.command} {parts.path}")
                self._body()
                return self._send(404, {"X-Error-Code": "EntryNotFound"}, {"error": "no such path"})
            self.part = {key: unquote(value) if value else "" for key, value in route[0].groupdict().items()}
            kind = route[1]
            fault = server.fault(kind)
            if fault in ("before", "middle"):
                if fault == "middle":  # half of what is sent is read
                    self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
                return self._break(kind, fault)
            if kind == "put" and self.part["oid"] == server.hold:
                server.held.set()
                return self._hang()
            body = self._body()
            if fault and fault not in BREAKS:
                return self._fail(kind, int(fault))
            try:
                with server.lock:
                    status, headers, value = self._do(kind, body)
            except Refused as refused:
                status, headers = refused.status, {**self._commit_header(), **refused.headers}
                value = json.loads(headers.pop("X-Body", "null")) or {"error": str(refused)}
            if fault == "after":
                return self._break(kind, fault)
            server.seen.append((kind, str(status)))
            self._send(status, headers, value)

        def _break(self, kind: str, fault: str) -> None:
            server.seen.append((kind, fault))
            self.close_connection = True
            self.connection.shutdown(2)

        def _hang(self) -> None:
            """Read what comes, and never answer."""
            while self.rfile.read(1 << 16):
                pass
            self.close_connection = True

        def _fail(self, kind: str, status: int) -> None:
            server.seen.append((kind, str(status)))
            headers = {"X-Error-Message": f"told to answer {status}"}
            if status in (429, 503) and server.retry_after is not None:
                headers["Retry-After"] = str(server.retry_after)
            self._send(status, headers, {"error": f"told to answer {status}"})

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        # ---- the API

        def _token(self) -> str | None:
            said = self.headers.get("Authorization")
            return said.removeprefix("Bearer ") if said else None

        def _repo(self, **how: bool) -> Any:
            return server.repo(self.part.get("kind") or "models", self.part["name"], server.user(self._token()), **how)

        def _do(self, kind: str, body: bytes) -> tuple[int, dict[str, str], Any]:
            user = server.user(self._token()) if kind not in ("put", "complete") else None
            part, revision = self.part, self.part.get("revision") or "main"
            match kind:
                case "home":
                    return 200, {}, {}
                case "whoami":
                    return 200, {}, server.whoami(user)
                case "create":
                    return 200, {}, server.create(user, json.loads(body))
                case "validate":
                    return 200, {}, {"errors": [], "warnings": []}
                case "preupload":
                    return 200, {}, server.preupload(self._repo(), revision, json.loads(body))
                case "batch":
                    return 200, {}, server.batch(json.loads(body))
                case "put" | "complete":
                    return self._store(kind, body)
                case "commit":
                    pull = "create_pr" in self.query
                    return 200, {}, server.commit(part["kind"], part["name"], revision, user, body, pull)
                case "resolve":
                    return self._resolve()
                case _:
                    return 200, {}, self._named(kind, body, revision)

        def _named(self, kind: str, body: bytes, revision: str) -> Any:
            """Answers about a repository, its names and its files."""
            repo = self._repo(write=kind in ("branch", "tag"))
            if kind == "branch":
                if revision in repo.heads:
                    raise Refused(409, "Reference already exists")
                repo.heads[revision] = repo.at(json.loads(body).get("startingPoint") or "main")
                return {}
            if kind == "tag":
                tag = json.loads(body)["tag"]
                if tag in repo.tags:
                    raise Refused(409, "Tag already exists")
                repo.tags[tag] = repo.at(revision)
                return {}
            if kind == "refs":
                branches = {name: sha for name, sha in repo.heads.items() if not name.startswith("refs/")}
                return {"converts": [], "branches": _refs("heads", branches), "tags": _refs("tags", repo.tags)}
            if kind == "discussions":
                known = [{**pull, "author": {"name": pull["author"]}} for pull in repo.pulls]
                found = [_discussion(pull, self.part) for pull in known]
                return {"count": len(found), "start": 0, "discussions": found}
            sha = repo.at(revision)
            files = repo.commits[sha]
            if kind == "info":
                return self._info(repo, sha, files)
            if kind == "paths":
                wanted = parse_qs(body.decode())["paths"]
                return [files[path].entry(path) for path in wanted if path in files] + _folders(files, wanted)
            return self._tree(files)

        def _info(self, repo: Any, sha: str, files: dict[str, File]) -> dict[str, Any]:
            return {
                "id": self.part["name"],
                "sha": sha,
                "private": repo.private,
                "gated": "auto" if repo.gated else False,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "tags": [],
                "siblings": [{"rfilename": path} for path in files],
            }

        def _tree(self, files: dict[str, File]) -> list[dict[str, Any]]:
            within = f"{self.part['path']}/" if self.part.get("path") else ""
            below = {path: file for path, file in files.items() if path.startswith(within)}
            if within and not below:
                raise Refused(404, f"{within} does not exist", "EntryNotFound")
            rests = [path[len(within) :] for path in below]
            folders = sorted({within + rest.split("/")[0] for rest in rests if "/" in rest})
            found = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders]
            deep = self.query.get("recursive", "").lower() == "true"
            return found + [f.entry(path) for path, f in below.items() if deep or "/" not in path[len(within) :]]

        def _store(self, kind: str, body: bytes) -> tuple[int, dict[str, str], Any]:
            oid = self.part["oid"]
            if kind == "complete":
                numbers = [one["partNumber"] for one in json.loads(body)["parts"]]
                server.store(oid, b"".join(server.parts[oid, number] for number in numbers))
            elif "part" in self.query:
                server.parts[oid, int(self.query["part"])] = body
            else:
                server.store(oid, body)
            return 200, {"ETag": f'"{len(body)}"'}, {}

        def _commit_header(self) -> dict[str, str]:
            """The commit that a request for a file is about, where it can be told."""
            if "path" not in self.part or "revision" not in self.part:
                return {}
            repo = server.repos.get((self.part.get("kind") or "models", self.part["name"]))
            revision = self.part["revision"]
            found = {} if repo is None else {**{sha: sha for sha in repo.commits}, **repo.heads}
            return {"X-Repo-Commit": found[revision]} if revision in found else {}

        def _resolve(self) -> tuple[int, dict[str, str], Any]:
            repo = self._repo()
            if repo.gated:
                raise Refused(403, "Access to this repo is restricted", "GatedRepo")
            sha = repo.at(self.part["revision"])
            file = repo.commits[sha].get(self.part["path"])
            if file is None:
                raise Refused(404, "Entry not found", "EntryNotFound")
            headers = {"X-Repo-Commit": sha, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
            if (said := self.headers.get("Range")) is None:
                return 200, headers, file.content
            first, _, last = said.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(file.content) - 1), len(file.content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(file.content)}"
            return 206, headers, file.content[start : end + 1]

        def _send(self, status: int, headers: dict[str, str], value: Any) -> None:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            kind = "application/octet-stream" if isinstance(value, bytes) else "application/json"
            self.send_response(status)
            for name, said in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, said)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    return Handler


def _refs(where: str, names: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "ref": f"refs/{where}/{name}", "targetCommit": sha} for name, sha in names.items()]


def _folders(files: dict[str, Any], wanted: list[str]) -> list[dict[str, Any]]:
    """Those of the wanted paths that are folders."""
    found = [path for path in wanted if any(name.startswith(f"{path}/") for name in files)]
    return [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in found]


def _discussion(pull: dict[str, Any], part: dict[str, str]) -> dict[str, Any]:
    return {
        **pull,
        "createdAt": "2026-01-01T00:00:00.000Z",
        "status": "open",
        "isPullRequest": True,
        "repo": {"name": part["name"], "type": part["kind"].removesuffix("s")},
    }
