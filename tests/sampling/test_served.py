"""A server that does not draw from the policy, or not as asked, is found out, whatever its answers look like."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from policy_server import Layout, PolicyServer, warped
from saved_model import VOCABULARY, save_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from align.data.tokens.samples import Sample
from align.engine.scoring import ScoringEngine, attach
from align.errors import UserError
from align.models.subject import Subject
from align.recipe.sampling import Sampling, Server
from align.sampling import served
from align.sampling.served import Asked, Fit, fit, require_fit
from align.sampling.server import ServerSampler

NAME = "align-0123456789ab"
PROMPTS = [[3 + i, 50 - i, 20] for i in range(40)]
KEYS = list(range(40))
LAYOUTS: list[Layout] = ["vllm", "llama.cpp", "transformers"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = save_model(tmp_path_factory.mktemp("model"), initializer_range=0.15)
    words = ["<pad>", "</s>", "<s>", *(f"w{i}" for i in range(3, VOCABULARY))]  # no special token within a word
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}
    PreTrainedTokenizerFast(tokenizer_object=plain, **named).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


def checked(server: PolicyServer, folder: Path, cache: Path | None = None, **settings: Any) -> tuple[list[str], Any]:
    """What the check of a server says, and its sampler."""
    said: list[str] = []
    where = Server(url=server.url, key_env="ALIGN_TEST_KEY", retries=0)
    sampling = Sampling(**{"samples": 3, "max_new_tokens": 12, "server": where, **settings})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sampler = ServerSampler(sampling, tokenizer, 1, NAME, cache=cache, say=said.append, pause=0.01)
    require_fit(sampler, loaded(folder), PROMPTS, KEYS, 1, said.append)
    return said, sampler


@pytest.fixture(autouse=True)
def _fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "TOKENS", 400)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_server_of_each_kind_that_serves_the_policy_is_drawn_from(
    layout: Layout, folder: Path, tokenizer: Any
) -> None:
    names = ("/models/x/" + NAME if layout == "transformers" else NAME,)
    with PolicyServer(loaded(folder), tokenizer, layout, models=names) as server:
        said, _ = checked(server, folder)
    found = [line for line in said if "as far as" in line]
    assert len(found) == 1
    assert (
        found[0].endswith(
            "it names none of its own to compare" if layout == "transformers" else "differ by 1.5e-07 nats a token"
        )
        or float(found[0].split()[-4]) < 1e-4
    )
    expected = {
        "vllm": [],
        "llama.cpp": ["the server gives 2 completions at a time, so a prompt takes several calls"],
        "transformers": [
            "the server does not take dry_multiplier, dynatemp_range, ignore_eos, min_p, min_tokens, mirostat, "
            "repeat_penalty, repetition_penalty, return_token_ids, top_k, top_n_sigma, typical_p, xtc_probability; it "
            "is asked without, and whether it draws as it should is seen in what it draws",
            "the server takes no token ids, so prompts go as text, which gives the same tokens",
            "the server gives one completion at a time, so a prompt takes several calls",
            "the server gives no token ids, so samples are made into tokens again from their text",
        ],
    }
    assert [line.split(": ", 1)[1] for line in said if "as far as" not in line] == expected[layout]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_distribution_is_seen_in_the_drawn_tokens(
    layout: Layout, folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"top_k": 4} if layout == "vllm" else {"temperature": 0.5}
    served_otherwise = PolicyServer(loaded(folder), tokenizer, layout, models=(NAME,), settings=settings)
    with served_otherwise as server, pytest.raises(UserError) as refused:
        checked(server, folder, tmp_path / "cache")
    said = str(refused.value)
    assert f"does not draw from the policy {NAME} as it was asked to. Under the policy the " in said
    assert "it draws likelier tokens: a lower temperature, or a top_k, top_p or min_p of its own. What it drew" in said
    assert "log-probs of its own samples" not in said  # the weights are the same
    assert not (tmp_path / "cache").exists()


def test_a_hotter_server_and_other_weights_are_seen_without_log_probs(folder: Path, tokenizer: Any) -> None:
    for settings, model in (({"temperature": 2.0}, loaded(folder)), ({}, _other(folder))):
        otherwise = PolicyServer(model, tokenizer, "transformers", models=(NAME,), settings=settings)
        with (
            otherwise as server,
            pytest.raises(UserError, match="it draws less likely tokens: a higher"),
        ):
            checked(server, folder)


@pytest.mark.parametrize("layout", ["vllm", "llama.cpp"])
def test_a_copy_of_few_bits_is_seen_in_the_log_probs_it_names(layout: Layout, folder: Path, tokenizer: Any) -> None:
    copy = PolicyServer(_rounded(folder, 4), tokenizer, layout, models=(NAME,))
    with copy as server, pytest.raises(UserError, match=r"differ from the policy's by 0\.\d+ nats .* copy of 4 bits"):
        checked(server, folder)


def test_what_an_earlier_server_drew_says_nothing_of_the_one_that_is_there(
    folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    with PolicyServer(loaded(folder), tokenizer, "vllm", models=(NAME,)) as server:
        _, sampler = checked(server, folder, tmp_path / "cache")
        first = [body["prompt"] for body in server.bodies if body["max_tokens"] == 12]
        # at the same address, as after a restart, it now draws from fewer tokens
        server.settings = {"top_k": 4}
        with pytest.raises(UserError, match="it draws likelier tokens"):
            checked(server, folder, tmp_path / "cache")
        again = [body["prompt"] for body in server.bodies if body["max_tokens"] == 12][len(first) :]
        assert again
        assert not [prompt for prompt in again if prompt in first]
        # what is kept is never asked for, so there is nothing to check
        server.settings = {}
        sampler(PROMPTS, KEYS, 1)
        server.settings = {"top_k": 4}
        asked = server.requests
        said, sampler = checked(server, folder, tmp_path / "cache")
        assert (said, server.requests) == ([], asked)


def test_more_prompts_are_drawn_where_samples_are_short(folder: Path, tokenizer: Any) -> None:
    with PolicyServer(loaded(folder), tokenizer, "vllm", models=(NAME,), settings={"max_tokens": 2}) as server:
        said, _ = checked(server, folder)
        asked = [body["prompt"] for body in server.bodies if body["max_tokens"] == 12]
    assert sorted(asked) == sorted(PROMPTS[: served.MOST_PROMPTS])
    tokens = int(said[-1].split(" as far as ")[1].split()[0])
    assert 32 * 3 < tokens <= 32 * 3 * 2  # where 34 samples of 12 tokens were expected to do


def test_settings_that_were_asked_for_are_what_is_drawn_from(folder: Path, tokenizer: Any) -> None:
    asked = {"temperature": 0.8, "top_k": 9, "top_p": 0.9, "min_p": 0.02}
    kinds: list[Layout] = ["vllm", "transformers"]
    for layout in kinds:
        with PolicyServer(loaded(folder), tokenizer, layout, models=(NAME,)) as server:
            said, _ = checked(server, folder, **asked)
        assert "as far as" in said[-1]
        for prompt, body in ((b["prompt"], b) for b in server.bodies if b["max_tokens"] == 12):
            ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
            assert ids in PROMPTS
            assert body["temperature"] == 0.8
    # what the server names after temperature and the like counts as well, since it is what was asked for
    ours = _fit(folder, Sampling(**asked), after=True)
    assert ours.gap == pytest.approx(0, abs=1e-5)
    assert _fit(folder, Sampling(**asked), after=False).gap == pytest.approx(0, abs=1e-5)


def _fit(folder: Path, settings: Sampling, *, after: bool) -> Fit:
    """Of one sample whose log-probs are named before or after the settings, computed here by hand."""
    model = loaded(folder)
    prompt, ids = PROMPTS[0], []
    logps = []
    how = settings.model_dump() | {"top_k": settings.top_k or 0}
    for _ in range(6):
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, -1].double().detach()
        weights = warped(logits, how)
        ids.append(int(weights.argmax()))
        logps.append(float((weights if after else logits.softmax(-1))[ids[-1]].log()))
    attach(model)
    subject = Subject(model, None, ScoringEngine(), device=torch.device("cpu"))  # type: ignore[arg-type]
    return fit(subject, settings, [prompt], [Sample(0, tuple(ids), "", "length")], [logps])


def test_the_mean_and_the_variance_that_are_due_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(2), math.log(5)]])  # 1/8, 2/8, 5/8
    target = torch.tensor([1])

    def read(what: Any, **settings: Any) -> float:
        return float(Asked(what, Sampling(**settings)).chunk(logits, target, None)[0])

    p = [1 / 8, 2 / 8, 5 / 8]
    mean = sum(x * math.log(x) for x in p)
    assert read("mean") == pytest.approx(mean)
    assert read("variance") == pytest.approx(sum(x * (math.log(x) - mean) ** 2 for x in p))
    # of the two likeliest: 2/7 and 5/7, their log-probs still those of the whole
    mean = 2 / 7 * math.log(p[1]) + 5 / 7 * math.log(p[2])
    assert read("mean", top_k=2) == pytest.approx(mean)
    assert read("logp", top_k=2) == pytest.approx(math.log(2 / 7))
    assert read("logp", top_k=1) == -50  # never drawn
    # at a temperature of 1/2 weights are squares: 1/30, 4/30, 25/30
    assert read("mean", temperature=0.5) == pytest.approx(
        (math.log(p[0]) + 4 * math.log(p[1]) + 25 * math.log(p[2])) / 30
    )


def test_means_that_lie_apart_by_less_than_chance_are_no_problem() -> None:
    """Four standard errors and the slack: a mean that is 0.44 away from the due one is let go, 0.46 is not."""
    ok = Fit(500, -2.44, -2.0, 0.1, 0.09, 500)
    assert ok.problem == ""
    assert "log-prob is -2.44 on average, where -2.00 ± 0.10 is due; those that it names differ by 0.09" in ok.sentence
    assert "it draws less likely tokens" in Fit(500, -2.46, -2.0, 0.1, None, 0).problem
    assert "it draws likelier tokens" in Fit(500, -1.54, -2.0, 0.1, None, 0).problem
    assert Fit(500, -2.0, -2.0, 0.1, 0.11, 400).problem.startswith("Its log-probs of its own samples differ from")
    assert Fit(500, math.nan, -2.0, 0.1, math.nan, 400).problem.count("average") == 2


def test_an_end_behind_a_stop_text_is_not_taken_for_drawn(folder: Path) -> None:
    model = attach(loaded(folder))
    subject = Subject(model, None, ScoringEngine(), device=torch.device("cpu"))  # type: ignore[arg-type]
    counts = [
        fit(subject, Sampling(), [[5, 6]], [Sample(0, (7, 8, 1), "", finish)], [[]]).tokens
        for finish in ("end", "stop", "length")
    ]
    assert counts == [3, 2, 3]
    with pytest.raises(UserError, match="Every sample that the server drew is empty"):
        fit(subject, Sampling(), [[5, 6]], [Sample(0, (1,), "", "stop")], [[]])


def _other(folder: Path) -> Any:
    model = loaded(folder)
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight[torch.randperm(len(weight))])
    return model


def _rounded(folder: Path, bits: int) -> Any:
    """Every row of a weight rounded to so many bits."""
    model = loaded(folder)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2 and len(weight) != VOCABULARY:
                step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
                weight.copy_((weight / step).round() * step)
    return model
