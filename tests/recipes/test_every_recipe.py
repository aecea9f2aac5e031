"""Every packaged recipe on a tiny model and on data with its data set's columns: checked, planned, two steps run.

A recipe keeps all of its keys but those of ``MAY_CHANGE``, which are set on the command line as a user would. What is
not tried is precision: a CPU has no bf16, so recipes compute in float32 here, over the types that they keep weights in.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_server import FaultyServer
from safetensors.torch import load_file
from stand_in import ROWS
from two_steps import PROMPTS, ROUNDS, make_place, model_for, overrides

from align.cli.main import main
from align.errors import Exit
from align.recipe import Recipe, load_recipe, packaged_recipes
from align.report.trajectory import trajectory
from align.runs.directory import RunDirectory
from align.sampling.files import read_tables

SHORT = (  # some for make test
    "preference/kto-zephyr-7b",
    "unlearn/tofu-npo-llama3.2-1b",
    "online/superhf-llama-7b-lora",
)
MAY_CHANGE = re.compile(
    r"model\.(id|tokenizer)|output|data\.max_length|data\.alternates\.path|train\.(max_steps|logging_steps|bf16)"
    r"|data\.\w+\.\d\.(path|subset|world\S*)|evaluate\.(split|retain)|evaluate\.source\.world\S*"
    r"|watch\.report|sampling\.max_new_tokens|judge\.(reward|pair|endpoint\.url)|rounds\.(count|prompts)"
)
# how the rows of each data set are read, which depends on their columns and types
_TALK = "preference, conversational, implicit prompt"
_REPEATED = f"{_TALK} (the prompt column repeats the first turn)"
_PROMPTS = "prompts only, conversational"
FORMATS = {
    "HuggingFaceH4/ultrafeedback_binarized": _REPEATED,
    "princeton-nlp/llama3-ultrafeedback-armorm": _REPEATED,
    "argilla/dpo-mix-7k": _TALK,
    "trl-lib/tldr-preference": "preference, standard, explicit prompt",
    "trl-lib/tldr": "prompt and completion, standard",
    "lvwerra/stack-exchange-paired": "preference, standard, explicit prompt",
    "Anthropic/hh-rlhf": "preference, HH-RLHF transcripts",
    "trl-lib/hh-rlhf-helpful-base": "preference, conversational, explicit prompt",
    "muse-bench/MUSE-News": "plain text (text), all of it a target",
    "locuslab/TOFU": "prompt and completion, conversational",
    **{f"RLHFlow/iterative-prompt-v1-iter{i}-20K": _PROMPTS for i in (1, 2, 3)},
    **{f"RLHFlow/ultrafeedback_iter{i}": _PROMPTS for i in (1, 2, 3)},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("every-recipe"))


@pytest.fixture(autouse=True)
def there(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In that folder, with caches of its own and one thread."""
    import datasets

    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in SHORT else pytest.mark.slow) for name in sorted(packaged_recipes())],
)
def test_it_is_checked_planned_and_runs_two_steps(
    name: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = load_recipe(name), tmp_path / "run"
    words = overrides(recipe, place, run)
    with FaultyServer() as server:
        if recipe.judge is not None and recipe.judge.endpoint is not None:
            words.append(f"judge.endpoint.url={server.url}")
        before, after = (dict(leaves(one.dump())) for one in (recipe, load_recipe(name, words)))
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert [key for key in changed if not MAY_CHANGE.fullmatch(key)] == []

        assert main(["check", name, *words]) == Exit.OK
        said = capsys.readouterr().out
        for source in recipe.data.rows:
            if source.id is not None:
                assert re.search(rf"^Data  {source.id}/.*, {re.escape(FORMATS[source.id])}$", said, re.MULTILINE)
        if all(source.id for source in recipe.data.rows):  # rows of data sets are fit as they are, only few here
            warned = re.findall(r"^  warning  (.*)", said, re.MULTILINE)
            assert [line for line in warned if not re.match(r"\d+ rows to train on, and an optimizer", line)] == []

        assert main(["plan", name, *words, "--json"]) == Exit.OK
        plan = json.loads(capsys.readouterr().out)
        assert (plan["fits"], plan["batches"]["steps"]) == (True, 2)

        assert main(["train", name, *words]) == Exit.OK
    asks = recipe.judge is not None and recipe.judge.endpoint is not None
    assert (server.requests > 0) == asks
    _steps(recipe, run)
    _samples(recipe, run)
    _evaluations(recipe, run)
    assert _moved(run / "model", model_for(recipe, place))


@pytest.mark.slow
def test_the_key_that_a_header_adds_for_convexda(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "reward/consistency-llama-7b"
    added = re.search(r"^#   ConvexDA add   (\S+) ", packaged_recipes()[name].read_text("utf-8"), re.MULTILINE)
    assert added is not None
    words = [*overrides(load_recipe(name), place, tmp_path / "run"), added[1]]
    assert main(["train", name, *words]) == Exit.OK
    found = re.search(rf"ConvexDA of answers \(pick: random\): (\d+) of {ROWS} rows with", capsys.readouterr().out)
    assert found is not None
    assert int(found[1]) > 0


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings and lists, with its dotted key."""
    if not isinstance(value, dict | list) or not value:
        yield at, value
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(item, f"{at}.{key}" if at else str(key))


def _steps(recipe: Recipe, run: Path) -> None:
    """Two steps in each training, and the loss of the first where it follows from a policy that is its reference."""
    trained = [run] if recipe.rounds is None else [run / f"rounds/{n:02d}/train" for n in range(1, ROUNDS + 1)]
    for folder in trained:
        logged = [record for record in RunDirectory(folder).metrics() if "loss" in record]
        assert [record["step"] for record in logged] == [1, 2]
        assert all(math.isfinite(record["loss"]) for record in logged)
        assert all(math.isfinite(record["grad_norm"]) and record["grad_norm"] > 0 for record in logged)
        if folder == trained[0] and (expected := _first_loss(recipe, logged[0])) is not None:
            assert logged[0]["loss"] == pytest.approx(expected, rel=1e-4)


def _first_loss(recipe: Recipe, record: dict[str, Any]) -> float | None:
    """The loss where all log-ratios are zero; None where it depends on the model beyond a likelihood that is logged."""
    total = 0.0
    for part in recipe.objective:
        about = part.value
        if part.name in ("dpo", "flex_dpo"):
            loss = math.log(2)
        elif part.name in ("npo", "idk_dpo"):
            loss = 2 / about.beta * math.log(2)
        elif part.name == "kto":
            loss = 0.5
        elif part.name == "ipo":
            loss = (1 / (2 * about.tau)) ** 2
        elif part.name == "inpo":
            loss = (1 / (2 * about.eta)) ** 2
        elif part.name == "sppo_hard":
            loss = 2 * (1 / (2 * about.beta)) ** 2
        elif part.name == "kl":
            loss = 0.0
        elif part.name == "nll" and "nll/retain" in record:
            loss = record["nll/retain"]
        else:
            return None
        total += part.weight * loss
    return total


def _samples(recipe: Recipe, run: Path) -> None:
    """As many as the recipe asks for, of every prompt."""
    if recipe.sampling is None:
        assert not (run / "samples").exists()
        return
    if recipe.rounds is not None:
        for number in range(1, ROUNDS + 1):
            judged = read_tables(sorted((run / f"rounds/{number:02d}/judged").glob("*.parquet")))
            assert len(judged) == PROMPTS * recipe.sampling.samples
            chosen = [row["row"] for row in judged if row["selected"] == "chosen"]
            assert 0 < len(chosen) == len(set(chosen)) <= PROMPTS
        return
    there = ROWS if recipe.data.rows[0].id is not None else 40
    step = recipe.train["per_device_train_batch_size"] * recipe.train.get("gradient_accumulation_steps", 1)
    drawn = read_tables(sorted((run / "samples").iterdir()))
    assert len(drawn) == 2 * min(step, there) * recipe.sampling.samples


def _evaluations(recipe: Recipe, run: Path) -> None:
    """Before and after training; at the start the model is its own retain model, which no test tells apart."""
    read = trajectory(RunDirectory(run).metrics())
    if recipe.evaluate is None:
        assert read == []
        return
    assert (read[0]["step"], read[-1]["step"]) == (0, 2)
    assert (read[0]["D"], read[0]["forget_quality"]) == (0, 1)
    assert all(0 < one["forget_probability"] < 1 for one in read)


def _moved(trained: Path, start: Path) -> bool:
    """Whether a weight is another than at the start; an adapter's second matrices begin as zeros."""
    adapter = trained / "adapter_model.safetensors"
    if adapter.exists():
        found = load_file(adapter)
        return any(bool(value.any()) for name, value in found.items() if "lora_B" in name)
    now, before = (load_file(folder / "model.safetensors") for folder in (trained, start))
    return any(not torch.equal(now[name].float(), before[name].float()) for name in before.keys() & now.keys())
