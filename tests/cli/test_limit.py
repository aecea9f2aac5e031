"""``--limit``: a trial on the first rows, which is marked as no result wherever it is seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_tokenizer
from zoo import tiny_model

from align.cli.main import main
from align.data.rows import world
from align.errors import UserError
from align.eval.log import SetLog, TofuLog
from align.eval.log_read import read_log
from align.eval.muse import load_sets as muse_sets
from align.eval.tofu_data import load_sets
from align.eval.tofu_metrics import metrics

MARK = "limited to 3 rows: no result"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    texts = [" ".join((row["question"], row["answer"])) for row in world.rows("forget", 0)]
    tokenizer = tiny_tokenizer(texts, chat=False)
    tokenizer.save_pretrained(folder)
    tiny_model(vocab_size=len(tokenizer), max_position_embeddings=256).save_pretrained(folder)
    return str(folder)


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(("eval", *words))
    out, err = capsys.readouterr()
    return code, out, err


def test_a_trial_of_tofu_is_marked_everywhere(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full, part = str(tmp_path / "full.json"), str(tmp_path / "part.json")
    asked = ("tofu", model, "--source", "world", "--split", "forget")
    assert call(capsys, *asked, "--limit", "3", "--out", part)[0] == 0
    assert json.loads(Path(part).read_text())["align"]["limited"] == MARK
    log = read_log(part)
    assert (log.limit, [len(items) for items in log.sets.values()]) == (3, [3, 3, 3, 3])
    code, out, _ = call(capsys, "tofu", "--log", part, "--retain-log", part)
    lines = out.splitlines()
    assert lines[0] == MARK
    assert lines[lines.index(next(line for line in lines if line.startswith("metric"))) - 1] == MARK
    assert f"needs at least 30 rows; {MARK}" in out
    data = json.loads(call(capsys, "tofu", "--log", part, "--retain-log", part, "--json")[1])
    assert (data["limit"], data["limited"]) == (3, MARK)
    assert data["ks"] is None
    assert not {"forget_quality", "privleak", "mia_loss"} & set(data["metrics"])
    assert data["intervals"]["forget_Q_A_Prob"]["n"] == 3
    # a whole log compares with its own first rows; a part of one is no target
    whole = read_log(part)
    Path(full).write_text(json.dumps({**whole.to_json(), "align": {"name": "x", "rows": "all", "epsilon": 1e-10}}))
    code, _, err = call(capsys, "tofu", "--log", full, "--retain-log", part)
    assert (code, err) == (2, f"The retain log {part} is {MARK}. Measure the retain model without --limit.\n")


def test_a_trial_compares_with_the_first_rows_of_a_whole_retain_log() -> None:
    def log(rows: int, limit: int | None) -> TofuLog:
        losses = np.linspace(0.5, 2.0, 100)[:rows]
        return TofuLog({"forget": SetLog(loss=losses, para_loss=losses, wrong_loss=losses[:, None] ** 2)}, limit=limit)

    result = metrics(log(35, 35), log(100, None))
    assert result.ks is not None
    assert (result.ks.n, result.ks.m, result.values["forget_quality"]) == (35, 35, 1.0)  # the same losses
    assert result.to_json()["limited"] == "limited to 35 rows: no result"


def test_a_limit_that_leaves_nothing_out_marks_nothing() -> None:
    whole = load_sets("forget", "world")
    most = max(len(facts) for facts in (*whole.sets.values(), whole.holdout or []))
    assert load_sets("forget", "world", limit=most) == whole
    assert load_sets("forget", "world", limit=most - 1).limit == most - 1


def test_muse_shows_all_worked_examples_and_asks_some_rows(tmp_path: Path) -> None:
    qa = [{"question": f"q{i}", "answer": "a"} for i in range(5)]
    files = {f"knowmem/{name}": qa for name in ("forget_qa", "retain_qa", "forget_qa_icl", "retain_qa_icl")}
    files["verbmem/forget"] = [{"prompt": "p", "gt": "t"}] * 2
    files |= {f"privleak/{name}": [{"text": "t"}] * 4 for name in ("forget", "holdout")}
    for name, rows in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    sets = muse_sets(str(tmp_path), 3)
    assert {name: len(rows) for name, rows in sets.knowmem.items()} == {
        "forget_qa": 3,
        "retain_qa": 3,
        "forget_qa_icl": 5,
        "retain_qa_icl": 5,
    }
    assert (len(sets.verbmem), len(sets.privleak["holdout"]), sets.limit) == (2, 3, 3)
    assert muse_sets(str(tmp_path), 5).limit is None


@pytest.mark.parametrize("suite", ["tofu", "muse", "relearn"])
def test_a_limit_of_nothing(suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, suite, "some/model", "--limit", "0")[::2] == (2, "--limit: must be at least 1, got 0.\n")


def test_a_log_was_measured_already(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = "A log was measured already, and --limit says how to measure a model: leave it out.\n"
    assert call(capsys, "tofu", "--log", "x.json", "--limit", "3")[2] == said


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning")
def test_a_trial_of_relearning_is_marked_and_not_kept(model: str) -> None:
    from align.eval.finished_run import attack_run
    from align.eval.leak import Leaking

    with pytest.raises(UserError, match="leaves none to see whether they come back"):
        attack_run(model, source="world", split="forget", limit=3, rows_relearned=3, say=lambda _: None)
    few = Leaking(samples=1)
    durability = attack_run(model, source="world", split="forget", limit=3, steps=1, leaking=few, say=lambda _: None)
    assert durability.lines()[0] == MARK
    assert durability.to_json()["limited"] == MARK
    assert durability.settings["forget_rows"] == 3
    assert len(durability.settings["relearned_rows"]) == 1
