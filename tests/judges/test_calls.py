"""Calls are counted once each over threads, processes, kills and raised limits."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faulty_server import TIMEOUT, FaultyServer

from align.errors import UserError
from align.judges.calls import Calls
from align.judges.endpoint import EndpointJudge
from align.recipe.sampling import Endpoint

CLAIM = """
import sys
from pathlib import Path
from align.judges.calls import Calls
calls = Calls(int(sys.argv[2]), Path(sys.argv[1]))
print(sum(calls.claim() for _ in range(400)))
"""


def test_processes_share_what_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "run" / "judge-calls"
    command = [sys.executable, "-c", CLAIM, str(file), "1000"]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    got = [int(child.communicate(timeout=120)[0]) for child in children]
    assert sum(got) == 1000  # of 1,200 that were asked for
    assert Calls(1000, file).made == 1000
    assert not Calls(1000, file).claim()
    more = Calls(1100, file)  # each process that came too late left a byte at most
    assert 97 <= sum(more.claim() for _ in range(200)) <= 100


@pytest.mark.parametrize("kept", [True, False])
def test_threads_of_one_process_get_no_more_than_the_limit(tmp_path: Path, kept: bool) -> None:
    calls = Calls(50, tmp_path / "calls" if kept else None)
    if not kept:  # the client holds a lock around it
        assert [calls.claim() for _ in range(52)] == [True] * 50 + [False] * 2
    else:
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(lambda _: calls.claim(), range(200))) == 50
    assert calls.made == 50


def test_no_limit_counts_alone_and_in_a_file(tmp_path: Path) -> None:
    for calls in (Calls(None), Calls(None, tmp_path / "calls")):
        assert calls.made == 0
        assert all(calls.claim() for _ in range(7))
        assert calls.made == 7


def test_a_call_that_cannot_be_counted_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/judge-calls: a call cannot be counted there \(.+\), so none is made\."):
        Calls(9, tmp_path / "file" / "judge-calls").claim()


def test_two_judges_of_a_run_and_a_third_after_a_kill_have_one_budget(tmp_path: Path) -> None:
    with FaultyServer() as server:
        settings = Endpoint(url=server.url, model="weighs", key_env="X", timeout=TIMEOUT, max_calls=10, cache="kept")

        def judge(said: list[str] | None = None) -> EndpointJudge:
            say = (said if said is not None else []).append
            return EndpointJudge(settings, say, base=tmp_path, calls=tmp_path / "judge-calls", pause=0.01)

        first, second = judge(), judge()
        first.compare(["p", "q"], ["a", "b"], ["c", "d"])
        second.compare(["r"], ["a"], ["c"])
        assert (first.client.calls, second.client.calls, second.client.budget.made) == (4, 2, 6)
        assert "2 calls so far (0 of them retries, of 6 in all)" in second.summary()
        said: list[str] = []
        third = judge(said)
        with pytest.raises(UserError, match="10 calls are allowed, 6 were made and 6 more are needed"):
            third.compare(["s", "t", "u"], ["a"] * 3, ["c"] * 3)
        assert "Calls so far 6, most allowed 10." in said[0]
        third.compare(["s", "t"], ["a"] * 2, ["c"] * 2)
        with pytest.raises(UserError, match="all 10 calls that are allowed were made, 0 of them because"):
            third.client.get("/models", lambda answer: True)
        assert server.requests == 10
