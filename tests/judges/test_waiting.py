"""While a server is waited for it is said who it is, how long it has been, and which try it is."""

from __future__ import annotations

import re

import pytest
from faulty_server import FaultyServer, Reply

from align.judges import waiting
from align.judges.http import Client
from align.recipe.sampling import Server


def doubled(path: str, body: dict) -> Reply:
    return 200, {}, {"twice": 2 * body["n"]} if body else {"data": []}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "FIRST_AFTER", 0.15)


def test_a_busy_server_shows_the_try_and_what_the_last_one_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LONGEST", 0.15)
    said: list[str] = []

    def fault(asked: str, attempt: int) -> str:
        return "busy" if '"n": 2}' in asked and attempt < 2 else ""

    with FaultyServer(fault, reply=doubled) as server:
        client = Client(Server(url=server.url, retries=4, key_env="ALIGN_TEST_KEY"), say=said.append, pause=0.5)
        assert client.post("/x", [{"n": 1}, {"n": 2}], lambda answer: "twice" in answer) == [{"twice": 2}, {"twice": 4}]
    failed = "; the last one failed: status 429: slower, please"
    for tried in (1, 2):
        assert any(
            re.fullmatch(
                r"waiting for 127\.0\.0\.1: 1 of 2 answered, 1 is asked for, the longest for \d s, "
                rf"try {tried} of 5{failed}",
                line,
            )
            for line in said
        ), said


def test_the_answer_that_is_asked_for_longest_is_told_about() -> None:
    watch = waiting.Waiting("host", 4, 7, lambda _: None)
    with watch.call() as old, watch.call() as new:
        old.began -= 63
        old.tries, old.last = 3, "status 500: out of memory"
        new.tries = 2
        assert watch.sentence(5) == (
            "waiting for host: 5 of 7 answered, 2 are asked for, the longest for 1 min, try 3 of 5; the last one "
            "failed: status 500: out of memory"
        )
    assert watch.sentence(7) == ""


def test_a_slow_server_shows_itself_and_a_quick_one_does_not() -> None:
    said: list[str] = []
    with FaultyServer(reply=doubled, delay=0.4) as server:
        client = Client(Server(url=server.url, key_env="ALIGN_TEST_KEY"), say=said.append)
        client.post("/x", [{"n": 1}, {"n": 2}, {"n": 3}], lambda answer: True)
    assert said[0] == "waiting for 127.0.0.1: 0 of 3 answered, 3 are asked for, the longest for 0 s, try 1 of 6"
    said.clear()
    with FaultyServer(reply=doubled) as server:
        client = Client(Server(url=server.url, key_env="ALIGN_TEST_KEY"), say=said.append)
        client.post("/x", [{"n": 1}], lambda answer: True)
        client.get("/models", lambda answer: True)
    assert said == []


def test_lines_come_ever_more_seldom() -> None:
    said: list[str] = []
    with FaultyServer(reply=doubled, delay=1.5) as server:
        client = Client(Server(url=server.url, key_env="ALIGN_TEST_KEY"), say=said.append)
        client.post("/x", [{"n": 1}], lambda answer: True)
    assert len(said) == 3  # after 0.15, 0.45 and 1.05 seconds


def test_a_server_that_is_not_up_yet_is_waited_for_aloud() -> None:
    said: list[str] = []
    with FaultyServer() as server:
        url = server.url
    client = Client(Server(url=url, retries=2, key_env="ALIGN_TEST_KEY"), say=said.append, pause=0.4)
    with pytest.raises(Exception, match="gave no answer that can be used in 3 tries"):
        client.get("/models", lambda answer: True)
    assert re.match(
        r"waiting for 127\.0\.0\.1: 0 of 1 answered, 1 is asked for, the longest for \d s, try 1 of 3; the "
        r"last one failed: ",
        said[0],
    )
