"""Tasks of lm-evaluation-harness as a suite."""

from __future__ import annotations

from align.errors import UserError
from align.eval.harness import evaluate, require_harness
from align.eval.suites.measuring import Measured, Measuring, digest_of_rows
from align.eval.suites.sections import Harness

_ASKED = ("version", "shots", "config")


def harness(settings: Harness, now: Measuring) -> Measured | None:
    """lm-eval's figures of the tasks. None on all processes but the first.

    Raises:
        UserError: where a task or its data cannot be had.
    """
    try:
        found = evaluate(
            now.model,
            settings.tasks,
            kept=now.kept,
            weights=now.weights,
            device=now.world.device,
            include=None if settings.include is None else now.suite.place(settings.include),
            shots=settings.shots,
            chat_template=settings.chat_template,
            batch_size=settings.batch_size,
            limit=now.limit,
        )
    except UserError as error:
        raise UserError(f"suite {now.suite.name}: {error}") from error
    if found is None:
        return None
    # rows are known by their content, and what surrounds it, such as worked examples, by their task
    asked = digest_of_rows({task: [about[key] for key in _ASKED] for task, about in found.tasks.items()})
    return Measured(found.result, found.main, asked, about={"tasks": found.tasks, "standard_errors": found.errors})


def require(settings: Harness, now: Measuring) -> None:
    """Refuse what cannot go on: no lm-eval, or tasks of the user's own without leave. Raises ``UserError``."""
    require_harness(f"suite {now.suite.name}")
    if settings.include is not None and not now.allow_code:
        raise UserError(
            f"suite {now.suite.name}: tasks in {settings.include} may hold code, which lm-eval runs as it reads them: "
            "add --allow-code where you trust them."
        )
