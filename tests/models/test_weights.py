"""A digest of what a name stands for: other weights, another tokenizer or another model below an adapter change it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from align.errors import UserError
from align.models.weights import weights_digest


def folders(place: Path) -> Path:
    for name, files in {
        "base": {"config.json": "{}", "model.safetensors": "weights", "tokenizer.json": "[]", "README.md": "read"},
        "adapter": {"adapter_config.json": json.dumps({"base_model_name_or_path": "../base"}), "x.safetensors": "less"},
    }.items():
        (place / name).mkdir(parents=True)
        for file, text in files.items():
            (place / name / file).write_text(text)
    return place


@pytest.mark.parametrize(
    ("change", "base", "adapter"),
    [
        (lambda place: None, True, True),
        (lambda place: (place / "base/README.md").write_text("more"), True, True),
        (lambda place: (place / "base/model.safetensors").write_text("others"), False, False),
        (lambda place: (place / "base/tokenizer.json").write_text("{}"), False, False),
        (lambda place: (place / "base/chat_template.jinja").write_text("{{ messages }}"), False, False),
        (lambda place: (place / "base/tokenizer.json").rename(place / "base/tokens.json"), False, False),
        (lambda place: (place / "adapter/x.safetensors").write_text("lesser"), True, False),
    ],
)
def test_what_changes_it(tmp_path: Path, change: Callable[[Path], object], base: bool, adapter: bool) -> None:
    before, after = folders(tmp_path / "before"), folders(tmp_path / "after")
    change(after)
    for name, same in (("base", base), ("adapter", adapter)):
        assert (weights_digest(str(before / name)) == weights_digest(str(after / name))) is same


def test_a_model_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folders(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        weights_digest("./bsae")
    assert str(caught.value) == "./bsae: no such folder. Did you mean 'base'? A model is a run, a folder, or a Hub id."
