"""Objectives that are a class of the user's: what a recipe may name, and what is said where it cannot be had."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from align.cli.explain import explain
from align.errors import UserError
from align.objectives import DPO, name_of
from align.recipe import Recipe, load_recipe
from align.recipe.objective import Code, load_objective

CODE = """
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from align.objectives import DPO
from align.objectives.base import Objective
from align.objectives.pairwise import Referenced

@dataclass(frozen=True)
class Mine(Referenced):
    beta: Annotated[float, Field(gt=0, description="scale")] = 0.1

class Bare(Mine):
    pass

@dataclass(frozen=True)
class Odd(Objective):
    table: Tensor = None

@dataclass(frozen=True)
class Asking(Objective):
    target: float

def loss(policy, reference): ...
"""
MODULES = ("losses_here", "thawed", "broken_here")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a module of objectives, its names gone from Python's table afterwards."""
    (tmp_path / "losses_here.py").write_text(CODE)
    (tmp_path / "broken_here.py").write_text("raise ValueError('over and out.')\n")
    thawed = "from dataclasses import dataclass\nfrom align import DPO\n@dataclass\nclass Own(DPO): ...\n"
    (tmp_path / "thawed.py").write_text(thawed)
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)


def values(objective: Any) -> dict[str, Any]:
    return {"name": "x", "model": {"id": "m"}, "data": {"train": {"path": "p.jsonl"}}, "objective": objective}


def test_a_recipe_names_a_class_beside_it(folder: Path) -> None:
    file = folder / "r.yaml"
    file.write_text(
        "name: x\nmodel: {id: m}\ndata: {train: {path: p.jsonl}}\n"
        "objective: [{name: losses_here:Mine, weight: 2, use_weighting: true}, {name: nll}]\n"
    )
    path = list(sys.path)
    recipe = load_recipe(file, ["objective.0.beta=0.5"], allow_code=True)
    kind = sys.modules["losses_here"].Mine
    first, second = recipe.objective
    assert (first.name, first.weight, first.value) == ("losses_here:Mine", 2.0, kind(beta=0.5, use_weighting=True))
    assert second.name == "nll"
    assert (name_of(kind), name_of(DPO)) == ("losses_here:Mine", "dpo")
    assert sys.path == path
    dumped = recipe.dump()
    assert Recipe.from_dict(dumped, base=folder, allow_code=True).dump() == dumped
    with pytest.raises(UserError, match=r"objective\.0\.name: losses_here:Mine is Python code"):
        Recipe.from_dict(dumped, base=folder)


def test_all_mistakes_come_together_and_contradictions_are_seen(folder: Path) -> None:
    wrong = values({"name": "losses_here:Mine", "beta": -1, "gama": 2}) | {"seed": "one"}
    with pytest.raises(UserError) as error:
        Recipe.from_dict(wrong, base=folder, allow_code=True)
    for sentence in (
        "objective.beta: must be greater than 0, got -1.",
        "objective.gama: unknown key. Keys here: beta, calibrate, ld_alpha, use_weighting.",
        "seed: expected a whole number, got the text 'one'.",
        "3 errors",
    ):
        assert sentence in str(error.value)
    forgetting = values({"name": "losses_here:Mine"}) | {"data": {"forget": {"path": "f.jsonl"}}}
    with pytest.raises(UserError, match="chosen"):  # its branches are known, so the rows do not fit
        Recipe.from_dict(forgetting, base=folder, allow_code=True)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("losses_here:", "'losses_here:' names no objective; write MODULE:CLASS, such as my_losses:MyLoss."),
        (
            "../evil:Mine",
            "'../evil:Mine' names no objective; write MODULE:CLASS, such as my_losses:MyLoss.",
        ),
        ("losses_her:Mine", "there is no module losses_her, in {base} or installed. Did you mean 'losses_here'?"),
        ("losses_here:Min", "Min does not exist in {base}/losses_here.py. Did you mean 'Mine'?"),
        ("losses_here:loss", "loss is no objective in {base}/losses_here.py."),
        ("losses_here:Objective", "Objective is no objective in {base}/losses_here.py."),
        ("losses_here:Bare", "losses_here:Bare is no dataclass: write @dataclass(frozen=True) above the class."),
        ("losses_here:Odd", "the fields of losses_here:Odd cannot be checked: Unable to generate pydantic-core schema"),
        ("broken_here:Mine", "importing broken_here failed: ValueError: over and out."),
        ("thawed:Own", "importing thawed failed: TypeError: cannot inherit non-frozen dataclass from a frozen one."),
    ],
)
def test_what_cannot_be_had_is_told(folder: Path, spec: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        Recipe.from_dict(values({"name": spec}), base=folder, allow_code=True)
    first = str(error.value).split("\n")[0]
    assert first.startswith(f"recipe  objective.name: {sentence.format(base=folder)}")


def test_a_class_is_explained_at_its_defaults(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    entry = explain("losses_here:Mine", allow_code=True)
    assert (entry["name"], entry["pulls"], entry["fields"][0]["allowed"]) == ("losses_here:Mine", None, "> 0")
    with pytest.raises(UserError, match="Asking: target has no default; an objective is explained at its defaults"):
        explain("losses_here:Asking", allow_code=True)
    assert load_objective("losses_here:Asking", Code(folder, True))(target=1.0).target == 1.0
