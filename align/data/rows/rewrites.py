"""Texts changed so that they mean the same: slips of the pen, another look, other words.

A reward model that reads what an answer says should hardly notice; reWordBench (arXiv 2503.11751) asks this with
changes of its own. Numbers, code, mathematics, addresses and words that hold a capital inside or a digit stay as they
are. No slip falls on a word with a capital, since it may be a name. English alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from align.data.rows.rewrite_tables import CONTRACTIONS, DIGITS, NEIGHBOURS, NUMBER_WORDS, OTHER_WORDS, SYNONYMS
from align.errors import UserError

Rewrite = Callable[[str, random.Random], str]  # the text itself comes back where there is nothing to change
_Edit = tuple[int, int, str]  # from, to, what is put there

_WORDS_PER_SLIP = 20
_ATTEMPTS = 5  # for each variant that is asked for and for each kind

# what no rewrite touches: code, mathematics, tags, addresses
_KEPT = re.compile(
    r"(?ms)```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]*`|^(?: {4}|\t)[^\n]*"
    r"|\$\$.*?\$\$|\$[^$\n]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\\w+|<[^<>\n]+>|\w+://\S+|www\.\S+|\S+@\S+"
)
# around a word: no part of a name, a path, a number, a call or a contraction
_BEFORE, _AFTER = r"(?<![\w'’@#/\\(.=-])", r"(?![\w'’@/\\(=-]|\.\w)"
_WORD = re.compile(_BEFORE + r"[a-z]+" + _AFTER)
_SENTENCE = re.compile(  # its first letter, where the word has no other capital
    r"(?:\A\s*|(?<=[a-z]{3}[.!?])\s+|\n *(?:[-*+] |\d+\. )?)([A-Z])(?=[a-z]*(?:[ ,!?'’\n]|\.\s|\.?\Z))"
)
_GAP = re.compile(r"(?<=[a-z,;]) (?=[a-z])")
_COUNT = re.compile(r"(?<=[a-z] )(?:1[0-2]|[0-9])(?= [a-z]{3})")


def _phrases(phrases: Sequence[str], ahead: str = "") -> re.Pattern[str]:
    """Any of the phrases as whole words, with or without a capital at their start, the longest first."""
    longest = sorted(phrases, key=len, reverse=True)
    either = "|".join(f"[{p[0].upper()}{p[0]}]{re.escape(p[1:])}" for p in longest).replace("'", "['’]")
    return re.compile(f"{_BEFORE}(?:{either}){_AFTER}{ahead}")


_WHOLE = {contracted: whole for whole, contracted in CONTRACTIONS.items()}
# "Don't you" is a question, which "do not you" is not
_CONTRACTED = _phrases(list(_WHOLE), r"(?! (?:I|you|he|she|it|we|they|this|that|these|those|there)\b)")
# "is not only" and "who I am and" must stay whole
_CONTRACTABLE = _phrases(
    list(CONTRACTIONS),
    r"(?= [a-z])(?! (?:only|just|merely|simply|but|to|and|or|as|than|when|if|because|in|at|on|is|was|are|were)\b)",
)
_SYNONYM = re.compile(f"{_BEFORE}(?:{'|'.join(sorted(SYNONYMS, key=len, reverse=True))}){_AFTER}")


def variants(text: str, count: int, seed: int, kinds: Sequence[str] | None = None) -> list[str]:
    """Up to ``count`` different texts that mean what ``text`` means, and are not it; fewer where there are no more.

    ``kinds`` are names of ``REWRITES`` (all unless given) and take turns. A function of its arguments alone: the same
    text has the same variants wherever it stands. Raises ``UserError`` for a kind that does not exist.
    """
    names = list(REWRITES) if kinds is None else list(kinds)
    if unknown := [name for name in names if name not in REWRITES]:
        raise UserError(f"{unknown[0]!r} is no kind of rewrite; the kinds are {', '.join(REWRITES)}.")
    draw = random.Random(f"{seed} {text}")
    found: dict[str, None] = {}  # in the order in which they were found
    for attempt in range(_ATTEMPTS * count * len(names)):
        if len(found) == count:
            break
        changed = REWRITES[names[attempt % len(names)]](text, draw)
        if changed != text:
            found[changed] = None
    return list(found)


def swapped_letters(text: str, draw: random.Random) -> str:
    """Two neighbouring letters inside a word change places: one word in twenty, and one at least."""
    return _slipped(text, draw, lambda word, at: word[:at] + word[at + 1] + word[at] + word[at + 2 :], last=2)


def dropped_letter(text: str, draw: random.Random) -> str:
    """A letter inside a word is missing; as often as ``swapped_letters``."""
    return _slipped(text, draw, lambda word, at: word[:at] + word[at + 1 :])


def doubled_letter(text: str, draw: random.Random) -> str:
    """A letter inside a word stands twice; as often as ``swapped_letters``."""
    return _slipped(text, draw, lambda word, at: word[: at + 1] + word[at:])


def neighbour_key(text: str, draw: random.Random) -> str:
    """A letter inside a word becomes one beside it on the keyboard; as often as ``swapped_letters``."""
    return _slipped(text, draw, lambda word, at: word[:at] + draw.choice(NEIGHBOURS[word[at]]) + word[at + 1 :])


def lower_case(text: str, draw: random.Random) -> str:
    """Sentences begin in lower case. Capitals further on stay, since they mark names."""
    return _put(text, [(*found.span(1), found[1].lower()) for found in _places(_SENTENCE, text)])


def capital_words(text: str, draw: random.Random) -> str:
    """Every word begins with a capital, as in a headline."""
    return _put(text, [(*found.span(), found[0].capitalize()) for found in _places(_WORD, text)])


def extra_spaces(text: str, draw: random.Random) -> str:
    """Two spaces in place of one between some words."""
    return _put_some(text, draw, [(*found.span(), "  ") for found in _places(_GAP, text)])


def no_break_end(text: str, draw: random.Random) -> str:
    """A no-break space at the end, unless the text ends with one or with code."""
    return text if _kept_at_ends(text)[1] or not text or text.endswith("\u00a0") else text + "\u00a0"


def quotation_marks(text: str, draw: random.Random) -> str:
    """Quotation marks around the text, unless it begins or ends with one or with code."""
    inside = text.strip()
    if not inside or any(_kept_at_ends(inside)) or inside[0] in "\"'“" or inside[-1] in "\"'”":
        return text
    return text.replace(inside, f'"{inside}"', 1)


def contractions_expanded(text: str, draw: random.Random) -> str:
    """``do not`` in place of ``don't``, in some places."""
    return _put_some(text, draw, _exchanged(text, _CONTRACTED, _WHOLE))


def contractions(text: str, draw: random.Random) -> str:
    """``don't`` in place of ``do not``, in some places."""
    return _put_some(text, draw, _exchanged(text, _CONTRACTABLE, CONTRACTIONS))


def synonyms(text: str, draw: random.Random) -> str:
    """Some words and phrases by others of our own table; none where ``a`` would have to become ``an``."""
    edits = [
        edit
        for edit in _exchanged(text, _SYNONYM, SYNONYMS)
        if (text[edit[0]] in "aeiou") == (edit[2][0] in "aeiou") or not re.search(r"\b[Aa]n? \Z", text[: edit[0]])
    ]
    return _put_some(text, draw, edits)


def numbers_as_words(text: str, draw: random.Random) -> str:
    """Some whole numbers from 0 to 12 that stand between words, as words."""
    return _put_some(text, draw, [(*found.span(), DIGITS[int(found[0])]) for found in _places(_COUNT, text)])


TYPOGRAPHICAL: dict[str, Rewrite] = {
    rewrite.__name__: rewrite
    for rewrite in (
        swapped_letters,
        dropped_letter,
        doubled_letter,
        neighbour_key,
        lower_case,
        capital_words,
        extra_spaces,
        no_break_end,
        quotation_marks,
    )
}
REWORDINGS: dict[str, Rewrite] = {
    rewrite.__name__: rewrite for rewrite in (contractions_expanded, contractions, synonyms, numbers_as_words)
}
REWRITES = TYPOGRAPHICAL | REWORDINGS


def _places(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """Where a pattern stands outside of what is kept."""
    kept = [found.span() for found in _KEPT.finditer(text)]
    return [m for m in pattern.finditer(text) if not any(start < m.end() and m.start() < end for start, end in kept)]


def _kept_at_ends(text: str) -> tuple[bool, bool]:
    """Whether the text begins, and whether it ends, with something that is kept."""
    kept = [found.span() for found in _KEPT.finditer(text)]
    return bool(kept) and kept[0][0] == 0, bool(kept) and kept[-1][1] == len(text)


def _exchanged(text: str, pattern: re.Pattern[str], table: dict[str, str]) -> list[_Edit]:
    """What the table has for every phrase found, with a capital where the phrase had one."""
    edits = []
    for found in _places(pattern, text):
        old = found[0].replace("’", "'")
        new = table[old.lower()]
        edits.append((*found.span(), new[0].upper() + new[1:] if old[0].isupper() else new))
    return edits


def _slipped(text: str, draw: random.Random, slip: Callable[[str, int], str], last: int = 1) -> str:
    """A slip inside of one word in twenty; first and last letter stay. ``last`` letters of a word are not its place."""
    words = [found for found in _places(_WORD, text) if len(found[0]) > 4 and found[0] not in NUMBER_WORDS]
    wanted = max(1, len(text.split()) // _WORDS_PER_SLIP)
    edits: list[_Edit] = []
    for found in draw.sample(words, len(words)):
        changed = slip(found[0], draw.randrange(1, len(found[0]) - last))
        if changed != found[0] and changed not in OTHER_WORDS and len(edits) < wanted:
            edits.append((*found.span(), changed))
    return _put(text, sorted(edits))


def _put_some(text: str, draw: random.Random, edits: list[_Edit]) -> str:
    """The text after a random choice of the edits, one at least."""
    return _put(text, sorted(draw.sample(edits, draw.randint(1, len(edits))))) if edits else text


def _put(text: str, edits: Sequence[_Edit]) -> str:
    """The text after edits in the order of their places."""
    parts, done = [], 0
    for start, end, new in edits:
        parts += [text[done:start], new]
        done = end
    return "".join([*parts, text[done:]])
