"""``align launch``: the command that it builds, and what becomes of exit codes and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from align.errors import UserError
from align.recipe import recipes_folder
from align.runs.launcher import command, configuration, configurations
from align.runs.workers import outcome

FOLDER = recipes_folder() / "accelerate"
NAMES = {
    "cpu1",
    "cpu2-ddp",
    "cpu2-fsdp2",
    "cpu2-zero2",
    "cpu2-zero3",
    "ddp",
    "fsdp2",
    "zero2",
    "zero3",
    "zero3-offload",
}


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ACCELERATE_USE_")]:
        monkeypatch.delenv(name)


def test_every_configuration_is_one_of_accelerate_and_frees_its_port() -> None:
    assert set(configurations()) == NAMES
    for name in NAMES:
        found = configuration(name)
        load_config_from_file(str(found.file))  # refuses a key that it does not know
        assert found.on_cpu == name.startswith("cpu")
        assert found.content["main_process_port" if name != "cpu1" else "num_machines"] in (0, 1)
        assert found.content.get("mixed_precision", "no") == "no"  # the recipe's train.bf16 says it
        head = found.file.read_text().split("compute_environment")[0]
        assert f"recipes/accelerate/{name}.yaml" in head


@pytest.mark.parametrize(
    ("name", "count", "line"),
    [
        ("cpu2-ddp", 2, "ACCELERATE_USE_CPU=true {launch} --config_file {folder}/cpu2-ddp.yaml --num_processes 2"),
        (
            "cpu2-zero3",
            2,
            "DS_ACCELERATOR=cpu {launch} --config_file {folder}/cpu2-zero3.yaml --num_processes 2 "
            "--deepspeed_config_file {folder}/cpu2-zero3.json",
        ),
        ("zero3", 8, "{launch} --config_file {folder}/zero3.yaml --num_processes 8"),
    ],
)
def test_the_command_can_be_copied(name: str, count: int, line: str) -> None:
    found = command(configuration(name), count, ["my recipe.yaml", "train.max_steps=3", "--resume"])
    beside = Path(sys.executable).parent / "accelerate"
    launch = "accelerate launch" if beside.exists() else f"{sys.executable} -m accelerate.commands.launch"
    assert found.line() == line.format(launch=launch, folder=FOLDER) + (
        " -m align.train 'my recipe.yaml' train.max_steps=3 --resume"
    )


def test_how_many_processes() -> None:
    assert configuration("cpu2-ddp").count(None, 0) == 2
    assert configuration("cpu2-ddp").count(4, 0) == 4
    assert configuration("zero3").count(None, 4) == 4
    assert configuration("zero3").count(2, 4) == 2
    for name, processes, devices, said in (
        (
            "zero3",
            None,
            0,
            "--on zero3 is for accelerators, and this machine has none. On a CPU: cpu1, cpu2-ddp, cpu2-fsdp2, "
            "cpu2-zero2 or cpu2-zero3. The command for another machine: --dry-run --processes N.",
        ),
        ("zero3", 8, 1, "--processes 8: this machine has 1 accelerator, and each process needs one."),
        ("cpu1", 2, 0, "--on cpu1 starts one process, and --processes says 2: take cpu2-ddp."),
    ):
        with pytest.raises(UserError) as caught:
            configuration(name).count(processes, devices)
        assert str(caught.value).startswith(said)


def test_a_configuration_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    content = yaml.safe_load((FOLDER / "cpu2-zero2.yaml").read_text())
    mine.write_text(yaml.safe_dump(content))
    words = command(configuration(str(mine)), 2, ["r.yaml"]).words
    assert "--deepspeed_config_file" not in words  # its path is the user's own, from the working directory
    start = "distributed_type: MULTI_CPU\n"
    for text, said in (
        ("[1", "mine.yaml:1  not valid YAML: while parsing a flow sequence "),
        ("a: 1", "this is no configuration of accelerate (it names no distributed_type)."),
        (start + "num_processes: two", "num_processes is 'two'; expected a whole number of 1 or more."),
        (start + "num_processes: 0", "num_processes is 0; expected a whole number of 1 or more."),
        (start + "num_processes: true", "num_processes is True; expected a whole number of 1 or more."),
        (start + "num_processes:", "num_processes is None; expected a whole number of 1 or more."),
        (start + "use_cpu: 'yes'", "use_cpu is 'yes'; expected true or false."),
        (start + "fsdp_config: 2", "fsdp_config is 2; expected keys and values below it."),
        (start + "deepspeed_config: {deepspeed_config_file: 3}", "deepspeed_config_file is 3; expected a path."),
        (start + "deepspeed_config: zero3", "deepspeed_config is 'zero3'; expected keys and values below it."),
    ):
        mine.write_text(text)
        with pytest.raises(UserError) as caught:
            configuration(str(mine))
        assert str(caught.value).startswith(f"--on {mine}: {said}")
    mine.write_text(start + "use_cpu:\n")  # as an empty line of a file that was written by hand
    assert configuration(str(mine)).count(None, 2) == 2
    with pytest.raises(UserError) as caught:
        configuration("zero33")
    assert str(caught.value).startswith("--on zero33: no such configuration or file. Did you mean 'zero3'? All: cpu1, ")


def test_variables_that_accelerate_would_follow_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    command(configuration("cpu2-ddp"), 2, [])
    for name in ("cpu2-zero3", "zero3"):
        with pytest.raises(UserError) as caught:
            command(configuration(name), 2, [])
        assert str(caught.value) == (
            f"ACCELERATE_USE_CPU=True is set in the environment, and accelerate would follow it and not --on {name}: "
            "unset ACCELERATE_USE_CPU."
        )


@pytest.mark.parametrize(
    ("codes", "code", "said"),
    [
        ({1: 2}, 2, ""),
        ({0: 1, 1: 3}, 3, ""),
        ({0: 120, 1: 77}, 120, ""),
        ({0: 4, 1: 4}, 4, ""),
        ({0: -signal.SIGTERM, 1: 3}, 3, ""),
        ({0: 1, 1: -signal.SIGKILL}, 137, "Rank 1 was ended by SIGKILL, often the system's answer where its memory is"),
        ({0: -signal.SIGSEGV, 1: -signal.SIGTERM}, 139, "Rank 0 was ended by SIGSEGV."),
        ({0: -signal.SIGTERM}, 143, ""),
    ],
)
def test_the_exit_code_is_that_of_the_run(codes: dict[int, int], code: int, said: str) -> None:
    assert outcome(codes)[0] == code
    assert outcome(codes)[1].startswith(said)
    assert bool(outcome(codes)[1]) == bool(said)


KILLED = (
    "Rank 1 was ended by SIGKILL, often the system's answer where its memory is used up. Nothing was recorded yet. "
    "Start it again: align launch"
)
WORKER = """
import os, signal, sys, time
rank, what = os.environ["RANK"], sys.argv[1]
os.write(2, f"rank {rank} speaks\\n".encode())
if what == "waits":
    def leave(number, frame):
        time.sleep(0.5)  # as long as saving takes
        os.write(1, f"rank {rank} saved\\n".encode())
        os._exit(4)
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    os.write(1, b"ready\\n")  # in one piece, unlike print
elif rank == "1":
    os.kill(os.getpid(), signal.SIGKILL) if what == "killed" else os._exit(int(what))
time.sleep(60)
"""
START = """
import sys
from pathlib import Path
from align.runs.launcher import Command, run
sys.exit(run(Command({}, sys.argv[2:]), Path(sys.argv[1]), ["align", "launch"]))
"""


def start(folder: Path, what: str) -> subprocess.Popen[str]:
    """Two processes of the script above under ``run``."""
    script = folder / "worker.py"
    script.write_text(WORKER)
    words = ["--config_file", str(FOLDER / "cpu2-ddp.yaml"), str(script), what]
    return subprocess.Popen(
        [sys.executable, "-c", START, str(folder), *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("3", 3, ""),
        pytest.param("killed", 137, KILLED, marks=pytest.mark.slow),
    ],
)
def test_processes_speak_for_themselves_and_the_launcher_is_silent(
    tmp_path: Path, what: str, code: int, said: str
) -> None:
    with start(tmp_path, what) as running:
        _, err = running.communicate(timeout=120)
    assert running.returncode == code
    lines = sorted(err.splitlines())
    assert [line for line in lines if line.startswith("rank")] == ["rank 0 speaks", "rank 1 speaks"]
    rest = [line for line in lines if not line.startswith("rank")]
    assert rest == ([said] if said else [])


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_reaches_the_processes_which_have_the_time_that_they_need(tmp_path: Path, number: int) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("the shell that runs the tests in its background has them ignore Ctrl-C, and all they start")
    with start(tmp_path, "waits") as running:
        assert running.stdout is not None
        assert [running.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        running.send_signal(number)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 4
    assert sorted(out.splitlines()) == ["rank 0 saved", "rank 1 saved"]
    assert sorted(err.splitlines()) == ["rank 0 speaks", "rank 1 speaks"]


@pytest.mark.slow
def test_processes_end_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    with start(tmp_path, "waits") as running:
        assert running.stdout is not None
        assert [running.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        running.kill()
        began = time.monotonic()
        assert sorted(running.stdout.read().splitlines()) == ["rank 0 saved", "rank 1 saved"]
        assert time.monotonic() - began < 30
        assert running.stderr is not None
        assert sorted(running.stderr.read().splitlines()) == ["rank 0 speaks", "rank 1 speaks"]
