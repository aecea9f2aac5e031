"""A run begins with its plan: it is said and kept, refuses what cannot fit, and is compared with what was measured."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
from small_run import recipe, small_world

from align.errors import DoesNotFit, UserError
from align.plan import speed
from align.report.page.about import cost
from align.runs.record import load_run
from align.train import run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world(tmp_path_factory.mktemp("world"))


def test_the_plan_is_said_kept_and_compared(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from align.training import planned

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(planned, "_SHORT", 0.0)
    lines: list[str] = []
    made = recipe(world, tmp_path, train={"max_steps": 2, "save_steps": 2, "eval_steps": 2})
    run(made, echo=lines.append)
    (said,) = [line for line in lines if line.startswith("plan: ")]
    assert " at the most, context and fragmentation " in said
    plan = json.loads((made.output_dir / "plan.json").read_text())
    assert plan["fits"] is True
    facts = json.loads((made.output_dir / "facts.json").read_text())["cost"]
    found = facts["planned"]
    assert (found["steps"], found["measured_steps"]) == (2, 2)
    assert found["memory_bytes"] == plan["memory"]["total"]
    assert 0 <= found["measured_memory_bytes"] < facts["peak_memory_bytes"]
    (line,) = (tmp_path / "cache" / "align" / speed.FILE).read_text().splitlines()
    assert json.loads(line)["rate"] == pytest.approx(plan_flops(plan) / found["measured_seconds"], rel=0.5)
    page = cost(load_run(made.output_dir))
    (table,) = [block for block in page.blocks if getattr(block, "title", "") == "The plan and what was measured"]
    assert table.header == ("", "planned", "measured", "ratio")  # type: ignore[union-attr]
    assert [row[0] for row in table.rows] == ["memory", "training"]  # type: ignore[union-attr]


def plan_flops(plan: dict) -> float:
    """All weights but an embedding that is looked up: 6 operations for the policy and 2 for every other token."""
    tokens = plan["time"]["tokens"]
    return plan["weights"]["all"] * (6 * tokens["policy"] + 2 * (tokens["reference"] + tokens["evaluations"]))


@pytest.fixture
def huge(world: Path, tmp_path: Path) -> Path:
    """The small world's model with sizes of 70B, and no weights that could be loaded."""
    folder = tmp_path / "huge"
    shutil.copytree(world / "model", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    sizes = {"hidden_size": 16384, "intermediate_size": 57344, "num_hidden_layers": 20, "num_attention_heads": 128}
    (folder / "config.json").write_text(json.dumps({**config, **sizes, "num_key_value_heads": 8, "head_dim": 128}))
    return folder


def test_what_cannot_fit_ends_before_a_weight_is_loaded(world: Path, huge: Path, tmp_path: Path) -> None:
    made = recipe(world, tmp_path, model={"id": str(huge)})
    with pytest.raises(DoesNotFit) as caught:
        run(made, echo=lambda line: None)
    first, second, *rest = str(caught.value).splitlines()
    assert first.startswith("This run needs 1,")  # some 1,290 GiB: 20 bytes a weight, and the program
    assert first.endswith("free: does not fit.")
    assert second.startswith("At ")
    assert "weights 252.5 GiB, reference 252.5 GiB, optimizer state 505.1 GiB" in second
    assert rest[-1] == "Nothing was loaded. align plan FILE says more; --anyway starts it all the same."
    assert caught.value.exit_code == 3
    assert json.loads((made.output_dir / "plan.json").read_text())["fits"] is False
    # started anyway it comes to the weights, which are not there
    with pytest.raises(UserError, match=r"model\.id: .* cannot be loaded"):
        run(made, anyway=True, echo=lambda line: None)


def test_a_plan_that_cannot_be_made_costs_no_run(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from align.training import planned

    def broken(*_: object) -> None:
        raise AttributeError("a library has changed")

    monkeypatch.setattr(planned, "plan_of", broken)
    lines: list[str] = []
    made = recipe(world, tmp_path, train={"max_steps": 1, "save_steps": 1, "eval_steps": 1})
    run(made, echo=lines.append)
    assert "plan: none (AttributeError: a library has changed)" in lines
    assert not (made.output_dir / "plan.json").exists()
    assert (made.output_dir / "model" / "export.json").is_file()


def test_under_zero3_the_planning_process_makes_its_model_alone(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first process plans: a model made as ZeRO-3 makes one waits for the others, and they for the plan."""
    from transformers.integrations import deepspeed as integration

    from align.training import run as training
    from align.training.planned import planned

    deepspeed = pytest.importorskip("deepspeed")
    made_together: list[object] = []

    def under_zero3(*given: object) -> object:
        with monkeypatch.context() as patch:
            patch.setattr(deepspeed.zero, "Init", lambda *_, **__: made_together.append(_) or nullcontext())
            held = integration.HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
            assert integration.is_deepspeed_zero3_enabled()
            found = planned(*given)  # type: ignore[arg-type]
            assert integration.is_deepspeed_zero3_enabled()
            integration.unset_hf_deepspeed_config()
            del held
        return found

    monkeypatch.setattr(training, "planned", under_zero3)
    made = recipe(world, tmp_path, train={"max_steps": 1, "save_steps": 1, "eval_steps": 1})
    run(made, echo=lambda line: None)
    assert made_together == []
    assert json.loads((made.output_dir / "plan.json").read_text())["fits"] is True
