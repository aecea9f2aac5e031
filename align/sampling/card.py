"""The card of a data set that ``align sample`` wrote: which model drew it, how, from what, and what was kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from align import __version__
from align.data.rows.sources import source_name
from align.recipe.sampling import Judge
from align.sampling.job import Job
from align.sampling.result import Result


def data_card(job: Job, digest: str, result: Result) -> str:
    """The card as Markdown with the Hub's header. No text of a model or of a prompt enters it, nor does a folder.

    Args:
        digest: of the weights that drew.
    """
    name = job.out.name
    drawn = job.sampling.model_dump(exclude={"batch_size", "server"}, exclude_none=True)
    source = source_name(job.source)
    facts: dict[str, Any] = {
        "model": f"{_name(job.model)} (digest {digest[:16]})",
        "prompts": Path(source).name if job.source.path else source,
        "rows": result.rows,
        "of prompts": result.prompts,
        "kept": job.keep if job.amount is None else f"{job.keep}:{job.amount:g}",
        "judge": "none" if job.judge is None else _judge(job.judge),
        "length penalty": job.length_penalty,
        "seed": job.seed,
        "drawn by": "align" if job.sampling.server is None else "a server",
        **{key.replace("_", " "): value for key, value in drawn.items() if value != []},
    }
    head = ["---", "tags: [align, synthetic]", "configs:", "- config_name: default", "  data_files:"]
    head += ["  - split: train", f"    path: {json.dumps(name)}", "---"]
    lines = [*head, "", f"# {_plain(name)}", "", f"Answers that a model drew, written by align {__version__}.", ""]
    lines += [f"- {key}: `{_plain(value)}`" for key, value in facts.items()]
    lines += ["", "## Result", "", "```", *replace(result, out=name).lines(), "```", "", "## Limits", ""]
    lines += [
        "The answers are a model's: nobody has looked whether they are true or harmless. The licences of the model and "
        "of the prompts hold for them too.",
    ]
    return "\n".join(lines) + "\n"


def _judge(judge: Judge) -> str:
    """Who judged, without addresses."""
    if judge.endpoint is not None:
        return f"endpoint, model {judge.endpoint.model}"
    kind, value = next(iter(judge.model_dump(exclude_none=True, include={"reward", "pair", "function"}).items()))
    return f"{kind} {value if kind == 'function' else _name(str(value))}"


def _name(model: str) -> str:
    """A model by its id, or by the name of its folder alone."""
    return Path(model).resolve().name if Path(model).exists() else model


def _plain(value: Any) -> str:
    """A value on one line that ends no code."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)
    return "".join(c if c.isprintable() and c != "`" else " " for c in text)
