"""docs/methods.md: its table is what the objectives say, and what is written by hand names what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from align.cli.facts import needs, reduction
from align.cli.methods_page import BEGIN, END, methods_page
from align.objectives import DPO, IDK, INPO, KL, KTO, NLL, OBJECTIVES, RMU, HyPO, Objective, SuperHF
from align.objectives.formulas.closed_form import closed_form, coefficient
from align.objectives.formulas.structures import PRESETS, entailed, nearest
from align.recipe.objective import ELSEWHERE, parse_objective

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
TABLE = PAGE.partition(BEGIN)[2].partition(END)[0]


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def test_the_table_of_objectives_is_fresh() -> None:
    assert methods_page(PAGE) == PAGE, "run make docs"


def test_the_table_has_a_row_for_every_objective() -> None:
    rows = [cells(line) for line in TABLE.strip().split("\n")]
    assert {len(row) for row in rows} == {7}
    assert sorted(row[0].strip("`") for row in rows[2:]) == sorted(OBJECTIVES)
    by_name = {row[0]: row for row in rows}
    assert by_name["`ipo`"][1:6] == [
        r"`h = d_w - d_l, with d = log pi(y\|x) - log pi_ref(y\|x) summed over tokens, or divided by the answer's "
        "length (reduction: per_token)`<br>`loss = (h - 1 / (2 tau))^2`",
        "`2 * (1 / (2 * tau) - m) / T_w`<br>`m = d_w / T_w - d_l / T_l`",
        "`2 * (1 / (2 * tau) - m) / T_l`",
        "chosen, rejected; a reference",
        "mean over pairs",
    ]
    assert by_name["`hinge`"][2:4] == ["`beta * (m < 1)`<br>`m = beta * (d_w - d_l)`", "the same"]
    assert by_name["`npo`"][2:4] == ["`0`", "`2 * s`<br>`m = -beta * d_f`"]
    assert by_name["`sppo_hard`"][2:4] == ["`2 * (1 / (2 * beta) - d_w)`", "`2 * (1 / (2 * beta) + d_l)`"]
    assert by_name["`rmu`"][2:5] == [
        "moves hidden states, not log-probs",
        "",
        "forget, retain; a reference; hidden states",
    ]


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="the table of objectives goes between them"):
        methods_page(PAGE.replace(END, ""))


@pytest.mark.parametrize(
    ("objective", "needed", "divided"),
    [
        (DPO(), ["chosen, rejected", "a reference"], "mean over pairs"),
        (
            DPO(use_weighting=True),
            ["chosen, rejected", "a reference", "whole distributions of the policy"],
            "mean over pairs",
        ),
        (
            INPO(),
            [
                "chosen, rejected",
                "no reference",
                "log-probs under the initial and the previous policy, which rounds write to rows",
            ],
            "mean over pairs",
        ),
        (NLL(), ["chosen", "no reference"], "mean over chosen tokens"),
        (NLL("retain", "sum", "all"), ["retain", "no reference"], "mean over retain_all answers"),
        (NLL("retain", "seq_mean"), ["retain", "no reference"], "mean over retain answers, each by its own tokens"),
        (KL(), ["chosen", "a reference and its whole distributions"], "mean over chosen tokens"),
        (
            KTO("apo_zero_unpaired"),
            ["desirable, undesirable", "a reference"],
            "mean over rows",
        ),
        (IDK(), ["alternate, retain", "no reference"], "mean over alternate and retain tokens"),
        (RMU(), ["forget, retain", "a reference", "hidden states"], "mean over rows"),
        (
            HyPO(),
            ["chosen, rejected", "fresh samples", "a reference"],
            "mean over pairs; mean over samples",
        ),
        (
            SuperHF(released=True),
            ["fresh samples and a judge", "a reference and its whole distributions"],
            "mean over survivor tokens; sum over the step",
        ),
    ],
)
def test_needs_and_reduction_in_words(objective: Objective, needed: list[str], divided: str) -> None:
    assert needs(objective) == needed
    assert reduction(objective) == divided


def test_sections_are_of_objectives_and_name_their_paper() -> None:
    sections = dict(re.findall(r"^## (\w+): (.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))
    assert "dpo" in sections
    for name, text in sections.items():
        for paper in re.findall(r"\d{4}\.\d{5}", OBJECTIVES[name].paper):
            assert paper in text, f"{name}: {paper} is not in docs/methods.md"
        for part in ("- Formula", "- Source", "- Oracle"):
            assert part in text, f"{name}: no {part}"


def test_the_decision_table_names_what_exists() -> None:
    head, _, *rows = re.search(r"^\| you have .*?\n\n", PAGE, re.M | re.S).group().strip().split("\n")  # type: ignore[union-attr]
    assert cells(head) == ["you have", "you worry about", "take", "because"]
    known = {*OBJECTIVES, *(key for kind in OBJECTIVES.values() for key in kind.__dataclass_fields__)}
    branches = {"retain"}
    for row in rows:
        named = re.findall(r"`(\w+)", cells(row)[2])
        assert set(named) & set(OBJECTIVES), row
        assert set(named) <= known | branches | {"reference"}, row


def test_the_list_of_losses_that_stands_for_trls_can_be_written_so() -> None:
    section = PAGE.split("**From TRL.**")[1]
    written = re.search(r"`objective: (\[.*?\])`", section).group(1)  # type: ignore[union-attr]
    parts, problems = parse_objective(yaml.safe_load(written))
    assert problems == []
    assert [(part.name, part.weight) for part in parts] == [("dpo", 1.0), ("nll", 0.5)]
    for theirs, ours in re.findall(r"`(\w+)` is `(\w+)`", section.split("\n")[0]):
        assert ELSEWHERE[theirs] == ours


def test_presets_of_logic() -> None:
    """The table of presets is what the compiler has, row for row."""
    section = PAGE.split("\n## logic: ")[1].split("\n## ")[0]
    rows = [line.strip() for line in section.split("\n") if line.startswith("  | `")]
    expected = []
    for name, preset in PRESETS.items():
        structure = preset.structure
        formulas = (name, preset.formula, preset.condition, preset.additive)
        weaker = ", ".join(nearest(entailed(name), entailed)) or "none"
        cells = [
            *(f"`{text}`" for text in formulas),
            closed_form(structure),
            coefficient(structure, "W"),
            coefficient(structure, "L"),
            f"as {preset.version_of}" if preset.version_of else weaker,
        ]
        expected.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    assert rows == expected
