"""Layouts on fixed texts, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from align.data.rows.layouts import blank_lines, bold, bullets, heading

TEXT = " It is late. Is it 3.5 km? Yes!"
LAYOUTS = {
    bold: " **It is late.** Is it 3.5 km? Yes!",
    heading: "## Answer\n\nIt is late. Is it 3.5 km? Yes!",
    bullets: "- It is late.\n- Is it 3.5 km?\n- Yes!",
    blank_lines: "It is late.\n\nIs it 3.5 km?\n\nYes!",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_words_in_another_layout(layout: Callable[[str], str]) -> None:
    assert layout(TEXT) == LAYOUTS[layout]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "text", ["", " \n", "So:\n```\nx = 1. y\n```", "One. Two.\n- three", "# Big", "a\n    b = 1", "1. a"]
)
def test_code_and_marked_texts_stay(layout: Callable[[str], str], text: str) -> None:
    assert layout(text) == text
