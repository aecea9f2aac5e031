"""The picture of a document for chats and papers: its title, its first words and four of its charts, as a PNG."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from align.report.ink import FONT, INK, MUTED, line_style, pictures, style
from align.report.page.blocks import Chart, Charts, Document, Key, Table, Tone, Word, Words
from align.report.page.untrusted import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BOTH = "Chosen and rejected"
# the charts that say most, of whatever kind of run
_FIRST = (
    "Forget quality against utility", "Chosen and rejected", "Accuracy", "Calibration", "Reward", "Score",
    "Dispersion", "Reverse KL", "Likeness", "Forgotten answers", "Utility", "Margin", "KL", "Length", "Loss",
)  # fmt: skip
_TONES: dict[Tone, str] = {"good": "#00694c", "look": "#7d5200", "bad": "#b3261e", "plain": INK}
_WIDTH, _CHART, _LINE, _MARGIN = 12.0, 3.05, 0.21, 0.3  # inches
_LEGEND = 72  # characters and lines of a legend that fit over a chart
_TEXT_AT, _WRAP = 3.15, 104  # where the sentences begin, in inches, and how many characters they have in a line


def picture(page: Document) -> bytes:
    """The PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    charts = chosen(page)
    rows = [(word, textwrap.wrap(plain(word.text), _WRAP) or [""]) for word in first_words(page)]
    head = _MARGIN + 1.0 + _LINE * (len(page.runs) + sum(len(lines) for _, lines in rows))
    height = head + _CHART * ((len(charts) + 1) // 2) + 0.1
    with pictures("summary"):
        figure = Figure(figsize=(_WIDTH, height), dpi=120)
        FigureCanvasAgg(figure)
        _head(figure, page, rows, height)
        for i, chart in enumerate(charts):
            bottom = height - head - _CHART * (i // 2 + 1)
            left = 0.95 + (i % 2) * (_WIDTH / 2 - 0.05)
            axes = figure.add_axes((left / _WIDTH, (bottom + 0.7) / height, 4.75 / _WIDTH, (_CHART - 1.45) / height))
            chart.draw(axes)
            axes.set_ylabel("")  # it is in the title
            unit = f" ({chart.unit})" if chart.unit else ""
            axes.set_title(f"{chart.title}{unit}", loc="left", fontsize=FONT + 1, fontweight="bold", pad=24)
            if chart.legend:
                _legend(axes, [_handle(key) for key in chart.legend])
        out = io.BytesIO()
        figure.savefig(out, format="png")
    return out.getvalue()


def chosen(page: Document) -> list[Chart]:
    """Up to four charts; of a comparison one for each quantity, none of training batches, which runs do not share."""
    found: dict[str, Chart] = {}
    for chart in (c for section in page.sections for b in section.blocks if isinstance(b, Charts) for c in b.charts):
        title, _, part = chart.title.partition(": ")
        both = f"{title}: {part}" if title == _BOTH else title  # of this pair one says little without the other
        if title in _FIRST and part != "training" and both not in found:
            found[both] = chart
    return sorted(found.values(), key=lambda chart: _FIRST.index(chart.title.partition(": ")[0]))[:4]


def first_words(page: Document) -> Sequence[Word]:
    """The findings of the first section; of a comparison, a line for each finding with the word of each run."""
    for block in page.sections[0].blocks:
        if isinstance(block, Words):
            return block.words
        if isinstance(block, Table):
            letters = [name[0] for name in block.header[1:]]
            return [Word(row[0], "", " · ".join(map("{} {}".format, letters, row[1:]))) for row in block.rows]
    return []


def _head(figure: Figure, page: Document, rows: Sequence[tuple[Word, list[str]]], height: float) -> None:
    def write(x: float, y: float, text: str, **options: Any) -> None:
        figure.text(x / _WIDTH, 1 - y / height, text, va="top", **options)

    write(_MARGIN, _MARGIN, plain(page.title)[:80], fontsize=17, fontweight="bold")
    write(_MARGIN, _MARGIN + 0.36, plain(" · ".join(page.about))[:150], fontsize=FONT, color=MUTED)
    y = _MARGIN + 0.7
    for key in page.runs:
        figure.legend(
            handles=[_handle(key)], loc="upper left", bbox_to_anchor=((_MARGIN - 0.07) / _WIDTH, 1 - y / height)
        )
        y += _LINE
    y += 0.15 if page.runs else 0.0
    for word, lines in rows:
        write(_MARGIN, y, plain(word.name), fontsize=FONT, color=MUTED)
        write(_MARGIN + 1.2, y, plain(word.word), fontsize=FONT, color=_TONES[word.tone], fontweight="bold")
        at = _TEXT_AT if word.word else _MARGIN + 1.2
        for line in lines:
            write(at, y, line, fontsize=FONT)
            y += _LINE


def _legend(axes: Axes, handles: Sequence[Any]) -> None:
    """Over the axes on one line, in smaller letters where there are many words."""
    characters = sum(len(handle.get_label()) + 9 for handle in handles)
    size = (FONT - 0.5) * min(1.0, _LEGEND / characters)
    place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.98), "borderaxespad": 0.3, "columnspacing": 1.2}
    axes.legend(handles=handles, ncols=len(handles), fontsize=size, **place)


def _handle(key: Key) -> Any:
    from matplotlib.lines import Line2D

    colour, dashes = style(key.style)
    label = plain(f"{key.label}  {key.value}".strip())[:110]
    return Line2D([], [], color=colour, ls=line_style(dashes), label=label)


def plain(text: str) -> str:
    """``text`` in characters that the pictures' font has, on one line; others are question marks."""
    known = _glyphs()
    return "".join(c if ord(c) in known else "?" for c in " ".join(shown(text, 400).split()))


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())
