"""One process of a run that fails: what FAULT says, after DELAY seconds, said as ``align.train`` says it.

A process that is told to be a peer's consequence waits until the peer is gone.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time

from align.errors import DoesNotFit, Stopped, UserError
from align.runs.ended import ended
from align.runs.signals import SIGNALS
from align.runs.speaker import enter, lost_one

CLOSED = "[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:6572."


def fail(fault: str) -> None:
    if fault == "mistake":
        raise UserError("r.yaml: name is missing. Add it.")
    if fault == "shortage":
        raise DoesNotFit("Out of memory.")
    if fault == "bug":
        raise ZeroDivisionError("a bug")
    if fault == "guard":
        raise Stopped("The loss was not finite.")
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "consequence":
        while not lost_one():
            time.sleep(0.02)
        raise RuntimeError(CLOSED)
    if fault == "stuck":  # like a collective under NCCL: no handler of Python's runs
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    time.sleep(60)  # in a collective that nobody else comes to


if __name__ == "__main__":
    with SIGNALS.heard():
        enter()
        print("entered", flush=True)
        try:
            sys.stdin.readline()  # until all have entered
            time.sleep(float(os.environ["DELAY"]))
            fail(os.environ["FAULT"])
        except BaseException as error:
            code = ended(error)
    os._exit(code)
