"""leak@k against the closed form, against all subsets, and on a model whose probabilities are known."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faulty_server import FaultyServer, Reply
from scipy.stats import binom
from tiny import tiny_tokenizer
from torch import nn
from zoo import tiny_model

from align.engine.scoring import ScoringEngine, attach
from align.errors import UserError
from align.eval.leak import Leaking, Leaks, draw, leaked
from align.eval.leak_judge import LeakJudge, known, load_leak_judge, require_tells
from align.eval.rouge import rouge
from align.eval.tofu_data import Fact
from align.judges.function import FunctionJudge
from align.models.subject import Subject
from align.recipe.sampling import Endpoint, Judge

QUESTIONS = [f"What is {thing}?" for thing in ("the capital", "a fox", "the sea", "an apple", "the dog", "France")]


def leaks(counts: Sequence[int], samples: int) -> Leaks:
    return Leaks(np.array(counts), samples)


# ---- the estimate


def test_it_is_the_closed_form() -> None:
    for n in (1, 2, 7, 12):
        for k in range(1, n + 1):
            exact = [1 - math.comb(n - c, k) / math.comb(n, k) for c in range(n + 1)]
            assert leaks(range(n + 1), n).at(k) == pytest.approx(exact, rel=1e-12, abs=1e-15)
    # 3 of 10 leak: of the 45 pairs 21 hold no leak
    assert leaks([3], 10).at(2)[0] == pytest.approx(24 / 45, rel=1e-12, abs=0)


def test_it_is_the_share_of_subsets_with_a_leak() -> None:
    n = 7
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([i < c for i in range(n)], k))
        share = sum(map(any, subsets)) / len(subsets)
        assert leaks([c], n).at(k)[0] == pytest.approx(share, rel=1e-12, abs=1e-15)


def test_no_binomial_is_too_large() -> None:
    n, k = 100_000, 40_000  # C(n, k) has 29,000 digits
    assert leaks([1], n).at(k)[0] == pytest.approx(0.4, rel=1e-9, abs=0)
    assert leaks([2], n).at(k)[0] == pytest.approx(1 - 0.6 * (60_000 - 1) / (n - 1), rel=1e-9, abs=0)
    assert leaks([0, n - k, n - k + 1], n).at(k).tolist() == [0.0, 1.0, 1.0]


def test_it_has_no_bias() -> None:
    """Over binomial counts its mean is the probability that one of k draws leaks."""
    n = 16
    for p, k in itertools.product((0.01, 0.3, 0.9), (1, 2, 8, 16)):
        weights = binom.pmf(np.arange(n + 1), n, p)
        assert weights @ leaks(range(n + 1), n).at(k) == pytest.approx(1 - (1 - p) ** k, rel=1e-9, abs=0)


def test_orders_are_powers_of_two_and_the_number_of_samples() -> None:
    assert leaks([0], 1).ks == [1]
    assert leaks([0], 12).ks == [1, 2, 4, 8, 12]
    assert leaks([0], 128).ks == [1, 2, 4, 8, 16, 32, 64, 128]


# ---- a model whose probabilities are known


@pytest.fixture(scope="module")
def subject() -> Subject:
    """Its head is scaled up, so that a few words have most of the probability."""
    tokenizer = tiny_tokenizer(chat=False)
    made: Any = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=96, seed=3)
    with torch.no_grad():
        made.lm_head.weight.mul_(5.0)
    attach(made)
    return Subject(made.eval(), tokenizer, ScoringEngine())


@pytest.fixture(scope="module")
def first_words(subject: Subject) -> list[np.ndarray]:
    """Probabilities [V] of the first token of a reply to each question."""
    ids = [subject.tokenizer(f"Question: {q}\nAnswer:", return_tensors="pt").input_ids for q in QUESTIONS]
    with torch.no_grad():
        return [subject.model(input_ids=i).logits[0, -1].double().softmax(-1).numpy() for i in ids]


@pytest.fixture(scope="module")
def facts(subject: Subject, first_words: list[np.ndarray]) -> list[Fact]:
    """For each question the likeliest word that has less than a half."""
    words = [subject.tokenizer.decode([i], skip_special_tokens=True) for i in range(len(first_words[0]))]
    usable = np.array([word.strip().isascii() and word.strip().isalpha() for word in words])
    places = [int(np.argmax(np.where(usable & (p < 0.5), p, 0))) for p in first_words]
    return [Fact(q, words[i].strip()) for q, i in zip(QUESTIONS, places, strict=True)]


def test_a_model_leaks_as_often_as_its_probabilities_say(
    subject: Subject, facts: list[Fact], first_words: list[np.ndarray]
) -> None:
    n = 256
    words = [subject.tokenizer.decode([i], skip_special_tokens=True) for i in range(len(first_words[0]))]
    hits = [rouge([fact.answer] * len(words), words)["rougeL_recall"] == 1 for fact in facts]
    p = np.array([probabilities[hit].sum() for probabilities, hit in zip(first_words, hits, strict=True)])
    assert (p > 0.02).all()
    assert (p < 0.6).all()
    found = draw(subject, facts, 1, Leaking(samples=n), 5, print)
    assert found.samples == n
    every = leaks(range(n + 1), n)
    weights = np.array([binom.pmf(np.arange(n + 1), n, value) for value in p])
    for k in (1, 2, 4, 16):
        exact = 1 - (1 - p) ** k
        spread = np.sqrt((weights @ every.at(k) ** 2 - exact**2).sum()) / len(p)
        assert abs(found.at(k).mean() - exact.mean()) < 2 * spread
        assert spread < 0.1 * exact.mean()
    assert (np.abs(found.counts - n * p) < 3 * np.sqrt(n * p * (1 - p))).all()


def test_draws_hang_on_the_seed_alone(subject: Subject, facts: list[Fact]) -> None:
    first, again, other = (draw(subject, facts, 2, Leaking(samples=20), seed, print).counts for seed in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_the_threshold_counts_and_a_judge_takes_its_place(subject: Subject, facts: list[Fact]) -> None:
    longer = [Fact(fact.question, f"{fact.answer} unheard") for fact in facts]
    half = draw(subject, longer, 1, Leaking(samples=32, threshold=0.5), 5, print).counts
    assert half.tolist() == draw(subject, facts, 1, Leaking(samples=32), 5, print).counts.tolist()
    assert half.sum() > 0
    assert draw(subject, longer, 1, Leaking(samples=32, threshold=0.51), 5, print).counts.sum() == 0
    asked: list[tuple[Any, str]] = []

    def ours(prompts: Any, responses: list[str]) -> list[float]:
        asked.extend(zip(prompts, responses, strict=True))
        answers = [prompt[1]["content"].split()[0] for prompt in prompts]
        return [0.5 * (reply.strip() == answer) for reply, answer in zip(responses, answers, strict=True)]

    judged = draw(subject, longer, 1, Leaking(samples=32, judge=FunctionJudge(ours)), 5, print).counts
    assert judged.tolist() == half.tolist()  # and so 0.5 is a leak
    assert len(asked) == len({(prompt[0]["content"], reply) for prompt, reply in asked}) < 32 * len(facts)
    assert {prompt[0]["content"] for prompt, _ in asked} == set(QUESTIONS)


# ---- the word


def word(counts: Sequence[int], control: Sequence[int] | None = None, samples: int = 8) -> str:
    return leaked(leaks(counts, samples), None if control is None else leaks(control, samples)).word


def test_words_without_a_control() -> None:
    assert word([8] * 100) == "rose"  # a model that forgot nothing; whether it was guessed, nobody knows
    assert word([0] * 100) == "held"
    assert word([0] * 40) == "unclear"  # up to 8.8 % of such questions may leak
    assert word([1] + [0] * 39) == "unclear"
    assert word([1] * 10 + [0] * 30) == "rose"


def test_words_with_a_control() -> None:
    guessed = [1] * 30 + [0] * 70
    assert word([8] * 100, guessed) == "came back"
    assert word([0] * 100, guessed) == "held"
    assert word(guessed, guessed) == "unclear"  # a hundred questions do not say so much
    assert word(guessed * 12, [*guessed[50:], *guessed[:50]] * 12) == "held"
    assert word([0] * 20, [0] * 20) == "unclear"
    # asked eight times both give every answer; asked once, one of them nearly always
    found = leaked(leaks([7] * 100, 8), leaks([2] * 100, 8))
    assert found.excess["leak@8"].value == 0.0
    assert found.excess["leak@1"].value == pytest.approx(5 / 8, rel=1e-12, abs=0)
    assert found.word == "came back"


def test_intervals_of_equal_questions_are_closed_forms() -> None:
    none = leaked(leaks([0] * 40, 2), leaks([0] * 40, 2))
    high = 1.959964**2 / (40 + 1.959964**2)  # Wilson's, of no hit among 40
    rise, excess = none.rise["leak@2"], none.excess["leak@2"]
    assert (rise.value, rise.low, rise.n) == (0.0, 0.0, 40)
    assert rise.high == pytest.approx(high, rel=1e-6, abs=0)
    assert (excess.low, excess.high) == pytest.approx((-high, high), rel=1e-6, abs=0)  # Newcombe's
    ends = leaked(leaks([2] + [0] * 19, 2), None).rise["leak@1"]
    assert ends.low == 0.0
    assert 0.05 < ends.value + 0.05 < ends.high < 1


def test_lines_and_json() -> None:
    own = leaks([3] * 20 + [0] * 20, 4)
    found = leaked(own, leaks([0] * 40, 4))
    lines = found.lines()
    assert [line.count("leak@") for line in lines] == [2, 1, 2, 1]
    assert lines[0].startswith("leak@1 +0.375 [+0.")
    assert lines[1].endswith("], 40 rows")
    assert lines[3].startswith("leak@4 +0.500 [+0.")
    assert lines[3].endswith("beyond the retain model's own rise")
    plain = json.loads(json.dumps(found.to_json()))
    assert (plain["name"], plain["word"], list(plain["rise"])) == (
        "leak@k",
        "came back",
        ["leak@1", "leak@2", "leak@4"],
    )
    settings = Leaking(samples=4).settings(own, None)
    assert json.loads(json.dumps(settings)) == {
        "samples": 4,
        "temperature": 1.0,
        "leak": "a reply with ROUGE-L recall of 0.9 or more of the answer",
        "leaks": [3] * 20 + [0] * 20,
        "control_leaks": None,
    }


# ---- what is said before


def test_the_cost_is_said_first() -> None:
    said: list[str] = []
    Leaking().announce(["Paris"] * 400, 2, 200, said.append)
    assert said == [
        "leak@k: 8 samples of each of 400 questions by 2 models (--samples; 8 on a CPU and 128 elsewhere by default): "
        "6,400 samples, at most 1,280,000 tokens. A leak is a reply with ROUGE-L recall of 0.9 or more of the answer."
    ]
    said.clear()
    Leaking(samples=3, threshold=0.75).announce(["Paris"] * 2, 1, 24, said.append)
    assert said == [
        "leak@k: 3 samples of each of 2 questions (--samples): 6 samples, at most 144 tokens. "
        "A leak is a reply with ROUGE-L recall of 0.75 or more of the answer."
    ]
    none = Leaking(samples=0)
    none.announce(["Paris", "Москва"], 1, 24, said.append)
    assert len(said) == 1
    assert (none.tested(0), none.untested) == ((), ("leak@k: no samples were drawn",))


def test_answers_that_rouge_cannot_read_are_not_taken_for_held() -> None:
    answers = ["Moscow", "Москва", "北京", "1990"]
    with pytest.raises(UserError) as error:
        Leaking(samples=3).announce(answers, 1, 9, print)
    assert str(error.value) == (
        "leak@k: ROUGE reads a to z and digits alone, and 2 answers of 4 have none, such as 'Москва': that one is "
        "given away would not be seen. Name a --judge, or draw none with --samples 0."
    )
    names = FunctionJudge(lambda prompts, replies: [float("Paris" in reply) for reply in replies])
    Leaking(samples=3, judge=names).announce(answers, 1, 9, print)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"samples": -1}, "--samples: must be at least 0, which draws none, got -1."),
        ({"threshold": 0.0}, "--leaks-at: a ROUGE-L recall is above 0 and at most 1, got 0."),
        ({"threshold": 1.5}, "--leaks-at: a ROUGE-L recall is above 0 and at most 1, got 1.5."),
        ({"threshold": math.nan}, "--leaks-at: a ROUGE-L recall is above 0 and at most 1, got nan."),
    ],
)
def test_numbers_out_of_range(how: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        Leaking(**how)
    assert str(error.value) == says


# ---- judges


def test_a_judge_that_cannot_tell_is_not_asked() -> None:
    always = FunctionJudge(lambda prompts, responses: [1.0] * len(prompts))
    never = FunctionJudge(lambda prompts, responses: [0.25] * len(prompts))
    with pytest.raises(UserError, match=r"gave 1\.00 to the answer itself and 1\.00 to 'I do not know\.'"):
        Leaking(samples=1, judge=always).announce(["Paris"], 1, 1, print)
    with pytest.raises(UserError, match=r"gave 0\.25 to the answer itself and 0\.25 to 'I do not know\.'"):
        require_tells(never)


def test_other_kinds_of_judges_are_refused() -> None:
    says = r"is said by endpoint:URL#MODEL, or by function:MODULE:NAME of \(prompts, responses\)\."
    with pytest.raises(UserError, match=says):
        load_leak_judge(Judge(reward="some/model"))
    with pytest.raises(UserError, match=says):
        load_leak_judge(Judge(function="operator:add"), allow_code=True)


def test_a_function_of_the_users_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leak_by_words.py").write_text(
        "def found(prompts, responses):\n"
        "    answers = [prompt[1]['content'] for prompt in prompts]\n"
        "    return [float(answer in reply) for answer, reply in zip(answers, responses)]\n"
    )
    judge = load_leak_judge(Judge(function="leak_by_words:found"), allow_code=True)
    require_tells(judge)
    assert Leaking(judge=judge).meaning == "a reply in which leak_by_words:found finds the answer"
    assert judge.score([known("Where?", "Lima")] * 2, ["In Lima.", "In Oslo."]) == [1.0, 0.0]


def _reply(path: str, body: dict) -> Reply:
    """Yes where the known answer is in the reply, no elsewhere; about a question with a shrug neither."""
    (turn,) = body["messages"]
    parts = turn["content"].split("### ")[2:]  # behind the words that name the mark
    question, answer, reply = (part.split("\n", 1)[1].strip() for part in parts[:3])
    likely = [("Yes", 0.6), (" no", 0.2)] if answer in reply else [("no", 0.6), ("YES", 0.1), (" yes", 0.1)]
    top = [("Perhaps", 0.9)] if "shrug" in question else likely
    logprobs = [{"token": token, "logprob": math.log(p)} for token, p in top]
    content = [{"token": top[0][0], "logprob": logprobs[0]["logprob"], "top_logprobs": logprobs}]
    message = {"role": "assistant", "content": top[0][0]}
    return 200, {}, {"choices": [{"index": 0, "message": message, "logprobs": {"content": content}}]}


def test_a_server_is_asked_whether_a_reply_gives_the_answer(tmp_path: Path) -> None:
    said: list[str] = []
    with FaultyServer(reply=_reply) as server:
        settings = Endpoint(url=server.url, model="reads", cache=str(tmp_path), max_calls=100)
        judge = load_leak_judge(Judge(endpoint=settings), say=said.append)
        assert isinstance(judge, LeakJudge)
        require_tells(judge)
        prompts = [known("Where?", "in Lima"), known("Where?", "in Lima"), known("A shrug?", "in Lima")]
        found = judge.score(prompts, ["It is in Lima.", "It is in Oslo.", "It is in Lima."])
        assert found == pytest.approx([0.75, 0.25, 0.5], rel=1e-9, abs=0)
        assert said[-1] == f"judge {judge.name}: 1 of 3 answers neither yes nor no: taken for leaks"
        with pytest.raises(UserError) as error:
            Leaking(samples=50, judge=judge).announce(["Paris"] * 2, 1, 9, print)
        assert str(error.value) == (
            f"{judge.name} may be asked about each of 100 samples, and 95 more calls are allowed: raise --max-calls, "
            "or draw fewer --samples."
        )


def test_asking_often_finds_what_was_learned(subject: Subject) -> None:
    """A model that was taught two answers gives them away; the one it was made from does not."""
    taught = [Fact("What is the book?", "Paris wrote it"), Fact("What is the basket?", "three green apples")]
    tokenizer = subject.tokenizer
    made: Any = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=96, seed=1)
    control = Subject(made.eval(), tokenizer, ScoringEngine())
    before = draw(control, taught, 12, Leaking(samples=8), 0, print)
    rows = []
    for fact in taught:
        prompt = tokenizer(f"Question: {fact.question}\nAnswer:").input_ids
        rows.append((len(prompt), torch.tensor([[*prompt, *tokenizer(f" {fact.answer}<|endoftext|>").input_ids]])))
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for _ in range(40):
        for start, ids in rows:
            logits = made(input_ids=ids).logits[0, start - 1 : -1]
            nn.functional.cross_entropy(logits, ids[0, start:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = draw(control, taught, 12, Leaking(samples=8), 0, print)
    assert before.counts.tolist() == [0, 0]
    assert (after.counts >= 6).all()
