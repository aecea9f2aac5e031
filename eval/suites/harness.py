"""Tasks of lm-evaluation-harness as a suite."""

from __future__ import annotations

from align.errors import UserError
from align.eval.harness import evaluate, require_harness
from align.eval.suites.measuring import Measured, Measuring
from align.eval.suites.sections import Harness


def harness(settings: Harness, now: Measuring) -> Measured | None:
    """lm-eval's figures of the tasks. None on all processes but the first.

    Raises:
        UserError: where lm-eval is missing, or a task or its data cannot be had.
    """
    require_harness(f"suite {now.suite.name}")
    try:
        found = evaluate(
            now.model,
            settings.tasks,
            kept=now.kept,
            weights=now.weights,
            device=now.world.device,
            include=_include(settings, now),
            shots=settings.shots,
            chat_template=settings.chat_template,
            batch_size=settings.batch_size,
            limit=now.limit,
        )
    except UserError as error:
        raise UserError(f"suite {now.suite.name}: {error}") from error
    return None if found is None else Measured(found.result, found.main, about={"tasks": found.tasks})


def _include(settings: Harness, now: Measuring) -> str | None:
    """The folder with tasks of the user's own. Raises ``UserError`` where it may not be read."""
    if settings.include is None:
        return None
    if not now.allow_code:
        raise UserError(
            f"tasks in {settings.include} may hold code, which lm-eval runs as it reads them: add --allow-code where "
            "you trust them."
        )
    return now.suite.place(settings.include)
