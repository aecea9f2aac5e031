"""`align explain logic.PRESET` and `align explain NAME --logic`: whole pages and whole sentences."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from align.cli.main import main
from align.errors import UserError
from align.objectives import OBJECTIVES, Logic
from align.objectives.formulas.structures import PRESETS
from align.recipe import Recipe, load_recipe
from align.recipe.yaml import parse


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    out, err = capsys.readouterr()
    return code, out, err


CCPO = """\
logic.cCPO  a preset of logic
  formula   L -> W
  condition W | L
  additive  false
  published the name; its structure is the only one that fits the author's figure of the order
  table     W  L  top bottom
            T  T  ✓
            T  F  ✓
            F  T      ✗
            F  F
  exp(rho)  w / (l (1 - w))
  drho/da_w 1 / (1 - w)
  drho/da_l -1
  where     rows of the top (✓) are made likelier, those of the bottom (✗) less likely. w and l
            are the probabilities that the policy gives the chosen and the rejected answer, exp
            of the mean log-prob by token unless probability: sequence; r_w and r_l are the
            reference's, m_w and m_l made up (gamma); a_w = log w, a_l = log l
  pulls     with the logistic link beta s drho/da_w / T_w on the chosen answer, -beta s
            drho/da_l / T_l on the rejected one; s = sigmoid(-beta rho), T tokens of the answer
            (1 with probability: sequence)
  entails   unCPO
  entailed  by CPO, ORPO, CE; through them CEUnl, cUNL, sCE
  reference with reference: true, exp(rho) = w r_l / (r_w l (1 - w))
  recipe
    objective: {name: logic, preset: cCPO}
"""


def test_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "explain", "logic.cCPO") == (0, CCPO, "")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, _ = call(capsys, "explain", f"logic.{name}")
    assert code == 0
    assert max(len(line) for line in out.split("\n")) <= 100
    entry = json.loads(call(capsys, "explain", f"logic.{name}", "--json")[1])
    assert (entry["name"], entry["kind"], entry["preset"]) == (f"logic.{name}", "structure", name)
    structure = PRESETS[name].structure
    for side in ("top", "bottom"):
        assert {tuple(row["row"]) for row in entry["table"] if row[side]} == getattr(structure, side)
    assert entry["recipe"] == f"{{name: logic, preset: {name}}}"
    assert Logic(preset=name).structure == structure


def test_neighbours_in_the_order(capsys: pytest.CaptureFixture[str]) -> None:
    entry = json.loads(call(capsys, "explain", "logic.cUNL", "--json")[1])
    assert entry["entails"] == {"directly": ["CPO", "ORPO", "fUnl"], "beyond": ["unCPO", "cCPO", "cfUnl"]}
    assert entry["entailed_by"] == {"directly": ["CEUnl"], "beyond": []}
    out = call(capsys, "explain", "logic.DPO")[1]
    assert "\n  order     that of CPO, whose version with the reference it is\n  entails   cCPO; through" in out
    out = call(capsys, "explain", "simpo", "--logic")[1]
    assert "  order     that of CPO, whose version with made-up reference probabilities (gamma) it is\n" in out
    assert "  entailed  by no preset\n" in call(capsys, "explain", "logic.CEUnl")[1]


def test_presets_and_the_formula_need_no_torch() -> None:
    code = (
        "import sys; from align.cli.main import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    for words in (["explain", "logic.l20"], ["explain", "logic"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_list_names_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "\nPresets of logic, as in align explain logic.cCPO:\n  CPO, ORPO, DPO, SimPO, CE, CEUnl, unCPO, cCPO, cfUnl, "
    )
    assert f"{line}fUnl, qfUnl, cUNL, sCE, l20\n" in call(capsys, "list", "objectives")[1]
    assert line not in call(capsys, "list", "recipes")[1]


@pytest.mark.parametrize("name", ["DPO", "dpo", "Dpo"])
def test_an_objective_as_a_formula(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, err = call(capsys, "explain", name, "--logic")
    assert (code, err) == (0, "")
    lines = out.split("\n")
    assert " ".join(lines[:2]) == (
        "dpo has, with its default fields, the loss of {name: logic, preset: DPO, beta: 0.1, probability: sequence}"
    )
    assert lines[3:6] == [
        "  formula   (L & Rw) -> (W & Rl)",
        "  condition (L & Rw) | (W & Rl)",
        "  additive  L & Rw & W & Rl",
    ]
    assert "  exp(rho)  w r_l / (l r_w)" in lines
    assert max(len(line) for line in lines) <= 100


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("simpo", "{name: logic, preset: SimPO, beta: 2, gamma: 1}"),
        ("ipo", "{name: logic, preset: DPO, link: squared, beta: 0.1}"),
        ("hinge", "{name: logic, preset: DPO, link: hinge, beta: 10, probability: sequence, weight: 0.1}"),
        ("nll", "{name: logic, preset: CE}"),
        (
            "rpo",
            "{name: logic, preset: DPO, beta: 0.5, probability: sequence} + {name: logic, preset: CE, weight: 0.2}",
        ),
        ("logic.cfunl", "{name: logic, preset: cfUnl}"),
        ("orpo", "{name: logic, preset: ORPO, weight: 0.1} + {name: logic, preset: CE}"),
        ("cpo", "{name: logic, preset: CPO, beta: 0.1, probability: sequence} + {name: logic, preset: CE}"),
    ],
)
def test_what_objectives_are(capsys: pytest.CaptureFixture[str], name: str, recipe: str) -> None:
    entry = json.loads(call(capsys, "explain", name, "--logic", "--json")[1])
    assert entry["summary"].split("the loss of ")[1] == recipe
    assert " + ".join(term["recipe"] for term in entry["terms"]) == recipe
    plain = {"name": "x", "model": {"id": "m"}, "data": {"train": {"path": "p"}}}
    for term in entry["terms"]:
        Recipe.from_dict({**plain, "objective": parse(term["recipe"], "here").value})  # it can be written so


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "sppo_hard",
            "sppo_hard cannot be read as a formula: no two sets of rows over W and L, with the reference or without, "
            "have its loss through a logistic, squared or hinge link.",
        ),
        (
            "npo",
            "npo cannot be read as a formula: its loss needs more than the log-probs of one chosen and one "
            "rejected answer.",
        ),
    ],
)
def test_what_is_no_formula(capsys: pytest.CaptureFixture[str], name: str, sentence: str) -> None:
    code, out, _ = call(capsys, "explain", name, "--logic")
    assert (code, out.replace("\n", " ").strip()) == (0, sentence)


def test_every_objective_can_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    for name in OBJECTIVES:
        code, out, err = call(capsys, "explain", name, "--logic")
        assert (code, err) == (0, "")
        assert out.startswith(name)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["logic.ccpo"],
            "logic has no preset 'ccpo'. Did you mean 'logic.cCPO'? Presets: CPO, ORPO, DPO, SimPO, CE, CEUnl, unCPO, "
            "cCPO, cfUnl, fUnl, qfUnl, cUNL, sCE, l20.\n",
        ),
        (
            ["dppo", "--logic"],
            "'dppo' is no objective, so there is no loss to read. Did you mean 'dpo'? All: align list objectives.\n",
        ),
        (["suppression", "--logic"], "'suppression' is no objective, so there is no loss to read. All: align list "),
    ],
)
def test_unknown_names(capsys: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
    code, out, err = call(capsys, "explain", *words)
    assert (code, out) == (2, "")
    assert err.startswith(sentence)


RECIPE = """\
name: first
model: {id: some/model}
data:
  train: {path: pairs.jsonl}
objective:
  name: logic
  OBJECTIVE
"""


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            "formula: L -> X",
            "r.yaml:7  objective.formula: column 6 of 'L -> X': unknown atom 'X'. Atoms are W and L (the policy's "
            "chosen and rejected answer), Rw and Rl (the reference's), Mw and Ml (a manual reference's); W2 is a copy "
            "of W.",
        ),
        (
            "formula: L -> W\n  condition: W |",
            "r.yaml:8  objective.condition: column 4 of 'W |': expected an atom, true, false, not or '(', got the end.",
        ),
        (
            "formula: W | L\n  condition: W | L",
            "r.yaml:5  objective: the bottom is empty: no row of the truth table makes (not formula or additive) and "
            "condition true, so there is nothing to compare. Weaken the condition or change the formula.",
        ),
        ("preset: CPO\n  formula: W", "r.yaml:5  objective: give a preset or a formula, not both."),
        (
            "preset: cfUnll",
            "r.yaml:7  objective.preset: expected one of CPO, ORPO, DPO, SimPO, CE, CEUnl, unCPO, cCPO, cfUnl, fUnl, "
            "qfUnl, cUNL, sCE, l20; got the text 'cfUnll'. Did you mean 'cfUnl'?",
        ),
        ("formula: W\n  condition: true", "r.yaml:8  objective.condition: expected text, got true. Put it in quotes."),
    ],
)
def test_mistakes_in_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: str, line: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE.replace("OBJECTIVE", fields), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_recipe("r.yaml")
    assert str(caught.value) == f"{line}\n1 error, nothing was run."


def test_recipes_with_a_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = "formula: L -> W\n  condition: W | L\n  additive: W & L\n  link: hinge\n  beta: 2\n  reference: true"
    Path("r.yaml").write_text(RECIPE.replace("OBJECTIVE", written), encoding="utf-8")
    recipe = load_recipe("r.yaml")
    expected = Logic(formula="L -> W", condition="W | L", additive="W & L", link="hinge", beta=2.0, reference=True)
    assert recipe.objective_value() == expected
    assert Recipe.from_dict(recipe.dump()).objective_value() == expected


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("logic.cCPO", "a preset of logic is written {name: logic, preset: cCPO}."),
        ("logic.ccpo", "a preset of logic is written {name: logic, preset: cCPO}."),
        ("logic.zzzzz", "'logic.zzzzz' is not a known objective. Did you mean 'logic'? All: align list objectives."),
    ],
)
def test_a_preset_as_the_name_of_an_objective(name: str, sentence: str) -> None:
    plain = {"name": "x", "model": {"id": "m"}, "data": {"train": {"path": "p"}}, "objective": {"name": name}}
    with pytest.raises(UserError) as caught:
        Recipe.from_dict(plain)
    assert str(caught.value) == f"recipe  objective.name: {sentence}\n1 error, nothing was run."
