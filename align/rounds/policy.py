"""The policy of a round: which it is, how processes load it, and the recipe that trains it on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from align.compat import loaded_whole
from align.data.tokens.tokenize import load_tokenizer
from align.errors import UserError
from align.models.policy import load_model
from align.models.sharded import shard
from align.recipe import Recipe
from align.recipe.sections import Lora, Model
from align.reference.digest import model_digest
from align.runs.damage import reading
from align.runs.directory import RunDirectory
from align.runs.files import write_atomically
from align.runs.processes import World, free

PAIRS = "pairs.parquet"
TRAIN = "train"
_POLICY = "policy.json"


def round_folder(run: Path, number: int) -> Path:
    """Where the files of a round are; the first is round 1."""
    return run / "rounds" / f"{number:02d}"


def policy_section(recipe: Recipe, run: Path, number: int) -> Model:
    """The model section of the policy at the start of a round: the recipe's own, or what the last round trained."""
    if number == 1:
        return recipe.model
    trained = str((round_folder(run, number - 1) / TRAIN / "model").resolve())
    if recipe.model.lora is not None:  # the same adapter goes on; what is under it never changes
        return recipe.model.model_copy(update={"lora": Lora(adapter=trained)})
    return recipe.model.model_copy(update={"id": trained, "revision": None})


@contextlib.contextmanager
def loaded(recipe: Recipe, run: Path, number: int, world: World, say: Callable[[str], Any]) -> Iterator[list[Any]]:
    """The policy at the start of a round and its tokenizer on every process, and gone afterwards.

    It is whole, or where ``rounds.load`` is ``sharded`` and there are others, cut up over them: they load it in turns,
    so that only one whole copy is in memory at a time.

    They come as a list that is emptied at the end: pass them on, since a name of one's own would keep the model in
    memory. All processes call it together.

    Raises:
        UserError: where it cannot be loaded, or is another than it was when the round began.
    """
    section = policy_section(recipe, run, number)
    cut_up = is_sharded(recipe, world)
    found: list[Any] = []

    def load() -> None:
        tokenizer = load_tokenizer(section, base=recipe.base)
        with loaded_whole():
            model = load_model(section, base=recipe.base)
        if world.rank == 0:
            _remember(round_folder(run, number) / _POLICY, model_digest(model, adapters=True, compute_dtype=""))
        if cut_up:
            share, whole = shard(model, world.device)
            say(
                f"the policy is cut up over {world.size} processes: {share / 1e6:,.1f} of {whole / 1e6:,.1f} MB on each"
            )
        elif not section.load_in:  # a quantised one is on its device already
            model = model.to(world.device)
        found.extend((model.eval(), tokenizer))

    for turn in range(world.size) if cut_up else [world.rank]:
        world.together(load if turn == world.rank else lambda: None)
    try:
        yield found
    finally:
        found.clear()
        free()


def is_sharded(recipe: Recipe, world: World) -> bool:
    """Whether models are cut up over the processes."""
    assert recipe.rounds is not None
    return recipe.rounds.load == "sharded" and world.size > 1


def policy_digest(recipe: Recipe, run: Path, number: int) -> str:
    """Digest of the policy at the start of a round, on every process; loads it once, on the first one."""
    file = round_folder(run, number) / _POLICY
    if not file.exists():
        with loaded_whole():
            model = load_model(policy_section(recipe, run, number), base=recipe.base)
        _remember(file, model_digest(model, adapters=True, compute_dtype=""))
    with reading(file):
        return str(json.loads(file.read_bytes())["digest"])


def begins_at_zero(recipe: Recipe, number: int) -> bool:
    """Whether margins of a round's training are 0 at its start: whether they are measured from its own policy."""
    assert recipe.rounds is not None
    return number == 1 or (recipe.rounds.reference == "previous" and "initial" not in recipe.objective_value().anchors)


def train_recipe(recipe: Recipe, run: Path, number: int, warmup: int) -> Recipe:
    """The ordinary recipe of a round's training; ``warmup`` is how many of its steps warm up."""
    assert recipe.rounds is not None
    folder = round_folder(run, number)
    raw = recipe.dump()
    for name in ("sampling", "judge", "select", "rounds"):
        del raw[name]
    section = policy_section(recipe, run, number)
    raw["model"] = section.model_dump()
    if section.lora is not None and section.lora.adapter is not None:
        raw["model"]["lora"] = {"adapter": section.lora.adapter}
    raw["name"] = f"{recipe.name}-{number:02d}"
    raw["seed"] = (recipe.seed + number) % 2**32
    # rows are whole answers with the log-probs of whole answers: none is cut
    raw["data"] = {
        "train": {"path": str((folder / PAIRS).resolve())},
        "max_length": recipe.data.max_length,
        # with the date of the first round; a lock file of an older version has none
        "template_arguments": RunDirectory(run).lock.get("template_arguments", recipe.data.template_arguments),
    }
    raw["objective"] = recipe.objective
    raw["reference"] = {"rows": recipe.rounds.reference} if recipe.objective_value().needs_reference else {}
    raw["output"] = str(folder / TRAIN)
    # a short round has a loss to show, too
    raw["train"] = {"logging_first_step": True, **raw["train"], "warmup_steps": warmup}
    return Recipe.from_dict(raw, name=recipe.path.name if recipe.path else "recipe", base=recipe.base)


def _remember(file: Path, digest: str) -> None:
    """Write down a policy's digest, or compare it with what was written down."""
    if not file.exists():
        write_atomically(file, json.dumps({"digest": digest}) + "\n")
        return
    with reading(file):
        before = json.loads(file.read_bytes())["digest"]
    if before != digest:
        raise UserError(
            f"{file.parent}: the policy that this round was begun with has changed. Put it back (pin model.revision "
            "for one on the Hub), or start anew."
        )
