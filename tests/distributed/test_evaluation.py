"""Two processes measure a model as one does: every number and every text of the log is the same, to the last bit."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from distributed.launching import CONFIGS, HERE, ROOT, SINGLE, command, environment, need
from tiny import tiny_tokenizer
from zoo import tiny_model

pytestmark = pytest.mark.slow


def _run(folder: Path, label: str) -> list[dict[str, Any]]:
    need(label)
    words = [*command(label, HERE / "evaluation_worker.py"), str(folder)]
    done = subprocess.run(
        words, env=environment(label), cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    # results, not the exit code: ranks are known to abort at interpreter exit after all work was done
    found = sorted(folder.glob(f"{label}-*.json"))
    assert len(found) == (1 if label == SINGLE else 2), f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return [json.loads(path.read_text()) for path in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("evaluation")
    tokenizer = tiny_tokenizer(chat=False)
    tiny_model(vocab_size=len(tokenizer), max_position_embeddings=512).save_pretrained(made / "model")
    tokenizer.save_pretrained(made / "model")
    return made


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    return _run(folder, SINGLE)[0]


@pytest.mark.parametrize("label", list(CONFIGS))
def test_two_processes_measure_what_one_does(folder: Path, one: dict[str, Any], label: str) -> None:
    two = _run(folder, label)
    assert one["world"] == one["loaded_world"] == 1
    for rank in two:
        assert rank["world"] == rank["loaded_world"] == 2
        assert rank["mode"] == one["mode"] == "tree"
        assert rank["sharded"] == (label in ("fsdp2", "zero3"))
        # both ranks hold the whole log, and neither has computed it alone
        assert rank["loaded"] == one["loaded"]
        expected = {k: v for k, v in one["live"].items() if k != "mia_gradnorm" or not rank["sharded"]}
        assert rank["live"] == expected
        assert rank["loaded_tokens"] < 0.7 * one["loaded_tokens"]
    items = one["live"]["forget_Q_A_Prob"]["value_by_index"]
    assert len({item["avg_loss"] for item in items.values()}) == 7
