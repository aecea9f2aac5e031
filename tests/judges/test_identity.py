"""Judges of one name that judge otherwise are told apart; how one is asked makes no other of it."""

from __future__ import annotations

from pathlib import Path

from judges.test_models import save_reward
from safetensors.torch import load_file, save_file

from align.judges.identity import identity
from align.recipe.sampling import Endpoint, Judge

HERE = {"url": "http://localhost:8000/v1", "model": "m"}


def test_weights_under_one_name(tmp_path: Path) -> None:
    judge = Judge(reward="judge")
    found = []
    save_reward(tmp_path / "judge")
    file = tmp_path / "judge/model.safetensors"
    for step in 0, 1, 0:
        weights = load_file(file)
        weights["score.weight"] += step
        save_file(weights, file, {"format": "pt"})
        found.append(identity(judge, tmp_path))
    assert found[0] != found[1] == found[2]
    assert found[0] | {"weights": found[1]["weights"]} == found[1]


def test_the_question_and_the_server_count_and_how_it_is_asked_does_not(tmp_path: Path) -> None:
    file = tmp_path / "question.txt"
    texts = ("{prompt} {a} {b} A or B?", "{prompt} {a} {b} Which is worse, A or B?")
    found = []
    for text in texts:
        file.write_text(text)
        found.append(identity(Judge(endpoint=Endpoint(**HERE, template="question.txt")), tmp_path))
    assert [one["question"] for one in found] == list(texts)
    plain, other = (
        identity(Judge(endpoint=Endpoint(**{**HERE, **more})), tmp_path)
        for more in (
            {},
            {"max_calls": 7, "price_in": 2.0, "retries": 1, "cache": "x", "concurrency": 2, "timeout": 1.0},
        )
    )
    assert plain == other
    assert plain != identity(Judge(endpoint=Endpoint(**{**HERE, "url": "http://localhost:8001/v1"})), tmp_path)
