"""What ``align train`` and ``accelerate launch ... -m align.train`` run: a recipe, in one training or in rounds."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from align.errors import UserError, of_this_process
from align.runs.search import not_here

if __name__ == "__main__":
    not_here()

from align.recipe import Recipe, load_recipe
from align.runs.disk import on_disk
from align.runs.ended import ended
from align.runs.go_on import remember_command
from align.runs.memory import answered
from align.runs.quiet import without_device_notice
from align.runs.result import RunResult
from align.runs.signals import SIGNALS
from align.runs.speaker import enter, rank
from align.runs.terminal import echo as to_terminal

_FLAGS = ("--resume", "--allow-code", "--anyway")


def run(
    recipe: Recipe,
    *,
    resume: bool = False,
    allow_code: bool = False,
    anyway: bool = False,
    echo: Callable[[str], Any] = to_terminal,
) -> RunResult:
    """Train as a recipe says and return what came of it. Every rank calls it; only the main process prints and writes.

    ``anyway`` starts also where the plan says that it does not fit.

    Raises:
        UserError: for everything the caller can mend, before anything is lost.
        DoesNotFit: where the plan says so, or memory or the disk ran out; the last complete checkpoint is kept.
        Stopped: where a guard ended the run; the same is kept.
    """
    without_device_notice()
    recipe = recipe.of_its_run() if resume else recipe
    with of_this_process():
        _check_push(recipe, echo)
    with on_disk(recipe.output_dir):
        result = _train(recipe, resume, allow_code, anyway, echo)
    with of_this_process():
        _push(recipe, echo)
    return result


def _train(recipe: Recipe, resume: bool, allow_code: bool, anyway: bool, echo: Callable[[str], Any]) -> RunResult:
    if recipe.rounds is not None:
        from align.rounds.trainer import RoundTrainer

        return RoundTrainer.of(recipe, allow_code=allow_code, anyway=anyway, echo=echo).train(resume=resume)
    from align.training.run import run as train

    options = {"resume": resume, "allow_code": allow_code, "anyway": anyway}
    return train(recipe, **options, echo=echo, make_suite=_tofu_suite)


def _check_push(recipe: Recipe, echo: Callable[[str], Any]) -> None:
    """Ask the Hub, on the first process, whether the push at the end will be allowed. Raises UserError."""
    if recipe.output.push is None or rank():
        return
    from align.export.target import Target, check_target

    repo = check_target(Target(recipe.output.push, recipe.output.private), echo)
    echo(f"push: at the end the model goes to {repo}, {'private' if recipe.output.private else 'public'}")


def _push(recipe: Recipe, echo: Callable[[str], Any]) -> None:
    """Push the model of the finished run, on the first process. Raises UserError with the command that does it."""
    output = recipe.output
    if output.push is None:
        return
    from align.runs.processes import leave_together

    leave_together()  # an upload may take longer than processes wait for one another
    if rank():
        return
    from align.export.hub import push_now
    from align.export.target import Target
    from align.runs.signals import SIGNALS

    again = ["align", "push", str(recipe.output_dir), output.push, *([] if output.private else ["--public"])]
    try:
        SIGNALS.obey()  # whoever sent SIGTERM while the result was written will not wait for an upload
        push_now(recipe.output_dir, Target(output.push, output.private), echo)
    except (UserError, KeyboardInterrupt) as error:
        why = error if isinstance(error, UserError) else "it was interrupted."
        raise UserError(
            f"The run is finished and whole in {recipe.output_dir}, but its push failed: {why}\n"
            f"Push it without training again: {shlex.join(again)}"
        ) from None


def _tofu_suite(*args: Any, **kwargs: Any) -> Any:
    from align.eval.recipe_suite import tofu_suite

    return tofu_suite(*args, **kwargs)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of ``accelerate launch ... -m align.train FILE [key=value ...]`` with the flags of ``align train``."""
    given = list(sys.argv[1:] if argv is None else argv)
    words = [word for word in given if word not in _FLAGS]
    resume, allow_code, anyway = (flag in given for flag in _FLAGS)
    if not words or words[0] in ("-h", "--help"):
        if rank() == 0:
            flags = " ".join(f"[{flag}]" for flag in _FLAGS)
            print(f"usage: accelerate launch [...] -m align.train FILE [key=value ...] {flags}")
        return 0 if words else 2
    warnings.filterwarnings("ignore", category=FutureWarning)
    with SIGNALS.heard():
        try:
            enter()
            remember_command()
            with answered():
                recipe = load_recipe(words[0], words[1:], allow_code=allow_code)
                SIGNALS.run = (recipe.of_its_run() if resume else recipe).output_dir
                run(recipe, resume=resume, allow_code=allow_code, anyway=anyway)
            from align.runs.processes import leave_together

            leave_together()
        except BaseException as error:
            return ended(error)
    return 0


def end(code: int) -> NoReturn:
    """Leave the process with an exit code, under a launcher at once."""
    if "RANK" in os.environ:
        # torch's threads can abort an interpreter that ends around them, and a good run would be reported as failed
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    end(main())
