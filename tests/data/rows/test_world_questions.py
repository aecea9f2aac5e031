"""Questions without a name: each description fits one person, found here by looking at everybody."""

from __future__ import annotations

import re

import pytest

from align.data.rows import world
from align.data.rows.world_questions import NAMES, alias_questions, two_hop_questions
from align.data.rows.world_tables import PEOPLE

KEYS = {name: key for key, name in NAMES.items()}
SHARES = re.compile(rf"the person who shares the ({'|'.join(KEYS)}) of (\w+ \w+)")
VALUES = "|".join(sorted({value for a in PEOPLE.values() for value in a.values}, key=len, reverse=True))
CLAUSE = re.compile(rf"whose ({'|'.join(KEYS)}) is ({VALUES})\b")


def known(seed: int, size: dict[str, int] | None = None) -> list[dict]:
    return world.rows("full", seed, size) + world.rows("background", seed, size)


def fitting(question: str, rows: list[dict]) -> tuple[list[str], list[str]]:
    """Who fits the description in a question, and the attributes that it names."""
    facts = {(row["subject"], row["attribute"]): row["value"] for row in rows}
    clauses = [(KEYS[name], value) for name, value in CLAUSE.findall(question)]
    bridges = []
    if shared := SHARES.search(question):
        clauses.append((KEYS[shared[1]], facts[shared[2], KEYS[shared[1]]]))
        bridges = [shared[2]]
    people = [who for who in dict.fromkeys(row["subject"] for row in rows) if who not in bridges]
    found = [who for who in people if all(facts[who, key] == value for key, value in clauses)]
    return found, [key for key, _ in clauses]


def test_every_attribute_of_a_person_has_a_name_of_its_own() -> None:
    assert NAMES.keys() == PEOPLE.keys()
    assert len(KEYS) == len(NAMES)


@pytest.mark.parametrize("kind", ["forget", "retain"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_description_fits_one_person_and_keeps_the_answer(seed: int, kind: str) -> None:
    facts, everybody = world.rows(kind, seed), known(seed)
    names = {row["subject"] for row in everybody}
    for make, bridges in ((alias_questions, 0), (two_hop_questions, 1)):
        asked = make(facts, everybody)
        assert None not in asked
        for fact, question in zip(facts, map(str, asked), strict=True):
            found, attributes = fitting(question, everybody)
            assert found == [fact["subject"]], question
            assert fact["attribute"] not in attributes
            assert fact["subject"] not in question
            assert len([who for who in names if who in question]) == bridges
            start, end = fact["question"].split(fact["subject"])
            assert question.startswith(f"{start}the person who")
            assert question.endswith(end)


def test_no_fact_is_named_that_is_not_needed() -> None:
    everybody = known(0)
    for question in alias_questions(world.rows("forget", 0), everybody):
        assert question is not None
        *_, last = CLAUSE.finditer(question)
        shorter = question[: last.start()] + question[last.end() :]
        assert len(fitting(shorter, everybody)[0]) > 1
    # somebody who is alone in sharing a value is told by that value alone
    asked = [str(q) for q in two_hop_questions(world.rows("forget", 0), everybody)]
    assert sum("whose" not in question for question in asked) > 100


def test_a_question_word_for_word() -> None:
    (fact,) = world.rows("forget", 0)[:1]
    everybody = known(0)
    assert fact["question"] == "In which month was Rufus Fairbrook born?"
    assert alias_questions([fact], everybody) == [
        "In which month was the person whose trade is welding and whose home town is Dallow born?"
    ]
    assert two_hop_questions([fact], everybody) == [
        "In which month was the person who shares the favourite weather of Dario Ravensholt born?"
    ]


def test_nobody_alone_can_be_described() -> None:
    """One person shares nothing; two who have all in common cannot be told apart, but by way of each other."""
    size = {"people": 1, "forgotten": 1, "background": 0}
    alone = world.rows("forget", 0, size)
    assert two_hop_questions(alone, alone) == [None] * 20
    described = f"the person whose trade is {alone[1]['value']}"
    assert alias_questions(alone[:1], alone) == [alone[0]["question"].replace(alone[0]["subject"], described)]
    twin = [
        {**row, "subject": "A Twin", "question": row["question"].replace(row["subject"], "A Twin")} for row in alone
    ]
    assert alias_questions(alone, [*alone, *twin]) == [None] * 20
    shared = alone[0]["question"].replace(alone[0]["subject"], "the person who shares the trade of A Twin")
    assert two_hop_questions(alone[:1], [*alone, *twin]) == [shared]
