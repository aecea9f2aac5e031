"""What a suite file may say: one section for each kind of suite, read as strictly as a recipe. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from align.recipe.sampling import Judge
from align.recipe.sections import Place, Section


class Tofu(Section):
    """What is forgotten of TOFU's people, and what it cost (docs/diagnostics.md)."""

    kind: Literal["tofu"]
    split: str = Field("forget10", min_length=1, description="the forget split; of the generated world: forget")
    source: Place = Field("locuslab/TOFU", description="where its questions are: a Hub id, a folder, or world")
    retain: Place | None = Field(
        None,
        description="what never saw the forgotten rows: a model, a run, or the log of one; null for the run's own log",
    )
    rows: Literal["all", "legacy300"] = Field("all", description="all rows, or the first 300 of each set")


class Muse(Section):
    """What is forgotten of MUSE's texts, and what it cost."""

    kind: Literal["muse"]
    source: Place = Field(description="where its files are: muse-bench/MUSE-News, muse-bench/MUSE-Books, or a folder")
    retain: Place | None = Field(None, description="a model that never saw the forgotten texts, or the log of one")


class Alpaca(Section):
    """AlpacaEval (docs/alpaca-eval.md)."""

    kind: Literal["alpaca"]
    judge: Judge | None = Field(None, description="who compares; null for the --judge of the command line")
    reference: Place | None = Field(None, description="answers to compare with; null for AlpacaEval 2's from the Hub")
    difficulty: Place | None = Field(None, description="difficulties of the instructions; null for the Hub's")
    anchors: Place | None = Field(None, description="rows of the anchor models; null for the Hub's")
    max_new_tokens: int = Field(2048, ge=1, description="most tokens of an answer")
    temperature: float | None = Field(None, gt=0, description="draw at it; null for the likeliest token each time")
    seed: int = Field(0, ge=0, lt=2**32, description="of all draws")


class Consistency(Section):
    """Whether a reward model reads the instruction (docs/reward-models.md)."""

    kind: Literal["consistency"]
    pairs: Place | None = Field(None, description="contrast pairs, as align probe consistency --pairs takes them")
    preferences: Place | None = Field(
        None, description="in their place, preference rows to build them from; null for those that the run held out"
    )


class HeldOut(Section):
    """Whether a model ranks held-out pairs as people did."""

    kind: Literal["preference"]
    pairs: Place | None = Field(None, description="preference rows: a file or a Hub id; null for the run's own")
    reference: Place | None = Field(
        None, description="the model whose log-probs are taken off; null for the one that the run started from"
    )


class Harness(Section):
    """Tasks of lm-evaluation-harness (docs/evaluation.md)."""

    kind: Literal["harness"]
    tasks: list[str] = Field(min_length=1, description="names of tasks or groups, such as mmlu or wmdp")
    include: Place | None = Field(None, description="a folder with tasks of yours; they may hold code: --allow-code")
    shots: int | None = Field(None, ge=0, description="worked examples before each question; null for the task's own")
    chat_template: bool = Field(False, description="whether questions go through the model's chat template")
    batch_size: int = Field(8, ge=1, description="rows that are computed together")


Settings = Tofu | Muse | Alpaca | Consistency | HeldOut | Harness
KINDS: Mapping[str, type[Settings]] = {
    "tofu": Tofu,
    "muse": Muse,
    "alpaca": Alpaca,
    "consistency": Consistency,
    "preference": HeldOut,
    "harness": Harness,
}
