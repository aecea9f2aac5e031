"""How much a model is given at a time: what a sequence takes, batches that grow, one halving, the same draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from shortage import at_most
from tiny import tiny_tokenizer
from zoo import ARCHITECTURES, tiny_model, token_ids

from align.engine.scoring import ScoringEngine, attach
from align.errors import DoesNotFit
from align.models.batches import BatchSize, pack_positions, sequence_bytes
from align.models.subject import Subject
from align.recipe.sampling import Sampling
from align.runs.memory import Memory
from align.sampling.sampler import Sampler

CPU = torch.device("cpu")
GIB = 2**30
CURE = "Set sampling.batch_size: {}."


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the CPU count its memory; ``gpu(free, peaks)`` says what is free, and the peak at each reading in turn."""

    def set_up(free: int, peaks: Iterator[int]) -> None:
        monkeypatch.setattr("align.models.batches._counts", lambda device: True)
        monkeypatch.setattr(
            "align.models.batches.memory", lambda device: Memory("gpu", 8 * GIB, free, 1000, 0, next(peaks))
        )

    return set_up


def sizes_of(size: BatchSize, model: Any, count: int) -> list[int]:
    """The sizes of the batches that so many rows of 10 + 22 tokens are drawn in."""
    seen: list[int] = []

    def draw(rows: Sequence[int]) -> Sequence[int]:
        seen.append(len(rows))
        return [-row for row in rows]

    found = list(size.batches(model, CPU, range(count), lambda row: (10, 22), draw))
    assert found == [(row, -row) for row in range(count)]
    return seen


# ---- what a sequence takes


def test_the_bytes_of_a_sequence_in_numbers() -> None:
    model = tiny_model("llama")  # 2 layers, 2 key heads of 8, hidden 32, inner 48, vocabulary 97, float32
    cache = 2 * 30 * 2 * 2 * 8 * 4
    assert sequence_bytes(model, 20, 10) == 2 * cache + 20 * (8 * 32 + 3 * 48) * 4 + 64 * 97
    assert sequence_bytes(model.bfloat16(), 20, 10) == cache + 20 * (8 * 32 + 3 * 48) * 2 + 64 * 97


def test_windows_end_what_a_layer_keeps() -> None:
    one, all_of_it = (sequence_bytes(tiny_model(n), 20, 1000) for n in ("gemma3", "llama"))
    wide = sequence_bytes(tiny_model("gemma3", sliding_window=2000), 20, 1000)
    per_layer = 2 * 2 * 2 * 8 * 4  # twice keys and values
    assert wide - one == (1020 - 5) * per_layer
    assert all_of_it > one


@pytest.mark.parametrize("name", [*ARCHITECTURES, "qwen3_next"])
@pytest.mark.filterwarnings("ignore:.*falling back")
def test_a_real_cache_is_not_larger(name: str) -> None:
    model = tiny_model(name, vocab_size=97).eval()
    ids = torch.tensor([token_ids(0)(60)] * 3)
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    states = [v for layer in cache.layers for v in vars(layer).values()]
    held = sum(t.nbytes for v in states for t in (v.values() if isinstance(v, dict) else [v]) if torch.is_tensor(t))
    assert 0 < held / 3 < sequence_bytes(model, 60, 0)


def test_packs_follow_the_device_and_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")  # 1,600 bytes a position
    assert pack_positions(model, CPU) == 4096
    monkeypatch.setattr("align.models.batches._counts", lambda device: True)
    for total, expected in ((80 * GIB, 16384), (160_000_000, 10_000), (16_000_000, 4096)):
        monkeypatch.setattr("align.models.batches.memory", lambda device, t=total: Memory("gpu", t, 0, 0))
        assert pack_positions(model, CPU) == expected


# ---- growth


def test_batches_double_while_the_estimate_fits(gpu: Any) -> None:
    model = tiny_model("llama")
    each = sequence_bytes(model, 10, 22)
    gpu(int(each * 256 / 0.7) + 1, iter(lambda: 5000, None))
    assert sizes_of(BatchSize(None, "completions", CURE, print), model, 1000) == [32, 64, 128, 256, 256, 256, 8]
    gpu(int(each * 256 / 0.7) - 1000, iter(lambda: 5000, None))
    assert sizes_of(BatchSize(None, "completions", CURE, print), model, 400) == [32, 64, 128, 128, 48]


def test_what_a_batch_took_counts_where_it_was_more(gpu: Any) -> None:
    model = tiny_model("llama")
    each = sequence_bytes(model, 10, 22)
    # the first batch took three times the estimate: 64 fit, 128 do not
    first, second = (1000 + rows * 3 * each for rows in (32, 64))
    gpu(int(each * 256 / 0.7), iter([0, first, first, *[second] * 20]))
    assert sizes_of(BatchSize(None, "completions", CURE, print), model, 300) == [32, 64, 64, 64, 64, 12]


def test_a_number_a_cpu_and_processes_in_step_do_not_grow(gpu: Any) -> None:
    model = tiny_model("llama")
    assert sizes_of(BatchSize(None, "completions", CURE, print), model, 100) == [32, 32, 32, 4]
    gpu(8 * GIB, iter(lambda: 0, None))
    assert sizes_of(BatchSize(40, "completions", CURE, print), model, 100) == [40, 40, 20]
    assert sizes_of(BatchSize(None, "completions", CURE, print, in_step=True), model, 100) == [32, 32, 32, 4]


# ---- memory that runs out


def sampled(said: list[str], **settings: Any) -> Any:
    tokenizer, ids = tiny_tokenizer(), token_ids(3)
    prompts = [ids(n) for n in (9, 1, 14, 3, 20, 2, 1, 7, 5, 6)]
    model = tiny_model("llama", vocab_size=len(tokenizer))
    sampler = Sampler(Sampling(samples=4, max_new_tokens=6, **settings), tokenizer, 5, say=said.append)
    with torch.no_grad():
        return sampler(model, prompts, range(10), 1, device=CPU)


def test_one_halving_is_said_and_changes_no_sample() -> None:
    said: list[str] = []
    expected = sampled(said)
    assert said == []
    with at_most(rows=16):
        assert sampled(said) == expected
    assert said == [
        "completions: 32 at a time do not fit into memory; this batch is drawn again, and from here on 16 at a time"
    ]


def test_the_second_time_ends_it() -> None:
    said: list[str] = []
    with pytest.raises(DoesNotFit) as caught, at_most(rows=15):
        sampled(said)
    first, cure = str(caught.value).splitlines()
    assert first.startswith("Out of memory while 16 completions were drawn at a time: cpu has ")
    assert cure == (
        "Set sampling.batch_size: 8, or lower sampling.max_new_tokens. What was drawn and written by then is kept."
    )
    assert len(said) == 1


def test_a_number_is_never_changed() -> None:
    said: list[str] = []
    refused = r"^Out of memory while 20 completions were .*\nSet sampling\.batch_size: 10, "
    with at_most(rows=16):
        with pytest.raises(DoesNotFit, match=refused):
            sampled(said, batch_size=20)
        assert len(sampled(said, batch_size=16)) == 10
    assert said == []


def test_answers_of_an_evaluation_likewise() -> None:
    tokenizer, ids = tiny_tokenizer(), token_ids(3)
    prompts = [ids(1 + n % 7) for n in range(40)]
    model = tiny_model("llama", vocab_size=len(tokenizer))
    attach(model)
    said: list[str] = []
    subject = Subject(model, tokenizer, ScoringEngine(), say=said.append)
    expected = subject.generate(prompts, 5)
    with at_most(rows=16):
        assert subject.generate(prompts, 5) == expected
    assert said == [
        "answers: 32 at a time do not fit into memory; this batch is drawn again, and from here on 16 at a time"
    ]
    with (
        pytest.raises(DoesNotFit, match=r"^Out of memory while 16 answers were drawn at a time: cpu has"),
        at_most(rows=1),
    ):
        subject.generate(prompts, 5)
    with (
        pytest.raises(DoesNotFit, match=r"^Out of memory while rows were scored: cpu has .*\nScore where more memory"),
        at_most(rows=0),
    ):
        subject.score([[3, 4]], [{"a": [5]}])
