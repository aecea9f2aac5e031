"""What tests of the small recipes share, made once for a process."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_world import teach, trained_reward


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that learned a small world, 80 pairs, and 40 held-out ones."""
    return teach(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="session")
def reward(taught: Path) -> tuple[Path, dict, list[str]]:
    """A reward model for that world, by its recipe in one epoch, not three: the run, its evaluation, its words."""
    out = taught / "reward"
    result, lines = trained_reward(taught, out, "train.num_train_epochs=1")
    return out, result.evaluation, lines
