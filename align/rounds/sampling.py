"""The samples of a round, drawn here or by a server, part by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from align.compat import loaded_whole
from align.data.tokens.tokenize import load_tokenizer
from align.models.policy import load_model
from align.recipe import Recipe
from align.rounds.policy import policy_digest, policy_section
from align.rounds.stages import Round, draw_part, keyed
from align.runs.models import located
from align.runs.processes import World, free
from align.runs.terminal import Work
from align.sampling.sampler import Sampler
from align.sampling.served import require_fit
from align.sampling.server import ServerSampler
from align.sampling.serving import policy_name

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


def draw_by_server(
    recipe: Recipe, run: Path, now: Round, todo: Sequence[Sequence[int]], world: World, say: Say
) -> None:
    """Let the recipe's server draw the parts of every process, once it is seen to serve the policy of this round.

    All processes call it together. The first one scores a few samples, where no accelerator is needed for it: the
    server may have that.
    """
    missing = [prompt for parts in todo for part in parts for prompt in now.of_part(part)]

    def check() -> None:
        if world.rank == 0:
            sampler = _sampler(recipe, run, now, say)
            sampler.prepare([prompt["prompt_ids"] for prompt in now.prompts])
            with loaded_whole():
                model = load_model(policy_section(recipe, run, now.number), base=recipe.base)
            require_fit(sampler, model, *keyed(missing), now.number, say)

    world.together(check)
    free()
    world.together(lambda: _ask_server(recipe, run, now, todo[world.rank], say))


def _ask_server(recipe: Recipe, run: Path, now: Round, parts: Sequence[int], say: Say) -> None:
    assert recipe.sampling is not None
    sampler = _sampler(recipe, run, now, say)
    with _drawing(recipe, now, parts) as work:
        for part in parts:
            draw_part(now, part, sampler)
            work.add(len(now.of_part(part)) * recipe.sampling.samples)


def _sampler(recipe: Recipe, run: Path, now: Round, say: Say) -> ServerSampler:
    """The recipe's server as what draws from the policy of a round."""
    assert recipe.sampling is not None
    section = policy_section(recipe, run, now.number)
    adapter = section.lora.adapter if section.lora is not None else None
    return ServerSampler(
        recipe.sampling,
        load_tokenizer(section, base=recipe.base),
        recipe.seed,
        policy_name(policy_digest(recipe, run, now.number)),
        cache=now.folder / "server",
        checkpoint=located(adapter or section.id, recipe.base),
        say=say,
    )


def _drawing(recipe: Recipe, now: Round, parts: Sequence[int]) -> Work:
    assert recipe.sampling is not None
    return Work("completions drawn", sum(len(now.of_part(part)) for part in parts) * recipe.sampling.samples)
