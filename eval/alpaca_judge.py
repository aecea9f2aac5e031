"""Who judges AlpacaEval's answers: a model behind a server with the official question, or any other judge.

The question in ``alpaca_prompt.txt`` is that of the authors' package (tatsu-lab/alpaca_eval, Apache-2.0), word for
word.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from align.data.rows.questions import talks
from align.data.tokens.samples import Prompt
from align.eval.alpaca_rows import JUDGE
from align.judges.endpoint import EndpointJudge
from align.judges.judge import CompareJudge, Judging
from align.judges.loading import early_judge, load_judge
from align.judges.trial import try_judge
from align.recipe.sampling import Judge
from align.runs.processes import World

OFFICIAL_MODEL, OFFICIAL_HOST = "gpt-4-1106-preview", "api.openai.com"
_PLACES = re.compile(r"\{(instruction|output_1|output_2)\}")
_TURNS = re.compile(r"<\|im_start\|>(\w+)\n(.*?)\n?<\|im_end\|>", re.DOTALL)


def is_switched(instruction: str) -> bool:
    """Whether the model's answer is shown first: the official lot, the same for every model."""
    return random.Random(f"is_switched_outputs{instruction}0").choices([False, True])[0]


class OfficialJudge(EndpointJudge):
    """AlpacaEval 2's question to a model behind a server: which of the models m and M answered better.

    As ``EndpointJudge``, but for the question, which has a system message, and the letters, of which only these two
    spellings count. An answer with neither is NaN: it was not judged.
    """

    labels = ("m", "M")
    either = "m nor M"
    neither = math.nan

    @staticmethod
    def label(token: str) -> str:
        return token

    @property
    def annotator(self) -> str:
        """What its annotations are called: the official name for the official model alone."""
        ours = (self.settings.model, self.client.host) == (OFFICIAL_MODEL, OFFICIAL_HOST)
        return JUDGE if ours else f"{self.name} with AlpacaEval's question"

    def body(self, prompt: Prompt, first: str, second: str) -> dict[str, Any]:
        """The official call. What a server could fill in by itself is sent, so that none draws from fewer tokens."""
        if not isinstance(prompt, str):
            raise TypeError("AlpacaEval's instructions are text")
        return {
            "model": self.settings.model,
            "messages": messages(prompt, first, second),
            "max_tokens": 1,
            "temperature": 1.0,
            "top_p": 1.0,
            "logprobs": True,
            "top_logprobs": 5,
        }


def load_official(
    settings: Judge, calls: Path, *, base: Path, allow_code: bool, world: World, say: Callable[[str], Any]
) -> Judging:
    """The judge of a section; a model behind a server is asked the official question. Raises ``UserError``.

    Args:
        calls: file that counts a server's calls for all processes.
    """
    if settings.endpoint is None:
        return load_judge(settings, base=base, allow_code=allow_code, device=world.device, say=say)
    return OfficialJudge(settings.endpoint, say, base, calls=calls)


def early_official(
    settings: Judge, calls: Path, *, base: Path, allow_code: bool, world: World, say: Callable[[str], Any]
) -> Judging | None:
    """A judge without weights, ready; None for one with weights. Either was asked once. Raises ``UserError``."""
    how: dict[str, Any] = {"base": base, "allow_code": allow_code, "say": say}
    load = partial(load_official, settings, calls, world=world, **how)
    judge = load() if settings.endpoint is not None else early_judge(settings, device=world.device, **how)
    world.together(lambda: try_judge(lambda: judge or load()) if world.rank == 0 else None)
    return judge


def messages(instruction: str, first: str, second: str) -> list[Mapping[str, str]]:
    """The official question as turns; what looks like a place inside a text stays as it is."""
    template = files(__package__ or "align.eval").joinpath("alpaca_prompt.txt").read_text(encoding="utf-8")
    texts = {"instruction": instruction, "output_1": first, "output_2": second}
    return [
        {"role": role, "content": _PLACES.sub(lambda match: texts[match[1]], text)}
        for role, text in _TURNS.findall(template)
    ]


def annotator(judge: Judging) -> str:
    """What a judge's annotations are called."""
    return judge.annotator if isinstance(judge, OfficialJudge) else judge.name


def prefer(judge: Judging, instructions: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
    """Preference for our answers, from 0 to 1, in one order each, which ``is_switched`` draws.

    A judge that compares gives a probability. Of one that scores the higher score wins, since how far two scores lie
    apart means something else for each reward model; equal ones are a tie. Equal texts are a tie, and no one is asked.
    """
    out = [0.5] * len(instructions)
    asked = [i for i in range(len(out)) if ours[i] != theirs[i]]
    if not asked:
        return out
    prompts = put_to(judge, [instructions[i] for i in asked])
    if isinstance(judge, CompareJudge):
        first = [is_switched(instructions[i]) for i in asked]
        shown = [(ours if own else theirs)[i] for i, own in zip(asked, first, strict=True)]
        other = [(theirs if own else ours)[i] for i, own in zip(asked, first, strict=True)]
        found = judge.prefer_first(prompts, shown, other)
        values = [value if own else 1 - value for value, own in zip(found, first, strict=True)]
    else:
        scores = [judge.score(prompts, [texts[i] for i in asked]) for texts in (ours, theirs)]
        values = [(a > b) + (a == b) / 2 for a, b in zip(*scores, strict=True)]
    for i, value in zip(asked, values, strict=True):
        out[i] = value
    return out


def agreement(
    judge: Judging, instructions: Sequence[str], ours: Sequence[str], theirs: Sequence[str], preference: Sequence[float]
) -> float | None:
    """Share of pairs for which the judge names the same winner when asked in the other order, too.

    None for a judge that scores, which sees no order, and where nothing was judged.

    Args:
        preference: what ``prefer`` gave.
    """
    if not isinstance(judge, CompareJudge):
        return None
    first = [not is_switched(instruction) for instruction in instructions]
    shown = [a if own else b for a, b, own in zip(ours, theirs, first, strict=True)]
    other = [b if own else a for a, b, own in zip(ours, theirs, first, strict=True)]
    again = judge.prefer_first(put_to(judge, instructions), shown, other)
    both = [
        (before, value if own else 1 - value)
        for before, value, own in zip(preference, again, first, strict=True)
        if not (math.isnan(before) or math.isnan(value))
    ]
    return sum((a > 0.5) == (b > 0.5) for a, b in both) / len(both) if both else None


def put_to(judge: Judging, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts as a judge reads them: plain text as a user's turn for a model that was made for turns."""
    tokenizer: Any = getattr(judge, "tokenizer", None)
    conversational = tokenizer is not None and talks(tokenizer)
    return [[{"role": "user", "content": one}] if conversational and isinstance(one, str) else one for one in prompts]
