"""Between log steps nothing waits for the device: no value of a tensor is looked at, and none is copied to it in turn.

A GPU counts for itself (tests/cuda); here every call that would wait there is noted.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from training import forget_rows, labelled, pairs, trainer
from transformers import TrainerCallback
from zoo import small

from align.objectives import DPO, OBJECTIVES, FlexDPO

_LOOKS = {"item", "tolist", "cpu", "numpy", "nonzero", "masked_select", "equal", "allclose", "is_nonzero", "unique"}
_LOOKS |= {"__bool__", "__int__", "__float__", "__index__", "__contains__", "new_tensor"}
_FROM_HOST = {"tensor", "as_tensor"}


class Waits(TorchFunctionMode):
    """Notes the names of calls that would wait for a device, and who made them, while it is ``on``."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        mask = name in ("__getitem__", "__setitem__") and _has_mask(args[1])
        copied = name in _FROM_HOST and (kwargs or {}).get("device") is not None
        if name in _LOOKS or mask or copied:
            caller = next(f for f in inspect.stack(0)[1:] if "/torch/" not in f.filename)
            self.found.append(f"{name} at {Path(caller.filename).name}:{caller.lineno}")
        return func(*args, **(kwargs or {}))


def _has_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in parts)


class BetweenLogs(TrainerCallback):
    """Counts from the second step to the last but one, but for the optimizer's own step."""

    def __init__(self, made: Any) -> None:
        self.waits, self.steps, self._open = Waits(), 0, False
        for name in ("_divisors", "needs_reference_pass"):
            self._watch(made, name)

    def _watch(self, made: Any, name: str) -> None:
        plain = getattr(made, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            if not 1 <= made.state.global_step < made.args.max_steps - 1:
                return plain(*args, **kwargs)
            with self.waits:
                return plain(*args, **kwargs)

        setattr(made, name, counted)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if 1 <= state.global_step < args.max_steps - 1:
            self.waits.__enter__()
            self._open = True

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._open:
            self.waits.__exit__(None, None, None)
            self._open, self.steps = False, self.steps + 1


@contextmanager
def counted(made: Any) -> Iterator[BetweenLogs]:
    watch = BetweenLogs(made)
    made.add_callback(watch)
    yield watch


# HyPO and what reads samples wait for the samples anyway
QUIET = [name for name in OBJECTIVES if not {"sample", "survivor"} & set(small(name).branches)]


@pytest.mark.parametrize("name", [*QUIET, "calibrated", "flex-auto"])
def test_a_step_looks_at_no_value(name: str, tmp_path: Path) -> None:
    measuring = {"calibrated": DPO(calibrate=True), "flex-auto": FlexDPO(beta_minus="auto")}
    objective = measuring[name] if name in measuring else small(name)
    options = {"max_steps": 5, "logging_steps": 5, "gradient_accumulation_steps": 2, "max_grad_norm": 1.0}
    for _ in range(2):  # the second run finds the reference in the store
        # so many that none comes again: a row that is read from the store has been waited for
        kinds = {"chosen": pairs, "desirable": labelled}
        rows = kinds.get(objective.branches[0], forget_rows)(96)
        made = trainer(tmp_path, objective, rows, store_dir=tmp_path / "store", **options)
        with counted(made) as watch:
            made.train()
        assert watch.steps == 3
        assert sorted(set(watch.waits.found)) == []


def test_the_count_sees_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path, small("dpo"), max_steps=5, logging_steps=5)
    plain = made.score

    def looked_at(*args: Any, **kwargs: Any) -> Any:
        policy, terms = plain(*args, **kwargs)
        values = terms.losses[0].losses
        assert values[values > -1].sum().item() > 0
        assert values.sum() > 0
        return policy, terms

    monkeypatch.setattr(made, "score", looked_at)
    with counted(made) as watch:
        made.train()
    assert [found.split(" at test_waiting.py")[0] for found in watch.waits.found] == [
        "__getitem__",
        "item",
        "__bool__",
    ] * 3
