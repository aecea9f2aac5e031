"""Tree attention by itself: windows, masks, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from layouts import LAYOUT, dense
from torch import Tensor, nn
from zoo import tiny_model, tree_batch

from align.engine.attention import PREFIX, tree_attention, use_tree_attention
from align.engine.kernels.kernel import UnsupportedAttention
from align.engine.layout import Branch, Example, Layout, Tree, pack
from align.engine.scoring import ScoringEngine, attach


def qkv(heads: int = 4, groups: int = 2, width: int = 8, length: int = LAYOUT.length) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return tuple(torch.randn(1, n, length, width, dtype=torch.float64) for n in (heads, groups, groups))


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
        assert ours.shape == (1, LAYOUT.length, 4, 8)
        assert ours.is_contiguous()
        tolerance = 1e-12 if softcap is None else 1e-6  # whose softmax is float32
        assert torch.allclose(ours, dense(q, k, v, LAYOUT, width, 0.3, softcap), rtol=0, atol=tolerance)


@pytest.mark.parametrize("rotary", [torch.float32, torch.bfloat16])
def test_under_autocast_the_kernel_is_given_its_type(rotary: torch.dtype) -> None:
    # rotary embeddings leave float32 behind, and the fast kernel takes 16 bits only
    given = []

    def kernel(query: Tensor, key: Tensor, value: Tensor, layout: Layout, **asked: object) -> Tensor:
        given.append((query.dtype, key.dtype, value.dtype))
        return query.transpose(1, 2)

    q, k, v = qkv()
    mixed = (q.to(rotary), k.to(rotary), v.to(torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        tree_attention(nn.Identity(), *mixed, layout=LAYOUT, kernel=kernel)
        tree_attention(nn.Identity(), q, k, v, layout=LAYOUT, kernel=kernel)
    tree_attention(nn.Identity(), *mixed, layout=LAYOUT, kernel=kernel)
    assert given == [(torch.bfloat16,) * 3, (torch.float64,) * 3, (rotary, rotary, torch.bfloat16)]


@pytest.mark.parametrize("length", [LAYOUT.length - 1, LAYOUT.length + 1])
def test_a_row_of_another_length_than_its_layout_is_refused(length: int) -> None:
    # the variable-length kernel would read on behind its last sequence, and give gradients that are not numbers
    with pytest.raises(ValueError, match=f"the row has {length} queries and {length} keys; its layout 15"):
        tree_attention(nn.Identity(), *qkv(length=length), layout=LAYOUT)


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


def test_flash_attention_of_transformers_gives_way_to_sdpa() -> None:
    # it looks its own name up in the configuration, which says another one once trees are read
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    before = model(ids).logits
    model.config._attn_implementation_internal = "flash_attention_2"  # not installed here: nothing is loaded
    use_tree_attention(model)
    assert model.config._attn_implementation == f"{PREFIX}sdpa"
    assert torch.equal(model(ids).logits, before)
