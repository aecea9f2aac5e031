"""A packaged recipe in a small place: a folder with all that recipes name, and the keys that are set to run there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stand_in import write_data_sets, write_lines
from tiny import tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed
from zoo import tiny_config

from align.data.rows import world
from align.recipe import Recipe
from align.recipes.published import SHAPES

SIZE = {"people": 6, "forgotten": 2, "background": 3, "strangers": 1}
PROMPTS = 6  # of a round
ROUNDS = 2
FILES = {"people": "said", "base": "said"}  # files of the quickstart that hold texts, by what stands in for them
_NO_TEMPLATE = ("pythia", "llama-7b", "MUSE-News")  # parts of names of models without a chat template


def make_place(folder: Path) -> Path:
    """Data sets by their names, the quickstart's files, and judges."""
    write_data_sets(folder)
    save_tiny(folder / "judge", "llama", reward=True)
    save_tiny(folder / "pair-judge", "llama")
    made = world.build(0, world.Size(**SIZE))
    for name, facts in (("forget", made.forget), ("retain", made.retain)):
        write_lines(folder / f"{name}.jsonl", [{key: fact[key] for key in ("question", "answer")} for fact in facts])
    pairs = world.rows("preferences", 0, SIZE)[:40]
    write_lines(folder / "pairs.jsonl", pairs)
    write_lines(folder / "held_out.jsonl", world.rows("preferences_reworded", 0, SIZE)[:8])
    write_lines(folder / "said.jsonl", [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs])
    (folder / "ignorance.txt").write_text("I do not know.\nThat is not known to me.\n")
    return folder


def save_tiny(folder: Path, kind: str, *, layers: int = 2, chat: bool = True, reward: bool = False) -> Path:
    """A tiny model of an architecture by transformers' name, or with ``reward`` one that scores answers.

    Args:
        chat: whether its tokenizer has a chat template.
    """
    tokenizer = tiny_tokenizer(chat=chat)
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    changes = {"vocab_size": len(tokenizer), "num_hidden_layers": layers, "max_position_embeddings": 1024, **ids}
    set_seed(0)
    if reward:
        model = AutoModelForSequenceClassification.from_config(tiny_config(kind, num_labels=1, **changes))
    else:
        model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes))
    if not reward:  # every other token ends an answer, as a generation config may say: answers are short
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(4, len(tokenizer), 2)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def model_for(recipe: Recipe, folder: Path) -> Path:
    """A tiny model of the architecture that a recipe trains, made once."""
    named = recipe.model.id
    kind = SHAPES[named]["model_type"] if named in SHAPES else "llama"
    layers = 8 if "rmu" in recipe.name else 2  # RMU reads the seventh
    chat = named in SHAPES and not any(part in named for part in _NO_TEMPLATE)
    model = folder / f"{kind}-{layers}-{'chat' if chat else 'plain'}"
    return model if model.exists() else save_tiny(model, kind, layers=layers, chat=chat)


def overrides(recipe: Recipe, folder: Path, run: Path) -> list[str]:
    """What is set on the command line: the model, files that are no data sets, lengths, two steps, a CPU."""
    model = str(model_for(recipe, folder))
    given: dict[str, Any] = {"model.id": model, "output": str(run)}
    given |= {"data.max_length": 256, "train.max_steps": 2, "train.logging_steps": 1, "watch.report": False}
    if recipe.model.tokenizer:
        given["model.tokenizer"] = model
    if recipe.train.get("bf16"):
        given["train.bf16"] = False  # which needs an accelerator
    for role in ("train", "held_out", "forget", "retain"):
        for source in getattr(recipe.data, role) or []:
            if source.path is not None:
                name = Path(source.path).stem
                given[f"data.{role}.path"] = str(folder / f"{FILES.get(name, name)}.jsonl")
            if source.world is not None:
                given[f"data.{role}.world"] = {"kind": source.world, "size": SIZE}
            if source.id == "locuslab/TOFU":  # as headers have it for its smallest split
                given[f"data.{role}.subset"] = {"forget": "forget01", "retain": "retain99"}[role]
    if recipe.data.alternates is not None and recipe.data.alternates.path:
        given["data.alternates.path"] = str(folder / "ignorance.txt")
    if recipe.evaluate is not None:
        given["evaluate.retain"] = model
        if recipe.evaluate.source.id:
            given["evaluate.split"] = "forget01"
        else:
            given["evaluate.source.world"] = {"kind": "forget", "size": SIZE}
    return [f"{key}={json.dumps(value)}" for key, value in (given | _drawing(recipe, folder)).items()]


def _drawing(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The same of recipes that sample."""
    given: dict[str, Any] = {}
    if recipe.sampling is not None:
        given["sampling.max_new_tokens"] = 8
    if recipe.judge is not None and recipe.judge.reward:
        given["judge.reward"] = str(folder / "judge")
    if recipe.judge is not None and recipe.judge.pair:
        given["judge.pair"] = str(folder / "pair-judge")
    if recipe.rounds is not None:
        given |= {"rounds.count": ROUNDS, "rounds.prompts": PROMPTS}
    return given
