"""``align check`` on recipes that forget: which rows are looked at, and what rows to forget and retained ones share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import disable_progress_bars
from tiny import tiny_tokenizer
from zoo import tiny_config

from align.cli.check import run_check
from align.errors import UserError
from align.recipe import Recipe

disable_progress_bars()

IDK = [{"name": "idk_dpo"}, {"name": "nll", "branch": "retain"}]


def fact(number: int, **columns: object) -> dict:
    return {"question": f"Who is number {number}?", "answer": f"It is Anna {number}.", **columns}


FILES = {
    "forget": [fact(i) for i in range(5)] + [{"question": "Who?", "answer": ""}],
    "retain": [fact(i) for i in range(4, 12)] + [fact(3) | {"answer": "It is not Anna."}],
    "altpo": [fact(i, alternates=["It is Boris.", "It is Clara."]) for i in range(5)],
    "texts": [{"text": "The capital of France is Paris. " * 40}, {"text": "Who wrote the book?"}],
    "prepared": [{"prompt_ids": [5], "forget_ids": [6, 7], "alternate_ids": [8]}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_tokenizer(chat=False).save_pretrained(tmp_path / "model")
    tiny_config("llama", vocab_size=400).save_pretrained(tmp_path / "model")
    for name, rows in FILES.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "idk.txt").write_text("I do not know.\nNo idea.\nNo idea.\n")
    return tmp_path


def checked(folder: Path, data: dict, objective: object = IDK):
    sources = {name: {"path": str(folder / f"{data[name]}.jsonl")} for name in ("forget", "retain") if name in data}
    model, train = {"id": str(folder / "model")}, {"per_device_train_batch_size": 1}
    raw = {"name": "c", "model": model, "data": data | sources, "objective": objective, "train": train}
    said: list[str] = []
    return run_check(Recipe.from_dict(raw), echo=said.append), said


def test_what_is_said(folder: Path) -> None:
    alternates = {"path": str(folder / "idk.txt")}
    report, said = checked(folder, {"forget": "forget", "retain": "retain", "alternates": alternates, "max_length": 64})
    assert (
        "\n".join(said).replace(f"{folder}/", "")
        == """\
Data  forget.jsonl   6 rows   forget, prompt and completion, standard

  error    completion is empty                         1 row   row 5   left out
  error    the same row in retained                    1 row   row 4   they would be forgotten and kept at once
  warning  the same prompt in retained                 1 row   row 3
  ok       the model has an embedding for every token id (400)
  ok       one BOS at most, prompt is a prefix of prompt + answer in all of 6 rows
  ok       no row twice
  ok       every row fits into 64 tokens

What the model sees (row 0; ⟦ ⟧: not trained on)
  prompt      ⟦Question: Who is number 0?\\nAnswer:⟧
  completion   It is Anna 0.<|endoftext|>

Data  retain.jsonl   9 rows   retain, prompt and completion, standard

  ok       the model has an embedding for every token id (400)
  ok       one BOS at most, prompt is a prefix of prompt + answer in all of 9 rows
  ok       nothing missing, empty or of a wrong type
  ok       no row twice
  ok       every row fits into 64 tokens

What the model sees (row 0; ⟦ ⟧: not trained on)
  prompt      ⟦Question: Who is number 4?\\nAnswer:⟧
  completion   It is Anna 4.<|endoftext|>

Alternates  idk.txt   3 answers, 2 of them different

  such as     I do not know.

2 errors, 1 warning. Mend the rows, or leave them out."""
    )
    assert report.has_errors


def test_nothing_in_common(folder: Path) -> None:
    (folder / "retain.jsonl").write_text(json.dumps(fact(20)) + "\n")
    _, said = checked(folder, {"forget": "altpo", "retain": "retain"})
    assert "  ok       no prompt in common with the retained rows" in said
    assert said[-1] == "No errors, 0 warnings."


def test_alternates_of_the_rows_are_looked_at_one_by_one(folder: Path) -> None:
    """And a row is the same whatever its alternates are."""
    report, said = checked(folder, {"forget": "altpo", "retain": "retain"})
    head = f"Data  {folder}/altpo.jsonl, once with each of 2 alternates   10 rows   forget, prompt with completion and "
    assert said[0].startswith(head)
    assert "  alternate    It is Boris.<|endoftext|>" in said
    errors = [(f.code, f.first) for f in report.findings if f.severity == "error"]
    assert errors == [("overlap_rows", (4,))]
    assert not any(line.startswith("Alternates") for line in said)
    rows = [fact(1, alternates=["No.", "No."])]
    (folder / "altpo.jsonl").write_text(json.dumps(rows[0]) + "\n")
    report, _ = checked(folder, {"forget": "altpo", "retain": "retain"})
    assert [f.first for f in report.findings if f.code == "duplicate"] == [(0,)]


def test_plain_texts(folder: Path) -> None:
    """They have no prompt that they could share, and their splitting is told."""
    data = {"forget": "texts", "retain": "texts", "alternates": {"builtin": "idk"}}
    report, said = checked(folder, data | {"max_length": 64, "truncation": "split"}, IDK)
    codes = [finding.code for finding in report.sets[0].findings]
    assert "overlap_rows" in codes
    assert "overlap_prompts" not in codes
    (split,) = [finding.text for finding in report.sets[0].findings if finding.code == "split"]
    assert split == f"2 texts split into {report.sets[0].preparation.pieces} rows of at most 64 tokens"
    assert not any("fits into" in line for line in said)
    assert any(line.startswith("Alternates  builtin idk   24 answers") for line in said)
    assert any("is not trained on" in line for line in said)


def test_prepared_rows(folder: Path) -> None:
    report, _ = checked(folder, {"forget": "prepared"}, {"name": "npo"})
    assert report.sets[0].preparation.rows_kept == 1


def test_no_alternates(folder: Path) -> None:
    with pytest.raises(UserError, match="neither a column alternate nor alternates"):
        checked(folder, {"forget": "forget", "retain": "retain"})


def test_the_models_structure_is_looked_at(tmp_path: Path) -> None:
    tiny_tokenizer(chat=False).save_pretrained(tmp_path / "model")
    tiny_config("llama", vocab_size=400).save_pretrained(tmp_path / "model")
    values = {
        "name": "r",
        "model": {"id": "model", "lora": {"targets": ["wq"]}},
        "data": {"train": {"path": "pairs.jsonl"}},
        "objective": {"name": "dpo"},
    }
    with pytest.raises(UserError, match=r"^model\.lora\.targets: LlamaForCausalLM has no module 'wq'\."):
        run_check(Recipe.from_dict(values, base=tmp_path), echo=lambda line: None)
