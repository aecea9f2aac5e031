"""What must not change a run: accumulation, packing, batch sizes, an interruption. And what must end it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset
from training import arguments, history, pairs, trainer, weights, word_tokenizer
from transformers import EarlyStoppingCallback, TrainerCallback
from zoo import own_rows, small, tiny_model

from align.data.batches.collator import TreeCollator
from align.engine.scores import Scores
from align.errors import Stopped, UserError
from align.objectives import (
    DPO,
    FLAT,
    IDK,
    IPO,
    KL,
    KTO,
    NLL,
    NPO,
    OBJECTIVES,
    RPO,
    WGA,
    FlexDPO,
    Hinge,
    HyPO,
    Objective,
    SampledKL,
    SimNPO,
    SimPO,
    SuperHF,
    Term,
    Terms,
    WeightedSum,
)
from align.objectives.pairwise import Pairwise
from align.trainers.preference import PreferenceTrainer

OBJECTIVES_AND_SUMS: dict[str, Objective] = {
    **{name: small(name) for name in OBJECTIVES if not small(name).coupled},
    "calibrated": DPO(0.3, calibrate=True),
    "flex-auto": WeightedSum(((NLL(), 0.5), (FlexDPO(0.3, "auto"), 1.0))),
    "per-pair": WeightedSum(((NLL(), 0.5), (RPO(calibrate="per_pair"), 1.0))),
    "kto-apo": KTO("apo_zero_unpaired"),
    "ipo-sum": IPO(reduction="sum"),
    "nll-seq_mean": NLL(norm="seq_mean"),
    # alone it is at its minimum from the start
    "kl": WeightedSum(((NLL(), 1.0), (KL(), 2.0))),
    "kl-reverse": WeightedSum(((NLL(), 1.0), (KL(branch="rejected", direction="reverse", norm="sum"), 0.5))),
    "hypo": HyPO(kl_weight=0.5, baseline="leave_one_out"),
    "sampled_kl": WeightedSum(((DPO(), 1.0), (SampledKL("k2"), 0.5))),  # alone it has no slope at the start
    "hypo-to-go": HyPO(kl_weight=0.5, estimator="reward_to_go"),
    "superhf": SuperHF(kl_weight=2.0),
    "superhf-released": SuperHF(released=True),
    "rpo-handbook": RPO("handbook", beta=0.3, eta=0.5),
    "simnpo": SimNPO(beta=0.3),  # a random model is so sure of nothing that the default has no slope there
    "flat": WeightedSum(((FLAT("jeffrey"), 30.0),)),  # nor are the probabilities more than some hundredths
    # shared, own and whole-text trees together, and units of several kinds
    "npo-kl-all": WeightedSum(
        ((NPO(0.5), 1.0), (KL(branch="retain", positions="all"), 2.0), (IDK(), 0.5), (WGA(), 0.3))
    ),
    "rmu-nll": WeightedSum(((small("rmu"), 1.0), (NLL(branch="alternate"), 0.5))),
    "sum": WeightedSum(((DPO(0.3), 1.0), (NLL(), 0.5), (KL(direction="reverse"), 2.0))),
}
# 20 rows and 8 a step: the last step is ragged. Tokens of a row are at most 33.
WAYS: dict[str, dict[str, Any]] = {
    "2x4": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "budget": {"max_tokens_per_microbatch": 34},
}


@pytest.mark.parametrize("name", OBJECTIVES_AND_SUMS)
def test_accumulation_and_packing_change_nothing(name: str, tmp_path: Path) -> None:
    objective = OBJECTIVES_AND_SUMS[name]
    # steep enough to move, small enough that rounding does not grow
    options = {"learning_rate": 0.01, "max_steps": 3}
    whole = trainer(tmp_path, objective, **options)
    start = weights(whole).clone()
    whole.train()
    moved = (weights(whole) - start).abs().max().item()
    assert moved > 1e-4
    for way, changes in WAYS.items():
        if way == "budget" and "chosen_all" in objective.branches:  # chosen answers twice: 44 tokens
            changes = {"max_tokens_per_microbatch": 45}
        other = trainer(tmp_path, objective, **options, **changes)
        other.train()
        if way == "budget":
            assert other.args.gradient_accumulation_steps > 2
        for expected, found in zip(
            history(whole, "loss", "grad_norm"), history(other, "loss", "grad_norm"), strict=True
        ):
            assert found == pytest.approx(expected, rel=2e-5, abs=1e-6), way
        assert (weights(other) - weights(whole)).abs().max().item() < 2e-5 * max(1.0, moved), way


def test_logged_metrics_are_means_over_pairs(tmp_path: Path) -> None:
    runs = [
        trainer(tmp_path, DPO(0.3), max_steps=3, logging_steps=3, **changes)
        for changes in ({}, WAYS["2x4"], WAYS["budget"])
    ]
    logged = []
    for run in runs:
        run.train()
        logged.append({k: v for k, v in run.state.log_history[0].items() if "/" in k})
    assert logged[0].keys() == logged[1].keys() == logged[2].keys()
    assert logged[1] == pytest.approx(logged[0], rel=1e-4, abs=1e-5)
    assert logged[2] == pytest.approx(logged[0], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["dpo", "sum", "simpo", "nll", "kl"])
def test_evaluation_does_not_depend_on_its_batch_size(name: str, tmp_path: Path) -> None:
    results = []
    for size in (1, 3, 16):
        made = trainer(
            tmp_path, OBJECTIVES_AND_SUMS[name], eval_dataset=pairs(7, seed=5), per_device_eval_batch_size=size,
            model=tiny_model(seed=1),
        )  # fmt: skip
        found = made.evaluate()
        results.append({k: v for k, v in found.items() if k == "eval_loss" or "/" in k})
    assert results[0]["eval_loss"] > 0
    assert results[1] == pytest.approx(results[0], rel=1e-5, abs=1e-6)
    assert results[2] == pytest.approx(results[0], rel=1e-5, abs=1e-6)


def test_evaluation_by_hand(tmp_path: Path) -> None:
    rows = pairs(5, seed=6)
    objective = WeightedSum(((DPO(0.3), 1.0), (NLL(), 0.5)))
    model = tiny_model()
    made = trainer(tmp_path, objective, eval_dataset={"small": rows, "large": pairs(9)}, model=model, max_steps=2)
    batch = TreeCollator(("chosen", "rejected"))([dict(r) for r in rows])["tree"]
    reference = torch.stack([r.sum() for r in own_rows(model, batch)]).view(5, 2)
    made.train()
    found = made.evaluate()
    policy = torch.stack([r.sum() for r in own_rows(made.model, batch)]).view(5, 2)
    margin = 0.3 * ((policy - reference)[:, 0] - (policy - reference)[:, 1])
    nll = -policy[:, 0].sum() / sum(len(r["chosen_ids"]) for r in rows)
    dpo = torch.log1p(torch.exp(-margin)).mean()
    assert margin.abs().max() > 0.01
    assert found["eval_small_loss"] == pytest.approx((dpo + 0.5 * nll).item(), rel=1e-5)
    assert found["eval_small_nll/chosen"] == pytest.approx(nll.item(), rel=1e-5)
    assert found["eval_small_rewards/margins"] == pytest.approx(margin.mean().item(), rel=1e-3)
    assert found["eval_small_rewards/accuracies"] == pytest.approx((margin > 0).double().mean().item())
    assert "eval_large_loss" in found


def test_evaluation_between_steps_leaves_training_alone(tmp_path: Path) -> None:
    plain = trainer(tmp_path, DPO(0.3))
    with_evaluation = trainer(
        tmp_path, DPO(0.3), eval_dataset=pairs(6, seed=2), eval_strategy="steps", eval_steps=1,
        per_device_train_batch_size=4, gradient_accumulation_steps=2,
    )  # fmt: skip
    other = trainer(tmp_path, DPO(0.3), per_device_train_batch_size=4, gradient_accumulation_steps=2)
    for run in (plain, with_evaluation, other):
        run.train()
    assert history(with_evaluation, "loss", "rewards/margins") == history(other, "loss", "rewards/margins")
    assert torch.equal(weights(with_evaluation), weights(other))


@pytest.mark.parametrize(
    ("adapter", "objective"),
    [(False, DPO(0.3)), (True, DPO(0.3)), (False, DPO(0.3, calibrate=True)), (False, FlexDPO(0.3, "auto"))],
    ids=["full", "lora", "calibrated", "flex-auto"],
)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(adapter: bool, objective: Pairwise, tmp_path: Path) -> None:
    from peft import LoraConfig

    options: dict[str, Any] = {
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 8,  # 20 rows and 4 a step: step 5 ends an epoch
        "save_strategy": "steps",
        "save_steps": 3,
        "save_only_model": False,
    }
    if adapter:
        options["peft_config"] = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    whole = trainer(tmp_path / "whole", objective, **options)
    whole.train()
    if objective.calibrate:  # means that a resumed run must go on with
        mean, wanted = 0.0, [row[0] for row in history(whole, "calibration/log_wanted")]
        for i, (factor,) in enumerate(history(whole, "calibration/factor")):
            assert factor == pytest.approx(math.exp(mean / 2), rel=1e-6, abs=0)  # DPO's own ratio is 1
            mean = 0.98 * mean + 0.02 * wanted[i] if i else wanted[0]
        assert abs(mean) > 0.01
    if isinstance(objective, FlexDPO):  # likewise: it changes with every step, and is nowhere at its bounds
        ratios = [beta / 0.3 for (beta,) in history(whole, "flex/beta_minus")]
        assert ratios[0] == pytest.approx(0.8, rel=1e-6, abs=0)
        assert len(set(ratios)) == 8
        assert all(0.1 < ratio < 1 for ratio in ratios)
    for step in (3, 6):
        resumed = trainer(tmp_path / f"from-{step}", objective, **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert resumed.state.global_step == 8
        assert torch.equal(weights(resumed), weights(whole))
        keys = ("loss", "grad_norm", "rewards/margins", "rewards/rejected", "learning_rate")
        assert history(resumed, *keys) == history(whole, *keys)


def test_the_load_balancing_loss_of_experts_is_added_once(tmp_path: Path) -> None:
    def first_step(coefficient: float, **changes: Any) -> list[float]:
        model = tiny_model("qwen3_moe", router_aux_loss_coef=coefficient)
        made = trainer(tmp_path, DPO(0.3), model=model, max_steps=1, **changes)
        made.train()
        return history(made, "loss", "grad_norm")[0]

    alone, _ = first_step(0.0)
    assert alone == pytest.approx(math.log(2), rel=1e-6)
    once, twice = first_step(0.1)[0] - alone, first_step(0.2)[0] - alone
    # 4 experts and 2 for each token: perfectly even routing gives 2
    assert 0.1 * 1.5 < once < 0.1 * 4
    assert twice == pytest.approx(2 * once, rel=1e-4)
    # each micro-batch counts with its share of the examples
    assert first_step(0.1, **WAYS["2x4"])[0] - alone == pytest.approx(once, rel=0.2)


def test_early_stopping_and_the_best_checkpoint(tmp_path: Path) -> None:
    made = trainer(
        tmp_path,
        NLL(),
        pairs(16),
        eval_dataset=pairs(8, seed=9),  # random answers to other prompts: learning by heart soon hurts
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        optim="adamw_torch",
        learning_rate=0.02,
        max_steps=60,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=3,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
    )
    made.train()
    losses = {e["step"]: e["eval_loss"] for e in made.state.log_history if "eval_loss" in e}
    best = min(losses, key=losses.__getitem__)
    assert made.state.global_step == best + 4 < 60
    assert made.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert made.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-6)


@dataclass(frozen=True)
class BreaksAtStep(DPO):
    """A loss that is not a number from its nth call on."""

    calls: ClassVar[list[int]] = []
    at: int = 3

    def __call__(self, policy: Scores, reference: Scores | None) -> Terms:
        terms = super().__call__(policy, reference)
        self.calls.append(1)
        broken = math.nan if len(self.calls) >= self.at else 1.0
        return Terms((Term(terms.losses[0].losses * broken),), terms.metrics)


class ChecksAtLog(TrainerCallback):
    """What a run does at every line of its log."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.lines = 0

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.check_finite()
        self.lines += 1


def test_a_loss_that_is_not_a_number_ends_the_run(tmp_path: Path) -> None:
    BreaksAtStep.calls.clear()
    watch = ChecksAtLog()
    made = trainer(tmp_path, BreaksAtStep(), callbacks=[watch], max_steps=6)
    watch.trainer = made
    with pytest.raises(Stopped, match="loss was not finite at or before step 3") as caught:
        made.train()
    assert watch.lines == 2
    assert caught.value.exit_code == 4
    made.check_finite()  # the flag is read once
    with pytest.raises(Stopped, match="weight"):
        made.check_finite(weights=True)  # but the step had been taken, and no such weights may be saved


def test_finite_runs_pass_the_check(tmp_path: Path) -> None:
    made = trainer(tmp_path, DPO())
    made.check_finite(weights=True)
    made.train()
    made.check_finite(weights=True)


def test_bfloat16_autocast_trains_models_that_scale_their_logits(tmp_path: Path) -> None:
    for name in ("granite", "gemma2"):
        made = trainer(tmp_path, DPO(), model=tiny_model(name), bf16=True, max_steps=1)
        made.train()
        assert made.engine.mode == "tree"
        assert history(made, "loss")[0][0] == pytest.approx(math.log(2), abs=0.02)


def test_a_hybrid_falls_back_aloud_and_trains_the_same(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ways = ({}, WAYS["2x4"])
    runs = [trainer(tmp_path, DPO(0.3), model=tiny_model("qwen3_next"), learning_rate=0.005, **w) for w in ways]
    for run in runs:
        run.train()
        assert run.engine.mode == "padded"
        assert "FALLING BACK to padded rows" in capsys.readouterr().out
    first, second = (history(run, "loss") for run in runs)
    assert [v for (v,) in second] == pytest.approx([v for (v,) in first], rel=1e-4)


def test_dropout_of_the_model_is_switched_off(tmp_path: Path) -> None:
    model = tiny_model("gpt2", resid_pdrop=0.3, attn_pdrop=0.3, embd_pdrop=0.3)
    made = trainer(tmp_path, DPO(0.3), model=model, max_steps=1)
    made.train()
    assert made.start_gap == 0.0
    assert history(made, "loss")[0][0] == pytest.approx(math.log(2), rel=1e-6)


def test_a_reference_free_objective_keeps_no_reference(tmp_path: Path) -> None:
    made = trainer(tmp_path, SimPO())
    assert made.reference is None
    made.train()


def test_streams_give_the_run_of_the_same_rows_in_the_same_order(tmp_path: Path) -> None:
    rows = pairs(20)
    mapped = trainer(tmp_path, DPO(0.3), rows, order=lambda epoch: range(20), **WAYS["2x4"])
    streamed = trainer(tmp_path, DPO(0.3), rows.to_iterable_dataset(), **WAYS["2x4"])
    for run in (mapped, streamed):
        run.train()
    assert history(streamed, "loss", "grad_norm") == history(mapped, "loss", "grad_norm")


def test_wrong_calls_are_refused_with_a_sentence(tmp_path: Path) -> None:
    from trl import DPOConfig

    from align.trainers.preference import PreferenceTrainer

    with pytest.raises(UserError, match=r"use AlignTrainer, or set the objective's branch"):
        trainer(tmp_path, NLL(branch="completion"))
    with pytest.raises(UserError, match=r"DPOConfig, which holds a loss of its own.*objective=DPO"):
        PreferenceTrainer(
            tiny_model(), Hinge(), DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False), train_dataset=pairs(4)
        )
    long = Dataset.from_list([*pairs(3), {**pairs(1)[0], "chosen_ids": [5] * 40}])
    with pytest.raises(UserError, match=r"The longest row of the training data has .*max_tokens_per_microbatch = 20"):
        trainer(tmp_path, DPO(), long, max_tokens_per_microbatch=20)


def test_arguments_may_be_used_for_a_second_trainer(tmp_path: Path) -> None:
    given = arguments(tmp_path, max_steps=1)
    sizes = []
    for _ in range(3):
        made = PreferenceTrainer(
            tiny_model(),
            DPO(),
            given,
            train_dataset=pairs(20),
            processing_class=word_tokenizer(),
            max_tokens_per_microbatch=40,
        )
        sizes.append(made.step_examples)
    assert sizes == [8, 8, 8]
    assert given.gradient_accumulation_steps == 1


@pytest.mark.parametrize(
    ("objective", "rows", "says"),
    [("dpo", None, "it must be a value such as align.DPO"), (DPO(), [{"prompt": "a"}], "Dataset.from_list")],
)
def test_wrong_kinds_of_arguments_get_a_sentence(tmp_path: Path, objective: Any, rows: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        PreferenceTrainer(tiny_model(), objective, arguments(tmp_path), train_dataset=rows or pairs(4))


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    made = trainer(tmp_path, DPO())
    with pytest.raises(Stopped, match="gradient norm was not finite"):
        made.log({"loss": 0.5, "grad_norm": float("nan")})


def test_every_rate_of_noise_is_switched_off() -> None:
    from align.trainers.policy import switch_dropout_off

    class Router(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router_jitter_noise, self.layerdrop, self.attn_pdrop, self.keeps = 0.1, 0.2, 0.3, 0.4

    model = Router()
    assert switch_dropout_off(model) == 3
    assert (model.router_jitter_noise, model.layerdrop, model.attn_pdrop, model.keeps) == (0.0, 0.0, 0.0, 0.4)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rows_whose_positions_depend_on_their_neighbours_are_refused(tmp_path: Path, kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 8}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    model = tiny_model(rope_parameters=rope)
    with pytest.raises(UserError, match="beyond 8 this model's rotary embedding"):
        trainer(tmp_path, DPO(), model=model)


def test_an_adapter_that_takes_from_the_weights_is_not_switched_off(tmp_path: Path) -> None:
    from peft import LoraConfig

    pissa = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa")
    with pytest.raises(UserError, match="init_lora_weights='pissa' changes the model's own weights"):
        trainer(tmp_path / "a", DPO(), peft_config=pissa, reference="adapter_off")
    made = trainer(tmp_path / "b", DPO(), peft_config=pissa, max_steps=1)
    made.train()
    assert made.reference.strategy == "copy"
    assert made.start_gap < 1e-4
