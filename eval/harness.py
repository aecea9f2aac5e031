"""lm-evaluation-harness through its Python interface: its own figures, with versions and hashes of what was asked."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from align.errors import UserError, told
from align.eval.kept import Kept
from align.eval.result import Result
from align.models.load import load_checkpoint
from align.runs.memory import answered, explained
from align.stats import Interval, finite, wilson
from align.versions import OPTIONAL, installed

_CURE = "Lower batch_size in a copy of the suite file, or measure where more memory is free."


class Harnessed(NamedTuple):
    """lm-eval's figures with its standard errors, ``errors``.

    ``main`` are those of the tasks that were named, ``tasks`` says what each task asked.
    """

    result: Result
    main: tuple[str, ...]
    tasks: dict[str, dict[str, Any]]
    errors: dict[str, float]


def require_harness(who: str) -> None:
    """Refuse to go on without lm-eval; ``who`` needs it. Raises ``UserError``."""
    if installed("lm_eval") is None:
        raise UserError(f"{who} needs lm-eval: {OPTIONAL['lm_eval'][1]}.")


def evaluate(
    model: str,
    names: Sequence[str],
    *,
    kept: Kept,
    weights: str,
    device: torch.device,
    include: str | None = None,
    shots: int | None = None,
    chat_template: bool = False,
    batch_size: int = 8,
    limit: int | None = None,
) -> Harnessed | None:
    """Every metric of tasks and groups, as ``lm_eval.simple_evaluate`` gives it. None on all processes but the first.

    Args:
        kept: where answers are kept; ``weights`` is the digest of the model by which they are known.
        include: a folder with tasks of the user's own, whose code is run.
        shots: worked examples; None for each task's own number.
        limit: only so many rows of each task.

    Raises:
        UserError: where a task or its data cannot be had, or lm-eval cannot go on.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval import simple_evaluate

    from align.eval.harness_model import KeptLM, Tasks, only_our_lines

    tasks = Tasks.named(names, include)
    tasks.load(names)  # before the weights, which take longer
    loaded, tokenizer = load_checkpoint(model)
    if chat_template and not tokenizer.chat_template:
        raise UserError(f"chat_template is true, and the tokenizer of {model} has none.")
    about = [weights, str(loaded.dtype)]
    lm = KeptLM(loaded.to(device).eval(), tokenizer, kept, about, batch_size=batch_size)
    with answered(explained("while lm-eval's tasks were answered", _CURE)), only_our_lines():
        try:
            found = simple_evaluate(
                model=lm,
                tasks=list(names),
                num_fewshot=shots,
                limit=limit,
                apply_chat_template=chat_template,
                task_manager=tasks,
            )
        except (ValueError, TypeError, LookupError, AssertionError, OSError) as error:
            raise UserError(f"lm-eval cannot go on ({told(error)}).") from error
    if found is None:
        return None
    settings = {"shots": shots, "chat_template": chat_template, "batch_size": batch_size}
    return _measured(f"lm-eval, {model}", names, settings, limit, found)


def _measured(
    name: str, names: Sequence[str], settings: dict[str, Any], limit: int | None, found: Mapping[str, Any]
) -> Harnessed:
    """lm-eval's results as values with intervals and items."""
    counts = found["n-samples"]
    cut = any(count["effective"] < count["original"] for count in counts.values())
    result = Result(name, settings, limit=limit if cut else None)
    main, errors = [], {}
    for task, values in {**found["results"], **found.get("groups", {})}.items():
        below = found.get("group_subtasks", {}).get(task) or [task]
        n = counts[task]["effective"] if task in counts else _samples(below, found)
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or finite(value) is None:
                continue
            title = f"{task} {metric}" + ("" if kind == "none" else f" ({kind})")
            result.values[title] = float(value)
            items = _items(found["samples"].get(task, ()), metric, kind)
            error = finite(values.get(f"{metric}_stderr,{kind}"))
            if error is not None:
                errors[title] = error
                result.intervals[title] = _interval(float(value), error, n, items)
            if items:
                result.items[title] = items
            if task in names:
                main.append(title)
    about = {task: _about(task, found) for task in found["samples"]}
    return Harnessed(result, tuple(main or result.values), about, errors)


def _interval(value: float, error: float, n: int, items: Mapping[str, float]) -> Interval:
    """Of a share of rows Wilson's, which holds no impossible value and is not empty where all rows are alike.

    Of other means, and of groups, 1.96 of lm-eval's standard errors to both sides.
    """
    hits = sum(items.values())
    if len(items) == n and set(items.values()) <= {0.0, 1.0} and math.isclose(hits / n, value, abs_tol=1e-9):
        return wilson(hits, n)
    return Interval(value, value - 1.96 * error, value + 1.96 * error, n)


def _samples(names: list[str], found: Mapping[str, Any]) -> int:
    """Rows of the tasks of a group, and of groups in it."""
    counts, groups = found["n-samples"], found.get("group_subtasks", {})
    return sum(counts[name]["effective"] if name in counts else _samples(groups.get(name, []), found) for name in names)


def _items(samples: Any, metric: str, kind: str) -> dict[str, float]:
    """Values of a metric by row; none for a metric that is no number of each row."""
    return {
        f"{one['doc_id']} {one['doc_hash'][:12]}": float(one[metric])
        for one in samples
        if one["filter"] == kind and isinstance(one.get(metric), int | float)
    }


def _about(task: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """What a task asked: its version, and digests of its configuration and of all its rows, as lm-eval makes these."""
    config = json.loads(json.dumps(found["configs"][task], default=str))
    (config.get("metadata") or {}).pop("config_source", None)  # where it lies on a machine
    first = found["samples"][task][0]["filter"]
    rows = "".join(
        one["doc_hash"] + one["prompt_hash"] + one["target_hash"]
        for one in found["samples"][task]
        if one["filter"] == first
    )
    return {
        "version": found["versions"].get(task),
        "shots": found["n-shot"].get(task),
        "rows": found["n-samples"][task]["effective"],
        "of": found["n-samples"][task]["original"],
        "config": _sha(json.dumps(config, sort_keys=True)),
        "samples": _sha(rows),
        "higher_is_better": found["higher_is_better"].get(task),
    }


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
