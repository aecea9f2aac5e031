"""TOFU's sets from a folder, from the Hub's name, and from the generated world."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from align.data.rows import world
from align.errors import UserError
from align.eval.tofu_data import load_sets, read_set
from align.recipe.sections import Source

REAL = (
    Path(os.environ.get("ALIGN_TEST_DATA") or Path(__file__).resolve().parents[2] / ".." / "shared" / "data") / "tofu"
)
real = pytest.mark.skipif(not REAL.is_dir(), reason="ALIGN_TEST_DATA has no folder tofu")


def _write(folder: Path, **sets: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in sets.items():
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _row(number: int, wrong: int = 5, **more: Any) -> dict[str, Any]:
    row = {
        "question": f"q{number}",
        "answer": f"a{number}",
        "perturbed_answer": [f"w{number}{k}" for k in range(wrong)],
    }
    return {**row, "paraphrased_answer": f"p{number}", "paraphrased_question": f"r{number}", **more}


def _small(folder: Path, **changes: list[dict[str, Any]]) -> Path:
    background = [{k: v for k, v in _row(i, 3).items() if not k.startswith("paraphrased")} for i in range(3)]
    sets = {
        "forget01_perturbed": [_row(i) for i in range(40)],
        "retain_perturbed": [_row(i) for i in range(5)],
        "real_authors_perturbed": background,
        "world_facts_perturbed": background,
        "full": [{"question": f"q{i}", "answer": f"a{i}"} for i in range(200)],
    }
    return _write(folder, **{**sets, **changes})


@real
def test_the_real_sets() -> None:
    sets = load_sets("forget10", str(REAL))
    assert {name: len(facts) for name, facts in sets.sets.items()} == {
        "forget": 400,
        "retain": 400,
        "ra": 100,
        "wf": 117,
    }
    assert sets.holdout is not None
    assert len(sets.holdout) == 400
    full = read_set(str(REAL), "full")
    assert [f.answer for f in sets.sets["forget"]] == [row["answer"] for row in full[3600:]]
    assert [f.answer for f in sets.sets["retain"]] == [row["answer"] for row in full[:400]]
    assert all(len(f.wrong) == 5 and f.paraphrased_answer for f in sets.sets["forget"])
    assert all(len(f.wrong) == 3 and f.paraphrased_answer is None for f in sets.sets["wf"])
    assert sets.notes == ()


@real
def test_the_first_300_rows_of_the_original_code() -> None:
    sets, whole = load_sets("forget10", str(REAL), rows="legacy300"), load_sets("forget10", str(REAL))
    assert {name: len(f) for name, f in sets.sets.items()} == {"forget": 300, "retain": 300, "ra": 100, "wf": 117}
    assert sets.sets["forget"] == whole.sets["forget"][:300]
    assert len(load_sets("forget01", str(REAL), rows="legacy300").sets["forget"]) == 40
    cut = load_sets("forget", "world", rows="legacy300")
    assert len(cut.sets["retain"]) == 300
    assert cut.new_tokens == load_sets("forget", "world").new_tokens


@real
def test_larger_splits_come_from_full_and_are_measured_on_forget10() -> None:
    full = read_set(str(REAL), "full")
    for name, expected in (("forget20", full[3200:]), ("retain80", full[:3200]), ("forget90", full[400:])):
        assert read_set(str(REAL), name) == expected
    # cut out of full, a set is what its own file holds
    assert [r["answer"] for r in read_set(str(REAL), "forget05")] == [r["answer"] for r in full[3800:]]
    assert [r["answer"] for r in read_set(str(REAL), "retain95")] == [r["answer"] for r in full[:3800]]
    sets = load_sets("forget50", str(REAL))
    assert sets.sets == load_sets("forget10", str(REAL)).sets
    assert sets.split == "forget50"
    assert "forget10" in sets.notes[0]


def test_sets_without_files_of_their_own_are_cut_out_of_full(tmp_path: Path) -> None:
    folder = str(_small(tmp_path / "tofu"))
    assert [r["question"] for r in read_set(folder, "forget01")] == ["q198", "q199"]
    assert len(read_set(folder, "retain99")) == 198
    with pytest.raises(UserError, match="percentage"):
        read_set(folder, "forget00")


def test_a_folder_may_hold_jsonl_and_gzip_and_lack_holdout_rows(tmp_path: Path) -> None:
    folder = _small(tmp_path / "tofu")
    text = (folder / "retain_perturbed.json").read_text()
    (folder / "retain_perturbed.json").unlink()
    (folder / "retain_perturbed.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    sets = load_sets("forget01", str(folder))
    assert [f.question for f in sets.sets["retain"]] == [f"q{i}" for i in range(5)]
    assert sets.holdout is None
    assert "no holdout01" in sets.notes[0]


def test_a_recipes_source_starts_beside_the_recipe(tmp_path: Path) -> None:
    _small(tmp_path / "tofu")
    assert load_sets("forget01", Source(path="tofu"), base=tmp_path).sets["ra"][0].answer == "a0"
    assert load_sets("forget", Source(world={"kind": "forget", "seed": 3})).sets == load_sets("forget", "world:3").sets


@pytest.mark.parametrize(
    ("split", "change", "match"),
    [
        ("forget1", {}, "no forget split of TOFU. Did you mean 'forget10'"),
        ("forget10", {}, r"no forget10_perturbed.json \(or .jsonl\)"),
        ("forget01", {"forget01_perturbed": [_row(0)]}, "has 1 rows and TOFU's has 40"),
        ("forget01", {"retain_perturbed": [{"question": "q", "answer": "a", "perturbed_answer": ["x"]}]},
         r"retain_perturbed.json, row 0: no 'paraphrased_answer'"),
        ("forget01", {"retain_perturbed": [_row(0), _row(1, perturbed_answer="x")]},
         "row 1: perturbed_answer should be"),
        ("forget01", {"retain_perturbed": [_row(0), _row(1, answer=" ")]}, "row 1: answer should be a text"),
        ("forget01", {"world_facts_perturbed": [_row(0, 3), _row(1, 2)]}, "between 2 and 3 wrong answers"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, split: str, change: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        load_sets(split, str(_small(tmp_path / "tofu", **change)))


def test_sources_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "tofu").mkdir()
    (tmp_path / "file.json").write_text("{}")
    with pytest.raises(UserError, match="Did you mean 'tofu'"):
        load_sets("forget10", str(tmp_path / "tofo"))
    with pytest.raises(UserError, match="is a file"):
        load_sets("forget10", str(tmp_path / "file.json"))
    with pytest.raises(UserError, match="whole number"):
        load_sets("forget", "world:x")
    with pytest.raises(UserError) as caught:  # it belongs below size, and would leave the world as large as ever
        load_sets("forget", Source(world={"seed": 0, "people": 2}))
    said = "world: people is not understood; expected {seed: 0, size: {people: 24, forgotten: 6}}."
    assert str(caught.value) == said
    small = Source(world={"seed": 0, "size": {"people": 2, "forgotten": 1, "strangers": 1, "background": 1}})
    assert {key: len(facts) for key, facts in load_sets("forget", small).sets.items()}["forget"] == 20
    with pytest.raises(UserError, match="one split to forget, called forget; found 'forget10'"):
        load_sets("forget10", "world")
    with pytest.raises(UserError, match=r"nobody/TOFU.*network is switched off"):
        load_sets("forget10", "nobody/TOFU")


def test_the_generated_world() -> None:
    sets = load_sets("forget", "world:2")
    made = world.build(2)
    expected = {"forget": made.forget, "retain": made.retain, "ra": made.background, "wf": made.countries}
    for name, rows in expected.items():
        assert [f.question for f in sets.sets[name]] == [r["question"] for r in rows]
        assert [f.wrong for f in sets.sets[name]] == [tuple(r["perturbed_answer"]) for r in rows]
    assert all(f.paraphrased_answer is None for f in sets.sets["ra"] + sets.sets["wf"])
    assert sets.holdout is not None
    assert [f.answer for f in sets.holdout] == [r["answer"] for r in made.strangers]
    assert sets.new_tokens == 24


def test_a_generated_world_of_another_size() -> None:
    size = {"people": 5, "forgotten": 2, "background": 1}
    sets = load_sets("forget", Source(world={"seed": 3, "size": size}), rows="legacy300")
    assert {name: len(facts) for name, facts in sets.sets.items()} == {"forget": 40, "retain": 60, "ra": 20, "wf": 48}
    assert [f.answer for f in sets.sets["forget"]] == [r["answer"] for r in world.rows("forget", 3, size)]
    assert sets.new_tokens == 24
    for wrong in ({"peple": 5}, {"people": "5"}, {"people": True}, 5):
        with pytest.raises(UserError, match=r"size is .*; expected whole numbers by these names: people, forgotten"):
            load_sets("forget", Source(world={"size": wrong}))


def test_columns_that_ask_without_a_name_are_read_and_checked(tmp_path: Path) -> None:
    asked = {"alias_question": "who else?", "two_hop_question": "whose friend?"}
    sets = load_sets("forget01", str(_small(tmp_path / "some", retain_perturbed=[_row(0, **asked), _row(1)])))
    first, second = sets.sets["retain"]
    assert (first.alias_question, first.two_hop_question) == ("who else?", "whose friend?")
    assert (second.alias_question, second.two_hop_question) == (None, None)
    broken = _small(tmp_path / "broken", retain_perturbed=[_row(0), _row(1, alias_question=" ")])
    with pytest.raises(UserError, match=r"row 1: alias_question should be a text or left out, found ' '\."):
        load_sets("forget01", str(broken))


def test_the_world_asks_of_forgotten_and_retained_people_without_their_names() -> None:
    sets = load_sets("forget", "world")
    for name in ("forget", "retain"):
        for fact in sets.sets[name]:
            assert fact.alias_question is not None
            assert "the person whose" in fact.alias_question
            assert fact.two_hop_question is not None
            assert "the person who shares the" in fact.two_hop_question
    assert {fact.alias_question for name in ("ra", "wf") for fact in sets.sets[name]} == {None}
