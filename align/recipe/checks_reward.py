"""What a recipe that trains a reward model cannot have: it writes nothing, and has no log-probs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.objectives.base import WeightedSum
from align.recipe.checks_unlearning import objective_of
from align.recipe.messages import Path, Problem
from align.recipe.sections import Watch

# keys that ask for text or for log-probs, with what is to be said
_WRITES = "a reward model writes nothing; remove this."
_NO_LOGPROBS = "a reward model is compared with no reference; remove this."
_NOT_FOLLOWED = "no log-probs are followed that could drop; remove this."
_USELESS: Mapping[Path, str] = {
    ("sampling",): _WRITES,
    ("rounds",): _WRITES,
    ("evaluate",): _WRITES,
    ("watch", "generate_every"): _WRITES,
    ("watch", "prompts"): _WRITES,
    ("watch", "probe_pairs"): _NOT_FOLLOWED,
    ("watch", "probe_answers"): _WRITES,
    ("watch", "chosen_drop_nats"): _NOT_FOLLOWED,
    ("watch", "stop_on_drop"): _NOT_FOLLOWED,
    ("watch", "stop_when"): "there is no test suite whose figures it could compare; remove this.",
    ("reference", "rows"): _NO_LOGPROBS,
    ("reference", "sync_every"): _NO_LOGPROBS,
    ("data", "forget"): "a reward model is trained on pairs; name them in data.train.",
}


def reward_checks(raw: Mapping[str, Any]) -> list[Problem]:
    """All complaints about a recipe whose objective scores answers."""
    objective = objective_of(raw.get("objective"))
    if objective is None:
        return []
    parts = [part for part, _ in objective.parts] if isinstance(objective, WeightedSum) else [objective]
    scoring = [part for part in parts if part.scores_answers]
    if not scoring:
        return []
    if len(scoring) < len(parts):
        other = next(type(part).__name__ for part in parts if not part.scores_answers)
        text = f"{type(scoring[0]).__name__} trains a reward model, and {other} reads log-probs, which it has none of; "
        return [Problem(("objective",), f"{text}keep one of them.")]
    return [Problem(path, text) for path, text in _USELESS.items() if _given(raw, path)]


def _given(raw: Any, path: Path) -> bool:
    """Whether a key says something other than its default; a recipe that was written out names all of them."""
    for key in path:
        raw = raw.get(key) if isinstance(raw, Mapping) else None
    usual = Watch.model_fields[str(path[1])].default if path[0] == "watch" else None
    return raw not in (None, False, 0, [], {}, usual)
