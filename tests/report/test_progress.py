"""The training lines, character by character."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from align.objectives import DPO, IPO, KTO, NLL, FlexDPO
from align.report.progress import DropWatch, Progress, clock, columns_for, duration, fit, header, line

RECORD = {
    "step": 300,
    "loss": 0.59812,
    "rewards/margins": 0.402,
    "rewards/accuracies": 0.7,
    "learning_rate": 4.6e-6,
    "tokens_per_second": 18297.2,
    "seconds_left": 4620,
    "probe": {
        "chosen": {"value": -21.31, "low": -25.0, "high": -18.0, "n": 64},
        "rejected": {"value": -25.4, "low": -30.0, "high": -20.0, "n": 64},
        "drift": {"value": 0.11, "low": 0.1, "high": 0.12, "n": 64},
    },
}


def test_the_block_as_designed() -> None:
    said: list[str] = []
    progress = Progress(echo=said.append, terminal=False, total_steps=922)
    progress.log(RECORD | {"step": 100, "loss": 0.6712, "probe": {"chosen": {"value": -1.2}, "rejected": None}})
    progress.log(RECORD)
    assert said == [
        " step     loss   margin   accuracy   chosen   rejected   drift   lr        tok/s   left",
        "  100   0.6712    0.402       0.70     -1.2          -       -   4.6e-06  18,297   1:17",
        "  300   0.5981    0.402       0.70    -21.3      -25.4    0.11   4.6e-06  18,297   1:17",
        "       ! chosen answers lost 21.3 nats since the start (limit 20): align explain suppression",
    ]


def test_missing_values_are_dashes_and_null_probes_too() -> None:
    expected = "   10        -        -          -        -          -       -         -       -      -"
    assert line({"step": 10}) == expected
    assert line({"step": 10, "probe": None, "loss": None}) == expected
    assert line({"step": 10, "probe": {"chosen": {"value": None}, "drift": None}}) == expected


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        {"step": 99999, "loss": 123456.789, "rewards/margins": -12345.6, "seconds_left": 180000},
        {"step": 1, "loss": math.nan, "rewards/margins": -math.inf, "learning_rate": 0.0, "tokens_per_second": 2.5e6},
        {"step": 1, "probe": {"chosen": -123456.7, "rejected": -1e12, "drift": -1234.5}, "tokens_per_second": 99999.7},
    ],
)
def test_columns_never_move(record: dict) -> None:
    cells = line(record).split()
    assert len(line(record)) == len(header())
    assert len(cells) == len(header().split())


def test_long_runs_widen_the_first_column_alone() -> None:
    said: list[str] = []
    progress = Progress(echo=said.append, terminal=False, total_steps=1_000_000)
    progress.log(RECORD | {"step": 1_000_000, "probe": None})
    assert said[0].startswith("   step     loss")
    assert said[1].startswith("1000000   0.5981")
    assert len(said[0]) == len(said[1])


def test_header_returns_every_25_lines_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    counts = {}
    for terminal in (True, False):
        said: list[str] = []
        progress = Progress(echo=said.append, terminal=terminal)
        for step in range(60):
            progress.log({"step": step})
        counts[terminal] = [i for i, text in enumerate(said) if "margin" in text]
        assert any("\x1b[" in text for text in said) is terminal
    assert counts == {True: [0, 26, 52], False: [0]}


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    said: list[str] = []
    progress = Progress(echo=said.append, terminal=True)
    progress.log(RECORD)
    assert len(said) == 3
    assert not any("\x1b" in text for text in said)


def test_the_warning_comes_once_and_again_when_the_loss_doubled() -> None:
    watch = DropWatch(20.0)
    said = [watch.check(chosen) for chosen in (None, 3.0, -19.9, -20.0, -25.0, -39.0, math.nan, -41.0, -200.0, -300.0)]
    assert [i for i, text in enumerate(said) if text] == [3, 7, 8]
    assert said[7] == "chosen answers lost 41.0 nats since the start (limit 20): align explain suppression"
    assert str(DropWatch(0.25).check(-0.3)).startswith("chosen answers lost 0.3 nats since the start (limit 0.25)")
    strict = DropWatch(0.0)
    assert strict.check(0.0) is None
    assert strict.check(-0.5) is not None
    assert strict.check(-0.6) is None


def test_times_and_numbers() -> None:
    assert [clock(s) for s in (0, 59.4, 60, 3540, 3599, 6060, 36000)] == [
        "0s",
        "59s",
        "1m",
        "59m",
        "1:00",
        "1:41",
        "10:00",
    ]
    assert [duration(s) for s in (5, 720, 6720)] == ["5 s", "12 min", "1 h 52 min"]
    assert [fit(v, 6, 4) for v in (0.5, 12.34567, -12.34567, 123456.0, 1234567.0)] == [
        "0.5000",
        "12.346",
        "-12.35",
        "123456",
        "1e6",
    ]


def test_small_losses_are_zero_without_a_minus() -> None:
    assert [fit(v, 6, 1) for v in (-0.04, -0.06, 0.0)] == ["0.0", "-0.1", "0.0"]


def test_importing_is_cheap(tmp_path: Path) -> None:
    code = "import sys, align.report.progress, align.report.verdict, align.cli.terms; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "False"


def test_columns_are_those_that_an_objective_has() -> None:
    usual = " step     loss   margin   accuracy   chosen   rejected   drift   lr        tok/s   left"
    assert header(5, columns_for(DPO())) == usual
    assert header(5, columns_for(FlexDPO(0.1, 0.1))) == usual
    assert header(5, columns_for(FlexDPO(0.1, 0.05))) == usual.replace("accuracy", "accuracy    own")
    assert header(5, columns_for(NLL())) == " step     loss   lr        tok/s   left"
    assert header(5, columns_for(KTO())) == usual.replace("accuracy", "     z")
    assert header(5, columns_for(KTO("apo_zero_unpaired"))) == usual.replace("   accuracy", "")
    own = line(RECORD | {"rewards/own_accuracies": 0.953}, 5, columns_for(IPO()))
    assert own == "  300   0.5981    0.402       0.70   0.95    -21.3      -25.4    0.11   4.6e-06  18,297   1:17"
