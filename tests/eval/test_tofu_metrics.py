"""TOFU's metrics: every published number whose items are there, the original logs, and identities."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from published_logs import FULL, OPEN, ORIGINAL, RETAIN90, content, tofu_entries, written
from sample_rows import real

from align.errors import UserError
from align.eval.log import SetLog, TofuLog
from align.eval.log_read import read_log
from align.eval.tofu_metrics import TofuResult, metrics

RETAIN_OF = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
LOGS = [f"full/evals_{name}" for name in RETAIN_OF] + list(RETAIN_OF.values())


def condensed(name: str) -> dict:
    return content(OPEN)[f"Llama-3.2-1B-Instruct_{name}"]


def made(seed: int, n: int = 30, k: int = 4) -> TofuLog:
    """A log with everything, of made-up losses."""
    rng = np.random.default_rng(seed)

    def items(count: int, facts: bool = False) -> SetLog:
        para = None if facts else rng.uniform(0.5, 3, count)
        rouge = rng.uniform(0.2, 1, count)
        wrong = rng.uniform(1, 4, (count, k))
        return SetLog(rng.uniform(0, 2, count), para, wrong, rougeL_recall=rouge, rougeL_f1=rouge / 2)

    sets = {"forget": items(n), "retain": items(n), "ra": items(n // 2, True), "wf": items(n // 3, True)}
    scores = {"exact_memorization": rng.uniform(0, 1, n), "extraction_strength": rng.uniform(0, 1, n)}
    return TofuLog(sets, scores, {"mia_min_k": (rng.normal(size=n), rng.normal(size=n))}, name=f"made{seed}")


@pytest.mark.parametrize("name", LOGS)
def test_every_published_number_of_six_logs(tmp_path: Path, name: str) -> None:
    """The items in the test data are rounded to nine digits, which limits agreement to about 1e-8."""
    source = condensed(name)
    retain = None
    if name.startswith("full"):
        against = condensed(RETAIN_OF[name[-8:]])
        retain = read_log(written(tmp_path, tofu_entries(against), "retain.json"))
    result = metrics(read_log(written(tmp_path, tofu_entries(source))), retain, seed=None)
    stated = {key: value for key, value in {**source["agg"], **source["summary"]}.items() if value is not None}
    assert len(stated) >= 29
    assert set(stated) <= set(result.values)
    for key, value in stated.items():
        tolerance = 1e-9 if key.startswith("mia_") or key in ("forget_quality", "privleak") else 1e-7
        assert result.values[key] == pytest.approx(value, rel=tolerance, abs=0), key


@pytest.mark.parametrize(("file", "against"), [(FULL, RETAIN90), (RETAIN90, None)])
def test_the_two_whole_logs_to_the_last_digits(file: str, against: str | None) -> None:
    result = metrics(read_log(real(file)), read_log(real(against)) if against else None, seed=None)
    stated = {name: entry["agg_value"] for name, entry in content(file).items()}
    checked = {name: value for name, value in stated.items() if value is not None and name != "privleak"}
    assert len(checked) == (24 if against else 23)
    for name, value in checked.items():
        assert result.values[name] == pytest.approx(value, rel=1e-12, abs=0), name
    assert result.missing["privleak"] == "needs mia_min_k"  # the attacks were cut from these files


@pytest.mark.parametrize(
    ("split", "k", "n", "quality", "ratio", "utility", "es", "em", "area", "leak"),
    [
        ("forget01", 15, 40, 0.00676073230356921, 0.472752, 0.599153, 0.743199, 0.980375, 1.0, -100.0),
        ("forget05", 74, 200, 1.4275699621533e-12, 0.472514, 0.599153, 0.727173, 0.974443, 0.999950, -99.9922),
        ("forget10", 140, 400, 3.90547135710834e-22, 0.475564, 0.599153, 0.706268, 0.973936, 0.996650, -99.4574),
    ],
)
def test_table_of_open_unlearnings_logs(tmp_path, split, k, n, quality, ratio, utility, es, em, area, leak) -> None:
    log = read_log(written(tmp_path, tofu_entries(condensed(f"full/evals_{split}"))))
    retain = read_log(written(tmp_path, tofu_entries(condensed(RETAIN_OF[split])), "retain.json"))
    result = metrics(log, retain, seed=None)
    assert result.ks is not None
    assert (round(result.ks.d * n), result.ks.n, result.ks.m) == (k, n, n)
    assert result.values["forget_quality"] == pytest.approx(quality, rel=1e-12, abs=0)
    names = ("forget_truth_ratio", "model_utility", "extraction_strength", "exact_memorization", "mia_min_k")
    for name, value in zip(names, (ratio, utility, es, em, area), strict=True):
        assert result.values[name] == pytest.approx(value, abs=6e-7)
    assert result.values["privleak"] == pytest.approx(leak, abs=6e-5)


ORIGINAL_TABLE = {
    "full": (0.9895, 0.9857, 0.4747, 0.4555, 0.9330, 0.5962, 0.4186, 0.8825, 0.5390, 0.9909, 0.9854, 0.5160),
    "retain90": (0.9889, 0.9758, 0.4710, 0.4341, 0.9230, 0.5707, 0.4143, 0.8974, 0.5442, 0.1476, 0.4082, 0.6740),
    "retain99": (0.9906, 0.9889, 0.4646, 0.4593, 0.9280, 0.6037, 0.4122, 0.8825, 0.5390, 0.1795, 0.3972, 0.6849),
}
UTILITIES = {"full": (0.622677, 0.585886), "retain90": (0.613745, 0.575240), "retain99": (0.620744, 0.581165)}


def original(folder: Path, name: str) -> TofuLog:
    data = content(ORIGINAL)[f"tofu/ft_epoch5_lr1e-05_llama2-7b_{name}_wd0.01"]
    return read_log(written(folder, data, f"{name}.json"))


@pytest.mark.parametrize("name", ORIGINAL_TABLE)
def test_table_of_original_logs(tmp_path: Path, name: str) -> None:
    log = original(tmp_path, name)
    result = metrics(log, seed=None)
    columns = [f"{s}_{kind}" for s in ("retain", "ra", "wf") for kind in ("Q_A_Prob", "Q_A_ROUGE", "Truth_Ratio")]
    columns = [c.replace("Q_A_Prob", "Q_A_Prob_normalised") if c[:2] in ("ra", "wf") else c for c in columns]
    columns += ["forget_Q_A_Prob", "forget_Q_A_ROUGE", "forget_truth_ratio"]
    for column, value in zip(columns, ORIGINAL_TABLE[name], strict=True):
        assert result.values[column] == pytest.approx(value, abs=5.1e-5), column
    geometric, arithmetic = UTILITIES[name]
    assert result.values["model_utility"] == pytest.approx(geometric, abs=6e-7)
    other = metrics(log, truth_ratio="arithmetic", seed=None)
    assert other.values["model_utility"] == pytest.approx(arithmetic, abs=6e-7)
    assert "mia_loss" in result.missing
    assert "exact_memorization" in result.missing


def test_forget_quality_of_original_logs(tmp_path: Path) -> None:
    full, retain = original(tmp_path, "full"), original(tmp_path, "retain90")
    result = metrics(full, retain, seed=None)
    assert result.values["forget_quality"] == pytest.approx(1.834066410994743e-21, rel=1e-12, abs=0)
    assert result.ks is not None
    assert round(300 * result.ks.d) == 119
    arithmetic = metrics(full, retain, truth_ratio="arithmetic", seed=None)
    assert arithmetic.values["forget_quality"] == pytest.approx(6.03e-23, rel=1e-3, abs=0)
    with pytest.raises(UserError, match=r"has 300 forget rows, .*retain99.json 40: name the retain model's log"):
        metrics(full, original(tmp_path, "retain99"))


def test_three_hundred_rows_and_four_hundred_are_never_compared(tmp_path: Path) -> None:
    new, old = read_log(real(FULL)), original(tmp_path, "retain90")
    with pytest.raises(UserError, match=r"400 forget rows, .* 300: score both with --rows legacy300"):
        metrics(new, old)
    result = metrics(new, old, rows="legacy300", seed=0)
    assert result.ks is not None
    assert (result.ks.n, result.ks.m) == (300, 300)
    assert result.intervals["forget_Q_A_Prob"].n == 300
    probs = [item["prob"] for item in content(FULL)["forget_Q_A_Prob"]["value_by_index"].values()]
    assert result.values["forget_Q_A_Prob"] == pytest.approx(np.mean(probs[:300]), rel=1e-14, abs=0)


def test_no_stated_aggregate_is_read(tmp_path: Path) -> None:
    """Nor any stated value of an item that follows from others."""
    data = content(FULL)
    for name, entry in data.items():
        entry["agg_value"] = 0.123
        if "ruth" in name or "normalised" in name:
            for item in entry["value_by_index"].values():
                item.update(dict.fromkeys(item, 0.5))
    changed = metrics(read_log(written(tmp_path, data)), read_log(real(RETAIN90)), seed=None)
    assert changed.values == metrics(read_log(real(FULL)), read_log(real(RETAIN90)), seed=None).values


def test_stated_truth_ratios_serve_where_losses_are_missing(tmp_path: Path) -> None:
    data = {name: content(FULL)[name] for name in ("forget_truth_ratio", "retain_Truth_Ratio")}
    log = read_log(written(tmp_path, data))
    result, whole = metrics(log, read_log(real(RETAIN90)), seed=None), metrics(read_log(real(FULL)), seed=None)
    assert result.values["forget_quality"] == pytest.approx(3.9054713571083378e-22, rel=1e-12, abs=0)
    for name in ("forget_truth_ratio", "retain_Truth_Ratio"):
        assert result.values[name] == pytest.approx(whole.values[name], rel=1e-12, abs=0)
    assert "model_utility" in result.missing
    assert "forget_truth_ratio" in metrics(log, truth_ratio="arithmetic").missing


def test_the_epsilon_is_needed_for_the_published_digits() -> None:
    log = read_log(real(FULL))
    without = metrics(replace(log, epsilon=0.0), seed=None).values
    published = content(FULL)["wf_Truth_Ratio"]["agg_value"]
    assert abs(without["wf_Truth_Ratio"] - published) > 5e-7
    assert metrics(log, seed=None).values["wf_Truth_Ratio"] == pytest.approx(published, rel=1e-12, abs=0)


def vanishing(epsilon: float, exponent: float = 10.0, seed: int = 0, name: str = "forget") -> TofuLog:
    """A log of 40 forget rows whose right answers have probabilities about 10 to the power of -exponent."""
    rng = np.random.default_rng(seed)
    lost = exponent * math.log(10) + rng.uniform(-1, 1, 40)
    return TofuLog({name: SetLog(lost, lost, lost[:, None] + rng.uniform(-1, 1, (40, 3)))}, epsilon=epsilon)


def test_both_sides_of_forget_quality_have_the_epsilon_of_the_log() -> None:
    log = vanishing(1e-10)
    qualities = [metrics(log, vanishing(epsilon, seed=1), seed=None).values["forget_quality"] for epsilon in (0, 1e-10)]
    assert qualities[0] == qualities[1]
    # at P = epsilon it halves each ratio, so a side without it would differ
    assert metrics(replace(log, epsilon=0.0), vanishing(0.0, seed=1), seed=None).values["forget_quality"] > 0.05


def test_answers_that_the_epsilon_moves_by_more_than_a_per_cent_are_counted() -> None:
    for exponent, count in ((10.0, 40), (9.0, 40), (7.0, 0)):
        notes = metrics(vanishing(1e-10, exponent), vanishing(1e-10, exponent, seed=1), seed=None).notes
        told = [note for note in notes if "P is below 1e-8" in note]
        assert [note.partition(" the right")[0] for note in told] == (
            [f"in {count} of 40 forget rows"] if count else []
        )


def test_an_answer_stands_for_its_paraphrase_among_facts_alone() -> None:
    items = replace(vanishing(0.0, 1.0).sets["forget"], para_loss=None)
    result = metrics(TofuLog(dict.fromkeys(("forget", "retain", "ra", "wf"), items), epsilon=0.0), seed=None)
    for name in ("forget_truth_ratio", "retain_Truth_Ratio"):
        rows = name.split("_")[0]
        assert result.missing[name] == f"the log has no paraphrases or no wrong answers of the {rows} rows"
    assert {"ra_Truth_Ratio", "wf_Truth_Ratio"} <= set(result.values)


def test_worked_values() -> None:
    """Two wrong answers at P = 1/4 and 1/16, the paraphrase at 1/2: R is 1/4 geometric, 5/16 arithmetic."""
    ln2 = math.log(2)
    wrong = np.array([[2 * ln2, 4 * ln2]])
    items = SetLog(np.array([ln2]), np.array([ln2]), wrong, rougeL_recall=np.array([0.5]))
    facts = replace(items, para_loss=None)
    log = TofuLog({"forget": items, "retain": items, "ra": facts, "wf": facts}, epsilon=0.0)
    geometric, arithmetic = metrics(log, seed=None).values, metrics(log, truth_ratio="arithmetic", seed=None).values
    assert geometric["forget_truth_ratio"] == pytest.approx(1 / 4)
    assert geometric["retain_Truth_Ratio"] == pytest.approx(3 / 4)
    assert arithmetic["forget_truth_ratio"] == pytest.approx(5 / 16)
    assert arithmetic["ra_Truth_Ratio"] == pytest.approx(11 / 16)
    assert geometric["ra_Q_A_Prob_normalised"] == pytest.approx((1 / 2) / (1 / 2 + 1 / 4 + 1 / 16))
    assert geometric["forget_Q_A_PERT_Prob"] == pytest.approx((1 / 4 + 1 / 16) / 2)
    parts = [1 / 2, 1 / 2, 3 / 4, 8 / 13, 1 / 2, 3 / 4, 8 / 13, 1 / 2, 3 / 4]
    assert geometric["model_utility"] == pytest.approx(9 / sum(1 / part for part in parts))
    assert geometric["utility_retain"] == pytest.approx(3 / (2 + 2 + 4 / 3))


def test_identities() -> None:
    log, other = made(1), made(2)
    itself = metrics(log, log, seed=None)
    assert itself.values["forget_quality"] == 1.0
    assert any("so it is this model's own: its forget quality of 1 says nothing" in note for note in itself.notes)
    assert not any("this model's own" in note for note in metrics(log, other, seed=None).notes)
    assert itself.values["privleak"] == 0.0
    items = log.sets["forget"]
    geometric, arithmetic = items.truth_ratio(), items.truth_ratio("arithmetic")
    assert geometric is not None
    assert arithmetic is not None
    assert (arithmetic > geometric).all()
    level = replace(items, wrong_loss=np.repeat(items.wrong_loss[:, :1], 4, axis=1))
    assert level.truth_ratio("arithmetic") == pytest.approx(level.truth_ratio(), rel=1e-14, abs=0)
    # swapping right and wrong turns every R into 1/R, which the test does not see
    plain, turned = [replace(side, epsilon=0.0) for side in (log, other)], []
    for side in plain:
        s = side.sets["forget"]
        mean = s.wrong_loss.mean(axis=1)
        turned.append(
            replace(side, sets={**side.sets, "forget": replace(s, para_loss=mean, wrong_loss=s.para_loss[:, None])})
        )
    ks, ks_turned = metrics(*plain, seed=None).ks, metrics(*turned, seed=None).ks
    assert ks is not None
    assert ks_turned is not None
    assert (ks.d, ks.p) == (ks_turned.d, ks_turned.p)
    equal = SetLog(np.full(3, 2.0), None, np.full((3, 5), 2.0))
    assert equal.normalised(epsilon=0.0) == pytest.approx(np.full(3, 1 / 6))


def test_utility_is_zero_with_one_zero_part_and_between_the_others_without() -> None:
    log = made(1)
    values = metrics(log, seed=None).values
    from align.eval.tofu_metrics import UTILITY

    parts = [values[name] for name in UTILITY]
    assert min(parts) < values["model_utility"] < np.mean(parts)
    silent = replace(log.sets["wf"], rougeL_recall=np.zeros(len(log.sets["wf"])))
    collapsed = metrics(replace(log, sets={**log.sets, "wf": silent}), seed=None)
    assert collapsed.values["model_utility"] == 0.0
    assert collapsed.values["utility_retain"] == values["utility_retain"]


def test_a_collapsed_model_has_numbers_still() -> None:
    log = made(1)
    lost = {name: replace(s, loss=s.loss + 900, wrong_loss=s.wrong_loss + 900) for name, s in log.sets.items()}
    lost = {name: replace(s, para_loss=None if s.para_loss is None else s.para_loss + 900) for name, s in lost.items()}
    for epsilon in (0.0, 1e-10):
        result = metrics(TofuLog(lost, epsilon=epsilon), made(2), seed=0)
        assert result.values["forget_Q_A_Prob"] == 0.0
        assert 0 <= result.values["forget_quality"] <= 1
    assert any("P is below 1e-8" in note for note in result.notes)


def test_items_that_are_no_number_are_left_out_and_said() -> None:
    log, other = made(1), made(2)
    loss = log.sets["forget"].para_loss.copy()
    loss[3] = math.nan
    torn = replace(log, sets={**log.sets, "forget": replace(log.sets["forget"], para_loss=loss)})
    result = metrics(torn, other)
    assert result.ks is not None
    assert (result.ks.n, result.ks.m) == (29, 30)  # exact all the same
    ratio = log.sets["forget"].truth_ratio()
    assert ratio is not None
    left = np.delete(np.minimum(ratio, 1 / (ratio + 1e-10)), 3)
    assert result.values["forget_truth_ratio"] == pytest.approx(left.mean(), rel=1e-12, abs=0)
    assert result.intervals["forget_truth_ratio"].n == 29
    assert "forget_truth_ratio is over 29 of 30 items; the others hold no number" in result.notes


def test_what_is_missing_is_named_with_the_reason() -> None:
    log = made(1)
    bare = TofuLog({"forget": SetLog(loss=log.sets["forget"].loss)}, name="bare")
    result = metrics(bare)
    assert set(result.values) == {"forget_Q_A_Prob"}
    assert result.missing["forget_quality"] == "no log of a retain model was given"
    assert result.missing["forget_truth_ratio"] == "the log has no paraphrases or no wrong answers of the forget rows"
    assert result.missing["retain_Q_A_Prob"] == "the log has no retain set"
    assert result.missing["model_utility"].startswith("needs retain_Q_A_Prob, retain_Q_A_ROUGE")
    assert "forget_quality" in metrics(bare, log).missing
    assert "extraction_strength is 1/n whether" in metrics(log).missing["extraction_strength_corrected"]


def test_the_terminal_never_shows_quality_without_utility() -> None:
    def headline(result: TofuResult) -> str:
        return next(line for line in result.lines() if line.startswith("forget quality"))

    log, other = made(1), made(2)
    both = metrics(log, other)
    shown = headline(both)
    assert f"model utility {both.values['model_utility']:.4f}" in shown
    assert f"D {both.ks.d:.4f}, n 30 and 30" in shown  # type: ignore[union-attr]
    assert "model utility not computed (needs ra_" in headline(
        metrics(replace(log, sets={**log.sets, "ra": SetLog()}), other)
    )
    assert "not computed (no log of a retain model was given); model utility 0." in headline(metrics(log))
    json = both.to_json()
    assert json["ks"] == {"D": both.ks.d, "n": 30, "m": 30, "p": both.values["forget_quality"]}  # type: ignore[union-attr]
    assert json["intervals"]["forget_Q_A_Prob"]["value"] == json["metrics"]["forget_Q_A_Prob"]
    assert not {"forget_quality", "model_utility", "privleak", "mia_min_k"} & set(json["intervals"])


def test_rows_of_another_split_are_noticed() -> None:
    log, other = made(1), made(2)
    texts = [f"answer {i}" for i in range(30)]
    log = replace(log, sets={**log.sets, "forget": replace(log.sets["forget"], ground_truth=texts)})
    moved = replace(other, sets={**other.sets, "forget": replace(other.sets["forget"], ground_truth=texts[::-1])})
    with pytest.raises(UserError, match="30 of 30 forget rows have another true answer in the retain log"):
        metrics(log, moved, seed=None)
    some = [*texts[:20], *texts[:19:-1]]
    moved = replace(other, sets={**other.sets, "forget": replace(other.sets["forget"], ground_truth=some)})
    assert any("10 of 30 forget rows have another true answer" in note for note in metrics(log, moved, seed=None).notes)
    assert not any("another true answer" in note for note in metrics(log, log, seed=None).notes)


def test_rouge_is_made_from_texts_where_scores_are_missing() -> None:
    log = read_log(real(FULL))
    bare = replace(log.sets["wf"], rougeL_recall=None, rougeL_f1=None)
    found = metrics(TofuLog({"wf": bare}), seed=None).values
    stated = metrics(log, seed=None).values
    assert found["wf_Q_A_ROUGE"] == stated["wf_Q_A_ROUGE"]
    assert found["wf_Q_A_ROUGE_f1"] == stated["wf_Q_A_ROUGE_f1"]
