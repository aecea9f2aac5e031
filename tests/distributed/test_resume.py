"""kill -9 of a rank, and the run goes on: bitwise on the same processes, in the same order of rows on others."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest
import torch
from distributed.launching import HERE, ROOT, command, environment, need
from safetensors.torch import load_file
from saved_model import save_model

RECIPE = """
name: {name}
seed: 3
model: {{id: {folder}/model, dtype: float32{lora}}}
data: {{train: {{path: {folder}/pairs.jsonl}}, max_length: 128}}
objective: {{name: dpo}}
reference: {reference}
watch: {{probe_pairs: 3, report: false, every: 2, probe_answers: 2}}
train: {{max_steps: 8, per_device_train_batch_size: 2, gradient_accumulation_steps: {steps}, learning_rate: 5e-3,
         logging_steps: 2, save_steps: 3, activation_checkpointing: false, {more}}}
output: {folder}/runs/{name}
"""
SHARDED = ("fsdp2", "zero2", "zero3")
MOVING = "{sync_every: 2, sync_mix: 0.5, store: false}"  # it has moved once in checkpoint-3, and moves three times more
LORA = ", lora: {{rank: 4, alpha: 8, dropout: {dropout}}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("resume")
    save_model(made / "model")
    words = random.Random(1)

    def text(low: int, high: int) -> str:
        return " ".join(f"w{words.randrange(3, 97)}" for _ in range(words.randint(low, high)))

    pairs = [{"prompt": text(3, 9), "chosen": text(1, 8), "rejected": text(1, 8)} for _ in range(37)]
    (made / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return made


def written(folder: Path, label: str, name: str, kind: str, steps: int = 1, dropout: float = 0.1) -> str:
    """The file of a recipe that trains four examples in a step of two processes."""
    more = "ddp_backend: gloo" if label.startswith("zero") else "use_cpu: true"
    lora = LORA.format(dropout=dropout) if kind == "lora" else ""
    file = folder / f"{name}.yaml"
    reference = MOVING if kind == "moving" else f"{{store_dir: {folder}/reference-{name}}}"
    filled = {"lora": lora, "reference": reference, "steps": steps, "more": more}
    file.write_text(RECIPE.format(name=name, folder=folder, **filled))
    return str(file)


def train(label: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Train recipes in two processes of a backend, or in one of none."""
    need(label)
    done = subprocess.run(
        [*command(label, HERE / "resume_worker.py"), *words], env=environment(label) | env, cwd=ROOT,
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    print(done.stdout[-4000:], done.stderr[-4000:])
    return done


def recorded(folder: Path, name: str) -> list[tuple]:
    """Losses, gradient norms, margins and readings of a run, by step."""
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    keys = ("loss", "grad_norm", "rewards/margins", "probe", "answer_tokens", "own_text")
    return [(r["step"], *(r.get(key) for key in keys)) for r in map(json.loads, lines)]


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    (file,) = (folder / "runs" / name / "model").glob("*.safetensors")
    return load_file(file)


def same(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("label", "kinds"),
    [
        ("ddp", ("lora",)),
        pytest.param("ddp", ("full", "moving"), marks=pytest.mark.slow),
        *(pytest.param(label, ("full", "lora", "moving"), marks=pytest.mark.slow) for label in SHARDED),
    ],
)
def test_a_rank_is_killed_and_the_run_goes_on_to_the_last_bit(folder: Path, label: str, kinds: tuple[str, ...]) -> None:
    whole = [written(folder, label, f"{label}-{kind}-whole", kind) for kind in kinds]
    cut = [written(folder, label, f"{label}-{kind}-cut", kind) for kind in kinds]
    assert train(label, *whole).returncode == 0
    for file in cut:
        assert train(label, file, ALIGN_TEST_DIE_AT="5").returncode != 0
    done = train(label, "--resume", *cut)
    assert done.returncode == 0
    assert done.stdout.count("resuming from checkpoint-3") == len(kinds)
    for kind in kinds:
        mine, theirs = (f"{label}-{kind}-{name}" for name in ("cut", "whole"))
        assert recorded(folder, mine) == recorded(folder, theirs)
        assert len(recorded(folder, mine)) > 6
        assert same(weights(folder, mine), weights(folder, theirs))


OTHERS = [("ddp", "single"), ("single", "ddp"), ("fsdp2", "single"), ("ddp", "fsdp2")]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), OTHERS)
def test_on_other_processes_rows_come_in_the_same_order_and_the_optimizer_goes_on(
    folder: Path, before: str, after: str
) -> None:
    """Without dropout nothing but rounding differs from the run that nobody moved."""
    name = f"{before}-{after}"
    kinds = ("full", "lora")

    def files(name: str, label: str) -> list[str]:
        steps = 2 if label == "single" else 1
        return [written(folder, label, f"{name}-{kind}", kind, steps=steps, dropout=0) for kind in kinds]

    if not (folder / "runs/moved-whole-lora/verdict.json").exists():
        assert train("single", *files("moved-whole", "single")).returncode == 0
    for file in files(name, before):
        assert train(before, file, ALIGN_TEST_DIE_AT="5", ALIGN_TEST_RANK="0").returncode != 0
    done = train(after, "--resume", *files(name, after))
    assert done.returncode == 0
    here = {"single": "one process"}
    was, now = (here.get(label, f"2 processes of {label}") for label in (before, after))
    said = f"note: checkpoint-3 was written by {was}. Rows come in the same order and the optimizer goes on, but {now}"
    assert done.stdout.count(said) == len(kinds)
    for kind in kinds:
        mine, theirs = (recorded(folder, f"{one}-{kind}") for one in (name, "moved-whole"))
        assert [r[0] for r in mine] == [r[0] for r in theirs]
        for a, b in zip(mine, theirs, strict=True):
            assert a[1] == (None if b[1] is None else pytest.approx(b[1], abs=2e-6))
        moved, whole = (weights(folder, f"{one}-{kind}") for one in (name, "moved-whole"))
        assert all(torch.allclose(moved[key], whole[key], rtol=0, atol=2e-5) for key in whole)


@pytest.mark.slow
def test_what_cannot_go_on_is_refused_with_the_way_that_can(folder: Path) -> None:
    file = written(folder, "zero2", "zero2-refused", "full")
    assert train("zero2", file, ALIGN_TEST_DIE_AT="5").returncode != 0
    done = train("single", "--resume", written(folder, "single", "zero2-refused", "full", steps=2))
    assert done.returncode == 2
    at = folder / "runs/zero2-refused/checkpoint-3"
    assert done.stderr.strip().splitlines()[-1] == (
        "checkpoint-3 was written by 2 processes of zero2, and one process cannot take up its optimizer. Go on with 2 "
        f"processes of zero2, or start a new run from its weights: another name=, and model.id={at}."
    )
    done = train("single", "--resume", written(folder, "single", "zero2-refused", "full"))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == (
        f"{folder}/runs/zero2-refused: an optimizer step of this run has 4 examples, and now it would have 2 "
        "(train.per_device_train_batch_size 2 x train.gradient_accumulation_steps 1 x 1 process). Set "
        "train.gradient_accumulation_steps=2."
    )
