"""What one pass over raw rows counts: digests, to find rows again, and traits of conversations and texts."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from align.data.rows.formats import Format
from align.data.rows.values import ROLES, BadRow, rendered_turns
from align.data.tokens.preparation import Tally
from align.runs.parallel import cores, in_order
from align.runs.terminal import Work

if TYPE_CHECKING:
    from datasets import Dataset


_PIECE = 1024  # rows that a process reads at a time
_BYTES = 16  # of a digest


@dataclass(frozen=True)
class Seen:
    """Digests of one sort, bytes [n], with the numbers of the rows that have them, int64 [n], in the order of rows."""

    digests: np.ndarray = field(default_factory=lambda: np.empty(0, f"S{_BYTES}"))
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def __add__(self, other: Seen) -> Seen:
        return Seen(np.concatenate((self.digests, other.digests)), np.concatenate((self.rows, other.rows)))

    def again(self) -> np.ndarray:
        """Numbers of the rows whose digest an earlier one has, sorted."""
        later = np.ones(len(self.digests), dtype=bool)
        later[np.unique(self.digests, return_index=True)[1]] = False  # the first place of each
        return np.sort(self.rows[later])

    def shared(self, other: Seen) -> np.ndarray:
        """Numbers of the rows whose digest is among those of ``other``, sorted."""
        return np.sort(self.rows[np.isin(self.digests, other.digests)])


@dataclass(frozen=True)
class Keys:
    """What prompts, rows and answers are found again by, in this set and in others."""

    prompts: Seen = field(default_factory=Seen)
    rows: Seen = field(default_factory=Seen)
    facts: Seen = field(default_factory=Seen)  # without alternate answers
    answers: Seen = field(default_factory=Seen)
    swapped: Seen = field(default_factory=Seen)

    def __add__(self, other: Keys) -> Keys:
        return Keys(*(getattr(self, name) + getattr(other, name) for name in SORTS))


SORTS = tuple(entry.name for entry in fields(Keys))


@dataclass
class Traits:
    """What was counted while reading the rows; ``seen`` are usable ones."""

    seen: int = 0
    strange: set[str] = field(default_factory=set)
    roles: Tally = field(default_factory=Tally)
    alternation: Tally = field(default_factory=Tally)
    repeats: Tally = field(default_factory=Tally)
    touching: Tally = field(default_factory=Tally)


_TALLIES = ("roles", "alternation", "repeats", "touching")


def collect(rows: Dataset, form: Format, *, prompts: bool = False, compared: bool) -> tuple[Keys, Traits]:
    """Read all rows once, on all cores if they are many. Rows that cannot be used are left to preparation.

    Keys ``prompts`` and ``facts`` are there only where ``prompts`` alone are read, or rows will be ``compared`` with
    another set.
    """
    sorts = SORTS if compared or prompts else ("rows", "answers", "swapped")
    raw = rows.with_format(None)

    def piece(number: int) -> bytes:
        return _Piece(form, sorts).read(raw, range(number * _PIECE, min((number + 1) * _PIECE, len(raw))))

    parts: dict[str, list[Seen]] = {name: [Seen()] for name in SORTS}
    traits = Traits()
    pieces = -(-len(raw) // _PIECE)
    with Work("rows compared", len(raw)) as work:
        for content in in_order(piece, pieces, cores(shared=True)):
            found = json.loads(content)
            for name, (numbers, digests) in found["keys"].items():
                held = np.frombuffer(base64.b64decode(digests), f"S{_BYTES}")
                parts[name].append(Seen(held, np.asarray(numbers, dtype=np.int64)))
            traits.seen += found["seen"]
            traits.strange |= set(found["strange"])
            for name in _TALLIES:
                getattr(traits, name).join(Tally(**found[name]))
            work.add(_PIECE)
    return Keys(*(_joined(parts.pop(name)) for name in SORTS)), traits


def _joined(parts: list[Seen]) -> Seen:
    return Seen(np.concatenate([part.digests for part in parts]), np.concatenate([part.rows for part in parts]))


class _Piece:
    """What one process reads of some rows."""

    def __init__(self, form: Format, sorts: Sequence[str]) -> None:
        self.form, self.traits = form, Traits()
        self.keys: dict[str, tuple[list[int], bytearray]] = {name: ([], bytearray()) for name in sorts}

    def read(self, rows: Dataset, places: range) -> bytes:
        """Digests and traits of the rows at ``places``, as JSON."""
        columns = rows[places.start : places.stop]
        for place, values in zip(places, zip(*columns.values(), strict=True), strict=True):
            raw = dict(zip(columns, values, strict=True))
            try:
                row = self.form.canonical(raw)
            except BadRow:
                continue
            self._add(row, raw.get("row", place))
        keys = {name: [rows, base64.b64encode(held).decode()] for name, (rows, held) in self.keys.items()}
        found = self.traits
        tallies = {name: vars(getattr(found, name)) for name in _TALLIES}
        return json.dumps({"keys": keys, "seen": found.seen, "strange": sorted(found.strange), **tallies}).encode()

    def _note(self, sort: str, number: int, *parts: bytes) -> None:
        if sort not in self.keys:
            return
        rows, held = self.keys[sort]
        rows.append(number)
        held += hashlib.blake2b(b"".join(parts), digest_size=_BYTES).digest()

    def _add(self, row: Mapping[str, Any], number: int) -> None:
        form = self.form
        self.traits.seen += 1
        suffix = "_ids" if form.tokenised else ""
        prompt = _digest(row[f"prompt{suffix}"])
        answers = [_digest(row[f"{name}{suffix}"]) for name in form.branches]
        if row[f"prompt{suffix}"]:  # plain texts have none
            self._note("prompts", number, prompt)
        if answers:
            label = [bool(row["label"])] if form.kind == "unpaired" else []
            self._note("rows", number, prompt, *answers, bytes(label))
            if label:
                self._note("swapped", number, prompt, *answers, bytes([not label[0]]))
            own = answers[:1] if form.branches[0] == "completion" else answers
            self._note("facts", number, prompt, *own)
            if form.kind == "preference" and answers[0] != answers[1]:
                self._note("answers", number, *answers)
                self._note("swapped", number, prompt, *reversed(answers))
        if form.conversational:
            _look_at_turns(row, form, number, self.traits)
        elif not form.tokenised:
            _look_at_text(row, form, number, self.traits)


def _digest(value: Any) -> bytes:
    """A digest in which spaces around a text, the order of keys and keys that no template renders do not matter."""
    if isinstance(value, str):
        value = value.strip()
    elif any(isinstance(item, dict) for item in value):
        value = rendered_turns(value)
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=_BYTES).digest()


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
