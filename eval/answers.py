"""A model's answers to prompts, one each, drawn by what draws for ``align sample`` and kept as a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.data.rows.files import read_rows
from align.data.rows.values import with_system
from align.data.tokens.samples import Prompt
from align.errors import UserError
from align.models.load import checkpoint_tokenizer
from align.models.weights import weights_digest
from align.outside.files import json_file
from align.outside.limits import JSON
from align.recipe.sampling import Sampling
from align.recipe.sections import Source
from align.runs.directory import differences
from align.runs.files import write_atomically
from align.runs.processes import World
from align.sampling.best_of import sample
from align.sampling.job import Job
from align.sampling.parts import manifest

Say = Callable[[str], Any]


def likeliest(max_new_tokens: int | None, temperature: float | None) -> Sampling:
    """Settings for one answer to each prompt: the likeliest token each time, or draws at a temperature."""
    return Sampling(
        samples=1,
        max_new_tokens=max_new_tokens or 2048,
        temperature=temperature or 1.0,
        top_k=1 if temperature is None else None,
    )


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn; ``template_arguments`` win over those that the model was trained with."""

    sampling: Sampling = field(default_factory=lambda: likeliest(None, None))
    seed: int = 0
    system: str | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)


def draw(model: str, prompts: Sequence[Prompt], file: Path, how: Drawing, world: World, say: Say) -> list[str | None]:
    """The answer to each prompt, drawn where ``file`` is not there yet; None to one that is too long for the model.

    A prompt that is plain text is put as a user's turn where the model knows turns. Every process calls it.

    Raises:
        UserError: as ``align sample`` does, and where the file holds answers that were drawn otherwise.
    """
    asked = _put(prompts, model, say)
    rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in asked)
    about = {
        "model": model,
        "weights": weights_digest(model),
        "seed": how.seed,
        "system": how.system,
        "template_arguments": dict(how.template_arguments),
        "sampling": how.sampling.model_dump(exclude={"batch_size", "server"}),
        "prompts": asked,
    }
    source = file.with_name(f"{file.stem}-prompts.jsonl")

    def begin() -> None:
        if world.rank == 0:
            _same_as_before(file, about)
            write_atomically(source, rows)

    world.together(begin)
    if file.is_file():
        say(f"answers: those of {file}")
    else:
        job = Job(
            source=Source(path=str(source), system=how.system),
            model=model,
            out=file,
            sampling=how.sampling,
            seed=how.seed,
            template_arguments=how.template_arguments,
        )
        sample(job, resume=manifest(file).is_file(), again="when it is made again", say=say)
        world.together(lambda: None)  # the first process writes the file
    found = {json.dumps(row["prompt"], sort_keys=True): _text(row["completion"]) for row in read_rows(file)}
    return [found.get(json.dumps(_with(prompt, how.system), sort_keys=True)) for prompt in asked]


def _put(prompts: Sequence[Prompt], model: str, say: Say) -> list[Prompt]:
    """Prompts as the model is asked: plain text as a user's turn, or as it is where the model knows no turns."""
    if checkpoint_tokenizer(model).chat_template is not None:
        return [[{"role": "user", "content": one}] if isinstance(one, str) else one for one in prompts]
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise UserError(
            f"{model}: its tokenizer has no chat template, and some prompts are messages: give prompts that are text."
        )
    say("note: the tokenizer has no chat template, so the model goes on from the plain instruction")
    return list(prompts)


def _same_as_before(file: Path, about: Mapping[str, Any]) -> None:
    """Write down how answers are drawn, or compare with what is written. Raises ``UserError`` where it differs."""
    note = file.with_name(f"{file.stem}-settings.json")
    cure = f"name another folder with --out, or remove {file.parent}"
    if not note.is_file():
        if file.is_file():
            raise UserError(f"{file} is there, and nothing beside it says how it was drawn: {cure}.")
        write_atomically(note, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        return
    try:
        before = json_file(note, JSON)
    except (OSError, ValueError) as error:
        raise UserError(f"{note} cannot be read ({error}): {cure}.") from error
    changed = list(dict.fromkeys(line.partition(":")[0] for line in differences(before, about)))
    if changed:
        raise UserError(f"{file.parent} holds answers that were drawn otherwise ({', '.join(changed[:3])}): {cure}.")


def _with(prompt: Prompt, system: str | None) -> Prompt:
    return prompt if system is None or isinstance(prompt, str) else with_system(prompt, system)


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[0]["content"])
