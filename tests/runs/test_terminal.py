"""Lines that fit a terminal, and the line that says how far long work has come."""

from __future__ import annotations

import io
import sys

import pytest

from align.runs import terminal
from align.runs.terminal import Work, echo, fitted


class Screen(io.StringIO):
    """A terminal that remembers what is written to it."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(terminal.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_terminal_rewrites_one_line_and_takes_it_away(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with Work("answers scored", 4000) as work:
        clock.now += 1.9
        work.add(100)
        assert screen.getvalue() == ""  # short work shows nothing
        clock.now += 8.1
        work.add(900)
        first = "answers scored: 1,000 of 4,000, 30s left"
        assert screen.getvalue() == f"\r{first}\r"
        clock.now += 0.1
        work.add()
        assert screen.getvalue() == f"\r{first}\r"  # not faster than eyes
        clock.now += 0.9
        work.add(2999)
    assert screen.getvalue() == f"\r{first}\r\r{' ' * len(first)}\r"


def test_elsewhere_a_line_comes_every_ten_seconds(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Work("prompts sampled", 60) as work:
        for _ in range(60):
            clock.now += 0.5
            work.add()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["prompts sampled: 20 of 60, 20s left", "prompts sampled: 40 of 60, 10s left"]


def test_only_the_main_process_speaks(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with Work("rows", 9) as work:
        clock.now += 100
        work.add()
    assert capsys.readouterr().err == ""


def test_work_inside_of_other_work_leaves_the_line_to_it(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Work("pairs judged", 60) as outer:
        with Work("rows scored", 9) as inner:
            clock.now += 20
            inner.add()
        assert capsys.readouterr().err == ""
        outer.add(30)
    assert capsys.readouterr().err == "pairs judged: 30 of 60, 20s left\n"
    with Work("rows scored", 9) as alone:
        clock.now += 20
        alone.add(3)
    assert capsys.readouterr().err == "rows scored: 3 of 9, 40s left\n"


def test_the_line_fits_a_narrow_terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "20")
    with Work("a very long name for what is done", 10) as work:
        clock.now += 5
        work.add()
    assert screen.getvalue() == f"\ra very long name fo\r\r{' ' * 19}\r"


WIDE = "  suppression   yes         both answers became less likely: chosen -21.3, rejected -40.1 nats (1.9x as far)"


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("short", ["short"]),
        (
            WIDE,
            [
                "  suppression   yes         both answers became less likely: chosen -21.3,",
                "                            rejected -40.1 nats (1.9x as far)",
            ],
        ),
        (f"  note: {'word ' * 16}end", [f"  note: {'word ' * 13}word", "    word word end"]),
        (f"open {'/x' * 60} now", ["open", f"  {'/x' * 60}", "  now"]),
        ("", [""]),
    ],
)
def test_wide_lines_go_on_below_their_text(line: str, parts: list[str]) -> None:
    assert fitted(line, 80).split("\n") == parts


def test_only_a_terminal_gets_broken_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    echo(f"one\n{WIDE}")
    assert capsys.readouterr().out == f"one\n{WIDE}\n"
    monkeypatch.setenv("COLUMNS", "80")
    screen = Screen()
    echo(f"one\n{WIDE}", file=screen)
    assert [len(line) for line in screen.getvalue().split("\n")] == [3, 74, 61, 0]


def test_what_would_act_on_the_terminal_is_shown_by_number(capsys: pytest.CaptureFixture[str]) -> None:
    echo("\x1b[32mfine\x1b[0m \x1b]0;title\x07\x1b[2Ja\u202eb\rc\nd")
    assert capsys.readouterr().out == (
        "\x1b[32mfine\x1b[0m <U+001B>]0;title<U+0007><U+001B>[2Ja<U+202E>b<U+000D>c\nd\n"
    )
