"""Every method on every backend trains as one process does: the table of docs/launch.md, trained anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed.backends import BACKENDS, CELLS, MARKERS, METHODS, PAGE, WAYS, allowed, check
from distributed.launching import SINGLE, launch, need, save_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("backends"))


@pytest.mark.slow
@pytest.mark.parametrize("label", list(BACKENDS))
def test_every_method_on_each_backend(folder: Path, label: str) -> None:
    need(label)
    launch(folder, SINGLE, CELLS)
    launch(folder, label, CELLS)
    check(folder, label, CELLS)


def test_the_page_has_the_whole_table() -> None:
    begin, end = MARKERS
    text = PAGE.read_text().partition(begin)[2].partition(end)[0]
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    named = [row for row in rows if row[0] in METHODS.values()]
    losses, memory = named[: len(CELLS)], named[len(CELLS) :]
    assert len({tuple(row[:3]) for row in losses}) == len(CELLS) == len(METHODS) * len(WAYS) + 4
    assert [row[:3] for row in losses] == [row[:3] for row in memory]
    for case, row in zip(CELLS, losses, strict=True):
        moved, *differences = map(float, row[3:])
        assert len(differences) == len(BACKENDS)
        assert max(differences) <= allowed(case)[0] < moved
