"""How a server is asked: what it refuses by name, tokens or text, and how many completions at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faulty_server import FaultyServer, Reply
from tiny import tiny_tokenizer

from align.errors import UserError
from align.recipe.sampling import Sampling, Server
from align.sampling.asking import exact_text
from align.sampling.server import ServerSampler
from align.sampling.serving import serve_command

NAME = "align-0123456789ab"
TOKENIZER: Any = tiny_tokenizer()
WORDS = list(TOKENIZER("The book.", add_special_tokens=False)["input_ids"])


def strict(
    refuse: Callable[[dict], str | None], status: int = 400, most: int = 100
) -> tuple[FaultyServer, list[dict[str, Any]]]:
    """A server with a sentence for what it refuses, and what was posted to it."""
    seen: list[dict[str, Any]] = []

    def reply(path: str, body: dict) -> Reply | None:
        if not body:
            return None
        seen.append(body)
        said = refuse(body)
        if said is not None:
            return status, {}, {"error": {"message": said}}
        choice = {"text": "book", "finish_reason": "length", "token_ids": WORDS[:1]}
        return 200, {}, {"choices": [choice] * min(body.get("n", 1), most)}

    return FaultyServer(reply=reply, models=(NAME,)), seen


def draw(server: FaultyServer, prompts: list[list[int]], **settings: Any) -> tuple[list[Any], list[str]]:
    said: list[str] = []
    where = Server(url=server.url, key_env="ALIGN_TEST_KEY", retries=0)
    sampling = Sampling(**{"samples": 6, "max_new_tokens": 4, "server": where, **settings})
    sampler = ServerSampler(sampling, TOKENIZER, 1, NAME, say=said.append, pause=0.01)
    return sampler(prompts, list(range(len(prompts))), 0), said


def test_what_is_refused_by_name_is_left_out_once_and_that_is_said() -> None:
    keys = ("top_n_sigma", "mirostat", "generation_config")

    def refuse(body: dict) -> str | None:
        return next((f"Unrecognized request argument supplied: {key}" for key in keys if key in body), None)

    server, seen = strict(refuse)
    with server:
        found, said = draw(server, [WORDS, WORDS[:2]])
    assert [len(samples) for samples in found] == [6, 6]
    assert [body["max_tokens"] for body in seen] == [1] * 5 + [4, 4]  # three refusals, one taken, one for the number
    assert not set(keys) & set(seen[-1])
    assert seen[-1]["top_k"] == -1
    assert said[0] == (
        f"{server.url}: the server does not take generation_config, mirostat, top_n_sigma; it is asked without, and "
        "whether it draws as it should is seen in what it draws"
    )


def test_a_setting_that_was_asked_for_is_not_left_out() -> None:
    def without(*keys: str) -> Callable[[dict], str | None]:
        return lambda body: next((f"no '{key}' here" for key in keys if key in body), None)

    server, seen = strict(without("top_k"))
    with server:
        draw(server, [WORDS], top_k=7)  # transformers' field has it
    assert json.loads(seen[-1]["generation_config"])["top_k"] == 7
    server, _ = strict(without("generation_config", "top_k"))
    with server, pytest.raises(UserError) as refused:
        draw(server, [WORDS], top_k=7)
    assert str(refused.value) == (
        f"{server.url} does not take top_k, which sampling.top_k sets: leave it out, or draw from another server, or "
        "without one."
    )
    server, _ = strict(without("stop"))
    with server, pytest.raises(UserError, match=r"does not take stop, which sampling\.stop sets"):
        draw(server, [WORDS], stop=["Human:"])
    server, _ = strict(without("stop", "generation_config", "temperature"))
    with server:
        draw(server, [WORDS])  # what was left as it is may be left out


@pytest.mark.parametrize(("most", "sizes"), [(6, [6]), (4, [3, 3]), (2, [2, 2, 2]), (1, [1] * 6)])
def test_completions_are_asked_for_as_many_at_a_time_as_the_server_takes(most: int, sizes: list[int]) -> None:
    server, seen = strict(lambda body: f"Field 'n': at most {most}" if body.get("n", 1) > most else None)
    with server:
        (samples,), said = draw(server, [WORDS])
    assert [sample.index for sample in samples] == list(range(6))
    drawn = [body for body in seen if body["max_tokens"] == 4]
    assert [body["n"] for body in drawn] == sizes
    # servers count the seed up for each completion: split, the seeds are those of one call
    first = drawn[0]["seed"]
    assert [body["seed"] - first for body in drawn] == [sum(sizes[:i]) for i in range(len(sizes))]
    assert any("at a time, so a prompt takes several calls" in line for line in said) == (most < 6)


def test_a_server_that_gives_one_whatever_it_is_asked_for_is_asked_for_one() -> None:
    server, seen = strict(lambda body: None, most=1)
    with server:
        (samples,), said = draw(server, [WORDS])
    assert len(samples) == 6
    assert [body["n"] for body in seen] == [1, 6, *[1] * 6]
    assert "the server gives one completion at a time, so a prompt takes several calls" in said[-1]


def test_prompts_go_as_text_where_that_gives_the_same_tokens_and_are_refused_where_not() -> None:
    text = "<|im_start|>user\nWho wrote the book?<|im_end|>\n"
    exact = list(TOKENIZER(text, add_special_tokens=False)["input_ids"])
    split = TOKENIZER.convert_tokens_to_ids(list("book"))
    assert exact_text(TOKENIZER, exact) == text
    assert exact_text(TOKENIZER, split) is None
    server, seen = strict(lambda body: None if isinstance(body["prompt"], str) else "prompt must be a string.")
    with server:
        found, said = draw(server, [exact, WORDS])
        assert len(found) == 2
        assert {body["prompt"] for body in seen if body["max_tokens"] == 4} == {text, "The book."}
        assert said[0].endswith("the server takes no token ids, so prompts go as text, which gives the same tokens")
        with pytest.raises(UserError) as refused:
            draw(server, [exact, split, WORDS])
    assert str(refused.value) == (
        f"{server.url} takes prompts as text only, and 1 of 3 prompts (one begins with 'book') have no text that gives "
        "their tokens back: draw from a server that takes token ids, or without one."
    )


def test_a_bos_that_the_tokenizer_adds_itself_is_left_to_it() -> None:
    adds = tiny_tokenizer(bos=True)
    ids = list(adds("The book.")["input_ids"])
    assert ids[0] == adds.bos_token_id
    assert exact_text(adds, ids) == "The book."
    assert exact_text(adds, ids[1:]) is None  # it cannot be told to leave it out


def test_a_refusal_without_a_cure_is_the_servers_own_sentence_and_advises_nothing(tmp_path: Path) -> None:
    server, _ = strict(lambda body: "this model is for chats")
    with server, pytest.raises(UserError) as refused:
        draw(server, [WORDS])
    assert str(refused.value) == (
        f"POST {server.url}/completions was refused with status 400: this model is for chats."
    )


def adapter(folder: Path, **settings: Any) -> Path:
    folder.mkdir()
    about = {"base_model_name_or_path": "some/base", "r": 8, "bias": "none", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


def test_the_command_that_serves_a_policy(tmp_path: Path) -> None:
    plain = adapter(tmp_path / "my adapter")
    assert serve_command(tmp_path, NAME) == f"vllm serve {tmp_path} --served-model-name {NAME} --generation-config vllm"
    assert serve_command(plain, NAME) == (
        f"vllm serve some/base --enable-lora --lora-modules {NAME}='{plain}' --generation-config vllm"
    )
    wide = adapter(tmp_path / "wide", r=40)
    assert f"--lora-modules {NAME}={wide} --max-lora-rank 64 " in serve_command(wide, NAME)
    for number, settings in enumerate(
        ({"modules_to_save": ["lm_head"]}, {"use_dora": True}, {"r": 600}, {"bias": "all"})
    ):
        other = adapter(tmp_path / f"other-{number}", **settings)
        assert serve_command(other, NAME) == (
            f"align export {other} --merge --out {other}-merged && "
            f"vllm serve {other}-merged --served-model-name {NAME} --generation-config vllm"
        )
