"""Every kernel against dense attention under the layout's mask, in float64: results and gradients."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from layouts import LAYOUT, dense, documented, random_layout, seen
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention import varlen as torch_varlen

from align.engine.kernels import flex as flex_module
from align.engine.kernels import varlen as varlen_module
from align.engine.kernels.flex import BLOCK, block_mask, flex
from align.engine.kernels.grouped import grouped
from align.engine.kernels.grouped import make_plan as grouped_plan
from align.engine.kernels.kernel import Run, UnsupportedAttention
from align.engine.kernels.segments import segment_mask, segments
from align.engine.kernels.varlen import make_plan, varlen
from align.engine.layout import Layout, Segment

CPU = torch.device("cpu")
KERNELS: dict[str, Run] = {"segments": segments, "grouped": grouped, "varlen": varlen, "flex": flex}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What needs a GPU: torch's variable-length kernel, and the gradient of flex_attention, uncompiled here."""
    monkeypatch.setattr(torch_varlen, "varlen_attn", documented)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(flex_module, "_compiled", lambda: torch_flex.flex_attention)
    # it says at each call that it is not compiled
    monkeypatch.setattr(torch_flex, "_warn_once", lambda *args, **kwargs: None, raising=False)
    varlen_module._arguments.cache_clear()
    yield
    varlen_module._arguments.cache_clear()


def inputs(layout: Layout, *, heads: int = 4, groups: int = 2, size: int = 16) -> list[Tensor]:
    torch.manual_seed(0)
    made = [torch.randn(1, n, layout.length, size, dtype=torch.float64) for n in (heads, groups, groups)]
    return [x.requires_grad_() for x in made]


def compare(run: Run, layout: Layout, window: int | None, softcap: float | None, scaling: float | None = 0.3) -> None:
    q, k, v = inputs(layout)
    ours = run(q, k, v, layout, scaling=scaling, window=window, softcap=softcap)
    exact = dense(q, k, v, layout, window, 16**-0.5 if scaling is None else scaling, softcap)
    assert ours.shape == (1, layout.length, 4, 16)
    assert ours.is_contiguous()
    upstream = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mine = torch.autograd.grad(ours, (q, k, v), upstream)
    theirs = torch.autograd.grad(exact, (q, k, v), upstream)
    # the soft cap's softmax is float32
    tolerance = 1e-6 if softcap is not None and run is not flex else 1e-12
    torch.testing.assert_close(ours, exact, rtol=0, atol=tolerance)
    for name, a, b in zip("qkv", mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=10 * tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("softcap", [None, 0.75])
@pytest.mark.parametrize("window", [None, 1, 3, 5, 100])
@pytest.mark.parametrize("name", KERNELS)
def test_equals_dense_attention(name: str, window: int | None, softcap: float | None) -> None:
    if name == "varlen" and softcap is not None:
        with pytest.raises(UnsupportedAttention, match="soft cap"):
            compare(varlen, LAYOUT, window, softcap)
        return
    compare(KERNELS[name], LAYOUT, window, softcap)
    compare(KERNELS[name], LAYOUT, window, softcap, scaling=None)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", KERNELS)
def test_equals_dense_attention_on_rows_longer_than_a_block(name: str, seed: int) -> None:
    source = random.Random(seed)
    layout = random_layout(source, 300)
    compare(KERNELS[name], layout, source.choice([None, 7, 64, 150]), None)


def test_plans_are_made_once_for_each_window() -> None:
    layout = Layout(LAYOUT.segments)
    q, k, v = inputs(layout)
    for run in (grouped, varlen, flex):
        for width in (None, 3, None, 4, 3):  # a layer must not be given another one's
            ours = run(q, k, v, layout, scaling=0.3, window=width, softcap=None)
            torch.testing.assert_close(ours, dense(q, k, v, layout, width, 0.3, None), rtol=0, atol=1e-12)
    kinds = [key[0] for key in layout._made]
    assert (kinds.count("grouped"), kinds.count("varlen"), kinds.count("flex")) == (3, 1, 3)


def test_kept_masks_know_their_shape_and_window() -> None:
    layout = Layout(LAYOUT.segments)
    assert segment_mask(layout, Segment(0, 4), None, CPU) is None
    assert segment_mask(layout, Segment(0, 4), 4, CPU) is None  # as wide as the segment: plain causal says the same
    narrow = segment_mask(layout, Segment(0, 4), 2, CPU)
    assert narrow is segment_mask(layout, Segment(12, 16), 2, CPU)
    assert narrow is not segment_mask(layout, Segment(0, 4), 3, CPU)
    branch = segment_mask(layout, Segment(4, 7, 0, 4), None, CPU)
    assert branch is not None
    assert branch.shape == (3, 7)
    assert branch.sum().item() == 5 + 6 + 7


# ---- the variable-length kernel


def test_inputs_of_the_variable_length_kernel() -> None:
    plan = make_plan(LAYOUT, CPU)
    assert plan.keys.taken.tolist() == [0, 1, 2, 3, *range(4), 4, 5, 6, *range(4), *range(7, 12), 12, 13, 14]
    assert plan.keys.own.tolist() == [0, 1, 2, 3, 8, 9, 10, 15, 16, 17, 18, 19, 20, 21, 22]
    ((places, new),) = plan.keys.copies
    assert places.tolist() == [0, 1, 2, 3]
    assert new.tolist() == [[4, 11], [5, 12], [6, 13], [7, 14]]
    assert plan.cu_q.tolist() == [0, 4, 7, 12, 15]
    assert plan.cu_k.tolist() == [0, 4, 11, 20, 23]
    assert (plan.max_q, plan.max_k) == (5, 9)
    assert plan.cu_q.dtype == plan.cu_k.dtype == torch.int32


def of_torch_2_10(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, is_causal: bool = False) -> Any:
    assert is_causal
    options = {"scale": None, "window_size": (-1, 0), "enable_gqa": q.shape[1] != k.shape[1]}
    return documented(q, k, v, cu_q, cu_k, max_q, max_k, **options)


def of_torch_2_11(
    q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, *, scale: Any = None, window_size: Any = None
) -> Any:
    options = {"scale": scale, "window_size": window_size, "enable_gqa": q.shape[1] != k.shape[1]}
    return documented(q, k, v, cu_q, cu_k, max_q, max_k, **options)


@pytest.mark.parametrize("older", [of_torch_2_10, of_torch_2_11])
def test_older_variable_length_kernels(older: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_varlen, "varlen_attn", older)
    compare(varlen, LAYOUT, None, None)
    compare(varlen, LAYOUT, None, None, scaling=None)
    if older is of_torch_2_11:
        compare(varlen, LAYOUT, 3, None)
    else:
        with pytest.raises(UnsupportedAttention, match="no window"):
            compare(varlen, LAYOUT, 3, None)


# ---- groups


def test_groups_have_few_shapes_and_cover_every_segment() -> None:
    source = random.Random(5)
    shapes = set()
    for _ in range(30):
        layout = random_layout(source, 600)
        plan = grouped_plan(layout, None, CPU)
        assert sum(count for count, _, _ in plan.groups) == len(layout.segments)
        assert plan.back.unique().numel() == layout.length
        shapes |= {(queries, keys) for _, queries, keys in plan.groups}
        assert all(queries % 64 == keys % 64 == 0 for _, queries, keys in plan.groups)
    assert len(shapes) < 60


def test_a_group_is_cut_where_its_mask_would_be_large(monkeypatch: pytest.MonkeyPatch) -> None:
    from align.engine.kernels import grouped as module

    monkeypatch.setattr(module, "_MOST_SCORES", 2 * 64 * 64)
    layout = Layout([Segment(5 * i, 5 * i + 5) for i in range(5)])
    assert grouped_plan(layout, None, CPU).groups == ((2, 64, 64), (2, 64, 64), (1, 64, 64))
    compare(grouped, layout, 3, None)


# ---- flex_attention


@pytest.mark.parametrize("window", [None, 1, 40, 130])
@pytest.mark.parametrize("seed", range(6))
def test_blocks_hold_all_that_is_seen_and_whole_ones_nothing_else(seed: int, window: int | None) -> None:
    layout = random_layout(random.Random(seed), 900)
    mask = block_mask(layout, window, CPU)
    count = -(-layout.length // BLOCK)
    place = torch.arange(layout.length)
    allowed = mask.mask_mod(place.new_zeros(()), place.new_zeros(()), place[:, None], place[None])
    assert torch.equal(allowed, seen(layout, window))
    room = count * BLOCK - layout.length
    tiles = torch.nn.functional.pad(allowed, (0, room, 0, room)).view(count, BLOCK, count, BLOCK).transpose(1, 2)
    some, every = tiles.flatten(2).any(-1), tiles.flatten(2).all(-1)
    part, whole = listed(mask.kv_num_blocks, mask.kv_indices), listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert not (part & whole).any()
    assert torch.equal(part | whole, some)
    assert torch.equal(whole, every)


def listed(numbers: Tensor, places: Tensor) -> Tensor:
    """Booleans [rows, columns] from numbers [1, 1, rows] and places [1, 1, rows, columns]."""
    found = torch.zeros(places.shape[2:], dtype=torch.bool)
    for row, (number, columns) in enumerate(zip(numbers[0, 0].tolist(), places[0, 0], strict=True)):
        found[row, columns[:number].long()] = True
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own
def test_one_compiled_kernel_serves_rows_of_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real thing; on a CPU it has no gradient
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for seed, (length, window) in enumerate([(300, None), (500, None), (700, 64), (400, 7), (900, None), (260, 3)]):
        layout = random_layout(random.Random(seed), length)
        q, k, v = (x.detach().float() for x in inputs(layout))
        with torch.no_grad():
            ours = flex(q, k, v, layout, scaling=0.2, window=window, softcap=None)
        torch.testing.assert_close(ours, dense(q, k, v, layout, window, 0.2, None), rtol=0, atol=5e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2  # the first is for one length, as torch has it
    with torch.no_grad():
        ours = flex(q, k, v, layout, scaling=0.2, window=None, softcap=30.0)
    torch.testing.assert_close(ours, dense(q, k, v, layout, None, 0.2, 30.0), rtol=0, atol=5e-6)
