"""Logs of TOFU and MUSE evaluations: the values of each item, from which every metric is computed.

One log comes from a model (``eval/tofu.py``, ``eval/muse.py``) or from a file (``read_log``, ``read_muse_log``), and
``eval/tofu_metrics.py`` and ``eval/muse_metrics.py`` score both alike. Files are written in the layout of
open-unlearning's ``TOFU_EVAL.json`` and ``MUSE_EVAL.json`` (open-unlearning, commit d3d7cf9), which its own tools read.
Imports neither torch nor scipy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np

from align.eval.mia import ATTACKS, Attacks, auc
from align.eval.result import limited
from align.stats import finite

TruthRatio = Literal["geometric", "arithmetic"]
SETS = ("forget", "retain", "ra", "wf")  # ra: real authors, wf: world facts
MUSE_SETS = ("forget_knowmem", "retain_knowmem", "forget_verbmem")
ROUGES = ("rouge1_recall", "rougeL_f1", "rougeL_recall")
SCORES = ("exact_memorization", "extraction_strength", "extraction_strength_corrected", "forget_Q_A_gibberish")
EPSILON = 1e-10  # what open-unlearning adds to denominators; without it its published values are missed by up to 1e-6


@dataclass(frozen=True)
class SetLog:
    """The items of one set of questions in row order; what a log does not hold is None, an item it lacks is NaN.

    Losses are mean negative log-likelihoods in nats per token of the answer, end token included: ``loss`` [n] of the
    answer, ``para_loss`` [n] of its paraphrase, ``wrong_loss`` [n, k] of the k perturbed answers. ROUGE is between 0
    and 1, of the greedy ``generation`` against ``ground_truth``. ``index`` [n] holds the rows' numbers, by default 0..

    The last fields are what a file states beside the losses: probabilities rounded to float32, which its aggregates
    were made from, and ``ratio``, the geometric truth ratio, wrong over right, read only where losses are missing.

    Raises ValueError where two fields differ in length.
    """

    loss: np.ndarray | None = None
    para_loss: np.ndarray | None = None
    wrong_loss: np.ndarray | None = None
    rougeL_recall: np.ndarray | None = None
    rougeL_f1: np.ndarray | None = None
    rouge1_recall: np.ndarray | None = None
    generation: list[str] | None = None
    ground_truth: list[str] | None = None
    input: list[str] | None = None
    index: np.ndarray = field(default_factory=lambda: np.arange(0))
    prob: np.ndarray | None = None
    para_prob: np.ndarray | None = None
    wrong_prob: np.ndarray | None = None
    ratio: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Put the rows' numbers where none are given."""
        lengths = {item.name: len(value) for item in fields(self) if (value := getattr(self, item.name)) is not None}
        given = {name: n for name, n in lengths.items() if name != "index" or n}
        if len(set(given.values())) > 1:
            raise ValueError(f"the fields of a set have one length: {given}")
        if given and not lengths["index"]:
            object.__setattr__(self, "index", np.arange(next(iter(given.values()))))

    def __len__(self) -> int:
        return len(self.index)

    def first(self, rows: int) -> SetLog:
        """The first ``rows`` items."""
        cut = {item.name: value[:rows] for item in fields(self) if (value := getattr(self, item.name)) is not None}
        return replace(self, **cut)

    def probability(self, of: Literal["answer", "paraphrase", "wrong"] = "answer") -> np.ndarray | None:
        """P = exp(-loss), [n] or [n, k]; where a log states its probabilities beside the losses, those."""
        stated, loss = {
            "answer": (self.prob, self.loss),
            "paraphrase": (self.para_prob, self.para_loss),
            "wrong": (self.wrong_prob, self.wrong_loss),
        }[of]
        return stated if stated is not None else None if loss is None else np.exp(-loss)

    def normalised(self, epsilon: float = EPSILON) -> np.ndarray | None:
        """P of the answer over its sum with the P of all wrong ones [n]: the probability of the ra and wf sets."""
        right, wrong = self.probability(), self.probability("wrong")
        if right is None or wrong is None:
            return None
        with np.errstate(invalid="ignore"):  # 0/0 where every answer's probability vanished
            return np.asarray(right / (right + wrong.sum(axis=1) + epsilon))

    def truth_ratio(
        self, form: TruthRatio = "geometric", *, answer: bool = False, epsilon: float = EPSILON
    ) -> np.ndarray | None:
        """Wrong over right [n], or None where the log lacks what it takes.

        Right is the paraphrase; ``answer`` allows the answer itself where there is no paraphrase (ra and wf). Wrong is
        the mean over the perturbed answers, geometric or arithmetic, of their probabilities.
        """
        right = self.loss if self.para_loss is None and answer else self.para_loss
        if right is None or self.wrong_loss is None:
            return self.ratio if form == "geometric" else None
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            if form == "arithmetic":
                wrong = np.exp(-self.wrong_loss).mean(axis=1)
            elif epsilon == 0.0:
                return np.asarray(np.exp(right - self.wrong_loss.mean(axis=1)))  # survives losses beyond 745 nats
            else:
                wrong = np.exp(-self.wrong_loss.mean(axis=1))
            return np.asarray(wrong / (np.exp(-right) + epsilon))

    def rouge_scores(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """ROUGE-L recall and F1 [n], with the stemmer; one that the log lacks is made from its texts, if any."""
        recall, f1 = self.rougeL_recall, self.rougeL_f1
        if (recall is None or f1 is None) and self.generation is not None and self.ground_truth is not None:
            from align.eval.rouge import rouge

            found = rouge(self.ground_truth, self.generation)
            recall = found["rougeL_recall"] if recall is None else recall
            f1 = found["rougeL_f1"] if f1 is None else f1
        return recall, f1


def forget_side(ratio: np.ndarray, epsilon: float = EPSILON) -> np.ndarray:
    """Per item min(R, 1/R): 1 where wrong and right are equally likely."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.minimum(ratio, 1 / (ratio + epsilon)))


def truth_side(ratio: np.ndarray) -> np.ndarray:
    """Per item max(0, 1 - R): 1 where the right answer is far the likelier."""
    return np.asarray(np.maximum(0.0, 1 - ratio))


@dataclass(frozen=True)
class TofuLog:
    """A TOFU evaluation: ``sets`` by name (``SETS``), ``scores`` [n] of the forget rows by name (``SCORES``), and

    ``mia`` by name (``ATTACKS``): attack scores of the forget rows and of holdout rows, higher for a likelier
    non-member. ``rows`` says which rows of each set were scored, ``epsilon`` what the format adds to denominators
    (original TOFU logs: nothing), ``notes`` what reading it met. ``limit`` is the number of rows of each set that were
    asked where there are more: such a log is a trial and no result.
    """

    sets: Mapping[str, SetLog]
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    mia: Attacks = field(default_factory=dict)
    name: str = ""
    rows: str = "all"
    epsilon: float = EPSILON
    notes: tuple[str, ...] = ()
    limit: int | None = None

    @property
    def lacks(self) -> list[str]:
        """Names of the per-item entries that the layout has and this log does not."""
        have = self.to_json().keys()
        wanted = [f"{name}_{kind}" for name in SETS for kind in ("Q_A_Prob", "Q_A_PERT_Prob", "Q_A_ROUGE")]
        wanted += ["forget_Q_A_PARA_Prob", "retain_Q_A_PARA_Prob", *SCORES[:2], *ATTACKS]
        return [name for name in wanted if name not in have]

    def first(self, rows: int) -> TofuLog:
        """The first ``rows`` items of each set, and of the scores of the forget set; holdout rows as many."""
        return replace(
            self,
            sets={name: items.first(rows) for name, items in self.sets.items()},
            scores={name: values[:rows] for name, values in self.scores.items()},
            mia={name: (forget[:rows], holdout[:rows]) for name, (forget, holdout) in self.mia.items()},
        )

    def to_json(self) -> dict[str, Any]:
        """Open-unlearning's layout, aggregates included; NaN becomes null. ``align`` holds what the layout cannot."""
        out: dict[str, Any] = {}
        for name, items in self.sets.items():
            out.update(_set_entries(name, items, self.epsilon))
        forget = self.sets.get("forget", SetLog()).index
        for name, values in self.scores.items():
            index = forget if len(forget) == len(values) else np.arange(len(values))
            out[name] = _entry({"score": values}, index, values)
        out.update(_attack_entries(self.mia))
        out["align"] = {"name": self.name, "rows": self.rows, "epsilon": self.epsilon, **limited(self.limit)}
        return out


@dataclass(frozen=True)
class MuseLog:
    """A MUSE evaluation: ``sets`` by name (``MUSE_SETS``; ROUGE and text only), ``scores`` [n] of the forget set's

    verbatim rows (``SCORES``), ``mia`` and ``limit`` as in ``TofuLog``.
    """

    sets: Mapping[str, SetLog]
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    mia: Attacks = field(default_factory=dict)
    name: str = ""
    notes: tuple[str, ...] = ()
    limit: int | None = None

    @property
    def lacks(self) -> list[str]:
        """Names of the per-item entries that the layout has and this log does not."""
        have = self.to_json().keys()
        return [name for name in (*(f"{name}_ROUGE" for name in MUSE_SETS), *SCORES[:2], *ATTACKS) if name not in have]

    def to_json(self) -> dict[str, Any]:
        """The layout of ``MUSE_EVAL.json``, aggregates included; NaN becomes null."""
        out: dict[str, Any] = {}
        for name, items in self.sets.items():
            out.update(_rouge_entry(f"{name}_ROUGE", items, items.rougeL_f1))
        for name, values in self.scores.items():
            out[name] = _entry({"score": values}, np.arange(len(values)), values)
        out.update(_attack_entries(self.mia))
        out["align"] = {"name": self.name, **limited(self.limit)}
        return out


def _set_entries(name: str, items: SetLog, epsilon: float) -> dict[str, Any]:
    out: dict[str, Any] = {}
    kinds = (
        ("Q_A_Prob", "answer", items.loss),
        ("Q_A_PARA_Prob", "paraphrase", items.para_loss),
        ("Q_A_PERT_Prob", "wrong", items.wrong_loss),
    )
    for suffix, of, loss in kinds:
        probability = items.probability(of)  # type: ignore[arg-type]
        if loss is not None and probability is not None:
            out[f"{name}_{suffix}"] = _entry({"prob": probability, "avg_loss": loss}, items.index, probability)
    normalised = items.normalised(epsilon) if name in ("ra", "wf") else None
    if normalised is not None:
        out[f"{name}_Q_A_Prob_normalised"] = _entry({"prob": normalised}, items.index, normalised)
    out.update(_rouge_entry(f"{name}_Q_A_ROUGE", items, items.rougeL_recall))
    ratio = items.truth_ratio(answer=name in ("ra", "wf"), epsilon=epsilon)
    if ratio is not None:
        side = forget_side(ratio, epsilon) if name == "forget" else truth_side(ratio)
        out["forget_truth_ratio" if name == "forget" else f"{name}_Truth_Ratio"] = _entry(
            {"score": ratio}, items.index, side
        )
    return out


def _rouge_entry(entry: str, items: SetLog, main: np.ndarray | None) -> dict[str, Any]:
    held = {key: getattr(items, key) for key in (*ROUGES, "input", "ground_truth", "generation")}
    columns = {key: value for key, value in held.items() if value is not None}
    return {entry: _entry(columns, items.index, main)} if columns else {}


def _attack_entries(mia: Attacks) -> dict[str, Any]:
    out = {}
    for name, (forget, holdout) in mia.items():
        area = finite(auc(forget, holdout))
        sides = {
            side: _entry({"score": values}, np.arange(len(values)), values)
            for side, values in (("forget", forget), ("holdout", holdout))
        }
        out[name] = {**sides, "auc": area, "agg_value": area}
    return out


def _entry(columns: Mapping[str, Any], index: np.ndarray, main: np.ndarray | None) -> dict[str, Any]:
    known = main[np.isfinite(main)] if main is not None else np.arange(0.0)
    plain = {key: [_plain(value) for value in values] for key, values in columns.items()}
    rows = {str(row): {key: values[i] for key, values in plain.items()} for i, row in enumerate(index.tolist())}
    return {"agg_value": float(known.mean()) if known.size else None, "value_by_index": rows}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value]
    return value if isinstance(value, str) or value is None else finite(value)
