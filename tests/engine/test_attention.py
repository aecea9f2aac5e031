"""Tree attention by itself: windows, masks, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from zoo import tiny_model, tree_batch

from align.engine.attention import PREFIX, UnsupportedAttention, tree_attention, use_tree_attention
from align.engine.layout import Branch, Example, Layout, Segment, Tree, pack
from align.engine.scoring import ScoringEngine, attach

LAYOUT = Layout([Segment(0, 4), Segment(4, 7, 0, 4), Segment(7, 12, 0, 4), Segment(12, 15)])
LENGTH = 15


def seen(layout: Layout, window: int | None) -> Tensor:
    """The dense mask that a layout means, written down place by place."""
    allowed = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    for s in layout.segments:
        keys = [*range(s.p0, s.p1), *range(s.q0, s.q1)]
        for query in range(s.q0, s.q1):
            before = keys[: keys.index(query) + 1]
            allowed[query, before if window is None else before[-window:]] = True
    return allowed


def qkv(heads: int = 4, groups: int = 2, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return tuple(torch.randn(1, n, LENGTH, width, dtype=torch.float64) for n in (heads, groups, groups))


def dense(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scaling: float, softcap: float | None) -> Tensor:
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = q @ k.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize("window", [None, 1, 2, 3, 5, 100])
def test_equals_dense_attention_under_the_layouts_mask(window: int | None, softcap: float | None) -> None:
    q, k, v = qkv()
    options = {} if softcap is None else {"softcap": softcap}
    # twice, since masks are kept: a second layer, or one with another window, must not be given the wrong one
    for width in (window, None, window, 4):
        ours, weights = tree_attention(
            nn.Identity(), q, k, v, layout=LAYOUT, scaling=0.3, sliding_window=width, **options
        )
        assert weights is None
        assert ours.shape == (1, LENGTH, 4, 8)
        assert ours.is_contiguous()
        tolerance = 1e-12 if softcap is None else 1e-6  # whose softmax is float32
        assert torch.allclose(ours, dense(q, k, v, seen(LAYOUT, width), 0.3, softcap), rtol=0, atol=tolerance)


def test_kept_masks_know_their_shape_and_window() -> None:
    layout = Layout(LAYOUT.segments)
    device = torch.device("cpu")
    assert layout.mask(Segment(0, 4), None, device) is None
    assert layout.mask(Segment(0, 4), 4, device) is None  # as wide as the segment: plain causal says the same
    narrow = layout.mask(Segment(0, 4), 2, device)
    assert narrow is layout.mask(Segment(12, 16), 2, device)
    assert narrow is not layout.mask(Segment(0, 4), 3, device)
    branch = layout.mask(Segment(4, 7, 0, 4), None, device)
    assert branch.shape == (3, 7)
    assert branch.sum().item() == 5 + 6 + 7


def test_inputs_of_the_variable_length_kernel() -> None:
    index, queries, keys, most_queries, most_keys = LAYOUT.varlen(torch.device("cpu"))
    assert index.tolist() == [0, 1, 2, 3, *range(4), 4, 5, 6, *range(4), *range(7, 12), 12, 13, 14]
    assert queries.tolist() == [0, 4, 7, 12, 15]
    assert keys.tolist() == [0, 4, 11, 20, 23]
    assert (most_queries, most_keys) == (5, 9)
    assert queries.dtype == keys.dtype == torch.int32


def test_segments_cover_the_row_in_order() -> None:
    batch = tree_batch()
    places = [p for s in batch.layout.segments for p in range(s.q0, s.q1)]
    assert places == list(range(batch.input_ids.shape[1]))
    assert batch.position_ids.max() < 30
    with pytest.raises(ValueError, match="at least one token"):
        pack([Example((Tree((), (Branch("chosen", (1,)),)),))])
    with pytest.raises(ValueError, match="at least one token"):
        pack([Example((Tree((1,), (Branch("chosen", ()),)),))])


@pytest.mark.parametrize(
    "argument", ["s_aux", "head_mask", "attention_bias", "cu_seq_lens_q", "an_argument_of_tomorrow"]
)
def test_unknown_arguments_raise(argument: str) -> None:
    with pytest.raises(UnsupportedAttention, match=argument):
        tree_attention(nn.Identity(), *qkv(), layout=LAYOUT, **{argument: torch.ones(1)})
    tree_attention(nn.Identity(), *qkv(), layout=LAYOUT, **{argument: None})


def test_dropout_and_batches_raise() -> None:
    with pytest.raises(UnsupportedAttention, match="dropout"):
        tree_attention(nn.Identity(), *qkv(), layout=LAYOUT, dropout=0.1)
    with pytest.raises(UnsupportedAttention, match="batch of 2"):
        tree_attention(nn.Identity(), *(x.expand(2, -1, -1, -1) for x in qkv()), layout=LAYOUT)


def test_attention_sinks_of_gpt_oss_are_refused_and_not_ignored() -> None:
    model = tiny_model("gpt_oss", num_local_experts=4, num_experts_per_tok=2, sliding_window=5)
    attach(model)
    with pytest.raises(UnsupportedAttention, match="s_aux"):
        ScoringEngine()(model, tree_batch())


def test_the_models_own_attention_stays_for_calls_without_a_layout() -> None:
    model = tiny_model("gemma2-softcap")
    assert model.config._attn_implementation == "eager"
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
    before = model(ids).logits
    use_tree_attention(model)
    use_tree_attention(model)
    assert model.config._attn_implementation == f"{PREFIX}eager"
    assert torch.equal(model(ids).logits, before)
