"""What sampling in training costs: scoring k samples of a prompt, and drawing them, with the prompt encoded once.

    python benchmarks/sampling.py            a table
    python benchmarks/sampling.py --json     the numbers
    python benchmarks/sampling.py --caches   which cache greedy generation is fastest with; see caches.py

Scoring is forward and backward of every sample's log-probs: ours, with a prompt once for all of its samples, and the
usual way in turn, padded rows of prompt and sample with the head at the samples' positions only. Drawing is the same
sampler with and without the shared prompt. A step is all of HyPO's (draw, reference, policy, backward, optimizer)
beside DPO's on the same pairs, neither with stored reference log-probs. Every round takes another batch and runs each
way on it. float32 on a CPU, bf16 autocast on CUDA.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from caches import caches_table, measure_caches
from hypo_step import ROWS, SAMPLES, measure_step
from preference_step import spread
from rows import SHAPES
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from align.engine.layout import Branch, Example, Tree, pack
from align.engine.scoring import ScoringEngine, attach
from align.recipe.sampling import Sampling
from align.sampling.sampler import Sampler

NAMES = ("tldr", "chat")


@dataclass(frozen=True)
class Size:
    """Of the model and of a batch."""

    layers: int = 4
    hidden: int = 256
    vocabulary: int = 8192
    prompts: int = 2
    samples: int = 8
    new_tokens: int = 32

    def model(self) -> Any:
        """Llama with random weights, able to score."""
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.hidden * 11 // 4,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 32,
            num_key_value_heads=self.hidden // 64,
            max_position_embeddings=2048,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
            attn_implementation="sdpa",
        )
        model = AutoModelForCausalLM.from_config(config).to(device()).eval()
        attach(model)
        return model

    def batch(self, shape: str, seed: int) -> list[Example]:
        """Prompts with their samples: random tokens with the lengths of ``shape``."""
        source = random.Random(f"{shape} {seed}")
        _, prompt, answer = SHAPES[shape]

        def ids(lengths: tuple[int, int]) -> list[int]:
            return [source.randrange(2, self.vocabulary) for _ in range(source.randint(*lengths))]

        return [
            Example((Tree(ids(prompt), tuple(Branch("sample", ids(answer), index=k) for k in range(self.samples))),), n)
            for n in range(self.prompts)
        ]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast() -> contextlib.AbstractContextManager:
    return torch.autocast("cuda", torch.bfloat16) if torch.cuda.is_available() else contextlib.nullcontext()


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def ratio(seconds: dict[str, list[float]], other: str, mine: str) -> dict[str, float]:
    """How many times as long ``other`` takes as ``mine``, round by round."""
    return spread([theirs / ours for theirs, ours in zip(seconds[other], seconds[mine], strict=True)])


# ---- scoring


def weights(count: int) -> Tensor:
    """Upstream gradients of both signs, one per token."""
    return torch.linspace(-1, 2, count, device=device()) / count


def score_ours(model: Any, examples: list[Example]) -> tuple[Tensor, int]:
    """Log-probs [N] of all samples' tokens, gradients of their weighted sum, and positions computed."""
    batch = pack(examples).to(device())
    with autocast():
        logp = ScoringEngine()(model, batch).tokens["logp"]
    (logp * weights(len(logp))).sum().backward()
    return logp.detach(), batch.input_ids.numel()


def score_padded(model: Any, examples: list[Example], per_chunk: int) -> tuple[Tensor, int]:
    """The same by padded rows, so many at a time and sorted by length."""
    rows = [(list(tree.prompt), list(branch.ids)) for e in examples for tree in e.trees for branch in tree.branches]
    counts = [len(ids) for _, ids in rows]
    scale = weights(sum(counts)).split(counts)
    found: dict[int, Tensor] = {}
    positions = 0
    order = sorted(range(len(rows)), key=lambda i: -sum(map(len, rows[i])))
    for start in range(0, len(order), per_chunk):
        chosen = order[start : start + per_chunk]
        width = sum(map(len, rows[chosen[0]])) - 1
        fed = [(rows[i][0] + rows[i][1])[:-1] for i in chosen]
        ids = torch.tensor([row + [0] * (width - len(row)) for row in fed], device=device())
        # padding stands to the right, where causal attention never looks: without a mask its kernel is faster
        place = [
            k * width + len(rows[i][0]) - 1 + t for k, i in enumerate(chosen) for t in range(counts[i])
        ]  # that predicts a sample's token
        targets = torch.tensor([token for i in chosen for token in rows[i][1]], device=device())
        with autocast():
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)[place]
            logits = model.lm_head(hidden)
        logp = logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
        (logp * torch.cat([scale[i] for i in chosen])).sum().backward()
        found |= zip(chosen, logp.detach().split([counts[i] for i in chosen]), strict=True)
        positions += ids.numel()
    return torch.cat([found[i] for i in range(len(rows))]), positions


def measure_scoring(shape: str, rounds: int, size: Size) -> dict[str, Any]:
    """Seconds and positions of both ways, and how far their log-probs and gradients are apart."""
    model = size.model()
    chunks = (size.samples, size.samples * size.prompts)
    ways: dict[str, Callable[[list[Example]], tuple[Tensor, int]]] = {"ours": lambda e: score_ours(model, e)}
    ways |= {f"padded:{n}": lambda e, n=n: score_padded(model, e, n) for n in chunks}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    positions = dict.fromkeys(ways, 0)
    gap = slope_gap = 0.0
    for way in ways.values():
        way(size.batch(shape, -1))
    for number in range(rounds):
        examples = size.batch(shape, number)
        values, slopes = {}, {}
        order = list(ways)
        for name in order[number % len(order) :] + order[: number % len(order)]:  # nobody is always first
            model.zero_grad()
            start = now()
            values[name], count = ways[name](examples)
            seconds[name].append(now() - start)
            positions[name] += count
            slopes[name] = torch.cat([p.grad.flatten() for p in model.parameters()])
        for name in order[1:]:
            gap = max(gap, float((values[name] - values["ours"]).abs().max()))
            slope_gap = max(slope_gap, float((slopes[name] - slopes["ours"]).norm() / slopes["ours"].norm()))
    best = min(order[1:], key=lambda name: statistics.median(seconds[name]))
    return {
        "rounds": rounds,
        "positions": {"ours": positions["ours"], "padded": positions[best]},
        "fewer_positions": positions[best] / positions["ours"],
        "seconds": {"ours": spread(seconds["ours"]), "padded": spread(seconds[best])},
        "times_as_fast": ratio(seconds, best, "ours"),
        "padded_rows_per_chunk": int(best.split(":")[1]),
        "logp_gap": gap,
        "gradient_gap": slope_gap,
    }


# ---- drawing


def tokenizer() -> PreTrainedTokenizerFast:
    """Prompts come as token ids; the sampler only asks for special tokens."""
    vocabulary = models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(vocabulary), pad_token="<pad>", eos_token="</s>")


def measure_sampling(shape: str, rounds: int, size: Size) -> dict[str, Any]:
    """Seconds and positions of drawing, with every prompt encoded once and once for each of its samples."""
    model = size.model()
    settings = Sampling(
        samples=size.samples, max_new_tokens=size.new_tokens, batch_size=size.samples * size.prompts
    )  # one batch
    seen = [0]
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0].numel()))
    seconds: dict[str, list[float]] = {"once": [], "each": []}
    positions = dict.fromkeys(seconds, 0)
    same = 0
    for number in range(-1, rounds):  # one round to warm up
        prompts = [list(example.trees[0].prompt) for example in size.batch(shape, number)]
        drawn = {}
        for way in ("once", "each") if number % 2 else ("each", "once"):
            sampler = Sampler(settings, tokenizer(), 0)
            if way == "each":
                sampler.shares_prompts = False
            del seen[:]
            start = now()
            with torch.no_grad(), autocast():
                drawn[way] = sampler(model, prompts, range(len(prompts)), number, device=device())
            took = now() - start
            if number >= 0:
                seconds[way].append(took)
                positions[way] += sum(seen)
        if number >= 0:
            pairs = zip(*([s for samples in drawn[way] for s in samples] for way in seconds), strict=True)
            same += sum(a == b for a, b in pairs)
    return {
        "rounds": rounds,
        "positions": positions,
        "seconds": {way: spread(values) for way, values in seconds.items()},
        "times_as_fast": ratio(seconds, "each", "once"),
        "same_samples": same / (rounds * size.prompts * size.samples),
    }


# ---- the report


PARTS: dict[str, Callable[[str, int, Size], dict]] = {
    "scoring": measure_scoring,
    "sampling": measure_sampling,
    "step": measure_step,
}


def measure(shapes: list[str], rounds: int, size: Size, *, caches: bool = False) -> dict[str, Any]:
    """The whole report, or the part on caches alone."""
    cuda = torch.cuda.is_available()
    about = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        "dtype": "bfloat16 autocast" if cuda else "float32",
        "model": f"Llama, {size.layers} layers, hidden {size.hidden}, vocabulary {size.vocabulary}",
        "batch": f"{size.prompts} prompts, {size.samples} samples each, {size.new_tokens} tokens drawn",
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    parts = PARTS if not caches else {"caches": measure_caches}
    report: dict[str, Any] = {"about": about}
    for name, part in parts.items():
        report[name] = {}
        for shape in shapes:
            report[name][shape] = part(shape, rounds, size)
            print(f"  {name} {shape}: done", file=sys.stderr, flush=True)
    return report


def table(report: dict[str, Any]) -> str:
    """The report for people."""

    def show(x: dict[str, float]) -> str:
        return f"{x['median']:.2f} ({x['min']:.2f} to {x['max']:.2f})"

    about = report["about"]
    lines = [
        f"{about['device']}, {about['dtype']}; {about['model']}; {about['batch']}; median (min to max) over rounds"
    ]
    for shape, part in report.get("caches", {}).items():
        lines += caches_table(shape, part)
    for shape, part in report.get("scoring", {}).items():
        lines += [
            f"scoring, {shape}: {show(part['seconds']['ours'])} s, padded {show(part['seconds']['padded'])} s",
            f"  times as fast as padded rows       {show(part['times_as_fast'])}",
            f"  positions computed                 {part['positions']['ours']},"
            f" padded {part['positions']['padded']}: {part['fewer_positions']:.2f} times as many",
            f"  log-probs differ by at most        {part['logp_gap']:.1e}, gradients by {part['gradient_gap']:.1e}",
        ]
    for shape, part in report.get("sampling", {}).items():
        seconds, positions = part["seconds"], part["positions"]
        lines += [
            f"drawing, {shape}: prompt read once {show(seconds['once'])} s, for each sample {show(seconds['each'])} s",
            f"  times as fast                      {show(part['times_as_fast'])}",
            f"  positions computed                 {positions['once']}, for each sample {positions['each']}",
            f"  samples that are the same          {part['same_samples']:.0%}",
        ]
    for shape, part in report.get("step", {}).items():
        seconds = part["seconds"]
        lines += [
            f"a step on {ROWS} pairs, {shape}: HyPO with {SAMPLES} samples each {show(seconds['hypo'])} s,"
            f" DPO {show(seconds['dpo'])} s",
            f"  times as long                      {show(part['times_as_long'])}",
        ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--caches", action="store_true", help="measure generate's caches, and nothing else")
    parser.add_argument("--rounds", type=int, default=3, help="batches per shape")
    parser.add_argument("--shapes", default=",".join(NAMES), help=f"of {','.join(SHAPES)}")
    for name, value in vars(Size()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"default {value}")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU (default 1)")
    args = parser.parse_args(argv)
    shapes = args.shapes.split(",")
    if unknown := [shape for shape in shapes if shape not in SHAPES]:
        parser.error(f"no shape is called {unknown[0]}; there are {', '.join(SHAPES)}")
    if not torch.cuda.is_available():
        torch.set_num_threads(args.threads)
    size = Size(**{name: getattr(args, name) for name in vars(Size())})
    report = measure(shapes, args.rounds, size, caches=args.caches)
    print(json.dumps(report, indent=1) if args.json else table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
