"""What it means that the Hub does not give a repository, told from the errors that its client really raises."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import HfApi, constants, hf_hub_download, is_offline_mode

from align.runs.models import hub_answers, hub_refusal, without_waiting


def refusal(name: str, revision: str | None = None, folder: str = "") -> str | None:
    """The sentence about a model, behind an error such as transformers raises."""
    try:
        try:
            HfApi().model_info(name, revision=revision)
            hf_hub_download(name, "config.json", cache_dir="cache")
        except Exception as error:
            raise OSError("cannot be loaded") from error
    except OSError as error:
        return hub_refusal(name, revision, error, folder)
    return "loaded"


def test_gated_private_and_without_the_revision_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with HubServer() as hub:
        hub.here(monkeypatch, tmp_path / "home")
        hub.put("lab/gated", {"config.json": b"{}"}, gated=True)
        hub.put("bob/own", {"config.json": b"{}"}, private=True)
        hub.put("lab/open", {"config.json": b"{}"})
        log_in = "log in (hf auth login, or HF_TOKEN)"

        assert refusal("lab/open") == "loaded"
        assert refusal("lab/gated") == (
            f"it is gated: accept its terms at {hub.url}/lab/gated, and {log_in} with the account that did"
        )
        absent = f"or it is private: then {log_in} with an account that may read it"
        assert refusal("bob/own") == f"there is no {hub.url}/bob/own, {absent}"
        assert refusal("lab/none", folder="datasets/") == f"there is no {hub.url}/datasets/lab/none, {absent}"
        assert refusal("lab/open", "v9") == (
            f"it has no revision 'v9': its branches and tags are at {hub.url}/lab/open"
        )
        hub.plan["info"] = ["400"]
        assert refusal("lab/open") is None


def test_a_hub_that_is_away_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer() as hub:
        hub.here(monkeypatch, tmp_path / "home")
        hub_answers.cache_clear()
        with without_waiting():
            assert not is_offline_mode()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    hub_answers.cache_clear()
    with without_waiting():
        assert is_offline_mode()
    assert not is_offline_mode()
    hub_answers.cache_clear()
