"""Two processes beside one on a CPU: seconds of a DPO step at the same global batch, and the load of the machine.

    python benchmarks/processes.py            a table
    python benchmarks/processes.py --json     the numbers

Every round runs each way once, in an order that turns, so that noise of the machine hits all of them: one process with
one thread, one with two threads, and two under DDP with one thread each. The first two steps of a run are left out. The
model is a Llama of 30M weights, large enough for a step to take seconds; `--tiny` rehearses it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from align.runs.launcher import configuration

WAYS = {"one process, one thread": (1, 1), "one process, two threads": (1, 2), "two processes, one thread each": (2, 1)}
STEPS, LEFT_OUT, BATCH = 6, 2, 8


def work(out: Path, tiny: bool) -> None:
    """What each process does: train, and leave the seconds of its steps in ``out``."""
    import torch
    from datasets import Dataset
    from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback, set_seed

    from align.compat import training_config
    from align.objectives import SimPO
    from align.trainers.preference import PreferenceTrainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.times.append(time.perf_counter())

    clock = Clock()
    set_seed(0)
    wide = 64 if tiny else 512
    config = AutoConfig.for_model(
        "llama", vocab_size=97 if tiny else 8192, hidden_size=wide, intermediate_size=3 * wide, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=8, pad_token_id=0, bos_token_id=2, eos_token_id=1,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(3, config.vocab_size, (count,), generator=generator).tolist()

    length, columns = 8 if tiny else 64, ("prompt_ids", "chosen_ids", "rejected_ids")
    data = [{column: ids(length) for column in columns} for _ in range(STEPS * BATCH)]
    world = int(os.environ.get("WORLD_SIZE", "1"))
    args = training_config(
        output_dir=str(out.parent / "out"), per_device_train_batch_size=BATCH // world, max_steps=STEPS, use_cpu=True,
        bf16=False, gradient_checkpointing=False, save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = PreferenceTrainer(
        AutoModelForCausalLM.from_config(config), SimPO(), args, train_dataset=Dataset.from_list(data),
        processing_class=_tokenizer(config.vocab_size), callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    if trainer.accelerator.is_main_process:
        steps = [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)][LEFT_OUT - 1 :]
        weights = sum(p.numel() for p in trainer.model.parameters())
        out.write_text(json.dumps({"seconds": steps, "weights": weights}))


def _tokenizer(size: int) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="w0", eos_token="w1", bos_token="w2")


def measure(way: str, tiny: bool) -> dict[str, Any]:
    """Seconds of the steps of one run."""
    processes, threads = WAYS[way]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "steps.json"
        words = [str(Path(__file__).resolve()), "--work", str(out), *(["--tiny"] if tiny else [])]
        start = [sys.executable]
        if processes > 1:
            start += ["-m", "accelerate.commands.launch", "--config_file", str(configuration("cpu2-ddp").file)]
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
        subprocess.run([*start, *words], env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return json.loads(out.read_text())


def compare(rounds: int, tiny: bool) -> dict[str, Any]:
    """All ways in turn: the median step of each, and how much longer one process with one thread takes, by round."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    loads, found = [], {}
    for number in range(rounds):
        order = list(WAYS)[number % len(WAYS) :] + list(WAYS)[: number % len(WAYS)]
        for way in order:
            loads.append(os.getloadavg()[0])
            found = measure(way, tiny)
            seconds[way].append(statistics.median(found["seconds"]))
            print(f"  {number + 1}/{rounds} {way}: {seconds[way][-1]:.2f} s, load {loads[-1]:.1f}", file=sys.stderr)
    alone = seconds["one process, one thread"]
    return {
        "cores": os.cpu_count(),
        "load": [min(loads), max(loads)],
        "weights": found["weights"],
        "seconds": {way: statistics.median(values) for way, values in seconds.items()},
        "faster": {way: [a / b for a, b in zip(alone, values, strict=True)] for way, values in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.tiny)
        return
    found = compare(args.rounds, args.tiny)
    if args.json:
        print(json.dumps(found))
        return
    low, high = found["load"]
    what = f"{found['weights'] / 1e6:.1f}M weights, {BATCH} pairs a step"
    print(f"{what}, {found['cores']} cores, load average {low:.1f} to {high:.1f}")
    for way, value in found["seconds"].items():
        ratios = found["faster"][way]
        print(f"{way:<32} {value:6.2f} s a step, {min(ratios):.2f} to {max(ratios):.2f} times as fast as the first")


if __name__ == "__main__":
    main()
