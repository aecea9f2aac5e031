"""What a row of data is, said aloud, and its translation to one canonical form: TRL's columns with an explicit prompt.

A canonical row holds ``prompt`` and one entry per branch, all of them strings or all of them lists of messages
(``{"role": ..., "content": ...}``), and where given ``tools``, ``chat_template_kwargs`` and ``label``. An
already tokenised row keeps its ``*_ids`` and ``*_mask`` columns instead, and the log-probs of its branches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from align.data.rows.text import HH_HUMAN, common_messages, split_hh, split_shared_text
from align.data.rows.values import (
    BadRow,
    Row,
    answer,
    extras,
    first_role,
    is_messages,
    messages,
    number,
    rendered_turns,
    string,
)
from align.errors import UserError
from align.objectives.base import LABELLED, MISMATCH, reads_labels

Kind = Literal["preference", "unpaired", "prompt-completion", "prompt-only", "branches"]

_PAIR = ("chosen", "rejected")
SYNONYMS = {
    "prompt": ("question", "instruction", "query", "input", "problem", "user", "context"),
    "completion": ("answer", "response", "output", "solution", "target", "assistant", "reply", "text"),
    "chosen": ("preferred", "chosen_response", "response_chosen", "better", "accepted", "win", "positive", "answer"),
    "rejected": ("dispreferred", "rejected_response", "response_rejected", "worse", "lose", "negative", "loser"),
    "label": ("is_good", "kto_tag", "desirable", "thumbs_up", "feedback"),
}

_TOO_MANY = 2**31  # no vocabulary comes near; prepared rows keep ids in 32 bits


@dataclass(frozen=True)
class Format:
    """What was recognised: ``name`` is for people, ``branches`` are those that a row offers."""

    name: str
    kind: Kind
    branches: tuple[str, ...]
    conversational: bool
    convert: Callable[[Mapping[str, Any]], Row]
    tokenised: bool = False

    @property
    def skips_template(self) -> bool:
        """Whether prompts and answers are put as they are, with no chat template around them. Texts have no prompts."""
        return not (self.conversational or self.tokenised or self.convert is _text)

    def offers(self, branches: Sequence[str]) -> bool:
        """Whether an objective on ``branches`` can read such rows. A pair is two labelled answers."""
        if reads_labels(branches):
            return set(branches) <= {*LABELLED, MISMATCH} and self.kind in ("unpaired", "preference")
        return set(branches) <= set(self.branches)

    def canonical(self, row: Mapping[str, Any]) -> Row:
        """The canonical form of a raw row; raises ``BadRow``.

        A column ``system`` opens a conversation that has no system message of its own.
        """
        out = self.convert(row)
        if self.conversational and out["prompt"][0]["role"] not in ("system", "developer"):
            text = row.get("system")
            if isinstance(text, str) and text.strip():
                out["prompt"] = [{"role": "system", "content": text}, *out["prompt"]]
        return out


def recognise(row: Mapping[str, Any], columns: Sequence[str] | None = None, branches: Sequence[str] = ()) -> Format:
    """The format of a raw row that offers all ``branches`` (none asked: the first that fits).

    ``columns`` are the column names of its data set (by default the row's own). Raises ``UserError`` with the columns
    found, what was expected and the ``columns:`` mapping that would mend it.
    """
    names = tuple(columns if columns is not None else row)
    there = {name: row.get(name) for name in names if row.get(name) is not None}
    _refuse_json_text(there)
    candidates = list(_candidates(there, branches))
    for candidate in candidates:
        if candidate.offers(branches):
            return candidate
    raise UserError(_unrecognised(names, branches, candidates))


def to_canonical(row: Mapping[str, Any], form: Format) -> Row:
    """The canonical form of a raw row, see ``Format.canonical``."""
    return form.canonical(row)


def _candidates(row: Mapping[str, Any], wanted: Sequence[str]) -> Iterator[Format]:
    """Every format that the columns of a row allow, the most specific first."""
    yield from _tokenised(row, wanted)
    talk = next((name for name in ("conversations", "messages") if is_messages(row.get(name))), None)
    if all(name in row for name in _PAIR):
        yield _pair(row, talk)
    if "prompt" in row and "completion" in row:
        conversational = is_messages(row["prompt"]) or is_messages(row["completion"])
        how = "conversational" if conversational else "standard"
        if "label" in row:
            convert = _Explicit(("completion",), conversational, label=True)
            yield Format(f"unpaired preference, {how}", "unpaired", ("completion",), conversational, convert)
        convert = _Explicit(("completion",), conversational)
        yield Format(f"prompt and completion, {how}", "prompt-completion", ("completion",), conversational, convert)
    if wanted and "prompt" in row and all(name in row for name in wanted):
        conversational = any(is_messages(row[name]) for name in ("prompt", *wanted))
        how = "conversational" if conversational else "standard"
        name = f"prompt with {' and '.join(wanted)}, {how}"
        yield Format(name, "branches", tuple(wanted), conversational, _Explicit(tuple(wanted), conversational))
    if talk and "label" in row:
        name = f"unpaired preference, conversational ({talk} with a label on the last answer)"
        yield Format(name, "unpaired", ("completion",), True, _Talk(talk, label=True))
    if talk:
        name = f"conversations ({talk}), every assistant turn a target"
        yield Format(name, "prompt-completion", ("completion",), True, _Talk(talk))
    if isinstance(row.get("text"), str) and "prompt" not in row:
        yield Format("plain text (text), all of it a target", "prompt-completion", ("completion",), False, _text)
    if "prompt" in row:
        conversational = is_messages(row["prompt"])
        how = "conversational" if conversational else "standard"
        yield Format(f"prompts only, {how}", "prompt-only", (), conversational, _Explicit((), conversational))


def _tokenised(row: Mapping[str, Any], wanted: Sequence[str]) -> Iterator[Format]:
    if "prompt_ids" not in row:
        return
    for branches, kind in ((tuple(wanted), "branches"), (_PAIR, "preference"), (("completion",), "prompt-completion")):
        if branches and all(f"{name}_ids" in row for name in branches):
            if branches == ("completion",):
                kind = "unpaired" if "label" in row else "prompt-completion"
            elif branches == _PAIR:
                kind = "preference"
            name = f"already tokenised ({', '.join(f'{b}_ids' for b in ('prompt', *branches))})"
            yield Format(name, kind, branches, False, _Tokenised(branches), tokenised=True)  # type: ignore[arg-type]
    if not wanted:
        yield Format("already tokenised (prompt_ids)", "prompt-only", (), False, _Tokenised(()), tokenised=True)


def _pair(row: Mapping[str, Any], talk: str | None) -> Format:
    """A pair: where its prompt is depends on the types of the values."""
    prompt, chosen = row.get("prompt"), row["chosen"]
    listed = is_messages(chosen)
    own_prompt = isinstance(prompt, str) or is_messages(prompt)
    if talk and not own_prompt and (not isinstance(chosen, list) or first_role(chosen) == "assistant"):
        name = f"preference, ShareGPT ({talk} with chosen and rejected)"
        return Format(name, "preference", _PAIR, True, _Explicit(_PAIR, True, prompt=talk))
    if own_prompt and not (isinstance(prompt, str) and listed and first_role(chosen) != "assistant"):
        conversational = is_messages(prompt) or listed
        how = "conversational" if conversational else "standard"
        repeated = conversational and is_messages(prompt) and listed and _repeats(row)
        name = f"preference, {how}, explicit prompt" + (" (repeated in the answers, taken off)" if repeated else "")
        return Format(name, "preference", _PAIR, conversational, _Explicit(_PAIR, conversational, repeated=repeated))
    if listed:
        note = " (the prompt column repeats the first turn)" if prompt is not None else ""
        return Format(f"preference, conversational, implicit prompt{note}", "preference", _PAIR, True, _implicit_talk)
    if isinstance(chosen, str) and chosen.lstrip().startswith(HH_HUMAN.strip()):
        return Format("preference, HH-RLHF transcripts", "preference", _PAIR, False, _hh)
    return Format("preference, standard, implicit prompt", "preference", _PAIR, False, _implicit_text)


# --- converters: picklable, so that `datasets` can fingerprint them ---------------------------------------------------


@dataclass(frozen=True)
class _Explicit:
    """A prompt and branches, each in a column of its own."""

    branches: tuple[str, ...]
    conversational: bool
    prompt: str = "prompt"
    label: bool = False
    repeated: bool = False

    def __call__(self, row: Mapping[str, Any]) -> Row:
        if not self.conversational:
            out: Row = {"prompt": string(row, "prompt", may_be_empty=True)}
            out |= {name: string(row, name) for name in self.branches}
            return out | extras(row, self.label)
        prompt = messages(row, self.prompt, plain_role="user")
        out = {"prompt": prompt}
        for name in self.branches:
            turns = messages(row, name, plain_role="assistant")
            if self.repeated and _starts_with(turns, prompt):
                turns = turns[len(prompt) :]
            out[name] = answer(turns, name)
        return out | extras(row, self.label)


@dataclass(frozen=True)
class _Talk:
    """A whole conversation in one column. With a label the last answer is the branch, else all from the first one."""

    column: str
    label: bool = False

    def __call__(self, row: Mapping[str, Any]) -> Row:
        talk = messages(row, self.column)
        answers = [index for index, message in enumerate(talk) if message["role"] == "assistant"]
        if not answers:
            raise BadRow(f"{self.column} holds no assistant turn")
        cut = answers[-1] if self.label else answers[0]
        if cut == 0:
            raise BadRow(f"{self.column} starts with an assistant turn, so there is no prompt")
        return {"prompt": talk[:cut], "completion": answer(talk[cut:], self.column)} | extras(row, self.label)


@dataclass(frozen=True)
class _Tokenised:
    branches: tuple[str, ...]

    def __call__(self, row: Mapping[str, Any]) -> Row:
        out: Row = {}
        for name in ("prompt", *self.branches):
            ids = row.get(f"{name}_ids")
            if not isinstance(ids, list) or not all(type(i) is int for i in ids):
                raise BadRow(f"{name}_ids is not a list of token ids")
            if not all(0 <= i < _TOO_MANY for i in ids):
                raise BadRow(f"{name}_ids holds a number that is no token id (-100 marks labels)")
            out[f"{name}_ids"] = ids
            mask = row.get(f"{name}_mask")
            if name != "prompt" and mask is not None:
                if not isinstance(mask, list) or len(mask) != len(ids):
                    raise BadRow(f"{name}_mask and {name}_ids differ in length")
                out[f"{name}_mask"] = [int(bool(m)) for m in mask]
            out |= {key: number(row, key) for key in row if key.startswith(f"{name}_logp_") and name != "prompt"}
        return out | extras(row, row.get("label") is not None)


def _text(row: Mapping[str, Any]) -> Row:
    return {"prompt": "", "completion": string(row, "text")}


def _implicit_text(row: Mapping[str, Any]) -> Row:
    prompt, chosen, rejected = split_shared_text(string(row, "chosen"), string(row, "rejected"))
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected} | extras(row)


def _hh(row: Mapping[str, Any]) -> Row:
    parts = split_hh(string(row, "chosen"), string(row, "rejected"))
    if parts is None:
        raise BadRow("chosen and rejected share no prompt")
    prompt, chosen, rejected = parts
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise BadRow(f"{name} is empty")
        if HH_HUMAN in text:
            raise BadRow(f"{name} goes on with a further Human turn")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected} | extras(row)


def _implicit_talk(row: Mapping[str, Any]) -> Row:
    chosen, rejected = messages(row, "chosen"), messages(row, "rejected")
    shared = common_messages(chosen, rejected)
    if shared == 0:
        raise BadRow("chosen and rejected share no prompt")
    answers = {"chosen": answer(chosen[shared:], "chosen"), "rejected": answer(rejected[shared:], "rejected")}
    return {"prompt": chosen[:shared], **answers} | extras(row)


def _repeats(row: Mapping[str, Any]) -> bool:
    """Whether the chosen answer of a raw row repeats its prompt."""
    try:
        return _starts_with(messages(row, "chosen"), messages(row, "prompt"))
    except BadRow:
        return False


def _starts_with(turns: list[Row], prompt: list[Row]) -> bool:
    """Whether messages begin with those of a prompt and go on; keys that no template renders may differ."""
    return len(turns) > len(prompt) and rendered_turns(turns[: len(prompt)]) == rendered_turns(prompt)


# --- when nothing fits ------------------------------------------------------------------------------------------------


def _refuse_json_text(row: Mapping[str, Any]) -> None:
    for name in ("prompt", "completion", "messages", "conversations", *_PAIR):
        value = row.get(name)
        if isinstance(value, str) and value.lstrip().startswith("[{") and ('"role"' in value or '"from"' in value):
            raise UserError(
                f"The column {name} holds messages written into a string. Save the data as JSON lines or Parquet, "
                "with a list of messages in the column."
            )


def _unrecognised(names: Sequence[str], wanted: Sequence[str], candidates: Sequence[Format]) -> str:
    shown = [name for name in names if name != "row"]
    columns = ", ".join(shown) or "none"
    if reads_labels(wanted):
        return _unlabelled(columns, shown, wanted, candidates)
    if candidates:
        head = (
            f"The objective scores {' and '.join(wanted)}, but the rows are: {candidates[0].name} (columns: {columns})."
        )
        target = tuple(wanted)
    else:
        head = f"The format of the rows is not known (columns: {columns})."
        target = tuple(wanted) or ("completion",)
    needed = ("prompt", *target)
    expected = f"Expected {', '.join(needed[:-1])} and {needed[-1]}, each text or a list of messages"
    if target == _PAIR:
        expected += " (prompt may be left out where both answers repeat it)"
    cure = f"Where they have other names, map them: columns: {{{_suggestion(needed, shown)}}}."
    if target == _PAIR and candidates and candidates[0].kind == "unpaired":
        cure += " Answers with labels are trained on with objective: {name: kto}."
    return f"{head} {expected}. {cure}"


def _unlabelled(columns: str, names: Sequence[str], wanted: Sequence[str], candidates: Sequence[Format]) -> str:
    """Why rows are of no use to an objective on labelled answers."""
    if strange := [name for name in wanted if name not in (*LABELLED, MISMATCH)]:
        return (
            f"The objective reads {', '.join(strange)} beside labelled answers, and no row has both: let the added "
            "part read desirable or undesirable (objective.branch)."
        )
    found = candidates[0].name if candidates else "of an unknown format"
    mapped = _suggestion(("prompt", "completion", "label"), names)
    return (
        f"The objective reads labelled answers, but the rows are: {found} (columns: {columns}). Expected prompt, "
        f"completion and label (true or false), or pairs with chosen and rejected. Where they have other names, map "
        f"them: columns: {{{mapped}}}."
    )


def _suggestion(needed: Sequence[str], names: Sequence[str]) -> str:
    free = [name for name in names if name not in needed]
    pairs = []
    for ours in needed:
        if ours in names:
            continue
        guess = next((theirs for theirs in SYNONYMS.get(ours, ()) if theirs in free), None)
        if guess:
            free.remove(guess)
        pairs.append(f"{ours}: {guess or '<your column>'}")
    return ", ".join(pairs) or f"{needed[0]}: <your column>"
