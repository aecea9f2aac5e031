"""A reference that rows bring along: the same losses as with the model in memory, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from training import arguments, history, pairs, trainer, weights, word_tokenizer
from zoo import tiny_model

from align.data.batches.collator import TreeCollator
from align.data.tokens.tokenize import prepare
from align.engine.layout import pack
from align.engine.scoring import ScoringEngine, attach
from align.errors import UserError
from align.objectives import DPO, INPO, IPO, KL, NLL, WeightedSum
from align.trainers.preference import PreferenceTrainer

BRANCHES = ("chosen", "rejected")


def with_logps(rows: Dataset, name: str, model: Any, shift: float = 0.0) -> Dataset:
    """Rows with log-probs of both answers under ``model``, each on its own, ``shift`` added to the chosen one's."""
    attach(model)
    engine, collator = ScoringEngine(), TreeCollator(BRANCHES)
    for branch in BRANCHES:
        values = []
        for row in rows:
            with torch.no_grad():
                scores = engine(model, collator([row])["tree"])
            values.append(scores.sum(branch).item() + shift * (branch == "chosen"))
        rows = rows.add_column(f"{branch}_logp_{name}", values)
    return rows


@pytest.fixture(scope="module")
def rows() -> Dataset:
    bare = pairs(21)
    bare = bare.remove_columns([name for name in bare.column_names if "_logp_" in name])
    return with_logps(bare, "initial", tiny_model())


def brought(folder: Path, objective: Any, rows: Dataset, name: str, **options: Any) -> PreferenceTrainer:
    """A trainer whose reference is in its rows."""
    return PreferenceTrainer(
        tiny_model(),
        objective,
        arguments(folder, **options),
        train_dataset=rows,
        processing_class=word_tokenizer(),
        reference_rows=name,
    )


def test_losses_are_those_of_a_copy_of_the_model(rows: Dataset, tmp_path: Path) -> None:
    # 21 rows at 8 a step over 4 micro-batches: the third step has micro-batches without rows, and so without anchors
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 6}
    copied = trainer(tmp_path, DPO(), rows, **options)
    made = brought(tmp_path, DPO(), rows, "initial", **options)
    copied.train()
    made.train()
    assert copied.reference is not None
    assert made.reference is None
    keys = ("loss", "rewards/margins", "rewards/accuracies")
    for step, (a, b) in enumerate(zip(history(copied, *keys), history(made, *keys), strict=True)):
        # at the start margins are 0 but for rounding, which decides who counts as right
        assert a[: 2 if step == 0 else 3] == pytest.approx(b[: 2 if step == 0 else 3], abs=2e-5)
    torch.testing.assert_close(weights(copied), weights(made), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "d"), [("initial", 0.0), ("previous", -0.3)])
def test_the_named_log_probs_are_the_ones_that_count(rows: Dataset, tmp_path: Path, name: str, d: float) -> None:
    """IPO's loss at the start is known: with a reference that likes the chosen answer by 0.3 nats more, h = -0.3."""
    both = with_logps(rows, "previous", tiny_model(), shift=0.3)
    made = brought(tmp_path, IPO(tau=0.5, reduction="sum"), both, name, max_steps=1)
    made.train()
    ((loss,),) = history(made, "loss")
    assert loss == pytest.approx((d - 1.0) ** 2, abs=1e-4)


def test_inpo_without_its_columns_is_refused_with_their_names(rows: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="The rows lack chosen_logp_previous, rejected_logp_previous: log-probs"):
        trainer(tmp_path, INPO(), rows)
    with pytest.raises(UserError, match="The rows lack chosen_logp_other, rejected_logp_other"):
        brought(tmp_path, DPO(), rows, "other")
    mixed = WeightedSum(((INPO(tau_ratio=1.0), 1.0), (NLL(), 0.1)))
    assert trainer(tmp_path, mixed, rows).reference is None


def test_what_compares_distributions_needs_a_model(rows: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="compares distributions or hidden states"):
        brought(tmp_path, WeightedSum(((DPO(), 1.0), (KL(), 0.1))), rows, "initial")


def test_weights_of_single_tokens_need_a_model(rows: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        brought(tmp_path, WeightedSum(((NLL(), 0.1), (DPO(ld_alpha=0.5), 1.0))), rows, "initial")
    assert str(caught.value) == (
        "objective.ld_alpha weighs single tokens, but the reference's log-probs come from rows (reference.rows, or "
        "rounds), which have one for each whole answer. Remove ld_alpha, or keep a reference model."
    )
    made = brought(tmp_path, DPO(use_weighting=True), rows, "initial", max_steps=1)  # which reads the policy alone
    made.train()
    ((loss,),) = history(made, "loss")
    assert 0 < loss < 0.5 * math.log(2)


def test_a_gap_in_the_log_probs_is_named(rows: Dataset, tmp_path: Path) -> None:
    values = rows["chosen_logp_initial"][:]
    values[3] = None
    broken = rows.remove_columns("chosen_logp_initial").add_column("chosen_logp_initial", values)
    with pytest.raises(UserError, match=r"Row 3: chosen_logp_initial is no finite number \(1 rows in all\)"):
        brought(tmp_path, DPO(), broken, "initial")


def test_an_infinite_log_prob_is_no_number_either(rows: Dataset, tmp_path: Path) -> None:
    values = rows["rejected_logp_initial"][:]
    values[2], values[4] = -math.inf, math.inf
    broken = rows.remove_columns("rejected_logp_initial").add_column("rejected_logp_initial", values)
    with pytest.raises(UserError, match=r"Row 2: rejected_logp_initial is no finite number \(2 rows in all\)"):
        brought(tmp_path, DPO(), broken, "initial")


def test_preparation_passes_log_probs_on_and_never_cuts_their_answers(rows: Dataset) -> None:
    long = [len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in rows]
    limit = sorted(long)[15]
    kept = [number for number, length in enumerate(long) if length <= limit]
    prepared, account = prepare(rows, word_tokenizer(), BRANCHES, max_length=limit, truncation="keep_start")
    assert prepared["row"][:] == kept
    for branch in BRANCHES:
        name = f"{branch}_logp_initial"
        assert prepared[name][:] == [rows[number][name] for number in kept]
        assert prepared[f"{branch}_ids"][:] == [rows[number][f"{branch}_ids"] for number in kept]
    (reason,) = account.dropped
    assert reason == "it would be cut, and its log-probs are those of whole answers"
    broken = rows.remove_columns("chosen_logp_initial").add_column("chosen_logp_initial", [float("nan")] * len(rows))
    with pytest.raises(UserError, match="chosen_logp_initial is not a finite number"):
        prepare(broken, word_tokenizer(), BRANCHES)


def test_a_batch_without_rows_has_no_anchors_and_no_sums() -> None:
    model = tiny_model()
    attach(model)
    scores = ScoringEngine()(model, pack([], branches=BRANCHES))
    assert scores.anchored("initial").sum("chosen").shape == (0,)
    assert scores.anchor("chosen", "initial").shape == (0,)
