"""The sampler: exact draws that nothing beside a prompt changes, prompts encoded once, and where completions end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from scipy import stats
from tiny import tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from zoo import ARCHITECTURES, tiny_model, token_ids

from align.data.tokens.samples import Sample, prompt_key, special_tokens
from align.engine.scoring import attach
from align.errors import UserError
from align.recipe.sampling import Sampling
from align.sampling.noise import gumbel, signed
from align.sampling.sampler import Sampler

LENGTHS = (9, 1, 14, 3, 20, 2, 1, 7)
WARPED = {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.01}


def _prompts() -> list[list[int]]:
    ids = token_ids(3)
    return [ids(n) for n in LENGTHS]


def _keys(prompts: list[list[int]]) -> list[int]:
    return [prompt_key(ids, row) for row, ids in enumerate(prompts)]


def _draw(
    model: Any,
    prompts: list[list[int]],
    keys: list[int] | None = None,
    *,
    step: int = 4,
    share: bool = True,
    **how: Any,
) -> tuple[list[list[Sample]], Sampler]:
    tokenizer = how.pop("tokenizer", None) or tiny_tokenizer()
    sampler = Sampler(Sampling(**{"samples": 3, "max_new_tokens": 12, **how}), tokenizer, 5, say=how.get("say", str))
    if not share:
        sampler.shares_prompts = False
    with torch.no_grad():
        found = sampler(model, prompts, _keys(prompts) if keys is None else keys, step, device=torch.device("cpu"))
    return found, sampler


def _model(name: str = "llama", **changes: Any) -> Any:
    return tiny_model(name, vocab_size=len(tiny_tokenizer()), **changes)


def _by_hand(model: Any, prompt: list[int], key: int, sample: int, count: int) -> list[int]:
    """Tokens drawn one by one, from the logits of a whole unpadded row without a cache."""
    ids = list(prompt)
    for position in range(count):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()
        noise = gumbel(5, 4, torch.tensor([signed(key)]), torch.tensor([sample]), position, len(logits))[0]
        ids.append(int((logits + noise).argmax()))
        if ids[-1] == tiny_tokenizer().eos_token_id:
            break
    return ids[len(prompt) :]


def test_completions_are_those_drawn_token_by_token() -> None:
    model = _model()
    prompts = _prompts()
    found, _ = _draw(model, prompts)
    finishes = set()
    for prompt, key, samples in zip(prompts, _keys(prompts), found, strict=True):
        assert [s.index for s in samples] == [0, 1, 2]
        for sample in samples:
            expected = _by_hand(model, prompt, key, sample.index, 12)
            assert list(sample.ids) == expected
            ended = expected[-1] == tiny_tokenizer().eos_token_id
            assert sample.finish == ("end" if ended else "length")
            assert sample.truncated != ended
            assert sample.text == tiny_tokenizer().decode(expected[:-1] if ended else expected)
            finishes.add(sample.finish)
    assert finishes == {"end", "length"}
    assert len({s.ids for samples in found for s in samples}) == 24


@pytest.mark.parametrize("name", [*ARCHITECTURES, "qwen3_next"])
@pytest.mark.filterwarnings("ignore:.*falling back")
def test_batches_company_and_shared_prompts_change_nothing(name: str) -> None:
    model, prompts = _model(name), _prompts()
    routed = getattr(model.config, "output_router_logits", None)
    how: dict[str, Any] = {"max_new_tokens": 8, **WARPED}
    together, sampler = _draw(model, prompts, batch_size=8, **how)
    assert getattr(model.config, "output_router_logits", None) is routed
    # windows and all: only states that are no keys by position cannot be repeated
    assert sampler.shares_prompts == (name != "qwen3_next")
    assert _draw(model, prompts, batch_size=1, **how)[0] == together
    assert _draw(model, prompts, batch_size=100, share=False, **how)[0] == together


def test_order_other_prompts_and_more_samples_change_nothing() -> None:
    model, prompts = _model(), _prompts()
    keys = _keys(prompts)
    whole, _ = _draw(model, prompts)
    turned, _ = _draw(model, prompts[::-1], keys[::-1])
    assert turned[::-1] == whole
    alone, _ = _draw(model, prompts[4:5], keys[4:5])
    assert alone[0] == whole[4]
    more, _ = _draw(model, prompts, samples=5, batch_size=4)
    assert [samples[:3] for samples in more] == whole
    # what does change them: step, seed and key
    other, _ = _draw(model, prompts, step=5)
    assert all(a != b for a, b in zip(other, whole, strict=True))
    same_prompt, _ = _draw(model, [prompts[4]] * 2, [1, 2])
    assert {s.ids for s in same_prompt[0]}.isdisjoint({s.ids for s in same_prompt[1]})


@pytest.mark.parametrize("limits", [{}, {"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1}, WARPED])
def test_frequencies_are_those_of_the_warped_softmax(limits: dict[str, Any]) -> None:
    model, prompt, count = _model(seed=2), [7, 8, 9], 6000
    found, _ = _draw(model, [prompt], samples=count, max_new_tokens=1, batch_size=3000, **limits)
    drawn = torch.tensor([s.ids[0] for s in found[0]]).bincount(minlength=len(tiny_tokenizer())).double()
    logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].detach().double() / limits.get("temperature", 1.0)
    order = logits.argsort(descending=True)
    keep = torch.ones(len(logits), dtype=torch.bool)
    if "top_k" in limits:
        keep[order[limits["top_k"] :]] = False
    if "top_p" in limits:
        chances = logits.masked_fill(~keep, -torch.inf).softmax(0)[order]
        keep[order[(chances.cumsum(0) - chances) >= limits["top_p"]]] = False
    if "min_p" in limits:
        chances = logits.masked_fill(~keep, -torch.inf).softmax(0)
        keep &= chances >= limits["min_p"] * chances.max()
    chances = logits.masked_fill(~keep, -torch.inf).softmax(0)
    assert drawn[~keep].sum() == 0
    assert bool(keep.all()) == (set(limits) <= {"temperature"})
    rare = chances * count < 5  # together in one bin
    pooled = [torch.cat([x[~rare], x[rare].sum()[None]]) for x in (drawn, chances * count)]
    pooled = [x[pooled[1] > 0] for x in pooled]
    assert stats.chisquare(*(x.numpy() for x in pooled)).pvalue > 1e-3


def test_next_to_no_temperature_is_greedy_and_a_checkpoints_own_settings_are_left_aside() -> None:
    model, prompts = _model(seed=3), _prompts()
    own = model.generation_config
    own.do_sample, own.repetition_penalty, own.temperature, own.top_k = True, 1.8, 2.0, 3
    own.suppress_tokens, own.min_new_tokens, own.num_beams = list(range(100)), 7, 2
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) < len(prompt) + 12 and (len(ids) == len(prompt) or ids[-1] != tiny_tokenizer().eos_token_id):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        expected.append(tuple(ids[len(prompt) :]))
    found, _ = _draw(model, prompts, temperature=1e-6)
    assert [[s.ids for s in samples] for samples in found] == [[ids] * 3 for ids in expected]
    assert model.generation_config is own
    assert any(token < 100 for ids in expected for token in ids)


# ---- how much is computed


class Counting:
    """Token positions that a model's embedding sees, by call."""

    def __init__(self, model: Any) -> None:
        self.shapes: list[tuple[int, ...]] = []
        model.get_input_embeddings().register_forward_pre_hook(lambda _, args: self.shapes.append(tuple(args[0].shape)))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_prompt_is_encoded_once_and_the_cache_is_on(checkpointing: bool) -> None:
    model = _model()
    attach(model)
    if checkpointing:
        model.train()
        newer = getattr(model, "activation_checkpointing_enable", None)
        (newer or model.gradient_checkpointing_enable)()
        assert model.is_gradient_checkpointing
        model.eval()
    prompts = [[5] * 30, [6] * 26]
    seen = Counting(model)
    found, _ = _draw(model, prompts, samples=4, max_new_tokens=6, batch_size=8)
    assert max(len(s.ids) for samples in found for s in samples) == 6
    assert seen.shapes == [(2, 29), *[(8, 1)] * 6]
    del seen.shapes[:]
    assert _draw(model, prompts, samples=4, max_new_tokens=6, share=False)[0] == found
    assert seen.shapes == [(8, 30), *[(8, 1)] * 5]


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="evaluation mode"):
        _draw(_model().train(), [[5, 6]])


def test_what_cannot_be_shared_is_said_once() -> None:
    said: list[str] = []
    sampler = Sampler(Sampling(samples=2, max_new_tokens=2), tiny_tokenizer(), 0, say=said.append)
    model = _model("qwen3_next")
    for step in range(2):
        sampler(model, [[5, 6, 7]], [0], step, device=torch.device("cpu"))
    assert len(said) == 1
    assert "each sample reads its prompt again" in said[0]
    assert "LinearAttentionLayer" in said[0]


def test_adapters_sample() -> None:
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(_model(), config).eval()
    prompts = _prompts()
    found, sampler = _draw(model, prompts)
    assert sampler.shares_prompts
    assert list(found[2][1].ids) == _by_hand(model, prompts[2], _keys(prompts)[2], 1, 12)
    with model.disable_adapter():
        assert _draw(model, prompts)[0] != found


# ---- where completions end


def test_all_end_tokens_end_a_completion() -> None:
    model, prompts = _model(), _prompts()
    free, _ = _draw(model, prompts)
    tokenizer = tiny_tokenizer()
    chosen = free[0][0].ids[3]
    model.generation_config.eos_token_id = [chosen, tokenizer.eos_token_id]
    found, _ = _draw(model, prompts)
    for before, after in zip([s for g in free for s in g], [s for g in found for s in g], strict=True):
        ends = [i for i, token in enumerate(before.ids) if token in (chosen, tokenizer.eos_token_id)]
        assert after.ids == (before.ids[: ends[0] + 1] if ends else before.ids)
        assert after.finish == ("end" if ends else "length")
        if ends:
            assert after.text == tokenizer.decode(before.ids[: ends[0]])
    assert found[0][0].ids[-1] == chosen


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_stop_text_cuts_text_and_tokens(batch_size: int) -> None:
    model, prompts, tokenizer = _model(), _prompts(), tiny_tokenizer()
    free = [s for g in _draw(model, prompts)[0] for s in g]
    longest = max(free, key=lambda s: len(s.ids))
    # across two tokens, and one that stands in the middle of a token where there is such a token
    across = tokenizer.decode(longest.ids[4:6])
    stop = [across, "e"]
    found = [s for g in _draw(model, prompts, stop=stop, batch_size=batch_size)[0] for s in g]
    cut = 0
    for before, after in zip(free, found, strict=True):
        places = [before.text.index(text) for text in stop if text in before.text]
        if not places:
            assert after == before
            continue
        cut += 1
        assert after.finish == "stop"
        assert not after.truncated
        assert after.text == before.text[: min(places)]
        assert after.ids[-1] == tokenizer.eos_token_id
        kept = after.ids[:-1]
        assert kept == before.ids[: len(kept)]
        assert after.text.startswith(tokenizer.decode(kept))
        # the next token is the one in which the stop text begins
        assert len(tokenizer.decode(before.ids[: len(kept) + 1])) > min(places)
    assert 3 <= cut < len(free)
    # a stop text within a token: its first letters are text, but no token is left for them
    assert any(s.finish == "stop" and s.text != tokenizer.decode(s.ids[:-1]) for s in found)


def test_generation_ends_where_all_texts_have_stopped() -> None:
    """Words for tokens, and a model that always says the next one: w10 w11 w12 ..."""
    count = 40
    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(count)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="w1")
    model = tiny_model(vocab_size=count)
    head = model.lm_head.register_forward_hook(
        lambda module, args, out: torch.nn.functional.one_hot((seen.last + 1) % count, count)[:, None].float() * 200
    )
    seen = Last(model)
    found, _ = _draw(model, [[7, 9], [20, 3, 21]], tokenizer=tokenizer, samples=2, stop=["w14 w15", "w24"])
    head.remove()
    assert [s.ids for s in found[0]] == [(10, 11, 12, 13, 1)] * 2
    assert [s.ids for s in found[1]] == [(22, 23, 1)] * 2
    assert {s.text for s in found[0]} == {"w10 w11 w12 w13 "}
    assert {s.finish for g in found for s in g} == {"stop"}
    assert seen.calls == 1 + 6  # the prompts, then 10 to 15


class Last:
    """The last token fed of each row, and how often the model was called."""

    def __init__(self, model: Any) -> None:
        self.calls = 0
        model.get_input_embeddings().register_forward_pre_hook(self._note)

    def _note(self, module: Any, args: Any) -> None:
        self.calls, self.last = self.calls + 1, args[0][:, -1]


def _told(texts: list[int], stop: list[str], room: int) -> tuple[Sample, int]:
    """A completion of a model that says ``texts`` token by token, and how often its head was asked."""
    model, calls = _model(), []

    def speak(module: Any, args: Any, out: Any) -> Any:
        calls.append(out)
        told = torch.zeros_like(out)
        told[..., texts[max(0, len(calls) - 2)]] = 200.0  # the first call reads the prompt
        return told

    model.lm_head.register_forward_hook(speak)
    found, _ = _draw(model, [[7, 9]], samples=1, stop=stop, max_new_tokens=room)
    return found[0][0], len(calls)


def test_of_two_stop_texts_in_one_token_the_earlier_one_cuts() -> None:
    tokenizer = tiny_tokenizer()
    words = {tokenizer.decode([i]): i for i in range(len(tokenizer))}
    word = next(word for word in words if len(word) > 2 and word.isalpha() and len(set(word)) == len(word))
    found, _ = _told([words["1"], words["2"], words[word], words["3"]], [word[2], word[1]], 4)
    assert (found.text, found.finish) == (f"12{word[0]}", "stop")
    assert found.ids == (words["1"], words["2"], tokenizer.eos_token_id)


def test_a_long_stop_text_is_seen_where_every_token_is_one_byte() -> None:
    tokenizer = tiny_tokenizer()
    stop = "\u00e4\u00f6\u00fc\u00df" * 3
    ids = tokenizer(stop)["input_ids"]
    assert len(ids) == len(stop.encode()) == 24
    one = tokenizer("1")["input_ids"]
    found, calls = _told([*one, *ids, *one * 10], [stop], 35)
    assert (found.text, found.finish) == ("1", "stop")
    assert calls == 1 + 25  # the prompt, then nothing behind the stop text


def test_a_special_token_as_stop_text_ends_a_completion() -> None:
    model, prompts, tokenizer = _model(), _prompts(), tiny_tokenizer()
    marker = "<|im_start|>"
    free = [s for g in _draw(model, prompts, samples=40)[0] for s in g]
    found = [s for g in _draw(model, prompts, samples=40, stop=[marker])[0] for s in g]
    number = tokenizer.convert_tokens_to_ids(marker)
    ended = [(b, a) for b, a in zip(free, found, strict=True) if number in b.ids]
    assert ended
    for before, after in ended:
        assert after.ids == before.ids[: before.ids.index(number) + 1]
        assert after.finish == "end"


def test_stop_texts_that_cannot_be() -> None:
    with pytest.raises(ValidationError, match="it has an empty text, before which every completion would end"):
        _draw(_model(), [[5]], stop=["x", ""])
    tokenizer = tiny_tokenizer(chat=False)  # nor a template that would close an answer
    tokenizer.eos_token = None
    model = _model()
    model.generation_config.eos_token_id = None
    assert len(_draw(model, [[5]], tokenizer=tokenizer)[0][0][0].ids) == 12
    with pytest.raises(UserError, match="needs an end-of-text token"):
        _draw(model, [[5]], tokenizer=tokenizer, stop=["x"])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_positions_end_completions_one_prompt_at_a_time(name: str) -> None:
    said: list[str] = []
    limit = {"gpt2": "n_positions"}.get(name, "max_position_embeddings")
    model = _model(name, **{limit: 20})
    tokenizer = tiny_tokenizer()
    prompts = [[5] * 17, [6] * 3, [7] * 19, [8] * 17, [9] * 8]
    sampler = Sampler(Sampling(samples=2, max_new_tokens=12), tokenizer, 5, say=said.append)
    found = sampler(model, prompts, _keys(prompts), 4, device=torch.device("cpu"))
    for row, samples in enumerate(found):
        room = min(12, 20 - len(prompts[row]))
        assert all(len(s.ids) == room or s.finish == "end" for s in samples)
        assert [list(s.ids) for s in samples] == [
            _by_hand(model, prompts[row], _keys(prompts)[row], k, room) for k in range(2)
        ]
    assert any(s.truncated for s in found[2])
    sampler(model, prompts, _keys(prompts), 5, device=torch.device("cpu"))
    assert len(said) == 1
    assert "end before 12 new tokens, since the model reads 20" in said[0]
    with pytest.raises(UserError, match=r"Prompt 1 \('.+'\.\.\.\) has 20 tokens, which leaves no room"):
        _draw(model, [[5], [6] * 20])
    with pytest.raises(UserError, match="Prompt 0 is empty"):
        _draw(model, [[], [6]])


def test_no_prompts_no_completions() -> None:
    assert _draw(_model(), [])[0] == []


def test_a_special_token_without_a_name_ends_a_completion_too() -> None:
    tokenizer = tiny_tokenizer(chat=False)
    mark = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert "<|im_end|>" not in tokenizer.all_special_tokens
    assert special_tokens(tokenizer)["<|im_end|>"] == mark
    assert set(special_tokens(tokenizer)) >= set(tokenizer.all_special_tokens)
    model = _model()
    with torch.no_grad():  # logits near zero: every token is as likely as the mark
        model.lm_head.weight.mul_(0.0)
    settings = Sampling(samples=64, max_new_tokens=600, stop=["<|im_end|>"])
    (drawn,) = Sampler(settings, tokenizer, 1)(model, [[5, 6]], [0], 0, device=torch.device("cpu"))
    ended = [sample for sample in drawn if sample.ids[-1] == mark]
    assert ended
    assert all(sample.finish == "end" and mark not in sample.ids[:-1] for sample in ended)
    assert all(mark not in sample.ids for sample in drawn if sample not in ended)
