"""Recipes: what is read, what is refused, and the exact sentence of each refusal."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from align.errors import Exit, UserError
from align.objectives import DPO, IPO, NLL, RPO, WeightedSum
from align.recipe import Recipe, load_recipe, packaged_recipes
from align.recipe.sampling import Endpoint, Judge
from align.recipe.sections import Alternates, Evaluate, Source
from align.recipe.train_defaults import EXPLAINED
from align.recipe.train_keys import TABLE, check_train, train_keys
from align.recipe.train_refused import REFUSED
from align.recipe.yaml import _FLOAT, _INT, parse

GOOD = """\
name: first
model: {id: some/model}
data:
  train: {path: pairs.jsonl}
objective: {name: dpo}
train:
  max_steps: 10
"""


def write(folder: Path, text: str, name: str = "r.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(folder: Path, text: str, *overrides: str) -> str:
    write(folder, text)
    with pytest.raises(UserError) as caught:
        load_recipe("r.yaml", overrides)
    assert caught.value.exit_code is Exit.USAGE
    return str(caught.value)


# --- what is read -----------------------------------------------------------------------------------------------------


def test_defaults(here: Path) -> None:
    write(here, GOOD)
    recipe = load_recipe("r.yaml")
    assert (recipe.name, recipe.seed, recipe.output_dir) == ("first", 0, Path("runs/first"))
    assert recipe.model.id == "some/model"
    assert (recipe.model.dtype, recipe.model.lora, recipe.model.load_in) == ("auto", None, None)
    assert [source.path for source in recipe.data.train] == ["pairs.jsonl"]
    assert (recipe.data.held_out, recipe.data.max_length, recipe.data.truncation) == (None, 1024, "drop")
    assert (recipe.reference.strategy, recipe.reference.store) == ("auto", True)
    assert (recipe.watch.probe_pairs, recipe.watch.chosen_drop_nats) == (64, 20.0)
    assert recipe.objective_value() == DPO(beta=0.1)
    assert recipe.train == {"max_steps": 10}
    assert recipe.max_tokens_per_microbatch is None
    assert recipe.path == (here / "r.yaml").resolve()
    assert recipe.base == here.resolve()


@pytest.mark.parametrize(("objective", "rate"), [("dpo", 1e-6), ("kto", 1e-6), ("nll", 1e-5)])
def test_the_learning_rate_of_a_silent_recipe(here: Path, objective: str, rate: float) -> None:
    write(here, change("name: dpo", f"name: {objective}"))
    assert load_recipe("r.yaml").train_values()["learning_rate"] == rate


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("5e-6", 5e-6),
        ("5.0e-6", 5e-6),
        ("1E-5", 1e-5),
        (".5e-4", 5e-5),
        ("1e+1", 10.0),
        ("0.001", 0.001),
        ("1_0.5", 10.5),
        ("3", 3),
    ],
)
def test_numbers_that_yaml_1_1_reads_as_text(here: Path, written: str, value: float) -> None:
    write(here, GOOD + f"  learning_rate: {written}\n")
    assert load_recipe("r.yaml").train["learning_rate"] == value


@pytest.mark.parametrize("word", ["on", "yes", "true", "True", "ON"])
def test_truth_words(here: Path, word: str) -> None:
    write(here, GOOD + f"  gradient_checkpointing: {word}\n")
    assert load_recipe("r.yaml").train["gradient_checkpointing"] is True


def test_names_that_yaml_1_1_takes_for_something_else(here: Path) -> None:
    write(here, GOOD.replace("{path: pairs.jsonl}", "{id: a/b, subset: 2024-01-01, revision: 12:30:00}"))
    source = load_recipe("r.yaml").data.train[0]
    assert (source.subset, source.revision) == ("2024-01-01", "12:30:00")


def test_anchors_and_merges(here: Path) -> None:
    text = GOOD.replace(
        "  train: {path: pairs.jsonl}\n",
        "  train: &rows {id: a/b, split: train, rows: 5}\n  held_out: {<<: *rows, split: test}\n",
    )
    write(here, text)
    data = load_recipe("r.yaml").data
    assert data.held_out is not None
    assert (data.held_out[0].id, data.held_out[0].split, data.held_out[0].rows) == ("a/b", "test", 5)
    assert data.train[0].split == "train"


def test_empty_sections_mean_their_defaults(here: Path) -> None:
    write(here, GOOD.split("train:\n  max_steps")[0] + "train:\nwatch:\nreference:\n")
    recipe = load_recipe("r.yaml")
    assert recipe.train == {}
    assert recipe.watch.probe_pairs == 64


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("{name: dpo, beta: 1}", DPO(beta=1.0)),
        ("{name: ipo, tau: 5e-2, reduction: sum}", IPO(tau=0.05, reduction="sum")),
        ("{name: rpo, beta: null}", RPO(beta=None)),
        ("{name: dpo, weight: 2}", WeightedSum(((DPO(), 2.0),))),
        ("[{name: dpo}, {name: nll, weight: 0.2}]", WeightedSum(((DPO(), 1.0), (NLL(), 0.2)))),
        ("[{name: dpo, beta: 0.3}]", DPO(beta=0.3)),
    ],
)
def test_objectives(here: Path, section: str, value: object) -> None:
    write(here, GOOD.replace("{name: dpo}", section))
    objective = load_recipe("r.yaml").objective_value()
    assert objective == value
    assert isinstance(objective, type(value))


def test_overrides(here: Path) -> None:
    write(here, GOOD.replace("{name: dpo}", "[{name: dpo}, {name: nll, weight: 0.2}]"))
    recipe = load_recipe(
        "r.yaml",
        [
            "seed=3",
            "train.learning_rate=5e-6",
            "objective.0.beta=0.2",
            "objective.1.weight=2",
            "model.lora.rank=8",
            "data.train.rows=100",
            "data.held_out={path: held.jsonl}",
            "watch.prompts=[hello, 'a = b']",
            "watch.generate_every=5",
            "train.max_steps=20",
            "train.max_steps=30",
            "output=runs/x",
        ],
    )
    assert (recipe.seed, recipe.train["learning_rate"], recipe.train["max_steps"]) == (3, 5e-6, 30)
    assert recipe.objective_value() == WeightedSum(((DPO(beta=0.2), 1.0), (NLL(), 2.0)))
    assert recipe.model.lora is not None
    assert recipe.model.lora.rank == 8
    assert recipe.data.train[0].rows == 100
    assert recipe.data.held_out is not None
    assert recipe.watch.prompts == ["hello", "a = b"]
    assert recipe.output_dir == Path("runs/x")


def test_an_override_can_take_away(here: Path) -> None:
    write(here, GOOD.replace("{id: some/model}", "{id: some/model, lora: {rank: 4}}"))
    assert load_recipe("r.yaml", ["model.lora=null"]).model.lora is None
    assert load_recipe("r.yaml", ["objective={name: ipo, tau: 0.2}"]).objective_value() == IPO(tau=0.2)


def test_an_override_mends_a_mistake_of_the_file(here: Path) -> None:
    write(here, GOOD.replace("max_steps: 10", "max_steps: ten"))
    assert load_recipe("r.yaml", ["train.max_steps=10"]).train["max_steps"] == 10


@pytest.mark.parametrize("name", sorted(packaged_recipes()))
def test_packaged_recipes(name: str) -> None:
    recipe = load_recipe(name)
    assert load_recipe(packaged_recipes()[name]) == recipe
    assert Recipe.from_dict(yaml.safe_load(yaml.safe_dump(recipe.dump()))).dump() == recipe.dump()
    text = packaged_recipes()[name].read_text(encoding="utf-8")
    for word in ("run ", "needs ", "expect "):
        assert f"#   {word}" in text, f"the header of {name} says nothing about '{word.strip()}'"


def test_packaged_recipes_say_how_to_run_themselves() -> None:
    for name, file in packaged_recipes().items():
        if name.startswith(("preference/", "online/", "reward/")):
            assert re.search(rf"^#   run .*align train {re.escape(name)}\s", file.read_text(encoding="utf-8"), re.M)


def test_recipes_that_sample_are_listed_and_say_what_is_not_known() -> None:
    recipes = {name: file for name, file in packaged_recipes().items() if name.startswith("online/")}
    large = {name: file for name, file in recipes.items() if not name.startswith("online/world-")}
    text = next(iter(large.values())).with_name("README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"align train (online/[\w.-]+)", text))
    assert named == set(large)
    for name, file in large.items():
        header = file.read_text(encoding="utf-8").split("\nname:")[0]
        assert "#   time     not yet measured" in header, name
        assert "#   source   " in header, name


def test_dump_gives_an_equal_recipe(here: Path) -> None:
    text = GOOD.replace("{name: dpo}", "[{name: rpo}, {name: kl, weight: 0.5, direction: reverse}]")
    write(here, text.replace("{id: some/model}", "{id: some/model, lora: {adapter: runs/a}}"))
    recipe = load_recipe("r.yaml", ["train.learning_rate=5e-6", "train.max_tokens_per_microbatch=4096"])
    dumped = recipe.dump()
    assert json.loads(json.dumps(dumped)) == dumped
    own = {"preset": "openrlhf", "beta": None, "eta": None}
    assert dumped["objective"][0] == {"name": "rpo", "weight": 1.0, **own, "calibrate": False}
    again = Recipe.from_dict(yaml.safe_load(yaml.safe_dump(dumped)))
    assert again.dump() == dumped
    assert again.objective_value() == recipe.objective_value()


def test_from_python_without_a_file() -> None:
    plain = {"name": "x", "model": {"id": "m"}, "data": {"train": {"path": "p"}}, "objective": {"name": "dpo"}}
    assert Recipe(**plain) == Recipe.from_dict(plain)
    with pytest.raises(UserError, match=r"^recipe  train\.learning_rat: unknown key\. Did you mean 'learning_rate'\?"):
        Recipe.from_dict({**plain, "train": {"learning_rat": 1.0}})
    with pytest.raises(ValueError, match=r"train\.learning_rat: unknown key"):
        Recipe(**plain, train={"learning_rat": 1.0})
    with pytest.raises(ValueError, match=r"quantised weights cannot be trained themselves"):
        Recipe(**{**plain, "model": {"id": "m", "load_in": "4bit"}})


# --- what is refused, with its sentence -------------------------------------------------------------------------------

DATA = "  train: {path: pairs.jsonl}\n"
DPO_LINE = "{name: dpo}"
MODEL = "{id: some/model}"


def change(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


BAD = {
    # unknown keys
    "top key": (
        GOOD + "objectve: {}\n",
        "r.yaml:8  objectve: unknown key. Did you mean 'objective'?",
    ),
    "other tool's name": (
        change("objective: {name: dpo}", "loss: {name: dpo}"),
        "r.yaml:5  loss: unknown key. Did you mean 'objective'?\n"
        "r.yaml:1  objective: missing; it says what to optimise, as in objective: {name: dpo}.",
    ),
    "model key": (
        change(MODEL, "{id: some/model, torch_dtype: float32}"),
        "r.yaml:2  model.torch_dtype: unknown key. Did you mean 'dtype'?",
    ),
    "lora key": (
        change(MODEL, "{id: some/model, lora: {r: 8}}"),
        "r.yaml:2  model.lora.r: unknown key. Did you mean 'rank'?",
    ),
    "source key": (
        change("{path: pairs.jsonl}", "{id: a/b, config: en}"),
        "r.yaml:4  data.train.config: unknown key. Did you mean 'subset'?",
    ),
    "source key in a list": (
        change("{path: pairs.jsonl}", "\n    - {path: a}\n    - {path: b, spit: x}"),
        "r.yaml:6  data.train.1.spit: unknown key. Did you mean 'split'?",
    ),
    "key like no other": (
        GOOD + "watch: {colour: red}\n",
        "r.yaml:8  watch.colour: unknown key. Keys here: every, budget, probe_pairs, probe_answers, "
        "entanglement_pairs, chosen_drop_nats, stop_when, stop_on_drop, similarity_limit, stop_on_collapse, report, "
        "live, generate_every, prompts.",
    ),
    "live without a report": (
        GOOD + "watch: {live: true, report: false}\n",
        "r.yaml:8  watch.live: it rewrites the report, and watch.report: false wants none.",
    ),
    "train key": (
        GOOD + "  learning_rat: 5e-6\n",
        "r.yaml:8  train.learning_rat: unknown key. Did you mean 'learning_rate'?",
    ),
    "train key like no other": (
        GOOD + "  zzz: 1\n",
        "r.yaml:8  train.zzz: unknown key. All names: align list train.",
    ),
    # what train does not take
    "max_length": (
        GOOD + "  max_length: 512\n",
        "r.yaml:8  train.max_length: cannot be set here: set data.max_length.",
    ),
    "packing": (
        GOOD + "  packing: true\n",
        "r.yaml:8  train.packing: cannot be set here: rows are always packed without padding. Bound a micro-batch with "
        "train.max_tokens_per_microbatch.",
    ),
    "upload": (
        GOOD + "  push_to_hub: true\n",
        "r.yaml:8  train.push_to_hub: cannot be set here: set output.push: USER/NAME, which pushes the finished model, "
        "or push it yourself: align push RUN REPO.",
    ),
    "backend": (
        GOOD + "  torch_compile_backend: eager\n",
        "r.yaml:8  train.torch_compile_backend: cannot be set here: train.torch_compile uses inductor; leave it out.",
    ),
    "graphs": (
        GOOD + "  torch_compile: true\n  torch_compile_mode: reduce-overhead\n",
        "r.yaml:9  train.torch_compile_mode: expected one of default, max-autotune-no-cudagraphs; got the text "
        "'reduce-overhead'.",
    ),
    "mode": (
        GOOD + "  torch_compile_mode: default\n",
        "r.yaml:8  train.torch_compile_mode: has no effect without train.torch_compile: true.",
    ),
    "parallelism": (
        GOOD + "  parallelism_config: {}\n",
        "r.yaml:8  train.parallelism_config: cannot be set here: sequence, context, tensor and pipeline parallelism "
        "are not supported.",
    ),
    "launcher": (
        GOOD + "  deepspeed: ds.json\n",
        "r.yaml:8  train.deepspeed: cannot be set here: belongs to the launcher: accelerate launch --config_file "
        "recipes/accelerate/NAME.yaml -m align.train FILE.",
    ),
    "old name": (
        GOOD + "  warmup_ratio: 0.1\n",
        "r.yaml:8  train.warmup_ratio: cannot be set here: use train.warmup_steps with a value below 1, such as 0.1: "
        "it is a share of all steps.",
    ),
    "beta in train": (GOOD + "  beta: 0.1\n", "r.yaml:8  train.beta: cannot be set here: set objective.beta."),
    # types
    "text for a number": (
        GOOD + "  learning_rate: fast\n",
        "r.yaml:8  train.learning_rate: expected a number, got the text 'fast'.",
    ),
    "quoted number": (
        GOOD + '  learning_rate: "5e-6"\n',
        "r.yaml:8  train.learning_rate: expected a number, got the text '5e-6'. Remove the quotes.",
    ),
    "truth for a number": (
        GOOD + "  learning_rate: yes\n",
        "r.yaml:8  train.learning_rate: expected a number, got true.",
    ),
    "fraction for a whole number": (
        GOOD + "  gradient_accumulation_steps: 1.5\n",
        "r.yaml:8  train.gradient_accumulation_steps: expected a whole number, got the number 1.5.",
    ),
    "truth for a seed": (GOOD + "seed: yes\n", "r.yaml:8  seed: expected a whole number, got true."),
    "number for a name": (
        change(MODEL, "{id: some/model, revision: 1234567}"),
        "r.yaml:2  model.revision: expected text, got the number 1234567. Put it in quotes.",
    ),
    "truth for a name": (
        change("{path: pairs.jsonl}", "{id: a/b, subset: no}"),
        "r.yaml:4  data.train.subset: expected text, got false. Put it in quotes.",
    ),
    "text for a section": (
        change(MODEL, "some/model"),
        "r.yaml:2  model: expected a mapping, got the text 'some/model'.",
    ),
    "text for a source": (
        change("{path: pairs.jsonl}", "pairs.jsonl"),
        "r.yaml:4  data.train: expected a mapping such as {path: FILE}, or a list, got the text 'pairs.jsonl'.",
    ),
    "train as a list": (
        GOOD.split("train:\n  max_steps")[0] + "train: [1]\n",
        "r.yaml:6  train: expected a mapping, got a list.",
    ),
    "targets": (
        change(MODEL, "{id: m, lora: {targets: [1]}}"),
        "r.yaml:2  model.lora.targets: expected text or a list of texts, got a list.",
    ),
    # choices and ranges
    "choice": (
        change(MODEL, "{id: some/model, dtype: bf16}"),
        "r.yaml:2  model.dtype: expected one of auto, float32, bfloat16, float16; got the text 'bf16'. Did you mean "
        "'bfloat16'?",
    ),
    "train choice": (
        GOOD + "  eval_strategy: step\n",
        "r.yaml:8  train.eval_strategy: expected one of no, steps, epoch; got the text 'step'. Did you mean 'steps'?\n"
        "r.yaml:8  train.eval_strategy: needs rows to evaluate on; add data.held_out.",
    ),
    "train range": (
        GOOD + "  per_device_train_batch_size: 0\n",
        "r.yaml:8  train.per_device_train_batch_size: must be at least 1, got 0.",
    ),
    "not finite": (
        GOOD + "  learning_rate: .inf\n",
        "r.yaml:8  train.learning_rate: expected a finite number, got the number inf.",
    ),
    "rank": (change(MODEL, "{id: m, lora: {rank: 0}}"), "r.yaml:2  model.lora.rank: must be at least 1, got 0."),
    "source weight": (
        change("{path: pairs.jsonl}", "{path: a, weight: 0}"),
        "r.yaml:4  data.train.weight: must be greater than 0, got 0.",
    ),
    "watch.every": (GOOD + "watch: {every: 0}\n", "r.yaml:8  watch.every: must be at least 1, got 0."),
    "name": (
        change("name: first", "name: a b/c"),
        "r.yaml:1  name: a run directory is named after it: letters, digits, '.', '_', '+', '-'; got 'a b/c'.",
    ),
    "placeholder": (
        GOOD + "output: runs/{nam}\n",
        "r.yaml:8  output: the only placeholder is {name}, got 'runs/{nam}'.",
    ),
    "output": (GOOD + "output: 5\n", "r.yaml:8  output: expected a mapping, got the number 5."),
    "output.psh": (
        GOOD + "output: {path: a, psh: me/x}\n",
        "r.yaml:8  output.psh: unknown key. Did you mean 'push'?",
    ),
    "output.push": (
        GOOD + "output: {push: a/b/c}\n",
        "r.yaml:8  output.push: 'a/b/c' is no name of a repository: expected USER/NAME or NAME, of letters, digits, "
        "'.', '_' and '-'.",
    ),
    "output.private": (
        GOOD + "output: {path: a, private: false}\n",
        "r.yaml:8  output.private: there is nothing to push; set output.push: USER/NAME.",
    ),
    # objectives
    "unknown objective": (
        change(DPO_LINE, "{name: dpoo}"),
        "r.yaml:5  objective.name: 'dpoo' is not a known objective. Did you mean 'dpo'? All: align list objectives.",
    ),
    "objective like no other": (
        change(DPO_LINE, "{name: zzz}"),
        "r.yaml:5  objective.name: 'zzz' is not a known objective. All: align list objectives.",
    ),
    "objective without a name": (
        change(DPO_LINE, "{beta: 0.1}"),
        "r.yaml:5  objective: name is missing. All: align list objectives.",
    ),
    "objective as text": (
        change(DPO_LINE, "dpo"),
        "r.yaml:5  objective: expected a mapping, got the text 'dpo'; write {name: dpo}.",
    ),
    "objectives as TRL's texts": (
        change(DPO_LINE, "[sigmoid, sft]"),
        "r.yaml:5  objective.0: expected a mapping, got the text 'sigmoid'; write {name: dpo}.\n"
        "r.yaml:5  objective.1: expected a mapping, got the text 'sft'; write {name: nll}.",
    ),
    "TRL's loss_type for the name": (
        change(DPO_LINE, "{loss_type: sigmoid}"),
        "r.yaml:5  objective: name is missing. loss_type: the loss is chosen by name; several are a list such as "
        "[{name: dpo}, {name: nll, weight: 0.5}]. All: align list objectives.",
    ),
    "TRL's lists": (
        change(DPO_LINE, "{name: dpo, loss_type: [sigmoid, sft], loss_weights: [1, 0.5]}"),
        "r.yaml:5  objective.loss_type: the loss is chosen by name; several are a list such as [{name: dpo}, {name: "
        "nll, weight: 0.5}].\n"
        "r.yaml:5  objective.loss_weights: each loss of a list has a weight of its own, such as [{name: dpo}, {name: "
        "nll, weight: 0.5}].",
    ),
    "no objective": (
        change(DPO_LINE, "[]"),
        "r.yaml:5  objective: the list is empty; name at least one objective.",
    ),
    "objective field": (
        change(DPO_LINE, "{name: dpo, bta: 0.1}"),
        "r.yaml:5  objective.bta: unknown key. Did you mean 'beta'?",
    ),
    "field of another objective": (
        change(DPO_LINE, "{name: ipo, beta: 0.1}"),
        "r.yaml:5  objective.beta: unknown key. Keys here: tau, reduction, calibrate, ld_alpha, use_weighting, "
        "f_divergence_type, f_alpha_divergence_coef.",
    ),
    "objective range": (
        change(DPO_LINE, "{name: dpo, beta: -1}"),
        "r.yaml:5  objective.beta: must be greater than 0, got -1.",
    ),
    "objective upper range": (
        change(DPO_LINE, "{name: dpo, label_smoothing: 0.5}"),
        "r.yaml:5  objective.label_smoothing: must be less than 0.5, got 0.5.",
    ),
    "objective type": (
        change(DPO_LINE, "{name: dpo, beta: on}"),
        "r.yaml:5  objective.beta: expected a number, got true.",
    ),
    "option of another divergence": (
        change(DPO_LINE, "{name: ipo, f_divergence_type: forward_kl, f_alpha_divergence_coef: 2.0}"),
        "r.yaml:5  objective: f_alpha_divergence_coef has no effect with f_divergence_type forward_kl. Set "
        "f_divergence_type: alpha_divergence, or remove the coefficient.",
    ),
    "objective choice": (
        change(DPO_LINE, "{name: rpo, preset: handbok}"),
        "r.yaml:5  objective.preset: expected one of handbook, openrlhf; got the text 'handbok'. Did you mean "
        "'handbook'?",
    ),
    "objective weight": (
        change(DPO_LINE, "\n  - {name: dpo}\n  - {name: nll, weight: -1}"),
        "r.yaml:7  objective.1.weight: must be greater than 0, got -1.",
    ),
    # contradictions
    "no source": (
        change("{path: pairs.jsonl}", "{rows: 5}"),
        "r.yaml:4  data.train: says no source; give one of id, path and world.",
    ),
    "two sources": (
        change("{path: pairs.jsonl}", "{path: a, id: b}"),
        "r.yaml:4  data.train: gives id and path; keep one of them.",
    ),
    "revision of a file": (
        change("{path: pairs.jsonl}", "{path: a, revision: main}"),
        "r.yaml:4  data.train.revision: only a Hub dataset has a revision; remove it.",
    ),
    "stream without an end": (
        change("{path: pairs.jsonl}", "{id: a/b, streaming: true}").replace("max_steps: 10", "num_train_epochs: 1"),
        "r.yaml:4  data.train.streaming: a stream has no end that could be known; set train.max_steps.",
    ),
    "evaluation without rows": (
        GOOD + "  eval_strategy: epoch\n",
        "r.yaml:8  train.eval_strategy: needs rows to evaluate on; add data.held_out.",
    ),
    "best model without rows": (
        GOOD + "  load_best_model_at_end: true\n",
        "r.yaml:8  train.load_best_model_at_end: needs rows to evaluate on; add data.held_out.",
    ),
    "quantised without an adapter": (
        change(MODEL, "{id: m, load_in: 4bit}"),
        "r.yaml:2  model.load_in: quantised weights cannot be trained themselves; add model.lora: {}.",
    ),
    "adapter with a rank": (
        change(MODEL, "{id: m, lora: {adapter: runs/a, rank: 8}}"),
        "r.yaml:2  model.lora.rank: an existing adapter has its own rank; remove it.",
    ),
    "no adapter to switch off": (
        GOOD + "reference: {strategy: adapter_off}\n",
        "r.yaml:8  reference.strategy: there is no adapter to switch off; add model.lora, or use copy.",
    ),
    "convex without pairs": (
        change("{path: pairs.jsonl}", "{path: pairs.jsonl}\n  convex: {}").replace("name: dpo", "name: kto"),
        "r.yaml:5  data.convex: rewrites both answers of pairs, and the objective compares no pairs; remove it.",
    ),
    "convex without training pairs": (
        change("train: {path: pairs.jsonl}", "forget: {path: a}\n  convex: {}").replace("name: dpo", "name: npo"),
        "r.yaml:5  data.convex: rewrites training pairs, and data.forget has none; remove it.",
    ),
    "a convex stream": (
        change("{path: pairs.jsonl}", "{path: pairs.jsonl, streaming: true}\n  convex: {}"),
        "r.yaml:4  data.train.streaming: data.convex compares all texts before training; set rows: 10000 instead of "
        "streaming.",
    ),
    "an unknown kind of rewrite": (
        change("{path: pairs.jsonl}", "{path: pairs.jsonl}\n  convex: {kinds: [synonym]}"),
        "r.yaml:5  data.convex.kinds.0: expected one of swapped_letters, dropped_letter, doubled_letter, "
        "neighbour_key, lower_case, capital_words, extra_spaces, no_break_end, quotation_marks, contractions_expanded, "
        "contractions, synonyms, numbers_as_words; got the text 'synonym'. Did you mean 'synonyms'?",
    ),
    "streamed labels": (
        change("{path: pairs.jsonl}", "{id: a/b, streaming: true}").replace("name: dpo", "name: kto"),
        "r.yaml:4  data.train.streaming: labels are counted and answers compared with those of other rows; set "
        "rows: 10000 instead.",
    ),
    "labels beside pairs": (
        change(DPO_LINE, "[{name: dpo}, {name: kto}]"),
        "r.yaml:5  objective: reads chosen and rejected beside labelled answers, and no row has both; leave that part "
        "out, or let its branch be desirable or undesirable.",
    ),
    "labels with log-probs": (
        change("name: dpo", "name: kto") + "reference: {rows: initial}\n",
        "r.yaml:8  reference.rows: labelled answers bring no log-probs along; remove this.",
    ),
    "mix without moves": (
        GOOD + "reference: {sync_mix: 0.5}\n",
        "r.yaml:8  reference.sync_mix: the reference does not move; set reference.sync_every.",
    ),
    "moving reference of a loss without one": (
        change(DPO_LINE, "{name: orpo}") + "reference: {sync_every: 10}\n",
        "r.yaml:8  reference.sync_every: the objective has no reference that could move; remove this.",
    ),
    "adapter with a moving reference": (
        GOOD.replace(MODEL, "{id: m, lora: {}}") + "reference: {sync_every: 10}\n",
        "r.yaml:8  reference.sync_every: the reference of an adapter cannot move; remove model.lora or this.",
    ),
    "two precisions": (
        GOOD + "  bf16: true\n  fp16: true\n",
        "r.yaml:9  train.fp16: bf16 is on too; keep one of them, bf16 where the device has it.",
    ),
    "half weights": (
        change(MODEL, "{id: m, dtype: float16}") + "  fp16: true\n",
        "r.yaml:2  model.dtype: gradients of float16 weights cannot be scaled; train.fp16: true needs float32 weights.",
    ),
    "an adapter of defaults beside train_only": (
        change(MODEL, "{id: m, lora: {}, train_only: [layers.1.]}"),
        "r.yaml:2  model.train_only: an adapter is trained instead of weights; remove model.lora or this.",
    ),
    "prompts for nothing": (
        GOOD + "watch: {prompts: [hi]}\n",
        "r.yaml:8  watch.prompts: no generation is asked for; set watch.generate_every.",
    ),
    # missing and malformed
    "missing id": (change(MODEL, "{dtype: auto}"), "r.yaml:2  model: id is missing; it is a Hub id or a folder."),
    "missing name": (
        change("name: first\n", ""),
        "r.yaml:1  name: missing; it names the run and its directory.",
    ),
    "missing rows": (
        change(DATA, "  max_length: 5\n"),
        "r.yaml:3  data.train: missing; it says where the rows are, as in train: {path: pairs.jsonl}.",
    ),
    "empty lora": (
        change("model: {id: some/model}", "model:\n  id: m\n  lora:"),
        "r.yaml:4  model.lora: empty; write lora: {} for the defaults, or lora: null for none.",
    ),
    "given twice": (GOOD + "name: second\n", "r.yaml:8  name: given twice, first on line 1. Remove one."),
    "given twice, deeper": (
        GOOD + "  max_steps: 11\n",
        "r.yaml:8  train.max_steps: given twice, first on line 7. Remove one.",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_recipes(here: Path, case: str) -> None:
    text, expected = BAD[case]
    count = expected.count("\n") + 1
    ending = f"{count} error{'s' if count > 1 else ''}, nothing was run."
    got = refusal(here, text)
    assert sorted(got.split("\n")) == sorted([*expected.split("\n"), ending])
    assert got.endswith(ending)


BAD_OVERRIDES = {
    "seed": "override seed  expected key=value, for instance train.learning_rate=1e-6.",
    "=3": "override =3  expected key=value, for instance train.learning_rate=1e-6.",
    "train.learning_rat=1e-6": (
        "override train.learning_rat=1e-6  train.learning_rat: unknown key. Did you mean 'learning_rate'?"
    ),
    "train.learning_rate=fast": (
        "override train.learning_rate=fast  train.learning_rate: expected a number, got the text 'fast'."
    ),
    "objective.bta=1": "override objective.bta=1  objective.bta: unknown key. Did you mean 'beta'?",
    "objective.1.beta=1": (
        "override objective.1.beta=1  objective.beta: objective is one mapping, not a list; there is no item 1 in it."
    ),
    "data.train.1.path=x": (
        "override data.train.1.path=x  data.train.path: data.train is one mapping, not a list; there is no item 1 in "
        "it."
    ),
    "model.0.id=x": "override model.0.id=x  model.id: model is one mapping, not a list; there is no item 0 in it.",
    "seed.x=1": "override seed.x=1  seed.x: seed is the number 5, so nothing can be set below it.",
    "data.held_out.2.rows=1": (
        "override data.held_out.2.rows=1  data.held_out.2.rows: data.held_out has 2 items, counted from 0."
    ),
    "data.held_out.rows=1": (
        "override data.held_out.rows=1  data.held_out.rows: data.held_out is a list of 2; name the item, as in "
        "data.held_out.0.rows=..."
    ),
    "train.x.y=1": "override train.x.y=1  train.x: unknown key. All names: align list train.",
    "beta=3": "override beta=3  beta: unknown key. Did you mean 'objective.beta'?",
    "max_steps=3": "override max_steps=3  max_steps: unknown key. Did you mean 'train.max_steps'?",
    "rank=3": "override rank=3  rank: unknown key. Did you mean 'model.lora.rank'?",
    "run_name=x": "override run_name=x  run_name: unknown key. Did you mean 'name'?",
    "model={idd: x}": "override model={idd: x}  model.idd: unknown key. Did you mean 'id'?",
}


@pytest.mark.parametrize("item", BAD_OVERRIDES)
def test_bad_overrides(here: Path, item: str) -> None:
    text = GOOD.replace(DATA, DATA + "  held_out: [{path: a}, {path: b}]\n") + "seed: 5\n"
    assert BAD_OVERRIDES[item] in refusal(here, text, item).split("\n")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("mlflow_", "expected one of none, all, azure_ml, clearml, "),
        ("[tensorboard, none]", "expected one of none, all, azure_ml, clearml, "),
        ("dvclive", "dvclive is not installed: pip install dvclive."),
        ("[tensorboard, comet_ml]", "comet_ml is not installed: pip install comet-ml."),
        ("azure_ml", "azure_ml is not installed: pip install azureml-core."),
    ],
)
def test_trackers_that_are_not_there(here: Path, value: str, said: str) -> None:
    if "pip" in said and importable(said.split()[0]):
        pytest.skip("it is installed here")
    (here / "dvclive").mkdir()  # what such a tracker leaves behind is no package
    got = refusal(here, GOOD, f"train.report_to={value}")
    assert got.startswith(f"override train.report_to={value}  train.report_to: {said}")


@pytest.mark.parametrize("value", ["none", "all", "tensorboard", "[tensorboard]", "null", "[]"])
def test_trackers_that_are_there(here: Path, value: str) -> None:
    write(here, GOOD)
    assert "report_to" in load_recipe("r.yaml", [f"train.report_to={value}"]).train


def importable(tracker: str) -> bool:
    return find_spec({"azure_ml": "azureml"}.get(tracker, tracker)) is not None


def test_an_override_that_is_no_yaml(here: Path) -> None:
    first = refusal(here, GOOD, "seed=[1").split("\n")[0]
    assert first.startswith("override seed=[1  seed: not valid YAML: ")


def test_all_errors_come_together_in_the_order_of_the_file(here: Path) -> None:
    text = change(DPO_LINE, "{name: dpoo}").replace(MODEL, "{idd: x}") + "  learning_rat: 1\n"
    assert refusal(here, text, "watch.every=-1").split("\n") == [
        "r.yaml:2  model: id is missing; it is a Hub id or a folder.",
        "r.yaml:2  model.idd: unknown key. Did you mean 'id'?",
        "r.yaml:5  objective.name: 'dpoo' is not a known objective. Did you mean 'dpo'? All: align list objectives.",
        "r.yaml:8  train.learning_rat: unknown key. Did you mean 'learning_rate'?",
        "override watch.every=-1  watch.every: must be at least 1, got -1.",
        "5 errors, nothing was run.",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "r.yaml  the recipe is empty. Try: align list recipes.\n1 error, nothing was run."),
        ("- a\n", "r.yaml  the recipe is not a mapping of keys. Try: align list recipes.\n1 error, nothing was run."),
        ("a: [1\nb: 2\n", "r.yaml:2  not valid YAML: "),
        ("a:\n\tb: 2\n", "r.yaml:2  not valid YAML: "),
        ("a: !!python/object:os.system x\n", "r.yaml:1  not valid YAML: "),
        ("a: &a [*a]\n", "r.yaml:1  not valid YAML: an alias that contains itself."),
    ],
)
def test_what_is_no_recipe(here: Path, text: str, expected: str) -> None:
    assert refusal(here, text).startswith(expected)


def test_files_that_are_not_there(here: Path) -> None:
    write(here, GOOD)
    for path, expected in {
        "s.yaml": "s.yaml  no such file or packaged recipe. All: align list recipes.",
        "quickstart/dpoo": "quickstart/dpoo  no such file or packaged recipe. Did you mean 'quickstart/dpo'? All: "
        "align list recipes.",
        ".": ".  is a folder; name a recipe file in it.",
    }.items():
        with pytest.raises(UserError) as caught:
            load_recipe(path)
        assert str(caught.value) == expected
    (here / "b.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(UserError, match=r"^b\.yaml  cannot be read as UTF-8 text"):
        load_recipe("b.yaml")


# without texts such as 0E0, which PyYAML writes bare, since it reads them as text, and a recipe reads as a number
TEXTS = st.text(max_size=20).filter(lambda text: not (_FLOAT.match(text) or _INT.match(text)))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS)
KEYS = TEXTS.filter(lambda text: 1 <= len(text) <= 8)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=12
)


def test_keys_of_layers_are_the_trainers_and_not_transformers(here: Path) -> None:
    write(here, GOOD + "  use_liger_kernel: false\n  use_cpu: true\n")
    recipe = load_recipe("r.yaml")
    assert recipe.layers == {"use_liger_kernel": False}
    write(here, GOOD + "  use_liger_kernel: true\n  use_cpu: true\n")
    recipe = load_recipe("r.yaml")
    assert recipe.layers == {"use_liger_kernel": True}
    assert recipe.training_arguments().use_liger_kernel is False
    write(here, GOOD + "  torch_compile: true\n  torch_compile_mode: default\n  use_cpu: true\n")
    recipe = load_recipe("r.yaml")
    assert recipe.layers == {"torch_compile": True, "torch_compile_mode": "default"}
    assert recipe.training_arguments().torch_compile is False


@given(TREES)
def test_yaml_survives_the_reader(value: object) -> None:
    document = parse(yaml.safe_dump(value), "x")
    assert document.value == value
    assert not document.problems


@given(st.text(max_size=20) | st.from_regex(_FLOAT) | st.from_regex(_INT))
@example("0E0")
@example("08")
def test_quoted_text_is_text(text: str) -> None:
    assert parse(yaml.safe_dump({"x": text}, default_style='"', allow_unicode=False), "x").value == {"x": text}


@given(st.dictionaries(st.sampled_from(["name", "seed", "model", "data", "objective", "train", "watch", "x"]), TREES))
def test_no_recipe_is_a_traceback(value: dict[str, object]) -> None:
    with pytest.raises(UserError, match="nothing was run"):
        Recipe.from_dict(value)


# --- the table of training names --------------------------------------------------------------------------------------


def test_table_and_refusals_do_not_meet() -> None:
    assert not set(train_keys()) & set(REFUSED)
    assert {"learning_rate", "max_tokens_per_microbatch", "warmup_steps", "gradient_checkpointing"} <= set(train_keys())
    for name, key in train_keys().items():
        assert not check_train({name: key["default"]}), f"{name}: its own default is refused"


def test_table_and_page_are_fresh() -> None:
    from align.cli.config_page import config_page
    from align.recipe.train_keys import generate, rendered
    from align.versions import installed

    made_with = json.loads(TABLE.read_text(encoding="utf-8"))["generated_from"]
    page = Path(__file__).parents[2] / "docs" / "config.md"
    assert page.read_text(encoding="utf-8") == config_page(), "docs/config.md is stale: make docs"
    here = {name: installed(name) for name in made_with}
    if here != made_with:
        pytest.skip(f"the table was made with {made_with}; installed are {here}")
    assert TABLE.read_text(encoding="utf-8") == rendered(generate()), "align/train_keys.json is stale: make docs"


def test_training_arguments(here: Path) -> None:
    write(here, GOOD.replace(DATA, DATA + "  held_out: {path: held.jsonl}\n"))
    overrides = ["train.learning_rate=5e-6", "train.use_cpu=true", "train.max_tokens_per_microbatch=2048", "seed=9"]
    args = load_recipe("r.yaml", overrides).training_arguments(logging_steps=3)
    assert (args.learning_rate, args.max_steps, args.seed, args.logging_steps) == (5e-6, 10, 9, 3)
    assert (args.output_dir, args.run_name, args.bf16, args.report_to) == ("runs/first", "first", False, [])
    assert (args.eval_strategy, args.eval_steps, args.warmup_steps) == ("steps", 0.1, 0.1)
    assert (args.save_strategy, args.save_steps, args.save_total_limit) == ("steps", 0.25, 2)


@pytest.mark.parametrize(
    ("items", "rate", "evaluation", "saving"),
    [
        ([], 1e-6, "no", "steps"),
        (["model.lora={}"], 1e-5, "no", "steps"),
        (["objective={name: nll, branch: completion}"], 1e-5, "no", "steps"),
        (["objective={name: kto}"], 1e-6, "no", "steps"),
        (["objective={name: kto, form: apo_zero_unpaired}", "model.lora={}"], 1e-5, "no", "steps"),
        (["data.held_out={path: h}", "train.eval_strategy=epoch"], 1e-6, "epoch", "steps"),
        (["data.held_out={path: h}", "train.eval_steps=5"], 1e-6, "steps", "steps"),
        (["data.held_out={path: h}", "train.load_best_model_at_end=true"], 1e-6, "steps", "steps"),
        (
            ["data.held_out={path: h}", "train.eval_strategy=epoch", "train.load_best_model_at_end=true"],
            1e-6,
            "epoch",
            "epoch",
        ),
        (["train.save_strategy='no'"], 1e-6, "no", "no"),
    ],
)
def test_defaults_of_training(here: Path, items: list[str], rate: float, evaluation: str, saving: str) -> None:
    write(here, GOOD)
    args = load_recipe("r.yaml", [*items, "train.use_cpu=true"]).training_arguments()
    assert (args.learning_rate, args.eval_strategy, args.save_strategy) == (rate, evaluation, saving)
    if args.load_best_model_at_end:
        assert args.save_steps == args.eval_steps or args.save_strategy == "epoch"


def test_what_transformers_refuses_is_a_sentence(here: Path) -> None:
    write(here, GOOD + "  use_cpu: true\n")
    recipe = load_recipe("r.yaml", ["train.dataloader_prefetch_factor=2"])
    said = r"r\.yaml  train: transformers refuses these settings: --dataloader_prefetch_factor can only be set when "
    with pytest.raises(UserError, match=said):
        recipe.training_arguments()


NO_DEVICE = "r.yaml  train.{0}: this machine has no device that computes in {1} under accelerate; "
CURE = "set train.{0}=false (override: train.{0}=false)."


@pytest.mark.parametrize(("key", "kind"), [("bf16", "bfloat16"), ("bf16_full_eval", "bfloat16"), ("fp16", "float16")])
def test_a_precision_without_a_device(here: Path, monkeypatch: pytest.MonkeyPatch, key: str, kind: str) -> None:
    import torch

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    write(here, GOOD + f"  {key}: true\n")
    with pytest.raises(UserError) as caught:
        load_recipe("r.yaml").training_arguments()
    assert str(caught.value) == (NO_DEVICE + CURE).format(key, kind)


def test_float16_on_a_cpu(here: Path) -> None:
    write(here, GOOD + "  use_cpu: true\n")
    with pytest.raises(UserError) as caught:
        load_recipe("r.yaml", ["train.fp16=true"]).training_arguments()
    assert str(caught.value) == (
        "r.yaml  train.fp16: train.use_cpu is true, and a CPU does not compute in float16 under accelerate; "
        + CURE.format("fp16")
    )
    assert load_recipe("r.yaml", ["train.bf16=true"]).training_arguments().bf16 is True


def test_the_page_shows_our_defaults() -> None:
    page = (Path(__file__).parents[2] / "docs" / "config.md").read_text(encoding="utf-8")
    for name, text in EXPLAINED.items():
        assert re.search(rf"^\| `{name}` \| [^|]*(?:\\\|[^|]*)*\| {re.escape(text)} \|", page, re.M), name


def test_what_is_explained_is_what_is_set(here: Path) -> None:
    """The defaults that the page prints are those of a run, name by name."""
    write(here, GOOD.replace(DATA, DATA + "  held_out: {path: held.jsonl}\n"))
    assert set(load_recipe("r.yaml").train_values()) == {"max_steps", *EXPLAINED} - {"ddp_timeout"}  # of rounds alone


@pytest.mark.parametrize("name", [name for name in packaged_recipes() if name.startswith("preference/")])
def test_the_bytes_in_a_header_add_up(name: str) -> None:
    text = packaged_recipes()[name].read_text(encoding="utf-8")
    assert f"-m align.train {name}\n" in text
    if load_recipe(name).model.lora is not None:
        return
    found = re.search(r"GB: (\d+) GB (?:each )?before activations \((.*?) B x (\d+) bytes(?: / (\d))?", text)
    assert found is not None
    assert round(float(found[2]) * int(found[3]) / int(found[4] or 1)) == int(found[1])
    assert int(found[3]) == (20 if load_recipe(name).objective_value().needs_reference else 16)
    assert ("Later runs on these rows read the" in text) == (found[3] == "20")


def test_no_torch_for_a_recipe() -> None:
    modules = "align, align.recipe, align.cli.main, align.objectives, align.cli.explain"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# --- output -----------------------------------------------------------------------------------------------------------


def test_output_is_a_path_or_a_mapping_with_it(here: Path) -> None:
    write(here, GOOD + "output: runs/{name}-a\n")
    plain, pushed = load_recipe("r.yaml"), load_recipe("r.yaml", ["output.push=me/x", "output.private=false"])

    assert plain.output_dir == pushed.output_dir == Path("runs/first-a")
    assert plain.dump()["output"] == "runs/{name}-a"
    assert pushed.dump()["output"] == {"path": "runs/{name}-a", "push": "me/x", "private": False}
    assert Recipe.from_dict(pushed.dump()).output == pushed.output

    write(here, GOOD)
    assert load_recipe("r.yaml", ["output.push=x"]).dump()["output"] == {
        "path": "runs/{name}",
        "push": "x",
        "private": True,
    }
    assert load_recipe("r.yaml", ["output.push=x", "output=b"]).dump()["output"] == "b"


# --- paths ------------------------------------------------------------------------------------------------------------

AT_HOME = """\
name: first
model: {id: ~/m, tokenizer: ~/t, chat_template: ~/c.jinja, lora: {adapter: ~/a}}
data: {train: {path: ~/rows.jsonl}, held_out: [{path: ~/held.jsonl}]}
objective: {name: dpo}
reference: {store_dir: ~/store}
output: ~/runs/{name}
"""


def test_a_tilde_is_the_home_folder_in_every_path(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere/else")
    write(here, AT_HOME)
    recipe = load_recipe("r.yaml", ["output=~/runs/other"])
    model, data = recipe.model, recipe.data
    assert model.lora is not None
    assert (model.id, model.tokenizer, model.chat_template, model.lora.adapter) == (
        "/somewhere/else/m",
        "/somewhere/else/t",
        "/somewhere/else/c.jinja",
        "/somewhere/else/a",
    )
    assert [source.path for source in (*data.train, *data.held_out)] == [
        "/somewhere/else/rows.jsonl",
        "/somewhere/else/held.jsonl",
    ]
    assert recipe.reference.store_dir == "/somewhere/else/store"
    assert recipe.output_dir == Path("/somewhere/else/runs/other")
    assert "~" not in str(recipe.dump())
    judge = Judge(endpoint=Endpoint(url="http://x", model="~m", template="~/q", cache="~/answers"))
    assert judge.endpoint is not None
    assert (judge.endpoint.template, judge.endpoint.cache) == ("/somewhere/else/q", "/somewhere/else/answers")
    assert judge.endpoint.model == "~m"  # no path
    assert (Judge(reward="~/rm").reward, Judge(pair="~/pm").pair) == ("/somewhere/else/rm", "/somewhere/else/pm")
    assert Evaluate(retain="~/log.json", source=Source(path="~/tofu")).retain == "/somewhere/else/log.json"
    assert Alternates(path="~/idk.txt").path == "/somewhere/else/idk.txt"


def test_a_tilde_of_nobody(here: Path) -> None:
    said = "~nobody-here stands for a user's home folder, and there is none. Write ./~nobody-here/x for a name with ~."
    for key in ("output", "model.id", "data.train.path"):
        assert f"override {key}=~nobody-here/x  {key}: {said}" in refusal(here, GOOD, f"{key}=~nobody-here/x")


@pytest.mark.parametrize("folder", ["/", "'~'", "/tmp/..", "//"])
def test_a_run_needs_a_folder_of_its_own(here: Path, folder: str) -> None:
    assert "a run needs a folder of its own, and " in refusal(here, GOOD, f"output={folder}")


@pytest.mark.parametrize("key", ["data.train.0.path", "data.train.path"])
@pytest.mark.parametrize("train", ["{path: a}", "[{path: a}]", "{id: a/b}"])
def test_one_mapping_counts_as_item_0(here: Path, key: str, train: str) -> None:
    if train.startswith("[") and ".0." not in key:
        pytest.skip("a list needs the number")
    write(here, GOOD.replace("{path: pairs.jsonl}", train))
    recipe = load_recipe("r.yaml", [f"{key}=other.jsonl", f"{key.replace('path', 'id')}=null", "objective.0.beta=0.3"])
    assert [source.path for source in recipe.data.train] == ["other.jsonl"]
    assert recipe.objective_value() == DPO(beta=0.3)


def test_item_0_of_what_is_not_there_yet(here: Path) -> None:
    write(here, GOOD)
    recipe = load_recipe("r.yaml", ["data.held_out.0.path=held.jsonl", "data.train.0={path: new.jsonl, rows: 3}"])
    assert [source.path for source in recipe.data.held_out] == ["held.jsonl"]
    assert [(source.path, source.rows) for source in recipe.data.train] == [("new.jsonl", 3)]


def test_a_mistake_below_item_0_names_the_override(here: Path) -> None:
    assert "override data.train.0.rows=0  data.train.rows: must be at least 1, got 0." in refusal(
        here, GOOD, "data.train.0.rows=0"
    )
