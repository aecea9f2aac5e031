"""What all pictures share: colours, line styles, and figures without a window. Imports no torch.

A picture is a function that draws on matplotlib's axes; here it becomes an SVG for a page or a part of a PNG.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Axes"], Any]

# at least 4.5 to 1 on white and 3 to 1 on black; hues that stay apart for colour-blind readers
COLOURS = {
    "blue": "#0072b2",
    "orange": "#c24e00",
    "green": "#007f5c",
    "purple": "#a8518a",
    "gold": "#9a6700",
    "violet": "#5b4fc7",
}
INK, MUTED, GRID, CARD = "#1f2328", "#6e7781", "#d1d9e0", "#f6f8fa"
# a line is told by its dashes as well as by its colour: (colour, on and off in points)
STYLES: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("blue", ()),
    ("orange", (6, 2.5)),
    ("green", (2, 2)),
    ("purple", (7, 2, 2, 2)),
    ("gold", (12, 3)),
    ("violet", (4, 2, 4, 5)),
)
DASHED = (4, 3)  # of lines that are no measurement: thresholds, chance
FONT = 10.0  # points

_SETTINGS = {
    "text.parse_math": False,  # a dollar sign in a run's name is a dollar sign
    "svg.fonttype": "none",  # text stays text
    "font.size": FONT,
    "axes.unicode_minus": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.scale_dashes": False,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": FONT - 0.5,
    "legend.handlelength": 2.6,
}


def style(number: int) -> tuple[str, tuple[float, ...]]:
    """The hexadecimal colour and the dashes of the line with this number; they repeat after six."""
    name, dashes = STYLES[number % len(STYLES)]
    return COLOURS[name], dashes


def line_style(dashes: tuple[float, ...]) -> Any:
    """Dashes in matplotlib's words."""
    return (0, dashes) if dashes else "-"


@contextmanager
def pictures(name: str = "align") -> Iterator[None]:
    """Within it, figures have the settings of this project; ``name`` makes the ids of an SVG its own."""
    import matplotlib

    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        yield


def svg(draw: Draw, name: str, *, width: float = 4.7, height: float = 2.6) -> str:
    """The picture as an SVG document with a transparent ground; ``width`` and ``height`` in inches.

    The same picture gives the same bytes. ``name`` must differ among pictures that stand in one page.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with pictures(name):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.subplots())
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return out.getvalue()


def inline(document: str, name: str, label: str) -> str:
    """An SVG document as an element of a page: it scales, its colours are the page's, and its ids begin with ``name``.

    ``label`` is read to those who do not see it. Both must be safe in an attribute.
    """
    body = document[document.index("<svg") :]
    size = re.search(r'viewBox="([^"]+)"', body)
    inside = body[body.index(">") + 1 : body.rindex("</svg>")]
    # the style is for all elements of a document; the page has its own
    inside = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", inside, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', inside))
    inside = re.sub(r"<[^>]+>", lambda tag: _of_the_page(tag[0], name, used), inside)
    inside = re.sub(r"\s+", " ", inside)
    return f'<svg role="img" aria-label="{label}" viewBox="{size[1] if size else ""}">{inside}</svg>'


def _of_the_page(tag: str, name: str, used: set[str]) -> str:
    """A tag with ids that begin with ``name`` (those in ``used``), the page's colours and font, and short numbers."""
    tag = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", tag)
    tag = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", tag)
    tag = re.sub(
        r' transform="rotate\(-0 [^"]*"|font-family: [^;"]*;? ?', "", tag
    )  # matplotlib's fonts, not a reader's
    tag = re.sub(r"\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}", tag)
    for colour, variable in _VARIABLES.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return tag


_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    CARD: "card",
    **{colour: name for name, colour in COLOURS.items()},
}
