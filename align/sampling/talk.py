"""Conversations with models: a person says something, and each model answers from its own history."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from align.data.tokens.chat import Rendered, Request, render
from align.errors import UserError
from align.models.ends import end_ids
from align.models.load import DType, load_checkpoint
from align.recipe.sampling import Sampling
from align.runs.memory import usual_device
from align.sampling.sampler import Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PIECE = "\ufffd"  # what decoding puts where a character is not complete yet


@dataclass(frozen=True)
class Reply:
    """An answer and how it ended: at an ``end`` of text, at the ``length`` limit, or ``stopped`` by the person."""

    text: str
    finish: str


class Talk:
    """A conversation with one model.

    Args:
        name: what it is called.
        model: in evaluation mode, on its device.
        settings: how answers are drawn. The same seed and turn draw with the same noise from every model.
        system: a system message in front of the conversation, or None.

    Attributes:
        chats: whether the tokenizer has a chat template. Without one the model goes on with the text.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        settings: Sampling,
        *,
        seed: int = 0,
        system: str | None = None,
    ) -> None:
        self.name, self.model, self.tokenizer, self.system = name, model, tokenizer, system
        self.settings = settings
        self.sampler = Sampler(settings, tokenizer, seed, say=lambda _: None)
        self.chats = bool(tokenizer.chat_template)
        if system is not None and not self.chats:
            raise UserError(f"--system: the tokenizer of {name} has no chat template, and so no system messages.")
        self.reset()

    @property
    def draws(self) -> str:
        """How answers are drawn, for people."""
        if self.settings.top_k == 1:
            return "the likeliest token each time"
        among = [
            f"top_{key} {value:g}" for key in "kp" if (value := getattr(self.settings, f"top_{key}")) not in (None, 1)
        ]
        return ", ".join([f"temperature {self.settings.temperature:g}", *among])

    def reset(self) -> None:
        """Forget what was said."""
        self.messages: list[dict[str, str]] = []
        self.turn = 0

    def answer(self, text: str, put: Callable[[str], Any]) -> Reply:
        """The answer to ``text``; ``put`` is given it in pieces as it comes. Ctrl-C ends it, and it stays as it is.

        Raises:
            UserError: where the conversation cannot be rendered, or leaves no room; then it stays as it was.
        """
        said = [*self.messages, {"role": "user", "content": text}]
        ids, stream = self._ids(said), _Stream(self.tokenizer, end_ids(self.model, self.tokenizer), put)
        try:
            with torch.no_grad():
                device = next(self.model.parameters()).device
                ((sample,),) = self.sampler(self.model, [ids], [0], self.turn, device=device, seen=stream.tell)
            reply = Reply(sample.text, sample.finish)
        except KeyboardInterrupt:
            reply = Reply(stream.text, "stopped")
        put(reply.text[len(stream.text) :])
        self.messages = [*said, {"role": "assistant", "content": reply.text}]
        self.turn += 1
        return reply

    def _ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        if not self.chats:
            return list(self.tokenizer("".join(f"{message['content']}\n" for message in messages)[:-1]).input_ids)
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        rendered = render(self.tokenizer, [Request([*system, *map(dict, messages)], prompt=True)])[0]
        if not isinstance(rendered, Rendered):
            raise UserError(f"{self.name} cannot be asked: {rendered}.")
        return rendered.ids


class _Stream:
    """Puts the text of growing token ids in pieces of whole characters."""

    def __init__(self, tokenizer: Any, ends: Sequence[int], put: Callable[[str], Any]) -> None:
        self.tokenizer, self.ends, self.put, self.text = tokenizer, set(ends), put, ""

    def tell(self, ids: list[int]) -> None:
        text = self.tokenizer.decode([i for i in ids if i not in self.ends], skip_special_tokens=True)
        if text.startswith(self.text) and not text.endswith(_PIECE):
            self.put(text[len(self.text) :])
            self.text = text


def talk_with(
    name: str,
    given: Mapping[str, Any],
    *,
    dtype: DType | None = None,
    seed: int = 0,
    system: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Talk:
    """A conversation with a run's model, a folder (an adapter's too) or a Hub id.

    Args:
        given: settings of ``Sampling``; what they leave out is as the model's generation config says.
        dtype: None is ``usual_type``.
        arguments: of its chat template; they win over those that it was trained with.

    Raises:
        UserError: where there is no such model, or its generation config has a setting that cannot be.
    """
    model, tokenizer = load_checkpoint(name, dtype, arguments)
    model.to(usual_device()).eval()
    try:
        settings = Sampling(samples=1, **{**published(model), **given})
    except ValidationError as error:
        raise UserError(f"{name}: generation_config.json: {error.errors()[0]['msg']}: {published(model)}.") from None
    return Talk(name, model, tokenizer, settings, seed=seed, system=system)


def published(model: Any) -> dict[str, Any]:
    """Temperature, top_p and top_k of a model's generation config; nothing where it does not say that it draws."""
    config = getattr(model, "generation_config", None)
    if not getattr(config, "do_sample", None):
        return {}
    return {key: value for key in ("temperature", "top_p", "top_k") if (value := getattr(config, key, None))}
