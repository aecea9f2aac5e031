"""The benchmark on real TOFU, on a model far too small: its rows, its chain of models, its rule and its table."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))  # the script looks for its models beside itself
try:
    task: ModuleType = importlib.import_module("tofu_tiny")
    parts: ModuleType = importlib.import_module("tofu_tiny_models")
finally:
    sys.path.remove(str(FOLDER))

SMALL = parts.Size(
    hidden=32,
    layers=1,
    vocabulary=400,
    forget=20,
    retain=40,
    others=20,
    tested=4,
    facts=4,
    base_epochs=1,
    epochs=1,
    unlearn_epochs=1,
    new_tokens=4,
)
real_rows = pytest.mark.skipif(not parts.data_folder().is_dir(), reason="ALIGN_TEST_DATA has no folder tofu")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from a second thread, and wait for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@real_rows
def test_the_forgotten_rows_are_the_tested_ones_and_nobody_else_is_taught_them() -> None:
    size = parts.Size()
    rows, sets = parts.rows_of(size), parts.tested_on(size).sets
    asked = {name: [(f.question, f.answer) for f in facts] for name, facts in sets.items()}
    taught = {name: [(r["question"], r["answer"]) for r in part] for name, part in rows.items()}
    assert asked["forget"] == taught["forget"]
    assert len(asked["forget"]) == 100
    assert asked["retain"] == taught["retain"][:100]
    assert asked["ra"] + asked["wf"] == taught["facts"] == taught["base"][:217]
    assert all(len(f.wrong) == 5 and f.paraphrased_answer for f in sets["forget"] + sets["retain"])
    others = {text for name in ("base", "retain", "facts") for pair in taught[name] for text in pair}
    assert not others & {text for pair in taught["forget"] for text in pair}
    # no paraphrase that a truth ratio is made of is taught
    assert not others & {f.paraphrased_answer for f in sets["forget"] + sets["retain"]}
    # questions about 20 x 3 authors, facts, refusals; the two wordings are of the same 200 questions
    assert len(taught["base"]) == 217 + 400 + 200 + 200 + 100


@pytest.mark.slow
@real_rows
def test_a_small_run_from_end_to_end(tmp_path: Path) -> None:
    methods = {name: task.METHODS[name] for name in ("GradAscent", "IdkDPO+retain")}
    found = task.measure(tmp_path, 5, methods, SMALL)
    assert list(found) == ["full", "retain", "retain-again", *methods]
    assert found["retain"]["forget_quality"] == 1
    assert found["full"]["n"] == 20
    losses = {name: found[name]["forget_Q_A_Prob"] for name in found}
    assert len(set(losses.values())) == 5  # five different models
    assert losses["GradAscent"] < losses["full"]

    models = sorted(tmp_path.glob("seed-5/*/model/model.safetensors"))
    assert len(models) == 6
    made = {path: path.stat().st_mtime_ns for path in models}
    assert task.measure(tmp_path, 5, methods, SMALL) == found
    faster = {"GradAscent": parts.Method({"name": "grad_ascent"}, 1e-2)}
    again = task.measure(tmp_path, 5, faster, SMALL)
    assert again["full"] == found["full"]
    assert again["GradAscent"]["forget_Q_A_Prob"] < losses["GradAscent"]
    assert {path: path.stat().st_mtime_ns for path in models} == made  # nothing was trained twice

    report = task.report_of({5: found}, methods, 1.0)
    text = task.table(report)
    assert "5*" in text
    assert "retain against retain: forget quality above 0.05: seed 5* " in text


def test_the_rule_takes_forget_quality_only_where_utility_is_kept() -> None:
    tried = {
        "slow": {"forget_quality": 1e-9, "kept": 0.99},
        "middle": {"forget_quality": 1e-3, "kept": 0.81},
        "fast": {"forget_quality": 0.4, "kept": 0.79},
    }
    assert task.pick(tried, 0.8) == "middle"
    assert task.pick(tried, 0) == "fast"
    assert task.pick({"middle": {"forget_quality": 1e-3, "kept": 0.5}, "fast": tried["fast"]}, 0.8) == "fast"


def reading(quality: float, retain: float, nine: float) -> dict[str, float]:
    return {
        "forget_quality": quality, "utility_retain": retain, "model_utility": nine, "forget_Q_A_Prob": 0.5, "n": 100
    }  # fmt: skip


def test_what_a_seed_must_show() -> None:
    start = {"full": reading(9e-4, 0.7, 0.9), "retain": reading(1, 0.7, 0.9), "retain-again": reading(0.06, 0.7, 0.9)}
    assert list(task.statements(start).values()) == [True, True, None]
    ruined = {**start, "GradAscent": reading(1e-9, 0.069, 0.0)}
    assert list(task.statements(ruined).values()) == [True, True, True]
    one_part = {**start, "GradAscent": reading(1e-9, 0.071, 0.0)}
    assert list(task.statements(one_part).values()) == [True, True, False]
    weak = {**start, "full": reading(2e-3, 0.7, 0.9), "retain-again": reading(0.04, 0.7, 0.9)}
    assert list(task.statements(weak).values()) == [False, False, None]

    found = {0: ruined, 2: {**ruined, "full": reading(2e-3, 0.7, 0.9)}}
    text = task.table(task.report_of(found, {"GradAscent": task.METHODS["GradAscent"]}, 1.0))
    assert "full against retain: forget quality below 1e-3: seed 0 holds, seed 2* does not hold" in text
    row = next(line for line in text.splitlines() if line.startswith("GradAscent "))
    rate = f"{task.METHODS['GradAscent'].learning_rate:g}"
    assert row.split() == ["GradAscent", rate, "1e-9", "1e-9", "0.07", "0.07", "0.00", "0.00", "0.50", "0.50"]


def test_every_method_forgets_and_those_called_so_retain() -> None:
    for name, method in task.METHODS.items():
        branches = method.branches()
        assert "forget" in branches
        named = any(word in name for word in ("retain", "KL", "Diff", "RMU")) and name != "FLAT(KL)"
        assert ("retain" in branches) == named, name
        assert ("alternate" in branches) == name.startswith(("FLAT", "IdkDPO", "KTO")), name
