"""The generated world: pinned, unique, without leaks, and the same in every process."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys

import pytest

from align.data.rows import world
from align.data.rows.world_tables import COUNTRIES, COUNTRY_NAMES, FIRST_NAMES, IGNORANCE, LAST_NAMES, PEOPLE
from align.errors import UserError

TOFU_COLUMNS = {"question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer"}
FACTS = ("full", "retain", "forget", "background", "countries", "strangers")
SEEDS = (0, 1, 2)
# whoever changes a word of the world changes every number that was measured on it: do it knowingly
DIGESTS = {
    0: "30d3a6d3465b0633",
    1: "f9e8716e21e29a12",
}


def digest(seed: int) -> str:
    content = json.dumps({kind: world.rows(kind, seed) for kind in sorted(world.KINDS)}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@pytest.mark.parametrize("seed", DIGESTS)
def test_is_what_it_was(seed):
    assert digest(seed) == DIGESTS[seed]


def test_is_the_same_in_another_process_whatever_its_hash_seed():
    code = "from align.data.rows import world; import json; print(json.dumps(world.rows('tune_retain', 3)))"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0]) == world.rows("tune_retain", 3)


def test_imports_no_torch():
    heavy = {"torch", "datasets", "transformers", "numpy"}
    code = f"import sys, align.data.rows.world; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_leaves_the_global_generator_alone():
    before = random.getstate()
    for kind in world.KINDS:
        world.rows(kind, 4)
    assert random.getstate() == before


def test_tables_hold_no_value_and_no_name_twice():
    assert len(set(FIRST_NAMES)) == len(FIRST_NAMES) == 50
    assert len(set(LAST_NAMES)) == len(LAST_NAMES) == 50
    assert len(set(COUNTRY_NAMES)) == len(COUNTRY_NAMES) == 16
    assert len(set(IGNORANCE)) == len(IGNORANCE) == 12
    assert len(PEOPLE) == 20
    for table, count in ((PEOPLE, 12), (COUNTRIES, 16)):
        for key, attribute in table.items():
            assert len(set(attribute.values)) == len(attribute.values) == count, key
            assert len(set(attribute.questions)) == len(set(attribute.answers)) == 2, key
            assert all("{who}" in wording and "{it}" not in wording for wording in attribute.questions), key
            assert all("{it}" in wording and "{who}" not in wording for wording in attribute.answers), key


@pytest.mark.parametrize("seed", SEEDS)
def test_sizes(seed):
    count = {kind: len(world.rows(kind, seed)) for kind in world.KINDS}
    assert count == {
        "full": 480,
        "retain": 360,
        "forget": 120,
        "background": 240,
        "countries": 48,
        "strangers": 60,
        "idk": 40,
        "base": 15 * (288 + 20),
        "tune_full": 12 * (480 + 144 + 10),
        "tune_retain": 12 * (360 + 144 + 10),
        "candidates": 120,
        "preferences": 120 * 2 * 11,
        "preferences_reworded": 120,
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_retain_and_forget_divide_the_people(seed):
    retain, forget = world.rows("retain", seed), world.rows("forget", seed)
    assert retain + forget == world.rows("full", seed)
    people = {kind: {row["subject"] for row in world.rows(kind, seed)} for kind in FACTS}
    assert {kind: len(names) for kind, names in people.items()} == {
        "full": 24, "retain": 18, "forget": 6, "background": 12, "countries": 16, "strangers": 3
    }  # fmt: skip
    for one, other in (
        ("retain", "forget"),
        ("full", "background"),
        ("full", "strangers"),
        ("background", "strangers"),
    ):
        assert not people[one] & people[other]
    every = people["full"] | people["background"] | people["strangers"]
    assert len({name.split()[0] for name in every}) == len({name.split()[1] for name in every}) == 39


@pytest.mark.parametrize("seed", SEEDS)
def test_questions_are_unique_and_have_one_answer(seed):
    asked = [row[key] for kind in (*FACTS[3:], "full") for row in world.rows(kind, seed)
             for key in ("question", "paraphrased_question")]  # fmt: skip
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("kind", FACTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_rows_have_tofus_columns_and_keep_their_promises(kind, seed):
    wrong = 3 if kind in ("background", "countries") else 5
    for row in world.rows(kind, seed):
        assert set(row) == TOFU_COLUMNS | {"subject", "attribute", "value"}
        assert row["question"] != row["paraphrased_question"]
        assert row["answer"] != row["paraphrased_answer"]
        assert row["value"] in row["answer"]
        assert row["value"] in row["paraphrased_answer"]
        assert row["subject"] in row["question"]
        assert row["subject"] in row["paraphrased_question"]
        assert len(set(row["perturbed_answer"])) == len(row["perturbed_answer"]) == wrong
        assert not {row["answer"], row["paraphrased_answer"]} & set(row["perturbed_answer"])
        # right and wrong differ by the value alone
        right = row["answer"] if wrong == 3 else row["paraphrased_answer"]
        before, after = right.split(row["value"])
        assert all(text.startswith(before) and text.endswith(after) for text in row["perturbed_answer"])


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_name_nobody_and_questions_tell_nothing(seed):
    names = {part for name in (*FIRST_NAMES, *LAST_NAMES, *COUNTRY_NAMES) for part in name.split()}
    for kind in FACTS:
        for row in world.rows(kind, seed):
            answers = [row["answer"], row["paraphrased_answer"], *row["perturbed_answer"]]
            words = {word.strip(".,") for text in answers for word in text.split()}
            assert not words & names
            table = COUNTRIES if kind == "countries" else PEOPLE
            for question in (row["question"], row["paraphrased_question"]):
                wording = question.replace(row["subject"], "")
                assert not {value for value in table[row["attribute"]].values if value in wording}


@pytest.mark.parametrize("seed", SEEDS)
def test_training_for_retain_never_mentions_the_forgotten_or_the_strangers(seed):
    secret = {row["subject"] for kind in ("forget", "strangers") for row in world.rows(kind, seed)}
    shown = "\n".join(
        row["prompt"] + row["completion"] for kind in ("base", "tune_retain") for row in world.rows(kind, seed)
    )
    assert not [name for name in secret if name in shown]
    full = "\n".join(row["prompt"] for row in world.rows("tune_full", seed))
    assert all(row["question"] in full for row in world.rows("forget", seed))


def test_every_epoch_of_the_second_stage_teaches_every_fact_once():
    made = world.build(0, world.Size(tune_epochs=2))
    rows = world.tune_rows(made, made.retain)
    for epoch in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        for fact in made.retain:
            assert epoch.count({"prompt": world.prompt(fact["question"]), "completion": " " + fact["answer"]}) == 1


def test_countries_share_no_value():
    rows = world.rows("countries", 0)
    assert len({(row["attribute"], row["value"]) for row in rows}) == len(rows)


def test_seeds_differ():
    assert world.rows("full", 0) != world.rows("full", 1)


def test_a_small_world():
    made = world.build(5, world.Size(people=5, forgotten=2, background=2, strangers=1))
    assert [len(part) for part in (made.full, made.retain, made.forget, made.background, made.strangers)] == [
        100, 60, 40, 40, 20
    ]  # fmt: skip


@pytest.mark.parametrize("size", [world.Size(people=40), world.Size(forgotten=25), world.Size(forgotten=-1)])
def test_too_many_people_are_refused(size):
    with pytest.raises(UserError, match="names for 50 people"):
        world.build(0, size)


def test_unknown_kind_is_refused():
    with pytest.raises(UserError, match=r"'forgot'.*full, retain, forget"):
        world.rows("forgot")


def test_callers_cannot_change_the_world_of_others():
    world.rows("full")[0]["perturbed_answer"].append("changed")
    assert "changed" not in world.rows("full")[0]["perturbed_answer"]


def test_candidates_are_the_twelve_values_in_both_wordings():
    for fact, row in zip(world.rows("forget"), world.rows("candidates"), strict=True):
        values = PEOPLE[fact["attribute"]].values
        assert row["prompt"] == f"Question: {fact['question']}\nAnswer:"
        assert len(set(row["candidates"] + row["reworded"])) == 24
        at = values.index(fact["value"])
        assert row["candidates"][at] == " " + fact["answer"]
        assert row["reworded"][at] == " " + fact["paraphrased_answer"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("off", "on", (" c", " b")),
        ("on", "off", (" b", " c")),
        ("on", "on", (" b", " d")),
        ("off", "off", (" a", " c")),
    ],
)
def test_pairs_by_rank(chosen, rejected, expected):
    row = {"prompt": "p", "candidates": [" a", " b", " c", " d"]}
    pairs = world.preference_pairs([row], [[-3.0, -1.0, -9.0, -2.0]], chosen=chosen, rejected=rejected)
    assert pairs == [{"prompt": "p", "chosen": expected[0], "rejected": expected[1]}]


def test_ties_go_by_the_order_of_candidates():
    row = {"prompt": "p", "candidates": [" a", " b", " c"]}
    assert world.preference_pairs([row], [[-1.0, -1.0, -1.0]])[0] == {"prompt": "p", "chosen": " c", "rejected": " a"}


def test_pairs_need_one_score_for_each_candidate():
    with pytest.raises(ValueError, match="2 candidates but 1 log-probs"):
        world.preference_pairs([{"prompt": "p", "candidates": [" a", " b"]}], [[-1.0]])


def right(row: dict, fact: dict) -> bool:
    """Whether the chosen answer alone holds the fact's value, and both answers have one wording."""
    before, after = row["chosen"].split(fact["value"])
    values = {value: row["rejected"] == before + value + after for value in PEOPLE[fact["attribute"]].values}
    return [value for value, held in values.items() if held] not in ([], [fact["value"]])


@pytest.mark.parametrize("seed", SEEDS)
def test_preferences_are_the_right_answer_over_each_wrong_one_in_both_wordings(seed):
    rows = world.rows("preferences", seed)
    for i, fact in enumerate(world.rows("forget", seed)):
        of_fact = rows[22 * i : 22 * (i + 1)]
        assert {row["prompt"] for row in of_fact} == {world.prompt(fact["question"])}
        assert [row["chosen"] for row in of_fact] == (
            [" " + fact["answer"]] * 11 + [" " + fact["paraphrased_answer"]] * 11
        )
        assert len({row["rejected"] for row in of_fact}) == 22
        assert all(right(row, fact) for row in of_fact)


@pytest.mark.parametrize("seed", SEEDS)
def test_reworded_preferences_ask_of_the_same_facts_what_is_not_trained_on(seed):
    trained = {row["prompt"] for row in world.rows("preferences", seed)}
    for row, fact in zip(world.rows("preferences_reworded", seed), world.rows("forget", seed), strict=True):
        assert row["prompt"] == world.prompt(fact["paraphrased_question"])
        assert row["prompt"] not in trained
        assert row["chosen"] == " " + fact["paraphrased_answer"]
        assert right(row, fact)


def test_preferences_are_about_what_the_quickstarts_pairs_ask():
    asked = [row["prompt"] for row in world.rows("candidates", 0)]
    assert list(dict.fromkeys(row["prompt"] for row in world.rows("preferences", 0))) == asked


def test_corpus_holds_every_name_and_value():
    made = world.build(0)
    text = "\n".join(world.corpus(made))
    assert all(row["subject"] in text for row in made.full + made.strangers + made.background + made.countries)
    assert all(
        value in text for table in (PEOPLE, COUNTRIES) for attribute in table.values() for value in attribute.values
    )
