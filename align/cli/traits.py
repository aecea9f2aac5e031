"""What one pass over raw rows counts: digests, to find rows again, and traits of conversations and texts."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from align.data.rows.formats import Format
from align.data.rows.values import ROLES, BadRow, rendered_turns
from align.data.tokens.preparation import Tally

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class Keys:
    """Digests of prompts and of whole rows, to find what two sets share, each with the rows that have it."""

    prompts: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))
    rows: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))
    facts: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))  # without alternate answers
    answers: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))
    swapped: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))


@dataclass
class Traits:
    """What was counted while reading the rows; ``seen`` are usable ones."""

    seen: int = 0
    roles: Tally = field(default_factory=Tally)
    strange: set[str] = field(default_factory=set)
    alternation: Tally = field(default_factory=Tally)
    repeats: Tally = field(default_factory=Tally)
    touching: Tally = field(default_factory=Tally)


def collect(rows: Dataset, form: Format, keys: Keys) -> Traits:
    """Read all rows once: fill ``keys``, count traits. Rows that cannot be used are left to preparation."""
    traits = Traits()
    for index, raw in enumerate(rows):
        number = raw.get("row", index)
        try:
            row = form.canonical(raw)
        except BadRow:
            continue
        traits.seen += 1
        suffix = "_ids" if form.tokenised else ""
        prompt = _digest(row[f"prompt{suffix}"])
        answers = [_digest(row[f"{name}{suffix}"]) for name in form.branches]
        if row[f"prompt{suffix}"]:  # plain texts have none
            keys.prompts[prompt].append(number)
        if answers:
            label = [bool(row["label"])] if form.kind == "unpaired" else []
            keys.rows[prompt + b"".join(answers) + bytes(label)].append(number)
            if label:
                keys.swapped[prompt + b"".join(answers) + bytes([not label[0]])].append(number)
            own = answers[:1] if form.branches[0] == "completion" else answers
            keys.facts[prompt + b"".join(own)].append(number)
            if form.kind == "preference" and answers[0] != answers[1]:
                keys.answers[b"".join(answers)].append(number)
                keys.swapped[prompt + b"".join(reversed(answers))].append(number)
        if form.conversational:
            _look_at_turns(row, form, number, traits)
        elif not form.tokenised:
            _look_at_text(row, form, number, traits)
    return traits


def _digest(value: Any) -> bytes:
    """A digest in which spaces around a text, the order of keys and keys that no template renders do not matter."""
    if isinstance(value, str):
        value = value.strip()
    elif any(isinstance(item, dict) for item in value):
        value = rendered_turns(value)
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).digest()


def _look_at_turns(row: Mapping[str, Any], form: Format, number: int, traits: Traits) -> None:
    talks = [row["prompt"] + row[name] for name in form.branches] or [row["prompt"]]
    strange = {message["role"] for talk in talks for message in talk} - set(ROLES)
    if strange:
        traits.roles.add(number)
        traits.strange |= strange
    if any(_out_of_turn(talk) for talk in talks):
        traits.alternation.add(number)


def _out_of_turn(talk: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a conversation does not start with the user, or the same side speaks twice in a row."""
    roles = [message["role"] for message in talk]
    first = next((index for index, role in enumerate(roles) if role not in ("system", "developer")), len(roles))
    spoken = [role for role in roles[first:] if role in ("user", "assistant", "system", "developer")]
    if not spoken or spoken[0] != "user":
        return True
    if "system" in spoken or "developer" in spoken:
        return True
    # A tool's turn stands between two of the assistant's.
    pairs = zip(roles[first:], roles[first + 1 :], strict=False)
    return any(left == right != "tool" for left, right in pairs)


def _look_at_text(row: Mapping[str, Any], form: Format, number: int, traits: Traits) -> None:
    prompt = row["prompt"]
    answers = [row[name] for name in form.branches]
    if prompt.strip() and answers and all(text.startswith(prompt) for text in answers):
        traits.repeats.add(number)
    if prompt and answers and not prompt[-1].isspace() and any(not text[0].isspace() for text in answers):
        traits.touching.add(number)
