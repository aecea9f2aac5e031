"""What is said of the reference before the first step: how much is stored, and how far rounding moves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from training import forget_rows, pairs, trainer
from zoo import tiny_model

from align.engine.scoring import ScoringEngine
from align.errors import UserError
from align.objectives import DPO, IPO, NPO, RPO, FlexDPO, SimPO, SPPOHard, WeightedSum
from align.objectives.base import Objective
from align.reference.store import LogProbStore
from align.trainers.coverage import Coverage
from align.trainers.start import StartReading, compare_at_start


def first_batch(made: Any, rows: Dataset) -> Any:
    return made.data_collator([dict(row) for row in rows])["tree"]


def test_the_line_names_both_counts_the_gap_and_beyond_a_twentieth_the_cure() -> None:
    reading = StartReading(gap=0.0, noise=0.31, margin=0.031)
    said = "reference: 12,000 rows stored, 8 computed; same row in another pack differs by 0.31 nats per answer"
    assert reading.sentence(Coverage(12_000, 8), stores=True) == f"{said} (0.031 of a margin)"
    much = StartReading(gap=0.0, noise=0.6, margin=0.0601)
    line = much.sentence(None, stores=True)
    assert line.startswith("reference: same row in another pack differs by 0.6 nats per answer (0.06 of a margin).")
    assert line.endswith(
        "compute in float32 (model.dtype: float32, train.bf16: false), or set reference.store: false, so that policy "
        "and reference are rounded alike."
    )
    assert "float32" not in StartReading(0.0, 0.5, 0.05).sentence(None, stores=True)  # a twentieth itself is none
    assert "float32" not in much.sentence(None, stores=False)  # both are rounded alike already
    assert StartReading(0.0, 0.5, None).sentence(None, stores=True).endswith("differs by 0.5 nats per answer")


@pytest.mark.parametrize(
    ("objective", "scale"),
    [
        (DPO(0.3), 0.3),
        (FlexDPO(beta_plus=0.1, beta_minus=0.25), 0.25),
        (IPO(tau=0.2, reduction="sum"), 0.2),
        (IPO(tau=0.2), None),
        (RPO(), 0.5),
        (RPO(preset="handbook"), 0.01),
        (RPO(beta=0.7), 0.7),
        (NPO(beta=0.05), 0.05),
        (SPPOHard(beta=0.2), 0.2),
        (SimPO(beta=2.0), None),
        (WeightedSum(((DPO(0.1), 1.0), (DPO(0.4), 0.5), (SimPO(), 1.0))), 0.4),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Objective) else str(x),
)
def test_what_a_nat_counts_in_the_margin(objective: Objective, scale: float | None) -> None:
    assert objective.margin_scale == scale


def test_a_cold_and_a_warm_store_are_counted_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows, more = pairs(6), pairs(9)  # the first six are the same
    options = {"store_dir": tmp_path / "store", "max_steps": 1, "per_device_train_batch_size": 6}
    lines = []
    for run, data in (("cold", rows), ("warm", rows), ("more", more)):
        made = trainer(tmp_path / run, DPO(0.3), data, **options)
        made.train()
        lines.append(next(s for s in capsys.readouterr().out.splitlines() if s.startswith("reference: ")))
        assert made.start_reading.noise < 1e-4
    assert [line.split(";")[0] for line in lines] == [
        "reference: 0 rows stored, 12 computed",
        "reference: 12 rows stored, 0 computed",
        "reference: 12 rows stored, 6 computed",
    ]
    unlearning = trainer(tmp_path / "npo", NPO(), forget_rows(5))
    assert unlearning.coverage == Coverage(0, 5)
    assert trainer(tmp_path / "simpo", SimPO()).coverage is None


def test_noise_is_that_of_whole_answers_in_other_packs(tmp_path: Path) -> None:
    """In bfloat16 a tiny model's sums move; the reading is their mean, and its share of the margin goes with beta."""
    rows = pairs(8)
    model = tiny_model().bfloat16()
    made = trainer(tmp_path, DPO(0.3), rows, model=model)
    batch = first_batch(made, rows)
    made.get_ready(model, batch)
    reading = made.start_reading
    engine, moved = ScoringEngine(), []
    with torch.no_grad():
        together = engine(model, batch)
        for name in ("chosen", "rejected"):
            alone = engine(model, batch.only((name,)))
            moved.append((together.sum(name) - alone.sum(name)).abs())
    assert reading.noise == pytest.approx(torch.cat(moved).mean().item(), abs=1e-6)
    assert reading.noise > 1e-3
    assert reading.margin == pytest.approx(0.3 * reading.noise)
    wide = trainer(tmp_path, DPO(0.3), rows)
    wide.get_ready(wide.model, batch)
    assert wide.start_reading.noise < 1e-4


def test_stored_rows_that_are_off_by_rounding_are_part_of_the_noise_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    rows = pairs(4)
    first = trainer(tmp_path / "a", DPO(0.3), rows, store_dir=tmp_path / "store", max_steps=1)
    first.train()
    for shift, refused in ((2e-4, False), (0.3, True)):
        store = LogProbStore(tmp_path / str(shift), first.digest)
        for key in list(first.reference.store):
            values = torch.from_numpy(first.reference.store.get(key)) + shift / 10
            store.put([key], [len(values)], values)
        store.flush()
        made = trainer(tmp_path / f"b{shift}", DPO(0.3), rows, store_dir=tmp_path / str(shift))
        batch = first_batch(made, rows)
        if refused:
            with pytest.raises(UserError, match="the reference store differs from the policy"):
                compare_at_start(made, made.model, batch)
            continue
        tokens = batch.lengths.float().mean().item()
        assert compare_at_start(made, made.model, batch).noise == pytest.approx(2e-5 * tokens, rel=0.05, abs=0)


def test_metrics_hold_what_the_line_says(tmp_path: Path) -> None:
    reading = StartReading(gap=1e-7, noise=0.25, margin=0.025).to_json(Coverage(3, 4))
    assert json.loads(json.dumps(reading)) == {
        "rows_stored": 3,
        "rows_computed": 4,
        "gap_per_token": 1e-7,
        "noise_per_answer": 0.25,
        "noise_of_margin": 0.025,
    }


def test_rows_of_16_bits_are_kept_apart_from_those_of_a_head_that_rounded(tmp_path: Path) -> None:
    """Stores of version 0.1 before the head's products were float32 hold other numbers under the model's digest."""
    for kind, same in ((torch.float32, True), (torch.bfloat16, False)):
        made = trainer(tmp_path, DPO(), pairs(2), model=tiny_model().to(kind), store_dir=tmp_path / "store")
        assert (made.reference.store.folder.name == made.digest[:32]) is same
