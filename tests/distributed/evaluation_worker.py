"""One process of a distributed evaluation: TOFU's log of a saved model and of a trainer's policy.

    python tests/distributed/evaluation_worker.py FOLDER

FOLDER holds ``model/``. Every process writes ``<LABEL>-<rank>.json``, LABEL being the environment's ALIGN_TEST_LABEL.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from align.compat import training_config
from align.eval import tofu
from align.eval.tofu_data import TofuSets, load_sets
from align.models import batches
from align.models.subject import Subject
from align.objectives import NLL
from align.runs.processes import leave_together
from align.trainers.base import AlignTrainer


def few() -> TofuSets:
    """Rows of the generated world, of counts that divide evenly by nothing."""
    whole = load_sets("forget", "world:1")
    counts = {"forget": 7, "retain": 5, "ra": 3, "wf": 3}
    assert whole.holdout is not None
    return replace(
        whole, sets={n: whole.sets[n][:k] for n, k in counts.items()}, holdout=whole.holdout[:4], new_tokens=6
    )


def trained(folder: Path) -> AlignTrainer:
    """A trainer on the saved model, wrapped as it trains."""
    rows = [{"prompt_ids": [5, 6, 7 + i], "forget_ids": [8, 9 + i]} for i in range(4)]
    args = training_config(
        output_dir=str(folder / "out"), per_device_train_batch_size=4 // int(os.environ.get("WORLD_SIZE", "1")),
        max_steps=1, learning_rate=0.0, report_to="none", save_strategy="no", disable_tqdm=True,
        bf16=False, gradient_checkpointing=False, use_cpu=True,
    )  # fmt: skip
    trainer = AlignTrainer(str(folder / "model"), NLL(branch="forget"), args, train_dataset=Dataset.from_list(rows))
    trainer.train()
    return trainer


def main() -> None:
    folder, label = Path(sys.argv[1]), os.environ["ALIGN_TEST_LABEL"]
    batches._PACK, batches.BATCH = 300, 4  # type: ignore[attr-defined]
    loaded = Subject.load(str(folder / "model"))
    live = Subject.of(trained(folder))
    out: dict[str, Any] = {
        "world": live.world,
        "mode": live.engine.mode,
        "sharded": live.engine.sharded,
        "loaded_world": loaded.world,
    }
    for name, measured in (("loaded", loaded), ("live", live)):
        measured.name = name
        before = measured.engine.tokens
        out[name] = tofu.evaluate(measured, few(), gradnorm=not measured.engine.sharded).to_json()
        out[f"{name}_tokens"] = measured.engine.tokens - before
    (folder / f"{label}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(out))
    leave_together()


if __name__ == "__main__":
    main()
