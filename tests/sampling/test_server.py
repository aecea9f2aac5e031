"""Samples drawn by a server: what is asked of it, what is made of its answers, and that it serves the right policy."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faulty_server import TIMEOUT, FaultyServer, Reply, mixed
from tiny import tiny_tokenizer

from align.data.tokens.samples import prompt_key
from align.errors import UserError
from align.recipe.sampling import Sampling, Server
from align.sampling.server import ServerSampler
from align.sampling.serving import policy_name

TOKENIZER: Any = tiny_tokenizer()
END = TOKENIZER.eos_token_id
SERVED = policy_name("0123456789abcdef" * 4)
PROMPTS = [[5, 6, 7], [8, 9], [5, 6, 7], [20]]
KEYS = [prompt_key(prompt, row) for row, prompt in enumerate(PROMPTS)]


def sampler(
    server: FaultyServer, cache: Path | None = None, say: Callable[[str], Any] = lambda _: None, **more: Any
) -> ServerSampler:
    own = {name: more.pop(name) for name in ("seed", "checkpoint") if name in more}
    timeout = more.pop("timeout", 5.0)
    where = Server(url=server.url, timeout=timeout, retries=8, key_env="ALIGN_TEST_KEY", concurrency=4)
    settings = Sampling(**{"samples": 3, "max_new_tokens": 6, "server": where, **more})
    seed = own.pop("seed", 1)
    return ServerSampler(settings, TOKENIZER, seed, SERVED, cache=cache, say=say, pause=0.01, **own)


def one(choice: dict) -> Callable[[str, dict], Reply | None]:
    """A server that gives every sample the same choice."""

    def reply(path: str, body: dict) -> Reply | None:
        return (200, {}, {"choices": [choice] * body["n"]}) if body else None

    return reply


def test_the_name_of_a_policy() -> None:
    assert SERVED == "align-0123456789ab"


def test_samples_are_what_the_server_drew() -> None:
    with FaultyServer(tokenizer=TOKENIZER, models=("base", SERVED)) as server:
        draws = sampler(server)
        found = draws(PROMPTS, KEYS, 0)
    seeds = [draws.body(prompt, key, 0)["seed"] for prompt, key in zip(PROMPTS, KEYS, strict=True)]
    for row, samples in enumerate(found):
        for index, sample in enumerate(samples):
            draw = random.Random(seeds[row] + index)
            count = draw.randint(1, 8)
            ids = [draw.randrange(10, 100) for _ in range(min(count, 6))]
            ids = [*ids[:-1], END] if count <= 6 else ids
            assert (sample.index, list(sample.ids)) == (index, ids)
            assert sample.finish == ("end" if count <= 6 else "length")
            assert sample.text == TOKENIZER.decode(ids, skip_special_tokens=True)
    flat = [sample for samples in found for sample in samples]
    assert {sample.finish for sample in flat} == {"end", "length"}
    assert draws.last_logps == [[-(i % 7) - 0.5 for i in sample.ids] for sample in flat]
    assert draws.retokenised == 0


def test_samples_land_once_under_all_faults_and_are_kept(tmp_path: Path) -> None:
    prompts = [[i] for i in range(20)]
    with FaultyServer(mixed(6), tokenizer=TOKENIZER, models=(SERVED,)) as server:
        draws = sampler(server, tmp_path, timeout=TIMEOUT)
        found = draws(prompts, list(range(20)), 3)
        drawn = [count for asked, count in server.answered.items() if '"max_tokens": 6' in asked]
        assert drawn == [1] * 20  # besides the calls of one token that find out how it is asked
        asked = server.requests
        again = sampler(server, tmp_path)
        server.models = ()  # nothing is needed of a server where nothing is left to ask
        assert again(prompts, list(range(20)), 3) == found
        assert again.last_logps == draws.last_logps
        assert server.requests == asked


def test_what_is_posted_leaves_nothing_for_a_server_to_fill_in() -> None:
    with FaultyServer() as server:
        draws = sampler(server, top_p=0.9, temperature=0.7)
        body = draws.body([5, 6], 11, 2)
        seed = body.pop("seed")
        generation = {"do_sample": True, "num_beams": 1, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
        generation |= {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0}
        generation |= {"temperature": 0.7, "top_p": 0.9, "top_k": 0, "min_p": 0.0}
        assert json.loads(body.pop("generation_config")) == generation
        assert body == {
            "model": SERVED,
            "prompt": [5, 6],
            "n": 3,
            "max_tokens": 6,
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": -1,
            "min_p": 0.0,
            "typical_p": 1.0,
            "top_n_sigma": -1.0,
            "repetition_penalty": 1.0,
            "repeat_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "dry_multiplier": 0.0,
            "xtc_probability": 0.0,
            "dynatemp_range": 0.0,
            "mirostat": 0,
            "ignore_eos": False,
            "min_tokens": 0,
            "logprobs": 1,
            "return_token_ids": True,
        }
        assert 0 <= seed < 2**31
        assert draws.body([5, 6], 11, 2)["seed"] == seed
        others = [draws.body([5, 6], 12, 2), draws.body([5, 6], 11, 3), sampler(server, seed=2).body([5, 6], 11, 2)]
        assert len({seed, *(other["seed"] for other in others)}) == 4
        more = sampler(server, top_k=5, min_p=0.1, stop=["\n", "<|im_end|>"]).body([5], 0, 0)
        assert (more["top_k"], more["min_p"], more["stop"], more["stop_token_ids"]) == (5, 0.1, ["\n"], [END])
        carried = json.loads(more["generation_config"])
        assert (carried["top_k"], carried["min_p"], carried["eos_token_id"]) == (5, 0.1, [END])


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


# token ids that the server drew, its text, finish and stop reason; then ids, text and finish of the sample
CUT = ids_of("The book. Human: hello")
PLAIN = ids_of("The book.")
READ = [
    ([*PLAIN, END], "The book.", "stop", None, [*PLAIN, END], "The book.", "end"),
    (
        PLAIN,
        "The book.",
        "stop",
        None,
        [*PLAIN, END],
        "The book.",
        "stop",
    ),  # llama.cpp at a stop text: no end was drawn
    ([*PLAIN, 0], "The book.", "stop", 0, [*PLAIN, 0], "The book.", "end"),  # another special token that ends text
    (PLAIN, "The book.", "length", None, PLAIN, "The book.", "length"),
    (PLAIN, "The book.", "stop", "Human:", [*PLAIN, END], "The book.", "stop"),  # cut by the server already
    (CUT, "The book. ", "stop", "Human:", None, "The book. ", "stop"),
    (CUT, "The book. ", "length", None, None, "The book. ", "stop"),  # complete with the last token there was room for
    ([END], "", "stop", None, [END], "", "end"),
]


@pytest.mark.parametrize(("drawn", "text", "finish", "reason", "ids", "kept", "ended"), READ)
def test_how_samples_end(
    drawn: list[int], text: str, finish: str, reason: Any, ids: list[int] | None, kept: str, ended: str
) -> None:
    logps = [-0.1 * i for i in range(len(drawn))]
    choice = {"text": text, "finish_reason": finish, "stop_reason": reason, "token_ids": drawn}
    choice["logprobs"] = {"token_logprobs": logps}
    with FaultyServer(reply=one(choice), models=(SERVED,)) as server:
        draws = sampler(server, samples=1, max_new_tokens=40, stop=["Human:"])
        ((sample,),) = draws([[5]], [0], 0)
    assert (sample.text, sample.finish) == (kept, ended)
    if ids is None:  # drawn tokens up to where the text stops, and an end
        *front, last = sample.ids
        assert (front, last) == (drawn[: len(front)], END)
        assert kept.startswith(TOKENIZER.decode(front))
        assert len(TOKENIZER.decode(drawn[: len(front) + 1])) > len(kept)  # one more would be too many
        assert draws.last_logps == [logps[: len(front)]]
    else:
        assert list(sample.ids) == ids
        assert draws.last_logps == [logps]


def test_without_token_ids_the_text_is_tokenised_and_that_is_said_once() -> None:
    said: list[str] = []
    with FaultyServer(tokenizer=TOKENIZER, ids=False, models=(SERVED,)) as server:
        draws = sampler(server, say=said.append)
        found = draws(PROMPTS, KEYS, 0)
        draws(PROMPTS, KEYS, 1)
    for sample in (sample for samples in found for sample in samples):
        plain = ids_of(sample.text)
        assert list(sample.ids) == ([*plain, END] if sample.finish == "end" else plain)
    assert draws.retokenised == 2 * 4 * 3
    assert draws.last_logps == [[]] * 12
    assert [sentence.split(": ", 1)[1] for sentence in said] == [
        "the server gives no token ids, so samples are made into tokens again from their text"
    ]


def test_a_server_of_something_else_is_refused_with_the_command(tmp_path: Path) -> None:
    with FaultyServer(tokenizer=TOKENIZER, models=("base", "align-ffffffffffff")) as server:
        with pytest.raises(UserError) as caught:
            sampler(server, checkpoint=tmp_path / "my model")(PROMPTS, KEYS, 0)
        assert str(caught.value) == (
            f"{server.url} does not serve {SERVED}, the policy as it is now; it serves 'base', 'align-ffffffffffff'. "
            "Start it on this checkpoint and go on with --resume:\n"
            f"  vllm serve '{tmp_path}/my model' --served-model-name {SERVED} --generation-config vllm"
        )
        assert server.requests == 0


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        (
            {"text": "", "finish_reason": "stop", "token_ids": [5, 10**6]},
            "answers with token 1000000, but the policy's",
        ),
        ({"text": "", "finish_reason": "stop", "token_ids": []}, "not what was asked for"),
        ({"text": "", "finish_reason": "stop", "token_ids": [5] * 7}, "not what was asked for"),
        ({"text": "", "finish_reason": "stop", "token_ids": [-1]}, "not what was asked for"),
        ({"text": "", "finish_reason": "stop", "token_ids": [True]}, "not what was asked for"),
        ({"text": None, "finish_reason": "stop"}, "not what was asked for"),
        ({"text": "", "finish_reason": "abort", "token_ids": [5]}, "not what was asked for"),
    ],
)
def test_answers_that_are_refused(choice: dict, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("align.judges.http._LONGEST", 0.001)
    with FaultyServer(reply=one(choice), models=(SERVED,)) as server, pytest.raises(UserError, match=sentence):
        sampler(server)([[5]], [0], 0)


def test_one_seed_for_all_samples_is_noticed() -> None:
    said: list[str] = []
    same = {"text": "a", "finish_reason": "stop", "token_ids": [66, END], "logprobs": {"token_logprobs": [-1.0, -1.0]}}
    with FaultyServer(reply=one(same), models=(SERVED,)) as server:
        sampler(server, say=said.append)(PROMPTS, KEYS, 0)
    assert [sentence.split(": ", 1)[1] for sentence in said] == [
        "all samples of a prompt are the same, for every prompt: the server seems to give them one seed"
    ]


def test_settings_that_are_refused() -> None:
    where = Server(url="http://localhost:1")
    with pytest.raises(UserError, match=r"sampling.server is not set"):
        ServerSampler(Sampling(), TOKENIZER, 0, SERVED)
    endless = tiny_tokenizer()
    endless.eos_token = None
    with pytest.raises(UserError, match="no end-of-text token"):
        ServerSampler(Sampling(server=where), endless, 0, SERVED)
