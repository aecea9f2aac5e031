"""``align push`` as a user calls it: a process of its own, against a Hub of this machine."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer

FILES = {
    "README.md": b"---\ntags: [align]\n---\n\n# mine\n\nAn adapter.\n",
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00002.safetensors": bytes(range(256)) * 5000,
    "model-00002-of-00002.safetensors": bytes(reversed(range(256))) * 5000,
}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    for name, content in FILES.items():
        (tmp_path / "mine" / name).write_bytes(content)
    return tmp_path


def started(hub: HubServer, place: Path, *words: str, **how: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "align", "push", *words]
    env = {**os.environ, **hub.environment(place / "home")}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    return subprocess.Popen(command, env=env, cwd=place, text=True, **pipes)  # type: ignore[call-overload]


def test_the_token_is_in_no_output_and_no_file(hub: HubServer, place: Path) -> None:
    hub.plan["whoami"] = ["429"]

    push = started(hub, place, "mine", "mine", "--yes", "--json")
    out, err = push.communicate()

    assert push.returncode == 0, err
    found = json.loads(out)
    commit = hub.repos["models", "ada/mine"].heads["main"]
    assert (found["repo"], found["private"], found["commit"]) == ("ada/mine", True, commit)
    assert [(one["name"], one["bytes"]) for one in found["files"]] == [(n, len(c)) for n, c in sorted(FILES.items())]
    assert hub.files("ada/mine") == FILES
    assert "the Hub answers with status 429: trying again in 1 s" in err
    assert "  | # mine\n  | An adapter.\n" in err
    assert hub.token not in out + err
    assert not [file for file in place.rglob("*") if file.is_file() and hub.token.encode() in file.read_bytes()]


def test_nobody_who_can_be_asked(hub: HubServer, place: Path) -> None:
    push = started(hub, place, "mine", "mine")
    out, err = push.communicate()

    assert push.returncode == 2
    assert err == "Nobody can be asked here whether to push this: say --yes if it is meant.\n"
    assert out.startswith(f"{hub.url}/ada/mine  new, private, on main, as ada\n")
    assert not hub.repos


def test_a_tag_alone_is_asked_for_and_said(hub: HubServer, place: Path) -> None:
    out, _ = started(hub, place, "mine", "mine", "--yes", "--revision", "dev").communicate()
    commit = hub.repos["models", "ada/mine"].heads["dev"][:12]
    assert out.endswith(f"\n4 files pushed: {hub.url}/ada/mine is at {commit} on dev\n")
    started(hub, place, "mine", "mine", "--yes").communicate()
    asked = started(hub, place, "mine", "mine", "--tag", "v1")
    assert asked.communicate()[1].startswith("Nobody can be asked here")
    assert (asked.returncode, hub.repos["models", "ada/mine"].tags) == (2, {})
    for words, end in ((["--yes"], ", and tagged v1."), ([], ".")):
        out, _ = started(hub, place, "mine", "mine", "--tag", "v1", *words).communicate()
        assert out.endswith(f"Nothing differs from {hub.url}/ada/mine: no commit is made{end}\n")
        assert list(hub.repos["models", "ada/mine"].tags) == ["v1"]


@pytest.mark.parametrize("answer", [b"n\n", b"\x04"], ids=["no", "Ctrl-D"])
def test_a_no_pushes_nothing(hub: HubServer, place: Path, answer: bytes) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, answer)

    push = started(hub, place, "mine", "mine", stdin=theirs, stdout=theirs, stderr=theirs)
    shown = b""
    while b"Nothing was pushed." not in shown:
        shown += os.read(ours, 4096)

    assert push.wait() == 1
    assert b"Push 4 files to ada/mine? [y/N] " in shown
    assert not hub.repos


def test_a_push_that_is_killed_goes_on_where_it_was(hub: HubServer, place: Path) -> None:
    hub.hold = hashlib.sha256(FILES["model-00002-of-00002.safetensors"]).hexdigest()
    push = started(hub, place, "mine", "mine", "--yes")
    deadline = time.monotonic() + 60
    while not hub.held.wait(0.05) and time.monotonic() < deadline:
        pass
    os.kill(push.pid, signal.SIGKILL)
    push.communicate()
    assert [kind for kind, status in hub.seen if kind == "put"] == ["put"]
    assert not hub.files("ada/mine")  # it was made, and has no commit of ours
    hub.hold = ""

    again = started(hub, place, "mine", "mine", "--yes")
    _, err = again.communicate()

    assert again.returncode == 0, err
    assert hub.files("ada/mine") == FILES
    assert hub.count("put") == 2  # the first file was there
    assert hub.repos["models", "ada/mine"].titles == ["initial commit", "Push mine"]


def test_help_starts_no_client(place: Path) -> None:
    code = (
        "import sys\nfrom align.cli.main import main\n"
        "try:\n    main(['push', '--help'])\nexcept SystemExit:\n"
        "    print({'torch', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")
    assert len(done.stdout.splitlines()) <= 41
