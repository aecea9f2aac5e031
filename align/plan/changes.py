"""What makes a run fit that does not: the smallest changes first, each planned by the same model with it made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from align.errors import UserError
from align.plan.plan import Plan, plan_of
from align.plan.shares import Launch
from align.recipe import Recipe

if TYPE_CHECKING:
    from align.data.load import Data

_FROZEN = (("elements", "trained"), ("bytes", "trained_bytes"))
_PROCESSES = (2, 4, 8, 16, 32, 64)


class Change(NamedTuple):
    """A change, as one writes it, and the plan with it."""

    text: str
    plan: Plan


def changes(recipe: Recipe, data: Data, plan: Plan) -> list[Change]:
    """Changes that need less memory than ``plan``, in the order in which they should be tried.

    Those on the run's own settings come first, each alone, then added up, then more processes. The last one fits, if
    any does; what comes behind it is not looked at.
    """
    found: list[Change] = []
    best, made = plan, recipe
    for text, values in _settings(recipe, plan):
        changed = _changed(made, values)
        try:
            now = plan_of(changed, data, plan.launch, plan.device)
        except UserError:  # such as a row that is longer than the budget
            continue
        if now.need >= best.need or ("model.load_in" in values and not now.fits):
            continue  # quantised weights cannot be shared out: they are of use where nothing else has to be
        so_far = f"{found[-1].text}, {text}" if found else text
        best, made = now, changed
        found.append(Change(so_far, now))
        if now.fits:
            return found
    for launch in _launches(plan):
        if made.model.load_in is not None:
            break
        now = plan_of(made, data, launch, plan.device)
        if now.fits:
            words = f"align launch FILE --on {launch.name} --processes {launch.processes}"
            return [*found, Change(f"{found[-1].text}, and {words}" if found else words, now)]
    return found


def _settings(recipe: Recipe, plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """Changes of a recipe: what changes no result first, then what trains less, then what rounds more."""
    train, model = recipe.train, recipe.model
    longest = max(example.tokens() for example in plan.batches.largest.examples)
    tokens = plan.batches.tokens
    for budget in dict.fromkeys((tokens // 2, tokens // 4, longest)):
        if longest <= budget < tokens and not plan.batches.guessed:
            yield f"train.max_tokens_per_microbatch={budget}", {"train.max_tokens_per_microbatch": budget}
    if train.get("activation_checkpointing", train.get("gradient_checkpointing")) is not True:
        yield "train.activation_checkpointing=true", {"train.activation_checkpointing": True}
    if plan.memory.copied and recipe.watch.probe_answers and recipe.reference.store:
        text = "watch.probe_answers=0 once the store has all reference rows"
        yield text, {"watch.probe_answers": 0}
    elif plan.memory.phase == "sampling" and recipe.watch.probe_answers and recipe.evaluate is None:
        yield "watch.probe_answers=0", {"watch.probe_answers": 0}
    if model.lora is None and model.train_only is None:
        yield "model.lora={}", {"model.lora": {}}
        # of what the adapter leaves as it is: weights that are all trained would stand still in 16 bits
        yield "model.dtype=bfloat16", {"model.lora": {}, "model.dtype": "bfloat16"}
    elif model.lora is not None and _frozen_are_wide(plan):
        yield "model.dtype=bfloat16", {"model.dtype": "bfloat16"}
    if plan.device.kind != "cpu" and model.load_in is None and model.train_only is None:
        yield "model.load_in=4bit", {"model.load_in": "4bit"}


def _frozen_are_wide(plan: Plan) -> bool:
    """Whether weights that an adapter leaves as they are take more than 16 bits."""
    count, size = (plan.memory.weights.sum(whole) - plan.memory.weights.sum(of) for whole, of in _FROZEN)
    return size > 2 * count


def _launches(plan: Plan) -> Iterator[Launch]:
    """More processes, weights shared out."""
    if plan.device.kind == "cpu":
        return
    for processes in _PROCESSES:
        if processes > plan.launch.processes or (processes == plan.launch.processes and plan.launch.kind == "ddp"):
            yield Launch("fsdp2", processes, "fsdp2")


def _changed(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """The recipe with keys changed, checked again."""
    raw = recipe.model_dump(mode="python", exclude_unset=True)
    raw["objective"] = recipe.dump()["objective"]
    for key, value in values.items():
        section, name = key.split(".")
        raw[section] = {**raw.get(section, {}), name: value}
    changed = Recipe.from_dict(raw, base=recipe.base, allow_code=True)
    changed._path = recipe.path
    return changed
