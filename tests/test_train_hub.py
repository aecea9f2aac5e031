"""Models and rows by their Hub ids, from a Hub of this machine: loaded, trained on and pushed; and what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from small_run import small_world

from align.errors import UserError
from align.recipe import Recipe
from align.runs.signals import SIGNALS
from align.train import _push

# huggingface_hub's own way to send a large file, which its HTTP client calls old
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

HERE = Path(__file__).parent
RECIPE = """\
name: first
model: {{id: lab/tiny, dtype: float32, revision: {revision}}}
data: {{train: {{id: lab/pairs, revision: {rows}}}, held_out: {{id: lab/pairs, split: test}}}}
objective: {{name: dpo}}
reference: {{store_dir: store}}
watch: {{report: false}}
train: {{max_steps: 3, per_device_train_batch_size: 8, learning_rate: 1e-3, use_cpu: true}}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world(tmp_path_factory.mktemp("world"))


def filled(hub: HubServer, world: Path) -> tuple[str, str]:
    """A private model and rows on the Hub; their commits, which are not the newest ones."""
    rows = {"train.jsonl": (world / "train.jsonl").read_bytes(), "test.jsonl": (world / "held_out.jsonl").read_bytes()}
    revisions = hub.put_folder("lab/tiny", world / "model", private=True), hub.put("lab/pairs", rows, "datasets")
    hub.put("lab/tiny", {"config.json": b"{}"})
    other = json.dumps({"prompt": "Q", "chosen": " a", "rejected": " b"}).encode() + b"\n"
    hub.put("lab/pairs", {"train.jsonl": other}, "datasets")
    return revisions


def run(env: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **env}
    return subprocess.run([sys.executable, *words], env=given, cwd=folder, capture_output=True, text=True)


def asked(env: dict[str, str], folder: Path, asks: Sequence[Any]) -> list[Any]:
    done = run(env, folder, str(HERE / "hub_asks.py"), json.dumps(asks))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_what_the_hub_does_not_give_is_a_sentence(tmp_path: Path, world: Path) -> None:
    home = tmp_path / "home"
    with HubServer() as hub:
        filled(hub, world)
        hub.put("lab/gated", {"config.json": b"{}"}, gated=True)
        hub.put("lab/gated", {"train.jsonl": b"{}"}, "datasets", gated=True)
        hub.put("lab/code", {"code.py": b"raise SystemExit('ran')"}, "datasets")
        hub.put("bob/tiny", {"config.json": b"{}"}, private=True)
        log_in = "log in (hf auth login, or HF_TOKEN)"
        cases = {
            ("data", "lab/pairs", "split", "test"): "12 rows",
            ("data", "lab/none", "split", "train"): (
                "lab/none: no such data set on the Hub, or it is private (then log in first: hf auth login, or "
                "HF_TOKEN). For a file or folder on this machine write `path:` instead of `id:`."
            ),
            ("data", "lab/gated", "split", "train"): (
                f"lab/gated: it is gated: accept its terms at {hub.url}/datasets/lab/gated, and {log_in} with the "
                "account that did."
            ),
            ("data", "lab/pairs", "revision", "v9"): (
                f"lab/pairs: it has no revision 'v9': its branches and tags are at {hub.url}/datasets/lab/pairs."
            ),
            ("data", "lab/code", "split", "train"): (
                "lab/code: is a loading script, and code from the Hub is not run. Use a Parquet copy of it."
            ),
            ("model", "lab/gated", "dtype", "float32"): (
                f"model.id: 'lab/gated' cannot be loaded: it is gated: accept its terms at {hub.url}/lab/gated, and "
                f"{log_in} with the account that did."
            ),
            ("model", "lab/tiny", "revision", "v9"): (
                f"model.id: 'lab/tiny' cannot be loaded: it has no revision 'v9': its branches and tags are at "
                f"{hub.url}/lab/tiny."
            ),
            ("model", "bob/tiny", "dtype", "float32"): (
                f"model.id: 'bob/tiny' cannot be loaded: there is no {hub.url}/bob/tiny, or it is private: then "
                f"{log_in} with an account that may read it."
            ),
        }
        asks = [(kind, {"id": name, key: value}) for kind, name, key, value in cases]
        found = asked(hub.environment(home), tmp_path, asks)
        assert [answer for answer, _ in found] == list(cases.values())
        environment = hub.environment(home)

    # the server is gone: what is in the cache is used, and nothing is waited for
    asks = [("data", {"id": "lab/pairs", "split": "test"}), ("data", {"id": "lab/none"})]
    (kept, _), (missing, seconds) = asked(environment, tmp_path, asks)
    assert kept == "12 rows"
    assert missing.startswith("lab/none: the Hub cannot be reached, and it is not in the local cache (")
    assert seconds < 10


@pytest.mark.slow
def test_a_recipe_of_ids_is_trained_pushed_and_loaded_by_plain_transformers(tmp_path: Path, world: Path) -> None:
    home = tmp_path / "home"
    with HubServer() as hub:
        revision, rows = filled(hub, world)
        (tmp_path / "r.yaml").write_text(RECIPE.format(revision=revision, rows=rows))
        checked = run(hub.environment(home), tmp_path, "-m", "align", "check", "r.yaml")
        assert (checked.returncode, "40 pairs" in checked.stdout) == (0, True), checked.stderr
        trained = run(hub.environment(home), tmp_path, "-m", "align", "train", "r.yaml", "output.push=mine")

        assert trained.returncode == 0, trained.stderr
        assert "push: at the end the model goes to ada/mine, private\n" in trained.stdout
        commit = hub.repos["models", "ada/mine"].heads["main"]
        assert f"files pushed: {hub.url}/ada/mine is at {commit[:12]}\n" in trained.stdout
        model = tmp_path / "runs" / "first" / "model"
        assert hub.files("ada/mine") == {file.name: file.read_bytes() for file in model.iterdir()}
        assert hub.repos["models", "ada/mine"].private
        everything = [file for file in tmp_path.rglob("*") if file.is_file()]
        assert not [file for file in everything if hub.token.encode() in file.read_bytes()]
        assert hub.token not in trained.stdout + trained.stderr + checked.stdout + checked.stderr

        loaded = run(
            hub.environment(tmp_path / "fresh"),
            tmp_path,
            "-c",
            "import sys, torch\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            "ids = torch.tensor([[3, 5, 8, 13, 21]])\n"
            "models = [AutoModelForCausalLM.from_pretrained(name) for name in sys.argv[1:]]\n"
            "logits = [model(ids).logits for model in models]\n"
            "gap = (logits[0] - logits[1]).abs().max().item()\n"
            "print(gap, AutoTokenizer.from_pretrained(sys.argv[1]).eos_token, 'align' in sys.modules)",
            "ada/mine",
            str(model),
        )
        assert loaded.stdout.split() == ["0.0", "<|endoftext|>", "False"], loaded.stderr


def finished(folder: Path, **output: Any) -> Recipe:
    """A recipe whose run has ended in ``folder``, as far as a push sees it."""
    (folder / "out" / "model").mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "README.md"):
        (folder / "out" / "model" / name).write_bytes(name.encode())
    (folder / "out" / "recipe.lock.yaml").write_text("run: 1\n")
    sections: dict[str, Any] = {"model": {"id": "m"}, "data": {"train": {"path": "a"}}, "objective": {"name": "dpo"}}
    return Recipe.from_dict({"name": "first", **sections, "output": {"path": str(folder / "out"), **output}})


def test_a_push_that_fails_at_the_end_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, said = finished(tmp_path, push="lab/mine", private=False), []
    with HubServer() as hub:
        hub.here(monkeypatch, tmp_path / "home")
        hub.plan["commit"] = ["403"]
        with pytest.raises(UserError) as caught:
            _push(recipe, said.append)

        assert str(caught.value) == (
            f"The run is finished and whole in {tmp_path}/out, but its push failed: ada may not do this to lab/mine "
            "(status 403: told to answer 403). Use a token that may write to lab, or push to a repository of your own."
            f"\nPush it without training again: align push {tmp_path}/out lab/mine --public"
        )
        assert not hub.files("lab/mine")

        _push(recipe, said.append)  # what that command does, and it asks nothing
        assert hub.files("lab/mine") == {
            name: name.encode() for name in ("model.safetensors", "config.json", "README.md")
        }
        assert not hub.repos["models", "lab/mine"].private
        assert said[-1].startswith(f"3 files pushed: {hub.url}/lab/mine is at ")


def test_a_push_that_is_interrupted_says_how_to_do_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(line: str) -> None:
        raise KeyboardInterrupt

    with HubServer() as hub:
        hub.here(monkeypatch, tmp_path / "home")
        hub.plan["commit"] = ["503"]
        with pytest.raises(UserError, match=r"but its push failed: it was interrupted\.\nPush it without"):
            _push(finished(tmp_path, push="mine"), interrupted)


def test_whoever_asked_the_run_to_end_does_not_wait_for_a_push(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM that came while the result was written; an upload would be cut off 20 seconds later."""
    with HubServer() as hub:
        hub.here(monkeypatch, tmp_path / "home")
        monkeypatch.setattr(SIGNALS, "asked", "SIGTERM")
        with pytest.raises(UserError, match=r"finished and whole .*: it was interrupted\.\nPush it without"):
            _push(finished(tmp_path, push="mine"), str)
        assert not hub.repos


def test_a_push_that_will_be_refused_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    with HubServer() as hub:
        (tmp_path / "r.yaml").write_text(RECIPE.format(revision="main", rows="main"))
        words = ("-m", "align", "train", "r.yaml", "output.push=eve/mine")

        failed = run(hub.environment(tmp_path / "home"), tmp_path, *words)

        assert failed.returncode == 2
        assert failed.stderr.strip().split("\n")[-1] == (
            "ada may not push to eve/mine: eve is neither ada nor one of their organisations (lab). Push to ada/mine, "
            "or propose the change (--pr)."
        )
        assert hub.count("resolve") == 0
        assert not (tmp_path / "runs").exists()
