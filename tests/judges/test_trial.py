"""A judge is asked once before anything is drawn; one that often decides nothing is warned of, with the share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from faulty_server import FaultyServer, Reply

from align.data.tokens.samples import Prompt
from align.errors import UserError
from align.judges.endpoint import EndpointJudge
from align.judges.function import FunctionComparison, FunctionJudge
from align.judges.judge import ScoreJudge, undecided_warning
from align.judges.trial import ask_once
from align.recipe.sampling import Endpoint


class Fixed(ScoreJudge):
    name = "fixed"

    def __init__(self, value: float) -> None:
        self.value = value

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        return [self.value] * len(responses)


def endpoint(server: FaultyServer, cache: Path, say: Any = lambda _: None) -> EndpointJudge:
    settings = {"cache": str(cache), "retries": 0, "key_env": "ALIGN_TEST_KEY", "model": "weighs"}
    return EndpointJudge(Endpoint(url=server.url, **settings), say, pause=0.01)


def test_every_kind_of_judge_is_asked_about_an_easy_question_in_the_form_of_the_prompts(tmp_path: Path) -> None:
    seen: list[Any] = []

    def score(prompts: list, responses: list) -> list[float]:
        seen.append((prompts, responses))
        return [float(response.endswith("4.")) for response in responses]

    def better(prompts: list, a: list, b: list) -> list[float]:
        seen.append((prompts, a, b))
        return [0.8]

    ask_once(FunctionJudge(score))
    ask_once(FunctionJudge(score), conversational=True)
    ask_once(FunctionComparison(better))
    right, wrong = "2 + 2 is 4.", "2 + 2 is 5."
    turns = [{"role": "user", "content": "What is 2 + 2?"}]
    assert seen == [
        (["What is 2 + 2?"] * 2, [right, wrong]),
        ([turns] * 2, [right, wrong]),
        (["What is 2 + 2?"], [right], [wrong]),
    ]
    with FaultyServer() as server:
        ask_once(endpoint(server, tmp_path), conversational=True)
        assert server.requests == 1


def test_a_judge_that_cannot_judge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"judge fixed: asked for the scores of two answers, it gave \[nan, nan\]"):
        ask_once(Fixed(math.nan))
    with FaultyServer(judge="neither") as server, pytest.raises(UserError) as refused:
        ask_once(endpoint(server, tmp_path))
    assert str(refused.value) == (
        "judge weighs at 127.0.0.1: asked which of two answers is better, it named neither A nor B, so that nothing "
        "would be judged. Take a model that follows instructions."
    )
    with FaultyServer(judge="text") as server:  # without log-probs it is taken at its word
        ask_once(endpoint(server, tmp_path / "other"))


@pytest.mark.parametrize(
    ("neither", "answers", "share"), [(2, 20, "10%"), (30, 40, "75%"), (1, 20, ""), (19, 19, ""), (0, 0, "")]
)
def test_a_judge_that_often_decides_nothing_is_warned_of_with_the_share(neither: int, answers: int, share: str) -> None:
    expected = (
        f"the judge named neither A nor B in {neither} of {answers} answers ({share}), which decides nothing. Take a "
        "model that follows instructions, or put the question otherwise (judge.endpoint.template)"
    )
    assert undecided_warning((neither, answers)) == (expected if share else "")


def test_an_endpoint_warns_once_and_counts_on(tmp_path: Path) -> None:
    """Every second question gets an answer without a letter."""
    asked: list[int] = []

    def reply(path: str, body: dict) -> Reply | None:
        asked.append(1)
        return 200, {}, {"choices": [{"message": {"content": "Both" if len(asked) % 2 else "A"}}]}

    said: list[str] = []
    with FaultyServer(reply=reply) as server:
        judge = endpoint(server, tmp_path, said.append)
        for start in (0, 12, 24):
            texts = [f"answer {i}" for i in range(start, start + 12)]
            judge.compare(["p"] * 12, texts, ["other"] * 12)
    assert judge.undecided == (36, 72)
    warnings = [
        line for line in said if line.startswith("warning: the judge named neither A nor B in 12 of 24 answers")
    ]
    assert warnings == [line for line in said if line.startswith("warning")]
    assert len(warnings) == 1
