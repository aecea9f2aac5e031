"""The script for SLURM, with stand-ins for SLURM and for accelerate that write down what they are called with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from align.recipe import recipes_folder

SCRIPT = recipes_folder() / "accelerate" / "slurm.sh"
PROGRAMS = {
    # the step of two machines, whose tasks get the signals that srun gets
    "srun": """
        shift
        trap 'kill -TERM $(jobs -p)' TERM
        for node in 0 1; do SLURM_NODEID=$node "$@" & done
        wait; wait
    """,
    "scontrol": 'if [ "$1" = show ]; then printf "node-7\\nnode-8\\n"; else echo "scontrol $*" >> "$RECORD"; fi',
    "accelerate": """
        echo "accelerate $*" >> "$RECORD"
        [ -z "${WAITS-}" ] && exit 0
        trap 'echo "saved" >> "$RECORD"; exit 4' TERM
        echo ready
        while true; do sleep 0.1; done
    """,
    "python": f'exec {sys.executable} "$@"',
}


def start(folder: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    for name, text in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "123", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_NODELIST": "node-[7-8]"}
    path = f"{folder}:{os.environ['PATH']}"
    environment = {**os.environ, **job, "RECORD": str(folder / "record"), "PATH": path, **variables}
    command = ["bash", str(SCRIPT), *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("restarts", "more"), [("", ""), ("1", " --resume")])
def test_each_machine_starts_a_launcher_that_meets_the_first(tmp_path: Path, restarts: str, more: str) -> None:
    with start(tmp_path, "my.yaml", "a=b c", SLURM_RESTART_COUNT=restarts or "0", BACKEND="zero3") as job:
        _, err = job.communicate(timeout=60)
    assert (job.returncode, err) == (0, "")
    lines = sorted((tmp_path / "record").read_text().splitlines())
    assert lines == [
        f"accelerate launch --config_file {SCRIPT.parent}/zero3.yaml --num_machines 2 --machine_rank {node} "
        f"--num_processes 8 --main_process_ip node-7 --main_process_port 20123 -m align.train my.yaml a=b c{more}"
        for node in (0, 1)
    ]


def test_when_the_time_is_up_processes_save_and_the_job_is_queued_again(tmp_path: Path) -> None:
    with start(tmp_path, "my.yaml", WAITS="1") as job:
        assert job.stdout is not None
        assert [job.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        job.send_signal(signal.SIGUSR1)
        job.communicate(timeout=60)
    assert job.returncode == 0
    assert (tmp_path / "record").read_text().splitlines()[2:] == ["saved", "saved", "scontrol requeue 123"]
