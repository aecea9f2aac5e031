"""Real servers as samplers and as judges: the same prompts drawn by each of them and here, by turns.

    python benchmarks/servers/measure.py --model FOLDER --gguf FILE            a table
    python benchmarks/servers/measure.py --model FOLDER --gguf FILE --json     the numbers

A model in float32 with a chat template; for llama.cpp the same weights as a GGUF file. The tokens that each one draws
are scored by our engine: their mean log-prob, what it should be, and how many standard errors lie between. A speed is
tokens drawn in a second of wall clock; since absolute times say little, a ratio compares a server with us by rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # all on the CPU

import torch
from serve import HOME, SERVERS, serving, version_of

from align.data.tokens.samples import Sample
from align.errors import UserError
from align.judges.endpoint import EndpointJudge
from align.models.subject import Subject
from align.recipe.sampling import Endpoint, Sampling, Server
from align.sampling.sampler import Sampler
from align.sampling.served import fit
from align.sampling.server import ServerSampler

NAME = "align-0123456789ab"  # what the servers call the model
THINGS = ("a lighthouse", "bread", "a bicycle", "the moon", "chess", "a violin", "rain", "a library")
WISHES = ("Explain in two sentences how {} works.", "Write a short poem about {}.", "Name three facts about {}.")

Draw = Callable[[int], list[list[Sample]]]  # round to samples of every prompt


@dataclass(frozen=True)
class Drawn:
    """What one sampler drew in all rounds.

    Attributes:
        speeds: tokens in a second, by round.
        mean: log-prob of the tokens under the policy, in nats, with what it is on average and its standard error.
    """

    speeds: list[float]
    tokens: int
    mean: float
    expected: float
    error: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"standard_errors": (self.mean - self.expected) / self.error}


def instructions(count: int) -> list[str]:
    """Instructions that ask for something ordinary, none twice."""
    everything = [wish.format(thing) for thing in THINGS for wish in WISHES]
    return random.Random(0).sample(everything, count)


def tokens_of(subject: Subject, texts: Sequence[str]) -> list[list[int]]:
    """Instructions as prompts in the model's template."""
    chats = [[{"role": "user", "content": text}] for text in texts]
    return [
        list(subject.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
        for chat in chats
    ]


def by_turns(ways: dict[str, Draw], rounds: int) -> dict[str, tuple[list[float], list[Sample]]]:
    """Speeds and samples of each way; every round asks all of them, and another one first."""
    found: dict[str, tuple[list[float], list[Sample]]] = {name: ([], []) for name in ways}
    for number in range(rounds):
        order = list(ways)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            start = time.perf_counter()
            samples = [sample for group in ways[name](number) for sample in group]
            speeds, kept = found[name]
            speeds.append(sum(len(sample.ids) for sample in samples) / (time.perf_counter() - start))
            kept += samples
    return found


def measure(subject: Subject, url: str, settings: Sampling, prompts: list[list[int]], rounds: int) -> dict[str, Any]:
    """One server beside this process, as a sampler. A server that is refused has the sentence."""
    asked = settings.model_copy(update={"server": Server(url=url, timeout=600)})
    keys = list(range(len(prompts)))
    said: list[str] = []
    server = ServerSampler(asked, subject.tokenizer, 0, NAME, say=said.append)
    ours = Sampler(settings, subject.tokenizer, 0, say=said.append)

    def here(number: int) -> list[list[Sample]]:
        with torch.no_grad():
            return ours(subject.model, prompts, keys, number, device=subject.device)

    logps: list[list[float]] = []

    def there(number: int) -> list[list[Sample]]:
        groups = server(prompts, keys, number)
        logps.extend(server.last_logps)
        return groups

    try:
        server.prepare(prompts)
        server(prompts[:1], keys[:1], rounds)  # the first call may compile something
        found = by_turns({"there": there, "here": here}, rounds)
    except UserError as error:
        return {"said": said, "refused": str(error)}
    out: dict[str, Any] = {"said": said}
    per_sample = [prompt for _ in range(rounds) for prompt in prompts for _ in range(settings.samples)]
    for name, (speeds, samples) in found.items():
        seen = fit(subject, settings, per_sample, samples, logps if name == "there" else [[]] * len(samples))
        out[name] = Drawn(speeds, seen.tokens, seen.mean, seen.expected, seen.error).to_json()
        if name == "there":
            out["check"] = seen.problem or seen.sentence
            out["gap"] = seen.gap
    ratios = [a / b for a, b in zip(out["there"]["speeds"], out["here"]["speeds"], strict=True)]
    out["times_as_fast"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return out


def judge(url: str) -> dict[str, Any]:
    """The server as a judge of easy pairs: how much it prefers the answer to nonsense, and what is said of it."""
    said: list[str] = []
    prompts: list[Any] = ["What is 2 + 2?", "What is the capital of France?", "Name a colour.", "Is ice cold?"]
    good, bad = ["It is 4.", "Paris.", "Blue.", "Yes, ice is cold."], ["Bananas are loud."] * 4
    with tempfile.TemporaryDirectory() as folder:  # every call is made
        asked = EndpointJudge(Endpoint(url=url, model=NAME, timeout=600, cache=folder), say=said.append)
        try:
            values = asked.compare(prompts, good, bad)
        except UserError as error:
            return {"said": said, "refused": str(error)}
    return {
        "prefers_the_answer": statistics.mean(values),
        "undecided": asked.undecided[0],
        "without_logprobs": asked.unweighted,
        "said": said,
    }


def table(report: dict[str, Any]) -> str:
    """The report for people, as Markdown."""
    lines = [
        "| server | distribution check | log-prob due | seen | standard errors | tokens/s, beside ours | as a judge |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, part in report["servers"].items():
        judged = part["judge"]
        verdict = judged.get("refused") or (
            f"{judged['prefers_the_answer']:.2f} for the answer, {judged['undecided']} undecided"
            + (", no log-probs" if judged["without_logprobs"] else "")
        )
        head = f"| {name} {part['version']} |"
        if "refused" in part:
            lines.append(f"{head} refused: {' '.join(part['refused'].split())} | | | | | {verdict} |")
            continue
        there, here, ratio = part["there"], part["here"], part["times_as_fast"]
        lines.append(
            f"{head} {part['check']} | {there['expected']:.3f} | {there['mean']:.3f} | {there['standard_errors']:+.1f} "
            f"| {statistics.median(there['speeds']):.0f}, {statistics.median(here['speeds']):.0f}: "
            f"{ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f}) | {verdict} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder of a model in float32 with a chat template")
    parser.add_argument("--gguf", help="the same weights for llama.cpp")
    parser.add_argument("--servers", default=",".join(SERVERS), help=f"of {','.join(SERVERS)}")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4, help="of each prompt")
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of a sample")
    parser.add_argument("--rounds", type=int, default=3, help="times that each way draws, by turns")
    parser.add_argument("--home", type=Path, default=HOME, help=f"environments and logs, by default {HOME}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)  # as the servers have
    subject = Subject.load(args.model, "float32", echo=lambda _: None)
    settings = Sampling(samples=args.samples, max_new_tokens=args.tokens)
    prompts = tokens_of(subject, instructions(args.prompts))
    about = {name: version(name) for name in ("torch", "transformers")} | {"date": date.today().isoformat()}
    report: dict[str, Any] = {"about": about, "settings": settings.model_dump(exclude={"server"}), "servers": {}}
    for name in args.servers.split(","):
        if name == "llama.cpp" and not args.gguf:
            print("llama.cpp is left out: --gguf names no file", file=sys.stderr)
            continue
        model = Path(args.gguf if name == "llama.cpp" else args.model)
        with serving(name, model, NAME, home=args.home, slots=args.samples) as url:
            part = measure(subject, url, settings, prompts, args.rounds) | {"judge": judge(url)}
        report["servers"][name] = part | {"version": version_of(name, args.home)}
        print(f"  {name}: done", file=sys.stderr, flush=True)
    print(json.dumps(report, indent=1) if args.json else table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
