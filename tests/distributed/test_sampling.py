"""Two processes draw what one draws: DDP, FSDP2 and ZeRO-3 on CPU, with prompts dealt out and with all on one rank."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from distributed.launching import HERE, ROOT, SINGLE, command, environment, need
from saved_model import save_model


def _run(folder: Path, label: str) -> list[dict[str, Any]]:
    need(label)
    words = [*command(label, HERE / "sampling_worker.py"), str(folder)]
    done = subprocess.run(
        words, env=environment(label), cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    # results, not the exit code: ranks are known to abort at interpreter exit after all work was done
    found = sorted(folder.glob(f"{label}-*.json"))
    assert len(found) == (1 if label == SINGLE else 2), f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return [json.loads(path.read_text()) for path in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sampling")
    save_model(made / "model", max_position_embeddings=24, initializer_range=0.2)
    return made


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    return _run(folder, SINGLE)[0]


@pytest.mark.slow
@pytest.mark.parametrize("label", ["ddp", "fsdp2", "zero3"])
def test_two_processes_draw_what_one_does(folder: Path, one: dict[str, Any], label: str) -> None:
    two = _run(folder, label)
    assert one["world"] == 1
    assert one["shared"] == one["first"]
    assert one["shares_prompts"]
    finishes = [finish for samples in one["first"].values() for *_, finish in samples]
    assert {"stop", "length"} <= set(finishes)
    assert len({tuple(ids) for samples in one["first"].values() for _, ids, *_ in samples}) > 20
    for rank in two:
        assert rank["world"] == 2
        assert rank["sharded"] == (label != "ddp")
        assert rank["shares_prompts"]
        # put together once for all tokens, and given back
        assert rank["whole"] == [[True, label != "ddp"]] * 2
    assert two[0]["shared"] | two[1]["shared"] == one["shared"]
    assert two[0]["first"] == one["first"]
    assert two[1]["first"] == {}
