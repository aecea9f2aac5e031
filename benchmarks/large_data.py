"""300,000 short pairs from a file to a first batch, and a store of a million answers: seconds, processor time, memory.

    python benchmarks/large_data.py                  a table
    python benchmarks/large_data.py --json           the numbers
    python benchmarks/large_data.py --model FOLDER   with the tokenizer of a model, in place of a small one trained here

Every part is a process of its own, with an empty cache at first. Processor time is that of a part and of all processes
that it started; on a machine that others use it says more than the clock. Memory is the peak of resident memory of the
largest process.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

FORMS = ("plain text", "conversations")
TOKENS = 60  # of an answer in the store
WORDS = "the of a to in is it was for on are as with his they at be this from have or by one had not but what all"


def text(rng: random.Random, least: int, most: int) -> str:
    """Some words, a few of them long."""
    chosen = rng.choices(WORDS.split(), k=rng.randint(least, most))
    return " ".join(word if rng.random() < 0.6 else f"{word}{rng.choice(WORDS.split())}ing" for word in chosen)


def write_rows(path: Path, count: int, *, chat: bool) -> None:
    """Pairs of a short question and two short answers, about 130 bytes each as plain text."""
    rng = random.Random(7)
    with path.open("w") as file:
        for number in range(count):
            row: dict[str, Any] = {"prompt": f"{text(rng, 2, 7).capitalize()} {number}?"}
            row |= {name: f" {text(rng, 2, 6)}." for name in ("chosen", "rejected")}
            if chat:
                roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
                row = {name: [{"role": roles[name], "content": words.strip()}] for name, words in row.items()}
            file.write(json.dumps(row) + "\n")


def write_model(folder: Path) -> None:
    """A configuration and a tokenizer of 8,000 tokens with ChatML; no weights, which nothing here reads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    rng = random.Random(1)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8000, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator([text(rng, 5, 9) for _ in range(20_000)], trainer)
    turn = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    template = f"{{% for m in messages %}}{turn}{{% endfor %}}"
    template += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    LlamaConfig(vocab_size=8000, hidden_size=64, num_hidden_layers=2, eos_token_id=1).save_pretrained(folder)


# ---- the parts, each in a process of its own


def start(recipe: str) -> dict[str, Any]:
    """From the recipe to the first batch of 64 pairs, the model left aside."""
    from align.data.batches.collator import TreeCollator
    from align.data.batches.lengths import row_lengths
    from align.data.batches.packing import PackSampler
    from align.data.load import load_data
    from align.data.tokens.tokenize import load_tokenizer
    from align.recipe import load_recipe

    ready = usage()
    found = load_recipe(recipe)
    branches = found.objective_value().branches
    data = load_data(found, load_tokenizer(found.model, arguments={}), branches, lambda line: None)
    collator = TreeCollator(branches)
    packs = iter(PackSampler(row_lengths(data.train, collator), 64, 4, data.order))
    collator([data.train[i] for i in next(packs)])
    return since(ready) | {"rows": len(data.train), "digest": data.digest}


def check(recipe: str) -> dict[str, Any]:
    """``align check``, its imports among it."""
    from align.cli.check import run_check
    from align.recipe import load_recipe

    lines: list[str] = []
    run_check(load_recipe(recipe), echo=lines.append)
    return since({"seconds": STARTED, "cpu": 0.0}) | {"said": lines[-1]}


def fill(folder: str, answers: int) -> dict[str, Any]:
    """A store of so many answers."""
    import torch

    from align.reference.store import LogProbStore

    store, ready = LogProbStore(Path(folder), "0" * 64), usage()
    for begin in range(0, answers, 4096):
        keys = names(range(begin, min(begin + 4096, answers)))
        store.put(keys, [TOKENS] * len(keys), torch.full((TOKENS * len(keys),), -1.0 - begin))
    store.flush()
    return since(ready)


def read(folder: str, answers: int) -> dict[str, Any]:
    """Open it, ask for all keys, read every tenth answer."""
    import numpy as np

    from align.reference.store import LogProbStore

    before, ready = resident(), usage()
    store = LogProbStore(Path(folder), "0" * 64)
    opened = since(ready)
    found = 0
    for begin in range(0, answers, 4096):
        keys = b"".join(names(range(begin, min(begin + 4096, answers))))
        found += int(store.stored(np.frombuffer(keys, np.uint8).reshape(-1, 32)).sum())
    most = resident() - before
    for number in range(0, answers, 10):
        assert store.get(names([number])[0])[0] == -1.0 - number // 4096 * 4096
        if number % 10_000 == 0:
            most = max(most, resident() - before)
    out = {"opened": opened, "asked_and_read": since(ready), "found": found, "resident": most}
    return out | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before}


def names(numbers: Any) -> list[bytes]:
    """Keys of made-up answers."""
    return [hashlib.sha256(number.to_bytes(8, "little")).digest() for number in numbers]


STARTED = time.time()


def usage() -> dict[str, float]:
    """The clock, and processor seconds of this process and those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"seconds": time.time(), "cpu": sum(found.ru_utime + found.ru_stime for found in used)}


def since(before: dict[str, float]) -> dict[str, Any]:
    """What was used since, and the peak of resident memory in bytes, of this process and of the largest of its own."""
    whose = {"memory": resource.RUSAGE_SELF, "memory_of_others": resource.RUSAGE_CHILDREN}
    peaks = {name: resource.getrusage(who).ru_maxrss * 1024 for name, who in whose.items()}
    return {name: value - before[name] for name, value in usage().items()} | peaks


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


PARTS: dict[str, Callable[..., dict[str, Any]]] = {"start": start, "check": check, "fill": fill, "read": read}


def part(name: str, *words: Any, cache: Path) -> dict[str, Any]:
    """What a part measured."""
    command = [sys.executable, __file__, "--part", name, *map(str, words)]
    settings = {**os.environ, "HF_DATASETS_CACHE": str(cache), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=settings, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All parts."""
    model = args.model or folder / "model"
    if args.model is None:
        write_model(folder / "model")
    out: dict[str, Any] = {}
    for name in args.forms:
        rows = folder / f"{name.split()[0]}.jsonl"
        write_rows(rows, args.pairs, chat=name == "conversations")
        recipe = folder / f"{name.split()[0]}.yaml"
        values = {"name": "b", "model": {"id": str(model)}, "data": {"train": [{"path": str(rows)}]}}
        recipe.write_text(json.dumps({**values, "objective": {"name": "dpo"}}))
        found = {"bytes": rows.stat().st_size}
        caches = [folder / f"{name.split()[0]}-{number}" for number in range(2)]
        found["first start"] = part("start", recipe, cache=caches[0])
        found["second start"] = part("start", recipe, cache=caches[0])
        found["first check"] = part("check", recipe, cache=caches[1])
        found["check after it"] = part("check", recipe, cache=caches[1])
        assert found["first start"]["digest"] == found["second start"]["digest"]
        out[name] = found
    store = folder / "store"
    filled = part("fill", store, args.answers, cache=folder)
    size = sum(file.stat().st_size for file in store.rglob("*.safetensors"))
    out["store"] = {"bytes": size, "filled": filled, **part("read", store, args.answers, cache=folder)}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=300_000)
    parser.add_argument("--answers", type=int, default=1_000_000)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        name, *words = args.part
        print(json.dumps(PARTS[name](*(int(word) if word.isdigit() else word for word in words))))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, Path(folder))
    if args.json:
        print(json.dumps(found, indent=1))
        return
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{datetime.date.today()}, {len(os.sched_getaffinity(0))} cores, load {load} (1, 5 and 15 minutes)")
    for name in args.forms:
        print(f"\n{args.pairs:,} pairs as {name}, {found[name]['bytes'] / 1e6:.0f} MB")
        for what in ("first start", "second start", "first check", "check after it"):
            cost = found[name][what]
            memory = f"{cost['memory'] / 1e6:.0f} MB, its largest worker {cost['memory_of_others'] / 1e6:.0f} MB"
            print(f"  {what:<15} {cost['seconds']:6.1f} s   {cost['cpu']:6.1f} s of processors   {memory}")
    store = found["store"]
    print(f"\n{args.answers:,} answers of {TOKENS} tokens, {store['bytes'] / 1e6:.0f} MB on disk")
    print(f"  opening         {store['opened']['seconds']:6.2f} s   {store['opened']['cpu']:6.2f} s of processors")
    asked = store["asked_and_read"]
    print(f"  asked for all, every tenth read   {asked['seconds']:.1f} s   {asked['cpu']:.1f} s of processors")
    print(f"  memory          {store['resident'] / 1e6:.0f} MB while read, {store['peak'] / 1e6:.0f} MB at the peak")


if __name__ == "__main__":
    main()
