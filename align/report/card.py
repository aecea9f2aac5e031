"""The model card: what was trained, from what, how, with which result, and what is not known. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCardData

from align.objectives import OBJECTIVES, Objective, WeightedSum, name_of


@dataclass(frozen=True)
class CardFacts:
    """What a card states. ``settings`` and ``versions`` are printed as they come; ``verdict`` as ``Verdict.lines``."""

    name: str
    objective: Objective
    base_model: str | None = None
    adapter: bool = False
    data: Sequence[str] = ()
    settings: Mapping[str, Any] | None = None
    versions: Mapping[str, Any] | None = None
    verdict: Sequence[str] = ()
    tags: Sequence[str] = ("align", "trl")


def model_card(facts: CardFacts) -> str:
    """The card as Markdown with the Hub's header. Text of models and data does not enter it."""
    header = ModelCardData(
        library_name="peft" if facts.adapter else "transformers",
        base_model=facts.base_model,
        tags=sorted({*facts.tags, *(name for name, _ in parts(facts.objective) if name in OBJECTIVES)}),
        pipeline_tag="text-generation",
    )
    lines = ["---", header.to_yaml(), "---", "", f"# {facts.name}", ""]
    origin = f"`{facts.base_model}`" if facts.base_model else "a model of the author's own"
    what = "An adapter for" if facts.adapter else "Fine-tuned from"
    lines += [f"{what} {origin}, trained with align on the following objective.", ""]
    for name, objective in parts(facts.objective):
        fields = ", ".join(f"{k} = {v}" for k, v in vars(objective).items())
        lines += [f"- **{objective.title or name}** (`{name}`: {fields})"]
        lines += [f"  {text}" for text in (objective.equation, objective.paper) if text]
    if facts.data:
        lines += ["", "## Data", "", *(f"- {line}" for line in facts.data)]
    lines += ["", "## Result", ""]
    lines += ["```", *facts.verdict, "```"] if facts.verdict else ["Training had not ended when this card was written."]
    if facts.settings:
        lines += ["", "## Settings", "", *(f"- {key}: {value}" for key, value in facts.settings.items())]
    if facts.versions:
        lines += ["", "## Versions", "", ", ".join(f"{k} {v}" for k, v in facts.versions.items() if v)]
    lines += [
        "",
        "## Limits",
        "",
        "One seed. The result says where its numbers come from; what else this model does was not measured.",
    ]
    return "\n".join(lines) + "\n"


def parts(objective: Objective) -> list[tuple[str, Objective]]:
    """Recipe names and values of the objectives that are added up."""
    if isinstance(objective, WeightedSum):
        return [pair for part, _ in objective.parts for pair in parts(part)]
    return [(name_of(type(objective)), objective)]
