"""Pushes to a Hub of this machine, which fails on the way as it is told to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_repos import User
from hub_server import HubServer

from align.errors import UserError
from align.export.hub import Push, Pushed
from align.export.listing import listing
from align.export.target import Target, check_target

# huggingface_hub's own way to send a large file, which its HTTP client calls old
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "ada/mine"
FILES = {
    "README.md": b"---\ntags: [align]\n---\n\n# mine\n",
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00002.safetensors": bytes(range(256)) * 5000,  # above the size that goes up by itself
    "model-00002-of-00002.safetensors": bytes(reversed(range(256))) * 10,
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "tokenizer.json": b"{}",
}
READ = "hf_" + "r" * 34
STRANGER = "hf_" + "s" * 34


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    users = {"hf_" + "a" * 34: User("ada", orgs=("lab",)), READ: User("ada", "read"), STRANGER: User("bob")}
    with HubServer(users) as server:
        server.here(monkeypatch, tmp_path / "home")
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    for name, content in FILES.items():
        (tmp_path / "mine" / name).write_bytes(content)
    return tmp_path / "mine"


def pushed(folder: Path, said: list[str] | None = None, repo: str = REPO, **how: Any) -> Pushed:
    lines: list[str] = [] if said is None else said
    return Push(listing(folder), Target(repo, **how), lines.append, pause=0.01).run()


def test_the_repository_holds_what_was_listed_and_is_private(hub: HubServer, folder: Path) -> None:
    said: list[str] = []
    (folder / "optimizer.pt").write_bytes(b"state")

    done = pushed(folder, said)

    assert hub.files(REPO) == FILES
    repo = hub.repos["models", REPO]
    assert (repo.private, repo.titles, repo.heads["main"]) == (True, ["initial commit", "Push mine"], done.commit)
    assert done.changed == tuple(sorted(FILES))
    assert said == ["uploaded model-00001-of-00002.safetensors"]


def test_a_second_push_changes_nothing_and_makes_no_commit(hub: HubServer, folder: Path) -> None:
    first = pushed(folder)
    asked = len(hub.seen)

    second = pushed(folder)

    assert second == Pushed(first.commit, ())
    assert len(hub.repos["models", REPO].titles) == 2
    assert {kind for kind, _ in hub.seen[asked:]} == {"whoami", "info", "tree"}


def test_only_what_differs_goes_up(hub: HubServer, folder: Path) -> None:
    pushed(folder)
    uploads = hub.count("put")
    (folder / "README.md").write_bytes(b"# another\n")
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"new")

    done = pushed(folder, message="Mend")

    assert done.changed == ("README.md", "model-00002-of-00002.safetensors")
    assert hub.count("put") - uploads == 1
    wanted = {**FILES, "README.md": b"# another\n", "model-00002-of-00002.safetensors": b"new"}
    assert hub.files(REPO) == wanted
    assert hub.repos["models", REPO].titles[2:] == ["Mend"]


# kinds of requests with what goes wrong: what we try again, and what huggingface_hub itself tries again a second later
_OURS = [
    *[("whoami", fault) for fault in ("503", "before")],
    *[("info", fault) for fault in ("500", "after")],
    *[("tree", fault) for fault in ("502", "middle")],
    *[("create", fault) for fault in ("429", "after", "409", "middle")],
    *[("commit", fault) for fault in ("before", "middle", "after", "503", "409", "412", "429")],
]
_THEIRS = [("preupload", "503"), ("preupload", "after"), ("batch", "middle"), ("put", "middle"), ("put", "after")]


def test_twenty_faults_one_after_the_other_leave_what_was_said(hub: HubServer, folder: Path) -> None:
    faults = [*_OURS, *_THEIRS]
    assert len(faults) >= 20

    for number, (kind, fault) in enumerate(faults):
        repo = f"ada/mine-{number}"
        (folder / "model-00001-of-00002.safetensors").write_bytes(hashlib.sha256(repo.encode()).digest() * 40000)
        hub.plan[kind] = [fault]
        said: list[str] = []

        pushed(folder, said, repo)

        assert not hub.plan[kind], (kind, fault)
        assert hub.files(repo) == {name: (folder / name).read_bytes() for name in FILES}, (kind, fault)
        assert hub.repos["models", repo].titles == ["initial commit", "Push mine"], (kind, fault)
        assert hub.repos["models", repo].private
        quiet = (kind, fault) == ("create", "409")  # another push may be making it: we look again
        waits = [line for line in said if ": trying again in " in line]
        assert len(waits) == 1 or quiet, (kind, fault, said)


def test_many_faults_of_one_push_leave_what_was_said(hub: HubServer, folder: Path) -> None:
    for kind, fault in _OURS:
        hub.plan[kind].append(fault)
    said: list[str] = []

    pushed(folder, said)

    assert hub.files(REPO) == FILES
    assert hub.repos["models", REPO].titles == ["initial commit", "Push mine"]
    assert "the connection to the Hub broke: trying again in 0.01 s" in said
    assert "the Hub answers with status 503: trying again in 0.01 s" in said


def test_the_hub_is_left_alone_for_as_long_as_it_asks(hub: HubServer, folder: Path) -> None:
    hub.retry_after, hub.plan["whoami"] = 1, ["429"]
    said: list[str] = []

    pushed(folder, said)

    assert said[0] == "the Hub answers with status 429: trying again in 1 s"

    hub.retry_after, hub.plan["whoami"] = 3600, ["429"]
    with pytest.raises(
        UserError, match=r"ada/mine: the Hub answers with status 429, after 1 tries in 0 s: it asks to be"
    ):
        pushed(folder)


def test_a_hub_that_stays_away_ends_in_a_sentence(hub: HubServer, folder: Path) -> None:
    hub.plan["commit"] = ["503"] * 6
    said: list[str] = []

    with pytest.raises(UserError) as caught:
        pushed(folder, said)

    assert str(caught.value).startswith("ada/mine: the Hub answers with status 503, after 6 tries in ")
    assert str(caught.value).endswith(" s: try again later. What has been uploaded stays there.")
    waits = [line.rpartition(" in ")[2] for line in said if "trying again" in line]
    assert waits == ["0.01 s", "0.02 s", "0.04 s", "0.08 s", "0.16 s"]
    uploads = hub.count("put")
    pushed(folder)
    assert (hub.files(REPO), hub.count("put")) == (FILES, uploads)


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        (
            "whoami",
            "401",
            "The Hub does not know the token of HF_TOKEN (status 401). Make one that may write at {url}/",
        ),
        (
            "create",
            "402",
            "ada/mine: the Hub asks for a payment (status 402: told to answer 402): see {url}/settings/b",
        ),
        (
            "commit",
            "403",
            "ada may not do this to ada/mine (status 403: told to answer 403). Use a token that may write",
        ),
        (
            "commit",
            "404",
            "ada/mine: there is no such repository or revision, or ada may not see it (status 404). Check",
        ),
        ("commit", "400", "ada/mine: the Hub refuses (status 400: told to answer 400)."),
    ],
)
def test_each_refusal_is_a_sentence_with_a_cure(
    hub: HubServer, folder: Path, kind: str, status: str, said: str
) -> None:
    hub.plan[kind] = [status]

    with pytest.raises(UserError) as caught:
        pushed(folder)

    assert str(caught.value).startswith(said.format(url=hub.url))
    assert hub.token not in str(caught.value)


def test_someone_who_changes_the_repository_all_the_time_is_said(hub: HubServer, folder: Path) -> None:
    hub.plan["commit"] = ["409"] * 6

    with pytest.raises(UserError) as caught:
        pushed(folder)

    assert str(caught.value) == (
        "ada/mine was changed by someone else at the same time (status 409: told to answer 409): push again."
    )


def test_a_commit_of_someone_else_is_not_undone(hub: HubServer, folder: Path) -> None:
    pushed(folder)
    (folder / "config.json").write_bytes(b"{}")
    push = Push(listing(folder), Target(REPO), str, pause=0.01)
    hub.put(REPO, {"notes.txt": b"theirs", "tokenizer.json": b"theirs"})

    push.run()

    assert hub.files(REPO) == {**FILES, "config.json": b"{}", "notes.txt": b"theirs"}


def test_a_commit_between_the_look_and_ours_is_seen(hub: HubServer, folder: Path) -> None:
    pushed(folder)
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"1" * (1 << 20))

    def meanwhile(line: str) -> None:
        if line.startswith("uploaded") and hub.files(REPO)["tokenizer.json"] == b"{}":
            hub.put(REPO, {"tokenizer.json": b"theirs"})

    Push(listing(folder), Target(REPO), meanwhile, pause=0.01).run()

    assert ("commit", "412") in hub.seen
    assert hub.files(REPO) == {name: (folder / name).read_bytes() for name in FILES}


def test_no_login_and_one_that_may_not_write(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError) as caught:
        pushed(folder, repo="eve/mine")
    assert str(caught.value) == (
        "ada may not push to eve/mine: eve is neither ada nor one of their organisations (lab). Push to ada/mine, or "
        "propose the change (--pr)."
    )
    hub.here(monkeypatch, tmp_path / "home", READ)
    with pytest.raises(UserError, match=r"^The token of ada may only read: make one that may write at http"):
        pushed(folder)
    hub.here(monkeypatch, tmp_path / "home", None)
    asked = len(hub.seen)
    with pytest.raises(
        UserError, match=r"^There is no login for http://127\.0\.0\.1:\d+: set HF_TOKEN, or log in once"
    ):
        pushed(folder)
    assert len(hub.seen) == asked
    assert not hub.repos


def test_the_saved_login_is_used_where_there_is_no_variable(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.here(monkeypatch, tmp_path / "home", None)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(hub.token)

    pushed(folder, repo="mine")

    assert hub.files(REPO) == FILES


def test_a_public_repository_takes_nothing_private_by_mistake(hub: HubServer, folder: Path) -> None:
    hub.put(REPO, {"README.md": b"old"})

    with pytest.raises(UserError) as caught:
        pushed(folder)

    assert str(caught.value) == (
        "ada/mine is there already and public, so that everyone could read what is pushed. Say --public "
        "(output.private: false) if that is meant, or name another repository."
    )
    with pytest.raises(UserError, match="is there already and public"):
        check_target(Target(REPO), str)
    assert hub.files(REPO) == {"README.md": b"old"}
    pushed(folder, private=False)
    assert hub.files(REPO) == FILES


def test_weights_of_another_model_are_not_mixed(hub: HubServer, folder: Path) -> None:
    hub.put(REPO, {"adapter_config.json": b"{}", "adapter_model.safetensors": b"1", "notes.txt": b"2"}, private=True)

    with pytest.raises(UserError) as caught:
        pushed(folder)

    assert str(caught.value) == (
        "ada/mine holds files of another model (adapter_config.json, adapter_model.safetensors), and "
        "whoever loads it would get a mixture: remove them there, or name another repository."
    )
    assert not hub.count("put")


@pytest.mark.parametrize("name", ["chat_template.jinja", "generation_config.json", "additional_chat_templates/x.jinja"])
def test_a_template_and_settings_of_another_model_are_not_left(hub: HubServer, folder: Path, name: str) -> None:
    hub.put(REPO, {name: b"{}", "README.md": b"mine", "LICENSE": b"free", "notes.txt": b"2"}, private=True)
    with pytest.raises(UserError, match=rf"^ada/mine holds files of another model \({name}\), and "):
        pushed(folder)


def test_rows_of_the_same_split_are_not_mixed(hub: HubServer, tmp_path: Path) -> None:
    """Whoever loads a data set gets all files of a split, and those that name none are all of `train`."""
    old = {
        "old.jsonl": b"{}",
        "test.jsonl": b"{}",
        "data/train-00003-of-00004.parquet": b"",
        "dataset_infos.json": b"{}",
    }
    hub.put(REPO, old, "datasets", private=True)
    (tmp_path / "new.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(UserError, match=r"^ada/mine holds files of the same split \(old\.jsonl\), and who"):
        pushed(tmp_path / "new.jsonl")
    (tmp_path / "rows" / "data").mkdir(parents=True)
    (tmp_path / "rows" / "validation.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "rows" / "train-00000-of-00002.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"\(data/train-00003-of-00004\.parquet\)"):
        pushed(tmp_path / "rows")
    (tmp_path / "rows" / "train-00000-of-00002.parquet").unlink()
    assert pushed(tmp_path / "rows").changed == ("validation.jsonl",)
    (tmp_path / "test_prefs.json").write_text('[{"prompt": "a"}]')
    assert pushed(tmp_path / "test_prefs.json").changed == ("test_prefs.json",)
    (tmp_path / "train_prefs.json").write_text('[{"prompt": "a"}]')
    assert pushed(tmp_path / "train_prefs.json").changed == ("train_prefs.json",)  # another split; infos are no rows
    (tmp_path / "new.jsonl.md").write_text("---\nconfigs:\n- config_name: new\n  data_files: new.jsonl\n---\n")
    assert pushed(tmp_path / "new.jsonl").changed == ("new.jsonl", "README.md")


def test_a_branch_is_made_where_there_is_none(hub: HubServer, folder: Path) -> None:
    pushed(folder)
    (folder / "config.json").write_bytes(b"{}")

    done = pushed(folder, revision="trial")

    assert done.changed == ("config.json",)
    assert hub.files(REPO, revision="trial") == {**FILES, "config.json": b"{}"}
    assert hub.files(REPO) == FILES


def test_a_tag_names_the_commit_and_does_not_move(hub: HubServer, folder: Path) -> None:
    hub.plan["tag"] = ["after"]
    first = pushed(folder, tag="v1")
    again = pushed(folder, tag="v1")
    (folder / "config.json").write_bytes(b"{}")
    uploads = hub.count("commit")

    with pytest.raises(UserError) as caught:
        pushed(folder, tag="v1")

    assert again.commit == first.commit == hub.repos["models", REPO].tags["v1"]
    assert str(caught.value) == (
        "ada/mine has a tag v1 on another commit, and a tag that others rely on does not move: take another --tag, or "
        "remove that one there."
    )
    assert hub.count("commit") == uploads


def test_a_pull_request_is_opened_once_and_gone_on_with(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put(REPO, {"README.md": b"old"})
    hub.here(monkeypatch, tmp_path / "home", STRANGER)
    hub.plan["commit"] = ["after"]

    first = pushed(folder, pull=True, message="Better")
    (folder / "config.json").write_bytes(b"{}")
    second = pushed(folder, pull=True, message="Better")
    third = pushed(folder, pull=True, message="Better")

    assert first.pull_request == second.pull_request == f"{hub.url}/ada/mine/discussions/1"
    assert (second.changed, third.changed) == (("config.json",), ())
    assert len(hub.repos["models", REPO].pulls) == 1
    assert hub.files(REPO) == {"README.md": b"old"}
    assert hub.files(REPO, revision="refs/pr/1") == {**FILES, "config.json": b"{}"}


def test_a_large_file_goes_in_parts(hub: HubServer, folder: Path) -> None:
    hub.part = 400_000

    pushed(folder)

    assert hub.files(REPO) == FILES
    assert hub.count("complete") == 1
    assert hub.count("put") == 4 + 1  # 1,280,000 bytes in parts of 400,000, and the small shard


def test_a_private_repository_is_hidden_from_others(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(folder)
    hub.here(monkeypatch, tmp_path / "home", STRANGER)

    with pytest.raises(UserError, match=r"^ada/mine: there is no such repository or revision, or bob may not see it"):
        pushed(folder, pull=True)


def test_rows_go_to_a_data_set(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "kept.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "kept.jsonl.md").write_text("---\ntags: [align]\n---\n\n# kept\n")

    pushed(tmp_path / "kept.jsonl")

    assert list(hub.repos) == [("datasets", REPO)]
    assert hub.files(REPO, "datasets") == {
        "kept.jsonl": b'{"prompt": "a", "completion": "b"}\n',
        "README.md": b"---\ntags: [align]\n---\n\n# kept\n",
    }


def test_a_file_that_changes_under_the_push_is_said(hub: HubServer, folder: Path) -> None:
    push = Push(listing(folder), Target(REPO), str, pause=0.01)
    (folder / "tokenizer.json").write_bytes(b"{ }")

    with pytest.raises(UserError, match=r"mine/tokenizer\.json was changed while it was pushed: push again\.$"):
        push.run()


@pytest.mark.parametrize(
    ("repo", "how", "said"),
    [
        (
            "a/b/c",
            {},
            "'a/b/c' is no name of a repository: expected USER/NAME or NAME, of letters, digits, '.', '_' and",
        ),
        ("../x", {}, "'../x' is no name of a repository"),
        ("x", {"pull": True, "tag": "v1"}, "A tag names a commit, and a pull request is none yet: leave out --tag or"),
    ],
)
def test_a_target_that_cannot_be(repo: str, how: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        Target(repo, **how)
    assert str(caught.value).startswith(said)
