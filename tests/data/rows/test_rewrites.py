"""Rewrites: each on fixed texts, and what none of them may ever change."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from align.data.rows.rewrite_tables import CONTRACTIONS, NEIGHBOURS, NUMBER_WORDS, OTHER_WORDS, SYNONYMS
from align.data.rows.rewrites import REWORDINGS, REWRITES, TYPOGRAPHICAL, variants
from align.errors import UserError

TEXT = "Perhaps it is not ready. I don't need 3 apples."
FIXED = {
    "swapped_letters": "Perhaps it is not reday. I don't need 3 apples.",
    "dropped_letter": "Perhaps it is not ready. I don't need 3 aples.",
    "doubled_letter": "Perhaps it is not ready. I don't need 3 appples.",
    "neighbour_key": "Perhaps it is not ready. I don't need 3 aoples.",
    "lower_case": "perhaps it is not ready. i don't need 3 apples.",
    "capital_words": "Perhaps It Is Not Ready. I don't Need 3 Apples.",
    "extra_spaces": "Perhaps  it  is  not  ready. I don't need 3 apples.",
    "no_break_end": "Perhaps it is not ready. I don't need 3 apples.\u00a0",
    "quotation_marks": '"Perhaps it is not ready. I don\'t need 3 apples."',
    "contractions_expanded": "Perhaps it is not ready. I do not need 3 apples.",
    "contractions": "Perhaps it isn't ready. I don't need 3 apples.",
    "synonyms": TEXT,
    "numbers_as_words": "Perhaps it is not ready. I don't need three apples.",
}
CODE = "Use `for example_word in maybe:` or\n```\nprint(perhaps, 3 apples)\n```\nand $perhaps + 1$ at https://maybe.org/often."


def once(kind: str, text: str, seed: int = 0) -> str:
    return REWRITES[kind](text, random.Random(seed))


@pytest.mark.parametrize("kind", REWRITES)
def test_each_on_one_text(kind: str) -> None:
    assert once(kind, TEXT) == FIXED[kind]


def test_the_kinds_are_those_with_an_example_here() -> None:
    assert list(REWRITES) == [*TYPOGRAPHICAL, *REWORDINGS] == list(FIXED)


# what some draw makes of a text, all of it
CASES = [
    ("synonyms", "maybe someone", ["perhaps someone", "maybe somebody", "perhaps somebody"]),
    (
        "synonyms",
        "see for example a way in order to win",
        ["see for instance a way in order to win", "see for example a way to win", "see for instance a way to win"],
    ),
    ("synonyms", "Maybe a huge tower and an entire day.", ["Maybe a huge tower and an entire day."]),
    ("synonyms", "the huge tower", ["the enormous tower"]),
    (
        "contractions",
        "I am sure you will see.",
        ["I'm sure you will see.", "I am sure you'll see.", "I'm sure you'll see."],
    ),
    ("contractions", "It is not only who I am and will not be.", ["It is not only who I am and won't be."]),
    ("contractions", "What I AM NOT is as good as I am.", ["What I AM NOT is as good as I am."]),
    ("contractions_expanded", "Don't you see that they’re here?", ["Don't you see that they are here?"]),
    ("contractions_expanded", "Don't go, he's in.", ["Do not go, he's in."]),
    ("numbers_as_words", "add 2 cups, then 1.5 spoons and 30 grams", ["add two cups, then 1.5 spoons and 30 grams"]),
    ("lower_case", "The NASA team met them. Then.\n- Good\n2. Bad", ["the NASA team met them. then.\n- good\n2. bad"]),
    ("lower_case", "We left him. Then NaN and iOS. USA. Go", ["we left him. then NaN and iOS. USA. Go"]),
    ("capital_words", "a café in print(x) and a/b of x2", ["A café In print(x) And a/b Of x2"]),
    ("quotation_marks", " Yes. ", [' "Yes." ']),
    ("quotation_marks", "`code` it is", ["`code` it is"]),
    ("quotation_marks", "it is 'so'", ["it is 'so'"]),
    ("no_break_end", "ends with `code`", ["ends with `code`"]),
    ("no_break_end", "", [""]),
    (
        "swapped_letters",
        "seven three Paris iPhone a-great-thing it's great.txt",
        ["seven three Paris iPhone a-great-thing it's great.txt"],
    ),
    ("dropped_letter", "from form could", ["from form coud", "from form culd", "from form could"]),
]


@pytest.mark.parametrize(("kind", "text", "expected"), CASES)
def test_what_is_changed_and_what_is_left(kind: str, text: str, expected: list[str]) -> None:
    assert {once(kind, text, seed) for seed in range(60)} == set(expected)


def kept_parts(text: str) -> list[str]:
    return re.findall(r"```.*?```|`[^`\n]+`|https?://\S+|[A-Za-z]+\d\w*|\d+\.\d+|[a-z]+[A-Z]\w*", text, re.S)


PIECES = [
    *SYNONYMS,
    *CONTRACTIONS,
    *CONTRACTIONS.values(),
    *NUMBER_WORDS,
    *OTHER_WORDS,
    "Paris",
    "I am",
    "iPhone",
    "x2",
]
PIECES += [
    "`for perhaps in 3:`",
    "```\nprint( maybe )\n\n  often 12\n```",
    "https://a.org/often?x=3",
    "7 apples",
    "3.5",
]
SENTENCES = st.lists(st.sampled_from([*PIECES, "\n", "."]), max_size=30).map(" ".join)


@pytest.mark.parametrize("kind", REWRITES)
@given(text=SENTENCES | st.text(max_size=80), seed=st.integers(0, 99))
@example(text=CODE, seed=0)
@settings(max_examples=60, deadline=None)
def test_numbers_code_and_addresses_survive(kind: str, text: str, seed: int) -> None:
    changed = once(kind, text, seed)
    assert changed == once(kind, text, seed)
    assert kept_parts(changed) == kept_parts(text)
    if kind != "numbers_as_words":
        assert re.findall(r"\d+", changed) == re.findall(r"\d+", text)
    if kind in ("lower_case", "capital_words", "extra_spaces", "no_break_end", "quotation_marks"):
        assert re.sub(r'[\s"]', "", changed).lower() == re.sub(r'[\s"]', "", text).lower()


@given(text=SENTENCES, seed=st.integers(0, 99), count=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_variants_differ_from_the_text_and_from_each_other(text: str, seed: int, count: int) -> None:
    found = variants(text, count, seed)
    assert text not in found
    assert len(set(found)) == len(found) <= count
    assert found == variants(text, count, seed)
    assert found[:1] == variants(text, 1, seed)[:count]


def test_variants_are_as_many_as_there_are() -> None:
    assert variants("maybe", 5, 0, ["synonyms", "contractions"]) == ["perhaps"]
    assert variants("It is not so.", 9, 1, ["contractions", "lower_case"]) == ["It isn't so.", "it is not so."]
    assert variants("42", 5, 0, list(REWORDINGS)) == []
    assert len(variants(TEXT, 8, 0)) == 8
    assert variants(TEXT, 8, 0) != variants(TEXT, 8, 1)


def test_a_slip_in_one_word_of_twenty_that_gives_no_other_word() -> None:
    text = "great " * 60
    assert sum(a != b for a, b in zip(text.split(), once("doubled_letter", text).split(), strict=True)) == 3
    assert all(once("swapped_letters", "quiet", seed) not in ("quite", "quiet") for seed in range(20))
    assert all(once("dropped_letter", word, seed) == word for word in NUMBER_WORDS for seed in range(9))


def test_tables_are_whole() -> None:
    assert all(one != other and other for one, other in SYNONYMS.items())
    assert (NEIGHBOURS["q"], NEIGHBOURS["s"], NEIGHBOURS["m"]) == ("w", "ad", "n")
    assert set(NEIGHBOURS) == set("abcdefghijklmnopqrstuvwxyz")


def test_a_kind_that_does_not_exist() -> None:
    with pytest.raises(UserError) as error:
        variants("text", 1, 0, ["rot13"])
    assert str(error.value) == f"'rot13' is no kind of rewrite; the kinds are {', '.join(REWRITES)}."
