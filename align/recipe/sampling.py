"""Sections of recipes that sample: how, who judges, what is selected, and rounds. And the table of all sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from align.recipe.sections import (
    Alternates,
    ConvexDA,
    Data,
    Evaluate,
    Lora,
    Model,
    Output,
    Place,
    Reference,
    Section,
    Source,
    Watch,
)


def _ends_some(value: str) -> str:
    if not value:
        raise ValueError("it has an empty text, before which every completion would end: take it out.")
    return value


class Server(Section):
    """An OpenAI-compatible server. Its key is read from the environment, and never written anywhere."""

    url: str = Field(min_length=1, description="its base address, such as http://localhost:8000/v1")
    key_env: str = Field("OPENAI_API_KEY", description="environment variable with the key; unset for servers without")
    concurrency: int = Field(8, ge=1, description="calls under way at a time")
    timeout: float = Field(120.0, gt=0, description="seconds until a call counts as failed")
    retries: int = Field(5, ge=0, description="times that a failed call is made again, each after a longer pause")


class Sampling(Section):
    """Completions drawn from the policy. Draws depend on seed, step, prompt, sample and position alone."""

    samples: int = Field(4, ge=1, description="completions of each prompt")
    max_new_tokens: int = Field(128, ge=1, description="most tokens of a completion; longer ones are cut and marked")
    temperature: float = Field(1.0, gt=0, description="logits are divided by it")
    top_p: float = Field(1.0, gt=0, le=1, description="draw from the likeliest tokens that have this much together")
    top_k: int | None = Field(None, ge=1, description="draw from so many likeliest tokens; null for all")
    min_p: float | None = Field(
        None, gt=0, lt=1, description="leave out tokens below this share of the likeliest one's"
    )
    stop: list[Annotated[str, AfterValidator(_ends_some)]] = Field(
        [], description="a completion ends before the first of these texts"
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="completions that a process draws at a time; null for as many as the free memory of a GPU holds, "
        "and 32 on a CPU. In 16 bits a batch's shape moves the last bits: a run that shall repeat there sets a number",
    )
    server: Server | None = Field(
        None, description="let a server draw that serves the policy of the round (rounds and align sample only)"
    )


class Endpoint(Server):
    """A language model behind an OpenAI-compatible server that says which of two answers is better."""

    model: str = Field(min_length=1, description="the model's name there")
    template: Place | None = Field(
        None, description="a file with the question that is put, with {prompt}, {a} and {b}; null for ours"
    )
    max_calls: int = Field(
        10_000,
        ge=1,
        description="most calls of a run, over all processes and resumes, retries too; a batch beyond is not begun",
    )
    price_in: float = Field(0.0, ge=0, description="price of a million tokens read, for the estimate shown first")
    price_out: float = Field(0.0, ge=0, description="price of a million tokens written")
    cache: Place | None = Field(
        None, description="folder that keeps answers, beside the recipe; by default in the user's cache"
    )


class Fusion(Section):
    """RewardFusion: a score is averaged with those of training answers that say about the same."""

    corpus: Source = Field(description="rows whose preferred answers are compared with: those the judge was trained on")
    neighbours: int = Field(5, ge=1, description="most of them that count for an answer")
    similarity: float = Field(0.9, gt=0, le=1, description="least cosine similarity of a neighbour")
    encoder: Place | None = Field(
        None, description="a sentence encoder, a folder or a Hub id; null compares the words that texts share (TF-IDF)"
    )


class Judge(Section):
    """Who scores or compares completions: exactly one of these."""

    reward: Place | None = Field(None, description="a reward model: a folder or a Hub id with one score per sequence")
    pair: Place | None = Field(
        None, description="a model that compares two answers, in RLHFlow's pair-preference layout"
    )
    endpoint: Endpoint | None = Field(None, description="a language model behind an OpenAI-compatible server")
    function: str | None = Field(
        None, description="MODULE:FUNCTION of yours; code is only run with --allow-code on the command line"
    )
    fusion: Fusion | None = Field(None, description="average scores with those of similar training answers")
    revision: str | None = Field(None, description="commit, tag or branch of a model on the Hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="type of a model's weights")


class Select(Section):
    """Which completions are trained on."""

    how: Literal["best_worst", "tournament", "top"] = Field(
        "best_worst",
        description="best_worst: a pair of the highest and the lowest score; tournament: a pair found by comparisons; "
        "top: the highest scores alone",
    )
    keep: int = Field(1, ge=1, description="with top: how many of each prompt")
    length_penalty: float = Field(0.0, ge=0, description="taken off a score for each natural log of its characters")


class Rounds(Section):
    """Sample, judge, select and train, again and again; each round starts from the last one's policy."""

    count: int = Field(3, ge=1, description="how many")
    prompts: int | None = Field(None, ge=1, description="fresh prompts of each; null shares all out evenly")
    reference: Literal["initial", "previous"] = Field(
        "previous",
        description="the reference of losses that have one: the policy before the first round, or before this one",
    )
    load: Literal["each", "sharded", "first"] = Field(
        "each",
        description="models that sample, judge or score: each: whole on every process; sharded: the policy is cut up "
        "over them, the judge is on the first; first: the first process does it all, the others wait",
    )
    keep_checkpoints: bool = Field(
        False, description="keep the checkpoints of rounds that are finished; their models are kept in any case"
    )


SECTIONS: Mapping[tuple[str, ...], type[Section]] = {
    ("output",): Output,
    ("model",): Model,
    ("model", "lora"): Lora,
    ("data",): Data,
    ("data", "train"): Source,
    ("data", "forget"): Source,
    ("data", "retain"): Source,
    ("data", "alternates"): Alternates,
    ("data", "held_out"): Source,
    ("data", "convex"): ConvexDA,
    ("evaluate",): Evaluate,
    ("evaluate", "source"): Source,
    ("reference",): Reference,
    ("watch",): Watch,
    ("sampling",): Sampling,
    ("sampling", "server"): Server,
    ("judge",): Judge,
    ("judge", "endpoint"): Endpoint,
    ("judge", "fusion"): Fusion,
    ("judge", "fusion", "corpus"): Source,
    ("select",): Select,
    ("rounds",): Rounds,
}
