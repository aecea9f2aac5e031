"""Memory that runs out in training: who holds what, what is estimated to fit, and what the run says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from shortage import at_most
from training import arguments, pairs, trainer, word_tokenizer
from zoo import tiny_model

from align import DPO, SimPO
from align.data.batches.lengths import row_lengths
from align.errors import DoesNotFit, UserError
from align.runs.memory import Memory
from align.trainers.arguments import refuse
from align.trainers.memory import Estimate, Holdings, Passed, Watermark, fitting
from align.trainers.preference import PreferenceTrainer

GIB = 2**30
WORDS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 80.00 GiB of which 1.00 GiB is "
    "free. Of the allocated memory 78.00 GiB is allocated by PyTorch, and 1.00 GiB is reserved by PyTorch but "
    "unallocated."
)


@pytest.mark.parametrize(
    ("passed", "room", "estimate"),
    [
        # 8 GiB for 4,000 positions were measured: 90 % of 10 GiB take 4,500
        (Passed(4000, 8 * GIB), 10 * GIB, Estimate(4500, True)),
        # what did not fit shows that it needs more: 12 GiB for 8,000
        (Passed(4000, 2 * GIB), 10 * GIB, Estimate(6000, True)),
        # nothing passed: half of what was tried, or less where what is known already says so
        (Passed(), 20 * GIB, Estimate(4000, False)),
        (Passed(), 6 * GIB, Estimate(3600, False)),
        # the numbers do not explain why it failed: at most what has passed
        (Passed(6000, 8 * GIB), 40 * GIB, Estimate(6000, False)),
        (Passed(6000, 0), 40 * GIB, Estimate(6000, False)),
        (Passed(9000, 0), 40 * GIB, Estimate(4000, False)),
        (Passed(4000, 8 * GIB), -GIB, Estimate(0, True)),
    ],
)
def test_what_fits_by_the_numbers(passed: Passed, room: int, estimate: Estimate) -> None:
    assert fitting(8000, 12 * GIB, room, passed) == estimate


def test_the_watermark_keeps_the_largest_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    read = iter([(10, 0), (10, 50), (12, 60), (12, 90)])  # before and after each that is larger
    monkeypatch.setattr("align.trainers.memory.memory", lambda device: Memory("gpu", 0, 0, *_held(next(read))))
    mark = Watermark()
    for positions in (100, 80, 100, 200, 150):
        mark.begin(torch.device("cpu"), positions)
        mark.end(torch.device("cpu"), positions)
    assert mark.passed == Passed(200, 78)
    assert next(read, None) is None


def _held(pair: tuple[int, int]) -> tuple[int, int, int]:
    return pair[0], 0, pair[1]


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_holdings_are_counted_from_the_live_tensors(tmp_path: Path, optim: str) -> None:
    made = trainer(tmp_path, DPO(), optim=optim, max_steps=1)
    size = sum(p.nbytes for p in made.model.parameters())  # tied weights are one parameter
    buffers = sum(b.nbytes for b in made.model.buffers())
    start = Holdings.of(made)
    assert (start.weights, start.gradients, start.optimizer) == (size + buffers, 0, 0)
    assert start.reference == size + buffers
    made.create_optimizer()
    states = 2 * size if optim == "adamw_torch" else 0
    assert Holdings.of(made).coming == size + states
    made.train()
    done = Holdings.of(made)
    steps = 4 * len(list(made.model.parameters())) if states else 0  # AdamW counts its steps, a float32 each
    assert (done.weights, done.optimizer) == (size + buffers, states + steps)
    assert done.gradients + done.coming == size  # the last step has set them to None
    assert done.fixed == 2 * (size + buffers) + size + states + steps


def test_an_adapter_holds_gradients_of_its_own_weights_alone(tmp_path: Path) -> None:
    made = trainer(tmp_path, DPO(), peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    made.create_optimizer()
    held = Holdings.of(made)
    trained = sum(p.nbytes for p in made.model.parameters() if p.requires_grad)
    assert held.coming == trained < held.weights / 4  # SGD keeps no state
    assert held.reference == 0


def test_a_first_step_that_does_not_fit(tmp_path: Path) -> None:
    made = trainer(tmp_path, DPO())
    sizes = row_lengths(made.train_dataset, made.data_collator)
    with (
        pytest.raises(DoesNotFit) as caught,
        at_most(positions=90, words=WORDS),
    ):  # the probe's rows and every single one fit
        made.train()
    lines = str(caught.value).splitlines()
    tried = int(lines[0].split("micro-batch of ")[1].split()[0])
    assert lines[0] == (
        f"Out of memory in step 1, in a micro-batch of {tried} positions: cpu has 80.0 GiB, 1.0 GiB of it free, and "
        "2.0 GiB more were asked for."
    )
    held = Holdings.of(made)
    mib = [f"{size / 2**20:.1f} MiB" for size in (held.weights, held.reference, held.coming)]
    assert lines[1] == (
        f"Of 78.0 GiB in use: weights {mib[0]}, gradients 0.0 MiB, optimizer state 0.0 MiB, reference {mib[1]}, the "
        f"rest (activations and the program itself) 78.0 GiB; {mib[2]} of gradients and optimizer state are still to "
        "come."
    )
    assert lines[2] == (
        f"Set train.max_tokens_per_microbatch: {tried // 2}, which changes no result (a guess, since no micro-batch of "
        f"that size has passed; the longest example has {max(sizes)}), and go on with --resume."
    )
    rest = f"{(held.coming + held.reference) / 2**20:.1f} MiB"
    assert lines[3:] == [
        "If that is not enough: train.activation_checkpointing: true, which changes no result and computes layers "
        "twice (--resume).",
        f"If that is not enough: reference.store: true, which frees the reference's {mib[1]} in the runs after one "
        "that has computed all its rows.",
        f"If that is not enough: model.lora: {{}} in a new run, which frees most of the {rest} of gradients, optimizer "
        "state and the reference.",
        "There was no complete checkpoint yet: the run starts from its beginning.",
    ]


def test_a_reference_kept_for_own_answers_alone_can_be_given_up(tmp_path: Path) -> None:
    store = tmp_path / "store"
    trainer(tmp_path / "first", DPO(), store_dir=store, max_steps=-1, num_train_epochs=1).train()
    made = trainer(tmp_path / "second", DPO(), store_dir=store, reference_asked=True)
    with pytest.raises(DoesNotFit) as caught, at_most(positions=90, words=WORDS):
        made.train()
    said = (
        f"frees the reference's {Holdings.of(made).reference / 2**20:.1f} MiB: its rows are all stored, and it is kept"
    )
    cure = f"watch.probe_answers: 0 in a new run, which {said} for the policy's own answers alone."
    assert f"If that is not enough: {cure}" in str(caught.value).splitlines()
    without = trainer(tmp_path / "third", DPO(), store_dir=store)
    assert without.reference.model is None
    assert Holdings.of(without).reference == 0


def test_where_no_smaller_micro_batch_is_possible_another_change_comes_first(tmp_path: Path) -> None:
    made = trainer(tmp_path, SimPO(), per_device_train_batch_size=1)
    with pytest.raises(DoesNotFit) as caught, at_most(positions=22, words=WORDS):
        made.train()
    cures = [line for line in str(caught.value).splitlines() if "Set " in line or "enough" in line]
    assert cures[0].startswith("Set train.activation_checkpointing: true, which changes no result")
    assert cures[1].startswith("If that is not enough: model.lora: {} in a new run")
    assert len(cures) == 2  # no reference


def test_a_stream_gets_a_smaller_batch_with_more_accumulation(tmp_path: Path) -> None:
    made = PreferenceTrainer(
        tiny_model(),
        SimPO(),
        arguments(tmp_path, gradient_accumulation_steps=2),
        train_dataset=pairs(20).to_iterable_dataset(),
        processing_class=word_tokenizer(),
    )
    with pytest.raises(DoesNotFit) as caught, at_most(positions=90, words=WORDS):
        made.train()
    assert (
        "Set train.per_device_train_batch_size: 4 with train.gradient_accumulation_steps: 4, which changes no result."
    ) in str(caught.value)


def test_an_evaluation_that_does_not_fit(tmp_path: Path) -> None:
    made = trainer(tmp_path, SimPO(), eval_dataset=pairs(8, seed=1), per_device_eval_batch_size=8)
    with pytest.raises(DoesNotFit) as caught, at_most(positions=90, words=WORDS):
        made.evaluate()
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("Out of memory in an evaluation at step 0, in a micro-batch of ")
    assert lines[2] == "Set train.per_device_eval_batch_size: 4, which changes no result."


def test_an_optimizer_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path, SimPO())
    made.create_optimizer()
    made.optimizer.register_step_pre_hook(lambda *_: torch.empty(2**50))  # a real failure of the CPU's allocator
    with pytest.raises(DoesNotFit) as caught:
        made.train()
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("Out of memory at step 0, outside of micro-batches: cpu has ")
    assert lines[0].endswith("4,194,304.0 GiB more were asked for.")
    assert lines[2].startswith("Set train.activation_checkpointing: true")


def test_transformers_own_search_for_a_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        refuse(arguments(tmp_path, auto_find_batch_size=True))
    assert str(caught.value) == (
        "auto_find_batch_size would restart the run with another plan: leave it out. Where memory runs out the run "
        "says which batch is likely to fit."
    )
