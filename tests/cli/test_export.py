"""``align export``, as a user calls it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from adapted import adapter, as_adapter, as_model, base, distance

from align.cli.main import main


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A working directory with ``made``, an adapter on ``base``."""
    monkeypatch.chdir(tmp_path)
    adapter(tmp_path / "made", base(tmp_path / "base", "llama-tied"))
    capsys.readouterr()  # what making them said
    return tmp_path


def test_merged_weights_load_in_a_process_without_align(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "made", "--merge", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)  # standard output is JSON alone
    assert (found["folder"], found["kind"], found["dtype"]) == ("made-merged", "merged", "float32")
    assert found["bytes"] == sum(one["bytes"] for one in found["files"].values())
    merge, load = err.strip().splitlines()
    assert re.fullmatch(
        r"merge: logits of the merged model differ from the adapter's by \S+ at most, \S+ of the largest "
        r"\(4 rows, \d+ tokens\), which is rounding",
        merge,
    )
    assert re.fullmatch(
        r"load: transformers \S+ alone reads it in another process, and its logits differ by \S+ at most; it goes on "
        r"to write .+",
        load,
    )
    assert distance(as_model(place / "made-merged"), as_adapter(place / "made", place / "base")) < 1e-5


def test_an_adapter_is_written_as_it_is(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "made", "--out", "here/mine", "--no-load-check"]) == 0
    note, _, done = capsys.readouterr().out.splitlines()
    assert note == (
        "note: adapter_config.json names the model under the adapter as a folder of this machine; whoever loads it "
        "elsewhere must name theirs"
    )
    assert re.fullmatch(r"Done\.  here/mine   6 files, \d\.\d MB, float32; licence of the base model: not stated", done)
    written = (place / "here" / "mine" / "adapter_model.safetensors").read_bytes()
    assert written == (place / "made" / "adapter_model.safetensors").read_bytes()
    (place / "made" / "README.md").unlink()  # peft's
    assert main(["export", "made", "--no-load-check"]) == 0
    assert (
        "\n# made\n\nExported with align from a folder without a model card."
        in Path("made-export/README.md").read_text()
    )


def test_a_mistake_is_a_sentence(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "base", "--merge"]) == 2
    assert capsys.readouterr().err == "base holds whole weights, so there is nothing to merge: leave --merge out.\n"
    assert main(["export", "maed", "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {
        "error": "maed: no such folder. An export is made of a run, a checkpoint, or a folder with a model.",
        "exit_code": 2,
    }
