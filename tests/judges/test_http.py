"""The HTTP client against a server that fails: what lands, what is asked again, and what never leaks."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from faulty_server import FAULTS, TIMEOUT, FaultyServer, Reply, mixed

from align.errors import UserError
from align.judges.calls import Calls
from align.judges.http import Client
from align.recipe.sampling import Server
from align.runs.retry import retry_after

KEY = "sk-not-for-anyone-0123456789"


def client(server: FaultyServer, cache: Path | None = None, **more: Any) -> Client:
    own = {name: more.pop(name) for name in ("budget", "say", "pause") if name in more}
    settings = {"timeout": TIMEOUT, "retries": 6, "concurrency": 4, "key_env": "ALIGN_TEST_KEY", **more}
    return Client(Server(url=server.url, **settings), cache, **{"pause": 0.01, "say": lambda _: None, **own})


def doubled(path: str, body: dict) -> Reply:
    return 200, {}, {"twice": 2 * body["n"]}


def usable(answer: Any) -> bool:
    return isinstance(answer, dict) and "twice" in answer


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_got_over(fault: str) -> None:
    with FaultyServer(lambda asked, attempt: fault if attempt < 2 else "", reply=doubled) as server:
        asks = client(server)
        assert asks.post("/x", [{"n": 4}], usable) == [{"twice": 8}]
    expected = 1 if fault == "slow" else 3
    assert (server.requests, asks.calls, asks.retries) == (expected, expected, expected - 1)


def test_every_answer_lands_once_among_all_faults(tmp_path: Path) -> None:
    numbers = [*range(40), *range(10)]  # ten of them twice
    with FaultyServer(mixed(3), reply=doubled) as server:
        asks = client(server, tmp_path, concurrency=8)
        answers = asks.post("/x", [{"n": n} for n in numbers], usable)
        assert answers == [{"twice": 2 * n} for n in numbers]
        assert set(server.faults) >= set(FAULTS)
        assert server.requests == asks.calls == 40 + asks.retries
        assert set(server.answered.values()) == {1}  # never asked again once it had answered
        assert len(list(tmp_path.glob("??/*.json"))) == 40
        again = client(server, tmp_path)
        assert again.post("/x", [{"n": n} for n in numbers], usable) == answers
        assert (again.calls, again.cached, server.requests) == (0, 40, asks.calls)
        assert again.post("/y", [{"n": 1}], usable) == [{"twice": 2}]  # another question
        assert again.calls == 1


def test_so_many_are_under_way_at_a_time() -> None:
    with FaultyServer(reply=doubled, delay=0.03) as server:
        client(server, concurrency=3, timeout=5.0).post("/x", [{"n": n} for n in range(12)], usable)
        assert server.most_at_once == 3


def test_what_the_cache_holds_is_looked_at(tmp_path: Path) -> None:
    with FaultyServer(reply=doubled) as server:
        client(server, tmp_path).post("/x", [{"n": 1}, {"n": 2}], usable)
        first, second = sorted(tmp_path.glob("??/*.json"))
        first.write_text('{"twi')
        second.write_text('{"other": 1}')
        asks = client(server, tmp_path)
        assert asks.post("/x", [{"n": 1}, {"n": 2}], usable) == [{"twice": 2}, {"twice": 4}]
        assert asks.calls == 2


def test_a_failure_for_good_says_what_and_keeps_the_rest(tmp_path: Path) -> None:
    def fault(asked: str, attempt: int) -> str:
        return "broken" if '"n": 3}' in asked else ""

    with FaultyServer(fault, reply=doubled) as server:
        asks = client(server, tmp_path, retries=3, concurrency=1)
        with pytest.raises(UserError) as caught:
            asks.post("/x", [{"n": n} for n in range(6)], usable)
        assert str(caught.value) == (
            f"{server.url}/x gave no answer that can be used in 4 tries; the last: status 500: out of memory. The "
            f"answers so far are kept in {tmp_path}, and none of them is asked for again."
        )
        assert len(list(tmp_path.glob("??/*.json"))) == 3
        assert server.requests == 3 + 4  # the fourth and fifth were not begun


def test_pauses_grow_and_end_with_the_first_failure() -> None:
    with FaultyServer(lambda asked, attempt: "broken", reply=doubled) as server:
        began = time.monotonic()
        with pytest.raises(UserError, match="4 tries"):
            client(server, retries=3, pause=0.1).post("/x", [{"n": 1}], usable)
        assert time.monotonic() - began >= 0.35  # half of 0.1 + 0.2 + 0.4 at least
    assert [round(client(server, pause=1.0)._delay("", a) / 2**a) for a in range(3)] == [1, 1, 1]
    assert client(server)._delay("", 10_000) <= 60


def test_retry_after_is_honoured_and_an_hour_is_not_slept_away() -> None:
    said = {"seconds": "0.5"}

    def reply(path: str, body: dict) -> Reply | None:
        return 429, {"Retry-After": said["seconds"]}, {"error": "slower"}

    with FaultyServer(reply=reply) as server:
        began = time.monotonic()
        with pytest.raises(UserError, match="in 2 tries; the last: status 429: slower"):
            client(server, retries=1, pause=0.001).post("/x", [{"n": 1}], usable)
        assert time.monotonic() - began >= 0.5
        said["seconds"] = "3600"
        with pytest.raises(UserError, match="asks to be called again in 3600 s"):
            client(server).post("/x", [{"n": 1}], usable)
        assert server.requests == 3
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 80 < (retry_after({"retry-after": later}) or 0) <= 90
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert [retry_after({"retry-after": text}) for text in ("", "soon", "-1", "inf")] == [None] * 4


@pytest.mark.parametrize(
    ("status", "more"),
    [
        (400, ""),
        (401, " The key is read from the environment variable ALIGN_TEST_KEY, which is not set."),
        (404, " Check url (it often ends in /v1) and the model's name."),
        (422, ""),
    ],
)
def test_a_refusal_is_said_and_not_repeated(status: int, more: str) -> None:
    message = "no\x1b[31m such\nthing " + "x" * 500
    with FaultyServer(reply=lambda path, body: (status, {}, {"error": {"message": message}})) as server:
        with pytest.raises(UserError) as caught:
            client(server).post("/x", [{"n": 1}], usable)
        cut = ("no [31m such thing " + "x" * 500)[:300] + "…"
        assert str(caught.value) == f"POST {server.url}/x was refused with status {status}: {cut}.{more}"
        assert server.requests == 1


def test_the_limit_counts_retries_and_holds(tmp_path: Path) -> None:
    with FaultyServer(mixed(5), reply=doubled) as server:
        asks = client(server, tmp_path, budget=Calls(25), concurrency=8)
        with pytest.raises(UserError, match=r"all 25 calls that are allowed were made, \d+ of them because"):
            asks.post("/x", [{"n": n} for n in range(40)], usable)
        assert server.requests <= asks.calls == 25
        kept = len(list(tmp_path.glob("??/*.json")))
        assert kept == sum(server.answered.values()) > 0
        client(server, tmp_path, retries=8).post("/x", [{"n": n} for n in range(40)], usable)
        assert set(server.answered.values()) == {1}


def test_the_key_is_sent_and_never_leaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGN_TEST_KEY", f"  {KEY}\n")
    caplog.set_level(logging.DEBUG)
    said: list[str] = []

    def reply(path: str, body: dict) -> Reply | None:
        if body["n"] == 1:  # a server that repeats the key where the message is cut off
            return 403, {}, {"error": {"message": "y" * 290 + KEY}}
        return 200, {}, {"twice": f"Bearer {KEY}"}

    with FaultyServer(reply=reply) as server:
        asks = client(server, tmp_path, say=said.append)
        assert asks.post("/x", [{"n": 2}], usable) == [{"twice": "Bearer ***"}]
        with pytest.raises(UserError) as refused:
            asks.post("/x", [{"n": 1}], usable)
        server.fault = lambda asked, attempt: "garbled"
        with pytest.raises(UserError, match="not JSON") as failed:
            client(server, tmp_path, retries=1).post("/x", [{"n": 3}], usable)
    assert server.authorizations == {f"Bearer {KEY}"}
    seen = [*said, repr(asks), str(asks), caplog.text, *capfd.readouterr()]
    for caught in (refused, failed):
        seen += [repr(caught.value), "".join(traceback.format_exception(caught.value))]
    seen += [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    seen += [str(file) for file in tmp_path.rglob("*")]
    assert len(caplog.text) > 100  # the library does log
    for text in seen:
        assert KEY[:8] not in text


@pytest.mark.parametrize("one", ["{}", "%{:02X}", "%{:02x}"])
def test_a_key_in_another_spelling_is_blotted_out(one: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_TEST_KEY", KEY)
    spelled = "".join(one.format(char if one == "{}" else ord(char)) for char in KEY)
    mixed = f"%{ord(KEY[0]):02x}" + KEY[1:]
    reply: Reply = (400, {}, {"error": f"bad ?key={spelled}&again={mixed}"})
    said = r"status 400: bad \?key=\*\*\*&again=\*\*\*\."
    with FaultyServer(reply=lambda path, body: reply) as server, pytest.raises(UserError, match=said):
        client(server).post("/x", [{"n": 1}], usable)


def test_no_key_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGN_TEST_KEY", raising=False)
    with FaultyServer(reply=doubled) as server:
        client(server).post("/x", [{"n": 1}], usable)
        assert server.authorizations == {None}


def test_a_redirect_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_TEST_KEY", KEY)
    moved = FaultyServer(reply=lambda path, body: (307, {"Location": f"{other.url}/x"}, {}))
    with FaultyServer(reply=doubled) as other, moved as server:
        with pytest.raises(UserError, match=f"redirects to {other.url}/x, which is not followed"):
            client(server).post("/x", [{"n": 1}], usable)
        assert (server.requests, other.requests) == (1, 0)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://host/v1", "url: expected an address such as http://localhost:8000/v1, got 'ftp://host/v1'."),
        ("localhost:8000", "url: expected an address"),
        ("/v1", "url: expected an address"),
        (
            f"https://host/v1?key={KEY}",
            "url: expected an address such as http://localhost:8000/v1, got 'https://host/v1'.",
        ),
        (f"https://me:{KEY}@host/v1", "url: it holds a name or password"),
        ("https://host:99999/v1", "url: expected an address"),
    ],
)
def test_addresses_that_are_refused(url: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        Client(Server(url=url))
    assert str(caught.value).startswith(sentence)
    assert KEY not in str(caught.value)


def test_a_key_that_is_none_is_refused_and_one_in_the_open_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_TEST_KEY", "sk-ключ")
    with pytest.raises(UserError, match="ALIGN_TEST_KEY holds characters that no key has") as caught:
        Client(Server(url="https://host", key_env="ALIGN_TEST_KEY"))
    assert "ключ" not in str(caught.value)
    monkeypatch.setenv("ALIGN_TEST_KEY", KEY)
    said: list[str] = []
    for url in ("https://host/v1", "http://localhost:8000", "http://far.example/v1"):
        Client(Server(url=url, key_env="ALIGN_TEST_KEY"), say=said.append)
    assert said == ["far.example: the key of ALIGN_TEST_KEY goes there unencrypted; https:// would not."]


def test_nothing_is_asked_without_a_place_for_answers(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with FaultyServer(reply=doubled) as server:
        with pytest.raises(UserError, match="where answers go, cannot be written to"):
            client(server, tmp_path / "file").post("/x", [{"n": 1}], usable)
        assert server.requests == 0


def test_two_clients_share_a_folder(tmp_path: Path) -> None:
    found: dict[int, list] = {}
    with FaultyServer(mixed(11), reply=doubled) as server:

        def work(number: int) -> None:
            found[number] = client(server, tmp_path, retries=12).post("/x", [{"n": n} for n in range(20)], usable)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found[0] == found[1] == [{"twice": 2 * n} for n in range(20)]
    assert len([file for file in tmp_path.rglob("*") if file.is_file()]) == 20
