"""Recipes that forget: what goes together, the sentence for what does not, and every command of the packaged ones."""

from __future__ import annotations

import re
import shlex

import pytest

from align.errors import UserError
from align.objectives import FLAT
from align.recipe import Recipe, load_recipe, packaged_recipes, recipes_folder

UNLEARN = sorted(name for name in packaged_recipes() if name.startswith("unlearn/"))
METHODS = ("npo", "npo-kl", "flat", "simnpo", "grad-diff", "idk-dpo", "rmu")
NPO_RT = [{"name": "npo"}, {"name": "nll", "branch": "retain"}]
FORGET, RETAIN = {"path": "forget.jsonl"}, {"path": "retain.jsonl"}


def plain(data: dict, objective: object = None, **others: object) -> dict:
    return {"name": "r", "model": {"id": "m"}, "data": data, "objective": objective or NPO_RT, **others}


def test_what_a_recipe_that_forgets_says() -> None:
    data = {"forget": FORGET, "retain": [RETAIN, RETAIN], "partner": "fixed"}
    watch = {"stop_when": "utility < 0.9 * start"}
    recipe = Recipe.from_dict(plain(data, evaluate={"suite": "tofu"}, watch=watch))
    assert recipe.data.rows == recipe.data.forget
    assert recipe.data.partner == "fixed"
    assert recipe.evaluate.source.id == "locuslab/TOFU"
    assert Recipe.from_dict(recipe.dump()) == recipe


def test_without_retained_rows_there_is_no_partner_to_dump() -> None:
    recipe = Recipe.from_dict(plain({"forget": FORGET}, {"name": "npo"}))
    assert "partner" not in recipe.dump()["data"]
    assert Recipe.from_dict(recipe.dump()) == recipe


BOTH = {"forget": FORGET, "retain": RETAIN}
DPO = {"name": "dpo"}
FLAT_ALONE = {"name": "flat"}
QUALITY = {"stop_when": "forget_quality > 0.05"}
BAD = {
    "no rows, forgetting": (
        plain({"max_length": 8}),
        "data.forget: missing; it says where the rows are, as in forget: {path: forget.jsonl}.",
    ),
    "no rows, pairs": (
        plain({"max_length": 8}, DPO),
        "data.train: missing; it says where the rows are, as in train: {path: pairs.jsonl}.",
    ),
    "train and forget": (
        plain(BOTH | {"train": FORGET}),
        "data.train: data.forget is given, too; keep one: forget for unlearning.",
    ),
    "held out": (
        plain(BOTH | {"held_out": FORGET}),
        "data.held_out: an unlearning run is measured by a suite; give evaluate: instead, or remove this.",
    ),
    "alternates of pairs": (
        plain({"train": FORGET, "alternates": {"builtin": "idk"}}, DPO),
        "data.alternates: goes with data.forget; give that, or remove this.",
    ),
    "partner of pairs": (
        plain({"train": FORGET, "partner": "index"}, DPO),
        "data.partner: goes with data.forget; give that, or remove this.",
    ),
    "retain of pairs": (
        plain({"train": FORGET, "retain": RETAIN}, DPO),
        "data.retain: goes with data.forget; give that, or remove this.",
    ),
    "partner of nobody": (
        plain({"forget": FORGET, "partner": "index"}, {"name": "npo"}),
        "data.partner: there are no retained rows; give data.retain, or remove this.",
    ),
    "forgetting what is trained on": (
        plain({"train": FORGET}, {"name": "npo"}),
        "data.forget: missing: the objective forgets; say what, as in {path: FILE}.",
    ),
    "nothing forgets": (
        plain(BOTH, {"name": "nll", "branch": "retain"}),
        "data.forget: no objective forgets; name one that does (npo, flat, grad_ascent ...), or give these rows as "
        "train.",
    ),
    "a branch of pairs": (
        plain(BOTH, [*NPO_RT, {"name": "nll"}]),
        "objective: reads chosen, but rows to forget have the branches forget, alternate and retain.",
    ),
    "retain missing": (
        plain({"forget": FORGET}),
        "data.retain: missing: the objective reads retained rows; give {path: FILE}.",
    ),
    "retain missing, whole text": (
        plain({"forget": FORGET}, [{"name": "npo"}, {"name": "nll", "branch": "retain", "positions": "all"}]),
        "data.retain: missing: the objective reads retained rows; give {path: FILE}.",
    ),
    "retain unread": (
        plain(BOTH, {"name": "npo"}),
        "data.retain: no objective reads these rows; add {name: nll, branch: retain} to the objective, or remove this.",
    ),
    "alternates unread": (
        plain(BOTH | {"alternates": {"builtin": "idk"}}),
        "data.alternates: no objective reads alternate answers (idk_dpo, flat, kto_forget and idk do); remove this.",
    ),
    "two kinds of alternates": (
        plain({"forget": FORGET, "alternates": {"builtin": "idk", "path": "a.txt"}}, FLAT_ALONE),
        "data.alternates: gives path and builtin; keep one of them.",
    ),
    "no alternates": (
        plain({"forget": FORGET, "alternates": {}}, FLAT_ALONE),
        "data.alternates: says no source; give path or builtin, or remove it to read the rows' own column.",
    ),
    "a number of alternates alone": (
        plain({"forget": FORGET, "alternates": {"each": 2}}, FLAT_ALONE),
        "data.alternates: says no source; give path or builtin, or remove it to read the rows' own column.",
    ),
    "weights": (
        plain({"forget": FORGET, "retain": [RETAIN, RETAIN | {"weight": 2.0}]}),
        "data.retain.1.weight: rows to forget and to retain have no weights; remove it (the objective's terms have "
        "some).",
    ),
    "streamed": (
        plain({"forget": FORGET | {"streaming": True}, "retain": RETAIN}),
        "data.forget.streaming: forgotten rows must be countable; set rows: 500 instead of streaming.",
    ),
    "two sources in one": (
        plain(BOTH, evaluate={"source": {"id": "a/b", "path": "c"}}),
        "evaluate.source: gives id and path; give one of id, path and world.",
    ),
    "no source": (
        plain(BOTH, evaluate={"source": {"split": "train"}}),
        "evaluate.source: gives no source; give one of id, path and world.",
    ),
    "stopping without measuring": (
        plain(BOTH, watch=QUALITY),
        "watch.stop_when: nothing is evaluated; add evaluate: {suite: tofu}, or remove this.",
    ),
    "stopping at what is not measured": (
        plain(BOTH, evaluate={}, watch={"stop_when": "accuracy < 0.5"}),
        "watch.stop_when: 'accuracy' is not measured; metrics are ",
    ),
    "stopping at nothing": (
        plain(BOTH, evaluate={}, watch={"stop_when": "utility <"}),
        "watch.stop_when: ",
    ),
    "quality of nothing": (
        plain(BOTH, evaluate={}, watch=QUALITY),
        "watch.stop_when: forget quality compares with a retain model; set evaluate.retain.",
    ),
    "a divergence that does not forget": (
        plain({"forget": FORGET}, {"name": "flat", "divergence": "reverse_kl"}),
        "objective.divergence: reverse_kl does not unlearn",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_one_complaint_for_one_mistake(case: str) -> None:
    raw, says = BAD[case]
    with pytest.raises(UserError) as caught:
        Recipe.from_dict(raw)
    first, *others = str(caught.value).split("\n")
    assert first.removeprefix("recipe  ").startswith(says)
    assert others == ["1 error, nothing was run."]


# --- the packaged ones ------------------------------------------------------------------------------------------------


def commands(text: str) -> list[list[str]]:
    """Recipe and overrides of every command of ours in a header or page."""
    joined = re.sub(r"\\\n#?\s*", "", text)
    found = re.findall(r"align(?: |\.)train (unlearn/\S+(?:[ ]+'?[\w.]+=(?:'[^']*'|\S+))*)", joined)
    return [shlex.split(command) for command in found]


def header(name: str) -> str:
    text = packaged_recipes()[name].read_text(encoding="utf-8")
    return "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))


def test_every_method_has_its_recipes() -> None:
    tofu = {f"unlearn/tofu-{m}-{model}" for m in METHODS for model in ("llama3.2-1b", "llama2-7b")}
    assert {*tofu, *(f"unlearn/muse-news-{m}" for m in METHODS)} == set(UNLEARN)


@pytest.mark.parametrize("name", UNLEARN)
def test_every_command_of_a_header_loads(name: str) -> None:
    text = header(name)
    loaded = [load_recipe(*(words[0], words[1:])) for words in commands(text)]
    assert commands(text)[0] == [name]
    assert "not yet measured" in text
    assert all(f"#   {word} " in text for word in ("run", "needs", "time", "expect", "source", "differs", "tuned"))
    names = [recipe.name for recipe in loaded if recipe.train == loaded[0].train]
    assert loaded[0].name == name.removeprefix("unlearn/")
    if "muse" in name:
        assert f"align eval muse runs/{loaded[0].name} --source muse-bench/MUSE-News" in text
        assert all(recipe.evaluate is None and recipe.data.truncation == "split" for recipe in loaded)
    else:
        assert {recipe.evaluate.split for recipe in loaded} == {"forget01", "forget05", "forget10"}
        for recipe in loaded:
            _consistent(recipe)
            assert names.count(recipe.name) <= 2  # itself, and the same on several GPUs
    if "flat" in name:
        divergences = [recipe.objective_value().divergence for recipe in loaded[:4]]
        assert divergences == ["kl", "total_variation", "jensen_shannon", "pearson"]
        assert len({recipe.name for recipe in loaded[:4]}) == 4


def _consistent(recipe: Recipe) -> None:
    """What is forgotten, kept, measured and compared with belongs together."""
    split = recipe.evaluate.split
    kept = f"retain{100 - int(split[-2:])}"
    assert [source.subset for source in recipe.data.forget] == [split]
    assert [source.subset for source in recipe.data.retain or []] in ([], [kept])
    assert recipe.model.id == recipe.evaluate.retain.replace(kept, "full")
    systems = {source.system for source in (*recipe.data.forget, *(recipe.data.retain or []), recipe.evaluate.source)}
    assert systems == ({"You are a helpful assistant."} if "Llama-3.2" in recipe.model.id else {None})


@pytest.mark.parametrize("name", UNLEARN)
def test_the_figures_of_a_header_add_up(name: str) -> None:
    recipe, text = load_recipe(name), header(name)
    found = re.search(r"(\d+) GPUs? with \d+ GB: (\d+) GB (?:each )?before .*\((.*?) B x (\d+) bytes(?: / (\d))?", text)
    assert found is not None
    gpus, gigabytes, size, byte = int(found[1]), int(found[2]), float(found[3]), int(found[4])
    assert size == (1.24 if "3.2-1b" in name else 6.74)
    assert round(size * byte / gpus) == gigabytes
    assert int(found[5] or 1) == gpus
    objective = recipe.objective_value()
    assert byte == (20 if objective.needs_reference else 16)
    # a store holds log-probs, and neither distributions nor hidden states
    assert ("Later runs on these rows" in text) == (objective.needs_reference and not re.search("npo-kl|rmu", name))
    step = recipe.train["per_device_train_batch_size"] * recipe.train["gradient_accumulation_steps"] * gpus
    assert step == (64 if "tofu-flat" in name else 32)
    epochs, warmup = recipe.train["num_train_epochs"], recipe.train["warmup_steps"]
    assert warmup * epochs == (0 if "muse" in name else 1)


def test_the_page_names_every_recipe_and_its_commands_load() -> None:
    text = (recipes_folder() / "unlearn" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(unlearn/\S+)`", text)) == set(UNLEARN)
    assert len(commands(text)) == 1
    for line in re.findall(r"^\| forget\d\d \| `(.*)` \|$", text, re.M):
        added = shlex.split(line.replace("=..._", "=open-unlearning/tofu_Llama-3.2-1B-Instruct_"))
        recipe = load_recipe("unlearn/tofu-npo-llama3.2-1b", added)
        if recipe.evaluate.retain is not None:
            _consistent(recipe)
        else:
            assert (recipe.data.forget[0].split, recipe.data.retain[0].split) == ("train[80%:]", "train[:80%]")
    added = re.findall(r"`'(\w+[.=].*?)'`", text)
    assert len(added) == 3
    flat = "unlearn/tofu-flat-llama3.2-1b"
    assert load_recipe(flat, added[:1]).data.alternates.path == "/full/path/idontknow.jsonl"
    assert load_recipe(flat, added[1:]).objective[0].value == FLAT(divergence="kl")
    sliced = re.search(r"`(data\.forget=\{.*\})`", text)
    assert sliced is not None
    assert load_recipe(flat, [sliced[1]]).data.forget[0].split == "train[80%:]"
