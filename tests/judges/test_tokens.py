"""The tokens that a reward model is trained on are those that it judges, whatever its tokenizer adds to a text."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset
from tiny import tiny_tokenizer
from tokenizers import processors
from transformers import PreTrainedTokenizerFast
from zoo import tiny_classifier

from align.data.tokens.tokenize import prepare
from align.judges.reward import RewardModel

TEXTS = [("What is the capital?", " Paris."), ("Who wrote the book?\n", "A person who lives in the north")]
TALKS = [([{"role": "user", "content": prompt}], answer) for prompt, answer in TEXTS]


def closing(start: str, end: str, **special: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer that gives every text a token before and one behind it."""
    made = tiny_tokenizer(chat=False)
    kinds = [(token, made.convert_tokens_to_ids(token)) for token in (start, end)]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", pair=f"{start} $A {end} $B {end}", special_tokens=kinds
    )
    for name, token in special.items():
        setattr(made, name, token)
    return made


KINDS = {
    "adds nothing": lambda: tiny_tokenizer(chat=False),
    "adds BOS": lambda: tiny_tokenizer(chat=False, bos=True),
    "adds BOS and EOS, as RoBERTa's": lambda: closing("<s>", "<|endoftext|>"),
    "adds a separator and has no EOS, as BERT's": lambda: closing("<s>", "<|im_end|>", eos_token=None),
    "chat": tiny_tokenizer,
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_judging_see_the_same_tokens(kind: str, tmp_path: Path) -> None:
    tokenizer = KINDS[kind]()
    talks = kind == "chat"
    rows = [
        {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": answer}] if talks else answer,
            "rejected": [{"role": "assistant", "content": "No."}] if talks else " No.",
        }
        for prompt, answer in (TALKS if talks else TEXTS)
    ]
    prepared, account = prepare(Dataset.from_list(rows), tokenizer, ("chosen", "rejected"))
    trained = [row["prompt_ids"] + row["chosen_ids"] for row in prepared]
    tiny_classifier(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    judge = RewardModel(str(tmp_path), say=lambda _: None)
    prompts, answers = zip(*(TALKS if talks else TEXTS), strict=True)
    assert judge._tokens(prompts, answers) == trained
    # one token ends each text, and no second one
    if not talks:
        end = tokenizer.convert_tokens_to_ids(
            "<|im_end|>" if "BERT's" in kind and "Ro" not in kind else "<|endoftext|>"
        )
        assert [row.count(end) for row in trained] == [1, 1]
        assert all(row[-1] == end for row in trained)
    assert not account.dropped
    assert account.boundary.count == 0  # what closes a text is no part of a prompt
    if not talks:
        asked, _ = prepare(Dataset.from_list([{"prompt": prompt} for prompt, _ in TEXTS]), tokenizer, ())
        assert asked["prompt_ids"][:] == prepared["prompt_ids"][:]
