"""What a push takes along of a folder, what stays, and what is refused or written otherwise."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from align.errors import UserError
from align.export.listing import listing
from align.runs.checkpoints import digests

_TOKEN = "hf_" + "Zq7" * 12


def model(folder: Path, **more: bytes) -> Path:
    """A folder as ``save_model`` leaves it, and ``more`` files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "model.safetensors": b"\0" * 40,
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "README.md": b"---\ntags: [align]\n---\n\n# mine\n",
        "training_args.bin": b"pickle",
        **more,
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_the_model_of_a_run_goes_and_nothing_beside_it(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    model(run / "model", **{"optimizer.pt": b"state", "chat_template.jinja": b"{{ messages }}", "rank.png": b"png"})
    for name in ("recipe.lock.yaml", "metrics.jsonl", "verdict.json", "README.md"):
        (run / name).write_text("run: 1\nrecipe: {}\n")
    (run / "checkpoint-4").mkdir()

    found = listing(run)

    assert (found.name, found.kind) == ("first", "model")
    names = ["README.md", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert [entry.name for entry in found.entries] == names
    assert found.stays == ("optimizer.pt", "rank.png", "training_args.bin")
    weights = next(entry for entry in found.entries if entry.name == "model.safetensors")
    assert (weights.size, weights.sha256) == (40, hashlib.sha256(b"\0" * 40).hexdigest())


def test_a_small_file_has_the_name_that_git_gives_it(tmp_path: Path) -> None:
    entry = next(one for one in listing(model(tmp_path / "m")).entries if one.name == "config.json")

    git = subprocess.run(["git", "hash-object", entry.path], capture_output=True, text=True, check=True)

    assert entry.blob == git.stdout.strip()


def test_a_picture_goes_where_the_card_shows_it(tmp_path: Path) -> None:
    card = b"# mine\n\n![where probability goes](report.png)\n"

    found = listing(model(tmp_path / "m", **{"README.md": card, "report.png": b"1", "other.png": b"2"}))

    assert "report.png" in [entry.name for entry in found.entries]
    assert found.stays == ("other.png", "training_args.bin")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("README.md", f"# mine\n\nexport HF_TOKEN={_TOKEN}\n".encode(), "README.md:3 holds what looks like a secret"),
        ("config.json", b'{"judge": "https://me:swordfish@host/v1"}', "config.json:1 holds what looks like a secret"),
        ("README.md", b"key sk-proj-" + b"a1" * 12, "README.md:1 holds what looks like a secret"),
        ("chat_template.jinja", b"-----BEGIN RSA PRIVATE KEY-----", "chat_template.jinja:1 holds what looks like"),
        ("README.md", b"# a\n\n\nkey: plain-but-ours\n", "README.md:4 holds the value of JUDGE_KEY"),
    ],
)
def test_a_secret_is_refused_by_its_line_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, said: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "plain-but-ours")
    folder = model(tmp_path / "m", **{name: content})

    with pytest.raises(UserError, match=said) as caught:
        listing(folder)

    assert str(caught.value).endswith(": take it out, and let nobody use it any more where others may have seen it.")
    assert not any(secret in str(caught.value) for secret in (_TOKEN, "swordfish", "plain-but-ours"))


def test_a_short_value_of_the_environment_is_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "EMPTY")

    assert listing(model(tmp_path / "m", **{"README.md": b"# EMPTY\n"})).card == "# EMPTY\n"


def test_the_home_folder_goes_as_a_tilde_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    card = b"# mine\n\nalign train /home/ada/r.yaml output=/home/ada; not /home/adam, /mnt/home/ada\n"
    folder = model(tmp_path / "m", **{"README.md": card})

    found = listing(folder)

    assert found.card == "# mine\n\nalign train ~/r.yaml output=~; not /home/adam, /mnt/home/ada\n"
    assert found.notes == ("README.md names your home folder 2 times: it goes as ~",)
    assert (folder / "README.md").read_bytes() == card


def test_the_digests_of_an_export_are_those_of_what_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    folder = model(tmp_path / "m", **{"README.md": b"align train /home/ada/r.yaml\n"})
    files = digests(folder, [path.name for path in folder.iterdir()])
    (folder / "export.json").write_text(json.dumps({"kind": "model", "files": files}))

    found = {entry.name: entry for entry in listing(folder).entries}

    sent = json.loads(found["export.json"].read())["files"]
    digest = hashlib.sha256(b"align train ~/r.yaml\n").hexdigest()
    assert sent == {**files, "README.md": {"bytes": 21, "sha256": digest}}
    assert found["export.json"].sha256 == hashlib.sha256(found["export.json"].read()).hexdigest()


def test_an_adapter_for_a_folder_of_this_machine_is_said(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", **{"adapter_config.json": b'{"base_model_name_or_path": "some/model"}'})
    assert listing(folder).notes == ()

    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/models/base"}')

    assert listing(folder).notes == (
        "adapter_config.json names its base model as /models/base, a folder of this machine: others cannot load it so. "
        "Push the merged model instead (align export RUN --merge)",
    )


def test_what_only_looks_like_a_secret_is_none(tmp_path: Path) -> None:
    card = b"# sk-learn-and-other-classifiers-in-one\n\nhttps://huggingface.co/me@home hf_short sk-1\n"
    assert listing(model(tmp_path / "m", **{"README.md": card})).card == card.decode()


def test_a_link_out_of_the_folder_is_refused_and_one_within_is_not(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    (folder / "generation_config.json").symlink_to("config.json")
    assert "generation_config.json" in [entry.name for entry in listing(folder).entries]

    (tmp_path / "passwd").write_text("root")
    (folder / "merges.txt").symlink_to(tmp_path / "passwd")

    with pytest.raises(UserError) as caught:
        listing(folder)
    (folder / "merges.txt").unlink()
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "tools.jinja").write_text("mine")
    (folder / "additional_chat_templates").symlink_to(tmp_path / "templates")
    with pytest.raises(UserError, match=r"is a link to .*/templates/tools\.jinja, outside of what is pushed"):
        listing(folder)

    assert str(caught.value) == (
        f"{folder}/merges.txt is a link to {tmp_path}/passwd, outside of what is pushed: put the file itself there."
    )


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    os.mkfifo(folder / "vocab.json")

    with pytest.raises(UserError, match=r"/vocab\.json"):
        listing(folder)


def test_pickles_are_not_pushed(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", **{"weights.bin": b"pickle"})
    (folder / "model.safetensors").unlink()

    with pytest.raises(UserError, match="holds no weights as safetensors, and others are not pushed: they are pickles"):
        listing(folder)


def test_rows_go_as_a_file_with_its_card_or_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "kept.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    assert listing(tmp_path / "kept.jsonl").notes == ("there is no README.md: nothing says where this comes from",)

    (tmp_path / "kept.jsonl.md").write_text("# kept\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").write_bytes(b"PAR1")
    (tmp_path / "notes.txt").write_text("mine")

    alone, folder = listing(tmp_path / "kept.jsonl"), listing(tmp_path)

    assert (alone.kind, [entry.name for entry in alone.entries]) == ("dataset", ["kept.jsonl", "README.md"])
    assert alone.card == "# kept\n"
    assert (folder.kind, [entry.name for entry in folder.entries]) == ("dataset", ["data/train.parquet", "kept.jsonl"])
    assert folder.stays == ("kept.jsonl.md", "notes.txt")


def test_a_folder_of_neither_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(UserError, match=r"holds neither a model \(config\.json or adapter_config\.json\) nor rows"):
        listing(tmp_path)


def test_a_run_without_its_lock_file_is_no_data_set(tmp_path: Path) -> None:
    """Its records would go, and its model stay."""
    run = model(tmp_path / "run" / "model").parent
    (run / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"run holds a run's folders and no recipe\.lock\.yaml, without which"):
        listing(run)
    (run / "recipe.lock.yaml").write_text("{}")
    assert listing(run).kind == "model"
    (run / "model" / "config.json").unlink()
    with pytest.raises(UserError, match=r"run/model has lost adapter_config\.json or config\.json, without which"):
        listing(run)


@pytest.mark.parametrize("name", ["added_tokens.json", "special_tokens_map.json"])
def test_small_files_of_a_tokenizer_are_looked_through(tmp_path: Path, name: str) -> None:
    folder = model(tmp_path / "m", **{name: b'{"hf_' + b"a" * 34 + b'": 1}'})
    with pytest.raises(UserError, match=name):
        listing(folder)
