"""Every word of a reward model's verdict from made records, each sentence whole, and the calibration picture."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from align.cli.terms import TERMS
from align.cli.terms_online import ONLINE
from align.cli.terms_reward import REWARD
from align.cli.terms_unlearning import UNLEARNING
from align.report import thresholds
from align.report.calibration import draw_calibration
from align.report.reward import reward_verdict
from align.report.verdict import NOT_MEASURED

ROOT = Path(__file__).resolve().parents[2]
BINS = [{"confidence": 0.6, "accuracy": 0.6, "n": 100}, {"confidence": 0.9, "accuracy": 0.9, "n": 100}]
HELD_OUT: dict[str, Any] = {
    "n": 200,
    "ties": 0,
    "end": 0.75,
    "start": 0.5,
    "longer": 0.6,
    "calibration": BINS,
    "calibration_error": 0.0,
}


def records(**last: float) -> list[dict[str, Any]]:
    """Eight log steps of a healthy run, whose values in the last five are replaced by ``last``."""
    healthy = {"chosen": 0.5, "rejected": -0.5, "margins": 1.0, "accuracies": 0.8} | last
    first = {"rewards/chosen": 9.0, "rewards/rejected": 9.0, "rewards/margins": 0.0, "rewards/accuracies": 0.5}
    return [{"step": i, **first} for i in range(3)] + [
        {"step": 3 + i, **{f"rewards/{key}": value for key, value in healthy.items()}} for i in range(5)
    ]


def verdict(log: list[dict[str, Any]] | None = None, **changes: Any) -> Any:
    return reward_verdict(records() if log is None else log, held_out=HELD_OUT | changes, pairs=1000)


def test_the_block_of_a_good_run() -> None:
    found = reward_verdict(
        records(), run="runs/reward", seconds=90, pairs=1000, held_out=HELD_OUT, paths={"model": "runs/reward/model"}
    )
    assert found.lines() == [
        "Done in 2 min.  runs/reward",
        "",
        "  ranks         yes         held-out accuracy 0.75 [0.69, 0.80], chance 0.50, start 0.50, always the longer "
        "answer 0.60, n 200",
        "  confidence    fits        confidence 0.75 and accuracy 0.75 on average (gap +0.00, limit 0.05; expected "
        "calibration error 0.00)",
        "  scores        centred     chosen +0.50, rejected -0.50, margin +1.00 (mean of the last log steps)",
        "  overfit       no          training accuracy 0.80 (of 1,000 pairs), held-out 0.75 (gap +0.05, limit 0.1)",
        "  next          ask what its scores depend on before you trust it: align probe",
        "",
        "  model    runs/reward/model",
    ]
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["findings"]["ranks"]["null"] == 0.6


@pytest.mark.parametrize(
    ("changes", "word", "text"),
    [
        (
            {"end": 0.56},  # 0.49 to 0.63
            "not shown",
            "held-out accuracy 0.56 [0.49, 0.63], chance 0.50, start 0.50, always the longer answer 0.60, n 200: not "
            "above chance",
        ),
        (
            {"end": 0.66},  # 0.592 to 0.722
            "not shown",
            "held-out accuracy 0.66 [0.59, 0.72], chance 0.50, start 0.50, always the longer answer 0.60, n 200: not "
            "above length alone",
        ),
        (
            {"end": 0.66, "longer": 0.3},
            "not shown",
            "held-out accuracy 0.66 [0.59, 0.72], chance 0.50, start 0.50, always the shorter answer 0.70, n 200: not "
            "above length alone",
        ),
        (
            {"end": 0.66, "longer": 0.55, "start": None},
            "yes",
            "held-out accuracy 0.66 [0.59, 0.72], chance 0.50, always the longer answer 0.55, n 200",
        ),
        (
            {"end": 0.4},
            "reversed",
            "held-out accuracy 0.40 [0.33, 0.47], chance 0.50, start 0.50, always the longer answer 0.60, n 200: below "
            "chance",
        ),
        (
            {"start": 0.85},
            "worse",
            "held-out accuracy 0.75 [0.69, 0.80], chance 0.50, start 0.85, always the longer answer 0.60, n 200: below "
            "the start",
        ),
        (
            {"n": 29, "end": 1.0, "ties": 3},
            "too few to say",
            "held-out accuracy 1.00 [0.88, 1.00], chance 0.50, start 0.50, always the longer answer 0.60, n 29 and 3 "
            "ties, which do not count",
        ),
    ],
)
def test_ranks_only_above_chance_and_both_null_models(changes: dict[str, Any], word: str, text: str) -> None:
    found = verdict(**changes)["ranks"]
    assert (found.word, found.text) == (word, text)


def curve(confidence: float, accuracy: float, n: int = 200) -> dict[str, Any]:
    return {"calibration": [{"confidence": confidence, "accuracy": accuracy, "n": n}]}


@pytest.mark.parametrize(
    ("confidence", "accuracy", "n", "word"),
    [
        (0.9, 0.75, 200, "overconfident"),
        (0.6, 0.75, 200, "underconfident"),
        (0.8, 0.75, 200, "fits"),  # 0.05, but within 0.69 to 0.80
        (0.79, 0.75, 2000, "fits"),  # beyond its interval, but 0.04
        (0.81, 0.75, 2000, "overconfident"),
        (0.9, 0.5, 29, "too few to say"),
    ],
)
def test_confidence(confidence: float, accuracy: float, n: int, word: str) -> None:
    assert verdict(**curve(confidence, accuracy, n))["confidence"].word == word


def test_the_sentence_of_confidence() -> None:
    """The means weigh bins by their pairs: (0.6 * 50 + 1 * 150) / 200 and (0.5 * 50 + 0.8 * 150) / 200."""
    bins = [{"confidence": 0.6, "accuracy": 0.5, "n": 50}, {"confidence": 1.0, "accuracy": 0.8, "n": 150}]
    found = verdict(calibration=bins, calibration_error=0.175)["confidence"]
    assert (found.word, found.text) == (
        "overconfident",
        "confidence 0.90 and accuracy 0.72 on average (gap +0.18, limit 0.05; expected calibration error 0.17)",
    )
    assert found.facts["gap"] == pytest.approx(0.175)


@pytest.mark.parametrize(
    ("chosen", "rejected", "margin", "word"),
    [
        (6.0, 4.0, 2.0, "centred"),
        (12.0, 10.0, 2.0, "run away"),
        (-10.0, -12.0, 2.0, "run away"),
        (5.1, 4.9, 0.2, "centred"),  # a margin below 1 counts as 1
    ],
)
def test_scores_that_run_away(chosen: float, rejected: float, margin: float, word: str) -> None:
    assert verdict(records(chosen=chosen, rejected=rejected, margins=margin))["scores"].word == word


def test_the_sentence_of_scores() -> None:
    assert verdict(records(chosen=12.0, rejected=10.0, margins=2.0))["scores"].text == (
        "chosen +12.00, rejected +10.00, margin +2.00 (mean of the last log steps); their centre +11.00 is more than 5 "
        "margins from 0"
    )


@pytest.mark.parametrize(("training", "n", "word"), [(0.84, 200, "no"), (0.86, 200, "yes"), (0.9, 20, "no")])
def test_overfit(training: float, n: int, word: str) -> None:
    """With 20 pairs the held-out interval reaches 0.89; the training accuracy must lie above it."""
    log = records(accuracies=training if n == 200 else 0.88)
    assert verdict(log, n=n)["overfit"].word == word


@pytest.mark.parametrize(
    ("last", "changes", "advice"),
    [
        ({}, {"end": 0.4}, "see whether chosen and rejected are swapped: align check"),
        ({}, {"start": 0.9}, "lower train.learning_rate: the model ranked these pairs better before"),
        ({}, {"n": 12}, "12 held-out pairs are too few to say: hold out 30 or more (data.held_out)"),
        (
            {"accuracies": 1.0},
            {},
            "train for fewer epochs, lower train.learning_rate, or add pairs: it learns its training pairs by heart",
        ),
        (
            {"accuracies": 0.6},
            {"end": 0.66, "longer": 0.7},
            "length alone does as well: balance the lengths of chosen and rejected answers (align check)",
        ),
        ({"accuracies": 0.6}, {"end": 0.55, "n": 40}, "40 pairs are too few to tell: hold out more (data.held_out)"),
        (
            {"accuracies": 0.6},
            {"end": 0.52},
            "train longer, raise train.learning_rate, or look at the pairs: align check",
        ),
        (
            {"chosen": 12.0, "rejected": 10.0},
            {},
            "set objective.center, such as 0.01, so that scores stay near 0",
        ),
        (
            {},
            curve(0.95, 0.75),
            "train for fewer steps, or rescale the scores before you read them as probabilities",
        ),
        ({}, curve(0.55, 0.75), "train longer: the order is right, but margins are small"),
    ],
)
def test_next(last: dict[str, float], changes: dict[str, Any], advice: str) -> None:
    assert verdict(records(**last), **changes)["next"].text == advice


def test_a_worthless_run_gets_no_praise() -> None:
    for log in ([], records()):
        found = reward_verdict(log)
        assert found["ranks"].word == NOT_MEASURED
        assert found["next"].text == "set data.held_out, so that the next run can be judged"
    assert {f.word for f in reward_verdict([]).findings} == {NOT_MEASURED, ""}
    for changes in ({"end": 0.5}, {"end": 0.6, "longer": 0.6}, {"end": 0.6, "longer": 0.4}, {"n": 29, "end": 1.0}):
        assert verdict(**changes)["ranks"].word in ("not shown", "too few to say")


def test_a_stopped_run_says_why() -> None:
    found = reward_verdict(records(), run="runs/x", seconds=61, stopped="the loss is not finite at step 40.")
    assert found.headline == "Stopped after 1 min: the loss is not finite at step 40.  runs/x"


def test_every_word_is_explained_and_every_threshold_stated() -> None:
    assert {f.name for f in verdict().findings} <= {*REWARD, "next"}
    assert not set(REWARD) & {*TERMS, *UNLEARNING, *ONLINE}
    page = (ROOT / "docs" / "reward-models.md").read_text(encoding="utf-8")
    diagnostics = (ROOT / "docs" / "diagnostics.md").read_text(encoding="utf-8")
    for name in ("ranks", "confidence", "scores", "overfit"):
        assert f"**{name}**" in page
    for name in ("MISCALIBRATED", "WILD_SCORES", "OVERFIT"):
        assert re.search(rf"`{name}` *\| *{getattr(thresholds, name):g}\b", diagnostics)


def test_the_calibration_picture(tmp_path: Path) -> None:
    bins = [{"confidence": 0.55, "accuracy": 0.5, "n": 40}, {"confidence": 0.95, "accuracy": 1.0, "n": 160}]
    file = draw_calibration(tmp_path / "calibration.svg", bins, title="runs/reward")
    text = file.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    words = ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"40", "160", "dashed: as sure as right; at the top: pairs of each point", "accuracy", "runs/reward"} <= set(
        words
    )
    assert re.search(r'<g id="patch_1">\s*<path[^>]*fill: none', text) or "opacity: 0" in text  # no ground of its own
    assert "#000000" not in text.split("</style>")[-1]  # black would be lost on black
    assert draw_calibration(tmp_path / "again.svg", bins, title="runs/reward").read_text(encoding="utf-8") == text
