"""A loaded model and tasks as lm-evaluation-harness takes them. The only file that imports lm_eval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import evaluate as metrics_of_the_hub
import lm_eval.api.task
import lm_eval.evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from align.data.rows.values import BadRow
from align.data.tokens.chat import Request, render
from align.errors import UserError, told
from align.eval.kept import Kept
from align.recipe.messages import did_you_mean
from align.runs.models import without_waiting


class KeptLM(HFLM):
    """lm-eval's own wrapper of a causal model, whose answers are kept in parts; processes share the parts.

    Args:
        about: what answers depend on beside the request: plain JSON.
    """

    def __init__(self, model: Any, tokenizer: Any, kept: Kept, about: Any, *, batch_size: int) -> None:
        super().__init__(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=batch_size)
        self._kept, self._about = kept, [*about, batch_size]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        found = self._parts("loglikelihood", requests, super().loglikelihood)
        return [(value, greedy) for value, greedy in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        return self._parts("loglikelihood_rolling", requests, super().loglikelihood_rolling)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return self._parts("generate_until", requests, super().generate_until)

    def apply_chat_template(self, chat_history: Sequence[Any], add_generation_prompt: bool = True) -> str:
        """A conversation as text, rendered within our limits and with the arguments that the model was trained with.

        As lm-eval does, a template that refuses is asked again without the system message. Raises ``UserError`` where
        it refuses that, too, and for a task that begins the answer itself.
        """
        if not add_generation_prompt:
            raise UserError("a task begins the answer itself (gen_prefix): ask it with chat_template: false")
        plain = [message for message in chat_history if message["role"] != "system"]
        found = render(self.tokenizer, [Request(list(chat), prompt=True) for chat in (chat_history, plain)])
        kept = next((one for one in found if not isinstance(one, BadRow)), None)
        if kept is None:
            raise UserError(f"a question cannot be put ({found[0]})")
        return kept.text

    def _parts(self, kind: str, requests: Sequence[Any], answer: Callable[..., Any]) -> list[Any]:
        def work(some: Sequence[int]) -> list[Any]:
            return list(answer([requests[i] for i in some], disable_tqdm=True))

        rows = [list(request.args) for request in requests]
        return self._kept(rows, [kind, *self._about], work, what="requests answered", done=f"{kind} requests answered")


class Tasks(TaskManager):
    """Tasks by name, loaded once, with their data; what cannot be had is a sentence."""

    _loaded: dict[str, Any] | None = None

    @classmethod
    def named(cls, names: Sequence[str], include: str | None) -> Tasks:
        """Those of a folder and of the package; of the folder alone where it has all, since the package has 15,000."""
        own = None if include is None else cls(include_path=include, include_defaults=False)
        return own if own is not None and set(names) <= set(own.task_index) else cls(include_path=include)

    def load(self, task_list: Any) -> Any:
        """Tasks and groups by name. Raises ``UserError``."""
        if self._loaded is None:
            found: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
            for name in task_list:
                for key, part in self._one(name).items():
                    found[key] |= part
            self._loaded = found
        return self._loaded

    def _one(self, name: str) -> dict[str, Any]:
        if name not in self.task_index:
            meant = did_you_mean(name, self.task_index)
            hint = f" Did you mean {meant!r}?" if meant else ""
            raise UserError(f"{name} is no task of lm-eval and of none in include.{hint}")
        try:
            with _no_code_of_the_hub() as asked, without_waiting():
                found = super().load([name])
        except ImportError as error:
            raise UserError(f"task {name}: a package that it needs is missing ({told(error)}): install it.") from error
        except Exception as error:  # data sets, their cache and a task's own code fail in many ways
            raise UserError(
                f"task {name}: its data cannot be had ({_first(error)}). Load it once with the network on (without "
                "HF_HUB_OFFLINE), or take the task out of the suite."
            ) from error
        if asked:
            raise UserError(f"task {name}: its metric {asked[0]} is code of the Hub, which is never run. Leave it out.")
        for task, value in found["tasks"].items():
            if getattr(value, "UNSAFE_CODE", False):
                raise UserError(f"task {task} runs programs that the model writes: none is run here. Leave it out.")
        return dict(found)


@contextmanager
def _no_code_of_the_hub() -> Iterator[list[str]]:
    """Within, no metric is fetched from the Hub, where metrics are programs; names of those that were asked for."""
    asked: list[str] = []

    def refuse(name: str, *_: Any, **__: Any) -> Any:
        asked.append(name)
        raise UserError(f"the metric {name} is code of the Hub")

    with patch.object(metrics_of_the_hub, "load", refuse):
        yield asked


@contextmanager
def only_our_lines() -> Iterator[None]:
    """Within, lm-eval draws no bars of its own, and does not ask git about the working directory."""
    quiet = partial(lm_eval.api.task.tqdm, disable=True)
    with patch.object(lm_eval.api.task, "tqdm", quiet), patch.object(lm_eval.evaluator, "get_git_commit_hash", str):
        yield


def _first(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")[:200] or type(error).__name__
