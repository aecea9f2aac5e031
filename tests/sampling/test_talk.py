"""Conversations: what a model is asked, what it remembers, and how an answer is ended."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_tokenizer
from zoo import tiny_model

from align.errors import UserError
from align.recipe.sampling import Sampling
from align.sampling.sampler import Sampler
from align.sampling.talk import Talk

SETTINGS = Sampling(samples=1, max_new_tokens=12)


def talk(*, chat: bool = True, **options: Any) -> Talk:
    tokenizer = tiny_tokenizer(chat=chat)
    return Talk("tiny", tiny_model(vocab_size=len(tokenizer)), tokenizer, SETTINGS, **options)


def test_pieces_make_the_answer_and_the_answer_is_remembered() -> None:
    made, pieces = talk(seed=4, system="Be brief."), list[str]()
    reply = made.answer("Who is there?", pieces.append)
    assert "".join(pieces) == reply.text
    assert len([piece for piece in pieces if piece]) > 3
    prompt = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho is there?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = made.tokenizer(prompt).input_ids
    ((sample,),) = Sampler(SETTINGS, made.tokenizer, 4)(made.model, [ids], [0], 0, device=torch.device("cpu"))
    assert reply.text == sample.text  # as any sampler draws it
    second = made.answer("Why?", pieces.append)
    draw, ids = Sampler(SETTINGS, made.tokenizer, 4), made._ids(made.messages[:3])
    first, then = (draw(made.model, [ids], [0], turn, device=torch.device("cpu"))[0][0].text for turn in (0, 1))
    assert second.text == then != first  # every turn draws anew
    assert made.messages[:3] == [
        {"role": "user", "content": "Who is there?"},
        {"role": "assistant", "content": reply.text},
        {"role": "user", "content": "Why?"},
    ]


def test_without_a_template_the_model_goes_on_with_the_text() -> None:
    made = talk(chat=False)
    reply = made.answer("The sea is", lambda _: None)
    assert made._ids([*made.messages, {"role": "user", "content": "And so"}]) == list(
        made.tokenizer(f"The sea is\n{reply.text}\nAnd so").input_ids
    )
    with pytest.raises(UserError, match="--system: the tokenizer of tiny has no chat template"):
        talk(chat=False, system="Be brief.")


def test_an_answer_that_is_stopped_stays_as_far_as_it_came() -> None:
    made, pieces = talk(), list[str]()

    def put(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    whole = talk().answer("Who is there?", lambda _: None)
    reply = made.answer("Who is there?", put)
    assert reply.finish == "stopped"
    assert whole.text.startswith(reply.text)
    assert 0 < len(reply.text) < len(whole.text)
    assert made.messages[-1] == {"role": "assistant", "content": reply.text}
    assert made.answer("And now?", lambda _: None).finish in ("end", "length")


def test_what_leaves_no_room_is_not_remembered() -> None:
    made = talk()
    with pytest.raises(UserError, match="leaves no room for a completion"):
        made.answer("word " * 200, lambda _: None)
    assert made.messages == []
