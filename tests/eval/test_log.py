"""Logs in and out: every layout, the order of rows, what is missing, and files that are no logs."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_logs import FULL, MUSE, OPEN, ORIGINAL, content, muse_entries, tofu_entries, written
from sample_rows import real

from align.errors import UserError
from align.eval.log import SetLog, TofuLog
from align.eval.log_read import read_log, read_muse_log


def small(**changes: Any) -> dict[str, Any]:
    """A log of three forget rows."""
    losses = {"Q_A_Prob": [0.1, 0.2, 0.3], "Q_A_PARA_Prob": [1.0, 2.0, 3.0], "Q_A_PERT_Prob": [[1, 2], [3, 4], [5, 6]]}
    out: dict[str, Any] = {
        f"forget_{kind}": {"agg_value": 9, "value_by_index": {str(i): {"avg_loss": x} for i, x in enumerate(values)}}
        for kind, values in losses.items()
    }
    return out | changes


def same(left: TofuLog, right: TofuLog) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return (a is None and b is None) or a == b if isinstance(a, list | None) else np.array_equal(a, b, True)

    return (
        left.sets.keys() == right.sets.keys()
        and left.scores.keys() == right.scores.keys()
        and all(
            equal(a, vars(right.sets[name])[k])
            for name, s in left.sets.items()
            for k, a in vars(s).items()
            if k != "ratio"
        )
        and all(equal(left.scores[name], right.scores[name]) for name in left.scores)
        and all(equal(a, b) for n in left.mia for a, b in zip(left.mia[n], right.mia[n], strict=True))
        and left.epsilon == right.epsilon
    )


def test_a_published_log_is_read_whole() -> None:
    log = read_log(real(FULL))
    assert {name: len(items) for name, items in log.sets.items()} == {
        "forget": 400,
        "retain": 400,
        "ra": 100,
        "wf": 117,
    }
    assert log.sets["forget"].wrong_loss.shape == (400, 5)
    assert log.sets["ra"].wrong_loss.shape == (100, 3)
    assert log.sets["forget"].loss[0] == 0.05043640360236168
    assert log.sets["forget"].para_loss[399] != log.sets["forget"].para_loss[0]
    assert log.sets["ra"].para_loss is None
    assert log.sets["wf"].generation[0]
    assert log.lacks == ["mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_gradnorm", "mia_reference"]
    assert not log.notes


def test_rows_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    data = content(FULL)
    for entry in data.values():
        if "value_by_index" in entry:
            items = list(entry["value_by_index"].items())
            random.Random(1).shuffle(items)
            entry["value_by_index"] = dict(items)
    assert same(read_log(written(tmp_path, data)), read_log(real(FULL)))


def test_a_log_survives_writing_and_reading(tmp_path: Path) -> None:
    log = read_log(real(FULL))
    assert same(read_log(written(tmp_path, log.to_json(), "again.json.gz")), log)
    with_attacks = read_log(written(tmp_path, tofu_entries(content(OPEN)["Llama-3.2-1B-Instruct_full/evals_forget01"])))
    assert set(with_attacks.mia) >= {"mia_min_k", "mia_reference"}
    assert same(read_log(written(tmp_path, with_attacks.to_json(), "again.json")), with_attacks)


def test_written_aggregates_are_the_published_ones() -> None:
    stated, made = content(FULL), read_log(real(FULL)).to_json()
    checked = [n for n, entry in stated.items() if "value_by_index" in entry]
    assert len(checked) == 22
    for name in checked:
        assert made[name]["agg_value"] == pytest.approx(stated[name]["agg_value"], rel=1e-12, abs=0), name
    ours = [item["score"] for item in made["forget_truth_ratio"]["value_by_index"].values()]
    theirs = [item["score"] for item in stated["forget_truth_ratio"]["value_by_index"].values()]
    assert ours == pytest.approx(theirs, rel=1e-13, abs=0)


@pytest.mark.parametrize("form", ["dict", "list", "single", "gz"])
def test_original_logs_in_every_form(tmp_path: Path, form: str) -> None:
    lists = content(ORIGINAL)["tofu/ft_epoch5_lr1e-05_llama2-7b_full_wd0.01"]
    backwards = {f: {k: dict(reversed([*enumerate(v)])) for k, v in part.items()} for f, part in lists.items()}
    expected = read_log(written(tmp_path, lists, "eval_log_aggregated.json"))
    if form == "single":
        found = read_log(written(tmp_path, backwards["eval_log_forget.json"], "eval_log_forget.json"))
        assert list(found.sets) == ["forget"]
        assert np.array_equal(found.sets["forget"].loss, expected.sets["forget"].loss)
        return
    data = lists if form == "list" else backwards
    found = read_log(written(tmp_path, data, f"aggregated.json{'.gz' if form == 'gz' else ''}"))
    assert same(found, expected)
    assert (found.epsilon, found.rows) == (0.0, "legacy300")
    part = lists["eval_log.json"]
    assert found.sets["retain"].loss.tolist() == part["avg_gt_loss"]
    assert found.sets["forget"].wrong_loss.tolist() == lists["eval_log_forget.json"]["average_perturb_loss"]
    assert found.sets["ra"].rougeL_recall.tolist() == lists["eval_real_author_wo_options.json"]["rougeL_recall"]
    assert found.sets["forget"].truth_ratio(epsilon=0.0) == pytest.approx(found.sets["forget"].ratio, rel=2e-6, abs=0)


def test_texts_of_an_original_log(tmp_path: Path) -> None:
    part = {"avg_gt_loss": {"1": 2.0, "0": 1.0}, "generated_text": {"0": ["q0", "g0", "t0"], "1": ["q1", "g1", "t1"]}}
    items = read_log(written(tmp_path, part, "eval_log.json")).sets["retain"]
    assert (items.input, items.generation, items.ground_truth) == (["q0", "q1"], ["g0", "g1"], ["t0", "t1"])
    assert items.loss.tolist() == [1.0, 2.0]


def test_items_without_a_value_are_nan_and_counted(tmp_path: Path) -> None:
    data = small()
    data["forget_Q_A_Prob"]["value_by_index"]["1"] = {"prob": None, "avg_loss": None}
    data["forget_Q_A_PERT_Prob"]["value_by_index"]["2"] = None
    data["exact_memorization"] = {
        "value_by_index": {"0": {"score": math.nan}, "1": {"score": 1.0}, "2": {"score": 0.5}}
    }
    log = read_log(written(tmp_path, data))
    assert np.isnan(log.sets["forget"].loss).tolist() == [False, True, False]
    assert np.isnan(log.sets["forget"].wrong_loss).tolist() == [[False] * 2, [False] * 2, [True] * 2]
    assert sum("1 of 3 items" in note for note in log.notes) == 3


def test_attack_scores_in_short_forms(tmp_path: Path) -> None:
    mia = {"forget": [1.0, 2.0], "holdout": {"value_by_index": {"1": {"score": 4.0}, "0": {"score": 3.0}}}, "auc": 1.0}
    log = read_log(written(tmp_path, small(mia_loss=mia, mia_min_k={"agg_value": 0.4, "auc": 0.4})))
    assert [side.tolist() for side in log.mia["mia_loss"]] == [[1.0, 2.0], [3.0, 4.0]]
    assert "mia_min_k" not in log.mia


def test_losses_follow_from_probabilities(tmp_path: Path) -> None:
    entry = {"value_by_index": {"0": {"prob": 0.5}, "1": {"prob": 0.25}}}
    items = read_log(written(tmp_path, {"ra_Q_A_Prob": entry})).sets["ra"]
    assert items.loss == pytest.approx([math.log(2), math.log(4)], rel=1e-15, abs=0)


def test_a_changed_probability_is_noted(tmp_path: Path) -> None:
    data = small()
    data["forget_Q_A_Prob"]["value_by_index"]["0"] = {"avg_loss": 0.1, "prob": 0.2}
    data["forget_Q_A_Prob"]["value_by_index"]["1"] = {"avg_loss": 0.2, "prob": math.exp(-0.2)}
    data["forget_Q_A_Prob"]["value_by_index"]["2"] = {"avg_loss": 0.3, "prob": math.exp(-0.3)}
    assert any("in 1 items prob is not exp(-avg_loss)" in note for note in read_log(written(tmp_path, data)).notes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"\x1f\x8b\x08broken", "cannot be read"),
        ("[1]", "holds a JSON list"),
        ("{}", "no known entry (it has none)"),
        ('{"loss": 1}', "no known entry (it has loss)"),
        ('{"model_utility": 0.6, "forget_Q_A_Prob": 0.9, "mia_loss": 1}', "holds aggregates only"),
        ('{"forget_Q_A_Prob": {"agg_value": 0.9}}', "holds aggregates only"),
        ('{"forget_knowmem_ROUGE": {"value_by_index": {"0": {"rougeL_f1": 1}}}}', "align eval muse --log"),
        ('{"other.json": {"avg_gt_loss": [1]}}', "which set other.json belongs to"),
        ('{"eval_log.json": {"avg_gt_loss": [1], "rougeL_recall": [1, 2]}}', "holds 1 rows and"),
        ('{"eval_log.json": {"avg_gt_loss": [[1], [2]]}}', "avg_gt_loss should hold one number a row"),
    ],
)
def test_files_that_are_no_logs(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = tmp_path / "log.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_log(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entry", "items", "says"),
    [
        ("forget_Q_A_Prob", {"0": {"avg_loss": 1}}, "forget_Q_A_Prob holds 1 rows and forget_Q_A_PARA_Prob 3"),
        ("forget_Q_A_Prob", {"a": {}, "b": {}, "c": {}}, "numbers its rows 'a'"),
        ("forget_Q_A_Prob", {"0": {}, "00": {}, "1": {}}, "a row number twice"),
        ("forget_Q_A_Prob", {str(i): {"avg_loss": "x"} for i in range(3)}, "something else than numbers"),
        ("forget_Q_A_Prob", {str(i): {"avg_loss": [1]} for i in range(3)}, "one number a row"),
        ("forget_Q_A_Prob", {str(i): {"other": 1} for i in range(3)}, "neither prob nor avg_loss"),
        ("forget_Q_A_PERT_Prob", {str(i): {"avg_loss": [1] * (i + 1)} for i in range(3)}, "lists of 1 and of 3"),
        ("forget_Q_A_PERT_Prob", {str(i): {"avg_loss": 1} for i in range(3)}, "a list for each row"),
        ("forget_Q_A_ROUGE", {str(i): {"bleu": 1} for i in range(3)}, "neither rouge1_recall"),
    ],
)
def test_entries_that_do_not_fit(tmp_path: Path, entry: str, items: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_log(written(tmp_path, small(**{entry: {"value_by_index": items}})))


def test_a_folder_and_no_file(tmp_path: Path) -> None:
    written(tmp_path, small())
    with pytest.raises(UserError, match=r"is a folder: .* It holds TOFU_EVAL.json"):
        read_log(tmp_path)
    with pytest.raises(UserError, match="There is no file"):
        read_log(tmp_path / "none.json")


def test_a_muse_log(tmp_path: Path) -> None:
    entries = muse_entries(content(MUSE)["muse_Llama-2-7b-hf_News_target"])
    log = read_muse_log(written(tmp_path, entries, "MUSE_EVAL.json"))
    assert {name: len(items) for name, items in log.sets.items()} == dict.fromkeys(log.sets, 100)
    assert set(log.sets) == {"forget_knowmem", "retain_knowmem", "forget_verbmem"}
    assert not log.lacks
    again = read_muse_log(written(tmp_path, json.loads(json.dumps(log.to_json())), "again.json"))
    assert np.array_equal(again.sets["forget_verbmem"].rougeL_f1, log.sets["forget_verbmem"].rougeL_f1)
    assert np.array_equal(again.mia["mia_min_k"][1], log.mia["mia_min_k"][1])
    with pytest.raises(UserError, match="is no log of MUSE"):
        read_muse_log(written(tmp_path, small()))


def test_fields_of_a_set_have_one_length() -> None:
    with pytest.raises(ValueError, match="one length"):
        SetLog(loss=np.zeros(3), para_loss=np.zeros(2))
    assert SetLog(loss=np.zeros(3)).index.tolist() == [0, 1, 2]
    assert len(SetLog(loss=np.zeros(3), generation=["a", "b", "c"]).first(2).generation) == 2


@pytest.mark.parametrize(
    ("entry", "item", "says"),
    [
        ("forget_Q_A_ROUGE", {"rougeL_recall": 1e308}, "holds 1e+308 under rougeL_recall in row 4: expected a number"),
        ("forget_Q_A_ROUGE", {"rougeL_f1": 1.5}, "holds 1.5 under rougeL_f1 in row 4: expected a number from 0 to 1."),
        ("forget_Q_A_Prob", {"prob": -0.25}, "holds -0.25 under prob in row 4: expected a number from 0 to 1."),
        ("forget_Q_A_Prob", {"avg_loss": -3}, "holds -3 under avg_loss in row 4: expected a number that is not negati"),
        ("forget_Q_A_Prob", {"avg_loss": 10**400}, "holds a whole number under avg_loss that no float can hold."),
        ("exact_memorization", {"score": 2}, "holds 2 under score in row 4: expected a number from 0 to 1."),
    ],
)
def test_values_that_cannot_be_are_refused_with_their_place(tmp_path: Path, entry: str, item: dict, says: str) -> None:
    rows = {"3": dict.fromkeys(item, 0.5), "4": item}
    log = {entry: {"agg_value": None, "value_by_index": rows}}
    with pytest.raises(UserError) as caught:
        read_log(written(tmp_path, log))
    assert str(caught.value).startswith(f"{tmp_path}")
    assert f"{entry} {says}" in str(caught.value)


def test_a_row_whose_number_no_table_has_is_refused(tmp_path: Path) -> None:
    rows = {str(10**29): {"avg_loss": 0.5}}
    with pytest.raises(UserError, match=r"forget_Q_A_Prob numbers a row 10{29}: expected whole numbers from 0 on\."):
        read_log(written(tmp_path, {"forget_Q_A_Prob": {"agg_value": None, "value_by_index": rows}}))
