"""Sentences for mistakes in a recipe: what was found at which key, what was expected, and the likely meaning."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]

# Keys that other tools use for what a recipe calls something else, by section ("" is the top level).
ALIASES: Mapping[str, Mapping[str, str]] = {
    "": {
        "loss": "objective",
        "losses": "objective",
        "training": "train",
        "trainer": "train",
        "training_args": "train",
        "dataset": "data",
        "datasets": "data",
        "output_dir": "output",
        "ref_model": "reference",
        "monitor": "watch",
        "run_name": "name",
    },
    "model": {
        "name": "id",
        "path": "id",
        "model_name_or_path": "id",
        "name_or_path": "id",
        "torch_dtype": "dtype",
        "attn_implementation": "attention",
        "load_in_4bit": "load_in",
        "load_in_8bit": "load_in",
        "quantization": "load_in",
        "peft": "lora",
        "adapter": "lora",
    },
    "lora": {
        "r": "rank",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "target_modules": "targets",
    },
    "data": {
        "eval": "held_out",
        "validation": "held_out",
        "test": "held_out",
        "max_tokens": "max_length",
        "max_len": "max_length",
        "on_too_long": "truncation",
        "truncation_mode": "truncation",
    },
    "source": {
        "name": "id",
        "dataset": "id",
        "file": "path",
        "data_files": "path",
        "config": "subset",
        "limit": "rows",
        "max_samples": "rows",
        "n": "rows",
        "system_prompt": "system",
        "fields": "columns",
    },
    "reference": {"cache": "store", "cache_dir": "store_dir", "precompute": "store"},
    "watch": {"steps": "every", "pairs": "probe_pairs", "stop": "stop_on_drop"},
}


@dataclass(frozen=True)
class Problem:
    """One mistake: the path of its key in the recipe and the sentence about it."""

    path: Path
    text: str


def dotted(path: Path) -> str:
    """``("data", "train", 0, "split")`` as ``data.train.0.split``."""
    return ".".join(str(part) for part in path)


def did_you_mean(word: str, known: Iterable[str], section: str | None = None) -> str | None:
    """The known name that ``word`` most likely stands for, or None."""
    names = list(known)
    alias = ALIASES.get(section, {}).get(word) if section is not None else None
    if alias in names:
        return alias
    lowered = {name.lower(): name for name in reversed(names)}
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return lowered[close[0]] if close else None


def unknown_key(word: str, known: Iterable[str], section: str | None = None) -> str:
    """The sentence about a key that a section does not have."""
    names = list(known)
    meant = did_you_mean(word, names, section)
    return f"unknown key. Did you mean {meant!r}?" if meant else f"unknown key. Keys here: {', '.join(names)}."


def unknown_choice(value: Any, choices: Iterable[str]) -> str:
    """The sentence about a value that is not among the allowed ones."""
    names = list(choices)
    meant = did_you_mean(value, names) if isinstance(value, str) else None
    hint = f" Did you mean {meant!r}?" if meant else ""
    return f"expected one of {', '.join(names)}; got {shown(value)}.{hint}"


def shown(value: Any) -> str:
    """A value as a reader of YAML would name it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        # Python writes no whole number of more than 4,300 digits
        long = isinstance(value, int) and value.bit_length() > 80
        return f"a whole number of {int(value).bit_length()} bits" if long else f"the number {value}"
    if isinstance(value, str):
        return f"the text {value if len(value) <= 60 else value[:57] + '...'!r}"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return f"a {type(value).__name__}"


_EXPECTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def sentence(error: Mapping[str, Any], known: Iterable[str] = (), section: str | None = None) -> str:
    """Translate one entry of pydantic's ``ValidationError.errors()``; ``known`` are the keys of its section."""
    kind, value, context = error["type"], error.get("input"), error.get("ctx") or {}
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return unknown_key(str(error["loc"][-1]), known, section)
    if kind == "missing":
        return "missing."
    if kind == "literal_error":
        choices = [part.strip(" '") for part in context["expected"].replace(" or ", ", ").split(",")]
        return unknown_choice(value, [{"True": "true", "False": "false"}.get(choice, choice) for choice in choices])
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"must be {words} {_plain(context[key])}, got {_plain(value)}."
    if kind in _EXPECTED:
        return expected(_EXPECTED[kind], value)
    if kind in ("too_short", "string_too_short"):
        return "must not be empty."
    if kind == "string_too_long":
        return f"must have at most {context['max_length']:,} characters, got {len(str(value)):,}."
    if kind == "value_error":
        return str(context["error"])
    if kind == "align":  # a sentence of our own
        return error["msg"]
    return f"{error['msg']}, got {shown(value)}."


def sentence_of_all(errors: Sequence[Mapping[str, Any]], known: Iterable[str] = ()) -> str:
    """One sentence for all entries about one key: of a number or a word, each kind reports that it was not it."""
    first = errors[0]
    words = [str(error["ctx"]["expected"]).strip("'") for error in errors[1:] if error["type"] == "literal_error"]
    if words and first["type"] in _EXPECTED:
        return expected(" or ".join([_EXPECTED[first["type"]], *words]), first.get("input"))
    return sentence(first, known)


def expected(what: str, value: Any) -> str:
    """The sentence about a value of the wrong type, with the cure where YAML is the likely culprit."""
    cure = ""
    if what in ("a number", "a whole number") and isinstance(value, str) and _is_number(value):
        cure = " Remove the quotes."
    elif what == "text" and isinstance(value, bool | int | float):
        cure = " Put it in quotes."
    return f"expected {what}, got {shown(value)}.{cure}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _plain(number: Any) -> str:
    if isinstance(number, float):
        return f"{number:g}"
    return shown(number).removeprefix("the number ") if isinstance(number, int) else str(number)
