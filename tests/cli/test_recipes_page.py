"""recipes/README.md and the plans in headers are those that the script writes, and a plan's shapes are the models'."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from transformers import AutoConfig

from align.cli.main import build_parser
from align.cli.recipes_page import (
    CHIPS,
    NOT_YET,
    PAGE,
    Hardware,
    hardware,
    header,
    page,
    plan_lines,
    planned,
    rows_of,
    with_plan,
)
from align.models.limits import skeleton
from align.recipe import load_recipe, packaged_recipes, recipes_folder
from align.recipes.published import SHAPES

RECIPES = packaged_recipes()
LARGE = [name for name in RECIPES if not name.startswith("quickstart/") and "world" not in name]
PLANNED = (
    "preference/dpo-zephyr-7b",
    "preference/kto-zephyr-7b",
    "unlearn/tofu-npo-llama3.2-1b",
    "online/inpo-llama3-8b-sft-pm",
)
HEADER = """\
# A title,
# on two lines.
#   run      align train a/b
#   needs    a CPU             time  about 5 s
#            on one core
#   expect   not yet measured; 42 %,
#            somebody says
name: b
# not a header
"""


def text_of(name: str) -> str:
    return RECIPES[name].read_text(encoding="utf-8")


def test_a_header_is_read_by_keyword() -> None:
    assert header(HEADER) == {
        "title": "A title, on two lines.",
        "run": "align train a/b",
        "needs": "a CPU on one core",
        "time": "about 5 s",
        "expect": "not yet measured; 42 %, somebody says",
    }


def test_hardware_is_what_a_header_needs() -> None:
    assert hardware("8 GPUs with 80 GB: 18 GB each before") == Hardware(8, 80)
    assert hardware("1 GPU with 40 GB: 16 GB weights") == Hardware(1, 40)
    assert hardware("a CPU on one core") == Hardware(0)
    with pytest.raises(ValueError, match="needs 'some GPUs'; expected '8 GPUs with 80 GB'"):
        hardware("some GPUs")


def test_a_plan_stands_before_the_time_once() -> None:
    text = "# t\n#   needs    x\n#   time     1 s\n#            2 s\nname: a\n"
    once = with_plan(text, "#   plan     a\n#            b\n")
    assert once == "# t\n#   needs    x\n#   plan     a\n#            b\n#   time     1 s\n#            2 s\nname: a\n"
    assert with_plan(once, "#   plan     c\n#            d\n") == once.replace(" a\n", " c\n", 1).replace(
        " b\n", " d\n"
    )
    with pytest.raises(ValueError, match="no line '#   time'"):
        with_plan("# t\nname: a\n", "#   plan     a\n")


def test_the_page_is_current() -> None:
    text = (recipes_folder() / PAGE).read_text(encoding="utf-8")
    assert page(text) == text
    assert re.findall(r"^\| \[(\S+)\]\((\S+)\.yaml\) ", text, re.MULTILINE) == [(name, name) for name in RECIPES]
    with pytest.raises(ValueError, match=r"recipes/README.md needs the lines"):
        page("# Recipes\n")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in PLANNED else pytest.mark.slow) for n in LARGE])
def test_the_plan_in_a_header_is_what_the_planner_says(name: str) -> None:
    text = text_of(name)
    assert with_plan(text, plan_lines(name, text)) == text
    command = re.search(r"^#            align (plan .*)$", text, re.MULTILINE)
    assert command is not None
    args = build_parser().parse_args(shlex.split(command[1]))
    assert (args.file, args.device) == (name, CHIPS[hardware(header(text)["needs"]).gigabytes])


def test_a_recipe_that_does_not_fit_on_what_it_needs_is_refused() -> None:
    name = "preference/dpo-zephyr-7b"
    with pytest.raises(ValueError, match=r"^preference/dpo-zephyr-7b needs \d{3} GiB, more than A100-40GB has\.$"):
        plan_lines(name, text_of(name).replace("8 GPUs with 80 GB", "1 GPU with 40 GB"))


def test_a_recipe_for_a_cpu_has_its_time_and_no_plan() -> None:
    for name in set(RECIPES) - set(LARGE):
        said = header(text_of(name))
        assert hardware(said["needs"]) == Hardware(0)
        assert plan_lines(name, text_of(name)) == ""
        assert re.match(r"about \d+ s", said["time"])


@pytest.mark.parametrize("name", LARGE)
def test_what_nobody_measured_says_so_and_names_its_target(name: str) -> None:
    said = header(text_of(name))
    assert re.fullmatch(rf"{NOT_YET}(; .+)?", said["expect"])
    assert re.match(NOT_YET, said["time"])
    if "AlpacaEval 2" in said["expect"]:
        command = re.match(r"align (eval alpaca \S+ \\ --judge \S+)", said["measure"])
        assert command is not None, "it ends with a leaderboard, whose command belongs in its header"
        args = build_parser().parse_args(shlex.split(command[1].replace("\\ ", "")))
        assert args.model == f"runs/{load_recipe(name).name}"
        assert args.judge == "endpoint:https://api.openai.com/v1#gpt-4-1106-preview"


def test_shapes_have_the_weights_that_headers_print(tmp_path: Path) -> None:
    """Billions of weights by torch, without any: what config.json says makes the model that the header calls so."""
    seen = set()
    for name in LARGE:
        shape, said = SHAPES[load_recipe(name).model.id], header(text_of(name))["needs"]
        found = re.search(r"\((?:arithmetic[):]? ?)?([\d.]+) B x", said) or re.search(r"([\d.]+) B x \d+ bytes", said)
        if found is None:  # as another recipe's
            continue
        config = AutoConfig.for_model(**shape)
        reward = load_recipe(name).objective_value().scores_answers
        model = skeleton(config, reward=reward)
        count = sum(parameter.numel() for parameter in model.parameters()) / 1e9
        assert round(count, len(found[1].partition(".")[2])) == float(found[1]), name
        seen.add(load_recipe(name).model.id)
    assert len(seen) >= 10


def test_rows_are_counted_as_a_run_counts_them() -> None:
    assert rows_of(load_recipe("preference/dpo-zephyr-7b")) == 61_135
    assert rows_of(load_recipe("preference/kto-zephyr-7b")) == 2 * 61_135  # both answers of a pair
    assert rows_of(load_recipe("online/inpo-llama3-8b-sft-pm")) == 20_000  # a third of all prompts
    assert rows_of(load_recipe("online/inpo-llama3-8b-sft-endpoint")) == 1_000  # rounds.prompts
    assert rows_of(load_recipe("unlearn/muse-news-npo")) is None


def test_time_is_operations_over_a_rate() -> None:
    """By hand: 478 steps of 128 pairs, a pair of 512 + 2 x 512 tokens, 30 % of eight H100s."""
    recipe = load_recipe("preference/dpo-zephyr-7b")
    plan = planned(recipe, SHAPES[recipe.model.id], Hardware(8, 80))
    assert plan.batches.steps == 478
    tokens = 478 * 128 * (3 * 512 - 1)
    assert plan.batches.positions == tokens
    weights = 7_241_732_096 - 32000 * 4096  # an embedding multiplies nothing
    operations = (6 + 2 + 2) * weights * tokens  # forward and backward, checkpoints again, the reference
    assert plan.time.seconds == pytest.approx(operations / (0.3 * 8 * 989e12), rel=1e-6)
