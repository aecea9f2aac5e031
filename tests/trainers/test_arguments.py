"""Arguments that would end in a traceback later, refused with a sentence before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from training import arguments, pairs, trainer
from transformers import TrainingArguments
from trl import DPOConfig, SFTConfig

from align import DPO
from align.compat import checkpoints_layers, training_config
from align.errors import UserError
from align.objectives.base import Objective, Term, Terms
from align.trainers.arguments import refuse, trl_arguments

SCHEDULE = "What it needs goes into train.lr_scheduler_kwargs, a mapping such as {min_lr_rate: 0.1} or {num_decay_steps"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"lr_scheduler_type": "warmup_stable_decay"},
            "warmup_stable_decay cannot be made (get_wsd_schedule() ",
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            "cosine_with_min_lr cannot be made (One of min_lr or min_lr",
        ),
        ({"lr_scheduler_type": "cosine_warmup_with_min_lr"}, "cosine_warmup_with_min_lr cannot be made (One of min_lr"),
        (
            {"lr_scheduler_type": "polynomial", "learning_rate": 1e-8},
            "polynomial cannot be made (lr_end (1e-07) must",
        ),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"min": 0}}, "cosine cannot be made (get_cosine_sch"),
    ],
)
def test_schedules_that_cannot_be_made(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        refuse(arguments(tmp_path, **settings))
    assert str(caught.value).startswith(f"train.lr_scheduler_type: {sentence}")
    assert SCHEDULE in str(caught.value)


def test_a_schedule_with_what_it_needs(tmp_path: Path) -> None:
    refuse(arguments(tmp_path, lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs={"num_decay_steps": 2}))
    refuse(arguments(tmp_path, lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.1}))


@pytest.mark.parametrize("name", ["galore_adamw", "lomo", "grokadamw", "adamw_anyprecision", "schedule_free_adamw"])
def test_optimizers_that_are_not_installed(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"^train\.optim: {name} cannot be used here \(.*[Ii]nstall.*\)\.$"):
        refuse(arguments(tmp_path, optim=name))


def test_activation_offloading_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^train\.activation_offloading moves activations to the CPU, and this run"):
        refuse(arguments(tmp_path, activation_offloading=True))


def test_fewer_rows_than_a_step_that_must_be_whole(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        trainer(tmp_path, DPO(), pairs(20), dataloader_drop_last=True, gradient_accumulation_steps=3)
    assert str(caught.value) == (
        "train.dataloader_drop_last: there are 20 rows and a step takes 24, so that no step is complete and all rows "
        "would be dropped: leave it out, or lower train.per_device_train_batch_size."
    )
    trainer(tmp_path, DPO(), pairs(24), dataloader_drop_last=True, gradient_accumulation_steps=3)


@pytest.mark.parametrize("sets", [pairs(4), {"a": pairs(4)}], ids=["one set", "named sets"])
def test_a_best_metric_that_no_evaluation_yields(tmp_path: Path, sets: Any) -> None:
    start = "a_" if isinstance(sets, dict) else ""
    settings = {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": sets, "max_steps": 1}
    made = trainer(tmp_path, DPO(), metric_for_best_model="eval_acc", **settings)
    with pytest.raises(UserError) as caught:
        made.train()
    names = ("loss", "logps/chosen", "logps/rejected", *(f"rewards/{k}" for k in ("accuracies", "chosen", "margins")))
    listed = ", ".join(start + name for name in (*names, "rewards/rejected"))
    assert str(caught.value) == (f"train.metric_for_best_model: no evaluation yields 'eval_acc'; it yields {listed}.")
    assert made.state.global_step == 0
    made = trainer(tmp_path, DPO(), metric_for_best_model=f"eval_{start}rewards/margins", **settings)
    made.train()
    assert made.state.best_metric == made.state.log_history[-2][f"eval_{start}rewards/margins"]


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointing_goes_by_the_older_name_and_the_newer(tmp_path: Path, name: str, on: bool) -> None:
    """transformers 5.23 renamed it; either is understood before and since."""
    kwargs = {name: on, f"{name}_kwargs": {"use_reentrant": on}}
    args = training_config(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", **kwargs)
    assert checkpoints_layers(args) is on
    newer = hasattr(args, "activation_checkpointing_kwargs")
    found = args.activation_checkpointing_kwargs if newer else args.gradient_checkpointing_kwargs
    assert found == {"use_reentrant": on}


@dataclass(frozen=True)
class Bare(Objective):
    """An objective of a caller who read only half of the page."""

    def __call__(self, policy: Any, reference: Any) -> Any:
        return -policy.sum("chosen").mean()


def test_an_objective_that_returns_a_tensor(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        trainer(tmp_path, Bare(), max_steps=1).train()
    assert str(caught.value) == (
        "Bare returned a Tensor; an objective returns align.objectives.base.Terms: Terms((Term(losses),)) with the "
        "loss of each example, shape [examples]."
    )


@dataclass(frozen=True)
class Averaged(Objective):
    """The mean over the micro-batch, which the trainer would divide once more."""

    unit: str = "examples"

    def __call__(self, policy: Any, reference: Any) -> Terms:
        losses = -policy.sum("chosen")
        return Terms((Term(losses.mean() if self.unit == "examples" else losses, self.unit),))


def test_an_objective_that_returns_a_mean_or_a_unit_that_it_does_not_name(tmp_path: Path) -> None:
    for objective, sentence in (
        (
            Averaged(),
            "Averaged returned one number as the loss of all examples, and that would be divided by their number in "
            "the step once more. Return the loss of each, shape [examples], without a mean.",
        ),
        (
            Averaged("tokens:chosen"),
            "Averaged returned a term whose unit is 'tokens:chosen', which its property units does not name: "
            "'examples'. Add it there.",
        ),
    ):
        with pytest.raises(UserError) as caught:
            trainer(tmp_path, objective, max_steps=1).train()
        assert str(caught.value) == sentence


def test_the_configuration_of_another_trainer(tmp_path: Path) -> None:
    config = DPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False)
    with pytest.raises(UserError, match=r"^args is a DPOConfig, which holds a loss of its own\. Pass transformers\."):
        trl_arguments(config, "any")


def test_a_warm_up_that_leaves_no_step(tmp_path: Path) -> None:
    short = {"lr_scheduler_type": "polynomial", "max_steps": 1, "warmup_steps": 1, "learning_rate": 1e-3}
    with pytest.raises(UserError) as caught:
        refuse(arguments(tmp_path, **short))
    assert str(caught.value) == (
        "train.lr_scheduler_type: polynomial has no step left behind a warm-up of 1 of 1 steps: lower "
        "train.warmup_steps, or train longer."
    )
    refuse(arguments(tmp_path, **{**short, "max_steps": 2}))


def test_the_trainer_looks_at_no_loss_between_log_steps(tmp_path: Path) -> None:
    given = SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False)
    plain = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    for args in (arguments(tmp_path), trl_arguments(given, "any"), trl_arguments(plain, "any")):
        assert args.logging_nan_inf_filter is False
    assert given.logging_nan_inf_filter is True, "the caller's own stay as they are"
