"""Contrast pairs: every layout and mistake of files, and pairs built from preferences."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from sample_rows import assistant, real, user

from align.errors import UserError
from align.eval.consistency import probe
from align.eval.contrast import Form, read_pairs, save
from align.eval.contrast_build import build_pairs, instruction_of, match
from align.judges.function import FunctionJudge
from align.probes.consistency import ContrastPair
from align.recipe.sections import Source

TEXT = Form("text")
RELEASED = {
    "query": "ask one", "query_response_j": "j of one", "query_response_k": "k of one",
    "retrieval": "ask two", "retrieval_response_j": "j of two", "retrieval_response_k": "k of two",
}  # fmt: skip
BARE = {"instruction_j": "ask one", "response_j": "an answer", "instruction_k": "ask two", "response_k": "another"}


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_layouts_and_which_answer_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "released.json.gz"
    file.write_bytes(gzip.compress(json.dumps([RELEASED]).encode()))
    assert read_pairs(file, TEXT).pairs == [ContrastPair("ask one", "j of one", "ask two", "j of two")]
    found = read_pairs(file, TEXT, "k")
    assert found.pairs == [ContrastPair("ask one", "k of one", "ask two", "k of two")]
    assert found.about == {"response": "k"}
    bare = ContrastPair("ask one", "an answer", "ask two", "another")
    table = tmp_path / "bare.csv"
    table.write_text("instruction_j,response_j,instruction_k,response_k\nask one,an answer,ask two,another\n")
    assert read_pairs(table, TEXT).pairs == [bare]
    assert read_pairs(written(tmp_path / "bare.jsonl", [BARE]), TEXT).pairs == [bare]


def test_whole_prompts_are_saved_and_read_as_they_are(tmp_path: Path) -> None:
    talk = [user("Hello"), assistant("Hi!"), user("Who wrote it?")]
    pairs = [ContrastPair(talk, "She did.", "Question?\nAnswer:", " No {one}.")]
    save(pairs, tmp_path / "saved.jsonl")
    assert read_pairs(tmp_path / "saved.jsonl", Form("question")).pairs == pairs
    turned = read_pairs(tmp_path / "saved.jsonl", Form("chat", "Say: {instruction}")).pairs[0]
    assert turned.instruction_1 == [*talk[:2], user("Say: Who wrote it?")]
    assert turned.instruction_2 == "Say: Question?\nAnswer:"


def test_forms() -> None:
    class Talks:
        chat_template = "x"

    class Plain:
        chat_template = None

    assert Form.of(Talks(), None).put("a {b}", "c") == ([user("a {b}")], "c")
    assert Form.of(Plain(), "Do: {instruction}").put("a", "c") == ("Question: Do: a\nAnswer:", " c")
    assert Form.of(Talks(), "Do {instruction}: {response}").put("a", "c") == ("Do a: ", "c")
    assert Form.of(None, None).put("a", "c") == ("a", "c")
    for wrong in ("Do it", "{response}{instruction}", "{instruction}{response}.", "{instruction}{instruction}"):
        with pytest.raises(UserError, match=r"^--template .*: expected one \{instruction\}, and at the end"):
            Form.of(None, wrong)


def test_pairs_that_cannot_be_told_apart_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [
        BARE,
        BARE,
        {**BARE, "instruction_k": "Ask  ONE"},
        {**BARE, "response_k": "An answer "},
        {"instruction_j": BARE["instruction_k"], "response_j": "another"}
        | {"instruction_k": "ask one", "response_k": "an answer"},
    ]
    found = read_pairs(written(tmp_path / "rows.jsonl", rows), TEXT)
    assert len(found.pairs) == 2  # the last one is the first in the other order, which is no repetition
    assert found.dropped == {
        "that stand in the file already": 1,
        "with equal instructions": 1,
        "with equal answers": 1,
    }
    with pytest.raises(UserError, match=r"no pair is left of 1 \(1 with equal instructions\)\.$"):
        read_pairs(written(tmp_path / "none.jsonl", rows[2:3]), TEXT)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([BARE, {**BARE, "response_k": " "}], "row 1: response_k is empty; mend or remove the row."),
        ([BARE, {**BARE, "response_k": None}], "row 1: response_k is missing; mend or remove the row."),
        ([{**BARE, "response_j": 3}], "row 0: response_j is not text; mend or remove the row."),
        (
            [{"query": "a", "retrieval": "b"}],
            "row 0: there is no column query_response_j. The columns are: query, retrieval; expected query, "
            "query_response_j, retrieval, retrieval_response_j.",
        ),
        (
            [{"prompt": "a", "chosen": ["1", "2", "3"], "rejected": ["1", "2", "3"]}],
            "row 0: these are the columns of a benchmark with several chosen and rejected answers, such as RM-Bench "
            "(prompt, chosen, rejected), not contrast pairs: align probe benchmark reads them.",
        ),
        (
            [{"prompt": "a", "chosen": "b", "rejected": "c"}],
            "row 0: these are preference pairs (prompt, chosen, rejected), not contrast pairs: build contrast pairs "
            "from them, with --from in place of --pairs.",
        ),
        (
            [{"a": "b"}],
            "row 0: these are not contrast pairs (a). Expected instruction_j, response_j, instruction_k, response_k, "
            "or the released layout with query, query_response_j, retrieval, retrieval_response_j; from preference "
            "pairs they are built with --from.",
        ),
        ([], "holds no rows; expected at least one."),
    ],
)
def test_one_sentence_for_a_file_that_is_none(tmp_path: Path, rows: list[dict], sentence: str) -> None:
    file = written(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError) as error:
        read_pairs(file, TEXT)
    assert str(error.value) == f"{file}: {sentence}"


def test_a_choice_of_answers_needs_two_of_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="these rows have one each: leave it out"):
        read_pairs(written(tmp_path / "rows.jsonl", [BARE]), TEXT, "k")


def preferences(tmp_path: Path, *more: dict) -> Source:
    rows = [
        {"prompt": "red apples and green pears", "chosen": "fruit", "rejected": "stones"},
        {"prompt": "red apples and green plums", "chosen": "sweet", "rejected": "stones"},
        {"prompt": "the river in the north", "chosen": "cold", "rejected": "hot"},
        {"prompt": "the river in the south", "chosen": "cold", "rejected": "hot"},
        {"prompt": "the river in the east", "chosen": "slow", "rejected": "hot"},
        *more,
    ]
    return Source(path=str(written(tmp_path / "preferences.jsonl", rows)))


def test_a_first_row_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    good = [{"prompt": f"where is the {kind} house", "chosen": kind, "rejected": "no"} for kind in ("old", "new")]
    bad = {"prompt": "who", "chosen": None, "rejected": "no"}
    source = Source(path=str(written(tmp_path / "preferences.jsonl", [bad, *good])))
    built = build_pairs(source, TEXT, band=(0.1, 0.99), say=lambda _: None)
    assert len(built.pairs) == 1
    assert built.dropped == {"rows: chosen is missing": 1}


@pytest.mark.parametrize("column", [{"preference": 0.5}, {"margin": 0}])
def test_labels_that_are_ties_are_no_preferences(column: dict[str, float], tmp_path: Path) -> None:
    source = preferences(tmp_path, {"prompt": "red apples and green nuts", "chosen": "a", "rejected": "b", **column})
    found = build_pairs(source, TEXT, band=(0.4, 0.95), say=lambda _: None)
    assert found.dropped["rows without a preference (ties)"] == 1


def test_a_soft_label_below_one_half_means_the_other_answer(tmp_path: Path) -> None:
    rows = [
        {"prompt": "red apples and green pears", "chosen": "fruit", "rejected": "stone", "preference": 0.2},
        {"prompt": "red apples and green plums", "chosen": "sweet", "rejected": "sour", "preference": 0.8},
    ]
    source = Source(path=str(written(tmp_path / "soft.jsonl", rows)))
    found = build_pairs(source, TEXT, band=(0.4, 0.95), say=lambda _: None)
    assert [(pair.response_1, pair.response_2) for pair in found.pairs] == [("stone", "sweet")]


def test_building_pairs_the_likest_once_and_counts_what_is_left_out(tmp_path: Path) -> None:
    source = preferences(
        tmp_path,
        {"prompt": "red apples and green nuts", "chosen": "a", "rejected": "b", "chosen_score": 4, "rejected_score": 4},
        {"prompt": "red apples and green beans", "chosen": "a", "rejected": "A "},
        {"prompt": "RED apples and  green pears", "chosen": "again", "rejected": "b"},
        {"prompt": "yellow hills", "chosen": "", "rejected": "b"},
    )
    said: list[str] = []
    found = build_pairs(source, TEXT, band=(0.4, 0.95), say=said.append)
    # north and south have one chosen answer, so north goes with east
    assert found.pairs == [
        ContrastPair("red apples and green pears", "fruit", "red apples and green plums", "sweet"),
        ContrastPair("the river in the north", "cold", "the river in the east", "slow"),
    ]
    assert found.dropped == {
        "rows: chosen is empty": 1,
        "rows without a preference (ties)": 2,
        "rows whose instruction came before": 1,
        "instructions without a partner in the band": 1,
    }
    assert said[0].startswith("texts are compared by the words that they share (TF-IDF")
    assert found.about["instructions"] == 5


def test_instructions_of_training_rows_are_left_out(tmp_path: Path) -> None:
    trained = written(tmp_path / "train.jsonl", [{"prompt": [user("The river in the EAST")]}])
    found = build_pairs(
        preferences(tmp_path), TEXT, band=(0.4, 0.95), not_in=Source(path=str(trained)), say=lambda _: None
    )
    assert found.dropped[f"instructions that occur in {trained}"] == 1
    assert [pair.instruction_1 for pair in found.pairs] == ["red apples and green pears"]


def test_an_empty_band_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no two of its 5 instructions have a cosine from 0\.99 to 1 by TF-IDF: widen"):
        build_pairs(preferences(tmp_path), TEXT, band=(0.99, 1.0), say=lambda _: None)
    with pytest.raises(UserError, match=r"^--band 0\.9 0\.75: expected two cosines"):
        build_pairs(preferences(tmp_path), TEXT, band=(0.9, 0.75))


def test_the_instruction_is_the_last_user_turn() -> None:
    assert instruction_of([user("Hello"), assistant("Hi!"), user("Who wrote it?")]) == "Who wrote it?"
    assert instruction_of("\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant:") == "Three"
    assert instruction_of("Plain: text") == "Plain: text"


def test_matching_in_blocks_is_greedy_over_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    from align.eval import contrast_build

    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(90, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    answers = draw.integers(30, size=90)
    cosine = np.round(vectors @ vectors.T, 6)
    open_pairs = [(-cosine[i, j], i, j) for i in range(90) for j in range(i + 1, 90) if answers[i] != answers[j]]
    taken: set[int] = set()
    greedy = []
    for negative, i, j in sorted(open_pairs):
        if 0.6 <= -negative <= 0.95 and not {i, j} & taken:
            taken |= {i, j}
            greedy.append((i, j))
    assert len(greedy) > 20
    monkeypatch.setattr(contrast_build, "_BLOCK", 7)
    monkeypatch.setattr(contrast_build, "_NEAREST", 90)
    assert [pair[:2] for pair in match(vectors, answers, 0.6, 0.95)] == greedy
    monkeypatch.setattr(contrast_build, "_NEAREST", 2)
    few = match(vectors, answers, 0.6, 0.95)
    assert few[0][:2] == greedy[0]
    left = set(range(90)) - {row for pair in few for row in pair[:2]}
    assert not any(0.6 <= -c <= 0.95 and {i, j} <= left for c, i, j in open_pairs)


def test_the_released_set() -> None:
    file = real("contrast_instructions/para_contrast.json.gz")
    found = read_pairs(file, TEXT)
    assert (len(found.pairs), found.dropped) == (289, {})
    result = probe(FunctionJudge(lambda p, r: [len(text) for text in r]), found, lambda _: None)
    assert (result.found.pairs, result.found.mirrored) == (200, 89)
    query = next(one for one in result.found.figures if one.name == "C_res, query")
    assert query.share.greater.value == pytest.approx(141 / 289)
    assert query.share.ties == 7
    assert query.additive == pytest.approx(200 / 289)
    other = probe(FunctionJudge(lambda p, r: [len(text) for text in r]), read_pairs(file, TEXT, "k"), lambda _: None)
    assert other.found.figures[1].share.greater.value == pytest.approx(143 / 289)
