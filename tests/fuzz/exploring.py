"""How a fuzz test runs: so many examples, the same ones every time, each in a contained process."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from contained import Outcome, contained
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

# what a case would import otherwise, each anew in its own process
for module in (
    *("align.cli.check", "align.cli.check_model", "align.cli.check_rows", "align.cli.evaluate", "align.cli.overview"),
    *("align.training.run", "align.training.finish", "align.train", "align.runs.record", "align.eval.log_read"),
    *("transformers.models.llama.modeling_llama", "peft", "pyarrow.parquet", "sklearn.metrics"),
):
    importlib.import_module(module)


def cases(count: int) -> pytest.MarkDecorator:
    """So many examples in ``make test``, ten times as many in ``make test-all``."""
    return pytest.mark.parametrize("count", [count, pytest.param(10 * count, marks=pytest.mark.slow)])


def explore(
    strategy: st.SearchStrategy,
    count: int,
    folder: Path,
    case: Callable[[Any, Path], Callable[[], int]],
    may_write: tuple[str, ...] = (),
) -> list[Outcome]:
    """Run examples; those that do what they must not are shown, five at most.

    Args:
        case: gets an example and a folder of its own, fills it, and gives the work that is contained.
        may_write: what the work may change there.
    """
    outcomes: list[Outcome] = []
    wrong: list[str] = []
    numbers = itertools.count()

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # a smaller example would take minutes to find
    )
    @given(strategy)
    def each(example: Any) -> None:
        place = folder / str(next(numbers)) / "place"
        place.mkdir(parents=True)
        outcome = contained(case(example, place), place, may_write=may_write)
        outcomes.append(outcome)
        if outcome.wrong:
            wrong.append(f"{outcome.wrong}: {str(example)[:1500]}\n{outcome.said[-2500:]}")

    each()
    assert not wrong, f"{len(wrong)} of {len(outcomes)} did what they must not:\n" + "\n\n".join(wrong[:5])
    return outcomes
