"""Ids of many texts at once are those of the tokenizer's own call, whatever kind of tokenizer it is."""

from __future__ import annotations

import functools
import operator
import random
from collections.abc import Callable
from typing import Any

import pytest
from tiny import tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from align.data.tokens import ids
from align.data.tokens.ids import ids_of, ids_of_parts


def truncating(tokenizer: Any) -> None:
    tokenizer(["a b c d"] * 2, truncation=True, max_length=2, padding=True)


@pytest.mark.parametrize("before", [lambda _: None, truncating], ids=["fresh", "used"])
@pytest.mark.parametrize("bos", [False, True])
def test_ids_are_those_of_the_tokenizers_own_call(before: Callable[[Any], None], bos: bool) -> None:
    tokenizer, texts = tiny_tokenizer(bos=bos), ["", "a", "What is it? <|im_end|>\n", "é 漢字 " * 50]
    for special in (True, False):
        before(tokenizer)
        expected = [tokenizer(text, add_special_tokens=special)["input_ids"] for text in texts]
        before(tokenizer)
        assert ids_of(tokenizer, texts, add_special_tokens=special) == expected
    assert ids_of(tokenizer, []) == []


def test_a_tokenizer_with_a_call_of_its_own_is_called() -> None:
    tokenizer = tiny_tokenizer()

    class Own(type(tokenizer)):  # type: ignore[misc]
        def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> Any:
            return super()._encode_plus([part.upper() for part in text], *args, **kwargs)

    own = Own(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    assert ids_of(own, ["sea"]) == ids_of(tokenizer, ["SEA"]) != ids_of(tokenizer, ["sea"])


# ---- parts that come in several texts

WORDS = [
    "What",
    " is it",
    "?",
    "\n",
    "  ",
    " ",
    "é",
    "漢字",
    "of",
    "Of",
    "<|",
    "|>",
    "im_end",
    "a",
    "tea",
    "Straße",
    "\t",
]


def trained(model: Any, trainer: Any, pre: Any, normalizer: Any = None) -> Tokenizer:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.train_from_iterator(["What is it of tea? Straße a of it", " it is a of", "|> <| im_end"] * 3, trainer)
    return backend


def byte_level(prefix: bool) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    return trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=prefix))


def unigram(scheme: Any) -> Tokenizer:
    trainer = trainers.UnigramTrainer(vocab_size=60, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    return trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(prepend_scheme=scheme))


def word_piece() -> Tokenizer:
    trainer = trainers.WordPieceTrainer(vocab_size=80, special_tokens=["[UNK]"], show_progress=False)
    pre = pre_tokenizers.BertPreTokenizer()
    return trained(models.WordPiece(unk_token="[UNK]"), trainer, pre, normalizers.BertNormalizer(lowercase=True))


def llama() -> Tokenizer:
    """Without a pre-tokenizer: blanks become part of the text, one is put in front."""
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], show_progress=False)
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made = trained(models.BPE(unk_token="<unk>", fuse_unk=True), trainer, pre_tokenizers.WhitespaceSplit(), normalizer)
    made.pre_tokenizer = pre_tokenizers.Sequence([])
    return made


def stripping() -> Tokenizer:
    trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False)
    return trained(models.WordLevel(unk_token="[UNK]"), trainer, pre_tokenizers.Whitespace(), normalizers.Strip())


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": lambda: byte_level(False),
    "byte level, a blank in front": lambda: byte_level(True),
    "unigram, a blank in front of the first": lambda: unigram("first"),
    "unigram, a blank in front of each": lambda: unigram("always"),
    "word pieces": word_piece,
    "llama": llama,
    "words, stripped": stripping,
}
USUAL = ("<|im_start|>", "<|im_end|>")


def with_tokens(backend: Tokenizer, *tokens: Any) -> PreTrainedTokenizerFast:
    backend.add_special_tokens([AddedToken(t, normalized=False) if isinstance(t, str) else t for t in tokens])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")


def some_texts(*tokens: str, count: int = 200) -> list[str]:
    """Random texts of words, of tokens and of parts of them; the first has every token."""
    rng = random.Random(3)
    texts = ["".join(rng.choices([*WORDS, *tokens * 4], k=rng.randint(0, 14))) for _ in range(count)]
    return [" it".join(tokens), *texts]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are tokenised from now on."""
    seen: list[str] = []

    def ids_and_note(tokenizer: Any, texts: Any, **how: Any) -> Any:
        seen.extend(texts)
        return ids_of(tokenizer, texts, **how)

    monkeypatch.setattr(ids, "ids_of", ids_and_note)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_tokenised_once_and_give_the_same_ids(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, texts = with_tokens(KINDS[kind](), *USUAL), some_texts(*USUAL)
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    seen = counted(monkeypatch)
    assert ids_of_parts(tokenizer, texts) == expected
    assert len(seen) == len(set(seen))
    assert all(mark not in text[1:] for text in seen for mark in USUAL)


@pytest.mark.parametrize(
    "others",
    [
        ["<|im_end|>\n"],  # longer, with the same beginning
        ["a<|im"],  # reaches into the next one
        ["|><|im_start|>a"],  # contains one
        ["<|"],  # a part of one
        ["<"],
        ["|>"],
        [AddedToken("<|tool|>", normalized=False, rstrip=True)],  # as those of Phi-3
        ["\n "],
        [AddedToken("<|tool|>", normalized=False, rstrip=True), "\n"],
        [AddedToken("<|tool|>", normalized=False, lstrip=True)],
        [AddedToken("<|tool|>", normalized=False, lstrip=True, rstrip=True), " a"],
        [AddedToken("of", normalized=False, single_word=True)],
        [AddedToken("of", normalized=True, special=False)],
        [AddedToken("it", normalized=True, lstrip=True, rstrip=True, special=False)],
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["byte level", "unigram, a blank in front of the first", "word pieces", "llama"])
def test_tokens_that_meet_others_are_no_place_to_cut(kind: str, others: list[Any]) -> None:
    tokenizer = with_tokens(KINDS[kind](), *others, *USUAL)
    texts = some_texts(*USUAL, *map(str, others), count=600)
    assert ids_of_parts(tokenizer, texts) == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_the_beginning_of_a_mark_is_no_hindrance(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, seen = with_tokens(byte_level(False), "<|", *USUAL), counted(monkeypatch)
    found = ids_of_parts(tokenizer, ["<|im_start|>a<|im_end|>", "<|im_start|>a<|im_end|>of"])
    assert seen == ["", "<|im_start|>a", "<|im_end|>", "<|im_end|>of"]
    assert found[1] == tokenizer("<|im_start|>a<|im_end|>of", add_special_tokens=False)["input_ids"]


def test_a_token_that_overlaps_itself_is_no_place_to_cut() -> None:
    tokenizer = with_tokens(byte_level(False), "aXa", *USUAL)
    texts = ["aXa<|im_end|>", "aXaXa", "aXaXaXa<|im_end|> aXaXa", "XaXaXa"]
    assert ids_of_parts(tokenizer, texts) == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_a_tokenizer_that_splits_special_tokens_is_asked_for_whole_texts() -> None:
    tokenizer = with_tokens(byte_level(False), *USUAL)
    tokenizer.split_special_tokens = True
    texts = some_texts(*USUAL)
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert tokenizer.eos_token_id not in functools.reduce(operator.iadd, expected, [])
    assert ids_of_parts(tokenizer, texts) == expected


def test_no_texts_have_no_ids() -> None:
    assert ids_of_parts(tiny_tokenizer(), []) == []
