"""Completions drawn by an OpenAI-compatible server that serves the policy under a name with its digest in it."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.data.tokens.samples import Finish, Sample, special_tokens
from align.errors import UserError
from align.judges.http import Client

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.recipe.sampling import Sampling

# Mean absolute difference of log-probs per token, in nats, that two programs with the same weights stay well below.
TOLERANCE: Mapping[str, float] = {"float32": 0.02, "float16": 0.05, "bfloat16": 0.1}


def policy_name(digest: str) -> str:
    """The name under which a server has to serve the policy of this digest (hex)."""
    return f"align-{digest[:12]}"


class ServerSampler:
    """Draws samples from a server, one call for each prompt and its samples.

    A prompt's seed depends on (seed, step, key) alone, so a call that is made again asks for the same; what the server
    makes of it is its own affair, and samples are not those that ``Sampler`` would draw. Top-k and min-p are only sent
    where they are set, so the server must not fill in its own (vLLM: ``--generation-config vllm``).

    Args:
        settings: how to draw; ``server`` must be set.
        tokenizer: the policy's; it must have an end-of-text token.
        served: the name that the server must list, see ``policy_name``.
        cache: folder that keeps answers, so that none is drawn twice after a kill; None keeps none. Where other weights
            are found out, it is to be removed, since the wrong samples are in it.
        checkpoint: folder of the policy, for the command that a message shows.
        say: where sentences go.
        pause: seconds before the first retry.

    Attributes:
        last_logps: of the last call, for each sample in order (prompt by prompt) the server's log-probs of the first of
            its ids; empty where it gave none. Only for ``check_weights``.
        retokenised: samples whose tokens had to be guessed from their text.
    """

    def __init__(
        self,
        settings: Sampling,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        served: str,
        *,
        cache: Path | None = None,
        checkpoint: Path | None = None,
        say: Callable[[str], Any] = print,
        pause: float = 1.0,
    ) -> None:
        if settings.server is None:
            raise UserError("sampling.server is not set: there is no server to draw from.")
        if "" in settings.stop:
            raise UserError("sampling.stop has an empty text, before which every completion would end: take it out.")
        if tokenizer.eos_token_id is None:
            raise UserError("The tokenizer has no end-of-text token, so it cannot be told which samples have ended.")
        self.settings, self.tokenizer, self.seed, self.served = settings, tokenizer, seed, served
        self.checkpoint, self.say = checkpoint, say
        self.client = Client(settings.server, cache, say=say, pause=pause)
        self.last_logps: list[list[float]] = []
        self.retokenised = 0
        self._said: set[str] = set()
        # a special token is no part of a text, but it ends one as well
        known = special_tokens(tokenizer)
        special = [text for text in settings.stop if text in known]
        self._stop = [text for text in settings.stop if text not in special]
        self._ends = [known[text] for text in special]
        self._special = set(known.values())

    def __call__(self, prompts: Sequence[Sequence[int]], keys: Sequence[int], step: int) -> list[list[Sample]]:
        """Samples of each prompt (token ids).

        Args:
            keys: one for each prompt, see ``prompt_key``.
            step: optimizer step or round.

        Raises:
            UserError: where the server does not serve the policy, refuses a call, fails for good, or answers with
                tokens that the tokenizer does not have.
        """
        bodies = [self.body(prompt, key, step) for prompt, key in zip(prompts, keys, strict=True)]
        answers = self.client.post("/completions", bodies, self._usable, self._before)
        out: list[list[Sample]] = []
        self.last_logps = []
        for answer in answers:
            drawn = [self._sample(i, choice) for i, choice in enumerate(_choices(answer))]
            out.append([sample for sample, _ in drawn])
            self.last_logps += [logps for _, logps in drawn]
        if out and not any(self.last_logps):
            self._once("the server gives no log-probs, so it cannot be checked whether it serves this very policy")
        if self.settings.samples > 1 and len(out) > 1 and all(len({s.ids for s in samples}) == 1 for samples in out):
            self._once("all samples of a prompt are the same, for every prompt: the server seems to give them one seed")
        return out

    def body(self, prompt: Sequence[int], key: int, step: int) -> dict[str, Any]:
        """What is posted for one prompt."""
        s = self.settings
        seed = hashlib.blake2b(f"{self.seed}:{step}:{key}".encode(), digest_size=4).digest()
        body: dict[str, Any] = {
            "model": self.served,
            "prompt": [int(i) for i in prompt],
            "n": s.samples,
            "max_tokens": s.max_new_tokens,
            "temperature": s.temperature,
            "top_p": s.top_p,
            "seed": int.from_bytes(seed, "little") >> 1,  # 31 bits: what every server takes
            "logprobs": 1,
            "return_token_ids": True,
        }
        more = {"top_k": s.top_k, "min_p": s.min_p, "stop": self._stop or None, "stop_token_ids": self._ends or None}
        return body | {name: value for name, value in more.items() if value is not None}

    def require_served(self) -> None:
        """Raises ``UserError``, with the command that starts it, where the server does not list the policy's name."""
        listed = self.client.get("/models", _lists)
        names = [str(entry.get("id")) for entry in listed["data"] if isinstance(entry, dict)]
        if self.served in names:
            return
        folder = shlex.quote(str(self.checkpoint)) if self.checkpoint is not None else "CHECKPOINT"
        raise UserError(
            f"{self.client.url} does not serve {self.served}, the policy as it is now; it serves "
            f"{', '.join(map(repr, names[:5])) or 'nothing'}. Start it on this checkpoint and go on with --resume:\n"
            f"  vllm serve {folder} --served-model-name {self.served} --generation-config vllm"
        )

    def _before(self, wanted: Sequence[Mapping[str, Any]]) -> None:
        if wanted:
            self.require_served()

    # ---- reading answers

    def _usable(self, answer: Any) -> bool:
        if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
            return False
        choices = answer["choices"]
        return len(choices) == self.settings.samples and all(self._whole(choice) for choice in choices)

    def _whole(self, choice: Any) -> bool:
        if not isinstance(choice, dict) or choice.get("finish_reason") not in ("stop", "length"):
            return False
        ids = choice.get("token_ids")
        if ids is None:
            return isinstance(choice.get("text"), str)
        if not (isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids)):
            return False
        if max(ids, default=0) >= len(self.tokenizer):  # no other try would mend it, and it is not to be kept
            raise UserError(
                f"{self.client.url} answers with token {max(ids)}, but the policy's tokenizer has "
                f"{len(self.tokenizer)} tokens: it serves another model under the name {self.served}."
            )
        return 0 < len(ids) <= self.settings.max_new_tokens

    def _sample(self, index: int, choice: Mapping[str, Any]) -> tuple[Sample, list[float]]:
        """A sample, and the server's log-probs of as many of its ids as it has log-probs of."""
        end = int(self.tokenizer.eos_token_id)
        given = choice.get("token_ids")
        drawn = self._encode(choice["text"]) if given is None else list(given)
        if given is None:
            self._once("the server gives no token ids, so samples are made into tokens again from their text")
            self.retokenised += 1
        text = choice["text"] if given is None else self._decode(drawn)
        places = [place for place in map(text.find, self._stop) if place >= 0]
        finish: Finish
        if places or choice.get("stop_reason") in self._stop:
            text = text[: min(places, default=len(text))]
            ids, finish = [*self._up_to(drawn, text), end], "stop"
        elif choice["finish_reason"] == "length":
            ids, finish = drawn or [end], "length"
        else:  # a token that ends text is special, be it the tokenizer's own or another that the model knows
            ended = given is not None and (drawn[-1] in self._special or drawn[-1] == end)
            ids, finish = drawn if ended else [*drawn, end], "end"
        logps = [] if given is None else _logps(choice, len(drawn))
        shared = next(
            (i for i, (a, b) in enumerate(zip(ids, drawn, strict=False)) if a != b), min(len(ids), len(drawn))
        )
        return Sample(index, tuple(ids), text, finish), logps[:shared]

    def _up_to(self, ids: list[int], text: str) -> list[int]:
        """Tokens of a text that ends before ``ids`` do; one inside of which it ends is left out."""
        kept = list(ids)
        while kept and not text.startswith(self._decode(kept)):
            kept.pop()
        return kept

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self.say(f"{self.client.url}: {sentence}")


def check_weights(
    server_logps: Sequence[Sequence[float]], ours: Sequence[Sequence[float]], dtype: str = "bfloat16"
) -> float | None:
    """Mean absolute difference, in nats per token, between a server's log-probs of samples and our own.

    A server can serve other weights under the policy's name; this is how it is found out.

    Args:
        server_logps: ``ServerSampler.last_logps``; of each sample as many of its first tokens as the server has.
        ours: our engine's log-probs of the ids of the same samples, at temperature 1.
        dtype: the coarser of the types that the two compute in.

    Returns:
        The difference, or None where the server gave no log-probs and nothing was compared.

    Raises:
        UserError: where it is above ``TOLERANCE`` of the type.
    """
    gaps = [
        abs(theirs - own)
        for row, (a, b) in enumerate(zip(server_logps, ours, strict=True))
        for theirs, own in zip(a, _as_many(b, len(a), row), strict=True)
    ]
    if not gaps:
        return None
    mean = math.fsum(gaps) / len(gaps)
    if not mean <= TOLERANCE[dtype]:
        raise UserError(
            f"The server's log-probs of its own samples differ from the policy's by {mean:.3g} nats a token on "
            f"average, over {len(gaps):,} tokens; with the same weights in {dtype} it would be below "
            f"{TOLERANCE[dtype]:g}. It serves other weights under this name, or gives log-probs after temperature and "
            "top-p. Start it on this round's checkpoint (vLLM: --logprobs-mode raw_logprobs) and go on with --resume."
        )
    return mean


def _as_many(values: Sequence[float], count: int, row: int) -> Sequence[float]:
    if len(values) < count:
        raise ValueError(f"sample {row}: {count} log-probs of the server's, {len(values)} of ours")
    return values[:count]


def _lists(answer: Any) -> bool:
    return isinstance(answer, dict) and isinstance(answer.get("data"), list)


def _choices(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """By their numbers where all have one: servers may give them in the order in which they ended."""
    choices = list(answer["choices"])
    if {choice.get("index") for choice in choices} == set(range(len(choices))):
        choices.sort(key=lambda choice: choice["index"])
    return choices


def _logps(choice: Mapping[str, Any], count: int) -> list[float]:
    logprobs = choice.get("logprobs")
    values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(values, list) or len(values) != count:
        return []
    return [float(v) for v in values] if all(isinstance(v, int | float) and math.isfinite(v) for v in values) else []
