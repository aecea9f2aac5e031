"""``align chat``: a conversation with a model in the terminal, or with two side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from align.cli.verbs import TEMPLATE_ARGUMENT, Verb, argument, template_arguments
from align.errors import Exit, UserError
from align.runs.quiet import calm
from align.runs.terminal import aside

if TYPE_CHECKING:
    from align.sampling.talk import Talk

_HELP = "/reset forgets what was said, /quit or Ctrl-D ends, \\ at the end of a line goes on, Ctrl-C stops an answer"


def _chat(args: argparse.Namespace) -> int:
    if len(args.models) > 2:
        raise UserError(f"align chat takes one model or two, not {len(args.models)}.")
    given, arguments = _given(args), template_arguments(args)
    calm()
    from align.data.tokens.arguments import unused_arguments
    from align.sampling.talk import talk_with

    how: dict[str, Any] = {"dtype": args.dtype, "seed": args.seed, "system": args.system, "arguments": arguments}
    talks = [talk_with(name, given, **how) for name in args.models]
    for talk in talks:
        aside(f"{talk.name}: {talk.draws}")
        for sentence in unused_arguments(talk.tokenizer, arguments):
            aside(f"warning: {sentence}")
        if not talk.chats:
            aside(f"note: {talk.name} has no chat template, so it goes on with the text instead of answering")
    if sys.stdin.isatty():
        aside(_HELP)
    for text in _said():
        if text == "/quit":
            break
        if text == "/reset":
            for talk in talks:
                talk.reset()
        elif text.strip():
            for talk in talks:
                _answer(talk, text, named=len(talks) > 1, as_json=args.json)
    return Exit.OK


def _answer(talk: Talk, text: str, *, named: bool, as_json: bool) -> None:
    """Print the answer of one model as it comes, or as a line of JSON."""
    from align.sampling.show import plain

    def put(piece: str) -> None:
        if not as_json:
            lines = piece.replace("\t", "    ").split("\n")
            print("\n".join(map(plain, lines)), end="", flush=True)  # a model may write what a terminal obeys

    if named and not as_json:
        print(f"{talk.name}:")
    try:
        reply = talk.answer(text, put)
    except UserError as error:
        if not sys.stdin.isatty():
            raise
        aside(f"{error} /reset begins anew.")
        return
    if as_json:
        print(json.dumps({"model": talk.name, "text": reply.text, "finish": reply.finish}), flush=True)
        return
    cut = {"length": "  [cut off: --max-new-tokens]", "stopped": "  [stopped]"}
    print(cut.get(reply.finish, ""), end="\n\n" if named else "\n", flush=True)


def _said() -> Iterator[str]:
    """What is typed or piped, a line each; one that ends in a backslash goes on in the next."""
    asks = sys.stdin.isatty()
    if asks:
        import readline  # noqa: F401  # lines can be edited then

    parts: list[str] = []
    while True:
        try:
            line = input(("... " if parts else "> ") if asks else "")
        except EOFError:
            if parts:
                yield "\n".join(parts)
            return
        except KeyboardInterrupt:
            aside(f"\n{_HELP}")
            parts = []
            continue
        goes_on = line.endswith("\\")
        parts.append(line[:-1] if goes_on else line)
        if not goes_on:
            yield "\n".join(parts)
            parts = []


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """How answers are drawn, as far as the options say. Raises UserError."""
    from pydantic import ValidationError

    from align.recipe.sampling import Sampling

    options = {"max_new_tokens": args.max_new_tokens, "top_p": args.top_p}
    options |= {"top_k": 1} if args.temperature == 0 else {"temperature": args.temperature}
    given = {key: value for key, value in options.items() if value is not None}
    try:
        Sampling(samples=1, **given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise UserError(f"--{name}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']:g}.") from None
    return given


CHAT = Verb(
    "chat",
    "talk with a run or a model in the terminal, or with two side by side",
    ("align chat runs/first", "align chat runs/first Qwen/Qwen3-0.6B --seed 3 --temperature 0.7"),
    _chat,
    (
        argument(
            "models", metavar="MODEL", nargs="+", help="a run, a folder or a Hub id; two answer one below the other"
        ),
        argument("--system", metavar="TEXT", help="a system message in front of the conversation"),
        argument(
            "--temperature", metavar="T", type=float, help="0 takes the likeliest token (default the model's, else 1)"
        ),
        argument(
            "--top-p",
            metavar="P",
            type=float,
            help="draw from the likeliest tokens up to this share (default the model's, else 1)",
        ),
        argument("--max-new-tokens", metavar="N", type=int, default=512, help="most tokens of an answer (default 512)"),
        argument("--seed", metavar="N", type=int, default=0, help="of the draws; the same for both models"),
        argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="type of the weights in memory"),
        TEMPLATE_ARGUMENT,
    ),
)
