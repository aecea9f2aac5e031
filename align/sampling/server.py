"""Completions drawn by an OpenAI-compatible server that serves the policy under a name with its digest in it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.data.tokens.samples import Finish, Sample, special_tokens
from align.errors import UserError
from align.judges.answers import question_key
from align.judges.http import Body, Client, Usable
from align.sampling.asking import Asking, settings_of
from align.sampling.replies import choices_of, ids_of, logps_of
from align.sampling.serving import serve_command

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.recipe.sampling import Sampling


class ServerSampler:
    """Draws samples from a server, one call for each prompt and its samples.

    A prompt's seed depends on (seed, step, key) alone, so a call that is made again asks for the same; what the server
    makes of it is its own affair, and samples are not those that ``Sampler`` would draw. How the server wants to be
    asked is found out before the first call, see ``Asking``.

    Args:
        settings: how to draw; ``server`` must be set.
        tokenizer: the policy's; it must have an end-of-text token.
        served: the name that the server must serve, see ``policy_name``.
        cache: folder that keeps answers, so that none is drawn twice after a kill; None keeps none.
        checkpoint: folder of the policy, for the command that a message shows.
        again: how the caller goes on once the server is as it should be, as the end of a sentence.
        say: where sentences go.
        pause: seconds before the first retry.

    Attributes:
        last_logps: of the last call, for each sample in order (prompt by prompt) the server's log-probs of the first of
            its ids; empty where it gave none.
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
        checkpoint: Path | str | None = None,
        again: Callable[[], str] = lambda: "go on with --resume",
        say: Callable[[str], Any] = print,
        pause: float = 1.0,
    ) -> None:
        if settings.server is None:
            raise UserError("sampling.server is not set: there is no server to draw from.")
        if tokenizer.eos_token_id is None:
            raise UserError("The tokenizer has no end-of-text token, so it cannot be told which samples have ended.")
        self.settings, self.tokenizer, self.seed, self.served = settings, tokenizer, seed, served
        self.checkpoint, self.again, self.say = checkpoint, again, say
        self.client = Client(settings.server, cache, say=say, pause=pause)
        self.asking = Asking(self.client, tokenizer, served, self._once)
        self.last_logps: list[list[float]] = []
        self.retokenised = 0
        self._ready = False
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
        usable = self._usable(self.settings.samples)
        answers = self.client.post("/completions", bodies, usable, self._before, self._drawn)
        out: list[list[Sample]] = []
        self.last_logps = []
        for answer in answers:
            drawn = [self._sample(i, choice) for i, choice in enumerate(choices_of(answer))]
            out.append([sample for sample, _ in drawn])
            self.last_logps += [logps for _, logps in drawn]
        if self.settings.samples > 1 and len(out) > 1 and all(len({s.ids for s in samples}) == 1 for samples in out):
            self._once("all samples of a prompt are the same, for every prompt: the server seems to give them one seed")
        return out

    def body(self, prompt: Sequence[int], key: int, step: int) -> dict[str, Any]:
        """What is asked of one prompt, under which its answer is kept; ``Asking`` makes calls of it."""
        seed = hashlib.blake2b(f"{self.seed}:{step}:{key}".encode(), digest_size=4).digest()
        return {
            "model": self.served,
            "prompt": [int(i) for i in prompt],
            "n": self.settings.samples,
            "max_tokens": self.settings.max_new_tokens,
            "seed": int.from_bytes(seed, "little") >> 1,  # 31 bits: what every server takes
            "logprobs": 1,
            "return_token_ids": True,
            **settings_of(self.settings, self._stop, self._ends, int(self.tokenizer.eos_token_id)),
        }

    def undrawn(self, prompts: Sequence[Sequence[int]], keys: Sequence[int], step: int) -> Iterator[int]:
        """Places of the prompts of which no samples are kept, so that the server will be asked."""
        usable = self._usable(self.settings.samples)
        for place, (prompt, key) in enumerate(zip(prompts, keys, strict=True)):
            name = question_key(self.client.url, "/completions", self.body(prompt, key, step))
            answer = self.client.answers.read(name)
            if answer is None or not usable(answer):
                yield place

    def prepare(self, prompts: Sequence[Sequence[int]]) -> None:
        """See that the server serves the policy, and how it takes prompts such as these, before any is drawn for.

        Raises:
            UserError: where it does not serve it, or a prompt cannot be put to it.
        """
        self._require_served()
        self.asking.learn(self.body(prompts[0], 0, 0), prompts)
        self._ready = True

    def _require_served(self) -> None:
        """Raises ``UserError``, with the command that starts it, where the server does not serve the policy's name."""
        listed = self.client.get("/models", _lists)
        names = [str(entry.get("id")) for entry in listed["data"] if isinstance(entry, dict)]
        # `transformers serve` knows a model by its path alone, so that the folder may bear the name
        found = [name for name in names if name.rstrip("/").rpartition("/")[2] == self.served]
        if found:
            self.asking.model = found[0]
            return
        raise UserError(
            f"{self.client.url} does not serve {self.served}, the policy as it is now; it serves "
            f"{', '.join(map(repr, names[:5])) or 'nothing'}. {self.start()}"
        )

    def start(self) -> str:
        """What to do where the server is not as it should be, with the command."""
        return f"Start it on this checkpoint and {self.again()}:\n  {serve_command(self.checkpoint, self.served)}"

    def forget(self) -> None:
        """Throw away every answer that is kept, since it is not the policy's."""
        if self.client.answers.folder is not None:
            shutil.rmtree(self.client.answers.folder, ignore_errors=True)

    def _before(self, wanted: Sequence[Body]) -> None:
        if wanted and not self._ready:
            self.prepare([body["prompt"] for body in wanted])

    def _drawn(self, body: Body, ask: Callable[[Body, Usable], Any]) -> dict[str, Any]:
        """All completions of a prompt, from as many calls as the server needs."""
        found: list[Mapping[str, Any]] = []
        for part in self.asking.parts(body):
            found += choices_of(ask(part, self._usable(part.get("n", 1))))
        return {"choices": [{**choice, "index": index} for index, choice in enumerate(found)]}

    # ---- reading answers

    def _usable(self, count: int) -> Usable:
        """Whether an answer has so many completions that are whole."""

        def usable(answer: Any) -> bool:
            choices = answer.get("choices") if isinstance(answer, dict) else None
            return isinstance(choices, list) and len(choices) == count and all(self._whole(one) for one in choices)

        return usable

    def _whole(self, choice: Any) -> bool:
        if not isinstance(choice, dict) or choice.get("finish_reason") not in ("stop", "length"):
            return False
        ids = ids_of(choice)
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
        given = ids_of(choice)
        drawn = self._encode(choice["text"]) if given is None else self._up_to_end(given)
        if given is None:
            self._once("the server gives no token ids, so samples are made into tokens again from their text")
            self.retokenised += 1
        text = choice["text"] if given is None else self._decode(drawn)
        places = [place for place in map(text.find, self._stop) if place >= 0]
        finish: Finish
        if places or choice.get("stop_reason") in self._stop:
            text = text[: min(places, default=len(text))]
            ids, finish = [*self._up_to(drawn, text), end], "stop"
        elif given is not None and drawn[-1] in self._ends:
            ids, finish = drawn, "end"
        elif choice["finish_reason"] == "length":
            ids, finish = drawn or [end], "length"
        elif given is not None and (drawn[-1] in self._special or drawn[-1] == end):
            # a token that ends text is special, be it the tokenizer's own or another that the model knows
            ids, finish = drawn, "end"
        else:  # llama.cpp cuts a stop text off and does not say so; its end-of-text token is among the others
            ids, finish = [*drawn, end], "stop" if given is not None and self._stop else "end"
        logps = [] if given is None else logps_of(choice, len(given))
        shared = next(
            (i for i, (a, b) in enumerate(zip(ids, drawn, strict=False)) if a != b), min(len(ids), len(drawn))
        )
        return Sample(index, tuple(ids), text, finish), logps[:shared]

    def _up_to_end(self, ids: Sequence[int]) -> list[int]:
        """Tokens up to the first that ends a completion: llama.cpp draws on behind all but the model's own."""
        place = next((i for i, token in enumerate(ids) if token in self._ends), len(ids))
        return list(ids[: place + 1])

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


def _lists(answer: Any) -> bool:
    return isinstance(answer, dict) and isinstance(answer.get("data"), list)
