"""The engine against the model's own logits on one row at a time: the same log-probs, the same gradients."""

from __future__ import annotations

import copy
import warnings

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func
from zoo import (
    ARCHITECTURES,
    distance,
    gradients,
    kept,
    lora,
    own_logits,
    own_rows,
    small,
    stirred,
    tiny_config,
    tiny_model,
    token_ids,
    tree_batch,
)

from align.data.batches.collator import TreeCollator
from align.engine.layout import Branch, Example, Tree, TreeBatch, pack
from align.engine.reads import Hidden, LogProb, Score, feeds_last
from align.engine.scoring import Mode, ScoringEngine, attach
from align.errors import UserError
from align.objectives import OBJECTIVES

SUM_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 1e-5


def engine(mode: Mode = "tree", rows_per_chunk: int = 8) -> ScoringEngine:
    made = ScoringEngine(rows_per_chunk=rows_per_chunk)
    made.mode = mode
    return made


def assert_same_sums(values: Tensor, rows: list[Tensor], tolerance: float = SUM_TOLERANCE) -> None:
    """Every sequence's sum agrees to ``tolerance`` of that sum."""
    for ours, own in zip(values.split([len(r) for r in rows]), rows, strict=True):
        gap = (ours.double().sum() - own.double().sum()).abs().item()
        assert gap <= tolerance * own.double().sum().abs().item()


def assert_same_gradients(
    ours: dict[str, Tensor], own: dict[str, Tensor], tolerance: float = GRADIENT_TOLERANCE
) -> None:
    """All gradients together to ``tolerance``, and each by itself.

    A single parameter gets ten times more, plus rounding of the whole for those whose true gradient is zero, as for
    OPT's key bias, which softmax cancels.
    """
    assert distance(ours, own) <= tolerance
    whole = sum(g.square().sum() for g in own.values()).sqrt()
    for name in own:
        assert (ours[name] - own[name]).norm() <= 10 * tolerance * own[name].norm() + 1e-6 * whole, name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_trees_and_padded_rows_equal_independent_rows(name: str) -> None:
    model, batch = tiny_model(name), tree_batch()
    rows = own_rows(model, batch)
    own = gradients(model, torch.cat(rows))
    attach(model)
    for mode, chunk in (("tree", 8), ("padded", 8), ("padded", 3)):
        scores = engine(mode, chunk)(model, batch)
        values = scores.tokens["logp"]
        assert_same_sums(values, rows)
        for branch in ("chosen", "rejected"):
            sums = torch.stack([values[scores.owner == i].sum() for i in batch.sequences[branch]])
            assert torch.allclose(scores.sum(branch), sums, rtol=1e-6)
        assert_same_gradients(gradients(model, values), own)


def test_masked_tokens_are_fed_but_not_scored() -> None:
    model, ids = tiny_model(), token_ids(4)
    answer = ids(6)
    whole = pack([Example((Tree(ids(5), (Branch("chosen", answer),)),))])
    masked = pack(
        [Example((Tree(whole.examples[0].trees[0].prompt, (Branch("chosen", answer, [0, 1, 1, 0, 0, 1]),)),))]
    )
    attach(model)
    scores = engine()(model, masked)
    assert torch.allclose(scores.tokens["logp"], engine()(model, whole).tokens["logp"][[1, 2, 5]], rtol=1e-6)
    assert scores.count("chosen").tolist() == [3.0]
    assert masked.units == {"examples": 1.0, "tokens:chosen": 3.0, "sequences:chosen": 1.0}


@pytest.mark.parametrize("mode", ["tree", "padded"])
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_dummy_batch_is_an_exact_zero_with_zero_gradients(name: str, mode: Mode) -> None:
    objective = small(name)
    model = tiny_model()
    frozen = copy.deepcopy(model)
    attach(model)
    attach(frozen)
    reads = objective.reads()
    batch = TreeCollator(objective.branches, feed_last=feeds_last(reads))([])["tree"]
    assert not any(batch.units.values())
    hidden = tuple(r for r in reads if isinstance(r, Hidden))
    reference = engine(mode)(frozen, batch, (LogProb(), *hidden), keep=any(r.needs_reference for r in reads))
    policy = engine(mode)(model, batch, reads, reference=reference.head)
    terms = objective(policy, reference if objective.needs_reference else None)
    loss = sum(t.weight * t.losses.sum() for t in terms.losses)
    loss.backward()
    assert loss.item() == 0.0
    for parameter in model.parameters():  # present, or data-parallel ranks would wait for each other
        assert parameter.grad is not None
        assert not parameter.grad.any()
    assert all(count.item() == 0 for _, count in terms.metrics.values())


@pytest.mark.parametrize("name", ["llama", "gemma2-softcap", "gpt2"])
def test_generation_and_plain_forwards_are_untouched(name: str) -> None:
    model, ids = tiny_model(name), torch.tensor([token_ids(7)(5), token_ids(8)(5)])
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    logits, text = model(ids, attention_mask=mask).logits, model.generate(ids, **options)
    attach(model)
    attach(model)  # the second time does nothing
    assert torch.equal(model(ids, attention_mask=mask).logits, logits)
    assert torch.equal(model.generate(ids, **options), text)
    engine()(model, tree_batch())
    assert torch.equal(model.generate(ids, **options), text)


def test_lora_scores_with_the_adapter_and_without_it() -> None:
    model, batch = tiny_model(), tree_batch()
    bare = torch.cat(own_rows(model, batch)).detach()
    wrapped = lora(model)
    rows = own_rows(wrapped, batch)
    own = gradients(wrapped, torch.cat(rows))
    attach(wrapped)
    scored = engine()(wrapped, batch).tokens["logp"]
    assert_same_sums(scored, rows)
    assert (scored - bare).abs().max() > 0.1
    assert all("lora_" in name for name in own)
    assert_same_gradients(gradients(wrapped, scored), own)
    with wrapped.disable_adapter(), torch.no_grad():
        assert_same_sums(engine()(wrapped, batch).tokens["logp"], list(bare.split(batch.lengths.tolist())))


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_gradient_checkpointing(name: str, reentrant: bool, adapter: bool) -> None:
    model, batch = tiny_model(name), tree_batch()
    model = lora(model) if adapter else model
    rows = own_rows(model, batch)
    own = gradients(model, torch.cat(rows))
    attach(model)
    with warnings.catch_warnings():  # newer transformers call it activation checkpointing
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if adapter:
        model.enable_input_require_grads()
    model.train()
    values = engine()(model, batch).tokens["logp"]
    assert_same_sums(values, rows)
    assert_same_gradients(gradients(model, values), own)


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "phi-head-bias"])
def test_bf16_autocast_is_as_near_to_float32_as_the_model_itself(name: str) -> None:
    model, batch = tiny_model(name), tree_batch()
    exact = torch.cat(own_rows(model, batch))
    exact_gradients = gradients(model, exact)
    with torch.autocast("cpu", torch.bfloat16):
        rows = torch.cat(own_rows(model, batch))
        own_gradients = gradients(model, rows)
        attach(model)
        values = engine()(model, batch).tokens["logp"]
    assert values.dtype == torch.float32
    own_error, error = (rows - exact).norm(), (values - exact).norm()
    assert 0 < error <= 1.5 * own_error
    assert distance(gradients(model, values), exact_gradients) <= 1.5 * distance(own_gradients, exact_gradients)


def test_float64_stays_float64() -> None:
    model, batch = tiny_model("gpt2", dtype=torch.float64), tree_batch()  # whose norms do not go through float32
    rows = own_rows(model, batch)
    own = gradients(model, torch.cat(rows))
    attach(model)
    values = engine()(model, batch).tokens["logp"]
    assert values.dtype == torch.float64
    assert (values - torch.cat(rows)).abs().max() < 1e-12
    assert distance(gradients(model, values), own) < 1e-12


@pytest.mark.parametrize("mode", ["tree", "padded"])
@pytest.mark.parametrize("layer", [0, 1, 2, -1])
def test_hidden_states_at_the_places_that_predict(layer: int, mode: Mode) -> None:
    model, batch = tiny_model("gemma3"), tree_batch()
    expected = []
    for tree, branch in batch.branches():
        out = model(torch.tensor([[*tree.prompt, *branch.ids]]), output_hidden_states=True)
        expected.append(out.hidden_states[layer][0, len(tree.prompt) - 1 : -1][kept(branch)])
    attach(model)
    scores = engine(mode, 3)(model, batch, (LogProb(), Hidden(layer)))
    assert torch.allclose(scores.tokens[f"hidden_{layer}"], torch.cat(expected), rtol=1e-5, atol=1e-5)


@pytest.fixture
def reward_model() -> nn.Module:
    torch.manual_seed(0)
    return stirred(AutoModelForSequenceClassification.from_config(tiny_config("llama", num_labels=1))).eval()


def reward_batch(**options: bool) -> TreeBatch:
    # the pad id as the last token of an answer: where comparing with it would read the token before
    ids = token_ids(11)
    rows = [
        Example((Tree(ids(5), (Branch("chosen", [*ids(4), 0]), Branch("rejected", ids(7)))),)),
        Example((Tree(ids(1), (Branch("chosen", ids(1)), Branch("rejected", ids(2)))),)),
    ]
    return pack(rows, **options)


@pytest.mark.parametrize("mode", ["tree", "padded"])
def test_scores_of_a_sequence_classifier(reward_model: nn.Module, mode: Mode) -> None:
    batch = reward_batch(feed_last=True)
    expected = []
    for tree, branch in batch.branches():
        hidden = reward_model.model(torch.tensor([[*tree.prompt, *branch.ids]])).last_hidden_state[0, -1]
        expected.append(reward_model.score(hidden)[0])
        if branch.ids[-1] != 0:  # the model's own forward, where it finds the last token too
            plain = reward_model(torch.tensor([[*tree.prompt, *branch.ids]])).logits[0, 0]
            assert torch.allclose(plain, expected[-1], rtol=1e-5, atol=1e-6)
    own = gradients(reward_model, torch.stack(expected))
    attach(reward_model)
    values = engine(mode, 3)(reward_model, batch, (Score(),)).tokens["score"]
    assert torch.allclose(values, torch.stack(expected), rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients(reward_model, values), own)


def test_scores_need_a_batch_that_feeds_the_last_token(reward_model: nn.Module) -> None:
    attach(reward_model)
    with pytest.raises(ValueError, match="feed_last"):
        engine()(reward_model, reward_batch(), (Score(),))


@pytest.mark.parametrize("mode", ["tree", "padded"])
def test_log_probs_of_a_batch_that_feeds_the_last_token(mode: Mode) -> None:
    model, batch = tiny_model(), reward_batch(feed_last=True)
    rows = own_rows(model, batch)
    attach(model)
    assert_same_sums(engine(mode)(model, batch).tokens["logp"], rows)


@pytest.mark.parametrize("mode", ["tree", "padded"])
def test_the_load_balancing_loss_is_the_architectures_own(mode: Mode) -> None:
    model, ids = tiny_model("qwen3_moe"), token_ids(5)
    batch = pack([Example((Tree(ids(6), (Branch("chosen", ids(9)),)),))])
    tree, branch = batch.branches()[0]
    own = model(torch.tensor([[*tree.prompt, *branch.ids[:-1]]])).aux_loss * model.config.router_aux_loss_coef
    attach(model)
    assert torch.isclose(engine(mode)(model, batch).aux_loss, own, rtol=1e-5)
    model.config.output_router_logits = False
    assert engine(mode)(model, batch).aux_loss is None


def test_the_load_balancing_loss_of_padded_rows_counts_all_chunks_and_no_padding() -> None:
    model, batch = tiny_model("qwen3_moe"), tree_batch()
    attach(model)
    rows = [torch.tensor([[*tree.prompt, *branch.ids[:-1]]]) for tree, branch in batch.branches()]
    layers = zip(*(model(row).router_logits for row in rows), strict=True)
    config = model.config
    own = load_balancing_loss_func(tuple(map(torch.cat, layers)), config.num_experts, config.num_experts_per_tok)
    for chunk in (1, 3, 100):
        ours = engine("padded", chunk)(model, batch).aux_loss
        assert ours is not None
        assert torch.isclose(ours, own * config.router_aux_loss_coef, rtol=1e-5)


def test_tokens_count_the_shared_prompt_once() -> None:
    model, made, batch = tiny_model(), engine(), tree_batch()
    attach(model)
    made(model, batch)
    assert made.tokens == batch.input_ids.shape[1] == sum(e.tokens() for e in batch.examples)


def test_a_wrapped_head_is_refused_with_a_sentence() -> None:
    model = tiny_model()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(UserError, match="plain linear layer"):
        attach(wrapped)
    with pytest.raises(UserError, match="Linear is none"):
        attach(nn.Linear(2, 2))


def test_reads_of_one_sequence() -> None:
    model, batch = tiny_model(), tree_batch()
    attach(model)
    scores = engine()(model, batch)
    for i, (tree, branch) in enumerate(batch.branches()):
        logp = own_logits(model, tree, branch).log_softmax(-1)
        expected = logp.gather(1, torch.tensor(branch.ids)[:, None])[:, 0][kept(branch)]
        assert torch.allclose(scores.of_sequence(i), expected, atol=1e-5)
    assert len(scores.of("chosen")) + len(scores.of("rejected")) == len(scores.tokens["logp"])
