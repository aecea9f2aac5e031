"""What a page is made of: sections of sentences, tables, charts and texts. A template turns them into HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from align.report.figures import shown as number
from align.report.ink import Draw
from align.report.page.panel import Panel

Tone = Literal["good", "look", "bad", "plain"]


@dataclass(frozen=True)
class Key:
    """An entry of a chart's legend: ``style`` is the number of the line's colour and dashes."""

    label: str
    style: int
    value: str = ""


@dataclass(frozen=True)
class Chart:
    """A picture with its title and one line about it; ``says`` is the picture in words, ``height`` is in inches."""

    title: str
    about: str
    says: str
    draw: Draw
    legend: tuple[Key, ...] = ()
    unit: str = ""
    height: float = 2.6

    @classmethod
    def of(cls, panel: Panel) -> Chart:
        """The chart of a panel; the legend gives the last value of each line."""
        legend = tuple(Key(one.label, one.style, number(one.last)) for one in panel.series)
        return cls(panel.title, panel.about, panel.says(), panel.draw, legend, panel.unit)


@dataclass(frozen=True)
class Charts:
    """Charts side by side where there is room."""

    charts: tuple[Chart, ...]
    kind: ClassVar[str] = "charts"


@dataclass(frozen=True)
class Text:
    """A paragraph; a ``quiet`` one says what was not measured."""

    text: str
    quiet: bool = False
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Points:
    """Sentences one below the other."""

    items: Sequence[str]
    kind: ClassVar[str] = "points"


@dataclass(frozen=True)
class Word:
    """A finding: its word, how it is to be taken, and on what it rests."""

    name: str
    word: str
    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Words:
    """The findings of a verdict."""

    words: tuple[Word, ...]
    kind: ClassVar[str] = "words"


@dataclass(frozen=True)
class Table:
    """Rows of text under a line of names; ``folded`` under its title, to be opened."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    folded: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    facts: Mapping[str, str]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Code:
    """Text as it stands in a file; ``title`` says which, and then it is folded under it."""

    text: str
    title: str = ""
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Answer:
    """A prompt, with what was answered to it in each state of the model or by each model."""

    prompt: str
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Answers:
    """Answers side by side where there is room."""

    answers: tuple[Answer, ...]
    kind: ClassVar[str] = "answers"


Block = Charts | Text | Points | Words | Table | Facts | Code | Answers


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A whole page: ``about`` are short facts under the title, ``runs`` the legend of a comparison."""

    title: str
    about: Sequence[str]
    sections: Sequence[Section]
    runs: Sequence[Key] = ()
