"""The samples of a round, drawn here or by a server, part by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from align.data.tokens.tokenize import load_tokenizer
from align.recipe import Recipe
from align.rounds.policy import policy_digest, policy_section
from align.rounds.stages import Round, draw_part
from align.runs.models import located
from align.runs.processes import World
from align.runs.terminal import Work
from align.sampling.sampler import Sampler
from align.sampling.server import ServerSampler, policy_name

Say = Callable[[str], Any]


def draw_parts(
    recipe: Recipe,
    now: Round,
    parts: Sequence[int],
    world: World,
    policy: Sequence[Any],
    say: Say,
    *,
    calls: int | None = None,
) -> None:
    """Draw parts here.

    Args:
        policy: the model and its tokenizer; see ``loaded``.
        calls: times that all processes call the model, in step with each other; None where each works for itself.
    """
    assert recipe.sampling is not None
    model, tokenizer = policy
    sampler = Sampler(recipe.sampling, tokenizer, recipe.seed, say=say)
    with torch.no_grad(), world.autocast(), _drawing(recipe, now, parts) as work:
        draw = partial(sampler, model, device=world.device, in_step=calls is not None, drawn=work.add)
        for part in parts:
            draw_part(now, part, draw)
        for _ in range(len(parts), calls or 0):
            draw([], [], now.number)


def ask_server(recipe: Recipe, run: Path, now: Round, parts: Sequence[int], say: Say) -> None:
    """Let the recipe's server draw parts; it must serve the policy of this round."""
    assert recipe.sampling is not None
    section = policy_section(recipe, run, now.number)
    adapter = section.lora.adapter if section.lora is not None else None
    sampler = ServerSampler(
        recipe.sampling,
        load_tokenizer(section, base=recipe.base),
        recipe.seed,
        policy_name(policy_digest(recipe, run, now.number)),
        cache=now.folder / "server",
        checkpoint=Path(located(adapter or section.id, recipe.base)),
        say=say,
    )
    with _drawing(recipe, now, parts) as work:
        for part in parts:
            draw_part(now, part, sampler, lambda: sampler.last_logps)
            work.add(len(now.of_part(part)) * recipe.sampling.samples)


def _drawing(recipe: Recipe, now: Round, parts: Sequence[int]) -> Work:
    assert recipe.sampling is not None
    return Work("completions drawn", sum(len(now.of_part(part)) for part in parts) * recipe.sampling.samples)
