"""A document as one file of HTML: no scripts, nothing loaded from anywhere, and all text stays text."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from align.report.ink import STYLES, inline, svg
from align.report.page.blocks import Chart, Document, Key
from align.report.page.untrusted import shown
from align.versions import DISTRIBUTION, installed

_HERE = Path(__file__).parent


def render(page: Document, refresh: int | None = None) -> str:
    """The page. Every text in it passes ``shown`` and is escaped, whoever wrote it.

    A browser reads it again every ``refresh`` seconds, where that is given.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_safe,
        keep_trailing_newline=True,
    )
    numbers = count(1)

    def picture(chart: Chart) -> Markup:
        name = f"chart-{next(numbers)}"
        return Markup(inline(svg(chart.draw, name, height=chart.height), name, str(escape(shown(chart.says)))))

    return environment.get_template("page.html").render(
        page=page,
        refresh=refresh,
        css=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        version=installed(DISTRIBUTION),
        picture=picture,
        colour=lambda key: STYLES[key.style % len(STYLES)][0],
        dashes=_dashes,
    )


def _safe(value: Any) -> Any:
    """What the template prints: markup that was made here as it is, text without what hides or never ends."""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _dashes(key: Key) -> str:
    return " ".join(f"{length:g}" for length in STYLES[key.style % len(STYLES)][1]) or "none"
