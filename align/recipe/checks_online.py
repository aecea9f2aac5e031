"""Contradictions in recipes that sample: sampling, judge, select, rounds and the objective; see ``recipe_checks``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.objectives import Objective
from align.objectives.base import sources_of
from align.recipe.messages import Path, Problem
from align.recipe.objective import combined, parse_objective
from align.recipe.sections import Reference, Watch

_JUDGES = ("reward", "pair", "endpoint", "function")
_SCORE, _COMPARE = ("reward", "function"), ("pair", "endpoint", "function")  # a function may do either
# what is drawn from anything but the policy itself makes an estimate of its KL wrong
_EXACT: Mapping[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": None, "min_p": None, "stop": []}


def online_checks(raw: Mapping[str, Any]) -> list[Problem]:
    """All complaints about ``sampling``, ``judge``, ``select``, ``rounds`` and ``reference.rows``."""
    objective = _objective(raw)
    branches = set(objective.branches) if objective is not None else None
    return [
        *_judge(raw),
        *_fusion(raw),
        *_used(raw, branches),
        *_fresh(raw, branches),
        *_survivor(raw, branches),
        *_rounds(raw, branches),
        *_select(raw),
        *_guard(raw, branches),
        *_rows(raw),
    ]


def _section(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = raw.get(name)
    return value if isinstance(value, Mapping) else {}


def _objective(raw: Mapping[str, Any]) -> Objective | None:
    """The objective, or None where it is missing or not valid (others say so)."""
    if raw.get("objective") is None:
        return None
    parts, problems = parse_objective(raw["objective"])
    return None if problems else combined(parts)


def _kinds(raw: Mapping[str, Any]) -> list[str]:
    return [key for key in _JUDGES if _section(raw, "judge").get(key) is not None]


def _judge(raw: Mapping[str, Any]) -> list[Problem]:
    judge, here = raw.get("judge"), ("judge",)
    if not isinstance(judge, Mapping):
        return []
    kinds = _kinds(raw)
    if not kinds:
        return [Problem(here, f"says no judge; give one of {', '.join(_JUDGES)}.")]
    if len(kinds) > 1:
        return [Problem(here, f"gives {' and '.join(kinds)}; keep one of them.")]
    if kinds[0] in ("reward", "pair"):
        return []
    extra = [key for key, default in (("revision", None), ("dtype", "auto")) if judge.get(key, default) != default]
    return [Problem(("judge", key), f"a judge by {kinds[0]} loads no weights; remove it.") for key in extra]


def _fusion(raw: Mapping[str, Any]) -> list[Problem]:
    """RewardFusion averages scores, and reads its corpus whole and once."""
    fusion = _section(raw, "judge").get("fusion")
    if not isinstance(fusion, Mapping):
        return []
    here: Path = ("judge", "fusion")
    text = "scores are averaged, and this judge compares answers; remove it."
    problems = [Problem(here, text)] if set(_kinds(raw)) & {"pair", "endpoint"} else []
    corpus = _section(fusion, "corpus")
    given = [key for key in ("id", "path", "world") if corpus.get(key) is not None]
    if fusion.get("corpus") is not None and len(given) != 1:
        text = f"gives {' and '.join(given) or 'no source'}; give one of id, path and world."
        problems.append(Problem((*here, "corpus"), text))
    if corpus.get("streaming") is True:
        text = "the corpus is searched for neighbours; set rows: 10000 instead of streaming."
        problems.append(Problem((*here, "corpus", "streaming"), text))
    if corpus.get("weight", 1) != 1:
        problems.append(Problem((*here, "corpus", "weight"), "every text of the corpus counts once; remove it."))
    return problems


def _used(raw: Mapping[str, Any], branches: set[str] | None) -> list[Problem]:
    """Sections that nothing reads."""
    if raw.get("rounds") is not None or branches is None:
        return []
    problems = []
    if raw.get("sampling") is not None and not branches & {"sample", "survivor"}:
        text = "nothing is sampled: the objective reads no fresh samples (hypo and superhf do), and rounds: is not set."
        problems.append(Problem(("sampling",), text))
    problems += _alone(branches)
    for name in ("judge", "select"):
        if raw.get(name) is not None and "survivor" not in branches:
            text = "nothing is judged: the objective keeps no best samples (superhf does), and rounds: is not set."
            problems.append(Problem((name,), text))
    return problems


def _alone(branches: set[str]) -> list[Problem]:
    if branches != {"sample"}:
        return []
    text = "reads fresh samples alone, which would only hold the model where it is; add a loss on pairs, as in hypo."
    return [Problem(("objective",), text)]


def _guard(raw: Mapping[str, Any], branches: set[str] | None) -> list[Problem]:
    """The guard against collapse looks at survivors."""
    if branches is None or "survivor" in branches:
        return []
    text = "the guard looks at samples that are kept by score (superhf), and none are; remove it."
    watch, fields = _section(raw, "watch"), Watch.model_fields
    keys = ("similarity_limit", "stop_on_collapse")
    return [Problem(("watch", key), text) for key in keys if watch.get(key, fields[key].default) != fields[key].default]


def _fresh(raw: Mapping[str, Any], branches: set[str] | None) -> list[Problem]:
    """Branches that are filled while training."""
    named = sorted((branches or set()) & {"sample", "survivor"})
    if not named:
        return []
    if raw.get("rounds") is not None:
        text = "the objective draws samples of its own in every step; remove rounds, or use one on pairs (inpo, dpo)."
        return [Problem(("rounds",), text)]
    if len(named) > 1:
        return [Problem(("objective",), "reads fresh samples and survivors; a run draws the one or the other.")]
    if raw.get("sampling") is None:
        text = "missing: the objective reads fresh samples; say how they are drawn, as in {samples: 4}."
        return [Problem(("sampling",), text)]
    sampling = _section(raw, "sampling")
    problems = []
    if sampling.get("server") is not None:
        text = "a server has the weights of a checkpoint, but this objective needs those of every step; remove it."
        problems.append(Problem(("sampling", "server"), text))
    if named == ["sample"]:
        problems += [
            Problem(("sampling", key), "the KL term needs draws from the policy as it is, or it is biased; remove it.")
            for key, exact in _EXACT.items()
            if key in sampling and sampling[key] != exact
        ]
    return problems


def _survivor(raw: Mapping[str, Any], branches: set[str] | None) -> list[Problem]:
    if "survivor" not in (branches or ()) or raw.get("rounds") is not None:
        return []
    problems = []
    if raw.get("judge") is None:
        text = "missing: the objective keeps the best by score; name a judge, as in {reward: MODEL}."
        problems.append(Problem(("judge",), text))
    elif not set(_kinds(raw)) & set(_SCORE):
        text = "compares answers, but the best are kept by score; use reward or function."
        problems += [Problem(("judge", kind), text) for kind in _kinds(raw)]
    if isinstance(raw.get("select"), Mapping) and _section(raw, "select").get("how") != "top":
        problems.append(Problem(("select", "how"), "survivors are the best by score; set how: top."))
    return problems


def _rounds(raw: Mapping[str, Any], branches: set[str] | None) -> list[Problem]:
    if raw.get("rounds") is None:
        return []
    problems = []
    for name, example in (("sampling", "{samples: 4}"), ("judge", "{reward: MODEL}")):
        if raw.get(name) is None:
            problems.append(Problem((name,), f"missing: rounds need it, as in {name}: {example}."))
    if branches is not None and not set(sources_of(branches)) <= {"chosen", "rejected"}:
        text = "rounds make pairs, with the branches chosen and rejected; this reads others."
        problems.append(Problem(("objective",), text))
    problems += _round_data(_section(raw, "data"))
    if _section(raw, "rounds").get("load") == "sharded" and _section(raw, "model").get("load_in") is not None:
        text = "quantised weights are not cut up; remove it, or set rounds.load: first."
        problems.append(Problem(("rounds", "load"), text))
    if raw.get("evaluate") is not None:
        text = "no suite is run between rounds; remove it and evaluate the finished run: align eval."
        problems.append(Problem(("evaluate",), text))
    fields = Reference.model_fields
    given = [k for k, v in _section(raw, "reference").items() if k in fields and v != fields[k].default]
    text = "rounds keep log-probs with their pairs and no reference model; remove it (rounds.reference says which)."
    return [*problems, *(Problem(("reference", key), text) for key in given), *_room(raw)]


def _round_data(data: Mapping[str, Any]) -> list[Problem]:
    problems = []
    if data.get("forget") is not None:
        problems.append(Problem(("data", "forget"), "rounds sample answers to prompts; give them as data.train."))
    if data.get("held_out") is not None:
        text = "rounds know the reference's log-probs of their own pairs alone; remove it, evaluate the end."
        problems.append(Problem(("data", "held_out"), text))
    train = data.get("train")
    listed = [((i,), item) for i, item in enumerate(train)] if isinstance(train, list) else [((), train)]
    for place, source in listed:
        if not isinstance(source, Mapping):
            continue
        path: Path = ("data", "train", *place)
        if source.get("streaming") is True:
            text = "prompts are shared out to the rounds first; set rows: instead of streaming."
            problems.append(Problem((*path, "streaming"), text))
        if source.get("weight", 1) != 1:
            problems.append(Problem((*path, "weight"), "every prompt is fresh, so none comes twice; remove it."))
    return problems


def _room(raw: Mapping[str, Any]) -> list[Problem]:
    """Prompts must leave room for answers."""
    limit, new = _section(raw, "data").get("max_length", 1024), _section(raw, "sampling").get("max_new_tokens", 128)
    if not isinstance(limit, int) or not isinstance(new, int) or limit > new:
        return []
    text = f"{new} new tokens leave no room for a prompt in data.max_length {limit}; raise that, or lower this."
    return [Problem(("sampling", "max_new_tokens"), text)]


def _select(raw: Mapping[str, Any]) -> list[Problem]:
    select, kinds = _section(raw, "select"), set(_kinds(raw))
    how, samples = select.get("how", "best_worst"), _section(raw, "sampling").get("samples", 4)
    problems = []
    if raw.get("rounds") is not None:
        if how == "top":
            problems.append(Problem(("select", "how"), "rounds need pairs; use best_worst or tournament."))
        elif isinstance(samples, int) and samples < 2:
            problems.append(Problem(("sampling", "samples"), "a pair needs two samples of a prompt at least."))
        if how == "best_worst" and kinds and not kinds & set(_SCORE):
            text = "best_worst needs a judge that scores, and this one compares; set select: {how: tournament}."
            problems.append(Problem(("select", "how"), text))
    if how == "tournament":
        if isinstance(samples, int) and samples >= 2 and samples & (samples - 1):
            text = f"a tournament needs a power of two, such as 8; got {samples}."
            problems.append(Problem(("sampling", "samples"), text))
        if kinds and not kinds & set(_COMPARE):
            text = "a tournament needs a judge that compares, and this one scores; use best_worst."
            problems.append(Problem(("select", "how"), text))
        if select.get("length_penalty"):
            problems.append(Problem(("select", "length_penalty"), "a tournament has no scores; remove it."))
    keep = select.get("keep", 1)
    if keep != 1 and how != "top":
        problems.append(Problem(("select", "keep"), "goes with how: top; remove it."))
    elif how == "top" and isinstance(keep, int) and isinstance(samples, int) and keep > samples:
        text = f"keeps {keep} of sampling.samples {samples}; lower it, or draw more."
        problems.append(Problem(("select", "keep"), text))
    return problems


def _rows(raw: Mapping[str, Any]) -> list[Problem]:
    """A reference that the rows bring along needs no model, and moves nowhere."""
    reference = _section(raw, "reference")
    if reference.get("rows") is None or raw.get("rounds") is not None:
        return []
    problems = []
    if reference.get("strategy") not in (None, "auto"):
        problems.append(Problem(("reference", "strategy"), "reference.rows keeps no reference model; remove one."))
    for key in ("sync_every", "store_dir"):
        if reference.get(key) is not None:
            problems.append(Problem(("reference", key), "reference.rows takes log-probs from the rows; remove one."))
    if _section(raw, "data").get("forget") is not None:
        problems.append(Problem(("reference", "rows"), "rows to forget bring no log-probs along; remove it."))
    return problems
