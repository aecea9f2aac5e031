"""The scripts about real servers, as far as they go without one: what is asked, by whose turn, and what is reported."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from align.data.tokens.samples import Sample

FOLDER = Path(__file__).parents[2] / "benchmarks" / "servers"


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    sys.path.insert(0, str(FOLDER))
    try:
        return {name: importlib.import_module(name) for name in ("serve", "measure")}
    finally:
        sys.path.remove(str(FOLDER))


def test_instructions_are_the_same_in_every_call_and_none_comes_twice(scripts: dict[str, ModuleType]) -> None:
    found = scripts["measure"].instructions(24)
    assert found[:8] == scripts["measure"].instructions(24)[:8]
    assert len(set(found)) == 24  # eight things, three wishes


def test_every_way_is_first_in_turn_and_speeds_are_its_own(scripts: dict[str, ModuleType]) -> None:
    asked: list[tuple[str, int]] = []

    def way(name: str, tokens: int, seconds: float):  # type: ignore[no-untyped-def]
        def draw(number: int) -> list[list[Sample]]:
            asked.append((name, number))
            time.sleep(seconds)
            return [[Sample(0, tuple(range(tokens)), "", "length")], [Sample(0, (1,), "", "end")]]

        return draw

    found = scripts["measure"].by_turns({"slow": way("slow", 3, 0.2), "quick": way("quick", 7, 0.02)}, 2)
    assert asked == [("slow", 0), ("quick", 0), ("quick", 1), ("slow", 1)]
    speeds, samples = found["slow"]
    assert all(10 < speed <= 4 / 0.2 for speed in speeds)
    assert [len(sample.ids) for sample in samples] == [3, 1, 3, 1]
    assert all(40 < speed <= 8 / 0.02 for speed in found["quick"][0])


def test_the_table_has_a_row_for_a_server_that_draws_and_one_that_is_refused(
    scripts: dict[str, ModuleType],
) -> None:
    drawn = {"speeds": [10.0, 20.0, 40.0], "mean": -1.25, "expected": -1.5, "standard_errors": 2.5}
    good = {
        "version": "1.0",
        "check": "as it should be",
        "there": drawn,
        "here": {"speeds": [5.0, 5.0, 5.0], "mean": -7.0, "expected": -8.0, "standard_errors": 9.0},
        "times_as_fast": {"median": 4.0, "min": 2.0, "max": 8.0},
        "judge": {"prefers_the_answer": 0.75, "undecided": 1, "without_logprobs": 3},
    }
    bad = {"version": "2.0", "refused": "no\n  ids", "judge": {"refused": "no letters"}}
    lines = scripts["measure"].table({"servers": {"a": good, "b": bad}}).splitlines()
    assert lines[2] == (
        "| a 1.0 | as it should be | -1.500 | -1.250 | +2.5 | 20, 5: 4.00x (2.00 to 8.00) "
        "| 0.75 for the answer, 1 undecided, no log-probs |"
    )
    assert lines[3] == "| b 2.0 | refused: no ids | | | | | no letters |"


def test_each_server_is_told_the_name_the_port_and_one_place_for_the_model(scripts: dict[str, ModuleType]) -> None:
    command = scripts["serve"].command
    programs, model = Path("/e/bin"), Path("/m/model")
    assert command("llama.cpp", programs, model, "policy", 81, 4)[3:] == ["/m/model", "policy", "81", "4", "2048"]
    assert command("transformers", programs, model, "policy", 81, 4)[:7] == [
        "/e/bin/transformers", "serve", "policy", "--host", "127.0.0.1", "--port", "81",
    ]  # fmt: skip
    assert command("vllm", programs, model, "policy", 81, 4)[:9] == [
        "/e/bin/vllm", "serve", "/m/model", "--served-model-name", "policy", "--host", "127.0.0.1", "--port", "81",
    ]  # fmt: skip


def test_a_server_that_ends_at_once_is_told_with_the_end_of_its_log(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = scripts["serve"]
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "whole").touch()  # an environment, so that none is made
    monkeypatch.setattr(serve, "command", lambda *_: [sys.executable, "-c", "raise SystemExit('no weights here')"])
    with (
        pytest.raises(RuntimeError, match=r"does not serve; the end of .*vllm\.log:\nno weights here"),
        serve.serving("vllm", tmp_path, "policy", home=tmp_path),
    ):
        pass
