"""How one server is asked for completions: with which settings, by tokens or by text, and for how many at a time.

Servers fill in what a call leaves out, from defaults of their own (llama.cpp: the 40 likeliest tokens) or from the
checkpoint's ``generation_config.json`` (vLLM, transformers), so every such setting is sent. Others refuse what they do
not know. A few calls of one token each find out how this one wants to be asked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from align.errors import UserError
from align.judges.http import Body, Client, Refused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.recipe.sampling import Sampling

# what changes nothing, under the names of vLLM and of llama.cpp
NEUTRAL: Mapping[str, Any] = {
    "top_k": -1,
    "min_p": 0.0,
    "typical_p": 1.0,
    "top_n_sigma": -1.0,
    "repetition_penalty": 1.0,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "dry_multiplier": 0.0,
    "xtc_probability": 0.0,
    "dynatemp_range": 0.0,
    "mirostat": 0,
    "ignore_eos": False,
    "min_tokens": 0,
}
# of transformers' GenerationConfig, which `transformers serve` takes as JSON in one field
_GENERATION: Mapping[str, Any] = {
    "do_sample": True,
    "num_beams": 1,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
}
_CONFIG = "generation_config"
_REFUSALS = (400, 422)
_NEEDED = frozenset({"model", "prompt", "max_tokens"})
# settings of ours that a refused key would leave out, unless transformers' field has them
_SETTINGS = {name: f"sampling.{name}" for name in ("temperature", "top_p", "top_k", "min_p", "stop")} | {
    "stop_token_ids": "sampling.stop"
}


def settings_of(sampling: Sampling, stop: Sequence[str], ends: Sequence[int], eos: int) -> dict[str, Any]:
    """What is posted of the settings, with everything switched off that is not asked for.

    Args:
        stop: texts that end a completion.
        ends: special tokens that do, beside those of the model.
        eos: the tokenizer's end-of-text token.
    """
    own = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    generation = {**_GENERATION, **own, "top_k": sampling.top_k or 0, "min_p": sampling.min_p or 0.0}
    if ends:
        generation["eos_token_id"] = list(dict.fromkeys([eos, *ends]))
    asked = {"top_k": sampling.top_k, "min_p": sampling.min_p, "stop": list(stop), "stop_token_ids": list(ends)}
    body = {**own, **NEUTRAL, **{name: value for name, value in asked.items() if value}}
    return body | {_CONFIG: json.dumps(generation)}


class Asking:
    """How a server is asked, once ``learn`` has found it out.

    Attributes:
        model: what the server calls the policy.
        left_out: keys that it refused.
        by_text: whether prompts go as text.
        most: completions of a call.
    """

    def __init__(
        self, client: Client, tokenizer: PreTrainedTokenizerBase, model: str, say: Callable[[str], Any]
    ) -> None:
        self.client, self.tokenizer, self.model, self.say = client, tokenizer, model, say
        self.left_out: set[str] = set()
        self.by_text = False
        self.most: int | None = None

    def learn(self, body: Body, prompts: Sequence[Sequence[int]]) -> None:
        """Find out how the server takes a body, and whether it can be asked all ``prompts`` (token ids).

        Raises:
            UserError: where it does not take what is needed.
        """
        self._find_form(body, prompts)
        self._find_most(body)
        if self.left_out:
            self.say(
                f"the server does not take {', '.join(sorted(self.left_out))}; it is asked without, and whether it "
                "draws as it should is seen in what it draws"
            )
        if self.by_text:
            self.say("the server takes no token ids, so prompts go as text, which gives the same tokens")
        if self.most is not None and self.most < body["n"]:
            many = "one completion" if self.most == 1 else f"{self.most} completions"
            self.say(f"the server gives {many} at a time, so a prompt takes several calls")

    def parts(self, body: Body) -> Iterator[dict[str, Any]]:
        """The calls that bring the completions of a body."""
        total, most = body["n"], self.most or body["n"]
        for start in range(0, total, most):
            # servers count a call's seed up for each completion: split, a prompt is drawn as it would be in one
            changes: dict[str, Any] = {"model": self.model}
            changes |= {"n": min(most, total - start), "seed": (body["seed"] + start) % 2**31}
            if self.by_text:
                changes["prompt"] = exact_text(self.tokenizer, body["prompt"])
            yield {name: value for name, value in {**body, **changes}.items() if name not in self.left_out}

    # ---- finding out

    def _find_form(self, body: Body, prompts: Sequence[Sequence[int]]) -> None:
        """Leave out what is refused by name, and put prompts as text where tokens are refused."""
        for _ in range(len(body) + 2):
            part = self._short(body, 1)
            try:
                self.client.ask("/completions", part, _some)
                return
            except Refused as refused:
                if refused.status not in _REFUSALS:
                    raise
                named = self._named(refused.said, part)
                if not named and self.by_text:
                    raise
                self._check_settings(named, body)
                self.left_out |= named
                if not named:
                    self._require_exact(prompts)
                    self.by_text = True
        raise UserError(f"{self.client.url}/completions refuses every way to ask that is known here.")

    def _find_most(self, body: Body) -> None:
        """Ask for all completions of a prompt, and for half as many as long as that is refused."""
        most = 1 if "n" in self.left_out else body["n"]
        while most > 1:
            try:
                answer = self.client.ask("/completions", self._short(body, most), _some)
            except Refused as refused:
                if refused.status not in _REFUSALS:
                    raise
                most = math.ceil(most / 2)
                continue
            most = min(most, len(answer["choices"]))  # some give one whatever they are asked for
            break
        self.most = most

    def _short(self, body: Body, count: int) -> dict[str, Any]:
        """A call for so many completions of one token."""
        self.most = None
        return next(self.parts({**body, "n": count, "max_tokens": 1}))

    def _named(self, said: str, part: Body) -> set[str]:
        """Keys of a call, but for those that are needed, that a refusal names; short ones in quotation marks."""
        named = {name for name in part if re.search(rf"\b{name}\b" if len(name) > 1 else rf"['\"`]{name}['\"`]", said)}
        return named - _NEEDED

    def _check_settings(self, named: set[str], body: Body) -> None:
        """Refuse to leave out what was asked for. Raises ``UserError``."""
        neutral = {**NEUTRAL, "temperature": 1.0, "top_p": 1.0}
        carried = _CONFIG not in self.left_out | named
        for name in sorted(named & _SETTINGS.keys()):
            if body[name] != neutral.get(name) and (name == "stop" or not carried):
                raise UserError(
                    f"{self.client.url} does not take {name}, which {_SETTINGS[name]} sets: leave it out, or draw from "
                    "another server, or without one."
                )

    def _require_exact(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raises ``UserError`` where a prompt has no text that stands for its tokens."""
        inexact = [i for i, ids in enumerate(prompts) if exact_text(self.tokenizer, ids) is None]
        if inexact:
            start = self.tokenizer.decode(list(prompts[inexact[0]])[:20])
            raise UserError(
                f"{self.client.url} takes prompts as text only, and {len(inexact):,} of {len(prompts):,} prompts (one "
                f"begins with {start!r}) have no text that gives their tokens back: draw from a server that takes "
                "token ids, or without one."
            )


def exact_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str | None:
    """A text of which the tokenizer, called as servers call it, makes just these tokens; None where there is none."""
    wanted = [int(i) for i in ids]
    # one that puts a BOS before every text does so for the server, too
    for start in (0, 1) if wanted[:1] == [tokenizer.bos_token_id] else (0,):
        text = str(tokenizer.decode(wanted[start:], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if list(tokenizer(text)["input_ids"]) == wanted:
            return text
    return None


def _some(answer: Any) -> bool:
    return isinstance(answer, dict) and isinstance(answer.get("choices"), list) and bool(answer["choices"])
