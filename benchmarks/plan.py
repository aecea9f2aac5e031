"""Planned against measured memory: `align plan`'s model beside the peak of runs on a CPU, each in a fresh process.

    python benchmarks/plan.py                     all configurations
    python benchmarks/plan.py --only lora,bf16    some of them
    python benchmarks/plan.py --on cpu2-fsdp2     under a launcher configuration, the fullest of its processes
    python benchmarks/plan.py --published         larger models by their published sizes, and what a GPU showed

Measured is the process's highest resident memory less what it held before its model was made; two optimizer steps.
glibc is told to give freed memory back, and torch to keep none of the kernels that it compiles for 16 bits, so that
tensors are measured; --heap leaves both out.
Models have random weights, rows are made up. Peaks of a run differ by a few MiB from one time to the next.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

if TYPE_CHECKING:
    from align.plan.plan import Plan
    from align.plan.shares import Launch

MIB = 2**20
TENSORS_ALONE = {
    # Bytes from which on glibc asks the system for a piece of memory of its own, and gives it back when it is freed. By
    # default that size grows as pieces are freed, and much of what was freed stays with the process.
    "MALLOC_MMAP_THRESHOLD_": "262144",
    # oneDNN compiles a kernel for each shape of a product in 16 bits, half a MiB of it and more, and keeps 1,024 of
    # them; torch keeps as many again
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1",
    "LRU_CACHE_CAPACITY": "1",
}
SHAPE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8}
SHAPE |= {"num_key_value_heads": 4}
SMALL, LARGE = 8_000, 64_000  # words
BOTH = [{"name": "npo"}, {"name": "nll", "branch": "retain", "weight": 1.0}]

# name: (words, changes of the recipe); a batch is 4 rows unless said
CONFIGURATIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "full": (SMALL, {}),
    "full, batch 8": (SMALL, {"train.per_device_train_batch_size": 8}),
    "full, 64k words": (LARGE, {}),
    "full, tied, 64k words": (LARGE, {"tied": True}),
    "full, checkpointing": (SMALL, {"train.activation_checkpointing": True, "train.per_device_train_batch_size": 8}),
    "full, store complete": (SMALL, {"again": True, "watch.probe_answers": 0, "train.max_steps": 4}),
    "full, accumulated": (SMALL, {"train.gradient_accumulation_steps": 2}),
    "full, bf16 autocast": (SMALL, {"train.bf16": True}),
    "full, SGD": (SMALL, {"train.optim": "sgd"}),
    "lora": (SMALL, {"model.lora": {"rank": 16}}),
    "lora, batch 8": (SMALL, {"model.lora": {"rank": 16}, "train.per_device_train_batch_size": 8}),
    "lora, checkpointing, 64k words": (LARGE, {"model.lora": {"rank": 16}, "train.activation_checkpointing": True}),
    "lora, bf16 weights": (SMALL, {"model.lora": {"rank": 16}, "model.dtype": "bfloat16"}),
    "npo and retain": (SMALL, {"objective": BOTH}),
    "npo and kl": (SMALL, {"objective": [BOTH[0], {"name": "kl", "branch": "retain"}]}),
    "rmu": (SMALL, {"objective": {"name": "rmu", "layer": 3}}),
}


def _llama(
    hidden: int, inner: int, layers: int, heads: int, keys: int, words: int, *, tied: bool = False, kind: str = "llama"
) -> dict[str, Any]:
    """A published configuration, as config.json says it."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sizes = dict(zip(names, (hidden, inner, layers, heads, keys), strict=True))
    return {"model_type": kind, **sizes, "vocab_size": words, "tie_word_embeddings": tied}


def rows(count: int, words: int, seed: int = 0) -> list[dict[str, str]]:
    """Pairs of 60 to 120 words of prompt and of each answer."""
    source = random.Random(seed)

    def text() -> str:
        return " ".join(f"w{source.randrange(3, words)}" for _ in range(source.randint(60, 120)))

    return [{"prompt": text(), "chosen": text(), "rejected": text()} for _ in range(count)]


def save(folder: Path, words: int, tied: bool) -> Path:
    """A Llama of random weights with a tokenizer of so many words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(vocab_size=words, tie_word_embeddings=tied, pad_token_id=0, bos_token_id=2, **SHAPE)
    config.eos_token_id = 1
    LlamaForCausalLM(config).save_pretrained(folder)
    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="w0", eos_token="w1", bos_token="w2").save_pretrained(
        folder
    )
    return folder


def recipe_of(folder: Path, model: Path, words: int, changes: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a configuration, with its rows beside it."""
    own = rows(16, words)
    found: dict[str, Any] = {
        "name": "measured",
        "output": str(folder / "run"),
        "model": {"id": str(model)},
        "objective": changes.get("objective", {"name": "dpo"}),
        "reference": {"store_dir": str(folder / "store")},
        "watch": {"report": False, "probe_pairs": 0},
        "train": {
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "use_cpu": True,
            "logging_steps": 1,
            "activation_checkpointing": False,  # it is on by default
        },
    }
    if "objective" in changes:
        for name in ("forget", "retain"):
            lines = [json.dumps({"question": row["prompt"], "answer": row["chosen"]}) for row in own]
            (folder / f"{name}.jsonl").write_text("\n".join(lines))
        found["data"] = {name: {"path": str(folder / f"{name}.jsonl")} for name in ("forget", "retain")}
        if changes["objective"] == {"name": "rmu", "layer": 3}:
            found["train"]["learning_rate"] = 1e-5
    else:
        (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in own))
        found["data"] = {"train": {"path": str(folder / "pairs.jsonl")}}
    for key, value in changes.items():
        if "." in key:
            section, name = key.split(".")
            found[section][name] = value
    return found


def child(file: Path) -> None:
    """One run: prints what it planned and what it took, in bytes."""
    import align.training.run as training
    from align.recipe import Recipe

    recipe = Recipe.from_dict(json.loads(file.read_text()), base=file.parent)
    held: list[int] = []
    load = training.load_model

    def watched(*args: Any, **kwargs: Any) -> Any:
        held.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
        return load(*args, **kwargs)

    training.load_model = watched
    training.run(recipe, echo=lambda line: print(line, file=sys.stderr))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    plan = json.loads((recipe.output_dir / "plan.json").read_text())["memory"]
    found = {"planned": plan["total"], "measured": peak - held[0], **plan}
    file.with_name(f"found{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))


def measure(name: str, heap: bool, on: str | None) -> dict[str, Any]:
    """One configuration in fresh processes, and before it once more where its store is to be complete."""
    words, changes = CONFIGURATIONS[name]
    env, start = {**os.environ, **({} if heap else TENSORS_ALONE)}, [sys.executable]
    if on is not None:
        from align.runs.launcher import command, configuration

        chosen = configuration(on)
        launch = command(chosen, chosen.processes, [])
        env |= launch.variables
        start += ["-m", "accelerate.commands.launch", *launch.words[: launch.words.index("-m")]]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        options = ["--words", str(words), "--tied", str(int("tied" in changes))]
        subprocess.run([sys.executable, __file__, "--save", place, *options], check=True, capture_output=True)
        recipe = recipe_of(folder, folder / "model", words, changes)
        out: dict[str, Any] = {}
        for time in range(1 + ("again" in changes)):
            recipe["output"] = str(folder / f"run{time}")
            (folder / "recipe.json").write_text(json.dumps(recipe))
            run = [*start, __file__, "--child", str(folder / "recipe.json")]
            done = subprocess.run(run, capture_output=True, text=True, env=env)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-2000:]}")
            found = [json.loads(file.read_text()) for file in folder.glob("found*.json")]
            out = max(found, key=lambda process: process["measured"])
    return out


# name: (configuration, its published number of weights); larger ones are planned, not run
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Llama 3.2 1B": (_llama(2048, 8192, 16, 32, 8, 128256, tied=True), 1_235_814_400),
    "Llama 3.1 8B": (_llama(4096, 14336, 32, 32, 8, 128256), 8_030_261_248),
    "Llama 2 7B": (_llama(4096, 11008, 32, 32, 32, 32000), 6_738_415_616),
    "Llama 3.1 70B": (_llama(8192, 28672, 80, 64, 8, 128256), 70_553_706_496),
    "Qwen2.5 7B": (_llama(3584, 18944, 28, 28, 4, 152064, kind="qwen2"), 7_615_616_512),
}
# what runs on an H200 took, in GiB of tensors (2026-11-26), all on made-up rows with the lengths of UltraFeedback
SEEN = (
    ("Llama 3.2 1B", "all weights, float32 with bf16 autocast", {}, 41.0),
    ("Llama 2 7B", "LoRA 16, bf16 weights, checkpointing", {"lora": True}, 71.3),
)


def published(name: str, lora: bool, on: Launch, device: str = "H200") -> Plan:
    """The plan of DPO with a model of its published shape: 8 made-up pairs with the lengths of UltraFeedback."""
    from rows import batches

    from align.data.load import Data
    from align.plan.device import named
    from align.plan.plan import plan_of
    from align.recipe import Recipe

    config, _ = PUBLISHED[name]
    pairs = [row for batch in batches("uf", 4, config["vocab_size"]) for row in batch]
    data = Data(Dataset.from_list(pairs), None, lambda epoch: range(len(pairs)), None)
    train = {"per_device_train_batch_size": 8, "max_steps": 4, "bf16": True, "activation_checkpointing": lora}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        recipe = {
            "name": "published",
            "model": {"id": folder, **({"dtype": "bfloat16", "lora": {"rank": 16}} if lora else {})},
            "data": {"train": {"path": "none.jsonl"}, "max_length": None},
            "objective": {"name": "dpo"},
            "reference": {"store": False},
            "watch": {"probe_pairs": 0},
            "train": train,
        }
        return plan_of(Recipe.from_dict(recipe), data, on, named(device))


def print_published() -> None:
    """Sizes, and the plans of larger models."""
    from align.plan.shares import Launch

    print("| model | weights | published |\n|---|---|---|")
    one = Launch("one process", 1, "one")
    for name, (_, count) in PUBLISHED.items():
        found = published(name, False, one).memory.weights.sum("elements")
        print(f"| {name} | {found:,} | {count:,} |", flush=True)
    print("\n| run on an H200 | planned tensors, GiB | seen, GiB | ratio |\n|---|---|---|---|")
    for name, how, options, seen in SEEN:
        plan = published(name, options.get("lora", False), one)
        tensors = (plan.memory.total - plan.memory.parts["context and fragmentation"]) / 2**30
        print(f"| {name}, {how} | {tensors:.1f} | {seen} | {tensors / seen:.2f} |", flush=True)
        print("  " + ", ".join(f"{part} {size / 2**30:.1f}" for part, size in plan.memory.parts.items() if size))
    print("\n| planned on 80 GiB | GiB a process |\n|---|---|")
    for name, lora, on in (
        ("Llama 3.1 8B", True, one),
        ("Llama 3.1 8B", False, Launch("fsdp2", 8, "fsdp2")),
        ("Llama 3.1 8B", False, Launch("zero3", 8, "zero3")),
        ("Qwen2.5 7B", True, one),
        ("Llama 3.1 70B", True, Launch("fsdp2", 8, "fsdp2")),
        ("Llama 3.1 70B", False, Launch("fsdp2", 64, "fsdp2")),
    ):
        plan = published(name, lora, on, "80GiB")
        how = "LoRA 16, bf16" if lora else "all weights"
        print(f"| {name}, {how}, {on.name} x {on.processes} | {plan.memory.total / 2**30:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of configurations, separated by ;")
    parser.add_argument("--on", help="a launcher configuration for a CPU, such as cpu2-ddp, or a file")
    parser.add_argument("--heap", action="store_true", help="let glibc and torch keep what they keep by default")
    parser.add_argument("--published", action="store_true", help="plans of models that do not run here")
    parser.add_argument("--json", action="store_true", help="all numbers instead of a table")
    for hidden in ("--child", "--save"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    for hidden in ("--words", "--tied"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child)
    if args.save:
        save(args.save / "model", args.words, bool(args.tied))
        return None
    if args.published:
        return print_published()
    chosen = args.only.split(";") if args.only else list(CONFIGURATIONS)
    if not args.json:
        print("| configuration | planned, MiB | measured, MiB | ratio | fullest at |\n|---|---|---|---|---|")
    for name in chosen:
        found = measure(name, args.heap, args.on)
        ratio = found["planned"] / found["measured"]
        sizes = f"{found['planned'] / MIB:,.0f} | {found['measured'] / MIB:,.0f} | {ratio:.2f}"
        print(json.dumps({name: found}) if args.json else f"| {name} | {sizes} | {found['fullest_at']} |", flush=True)
    return None


if __name__ == "__main__":
    main()
