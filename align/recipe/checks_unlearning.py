"""Contradictions in recipes that forget, and in those that run a test suite; see ``recipe_checks``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.objectives.base import Objective, sources_of
from align.recipe.messages import Path, Problem
from align.recipe.objective import combined, parse_objective
from align.recipe.stop_rule import METRICS, StopRule


def unlearning_checks(raw: Mapping[str, Any]) -> list[Problem]:
    """All complaints about ``data.forget`` and what goes with it, ``evaluate`` and ``watch.stop_when``."""
    return [*_rows(raw), *_suite(raw), *_stop_when(raw)]


def _section(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = raw.get(name)
    return value if isinstance(value, Mapping) else {}


def objective_of(section: Any) -> Objective | None:
    """What an ``objective`` section means, or None where it is missing or not valid (others say so)."""
    if section is None:
        return None
    parts, problems = parse_objective(section)
    return None if problems else combined(parts)


def branches_of(section: Any) -> set[str] | None:
    """Columns that an ``objective`` section reads, or None as of ``objective_of``."""
    objective = objective_of(section)
    return None if objective is None else set(sources_of(objective.branches))


def _rows(raw: Mapping[str, Any]) -> list[Problem]:
    data = raw.get("data")
    if not isinstance(data, Mapping):
        return []
    given = {name for name in ("train", "forget", "retain", "alternates", "partner") if data.get(name) is not None}
    wanted = branches_of(raw.get("objective"))
    if not given & {"train", "forget"}:
        example = "train: {path: pairs.jsonl}" if "forget" not in (wanted or ()) else "forget: {path: forget.jsonl}"
        text = f"missing; it says where the rows are, as in {example}."
        return [Problem(("data", example.split(":")[0]), text)]
    problems = []
    if {"train", "forget"} <= given:
        problems.append(Problem(("data", "train"), "data.forget is given, too; keep one: forget for unlearning."))
    if "forget" in given and data.get("held_out") is not None:
        text = "an unlearning run is measured by a suite; give evaluate: instead, or remove this."
        problems.append(Problem(("data", "held_out"), text))
    if "forget" not in given:
        extra = given & {"retain", "alternates", "partner"}
        problems += [
            Problem(("data", name), "goes with data.forget; give that, or remove this.") for name in sorted(extra)
        ]
    if "partner" in given and "retain" not in given and "forget" in given:
        problems.append(Problem(("data", "partner"), "there are no retained rows; give data.retain, or remove this."))
    problems += [*_alternates(data), *_weights(data)]
    return problems if wanted is None else [*problems, *_branches(given, wanted)]


def _branches(given: set[str], wanted: set[str]) -> list[Problem]:
    """Rows against what the objective reads."""
    problems = []
    if "forget" in wanted and "forget" not in given:
        problems.append(Problem(("data", "forget"), "missing: the objective forgets; say what, as in {path: FILE}."))
    if "forget" in given:
        if not wanted & {"forget", "alternate"}:
            text = "no objective forgets; name one that does (npo, flat, grad_ascent ...), or give these rows as train."
            problems.append(Problem(("data", "forget"), text))
        if strange := sorted(wanted - {"forget", "alternate", "retain"}):
            text = f"reads {' and '.join(strange)}, but rows to forget have the branches forget, alternate and retain."
            problems.append(Problem(("objective",), text))
        if "retain" in wanted and "retain" not in given:
            problems.append(
                Problem(("data", "retain"), "missing: the objective reads retained rows; give {path: FILE}.")
            )
        if "retain" in given and "retain" not in wanted:
            text = "no objective reads these rows; add {name: nll, branch: retain} to the objective, or remove this."
            problems.append(Problem(("data", "retain"), text))
        if "alternates" in given and "alternate" not in wanted:
            text = "no objective reads alternate answers (idk_dpo, flat, kto_forget and idk do); remove this."
            problems.append(Problem(("data", "alternates"), text))
    return problems


def _alternates(data: Mapping[str, Any]) -> list[Problem]:
    alternates = data.get("alternates")
    here: Path = ("data", "alternates")
    if not isinstance(alternates, Mapping):
        return []
    sources = [key for key in ("path", "builtin") if alternates.get(key) is not None]
    if len(sources) == 2:
        return [Problem(here, "gives path and builtin; keep one of them.")]
    if not sources:
        return [Problem(here, "says no source; give path or builtin, or remove it to read the rows' own column.")]
    return []


def _weights(data: Mapping[str, Any]) -> list[Problem]:
    """A weight would be without effect: an epoch has every row to forget once, each with one of all retained rows."""
    problems = []
    for name in ("forget", "retain"):
        value = data.get(name)
        listed = [((name, i), item) for i, item in enumerate(value)] if isinstance(value, list) else [((name,), value)]
        for path, source in listed:
            if isinstance(source, Mapping) and source.get("weight", 1) != 1:
                text = "rows to forget and to retain have no weights; remove it (the objective's terms have some)."
                problems.append(Problem(("data", *path, "weight"), text))
    return problems


def _suite(raw: Mapping[str, Any]) -> list[Problem]:
    evaluate = _section(raw, "evaluate")
    source = evaluate.get("source")
    if not isinstance(source, Mapping):
        return []
    given = [key for key in ("id", "path", "world") if source.get(key) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "no source"
        return [Problem(("evaluate", "source"), f"gives {found}; give one of id, path and world.")]
    return []


def _stop_when(raw: Mapping[str, Any]) -> list[Problem]:
    text = _section(raw, "watch").get("stop_when")
    here = ("watch", "stop_when")
    if not isinstance(text, str):
        return []
    if raw.get("evaluate") is None:
        return [Problem(here, "nothing is evaluated; add evaluate: {suite: tofu}, or remove this.")]
    try:
        rule = StopRule.parse(text)
    except ValueError as error:
        return [Problem(here, str(error))]
    problems = [
        Problem(here, f"{name!r} is not measured; metrics are {', '.join(METRICS)}.")
        for name in rule.metrics
        if name not in METRICS
    ]
    if "forget_quality" in rule.metrics and _section(raw, "evaluate").get("retain") is None:
        problems.append(Problem(here, "forget quality compares with a retain model; set evaluate.retain."))
    return problems
