"""Suite files: those of the package, a user's own, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.errors import UserError
from align.eval.suites.reading import load_suite, packaged_suites, summary
from align.eval.suites.run import _MEASURES
from align.eval.suites.sections import KINDS, Tofu


def test_the_suites_of_the_package_are_read_and_have_a_line() -> None:
    found = packaged_suites()
    assert set(found) == {
        "tofu-forget01",
        "tofu-forget05",
        "tofu-forget10",
        "muse-news",
        "muse-books",
        "alpaca",
        "consistency",
        "utility",
        "preference-heldout",
    }
    assert {load_suite(name).settings.kind for name in found} == set(KINDS) == set(_MEASURES)
    assert all(20 < len(summary(file)) < 110 for file in found.values())
    for share in ("01", "05", "10"):
        settings = load_suite(f"tofu-forget{share}").settings
        assert isinstance(settings, Tofu)
        assert (settings.split, settings.source) == (f"forget{share}", "locuslab/TOFU")


def test_a_file_of_ones_own_names_places_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/questions").mkdir()
    (tmp_path / "mine/short.yaml").write_text("kind: tofu\nsplit: forget01\nsource: questions\n")
    monkeypatch.chdir(tmp_path)
    suite = load_suite("mine/short.yaml")
    assert suite.name == "short"
    assert suite.place("questions") == str(tmp_path / "mine/questions")
    assert suite.place("locuslab/TOFU") == "locuslab/TOFU"
    assert suite.written() == {
        "suite": "short",
        "kind": "tofu",
        "split": "forget01",
        "source": "questions",
        "retain": None,
        "rows": "all",
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "s.yaml  the suite is empty; expected keys, the first of them kind: tofu, muse, alpaca, consistency, "
         "preference, harness."),
        ("- a\n", "s.yaml  the suite is a list; expected keys, the first of them kind: tofu, muse, alpaca, "
         "consistency, preference, harness."),
        ("split: forget01\n", "s.yaml:1  kind: missing; it is one of tofu, muse, alpaca, consistency, preference, "
         "harness.\n1 error, nothing was run."),
        ("kind: tofuu\n", "s.yaml:1  kind: expected one of tofu, muse, alpaca, consistency, preference, harness; got "
         "the text 'tofuu'. Did you mean 'tofu'?\n1 error, nothing was run."),
        ("kind: tofu\nsplits: forget01\nrows: 300\n", "s.yaml:2  splits: unknown key. Did you mean 'split'?\n"
         "s.yaml:3  rows: expected one of all, legacy300; got the number 300.\n2 errors, nothing was run."),
        ("kind: muse\n", "s.yaml:1  source: missing.\n1 error, nothing was run."),
        ("kind: harness\ntasks: []\n", "s.yaml:2  tasks: must not be empty.\n1 error, nothing was run."),
        ("kind: harness\ntasks: [mmlu]\nshots: -1\n", "s.yaml:3  shots: must be at least 0, got -1.\n1 error, nothing "
         "was run."),
        ("kind: alpaca\njudge: {endpoint: {url: http://x/v1, modle: m}}\n", "s.yaml:2  judge.endpoint.model: missing.\n"
         "s.yaml:2  judge.endpoint.modle: unknown key. Did you mean 'model'?\n2 errors, nothing was run."),
        ("kind: tofu\nkind: muse\n", "s.yaml:2  kind: given twice, first on line 1. Remove one.\ns.yaml:1  source: "
         "missing.\n2 errors, nothing was run."),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, sentence: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_suite("s.yaml")
    assert sorted(str(caught.value).split("\n")) == sorted(sentence.split("\n"))


def test_files_that_are_nowhere_are_said_as_the_suite_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine/s.yaml"
    nowhere = "no such file or folder, neither beside the suite file nor where you are."
    file.write_text("kind: preference\npairs: held.jsonl\nreference: ../runs/a\n")
    with pytest.raises(UserError) as caught:
        load_suite("mine/s.yaml")
    assert str(caught.value).split("\n") == [
        f"mine/s.yaml:2  pairs: held.jsonl: {nowhere}",
        f"mine/s.yaml:3  reference: ../runs/a: {nowhere}",
        "2 errors, nothing was run.",
    ]
    (tmp_path / "mine/held.jsonl").touch()  # beside the suite file
    file.write_text("kind: preference\npairs: held.jsonl\nreference: some/model\n")
    assert load_suite("mine/s.yaml").place("held.jsonl") == str(tmp_path / "mine/held.jsonl")
    (tmp_path / "mine/held.jsonl").rename(tmp_path / "held.jsonl")  # where the user is
    assert load_suite("mine/s.yaml").place("held.jsonl") == "held.jsonl"


def test_names_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "retain.yaml").write_text("kind: tofu\n")
    for name, sentence in {
        "tofu-forget1": "--suite tofu-forget1: there is no such suite. Did you mean 'tofu-forget10'?",
        "xyz": "--suite xyz: there is no such suite. There are: alpaca, consistency, muse-books, muse-news, "
        "preference-heldout, tofu-forget01, tofu-forget05, tofu-forget10, utility; or name a file.",
        "retain.yaml": "--suite retain.yaml: its result would be eval/retain.json, a name that is taken or impossible. "
        "Call the file something else, of letters, digits, '.', '_', '+' and '-'.",
    }.items():
        with pytest.raises(UserError) as caught:
            load_suite(name)
        assert str(caught.value) == sentence
