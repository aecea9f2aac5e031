"""Push a folder twice with the installed `align` to a Hub of this machine, and get it back; ci/wheel.sh calls it.

    python ci/wheel_push.py TESTS FOLDER

TESTS is the folder of the repository's tests, where the server lies. What comes back must be what was pushed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPO = "ada/wheel"
_FETCH = f"import huggingface_hub as hub; hub.snapshot_download('{REPO}', local_dir='fetched')"


def main(tests: str, folder: Path) -> None:
    sys.path.insert(0, tests)
    from hub_server import HubServer

    with HubServer() as hub:
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": next(iter(hub.tokens)), "HF_HUB_OFFLINE": "0"}
        env |= {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(Path("hub-home").absolute())}
        for _ in range(2):
            subprocess.run(["align", "push", str(folder), REPO, "--yes"], env=env, check=True)
        subprocess.run([sys.executable, "-c", _FETCH], env=env, check=True)
        commits = sum(kind == "commit" for kind, _ in hub.seen)
    fetched = {path.name: path.read_bytes() for path in Path("fetched").iterdir() if path.is_file()}
    fetched.pop(".gitattributes", None)
    different = [name for name, content in fetched.items() if (folder / name).read_bytes() != content]
    weights = [name for name in fetched if name.endswith(".safetensors")]
    if different or not weights or commits != 1:
        sys.exit(f"{commits} commits, where one was expected; not what was pushed: {different}; weights: {weights}")
    print(f"{len(fetched)} files came back as they were pushed, in one commit.")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
