"""Which cache of keys and values ``generate`` is fastest with: the same greedy texts with each, for sampling.py.

``dynamic`` grows by one position a step. ``static`` has its whole length from the start; on a GPU transformers
compiles the step for it, once for each shape, which the first batch of a shape pays for: prompts are padded to
multiples of 64, so that shapes come again. ``paged`` is transformers' continuous
batching: pages for all sequences, no padding, and places that are filled again when a text ends. It draws by itself, so
noise that is keyed by prompt and sample cannot be put into it: it could serve greedy answers alone.
"""

from __future__ import annotations

import contextlib
import logging
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rows import SHAPES
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig

from align.models.generate import greedy, left_padded

END, PAD = 1, 0
_PAGE = 256  # tokens, transformers' own


def measure_caches(shape: str, rounds: int, size: Any) -> dict[str, Any]:
    """Seconds of each way for batches of ``size``'s prompts times samples, and how many texts differ from dynamic's."""
    model, device = _plain(size), _device()
    ways: dict[str, Callable[[list[list[int]]], list[list[int]]]] = {
        "dynamic": lambda prompts: _generate(model, prompts, size.new_tokens, None),
        "static": lambda prompts: _generate(model, prompts, size.new_tokens, "static"),
        "paged": lambda prompts: _paged(model, prompts, size.new_tokens),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[str, int] = dict.fromkeys(ways, 0)
    other = dict.fromkeys(ways, 0)
    failed: dict[str, str] = {}
    for number in range(rounds):
        prompts = _prompts(shape, number, size)
        texts: dict[str, list[list[int]]] = {}
        for name, way in ways.items():
            if name in failed:
                continue
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start = _now()
            try:
                with torch.no_grad(), _autocast():
                    texts[name] = way(prompts)
            except Exception as error:  # of a library that may not run here: the others are still measured
                failed[name] = str(error).split("\n")[0]
                continue
            seconds[name].append(_now() - start)
            if device.type == "cuda":
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated())
            other[name] += sum(mine != theirs for mine, theirs in zip(texts[name], texts["dynamic"], strict=True))
    return {
        "sequences": size.prompts * size.samples,
        "rounds": rounds,
        "first": {name: values[0] for name, values in seconds.items() if values},
        "seconds": {name: statistics.median(values[1:] or values) for name, values in seconds.items() if values},
        "peak_bytes": peaks,
        "other_texts": {name: count for name, count in other.items() if name not in failed},
        "failed": failed,
    }


def caches_table(shape: str, part: dict[str, Any]) -> list[str]:
    """The lines for people."""
    lines = [f"caches, {shape}: {part['sequences']} sequences, {part['rounds']} batches of other lengths"]
    for name, median in part["seconds"].items():
        peak = f", peak {part['peak_bytes'][name] / 2**30:.2f} GiB" if part["peak_bytes"][name] else ""
        lines.append(
            f"  {name:8s} {median:.2f} s, the first batch {part['first'][name]:.2f} s{peak}; "
            f"{part['other_texts'][name]} texts differ from dynamic's"
        )
    return lines + [f"  {name:8s} failed: {why}" for name, why in part["failed"].items()]


def _plain(size: Any) -> Any:
    """The benchmark's model with transformers' own attention, since continuous batching knows no other."""
    source = size.model()
    model = AutoModelForCausalLM.from_config(source.config, attn_implementation="sdpa").to(_device()).eval()
    model.load_state_dict(source.state_dict())
    return model


def _prompts(shape: str, number: int, size: Any) -> list[list[int]]:
    """Random tokens with the lengths of ``shape``, others in each batch."""
    source = random.Random(f"caches {shape} {number}")
    _, lengths, _ = SHAPES[shape]
    count = size.prompts * size.samples
    return [[source.randrange(2, size.vocabulary) for _ in range(source.randint(*lengths))] for _ in range(count)]


def _generate(model: Any, prompts: list[list[int]], new: int, cache: str | None) -> list[list[int]]:
    widest = max(map(len, prompts))
    ids, mask = left_padded(prompts, PAD, _device(), least=-(-widest // 64) * 64 if cache == "static" else widest)
    with greedy(model, [END], PAD, new) as settings:
        settings.cache_implementation = cache
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    return [_ended(row) for row in out[:, ids.shape[1] :].tolist()]


def _paged(model: Any, prompts: list[list[int]], new: int) -> list[list[int]]:
    pages = sum(-(-(len(prompt) + new) // _PAGE) for prompt in prompts)
    room = max(512, sum(map(len, prompts)) if _device().type == "cpu" else 8192)
    # the pages that are needed: on a CPU transformers would take nearly all memory for them, and fill it with zeros
    batching = ContinuousBatchingConfig(num_blocks=pages + 1, max_batch_tokens=room)
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    with greedy(model, [END], PAD, new) as settings:
        found = model.generate_batch(prompts, generation_config=settings, continuous_batching_config=batching)
    if len(found) < len(prompts):
        raise RuntimeError(f"{len(prompts) - len(found)} of {len(prompts)} sequences were not answered")
    ordered = sorted(found.items(), key=lambda item: int(item[0].rpartition("_")[2]))
    return [_ended(list(answer.generated_tokens)) for _, answer in ordered]


def _ended(ids: list[int]) -> list[int]:
    return ids[: ids.index(END)] if END in ids else ids


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _autocast() -> contextlib.AbstractContextManager:
    return torch.autocast("cuda", torch.bfloat16) if torch.cuda.is_available() else contextlib.nullcontext()


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
