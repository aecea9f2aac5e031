"""Prepared preference rows for the benchmarks: real HH rows, and made-up ones with the lengths of other tasks."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path

Row = dict[str, list[int]]

PAD, EOS = 0, 1
MAX_LENGTH = 512  # prompt and answer together; longer HH rows are left out for all ways alike

# shape: (batch, prompt lengths, answer lengths), both ends included, drawn uniformly
SHAPES: dict[str, tuple[int, tuple[int, int], tuple[int, int]]] = {
    "tldr": (8, (200, 460), (20, 53)),  # TL;DR: a long post, a summary of at most 53 tokens
    "chat": (8, (40, 360), (40, 200)),  # several turns, then an answer
    "long_answer": (4, (16, 64), (250, 500)),  # a short question, a long answer: little to share
    "uf": (8, (40, 420), (120, 600)),  # UltraFeedback: a question of any length, long answers
}


def hh_file() -> Path:
    """Where the HH rows lie; it need not exist."""
    root = os.environ.get("ALIGN_TEST_DATA") or Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    return Path(root) / "hh_rlhf" / "helpful_train.jsonl.gz"


def hh_rows(count: int, seed: int) -> list[Row]:
    """``count`` random HH rows of at most ``MAX_LENGTH`` tokens, in a byte-level BPE of 8k trained on all of them."""
    from tokenizers import ByteLevelBPETokenizer

    with gzip.open(hh_file(), "rt", encoding="utf-8") as file:
        texts = [json.loads(line) for line in file]
    tokenizer = ByteLevelBPETokenizer()
    corpus = (row[key] for row in texts for key in ("prompt", "chosen", "rejected"))
    tokenizer.train_from_iterator(corpus, vocab_size=8000, special_tokens=["<pad>", "<eos>"], show_progress=False)
    random.Random(seed).shuffle(texts)
    rows: list[Row] = []
    for text in texts:
        prompt, chosen, rejected = (tokenizer.encode(text[k]).ids for k in ("prompt", "chosen", "rejected"))
        if len(prompt) + max(len(chosen), len(rejected)) < MAX_LENGTH:
            rows.append({"prompt_ids": prompt, "chosen_ids": [*chosen, EOS], "rejected_ids": [*rejected, EOS]})
        if len(rows) == count:
            break
    return rows


def made_rows(shape: str, count: int, vocabulary: int, seed: int) -> list[Row]:
    """``count`` rows of random tokens with the lengths of ``shape``."""
    generator = random.Random(f"{shape} {seed}")
    _, prompt, answer = SHAPES[shape]

    def ids(lengths: tuple[int, int]) -> list[int]:
        return [generator.randrange(2, vocabulary) for _ in range(generator.randint(*lengths))]

    return [
        {"prompt_ids": ids(prompt), "chosen_ids": [*ids(answer), EOS], "rejected_ids": [*ids(answer), EOS]}
        for _ in range(count)
    ]


def batches(shape: str, count: int, vocabulary: int, seed: int = 0) -> list[list[Row]] | str:
    """``count`` batches of a shape, or why there are none."""
    if shape == "hh":
        if not hh_file().exists():
            return f"{hh_file().name} is not there; set ALIGN_TEST_DATA to the folder that holds hh_rlhf"
        size, rows = 8, hh_rows(8 * count, seed)
    else:
        size = SHAPES[shape][0]
        rows = made_rows(shape, size * count, vocabulary, seed)
    return [rows[i : i + size] for i in range(0, size * count, size)]


def trie_nodes(rows: list[Row]) -> int:
    """Nodes of the batch's token trie at which a model must be evaluated: all fed tokens, each shared prefix once.

    The last token of an answer predicts nothing, so it is not fed.
    """
    nodes = 0
    root: dict = {}
    for row in rows:
        for answer in (row["chosen_ids"], row["rejected_ids"]):
            node = root
            for token in (*row["prompt_ids"], *answer[:-1]):
                if token not in node:
                    node[token] = {}
                    nodes += 1
                node = node[token]
    return nodes
