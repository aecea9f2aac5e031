"""Of several processes that end in an error one speaks, once, and all leave with its exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from align.runs.ended import ended
from align.runs.signals import SIGNALS, Interrupted
from align.runs.speaker import speak

ROOT = Path(__file__).parents[2]
MISTAKE = "r.yaml: name is missing. Add it.\n"
LOST = "Another process of this run ended without a word: it was killed, perhaps because memory ran out (see dmesg). "
AGAIN = "Nothing was recorded yet. Start it again: accelerate launch -m align.train\n"


def start(folder: Path, faults: tuple[tuple[str, float], ...]) -> list[subprocess.Popen]:
    """Processes that all have entered, beside each other as torch's launcher starts them."""
    made = []
    for rank, (fault, delay) in enumerate(faults):
        (folder / str(rank)).mkdir()
        env = {
            **{key: value for key, value in os.environ.items() if key != "ALIGN_COMMAND"},
            "RANK": str(rank),
            "WORLD_SIZE": str(len(faults)),
            "TORCHELASTIC_ERROR_FILE": str(folder / str(rank) / "error.json"),
            "FAULT": fault,
            "DELAY": str(delay),
        }
        command = [sys.executable, str(Path(__file__).with_name("failing.py"))]
        pipe = subprocess.PIPE
        made.append(subprocess.Popen(command, env=env, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
    for process in made:
        assert process.stdout.readline() == "entered\n"  # type: ignore[union-attr]
    for process in made:
        process.stdin.write("\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    return made


def outcome(folder: Path, *faults: tuple[str, float]) -> tuple[list[str], list[int]]:
    """What each process said, and its exit code; like a launcher, this ends the others when one has left."""
    made = start(folder, faults)
    while all(process.poll() is None for process in made):
        time.sleep(0.01)
    for process in made:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    said = [process.communicate(timeout=30)[1] for process in made]
    assert time.monotonic() - began < 8
    return said, [process.returncode for process in made]


@pytest.mark.parametrize("delays", [(0, 0), (0, 0.3), (0.3, 0)])
def test_a_mistake_that_all_meet_is_said_once_whoever_meets_it_first(tmp_path: Path, delays: tuple) -> None:
    said, codes = outcome(tmp_path, ("mistake", delays[0]), ("mistake", delays[1]))
    assert (said, codes) == ([MISTAKE, ""], [2, 2])


def test_a_process_that_has_said_its_last_word_leaves_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher's SIGTERM, which comes when another process has left, does not change its exit code."""
    before = signal.getsignal(signal.SIGTERM)
    for processes, after in (("1", before), ("2", signal.SIG_IGN)):
        monkeypatch.setenv("WORLD_SIZE", processes)
        try:
            with SIGNALS.heard():
                assert ended(UserError("name is missing")) == 2
            assert signal.getsignal(signal.SIGTERM) == after
        finally:
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, before)
            signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_mistake_that_only_one_meets_is_said_with_its_rank(tmp_path: Path) -> None:
    said, codes = outcome(tmp_path, ("waits", 0), ("mistake", 0))
    assert (said, codes) == (["", f"rank 1: {MISTAKE}"], [2, 2])


def test_who_comes_second_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "0" / "error.json"))
    (tmp_path / "spoken").write_text("1 3")
    assert speak("too late", 2) == 3
    assert capsys.readouterr().err == ""


def test_what_a_process_leaves_with_is_known_from_the_moment_that_it_has_spoken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one may look at any time: what it finds has never an exit code that is still being written."""
    (tmp_path / "0").mkdir()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "0" / "error.json"))
    look = f"""
import os, sys
from pathlib import Path
place, seen = Path({str(tmp_path)!r}), []
def look(frame, event, arg):
    if (place / "spoken").exists():
        seen.append((place / "spoken").read_text())
    return look
from align.runs.speaker import speak
sys.settrace(look)
speak("over", 4)
sys.settrace(None)
assert set(seen) == {{f"{{os.getpid()}} 4"}}, seen
"""
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "over\n")


@pytest.mark.parametrize("other", ["waits", "consequence", "stuck"])
def test_memory_that_runs_out_on_one_process_is_its_sentence_and_its_code(tmp_path: Path, other: str) -> None:
    said, codes = outcome(tmp_path, (other, 0), ("shortage", 0))
    assert (said, codes) == (["", "rank 1: Out of memory.\n"], [3, 3])


def test_a_fault_of_the_program_shows_where_it_is_once(tmp_path: Path) -> None:
    said, codes = outcome(tmp_path, ("bug", 0), ("bug", 0))
    (text,) = [text for text in said if text]
    assert text.count("Traceback") == text.count('raise ZeroDivisionError("a bug")') == 1
    rank = said.index(text)
    end = f"rank {rank}: ZeroDivisionError: a bug\nThis is no mistake of the recipe: the lines above say where it is.\n"
    assert text.endswith(end)
    assert codes == [1, 1]


@pytest.mark.parametrize("other", ["waits", "consequence", "stuck"])
def test_who_outlives_a_killed_process_says_how_to_go_on(tmp_path: Path, other: str) -> None:
    said, codes = outcome(tmp_path, ("killed", 0), (other, 0), (other, 0))
    assert sorted(said) == ["", "", LOST + AGAIN]
    assert codes == [-signal.SIGKILL, 1, 1]


def test_a_guard_lets_the_first_process_write_its_report(tmp_path: Path) -> None:
    said, codes = outcome(tmp_path, ("guard", 4), ("guard", 0))  # later than a mistake is waited for
    assert (said, codes) == (["The loss was not finite.\n", ""], [4, 4])


def test_sigterm_before_the_first_step_ends_all_with_a_word(tmp_path: Path) -> None:
    made = start(tmp_path, (("waits", 0), ("waits", 0)))
    time.sleep(0.3)
    for process in made:
        process.send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=8)[1] for process in made]
    assert sorted(said) == ["", f"Interrupted by SIGTERM. {AGAIN}"]
    assert [process.returncode for process in made] == [4, 4]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_processes_whose_launcher_is_killed_end(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from typing import Any
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_ended import start
made = start(Path({str(tmp_path)!r}), (("waits", 0), ("waits", 0)))
print(*[process.pid for process in made], flush=True)
time.sleep(60)
"""
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in launcher.stdout.readline().split()]  # type: ignore[union-attr]
    assert len(pids) == 2
    launcher.kill()
    launcher.communicate()
    until = time.monotonic() + 8
    while time.monotonic() < until and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.05)
    assert not [pid for pid in pids if Path(f"/proc/{pid}/stat").exists() and _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_second_signal_does_not_break_in_upon_the_sentence_about_the_first() -> None:
    before = signal.getsignal(signal.SIGINT)
    with SIGNALS.heard():
        with pytest.raises(Interrupted, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
        assert SIGNALS.asked == "SIGUSR1"
        signal.raise_signal(signal.SIGINT)  # of another kind: somebody is impatient, but the end is near
        with pytest.raises(Interrupted, match="Ctrl-C"):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before
    assert not SIGNALS.asked  # or the next training in this process would end at its first step
