"""The kernel is chosen by what it can do, whether it is right, and how long it takes."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from layouts import LAYOUT
from torch import Tensor
from torch.nn import attention as torch_attention
from zoo import tiny_model, tree_batch

from align.engine import probe as probe_module
from align.engine.kernels import choose as module
from align.engine.kernels.choose import GROUPED, Call, choose, recorded
from align.engine.kernels.kernel import UnsupportedAttention
from align.engine.kernels.segments import segments
from align.engine.probe import probe
from align.engine.scoring import ScoringEngine, attach

CPU = torch.device("cpu")
CALL = Call(4, 2, 8, 8, torch.float32, 0.3, None, None)


def too_large(q: Tensor, k: Tensor, v: Tensor, layout: Any, **asked: Any) -> Tensor:
    return segments(q, k, v, layout, **asked) * 1.01


def no_gradient_of_keys(q: Tensor, k: Tensor, v: Tensor, layout: Any, **asked: Any) -> Tensor:
    return segments(q, k.detach() + 0 * k, v, layout, **asked)


def not_a_number(q: Tensor, k: Tensor, v: Tensor, layout: Any, **asked: Any) -> Tensor:
    return segments(q, k, v, layout, **asked) * float("nan")


def unable(*args: Any, **asked: Any) -> Tensor:
    raise UnsupportedAttention("it knows no window.\nsecond line")


def absent(*args: Any, **asked: Any) -> Tensor:
    raise ModuleNotFoundError("No module named 'flash_attn_interface'")


def slow(*args: Any, **asked: Any) -> Tensor:
    time.sleep(0.2)
    return segments(*args, **asked)


@pytest.fixture(autouse=True)
def one_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_flash_names", lambda: [None])
    monkeypatch.setattr(module, "_RUNS", 1)
    monkeypatch.setattr(module, "_TIMED", LAYOUT)


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (too_large, "its result differs from float64 by 1.0e-02"),
        (not_a_number, "its result differs from float64 by nan"),
        (no_gradient_of_keys, "the gradient of its key differs from float64 by 1.0e+00"),
        (unable, "it knows no window"),
    ],
)
def test_a_wrong_kernel_is_refused_with_what_is_wrong(
    kernel: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "varlen", kernel)
    choice = choose([CALL], CPU, bool)
    assert choice.kernel is GROUPED
    assert choice.refused == {"varlen_attn": reason}
    took = f"{1e3 * choice.seconds[GROUPED.name]:.2f}"
    assert choice.sentence() == (
        f"attention by sdpa by groups of like length, {took} ms a layer (not varlen_attn: {reason})"
    )


def test_what_is_not_installed_is_not_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "varlen", absent)
    choice = choose([CALL], CPU, bool)
    assert choice.refused == {}
    assert "varlen" not in choice.sentence()


def test_of_two_that_are_right_the_faster_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "varlen", slow)
    choice = choose([CALL], CPU, bool)
    assert choice.kernel is GROUPED
    assert set(choice.seconds) == {"varlen_attn", GROUPED.name}
    assert choice.seconds["varlen_attn"] > 0.2
    assert f"(varlen_attn {1e3 * choice.seconds['varlen_attn']:.2f} ms)" in choice.sentence()
    monkeypatch.setattr(module, "varlen", segments)
    monkeypatch.setattr(module, "GROUPED", module.Kernel("slow", slow))
    assert choose([CALL], CPU, bool).kernel.name == "varlen_attn"


def test_a_kernel_that_another_rank_cannot_use_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "varlen", segments)
    answers = iter([False, True])
    choice = choose([CALL], CPU, lambda flag: flag and next(answers))
    assert choice.kernel is GROUPED
    assert choice.refused == {"varlen_attn": "another rank cannot use it"}


def test_every_kind_of_layer_must_be_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_window(q: Tensor, k: Tensor, v: Tensor, layout: Any, **asked: Any) -> Tensor:
        return segments(q, k, v, layout, **{**asked, "window": None})

    monkeypatch.setattr(module, "varlen", without_window)
    windowed = Call(4, 2, 8, 8, torch.float32, 0.3, 5, None)
    assert "varlen_attn" in choose([CALL], CPU, bool).seconds
    assert "varlen_attn" in choose([CALL, windowed], CPU, bool).refused


def test_flex_attention_is_compiled_for_wide_models_without_a_better_kernel_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FLEX", module.Kernel("flex_attention", segments))
    wide = Call(32, 4, 32, 32, torch.float32, None, None, None)
    monkeypatch.setattr(module, "varlen", segments)
    assert "flex_attention" not in choose([wide], CPU, bool).seconds
    monkeypatch.setattr(module, "varlen", unable)
    assert "flex_attention" in choose([wide], CPU, bool).seconds
    assert "flex_attention" not in choose([CALL], CPU, bool).seconds


def test_another_flash_attention_is_switched_on_and_off(monkeypatch: pytest.MonkeyPatch) -> None:
    active: list[str | None] = [None]
    monkeypatch.setattr(module, "_flash_names", lambda: [None, "FA3"])
    monkeypatch.setattr(torch_attention, "current_flash_attention_impl", lambda: active[-1])
    monkeypatch.setattr(torch_attention, "activate_flash_attention_impl", active.append)
    monkeypatch.setattr(torch_attention, "restore_flash_attention_impl", lambda: active.append(None), raising=False)
    slow_one = None

    def flash(*args: Any, **asked: Any) -> Tensor:
        return (slow if active[-1] == slow_one else segments)(*args, **asked)

    monkeypatch.setattr(module, "varlen", flash)
    monkeypatch.setattr(module, "GROUPED", module.Kernel("slow", slow))
    assert choose([CALL], CPU, bool).kernel.name == "varlen_attn (FA3)"
    assert active[-1] == "FA3"
    slow_one = "FA3"
    assert choose([CALL], CPU, bool).kernel.name == "varlen_attn"
    assert active[-1] is None


def test_what_cannot_be_switched_off_again_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(torch_attention, "restore_flash_attention_impl", lambda: None, raising=False)
    monkeypatch.setattr(module, "fixes_splits", lambda: True)  # which torch 2.10 cannot, either
    assert module._flash_names() == [None, *torch_attention.list_flash_attention_impls()]
    monkeypatch.delattr(torch_attention, "restore_flash_attention_impl")  # as in torch 2.10
    assert module._flash_names() == [None]


# ---- with a model


def test_what_the_layers_ask_for_is_recorded() -> None:
    model, calls = tiny_model("gemma2-softcap"), dict[Call, None]()
    attach(model)
    engine = ScoringEngine()
    plain = engine(model, tree_batch()).tokens["logp"]
    engine.kernel = recorded(calls)
    torch.testing.assert_close(engine(model, tree_batch()).tokens["logp"], plain)
    scaling = model.config.query_pre_attn_scalar**-0.5
    shape = (4, 2, 8, 8, torch.float32, scaling)
    assert list(calls) == [Call(*shape, 5, 0.7), Call(*shape, None, 0.7)]


def test_the_probe_sets_the_kernel_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "kernels_differ", lambda device: True)
    monkeypatch.setattr(module, "varlen", unable)
    model, engine = tiny_model(), ScoringEngine()
    attach(model)
    result = probe(engine, model, CPU)
    assert (result.mode, engine.kernel) == ("tree", GROUPED.run)
    assert "; attention by sdpa by groups of like length, " in result.sentence()
    assert result.sentence().endswith(
        " ms a layer (not varlen_attn: it knows no window); the head by torch's own operations, since there are no "
        "fused kernels for cpu"
    )


def test_a_kernel_that_is_not_exact_in_the_model_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaks(q: Tensor, k: Tensor, v: Tensor, layout: Any, **asked: Any) -> Tensor:
        out = segments(q, k, v, layout, **asked)
        return out + 1e-6 * v.mean() if layout.length < 60 else out

    monkeypatch.setattr(probe_module, "kernels_differ", lambda device: True)
    monkeypatch.setattr(module, "varlen", leaks)
    monkeypatch.setattr(module, "GROUPED", module.Kernel("slow", slow))
    model, engine = tiny_model(), ScoringEngine()
    attach(model)
    result = probe(engine, model, CPU)
    assert (result.mode, engine.kernel) == ("tree", GROUPED.run)
    assert "attention by sdpa by groups of like length, since varlen_attn is not exact in this" in result.sentence()


def test_a_model_that_cannot_read_trees_falls_back_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "kernels_differ", lambda device: True)
    monkeypatch.setattr(module, "varlen", unable)
    for name in ("gpt_oss", "qwen3_next"):
        options = {"num_local_experts": 4, "num_experts_per_tok": 2} if name == "gpt_oss" else {}
        model, engine = tiny_model(name, **options), ScoringEngine()
        attach(model)
        assert probe(engine, model, CPU).mode == engine.mode == "padded"


@pytest.mark.parametrize(("moved", "mode"), [(1e-7, "tree"), (1e-3, "padded")])
def test_on_a_gpu_a_row_that_moves_may_be_rounded_otherwise(
    moved: float, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_place(q: Tensor, k: Tensor, v: Tensor, layout: Any, **asked: Any) -> Tensor:
        out = segments(q, k, v, layout, **asked)
        return out * (1 + moved * torch.arange(out.shape[1]).remainder(7)[None, :, None, None])

    monkeypatch.setattr(probe_module, "kernels_differ", lambda device: True)
    monkeypatch.setattr(module, "varlen", by_place)
    monkeypatch.setattr(module, "GROUPED", module.Kernel("slow", slow))
    monkeypatch.setattr(module, "_fault", lambda *args: None)
    model, engine = tiny_model(), ScoringEngine()
    attach(model)
    result = probe(engine, model, CPU)
    assert (engine.kernel is by_place) == (mode == "tree")
    assert ("since varlen_attn is not exact in this model" in result.sentence()) == (mode == "padded")
