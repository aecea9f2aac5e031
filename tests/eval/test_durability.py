"""The word on an attack, on logs made by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from align.errors import UserError
from align.eval.durability import WORDS, Attack, Durability, answered, attacked, reading
from align.eval.log import SetLog, TofuLog
from align.stats import Interval

ROWS = 40


def log(probability: float, spread: float = 0.02, *, rouge: float = 0.2, seed: int = 0) -> TofuLog:
    """Forty forget rows whose P scatters around a mean; ROUGE is the same everywhere."""
    p = np.clip(probability + spread * np.random.default_rng(seed).standard_normal(ROWS), 1e-6, 1)
    return TofuLog({"forget": SetLog(loss=-np.log(p), rougeL_recall=np.full(ROWS, rouge), rougeL_f1=np.zeros(ROWS))})


def word(after: TofuLog, **beside: TofuLog | tuple[TofuLog, TofuLog]) -> str:
    return attacked("relearned", log(0.1), after, **beside).word  # type: ignore[arg-type]


def test_a_rise_is_that_of_each_row() -> None:
    before, after = log(0.1, 0.05, seed=1), log(0.3, 0.05, seed=2)
    found = attacked("8 bits", before, after)
    gain = np.exp(-after.sets["forget"].loss) - np.exp(-before.sets["forget"].loss)
    assert found.rise["forget_probability"].value == pytest.approx(gain.mean())
    assert found.rise["forget_rouge"] == Interval(0.0, 0.0, 0.0, ROWS)
    assert (found.rows, found.excess, found.above) == (ROWS, {}, {})
    few = attacked("relearned", before, after, rows=np.array([3, 5, 8]))
    assert few.rise["forget_probability"].value == pytest.approx(gain[[3, 5, 8]].mean())
    assert few.rows == few.rise["forget_probability"].n == 3


def test_words() -> None:
    assert word(log(0.1, seed=1)) == "held"
    assert word(log(0.13, seed=1)) == "held"  # it rose for certain, but not by 0.05
    assert word(log(0.4, seed=1)) == "came back"
    assert word(log(0.13, 0.12, seed=1)) == "unclear"
    assert word(log(0.1, seed=1, rouge=0.4)) == "came back"  # what it says counts as much as what it finds likely
    assert word(log(0.02, seed=1)) == "held"


def test_a_retain_model_says_how_much_anyone_would_know() -> None:
    assert word(log(0.4, seed=1), retain=log(0.5, seed=2)) == "rose"
    assert word(log(0.4, seed=1), retain=log(0.2, seed=2)) == "came back"


def test_a_control_takes_its_own_rise_off() -> None:
    after = log(0.4, seed=1)
    assert word(after, control=(log(0.05), log(0.35, seed=1))) == "held"
    assert word(after, control=(log(0.5), log(0.51, seed=1))) == "rose"  # the rise is its own, the level is not
    assert word(after, control=(log(0.05), log(0.1, seed=1))) == "came back"
    # a control that falls makes no rise of none
    assert word(log(0.1, seed=1), control=(log(0.5), log(0.1, seed=1))) == "held"
    found = attacked("relearned", log(0.1), after, control=(log(0.05), log(0.1, seed=1)))
    assert found.excess["forget_probability"].value == pytest.approx(0.3 - 0.05, abs=1e-3)
    assert found.above["forget_probability"].value == pytest.approx(0.3, abs=1e-3)


def test_what_holds_unasked_is_unclear() -> None:
    """Of questions without a name: fewer than half of the retained ones are answered so asked."""
    held, back = attacked("alias", log(0.1), log(0.1, seed=1)), attacked("alias", log(0.1), log(0.4, seed=1))
    assert replace(held, retained=(0.8, 0.4)).word == "held"
    assert replace(held, retained=(0.8, 0.39)).word == "unclear"
    assert replace(held, retained=(0.0, 0.0)).word == "unclear"  # a model that answers nothing holds nothing
    assert replace(back, retained=(0.8, 0.0)).word == "came back"
    assert replace(held, retained=(0.8, 0.5)).lines()[-1] == "retained people: 80% answered as they stand, 50% so asked"
    assert held.to_json().keys() | {"retained"} == replace(held, retained=(0.8, 0.5)).to_json().keys()
    recall = np.array([0.89, 0.9, 1.0, 0.0, 0.95])
    assert answered(TofuLog({"retain": SetLog(rougeL_recall=recall, rougeL_f1=np.zeros(5))})) == 0.6


def test_the_word_for_a_rise_beside_no_retain_model() -> None:
    alone = replace(attacked("relearned", log(0.1), log(0.4, seed=1)), alone="rose")
    assert alone.word == "rose"
    known = replace(attacked("relearned", log(0.1), log(0.4, seed=1), retain=log(0.2, seed=2)), alone="rose")
    assert known.word == "came back"


def test_a_broken_model_is_said() -> None:
    broken = TofuLog({"forget": SetLog(loss=np.full(ROWS, np.nan))})
    with pytest.raises(UserError, match="4 bits: the model computes no number"):
        attacked("4 bits", log(0.1), broken)


def test_the_reading_of_some_rows() -> None:
    whole = log(0.3, 0.1)
    rows = np.array([1, 4, 9])
    found = reading(whole, None, rows)
    assert found["forget_probability"] == pytest.approx(np.exp(-whole.sets["forget"].loss)[rows].mean())
    assert set(found) == {"forget_probability", "forget_rouge"}


def test_lines_and_json() -> None:
    held, back = attacked("8 bits", log(0.1), log(0.1, seed=1)), attacked("relearned", log(0.1), log(0.4, seed=1))
    readings = {"as it is": {"forget_quality": 2e-9, "utility": 0.5, "forget_probability": 0.1, "forget_rouge": 0.2}}
    made = Durability("runs/x", {"steps": 3}, readings, {}, (held, back), ("this",), ("that",), ("note",))
    assert made.word == "came back"
    lines = made.lines()
    assert lines[0] == "durability of runs/x: came back"
    assert lines[3].split() == ["as", "it", "is", "2.000e-09", "0.5000", "0.1000", "0.2000"]
    assert lines[5].startswith("  8 bits        held       P ")
    assert lines[lines.index("not tested") + 1] == "  that"
    assert max(map(len, lines)) <= 100
    plain = json.loads(json.dumps(made.to_json()))
    assert [(a["name"], a["word"]) for a in plain["attacks"]] == [("8 bits", "held"), ("relearned", "came back")]
    assert plain["attacks"][1]["rise"]["forget_probability"]["n"] == ROWS
    assert (plain["word"], plain["steps"], plain["untested"]) == ("came back", 3, ["that"])


def test_a_ruined_model_that_holds_earns_no_praise() -> None:
    held, back = attacked("8 bits", log(0.1), log(0.1, seed=1)), attacked("relearned", log(0.1), log(0.4, seed=1))

    def made(now: float, was: float | None, *attacks: Attack) -> Durability:
        before = {} if was is None else {"before unlearning": {"utility": was}}
        return Durability("runs/x", {}, {**before, "as it is": {"utility": now}}, {}, attacks, (), ())

    assert made(0.3, 0.6, held).word == "held"  # half of it is damage, less is a collapse
    ruined = made(0.299, 0.6, held)
    assert ruined.word == ruined.to_json()["word"] == "unclear"
    said = "its utility is 0.2990, before unlearning 0.6000: held shows nothing, since a ruined model holds anyway"
    assert (ruined.lines()[-1], ruined.to_json()["notes"]) == (f"  {said}", [said])
    assert made(0.0, None, held).word == "unclear"
    assert made(0.1, None, held).word == "held"  # nothing says what it was
    assert made(0.0, 0.6, held, back).word == "came back"


def test_one_row_says_nothing() -> None:
    one = Interval(0.5, -np.inf, np.inf, 1)
    assert Attack("relearned", 1, {"forget_probability": one}).word == "unclear"
    assert WORDS[-1] == "came back"
