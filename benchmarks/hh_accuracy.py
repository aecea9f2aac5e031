"""Does a small model learn real preferences? 2,000 pairs of HH-RLHF helpful, judged on held-out pairs.

    python benchmarks/hh_accuracy.py [--json] [--rows 2000] [--out runs/hh_accuracy]

Makes a byte-level BPE tokenizer and a small new Llama, aligns it with DPO for two epochs and prints the verdict:
held-out accuracy with its 95 % interval against the start, and what always preferring the longer answer would score.
Data: ``ALIGN_TEST_DATA`` (default ``../shared/data``), ``hh_rlhf/helpful_train.jsonl.gz``, ``helpful_test.jsonl.gz``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import sys
from pathlib import Path

from align.recipe import Recipe
from align.train import run

DATA = Path(os.environ.get("ALIGN_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "hh_rlhf"


def make_model(folder: Path, rows: int) -> None:
    """A tokenizer of 4,000 pieces trained on the training rows, and a new Llama of 1.3 M parameters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    with gzip.open(DATA / "helpful_train.jsonl.gz", "rt") as file:
        texts = [row["prompt"] + row["chosen"] for row, _ in zip(map(json.loads, file), range(rows), strict=False)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=4000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.05,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def recipe(name: str, out: Path, model: Path, rows: int, objective: dict, **train: object) -> Recipe:
    """A run on the training rows, judged on all held-out rows."""
    return Recipe.from_dict(
        {
            "name": name,
            "model": {"id": str(model), "dtype": "float32"},
            "data": {
                "train": {"path": str(DATA / "helpful_train.jsonl.gz"), "rows": rows},
                "held_out": {"path": str(DATA / "helpful_test.jsonl.gz")},
                "max_length": 512,
                "truncation": "prompt_left",
            },
            "objective": objective,
            "reference": {"store_dir": str(out / "store")},
            "train": {
                "per_device_train_batch_size": 16,
                "gradient_checkpointing": False,
                "logging_steps": 20,
                "eval_strategy": "epoch",
                "save_strategy": "no",
                "adam_beta2": 0.98,
                **train,
            },
            "output": str(out / name),
        }
    )


def longer_preferred() -> float:
    """Accuracy on the held-out pairs of a judge that looks at nothing but length; ties count as half."""
    with gzip.open(DATA / "helpful_test.jsonl.gz", "rt") as file:
        sizes = [(len(row["chosen"]), len(row["rejected"])) for row in map(json.loads, file)]
    return sum((a > b) + 0.5 * (a == b) for a, b in sizes) / len(sizes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("runs/hh_accuracy"))
    args = parser.parse_args()
    if not DATA.is_dir():
        print(f"{DATA} is absent: set ALIGN_TEST_DATA to the folder that holds hh_rlhf.", file=sys.stderr)
        return 2
    shutil.rmtree(args.out, ignore_errors=True)
    make_model(args.out / "new", args.rows)
    say = (lambda *_: None) if args.json else print
    prefer = recipe(
        "dpo",
        args.out,
        args.out / "new",
        args.rows,
        {"name": "dpo", "beta": 0.1},
        num_train_epochs=2,
        learning_rate=1e-3,
    )
    result = run(prefer, echo=say)
    longer = longer_preferred()
    if args.json:
        print(json.dumps({**result.verdict["findings"]["learned"], "longer_answer": longer}, indent=1))
    else:
        print(f"\n  always preferring the longer answer (in characters): {longer:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
