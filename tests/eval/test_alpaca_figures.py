"""AlpacaEval's figures: the published leaderboard as the oracle, and what can be worked out by hand."""

from __future__ import annotations

import csv
import gzip
import json
import math
import warnings
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from sample_rows import real

from align.errors import UserError
from align.eval.alpaca_eval import figures
from align.eval.alpaca_figures import fit, position_bias, preference_of, win_rate
from align.eval.alpaca_judge import is_switched
from align.eval.alpaca_rows import (
    JUDGE,
    REFERENCE,
    Annotations,
    annotations_of,
    official,
    read_anchors,
    read_difficulty,
)

# points: the strength of the penalty is chosen on the anchors' rows, whose labels are stand-ins here (SOURCES.md)
_NEAR = 0.15


@cache
def published() -> dict[str, dict[str, str]]:
    with real("alpaca_eval/leaderboard_ae2.csv").open() as file:
        return {row["model"]: row for row in csv.DictReader(file)}


@cache
def verdicts() -> dict[str, list[dict[str, str]]]:
    found = defaultdict(list)
    with gzip.open(real("alpaca_eval/annotations_ae2.csv.gz"), "rt") as file:
        for row in csv.DictReader(file):
            found[row["model"]].append(row)
    return dict(found)


def texts(name: str, key: str) -> list[str]:
    with gzip.open(real(f"alpaca_eval/{name}.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file]
    return [row[key] for row in sorted(rows, key=lambda row: row["index"])]


@cache
def instructions() -> list[str]:
    return texts("eval_set", "instruction")


def annotations(model: str) -> list[dict[str, Any]]:
    """Rows in the official layout."""
    theirs, ours = texts("reference_gpt4_1106_preview", "output"), texts(f"outputs/{model}", "output")
    return [
        {
            "instruction": instructions()[(i := int(row["eval_index"]))],
            "output_1": theirs[i],
            "generator_1": REFERENCE,
            "output_2": ours[i],
            "generator_2": model,
            "annotator": JUDGE,
            "preference": float(row["preference"]),
        }
        for row in verdicts()[model]
    ]


@cache
def weights() -> tuple[Any, Any]:
    return (
        read_difficulty(str(real("alpaca_eval/instruction_difficulty.recovered.csv"))),
        read_anchors(str(real("alpaca_eval/df_gamed.recovered.csv.gz"))),
    )


MODELS = (
    "FuseChat-Gemma-2-9B-Instruct",
    "FuseChat-Llama-3.2-1B-Instruct",
    "Mixtral-8x7B-Instruct-v0.1_concise",
    "NullModel",
    "OpenHermes-2.5-Mistral-7B",
    "alpaca-7b",
    "claude-2.1",
    "gemma-2b-it",
    "gpt-3.5-turbo-1106",
    "gpt-3.5-turbo-1106_concise",
    "gpt-3.5-turbo-1106_verbose",
    "gpt4_gamed",
)


SOME = ("FuseChat-Gemma-2-9B-Instruct", "NullModel", "gemma-2b-it")


@pytest.mark.parametrize("names", [SOME, pytest.param(MODELS, marks=pytest.mark.slow)], ids=["some", "all"])
def test_figures_are_the_leaderboards(names: tuple[str, ...]) -> None:
    gaps = []
    for name in names:
        row, found = published()[name], figures(annotations_of(annotations(name), name), *weights())
        ours = found.to_json()
        for key in ("win_rate", "standard_error", "discrete_win_rate"):
            assert ours[key] == pytest.approx(float(row[key]), abs=1e-6), (name, key)
        for key in ("n_wins", "n_wins_base", "n_draws", "n_total", "avg_length"):
            assert ours[key] == int(row[key]), (name, key)
        assert (ours["official"], ours["benchmark"]) == (True, "AlpacaEval 2")
        gaps.append(abs(ours["length_controlled_winrate"] - float(row["length_controlled_winrate"])))
        if row["lc_standard_error"]:
            assert ours["lc_standard_error"] == pytest.approx(float(row["lc_standard_error"]), abs=1e-3), name
    assert max(gaps) < _NEAR
    assert float(np.median(gaps)) < 0.005


def test_a_shuffled_file_gives_the_same_numbers() -> None:
    rows = annotations("gemma-2b-it")
    order = np.random.default_rng(0).permutation(len(rows))
    one, two = (figures(annotations_of(some, "x"), *weights()) for some in (rows, [rows[i] for i in order]))
    assert two.controlled.win_rate == pytest.approx(one.controlled.win_rate, abs=1e-9)  # type: ignore[union-attr]
    assert two.wins.win_rate == pytest.approx(one.wins.win_rate, abs=1e-9)


def test_a_part_of_the_set_is_not_fitted_unless_asked_for_and_then_marked() -> None:
    rows = annotations("gemma-2b-it")[:400]
    plain = figures(annotations_of(rows, "x"), *weights())
    assert plain.controlled is None
    assert plain.missing == (
        "these are 400 of 805 instructions, and it is meant for all of them "
        "(--subset fits it all the same, and marks it)"
    )
    assert not plain.official
    asked = figures(annotations_of(rows, "x"), *weights(), subset=True)
    assert asked.controlled is not None
    assert asked.notes == ("fitted to 400 of 805 instructions: no figure of a leaderboard",)
    assert asked.title == f"AlpacaEval's instructions, judged by {JUDGE}: not AlpacaEval 2"


def test_another_judge_is_named_everywhere() -> None:
    rows = [{**row, "annotator": "some/model"} for row in annotations("gemma-2b-it")]
    found = figures(annotations_of(rows, "x"), *weights())
    assert found.lines()[0] == "AlpacaEval's instructions, judged by some/model: not AlpacaEval 2"
    assert found.to_json()["official"] is False
    assert found.notes[0] == f"difficulties and anchors are of the judge {JUDGE}, and this is some/model"


def test_the_reference_itself_is_at_one_half() -> None:
    rows = [{**row, "generator_2": REFERENCE, "preference": 1.5} for row in annotations("gemma-2b-it")]
    found = figures(annotations_of(rows, "x"), *weights())
    assert found.controlled is not None
    assert found.controlled.win_rate == 50.0


def test_every_stored_verdict_is_read_from_its_log_probs_as_it_was_published() -> None:
    """In the official order of both answers, which a lot draws from the instruction."""
    seen = 0
    for rows in verdicts().values():
        for row in rows:
            switched = bool(int(row["switched"]))
            assert is_switched(instructions()[int(row["eval_index"])]) is switched
            letters = [float(row[key]) if row[key] else None for key in ("logprob_m", "logprob_M")]
            if letters == [None, None]:
                continue
            seen += 1
            found = preference_of(*letters, switched=switched)
            assert 1 + found == pytest.approx(float(row["preference"]), abs=1e-9)
    assert seen == 8030


def test_every_instruction_is_known_by_its_digest() -> None:
    assert [official(text) for text in instructions()] == list(range(805))
    assert official("Tell me something that nobody asked.") is None


@pytest.mark.parametrize("name", SOME)
def test_the_authors_package_says_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it can be imported: ``pip install alpaca_eval "setuptools<80"``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("alpaca_eval.metrics.glm_winrate", exc_type=ImportError)
    anchors = tmp_path / "df_gamed.csv"
    anchors.write_bytes(gzip.decompress(real("alpaca_eval/df_gamed.recovered.csv.gz").read_bytes()))
    monkeypatch.setattr(package, "hf_hub_download", lambda **_: str(anchors))  # the file that it takes from the Hub
    rows = [{**row, "index": int(verdict["eval_index"])} for row, verdict in _with_verdicts(name)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = pandas.DataFrame(sorted(rows, key=lambda row: row["index"])).set_index("index")
        theirs = package.get_length_controlled_winrate(table, save_weights_dir=None)
    ours = figures(annotations_of(annotations(name), name), *weights()).to_json()
    for key in ("win_rate", "standard_error", "discrete_win_rate", "n_wins", "n_wins_base", "n_draws", "n_total"):
        assert ours[key] == pytest.approx(theirs[key], abs=1e-9), key
    assert ours["length_controlled_winrate"] == pytest.approx(theirs["length_controlled_winrate"], abs=0.02)
    assert ours["lc_standard_error"] == pytest.approx(theirs["lc_standard_error"], abs=1e-3)


def _with_verdicts(name: str) -> zip[tuple[dict[str, Any], dict[str, str]]]:
    return zip(annotations(name), verdicts()[name], strict=True)


# ---- by hand


def test_win_rates_of_four_rows() -> None:
    found = win_rate(np.array([0.0, 0.5, 1.0, 1.0]))
    assert found.win_rate == pytest.approx(62.5, abs=1e-12)
    assert found.discrete_win_rate == pytest.approx(62.5, abs=1e-12)
    # squares of -0.625, -0.125, 0.375, 0.375 add up to 0.6875; over 3 and over 4, the root
    assert found.standard_error == pytest.approx(100 * (0.6875 / 3 / 4) ** 0.5, abs=1e-12)
    assert (found.n_wins, found.n_wins_base, found.n_draws, found.n_total) == (2, 1, 1, 4)


def test_a_preference_from_two_log_probs() -> None:
    one, three = math.log(0.2), math.log(0.6)
    assert preference_of(one, three, switched=False) == pytest.approx(0.75, abs=1e-12)
    assert preference_of(one, three, switched=True) == pytest.approx(0.25, abs=1e-12)
    assert preference_of(None, three, switched=False) == 1.0
    assert preference_of(one, None, switched=False) == 0.0
    assert math.isnan(preference_of(None, None, switched=True))


def test_a_fit_is_the_minimum() -> None:
    """By its own conditions: slopes of the likelihood are -1, 1, or between where a weight is 0."""
    source = np.random.default_rng(1)
    features = source.normal(size=(200, 3))
    target = 1 / (1 + np.exp(-features @ np.array([1.5, -0.8, 0.0])))
    weight = source.uniform(0.1, 1, size=200)
    for strength in (0.02, 0.3, 30.0):
        found = fit(features, target, weight, strength)
        slope = strength * features.T @ (weight * (1 / (1 + np.exp(-features @ found)) - target))
        for value, own in zip(found, slope, strict=True):
            if value:
                assert own == pytest.approx(-np.sign(value), abs=1e-7)
            else:
                assert abs(own) < 1
    assert fit(features, target, weight, 1e-6).tolist() == [0.0, 0.0, 0.0]
    assert fit(features, target, weight, 1e4) == pytest.approx([1.5, -0.8, 0.0], abs=1e-3)


def test_a_judge_that_likes_what_comes_first() -> None:
    gap, error = position_bias([0.9, 0.7, math.nan, 0.4, 0.2], [True, True, True, False, False])
    assert gap == pytest.approx(50.0, abs=1e-9)
    assert error == pytest.approx(100 * (0.02 / 2 + 0.02 / 2) ** 0.5, abs=1e-9)
    assert math.isnan(position_bias([0.9, 0.4], [True, False])[0])


def test_a_file_without_verdicts_has_no_win_rate() -> None:
    found = Annotations(["a", "b"], np.array([math.nan, 0.4]), np.array([1, 1]), np.array([1, 1]), "", "", "")
    with pytest.raises(UserError, match="1 row of 2 was judged, and a win rate needs two at least"):
        figures(found, "no file", "no file")


def test_few_verdicts_say_nothing_and_verdicts_all_alike_have_no_interval() -> None:
    def found(count: int, preference: float) -> Annotations:
        names, ones = [f"q{i}" for i in range(count)], np.ones(count, dtype=int)
        return Annotations(names, np.array([1.0] * (count - 1) + [preference]), ones, ones, "m", "r", "j")

    few, enough = figures(found(29, 1.0), "", ""), figures(found(30, 0.0), "", "")
    assert few.notes == ("too few to say: 29 instructions judged, and 30 are the least",)
    assert "  win rate            100.00 %" in few.lines()
    assert enough.notes == ()
    assert "  win rate            96.67 % [90.1, 100.0]" in enough.lines()  # 29 of 30, standard error 1/30


def test_foreign_instructions_have_no_difficulty() -> None:
    found = Annotations(["a", "b"], np.array([0.1, 0.4]), np.array([1, 1]), np.array([1, 1]), "m", "r", "j")
    result = figures(found, {}, "no file", subset=True)
    assert result.missing == "2 instructions of 2 not of AlpacaEval, so with no known difficulty"
    assert result.to_json()["length_controlled_winrate"] is None
