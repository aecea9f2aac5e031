"""Two processes train as one does: DDP, FSDP2 and ZeRO on CPU, against the single process, step by step.

Thirty-three rows at eight a step: the fifth step has one row, so that most of its micro-batches are dummies, on one
rank all of them. Two processes accumulate over two micro-batches, the single process over none.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.backends import SHORT, WRAPPERS, check
from distributed.launching import CONFIGS, HERE, ROOT, environment, need, save_models
from distributed.launching import launch as launch_worker
from safetensors.torch import load_file

CASES = ("calibrated", "full-entangled", "lora-entangled", "kl-full")
MORE = ("tied-kl-full", "full-checkpointing", "lora-checkpointing", "adapter", "unlearn-kl", "moving")
WATCHED = ("full-watched", "lora-watched")
SCORES = ("reward", "reward-lora", "own-reward")
STORE = ("full-store-seed", "full-store", "full-store-again")

Launch = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("distributed"))


@pytest.fixture(scope="module")
def launch(folder: Path) -> Launch:
    """Runs cases of the worker under a backend and returns the folder of results."""

    def run(label: str, cases: tuple[str, ...], *options: str) -> Path:
        need(label)
        launch_worker(folder, label, cases, *options)
        return folder

    return run


def _result(folder: Path, label: str, case: str) -> dict[str, Any]:
    return json.loads((folder / f"{label}-{case}.json").read_text())


def _weights(folder: Path, label: str, case: str) -> dict[str, torch.Tensor]:
    (file,) = (folder / f"{label}-{case}").glob("*.safetensors")
    return load_file(file)


def _compare(folder: Path, label: str, case: str, loss: float = 1e-6, weight: float = 1e-5) -> dict[str, Any]:
    """Losses to 1e-6 (above 1: relative); gradient norms and metrics, through their margins, and weights to 1e-5."""
    one, two = _result(folder, "single", case), _result(folder, label, case)
    torch.testing.assert_close(two["loss"], one["loss"], rtol=loss, atol=loss)
    torch.testing.assert_close(two["eval_loss"], one["eval_loss"], rtol=0, atol=loss)
    torch.testing.assert_close(two["grad_norm"], one["grad_norm"], rtol=10 * loss, atol=10 * loss)
    torch.testing.assert_close(two["margins"], one["margins"], rtol=0, atol=10 * loss)
    assert len(set(one["loss"])) == len(one["loss"])
    assert two["mode"] == one["mode"] == "tree"
    assert two["start_gap"] <= 1e-5
    mine, theirs = _weights(folder, label, case), _weights(folder, "single", case)
    # a sharded model saves a tied head beside the embedding
    assert set(theirs) <= set(mine) <= {*theirs, "lm_head.weight"}
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, rtol=0, atol=weight, msg=lambda m, n=name: f"{n}: {m}")
    return two


@pytest.mark.parametrize("label", ["ddp", "fsdp2", "zero2", "zero3"])
def test_two_processes_have_the_losses_of_one(launch: Launch, label: str) -> None:
    launch("single", SHORT[label])
    check(launch(label, SHORT[label]), label, SHORT[label])


@pytest.mark.slow
@pytest.mark.parametrize("label", ["ddp", "fsdp2", "zero2", "zero3"])
def test_references_and_entanglement_of_two_processes_are_those_of_one(launch: Launch, label: str) -> None:
    launch("single", CASES)
    folder = launch(label, CASES)
    for case in CASES:
        result = _compare(folder, label, case)
        assert WRAPPERS[label] in result["wrapper"]
        assert len(result["loss"]) == 5
        assert [len(rank["flags"]) for rank in result["ranks"]] == [10, 10]
    _check_reference(_result(folder, label, "kl-full"), _result(folder, "single", "kl-full"), label)
    assert _result(folder, label, "lora-entangled")["strategy"] == "adapter_off"
    assert _result(folder, label, "full-entangled")["strategy"] == "copy"
    for case, of in (("full-entangled", "last block"), ("lora-entangled", "LoRA weights")):
        _compare_entanglement(_result(folder, label, case), _result(folder, "single", case), of, label)


def _check_reference(two: dict[str, Any], one: dict[str, Any], label: str, made: float = 0.02) -> None:
    """Every rank holds its part of the policy at the start, and nothing more, where the policy is cut up as well.

    ``made``: how far from a half the part may be before training.
    """
    assert two["strategy"] == one["strategy"] == "copy"
    whole = one["ranks"][0]["tensors"]["reference"]
    for rank in two["ranks"]:
        start, kept = rank["digests"]
        assert start == kept == one["ranks"][0]["digests"][0]
        if label in ("fsdp2", "zero3"):  # pieces are padded to equal sizes
            assert rank["tensors"]["reference"] / whole == pytest.approx(0.5, abs=0.02)
            assert rank["made"] / whole == pytest.approx(0.5, abs=made)
        else:
            assert rank["made"] == rank["tensors"]["reference"] == whole


def _compare_entanglement(two: dict[str, Any], one: dict[str, Any], of: str, label: str) -> None:
    """Two processes read the gradient products of one, over the same weights, before training and after every step."""
    assert len(two["entanglement"]) == len(one["entanglement"]) == 6
    for mine, theirs in zip(two["entanglement"], one["entanglement"], strict=True):
        assert mine["of"] == theirs["of"] == of
        assert (mine["block"], mine["parameters"]) == (theirs["block"], theirs["parameters"])
        for a, b in ((mine, theirs), (mine["head"], theirs["head"])):
            assert a["n"] == b["n"] > 0
            for key in ("inner", "chosen_norm", "rejected_norm"):
                assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-3)
            assert a["cosine"]["value"] == pytest.approx(b["cosine"]["value"], rel=1e-3, abs=1e-4)
            assert a["cases"] == b["cases"]
    # Adam's own scale lies beside the weights, but in DeepSpeed
    known = ["adam" in reading for reading in two["entanglement"]]
    assert known == ([False] * 6 if label.startswith("zero") else [False, *[True] * 5])
    if any(known):
        for mine, theirs in zip(two["entanglement"][1:], one["entanglement"][1:], strict=True):
            assert mine["adam"]["cosine"]["value"] == pytest.approx(
                theirs["adam"]["cosine"]["value"], rel=1e-2, abs=1e-3
            )


@pytest.mark.slow
@pytest.mark.parametrize("label", ["ddp", "fsdp2", "zero2", "zero3"])
def test_what_two_processes_read_of_the_policy_is_what_one_reads(launch: Launch, label: str) -> None:
    launch("single", WATCHED)
    folder = launch(label, WATCHED)
    for case in WATCHED:
        one, two = (_result(folder, name, case)["watched"] for name in ("single", label))
        assert [record["step"] for record in one if "own_text" in record] == [0, 2, 4, 5]
        for key in ("own_text", "probe", "answer_tokens"):
            mine, theirs = ([record[key] for record in records if key in record] for records in (two, one))
            _near(mine, theirs, key)
        last = [record["own_text"] for record in one if "own_text" in record][-1]
        assert last["against"] == "reference"
        assert last["reverse_kl"]["value"] > 0.01  # the policy has moved
        samples = [json.loads((folder / f"{name}-{case}/unseen.json").read_text()) for name in ("single", label)]
        assert [s["ids"] for s in samples[0]["samples"]] == [s["ids"] for s in samples[1]["samples"]]
        assert len(samples[0]["samples"]) == 2 * 5


def _near(mine: Any, theirs: Any, where: str) -> None:
    """Numbers of two JSON values to 1e-3, all else exactly.

    The ends of an interval to 1e-2: with a few pairs many resamples of a bootstrap have the mean of the pairs
    themselves, and rounding in the seventh digit says on which side of it they are counted.
    """
    if isinstance(theirs, dict):
        assert mine.keys() == theirs.keys(), where
        for key in theirs:
            _near(mine[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, list):
        assert len(mine) == len(theirs), where
        for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            _near(a, b, f"{where}[{i}]")
    elif isinstance(theirs, float):
        end = where.endswith((".low", ".high"))
        assert mine == pytest.approx(theirs, rel=1e-2 if end else 1e-3, abs=1e-4), where
    else:
        assert mine == theirs, where


@pytest.mark.slow
@pytest.mark.parametrize("label", ["ddp", "fsdp2", "zero2", "zero3"])
def test_tied_heads_checkpointing_and_trained_adapters(launch: Launch, label: str) -> None:
    launch("single", MORE)
    folder = launch(label, MORE)
    for case in MORE:
        _compare(folder, label, case)
    # ZeRO-3 cuts up an adapter's small weights when training begins
    _check_reference(_result(folder, label, "adapter"), _result(folder, "single", "adapter"), label, made=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("label", ["ddp", "fsdp2", "zero2", "zero3"])
def test_ranks_that_miss_different_rows_of_the_store_stay_in_step(launch: Launch, label: str) -> None:
    launch("single", ("full", *STORE))
    folder = launch(label, STORE)
    plain = _result(folder, "single", "full")
    for case in ("full-store", "full-store-again"):
        result = _compare(folder, label, case)
        torch.testing.assert_close(result["loss"], plain["loss"], rtol=0, atol=1e-6)
    partly, again = (_result(folder, label, case) for case in ("full-store", "full-store-again"))
    first, second = (rank["flags"] for rank in partly["ranks"])
    assert any(a != b for a, b in zip(first, second, strict=True))
    assert partly["held"]
    assert not again["held"]
    assert sum(rank["computed"] for rank in again["ranks"]) == 0


@pytest.mark.slow
def test_weights_that_only_rank_0_loaded_reach_the_reference(launch: Launch, folder: Path) -> None:
    launch("single", ("kl-full",))
    for result in folder.glob("fsdp2-kl-full*"):
        shutil.rmtree(result) if result.is_dir() else result.unlink()
    launch("fsdp2", ("kl-full",), "--fsdp_cpu_ram_efficient_loading", "true")
    _compare(folder, "fsdp2", "kl-full")


@pytest.mark.slow
def test_small_weights_that_zero3_keeps_whole_move_with_the_reference(launch: Launch, folder: Path) -> None:
    settings = json.loads(CONFIGS["zero3"].with_suffix(".json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 100  # as norms are by default
    (folder / "persistent.json").write_text(json.dumps(settings))
    launch("single", ("moving-persistent",))
    launch("zero3", ("moving-persistent",), "--deepspeed_config_file", str(folder / "persistent.json"))
    _compare(folder, "zero3", "moving-persistent")


@pytest.mark.slow
@pytest.mark.parametrize(("label", "tolerance"), [("ddp", 2e-3), ("fsdp2", 5e-3)])
def test_bfloat16_is_near_and_keeps_the_reference_of_a_kl_term(launch: Launch, label: str, tolerance: float) -> None:
    # FSDP computes with bfloat16 weights and reduces bfloat16 gradients, DDP does neither
    cases = ("bf16-full", "bf16-kl-full")
    launch("single", cases)
    folder = launch(label, cases)
    for case in cases:
        one, two = _result(folder, "single", case), _result(folder, label, case)
        torch.testing.assert_close(two["loss"], one["loss"], rtol=0, atol=tolerance)


RECIPE = """
name: {name}
seed: 3
model: {{id: {folder}/model, dtype: float32}}
data: {{train: {{path: {folder}/pairs.jsonl}}, max_length: 128}}
objective: {{name: dpo}}
reference: {{store_dir: {folder}/reference-{name}}}
watch: {{probe_pairs: 3, report: false}}
train: {{max_steps: 8, per_device_train_batch_size: 2, gradient_accumulation_steps: 2, learning_rate: 5e-3,
         logging_steps: 1, save_steps: 3, use_cpu: true, activation_checkpointing: false}}
output: {folder}/runs/{name}
"""


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_after_one_was_killed(folder: Path) -> None:
    words = random.Random(1)

    def text(low: int, high: int) -> str:
        return " ".join(f"w{words.randrange(3, 97)}" for _ in range(words.randint(low, high)))

    pairs = [{"prompt": text(3, 9), "chosen": text(1, 8), "rejected": text(1, 8)} for _ in range(37)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

    def train(name: str, entry: list[str], *more: str, **env: str) -> int:
        recipe = folder / f"{name}.yaml"
        recipe.write_text(RECIPE.format(name=name, folder=folder))
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS["ddp"])]
        done = subprocess.run(
            [*command, *entry, str(recipe), *more], env=environment("ddp") | env, cwd=ROOT, capture_output=True,
            text=True, timeout=300, check=False,
        )  # fmt: skip
        print(done.stdout[-3000:], done.stderr[-3000:])
        return done.returncode

    def losses(name: str) -> dict[int, float]:
        lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
        return {r["step"]: r["loss"] for r in map(json.loads, lines) if "loss" in r}

    assert train("whole", ["-m", "align.train"]) == 0
    assert train("cut", [str(HERE / "dies.py")], ALIGN_TEST_DIE_AT="5") != 0
    assert max(losses("cut")) < 8
    assert train("cut", ["-m", "align.train"], "--resume") == 0
    assert losses("cut") == losses("whole")
    whole, cut = (load_file(folder / "runs" / name / "model/model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "variable", "said"),
    [
        (["--cpu", "--num_processes", "2"], False, "started one"),
        (["--config_file", str(CONFIGS["ddp"])], False, "each would be a run of its own"),
        (["--config_file", str(CONFIGS["fsdp2"])], False, "align launch FILE --on cpu2-fsdp2"),
        (["--config_file", str(CONFIGS["zero3"])], True, "DeepSpeed was asked for"),
    ],
    ids=["one process", "two runs", "two runs that shard nothing", "DeepSpeed as DDP"],
)
def test_a_command_that_would_run_something_else_stops_with_its_cure(
    folder: Path, options: list[str], variable: bool, said: str
) -> None:
    if str(CONFIGS["zero3"]) in options:
        need("zero3")
    recipe = folder / "refused.yaml"
    recipe.write_text(RECIPE.format(name="refused", folder=folder))
    env = environment("ddp")
    if not variable:
        del env["ACCELERATE_USE_CPU"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", "align.train", str(recipe)]
    done = subprocess.run(
        [*command, "train.use_cpu=false"], env=env, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode != 0
    assert said in done.stderr
    assert not (folder / "runs/refused").exists()


@pytest.mark.slow
@pytest.mark.parametrize("label", ["ddp", "fsdp2", "zero2", "zero3"])
def test_reward_models_have_the_losses_of_one_process(launch: Launch, label: str) -> None:
    """A new head, one under an adapter, and an encoder's, whose rows are padded; ties and soft labels among them."""
    launch("single", SCORES)
    folder = launch(label, SCORES)
    for case in SCORES:
        one, two = _result(folder, "single", case), _result(folder, label, case)
        for key in ("loss", "eval_loss", "grad_norm", "margins"):
            torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-5)
        assert len(set(one["loss"])) == len(one["loss"])
        assert two["mode"] == one["mode"] == ("own" if case.startswith("own") else "tree")
        assert WRAPPERS[label] in two["wrapper"]
        assert two["calibration"][0] == pytest.approx(one["calibration"][0], abs=1e-4)
        assert [found["n"] for found in two["calibration"][1]] == [found["n"] for found in one["calibration"][1]]
        mine, theirs = _weights(folder, label, case), _weights(folder, "single", case)
        # transformers writes a BERT that was loaded in pieces with the names of its first release
        mine = {name.replace("gamma", "weight").replace("beta", "bias"): tensor for name, tensor in mine.items()}
        assert set(mine) == set(theirs)
        assert any(name.endswith(("score.weight", "classifier.weight")) for name in mine)
        for name, tensor in theirs.items():
            torch.testing.assert_close(mine[name], tensor, rtol=0, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
