"""What align check says about a suite before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.errors import UserError
from align.eval.check_suite import suite_lines
from align.eval.log import SetLog, TofuLog
from align.recipe.sections import Evaluate, Source

WORLD = Evaluate(split="forget", source=Source(world="1"))


def with_retain(name: str) -> Evaluate:
    return WORLD.model_copy(update={"retain": name})


def test_says_what_will_be_asked_and_compared(tmp_path: Path) -> None:
    first, *rest = suite_lines(WORLD, tmp_path)
    assert first == "evaluate: tofu forget (forget 120, retain 360, ra 240, wf 48)"
    assert any("no forget quality" in line for line in rest)
    assert "which is not loaded here" in suite_lines(with_retain("some/model"), tmp_path)[-1]


@pytest.mark.parametrize(("rows", "fits"), [(120, True), (40, False)])
def test_a_log_must_be_of_these_rows(tmp_path: Path, rows: int, fits: bool) -> None:
    import numpy as np

    log = TofuLog({"forget": SetLog(loss=np.ones(rows))})
    (tmp_path / "log.json").write_text(json.dumps(log.to_json()))
    if fits:
        assert suite_lines(with_retain("log.json"), tmp_path)[-1] == "  compared with the log log.json"
        return
    with pytest.raises(UserError, match="has 40 forget rows, but forget has 120"):
        suite_lines(with_retain("log.json"), tmp_path)


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        suite_lines(with_retain("./nope"), tmp_path)
    with pytest.raises(UserError, match="one split to forget"):
        suite_lines(WORLD.model_copy(update={"split": "forget10"}), tmp_path)
