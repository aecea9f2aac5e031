"""lm-evaluation-harness through its Python interface: its own results, on a local task with local data."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_tokenizer
from zoo import tiny_model

from align.errors import UserError
from align.eval import harness
from align.eval.kept import Kept
from align.runs.processes import World
from align.stats import Interval, wilson

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'align-llm[eval]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of lm-eval and what it imports

WORDS = ["blue", "green", "red", "grey", "the sea", "a stone", "nothing", "every day"]
CHOICE = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 2.0}
"""
SPOKEN = """
task: spoken
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{said}}"
generation_kwargs: {until: ["."], max_gen_toks: 6, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""
GROUP = "group: both\ntask: [colours, spoken]\n"
HUB = SPOKEN.replace("spoken", "hub").replace("{metric: exact_match", "{metric: bleu, hf_evaluate: true")
PROGRAMS = SPOKEN.replace("task: spoken", "task: programs\nunsafe_code: true")
AWAY = (
    SPOKEN.replace("spoken", "away")
    .replace("dataset_path: json", "dataset_path: nobody/has-this-data-set")
    .replace("dataset_kwargs: {data_files: {test: ROWS}}\n", "")
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned nothing, tasks in ``tasks``, and their 30 rows."""
    folder = tmp_path_factory.mktemp("harness")
    (folder / "tasks").mkdir()
    rows = [
        {
            "question": f"Question {i}: what is {WORDS[i % 7]}?",
            "choices": [WORDS[(i + k) % 8] for k in range(3)],
            "label": i % 3,
            "said": "",
        }
        for i in range(30)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {"colours": CHOICE, "spoken": SPOKEN, "both": GROUP, "hub": HUB, "programs": PROGRAMS, "away": AWAY}
    for name, text in tasks.items():
        (folder / f"tasks/{name}.yaml").write_text(text.replace("ROWS", str(folder / "rows.jsonl")))
    tokenizer = tiny_tokenizer(WORDS * 9, chat=False)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    tiny_model(vocab_size=len(tokenizer), max_position_embeddings=64, **ends).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = logging.getLogger("lm_eval").level
    yield
    logging.getLogger("lm_eval").setLevel(before)


def ours(place: Path, folder: Path, names: list[str], said: list[str] | None = None, **more: Any) -> harness.Harnessed:
    kept = Kept(folder, World(0, 1, torch.device("cpu")), ([] if said is None else said).append)
    found = harness.evaluate(
        str(place / "model"),
        names,
        kept=kept,
        weights="w",
        device=torch.device("cpu"),
        include=str(place / "tasks"),
        **more,
    )
    assert found is not None
    return found


def test_its_own_results_are_ours(place: Path, tmp_path: Path) -> None:
    """Of a group with answers that are chosen and written: figures, errors, rows and hashes, to the last bit."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    theirs: Any = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(place / "model"), "dtype": "float32"},
        tasks=["both"],
        device="cpu",
        batch_size=8,
        task_manager=TaskManager(include_path=str(place / "tasks"), include_defaults=False),
    )
    found = ours(place, tmp_path, ["both"])
    expected = {
        f"{task} {key.partition(',')[0]}": (value, values[f"{key.partition(',')[0]}_stderr,none"])
        for task, values in theirs["results"].items()
        for key, value in values.items()
        if key.endswith(",none") and "stderr" not in key
    }
    assert {"colours acc", "colours acc_norm", "spoken exact_match"} <= set(expected)
    assert 0 < expected["colours acc"][0] < 1
    assert found.result.values == {name: value for name, (value, _) in expected.items()}
    assert found.errors == {name: error for name, (_, error) in expected.items()}
    for name, (value, _) in expected.items():
        assert found.result.intervals[name] == wilson(round(30 * value), 30)
    for task, metrics in {"colours": ("acc", "acc_norm"), "spoken": ("exact_match",)}.items():
        samples = theirs["samples"][task]
        for metric in metrics:
            assert list(found.result.items[f"{task} {metric}"].values()) == [one[metric] for one in samples]
        about = found.tasks[task]
        assert (about["version"], about["rows"], about["of"]) == (theirs["versions"][task], 30, 30)
    assert found.result.limit is None


def test_a_call_that_was_cut_off_answers_no_row_twice(place: Path, tmp_path: Path) -> None:
    whole = ours(place, tmp_path, ["colours", "spoken"])
    files = sorted(tmp_path.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    assert len(files) == 3  # 90 choices in parts of 64, and 30 texts
    written = {file: file.stat().st_mtime_ns for file in files[:2]}
    files[2].unlink()
    said: list[str] = []
    again = ours(place, tmp_path, ["colours", "spoken"], said)
    assert said == ["loglikelihood requests answered before: 2 of 2 parts"]
    assert {file: file.stat().st_mtime_ns for file in files[:2]} == written
    assert files[2].is_file()
    assert again == whole


def test_hashes_change_with_what_is_asked(place: Path, tmp_path: Path) -> None:
    plain = ours(place, tmp_path, ["colours"]).tasks["colours"]
    shots = ours(place, tmp_path, ["colours"], shots=1)
    assert shots.tasks["colours"]["shots"] == 1
    assert shots.tasks["colours"]["samples"] != plain["samples"]
    fewer = ours(place, tmp_path, ["colours"], limit=4)
    assert (fewer.result.limit, fewer.tasks["colours"]["rows"]) == (4, 4)
    assert fewer.result.lines()[0] == "limited to 4 rows: no result"
    assert ours(place, tmp_path, ["colours"], limit=30).result.limit is None


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("hub", "task hub: its metric bleu is code of the Hub, which is never run. Leave it out."),
        ("programs", "task programs runs programs that the model writes: none is run here. Leave it out."),
        ("away", "Load it once with the network on (without HF_HUB_OFFLINE), or take the task out of the suite."),
    ],
)
def test_what_is_not_run(place: Path, tmp_path: Path, name: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        ours(place, tmp_path, [name])
    assert str(caught.value).endswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_chat_template_is_rendered_as_the_tokenizer_does(tmp_path: Path) -> None:
    from align.eval.harness_model import KeptLM

    tokenizer = tiny_tokenizer(chat=True)
    kept = Kept(tmp_path, World(0, 1, torch.device("cpu")), print)
    lm = KeptLM(tiny_model(vocab_size=len(tokenizer)), tokenizer, kept, [], batch_size=1)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    expected = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert lm.apply_chat_template(chat) == expected
    assert "Be brief." in expected
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}"
    tokenizer.chat_template = refuses + "[{{ messages[0].content }}]"
    assert lm.apply_chat_template(chat) == "[Who?]"
    with pytest.raises(UserError, match="a task begins the answer itself"):
        lm.apply_chat_template(chat, add_generation_prompt=False)


def test_intervals_of_shares_and_of_other_means() -> None:
    rows = {str(i): float(i < 3) for i in range(4)}
    assert harness._interval(0.75, 0.25, 4, rows) == wilson(3, 4)
    assert harness._interval(0.0, 0.0, 30, {str(i): 0.0 for i in range(30)}).high > 0.1
    assert harness._interval(0.75, 0.25, 4, {**rows, "0": 0.5}) == Interval(0.75, 0.75 - 0.49, 0.75 + 0.49, 4)
    # a task's own way to sum rows up, such as their median, is no share of them
    assert harness._interval(1.0, 0.25, 4, rows) == Interval(1.0, 1 - 0.49, 1 + 0.49, 4)
    assert harness._interval(0.75, 0.25, 4, {}) == Interval(0.75, 0.75 - 0.49, 0.75 + 0.49, 4)
