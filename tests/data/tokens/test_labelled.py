"""Rows with one labelled answer each: columns by label, pairs taken apart, and answers to other prompts."""

from __future__ import annotations

import pytest
from datasets import Dataset, disable_progress_bars
from sample_rows import assistant, pair, user
from tiny import tiny_tokenizer

from align.data.batches.collator import TreeCollator
from align.data.batches.lengths import row_lengths, rows_with
from align.data.load import Data, digest, held_out_rows
from align.data.rows.sources import from_rows
from align.data.tokens.labelled import rows_before
from align.data.tokens.preview import preview
from align.data.tokens.tokenize import prepare
from align.errors import UserError
from align.objectives import KTO
from align.recipe import Recipe

disable_progress_bars()

KTO_BRANCHES, APO_BRANCHES = KTO().branches, KTO("apo_zero_unpaired").branches
TOKENIZER = tiny_tokenizer(chat=False)
SIDES = ("desirable_ids", "undesirable_ids", "mismatch_ids")


def rows(*labels, prompts=("A", "B", "C", "D", "E")):
    return [{"prompt": p, "completion": f" {p}{i}.", "label": v} for i, (p, v) in enumerate(zip(prompts, labels))]  # noqa: B905


def read(prepared, *names):
    """Decoded columns of every row, without the end of text."""
    return [tuple(row[n] and TOKENIZER.decode(row[n]).removesuffix("<|endoftext|>") for n in names) for row in prepared]


def test_the_label_says_which_column_has_the_answer_and_the_row_before_lends_the_mismatch() -> None:
    prepared, account = prepare(from_rows(rows(True, False, True)), TOKENIZER, KTO_BRANCHES)
    assert read(prepared, "prompt_ids", *SIDES) == [
        ("A", " A0.", None, " C2."),
        ("B", None, " B1.", " A0."),
        ("C", " C2.", None, " B1."),
    ]
    assert (account.labels, account.examples) == ((2, 1), 3)
    assert account.summary()[1:3] == ["3 rows of 3 kept.", "Labels: 2 desirable, 1 undesirable."]
    assert rows_with(prepared, "undesirable").tolist() == [False, True, False]


def test_a_mismatch_never_answers_the_same_prompt() -> None:
    given = rows(True, False, True, True, False, prompts=("A", "A", "B", "B", "A"))
    prepared, _ = prepare(from_rows(given), TOKENIZER, KTO_BRANCHES)
    assert [m for (m,) in read(prepared, "mismatch_ids")] == [" B3.", " B3.", " A1.", " A1.", " B3."]
    assert rows_before("AABBA") == [3, 3, 1, 1, 3]
    assert rows_before("AB") == [1, 0]
    assert rows_before("AAA") is rows_before("A") is None


@pytest.mark.parametrize("count", [1, 3])
def test_rows_with_one_prompt_have_no_mismatch(count: int) -> None:
    given = from_rows(rows(*[True, False, True][:count], prompts="AAA"))
    with pytest.raises(UserError) as error:
        prepare(given, TOKENIZER, KTO_BRANCHES)
    assert str(error.value) == (
        "The objective compares every answer with one to another prompt, but all rows have the same prompt. Give rows "
        "with other prompts, or set form: apo_zero_unpaired."
    )
    prepared, _ = prepare(given, TOKENIZER, APO_BRANCHES)
    assert len(prepared) == count
    assert "mismatch_ids" not in prepared.column_names


def test_pairs_are_taken_apart_chosen_answers_first() -> None:
    given = [pair(p, f" good {p}", f" bad {p}") for p in "AB"]
    prepared, account = prepare(from_rows(given), TOKENIZER, KTO_BRANCHES)
    assert read(prepared, "prompt_ids", *SIDES) == [
        ("A", " good A", None, " bad B"),
        ("B", " good B", None, " good A"),
        ("A", None, " bad A", " good B"),
        ("B", None, " bad B", " bad A"),
    ]
    assert prepared["row"][:] == [0, 1, 0, 1]
    assert account.summary()[1:4] == [
        "2 rows of 2 kept.",
        "2 pairs taken apart into 4 rows: chosen answers are desirable, rejected ones undesirable.",
        "Labels: 2 desirable, 2 undesirable.",
    ]


@pytest.mark.parametrize("truncation", ["drop", "keep_start", "keep_end", "prompt_left"])
def test_a_mismatch_is_cut_to_fit(truncation: str) -> None:
    given = rows(True, False)
    given[0]["completion"] = " The quick brown fox jumps over the lazy dog, and the lazy dog jumps over the fox."
    given[1]["prompt"] = "How many apples are in the basket? There are twelve apples in the basket."
    whole, _ = prepare(from_rows(given), TOKENIZER, KTO_BRANCHES)
    longest = max(len(r["prompt_ids"]) + len(r["desirable_ids"] or r["undesirable_ids"]) for r in whole)
    assert len(whole[1]["prompt_ids"]) + len(whole[1]["mismatch_ids"]) > longest
    cut, account = prepare(from_rows(given), TOKENIZER, KTO_BRANCHES, max_length=longest, truncation=truncation)
    room = longest - len(whole[1]["prompt_ids"])
    assert cut[1]["mismatch_ids"] == whole[1]["mismatch_ids"][:room]
    assert cut[0] == whole[0]
    assert cut.features == whole.features
    assert f"The mismatched answers of 1 row cut to {longest:,} tokens with the prompt (row 1)." in account.summary()


def test_masks_go_with_their_answers() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    several = [assistant("Let me see."), user("Well?"), assistant("Paris.")]
    given = [
        {"prompt": [user("Capital?")], "completion": several, "label": False},
        {"prompt": [user("Colour?")], "completion": [assistant("Blue.")], "label": True},
    ]
    prepared, _ = prepare(from_rows(given), tokenizer, KTO_BRANCHES)
    first, second = prepared
    assert 0 < sum(first["undesirable_mask"]) < len(first["undesirable_mask"]) == len(first["undesirable_ids"])
    assert first["desirable_mask"] is None
    assert second["mismatch_mask"] == first["undesirable_mask"]
    assert second["mismatch_ids"] == first["undesirable_ids"]


def test_of_a_mismatch_that_is_cut_before_its_first_target_all_that_is_left_is_scored() -> None:
    given = [
        {"prompt_ids": [5, 6], "completion_ids": [7, 8, 9], "completion_mask": [0, 0, 1], "label": True},
        {"prompt_ids": [4, 3, 2, 1], "completion_ids": [9], "completion_mask": [1], "label": False},
    ]
    first, second = prepare(from_rows(given), TOKENIZER, KTO_BRANCHES, max_length=5)[0]
    assert (second["mismatch_ids"], second["mismatch_mask"]) == ([7], [1])
    assert (first["mismatch_ids"], first["mismatch_mask"]) == ([9], [1])
    assert first["desirable_mask"] == [0, 0, 1]


def test_a_batch_has_every_answer_under_its_label_and_shares_the_prompt() -> None:
    prepared, _ = prepare(from_rows(rows(True, False, True)), TOKENIZER, KTO_BRANCHES)
    collator = TreeCollator(KTO_BRANCHES)
    batch = collator([dict(row) for row in prepared])["tree"]
    assert {name: ids.tolist() for name, ids in batch.sequences.items()} == {
        "desirable": [0, 4],
        "mismatch": [1, 3, 5],
        "undesirable": [2],
    }
    assert batch.units["examples"] == 3
    assert [len(example.trees) for example in batch.examples] == [1, 1, 1]
    assert row_lengths(prepared, collator) == [collator.length(row) for row in prepared]
    assert sum(row_lengths(prepared, collator)) == batch.input_ids.shape[1]
    with_ends = TreeCollator(KTO_BRANCHES, feed_last=True)
    assert row_lengths(prepared, with_ends) == [with_ends.length(row) for row in prepared]


@pytest.mark.parametrize("wanted", [3, 64])
def test_the_probe_sets_the_answers_of_a_pair_that_was_taken_apart_side_by_side(wanted: int) -> None:
    given = [pair(p, f" good {p}", f" bad {p}") for p in "ABCDE"]
    prepared, _ = prepare(from_rows(given), TOKENIZER, KTO_BRANCHES)
    values = {"name": "n", "model": {"id": "m"}, "data": {"train": {"path": "x"}}, "objective": {"name": "kto"}}
    recipe = Recipe.from_dict(values | {"watch": {"probe_pairs": wanted}})
    probed = held_out_rows(Data(prepared, None, None, None), recipe)
    names = ("chosen_prompt_ids", "chosen_ids", "rejected_prompt_ids", "rejected_ids")
    whole = [(p, f" good {p}", p, f" bad {p}") for p in "ABCDE"]
    found = read(probed, *names)
    assert len(found) == len(set(found)) == min(wanted, 5)
    assert set(found) <= set(whole)
    # answers with labels and nothing else in common: the first with the first, each under its own prompt
    prepared, _ = prepare(from_rows(rows(True, True, False, False, False)), TOKENIZER, KTO_BRANCHES)
    probed = held_out_rows(Data(prepared, None, None, None), recipe)
    assert read(probed, *names) == [("A", " A0.", "C", " C2."), ("B", " B1.", "D", " D3.")]


def test_another_label_is_another_data_set() -> None:
    digests = [digest(prepare(from_rows(rows(*labels)), TOKENIZER, APO_BRANCHES)[0]) for labels in ((1, 0), (0, 1))]
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("value", "label"),
    [(True, True), (0, False), (1.0, True), (0.0, False), ("True", True), ("false", False), ("1", True)],
)
def test_what_a_label_may_be(value: object, label: bool) -> None:
    (row,), _ = prepare(from_rows([{"prompt": "A", "completion": " B", "label": value}]), TOKENIZER, APO_BRANCHES)
    assert (row["desirable_ids"] is not None) is label


@pytest.mark.parametrize("value", [2, -1, 0.5, "maybe", ""])
def test_rows_with_any_other_label_are_dropped_and_counted(value: object) -> None:
    given = [*rows(True, False), {"prompt": "C", "completion": " C2.", "label": value}]
    if not isinstance(value, str):
        given = [row | {"label": float(row["label"])} for row in given]
    else:
        given = [row | {"label": str(row["label"])} for row in given]
    prepared, account = prepare(from_rows(given), TOKENIZER, APO_BRANCHES)
    assert len(prepared) == 2
    assert "1 row dropped: label is none of true, false, 1 and 0 (row 2)." in account.summary()


def test_questions_with_a_label_are_read_as_questions() -> None:
    given = [{"instruction": f"What is {i}?", "input": "", "output": f"It is {i}.", "kto_tag": i > 0} for i in range(2)]
    found = from_rows([{**row, "label": row.pop("kto_tag")} for row in given])
    prepared, account = prepare(found, TOKENIZER, KTO_BRANCHES)
    assert account.labels == (1, 1)
    assert read(prepared, "undesirable_ids")[0] == (" It is 0.",)


@pytest.mark.parametrize(
    ("row", "branches", "sentence"),
    [
        (
            {"prompt": "A", "completion": " B", "thumbs_up": True},
            KTO_BRANCHES,
            "The objective reads labelled answers, but the rows are: prompt and completion, standard (columns: prompt, "
            "completion, thumbs_up). Expected prompt, completion and label (true or false), or pairs with chosen and "
            "rejected. Where they have other names, map them: columns: {label: thumbs_up}.",
        ),
        (
            {"prompt": "A", "completion": " B", "label": True},
            (*KTO_BRANCHES, "chosen"),
            "The objective reads chosen beside labelled answers, and no row has both: let the added part read "
            "desirable or undesirable (objective.branch).",
        ),
    ],
)
def test_other_rows_are_refused(row: dict, branches: tuple, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        prepare(from_rows([row]), TOKENIZER, branches)
    assert str(error.value) == sentence


def test_streams_are_refused() -> None:
    stream = Dataset.from_list(rows(True, False)).to_iterable_dataset()
    with pytest.raises(UserError) as error:
        prepare(stream, TOKENIZER, APO_BRANCHES)
    assert str(error.value) == (
        "Labelled answers cannot be streamed: labels are counted, and answers are compared with those of other rows. "
        "Set rows: 10000 (or any number) in place of streaming."
    )


def test_texts_cannot_be_split() -> None:
    with pytest.raises(UserError, match="split cuts plain texts, one to a row"):
        prepare(from_rows(rows(True, False)), TOKENIZER, KTO_BRANCHES, max_length=8, truncation="split")


def test_the_preview_shows_the_answer_that_is_there_and_that_the_mismatch_is_not_trained_on() -> None:
    prepared, _ = prepare(from_rows(rows(True, False)), TOKENIZER, KTO_BRANCHES)
    assert preview(prepared[1], TOKENIZER, KTO_BRANCHES)[1:] == [
        "  prompt       ⟦B⟧",
        "  undesirable   B1.<|endoftext|>",
        "  mismatch     ⟦ A0.<|endoftext|>⟧",
    ]
