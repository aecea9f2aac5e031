"""What a run under FSDP2 leaves is whole, whatever form its checkpoints have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from adapted import as_model, distance
from distributed.launching import CONFIGS, ROOT, environment
from small_run import recipe, small_world

from align.errors import UserError
from align.export.source import find
from align.recipe import Recipe
from align.train import run


@pytest.mark.slow
def test_checkpoints_in_pieces_and_a_whole_model(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    config = tmp_path / "sharded.yaml"
    config.write_text(CONFIGS["fsdp2"].read_text().replace("FULL_STATE_DICT", "SHARDED_STATE_DICT"))
    steps = {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 4, "eval_strategy": "no"}
    values = recipe(world, world, name="pieces", train=steps).dump()
    (tmp_path / "pieces.yaml").write_text(json.dumps(values))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "-m", "align.train"]
    done = subprocess.run(
        [*command, str(tmp_path / "pieces.yaml")], env=environment("fsdp2"), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    alone = {**values, "name": "alone", "train": {**values["train"], "per_device_train_batch_size": 8}}
    run(Recipe.from_dict(alone), echo=lambda _: None)
    found = find(tmp_path / "pieces")
    assert distance(as_model(found.folder), as_model(tmp_path / "alone" / "model")) < 1e-4
    with pytest.raises(UserError) as error:
        find(tmp_path / "pieces" / "checkpoint-2")
    assert "holds its weights in pieces (pytorch_model_fsdp_0)" in str(error.value)
    assert f"Export the model that {tmp_path / 'pieces'} leaves at its end: it is whole." in str(error.value)
