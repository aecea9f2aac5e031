"""The names a recipe's ``train`` section may use: a generated table, so that checking a recipe needs no torch.

``make docs`` writes the table, ``train_keys.json`` beside this file, from the installed TRL's ``SFTConfig``; a test
compares it with what is committed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from align.recipe.messages import Problem, expected, shown, unknown_choice, unknown_key
from align.recipe.train_refused import REFUSED

TABLE = Path(__file__).with_name("train_keys.json")

# Of torch.compile; the others replay CUDA graphs, which need the same shapes at every step.
COMPILE_MODES = ("default", "max-autotune-no-cudagraphs")

# Ours, beside those of transformers.
OURS: Mapping[str, Mapping[str, Any]] = {
    "max_tokens_per_microbatch": {
        "type": "int | None",
        "default": None,
        "help": "Pack micro-batches up to this many tokens; the number of accumulation steps follows from it, and "
        "the pairs of an optimizer step stay what the batch size says.",
    },
    "use_liger_kernel": {
        "type": "bool | None",
        "default": None,
        "help": "Fuse RMSNorm, rotary embedding and gated MLP through liger-kernel (extra `gpu`). Left out: on a GPU "
        "where it is installed and a check at the start finds log-probs and gradients unchanged; true insists on it.",
    },
    "torch_compile": {
        "type": "bool",
        "default": False,
        "help": "Compile every decoder layer with torch.compile, for rows of any length; sampling runs as before. "
        "The first batches take longer.",
    },
    "torch_compile_mode": {
        "type": "str | None",
        "default": None,
        "choices": COMPILE_MODES,
        "help": "Mode of torch.compile, with torch_compile.",
    },
}

# The keys of ``OURS`` that say how layers compute; a trainer takes them together.
LAYERS = ("use_liger_kernel", "torch_compile", "torch_compile_mode")

# Least values that transformers does not check itself: (bound, whether the bound itself is allowed).
_LEAST: Mapping[str, tuple[float, bool]] = {
    "per_device_train_batch_size": (1, True),
    "per_device_eval_batch_size": (1, True),
    "gradient_accumulation_steps": (1, True),
    "num_train_epochs": (0, False),
    "learning_rate": (0, False),
    "weight_decay": (0, True),
    "max_grad_norm": (0, True),
    "warmup_steps": (0, True),
    "adam_beta1": (0, True),
    "adam_beta2": (0, True),
    "adam_epsilon": (0, True),
    "logging_steps": (0, False),
    "eval_steps": (0, False),
    "save_steps": (0, False),
    "save_total_limit": (1, True),
    "max_tokens_per_microbatch": (1, True),
}


@cache
def train_keys() -> dict[str, dict[str, Any]]:
    """Name to ``{type, default, help}`` and, where the values are named ones, ``choices``."""
    return {**json.loads(TABLE.read_text(encoding="utf-8"))["keys"], **OURS}


def spelled(train: Mapping[str, Any]) -> dict[str, Any]:
    """``train`` with YAML's false turned back into the word ``no`` where that is one of a key's choices."""
    keys = train_keys()
    return {
        name: "no" if value is False and "no" in keys.get(name, {}).get("choices", ()) else value
        for name, value in train.items()
    }


def check_train(train: Any) -> list[Problem]:
    """Mistakes in a ``train`` section: names, types, choices and ranges. Paths begin with ``train``."""
    if not isinstance(train, Mapping):
        return [Problem(("train",), expected("a mapping", train))]
    keys = train_keys()
    problems = []
    for name, value in train.items():
        if name in REFUSED:
            text: str | None = f"cannot be set here: {REFUSED[name]}"
        elif name not in keys:
            text = unknown_key(name, keys) if _close(name, keys) else "unknown key. All names: align list train."
        else:
            text = _value_problem(name, value, keys[name])
        if text:
            problems.append(Problem(("train", name), text))
    return problems


def _close(name: str, keys: Mapping[str, Any]) -> bool:
    return "Did you mean" in unknown_key(name, keys)


def _value_problem(name: str, value: Any, key: Mapping[str, Any]) -> str | None:
    kinds = key["type"].split(" | ")
    if "dict" in kinds:  # transformers takes text for one, too, and reads it as JSON while it trains
        kinds = [kind for kind in kinds if kind != "str"]
    if not any(_fits(value, kind) for kind in kinds):
        named = [_NAMED.get(kind, kind) for kind in kinds if kind != "None"]
        return expected(" or ".join(dict.fromkeys(named)), value)
    if isinstance(value, float) and not math.isfinite(value):
        return f"expected a finite number, got {shown(value)}."
    if "choices" in key and isinstance(value, str) and value not in key["choices"]:
        return unknown_choice(value, key["choices"])
    if name in _LEAST and value is not None:
        bound, itself = _LEAST[name]
        if value < bound or (value == bound and not itself):
            return f"must be {'at least' if itself else 'greater than'} {bound:g}, got {value}."
    return None


_NAMED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict": "a mapping",
    "list": "a list",
}


def _fits(value: Any, kind: str) -> bool:
    if kind == "None":
        return value is None
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, {"str": str, "dict": dict, "list": list}[kind])


# --- generation -------------------------------------------------------------------------------------------------------


def generate() -> dict[str, Any]:
    """The table as the installed TRL and transformers give it. Imports torch."""
    import dataclasses
    from importlib.metadata import version

    from align.compat import SFTConfig

    keys = {}
    for field in dataclasses.fields(SFTConfig):
        if field.name in (*REFUSED, *OURS) or not field.init:
            continue
        kinds, choices = _kinds(field.type)
        default = field.default if field.default is not dataclasses.MISSING else None
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        key = {"type": kinds, "default": getattr(default, "value", default), "help": _summary(field)}
        if choices:
            key["choices"] = choices
        keys[field.name] = key
    return {"generated_from": {name: version(name) for name in ("transformers", "trl")}, "keys": keys}


def _kinds(annotation: Any) -> tuple[str, list[str]]:
    """A field's type as ``"float | None"``, and the values of an enumeration in it."""
    import enum
    import types
    import typing

    kinds: list[str] = []
    choices: list[str] = []
    parts = typing.get_args(annotation) if _is_union(annotation, typing, types) else (annotation,)
    for part in parts:
        base = typing.get_origin(part) or part
        if base is typing.Literal:
            kinds += ["bool"] if typing.get_args(part) == (False,) else ["str"]
        elif isinstance(base, type) and issubclass(base, enum.Enum):
            choices += [str(member.value) for member in base]
            kinds.append("str")
        else:
            kinds.append({type(None): "None"}.get(base, getattr(base, "__name__", "str")))
    order = {kind: i for i, kind in enumerate(("bool", "int", "float", "str", "list", "dict", "None"))}
    return " | ".join(sorted({kind for kind in kinds if kind in order}, key=order.__getitem__)), choices


def _is_union(annotation: Any, typing: Any, types: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _summary(field: Any) -> str:
    """The first two sentences of a field's help; the second often says what a value below 1 means."""
    text = re.sub(r"\s+", " ", field.metadata.get("help", "")).replace("%%", "%").strip()
    sentences = re.split(r"(?<=[a-z0-9)`'\]])\. ", text, maxsplit=2)[:2]
    return ". ".join(sentences).rstrip(".") + "." if text else ""


def rendered(table: Mapping[str, Any]) -> str:
    """The table as the JSON text that is committed."""
    return json.dumps(table, indent=1, sort_keys=False) + "\n"
