"""Benchmarks of reward models on small rows: figures worked by hand, and planted judges that are called out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from align.eval.reward_bench import BenchResult, measure
from align.eval.reward_bench_figures import figures, style_matrix, ties_score, weighted
from align.eval.reward_bench_rows import Item, load_benchmark
from align.judges.function import FunctionComparison, FunctionJudge
from align.stats import wilson

# lengths 3, 6, 9 of chosen and 4, 7, 10 of rejected answers: a richer style is longer
RM_ROW: dict[str, Any] = {
    "id": "1",
    "prompt": "Why?",
    "chosen": ["abc", "abcdef", "**abcde**"],
    "rejected": ["abcd", "abcdefg", "**abcdef**"],
    "domain": "chat",
}
RM_ROWS = [RM_ROW, {**RM_ROW, "domain": "safety-refuse"}, {**RM_ROW, "domain": "safety-response"}]


def written(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def asked(folder: Path, rows: list[dict[str, Any]], score: Any) -> BenchResult:
    kind, items, notes = load_benchmark(written(folder, rows))
    return measure(FunctionJudge(score), kind, items, conversational=False, notes=notes)


def longer(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(len(text)) for text in responses]


def markdown(prompts: list[str], responses: list[str]) -> list[float]:
    """Loves the form alone: markdown, then length."""
    return [100.0 * ("**" in text) + (len(text) > 5) for text in responses]


def right(prompts: list[str], responses: list[str]) -> list[float]:
    return [float("good" in text) for text in responses]


def values(result: BenchResult, who: str | None = None) -> dict[str, float]:
    return {name: share.value for name, share in (result.nulls[who] if who else result.found).items()}


# ---- RM-Bench


def test_rm_bench_by_hand(tmp_path: Path) -> None:
    """Scores 1, 2, 3 against 2, 1, 0: the matrix is written out below."""
    item = Item("q", tuple("abcdef"), 3, "chat")
    matrix = style_matrix([1, 2, 3, 2, 1, 0])
    assert matrix == [[0, 0.5, 1], [0.5, 1, 1], [1, 1, 1]]
    found = figures("rm_bench", [item], [[1, 2, 3, 2, 1, 0]])
    assert found["chat easy"].value == pytest.approx(2.5 / 3)
    assert found["chat normal"].value == pytest.approx(2 / 3)
    assert found["chat hard"].value == pytest.approx(2.5 / 3)
    assert found["chat"].value == pytest.approx(7 / 9)


def test_domains_of_rm_bench_weigh_alike_whatever_their_rows() -> None:
    good, bad = [9.0, 9, 9, 0, 0, 0], [0.0, 0, 0, 9, 9, 9]
    items = [Item("q", tuple("abcdef"), 3, domain) for domain in ("chat", "math", "math", "math")]
    found = figures("rm_bench", items, [good, bad, bad, bad])
    assert (found["chat"].value, found["math"].value, found["all domains"].value) == (1.0, 0.0, 0.5)
    assert found["all domains"].n == 4
    # weights 1/2 and 1/2 on 1 and 3 rows are worth 1 / (1/4 + 1/12) = 3 rows
    assert found["all domains"].interval == wilson(1.5, 3)


def test_the_longest_answer_on_rm_bench_and_a_judge_that_equals_it(tmp_path: Path) -> None:
    result = asked(tmp_path, RM_ROWS, longer)
    # 3 > none; 6 > 4; 9 > 4 and 7: easy 3 of 3, normal and hard none
    expected = {"easy": 1.0, "normal": 0.0, "hard": 0.0}
    for level, value in expected.items():
        assert result.found[f"all domains {level}"].value == value
        assert result.nulls["longest"][f"all domains {level}"].value == value
        assert result.nulls["shortest"][f"all domains {level}"].value == 1 - value
    assert list(result.found)[:8] == [
        *("chat easy", "chat normal", "chat hard", "chat"),
        *("safety easy", "safety normal", "safety hard", "safety"),
    ]
    assert values(result) == values(result, "longest")
    said = result.sentences()
    # 3 rows: 1 and 2 of the domains chat and safety, weighted alike, are worth 2.67 rows
    assert "null models: all domains easy 1.000 [0.342, 1.000] is not above that of longest (1.000)." in said
    assert "null models: all domains hard 0.000 [0.000, 0.658] is not above that of shortest (1.000)." in said
    assert len(said) == len(result.found)


def test_a_judge_that_loves_markdown_is_easy_one_and_hard_zero(tmp_path: Path) -> None:
    result = asked(tmp_path, RM_ROWS, markdown)
    assert result.found["all domains easy"].value == 1.0
    assert result.found["all domains hard"].value == 0.0
    assert result.found["all domains normal"].value == 0.5  # the same style always ties
    assert result.styles == [[0.5, 0.0, 0.0], [1.0, 0.5, 0.0], [1.0, 1.0, 0.5]]
    assert result.notes == [
        "in 3 of 3 rows the judge scores a right and a wrong answer alike; that counts as a share of a hit"
    ]
    assert "concise       0.50      0.00      0.00" in result.lines()


# ---- RewardBench


def pairs(subset: str, hits: int, misses: int) -> list[dict[str, Any]]:
    """Rows whose chosen answer is the shorter one; the judge ``right`` is right in ``hits`` of them."""
    good = {"prompt": "q", "chosen": "good", "rejected": "other answer", "subset": subset}
    return [good] * hits + [{**good, "chosen": "x", "rejected": "a good answer"}] * misses


def test_rewardbench_by_hand(tmp_path: Path) -> None:
    rows = [*pairs("alpacaeval-easy", 3, 1), *pairs("mt-bench-med", 0, 2)]
    rows += [*pairs("math-prm", 1, 0), *pairs("hep-cpp", 2, 1), *pairs("hep-go", 0, 1), *pairs("my-own", 2, 0)]
    result = asked(tmp_path, rows, right)
    found = values(result)
    assert found["alpacaeval-easy"] == 0.75
    assert found["Chat"] == 0.5  # 3 of 6 rows
    assert found["Reasoning"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 4)  # math weighs as much as code
    assert found["all sections"] == pytest.approx((0.5 + 0.75) / 2)
    assert set(found) & {"Chat Hard", "Safety"} == set()
    assert result.found["Chat"].interval == wilson(3, 6)
    assert set(values(result, "shortest").values()) == {1.0}
    assert set(values(result, "longest").values()) == {0.0}
    assert {share.chance for share in result.found.values()} == {0.5}
    assert result.notes == ["my-own belongs to no section of RewardBench and is in no mean"]


def test_a_figure_that_no_null_model_reaches_has_no_mark(tmp_path: Path) -> None:
    """30 rows, of which the longer answer is right in half; a judge that is right in all of them."""
    one = {"prompt": "q", "chosen": "good", "rejected": "other answer", "subset": "donotanswer"}
    two = {**one, "chosen": "a good answer", "rejected": "bad"}
    result = asked(tmp_path, [one, two] * 15, right)
    assert values(result, "longest") == values(result, "shortest") == dict.fromkeys(result.found, 0.5)
    assert result.sentences() == []
    assert not any(line.endswith("!") for line in result.lines())
    assert result.lines() == [
        f"RewardBench: {__name__}:right",
        "",
        "figure        judge  95% interval  chance  longest  shortest   rows",
        "donotanswer    1.00  0.89 to 1.00    0.50     0.50      0.50     30",
        "Safety         1.00  0.89 to 1.00    0.50     0.50      0.50     30",
        "all sections   1.00  0.89 to 1.00    0.50     0.50      0.50     30",
    ]
    said = result.to_json()
    assert said["figures"]["Safety"] == {
        "value": 1.0,
        "interval": wilson(30, 30).to_json(),
        "n": 30,
        "chance": 0.5,
        "longest": 0.5,
        "shortest": 0.5,
        "matched_by": [],
    }


def test_a_judge_that_chance_reaches_is_told(tmp_path: Path) -> None:
    """Longest and shortest are below the judge, whose interval holds 0.5: a null model can be worse than chance."""
    item = Item("q", ("a", "b", "c", "d"), 1, "Math")
    result = BenchResult(
        "rewardbench2",
        "judge",
        figures("rewardbench2", [item] * 8, [[1.0, 0, 0, 0]] * 4 + [[0.0, 0, 1, 0]] * 4),
        {null: figures("rewardbench2", [item] * 8, [[0.0, 0, 0, 1]] * 8) for null in ("longest", "shortest")},
    )
    assert result.sentences() == [
        f"chance: {name} 0.500 [0.215, 0.785] is not above it (0.250)." for name in ("Math", "all subsets")
    ]


def test_a_judge_that_compares_answers_pairs_and_nothing_else(tmp_path: Path) -> None:
    def better(prompts: list[str], a: list[str], b: list[str]) -> list[float]:
        return [0.5 + 0.4 * (("good" in one) - ("good" in two)) for one, two in zip(a, b, strict=True)]

    judge = FunctionComparison(better)
    kind, items, _ = load_benchmark(written(tmp_path, pairs("donotanswer", 3, 1)))
    assert measure(judge, kind, items, conversational=False).found["Safety"].value == 0.75
    kind, items, _ = load_benchmark(written(tmp_path, RM_ROWS))
    with pytest.raises(UserError, match=r"compares two answers, and rows of RM-Bench have more: take a judge that"):
        measure(judge, kind, items, conversational=False)


# ---- RewardBench 2


def test_best_of_four_shares_ties() -> None:
    item = Item("q", ("a", "bb", "ccc", "dddd"), 1, "Math")
    found = figures("rewardbench2", [item] * 4, [[3, 1, 1, 1], [3, 3, 1, 1], [3, 3, 3, 3], [1, 2, 2, 0]])
    assert found["Math"].value == pytest.approx((1 + 1 / 2 + 1 / 4 + 0) / 4)
    assert found["Math"].chance == 0.25
    assert found["all subsets"].value == found["Math"].value


def test_the_score_of_ties_by_hand() -> None:
    """Question 1: all right, gap 2, spread 1, ref gap 0.5. Question 2: spread 0. Question 3 has no ref row."""
    tied = [
        (Item("q", tuple("abc"), 2, "Ties", key="tied:1"), [4.0, 3.0, 1.0]),
        (Item("q", tuple("abc"), 2, "Ties", key="tied:2"), [1.0, 1.0, 2.0]),
        (Item("q", tuple("abc"), 2, "Ties", key="tied:3"), [4.0, 3.0, 1.0]),
    ]
    ref = [
        (Item("q", tuple("ab"), 1, "Ties", key="ref:1"), [1.5, 1.0]),
        (Item("q", tuple("ab"), 1, "Ties", key="ref:2"), [2.0, 1.0]),
    ]
    margins = (math.tanh(0.5 / 1 - 1) + -1) / 2
    # tied 2 of 3 right, ref 2 of 2; the gap exceeds the spread in question 1, but not with the ref row's
    expected = 0.3 * 2 / 3 + 0.3 * 1 + 0.2 * 1 / 2 + 0.2 * 0 + 0.01 * margins
    assert ties_score([*tied, *ref]) == pytest.approx(expected, abs=1e-12)
    assert ties_score(tied) is None
    found = figures("rewardbench2", *map(list, zip(*tied, *ref, strict=True)))  # type: ignore[arg-type]
    assert found["Ties accuracy"].value == 4 / 5
    assert found["Ties accuracy"].chance == pytest.approx((3 * 1 / 3 + 2 * 1 / 2) / 5)
    assert (found["Ties"].interval, found["Ties"].chance) == (None, None)
    assert found["all subsets"].value == found["Ties"].value


def test_rewardbench2_averages_its_subsets_alike(tmp_path: Path) -> None:
    four = {"prompt": "q", "chosen": ["good"], "rejected": ["a", "bb", "ccc"], "num_correct": 1, "id": "7"}
    rows = [{**four, "subset": "Math"}] * 3 + [{**four, "chosen": ["x"], "subset": "Focus"}]
    tie = {"prompt": "q", "rejected": ["no"], "subset": "Ties"}
    rows += [{**tie, "id": "tied:0", "chosen": ["good", "a good"]}, {**tie, "id": "ref:0", "chosen": ["good"]}]
    result = asked(tmp_path, rows, right)
    # Focus: four answers score 0; Ties: gap 1 above spread 0
    assert values(result) == {
        "Math": 1.0,
        "Focus": 0.25,
        "Ties accuracy": 1.0,
        "Ties": pytest.approx(1.01),
        "all subsets": pytest.approx((1 + 0.25 + 1.01) / 3),
    }
    # good has 4 characters and no other answer more; x ties with a as the shortest
    assert values(result, "longest")["Math"] == 1.0
    assert values(result, "shortest")["Focus"] == 0.5
    assert result.found["all subsets"].chance is None


# ---- M-RewardBench


def test_m_rewardbench_by_hand(tmp_path: Path) -> None:
    def rows(language: str, source: str, hits: int, misses: int) -> list[dict[str, Any]]:
        made = [{**row, "source": row["subset"], "language": language} for row in pairs(source, hits, misses)]
        return [{key: value for key, value in row.items() if key != "subset"} for row in made]

    made = [*rows("deu_Latn", "alpacaeval-easy", 1, 0), *rows("deu_Latn", "math-prm", 1, 1)]
    made += [*rows("deu_Latn", "hep-go", 0, 4), *rows("ell_Grek", "alpacaeval-hard", 1, 3)]
    found = values(asked(tmp_path, made, right))
    assert found == {
        "deu_Latn": pytest.approx((1 + 0.25) / 2),  # Chat 1; Reasoning half math (0.5), half code (0)
        "ell_Grek": 0.25,
        "Chat": pytest.approx((1 + 0.25) / 2),  # over languages, not rows
        "Reasoning": 0.25,
        "all languages": pytest.approx((0.625 + 0.25) / 2),
    }
    by_category = [{**row, "source": "other", "category": "Chat"} for row in rows("fra_Latn", "x", 1, 1)]
    assert values(asked(tmp_path, by_category, right)) == {"fra_Latn": 0.5, "Chat": 0.5, "all languages": 0.5}


def test_the_interval_of_unequal_weights_is_wider() -> None:
    even = weighted([(4.0, [1.0, 1, 0, 0]), (12.0, [1.0] * 12)], 0.5)
    assert (even.value, even.interval) == (14 / 16, wilson(14, 16))
    # 1/2 and 1/2 on 4 and 12 rows: 1 / (1/16 + 1/48) = 12 rows
    other = weighted([(1.0, [1.0, 1, 0, 0]), (1.0, [1.0] * 12)], 0.5)
    assert (other.value, other.n, other.interval) == (0.75, 16, wilson(9, 12))


# ---- reading


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"query": "a", "retrieval": "b", "query_response_k": "c"},
            "holds contrast pairs (query, retrieval, query_response_k), no benchmark: align probe consistency.",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "holds plain preference pairs (prompt, chosen, rejected), no benchmark: those of RewardBench have a column "
            "subset, those of M-RewardBench a column language.",
        ),
        (
            {"prompt": "a", "chosen": ["b"], "rejected": ["c"]},
            "lists of answers, but neither domain nor subset (prompt, chosen, rejected): say --kind rm_bench or --kind "
            "rewardbench2, and rename the columns that these have under other names.",
        ),
        ({"text": "a"}, "holds no benchmark of reward models (columns: text). Expected RM-Bench: prompt, chosen and"),
    ],
)
def test_other_files_are_named(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    file = written(tmp_path, [row])
    with pytest.raises(UserError) as caught:
        load_benchmark(file)
    assert str(caught.value).startswith(f"{file}: {says}")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**RM_ROW, "chosen": ["a", "b"]}, "chosen has 2 answers; RM-Bench has 3: concise, detailed, markdown."),
        ({**RM_ROW, "prompt": " "}, "prompt is empty; there is nothing to answer."),
        (
            {**RM_ROW, "rejected": ["a", None, "c"]},
            "the column rejected holds \"['a', None, 'c']\" (list), but a list of texts was expected. RM-Bench has "
            "prompt, chosen and rejected (lists of 3 answers) and domain.",
        ),
        ({**RM_ROW, "domain": None}, "the column domain holds nothing, but a text was expected. RM-Bench has prompt,"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    file = written(tmp_path, [RM_ROW, row])
    with pytest.raises(UserError) as caught:
        load_benchmark(file)
    assert str(caught.value).startswith(f"{file}, row 1: {says}")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_correct": 2}, "num_correct is 2, but chosen has 1 answers."),
        ({"chosen": ["a", "b"]}, "chosen has 2 answers; outside of the subset Ties it has one."),
        ({"subset": "Ties", "id": "9"}, "id is '9'; in the subset Ties it is ref:NUMBER (one correct answer) or tied:"),
        ({"subset": "Ties", "id": "tied:9"}, "a tied row has two correct answers or more, but chosen has 1."),
    ],
)
def test_a_bad_row_of_rewardbench2_is_named(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    row = {"prompt": "q", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Math", "id": "1", **changes}
    with pytest.raises(UserError) as caught:
        load_benchmark(written(tmp_path, [row]))
    assert f", row 0: {says}" in str(caught.value)


def test_rows_with_an_empty_answer_are_left_out(tmp_path: Path) -> None:
    good = pairs("donotanswer", 1, 0)[0]
    kind, items, notes = load_benchmark(written(tmp_path, [good, {**good, "rejected": " "}]))
    assert (kind, len(items)) == ("rewardbench", 1)
    assert notes == ["rows with an empty answer are left out: 1"]


def test_a_benchmark_that_was_not_asked_for_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, RM_ROWS)
    with pytest.raises(UserError) as caught:
        load_benchmark(file, "rewardbench2")
    assert str(caught.value) == (
        f"{file}: RewardBench 2 was expected, but the columns are those of RM-Bench (id, prompt, chosen, rejected, "
        "domain). Give one benchmark at a time."
    )
    written(tmp_path, pairs("donotanswer", 1, 0), "z.jsonl")
    with pytest.raises(UserError, match="RM-Bench was expected, but the columns are those of RewardBench "):
        load_benchmark(str(tmp_path))


def test_a_folder_counts_no_row_twice_and_prefers_filtered_rows(tmp_path: Path) -> None:
    written(tmp_path, RM_ROWS[:1] * 2, "data/chat_filtered.json")  # two equal rows of one file stay two
    written(tmp_path, RM_ROWS, "data/total_dataset.json")
    kind, items, notes = load_benchmark(str(tmp_path))
    assert (kind, len(items)) == ("rm_bench", 4)
    assert notes == ["rows that an earlier file holds, too, count once: 1"]
    folder = tmp_path / "bench"
    written(folder, pairs("donotanswer", 2, 0), "data/filtered-00000-of-00001.jsonl")
    written(folder, pairs("donotanswer", 9, 9), "data/raw-00000-of-00001.jsonl")
    kind, items, notes = load_benchmark(str(folder))
    assert (kind, len(items)) == ("rewardbench", 2)
    assert notes == [
        "raw-00000-of-00001.jsonl is left out, since the benchmark's figures are those of the filtered rows"
    ]


def test_lists_in_a_csv_file_are_read(tmp_path: Path) -> None:
    import csv

    with (tmp_path / "rm.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "chosen", "rejected", "domain"])
        table.writerow(["Why?", json.dumps(RM_ROW["chosen"]), json.dumps(RM_ROW["rejected"]), "math"])
    kind, items, _ = load_benchmark(str(tmp_path / "rm.csv"))
    assert (kind, items) == ("rm_bench", [Item("Why?", (*RM_ROW["chosen"], *RM_ROW["rejected"]), 3, "math")])


def test_a_limit_takes_rows_of_every_subset(tmp_path: Path) -> None:
    file = written(tmp_path, [*pairs("donotanswer", 5, 0), *pairs("hep-go", 5, 0)])
    assert [item.subset for item in load_benchmark(file, limit=2)[1]] == ["donotanswer"] * 2 + ["hep-go"] * 2
