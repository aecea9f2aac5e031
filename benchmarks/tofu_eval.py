"""The teacher-forced part of a TOFU evaluation, ours and the usual way in turn: same weights, same rows.

    python benchmarks/tofu_eval.py            a table
    python benchmarks/tofu_eval.py --json     the numbers
    python benchmarks/tofu_eval.py --whole    a whole evaluation of forget10, with the answers that the model writes

Every row of TOFU's forget10_perturbed has one question with seven answers: the right one, its paraphrase and five wrong
ones. The usual way takes a pass for each of the seven, in batches of 32 padded rows in the order of the file, with
logits of every position and a cross entropy over them. Ours computes each question once for all of its answers, pads
nothing, and asks the vocabulary head about answers only. Both give the same losses, which is checked. float32 on a CPU,
bf16 autocast on CUDA.

``--whole`` runs the suite as ``align eval tofu`` does, on CUDA with the shape of Llama 3.2 1B and weights of bfloat16.
Random weights hardly ever end a text, so that every answer has its 200 tokens: a trained model is done sooner.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from align.data.rows.questions import prompt_of, reply_of
from align.engine.scoring import ScoringEngine, attach
from align.eval.texts import encode_pairs
from align.eval.tofu import evaluate
from align.eval.tofu_data import load_sets, read_set
from align.models.subject import Subject

VOCABULARY = 32_768
BATCH = 32  # of the usual way
TARGET = 2.0  # times as fast
TOLERANCE = {"cpu": 1e-5, "cuda": 0.03}  # between losses, relative

Item = tuple[list[int], list[list[int]]]  # the prompt's token ids, those of each answer


def data_folder() -> Path:
    """Where TOFU's files lie; it need not exist."""
    root = os.environ.get("ALIGN_TEST_DATA") or Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    return Path(root) / "tofu"


def llama(layers: int, hidden: int) -> PreTrainedModel:
    """A Llama with random weights in float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        tie_word_embeddings=False,
        initializer_range=0.05,  # far enough from uniform that a wrong token would show in a loss
        attn_implementation="sdpa",
    )
    return AutoModelForCausalLM.from_config(config).eval()


def llama_1b() -> PreTrainedModel:
    """Random weights in the shape of Llama 3.2 1B, made on the GPU in bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def tokenizer_of(folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 8k trained on TOFU."""
    trained = ByteLevelBPETokenizer()
    texts = (f"Question: {r['question']}\nAnswer: {r['answer']}" for r in read_set(str(folder), "full"))
    trained.train_from_iterator(texts, vocab_size=8000, special_tokens=["<pad>", "<eos>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, pad_token="<pad>", eos_token="<eos>")


def items(rows: int, folder: Path) -> tuple[list[Item], PreTrainedTokenizerFast]:
    """The first ``rows`` questions with their seven answers, as token ids."""
    tokenizer = tokenizer_of(folder)
    out: list[Item] = []
    for fact in load_sets("forget10", str(folder)).sets["forget"][:rows]:
        answers = [fact.answer, str(fact.paraphrased_answer), *fact.wrong]
        pairs = encode_pairs(
            tokenizer, [prompt_of(fact.question, False)] * len(answers), [reply_of(a, False) for a in answers]
        )
        out.append((pairs[0][0], [ids for _, ids in pairs]))
    return out, tokenizer


class Ways:
    """Both ways to the mean losses [rows][7] of the same items under the same model."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, data: list[Item]) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.data = model.to(self.device), data
        self.autocast: Callable[[], Any] = contextlib.nullcontext
        if self.device.type == "cuda":
            self.autocast = lambda: torch.autocast("cuda", torch.bfloat16)
        attach(model)
        self.subject = Subject(model, tokenizer, ScoringEngine(), autocast=self.autocast)
        self.positions = 0
        model.get_input_embeddings().register_forward_pre_hook(lambda _, args: self._count(args[0]))

    def _count(self, ids: torch.Tensor) -> None:
        self.positions += ids.numel()

    def ours(self) -> torch.Tensor:
        named = [{str(k): ids for k, ids in enumerate(answers)} for _, answers in self.data]
        values = self.subject.score([prompt for prompt, _ in self.data], named)
        return torch.tensor([[-row[k]["logp"].mean() for k in row] for row in values])

    @torch.no_grad()
    def usual(self) -> torch.Tensor:
        answers = len(self.data[0][1])
        out = torch.zeros(len(self.data), answers, dtype=torch.float64)
        for k in range(answers):
            for start in range(0, len(self.data), BATCH):
                rows = self.data[start : start + BATCH]
                whole = [torch.tensor([*prompt, *named[k]], device=self.device) for prompt, named in rows]
                labels = [row.clone() for row in whole]
                for label, (prompt, _) in zip(labels, rows, strict=True):
                    label[: len(prompt)] = -100
                ids = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True)
                wanted = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
                mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(w) for w in whole], batch_first=True)
                with self.autocast():
                    logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
                losses = torch.nn.functional.cross_entropy(
                    logits[:, :-1].transpose(1, 2), wanted[:, 1:], reduction="none", ignore_index=-100
                )
                out[start : start + len(rows), k] = (losses.sum(1) / (wanted[:, 1:] != -100).sum(1)).double().cpu()
        return out


def measure(rows: int, rounds: int, layers: int, hidden: int) -> dict[str, Any]:
    """Seconds and processor seconds of both ways, round by round, and what they computed."""
    data, tokenizer = items(rows, data_folder())
    ways = Ways(llama(layers, hidden), tokenizer, data)
    whole, ways.data = ways.data, data[:BATCH]
    ways.ours(), ways.usual()  # warm up
    ways.data = whole
    seconds: dict[str, list[float]] = {"ours": [], "usual": []}
    cpu: dict[str, list[float]] = {"ours": [], "usual": []}
    losses, positions = {}, {}
    for number in range(rounds):
        for name in ("ours", "usual") if number % 2 else ("usual", "ours"):  # nobody is always first
            ways.positions = 0
            started = time.process_time(), _now()
            losses[name] = getattr(ways, name)()
            seconds[name].append(_now() - started[1])
            cpu[name].append(time.process_time() - started[0])
            positions[name] = ways.positions
            print(f"  {number + 1}/{rounds} {name}: {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
    gap = ((losses["ours"] - losses["usual"]).abs() / losses["usual"]).max().item()
    return {
        "about": about(layers, hidden),
        "rows": len(data),
        "answers": sum(len(answers) for _, answers in data),
        "rounds": rounds,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "times_as_fast": _medians(seconds),
        "times_as_fast_in_processor_time": _medians(cpu),
        "positions": positions,
        "loss_gap": gap,
        "same_losses": gap <= TOLERANCE[ways.device.type],
        "target": TARGET,
        "holds": _medians(seconds) >= TARGET,
    }


def measure_whole(limit: int | None, layers: int, hidden: int) -> dict[str, Any]:
    """Seconds of a whole evaluation: ``limit`` rows of each set, None for all; the model's shape is of a CPU's."""
    folder, cuda = data_folder(), torch.cuda.is_available()
    model, tokenizer = llama_1b() if cuda else llama(layers, hidden), tokenizer_of(folder)
    attach(model)
    subject = Subject(model, tokenizer, ScoringEngine())
    sets = load_sets("forget10", str(folder), limit=limit)
    spent: dict[str, float] = {"generation": 0.0}
    largest, answers, generate = [0], [0], subject.generate

    def timed(prompts: Any, *args: Any, **kwargs: Any) -> list[str]:
        hook = model.get_input_embeddings().register_forward_pre_hook(
            lambda _, given: largest.append(given[0].shape[0])
        )
        start = _now()
        texts = generate(prompts, *args, **kwargs)
        spent["generation"] += _now() - start
        answers[0] += len(texts)
        hook.remove()
        return texts

    subject.generate = timed  # type: ignore[method-assign]
    start = _now()
    log = evaluate(subject, sets)
    spent["all"] = _now() - start
    spent["scoring"] = spent["all"] - spent["generation"]
    model_shape = "Llama 3.2 1B's shape, bfloat16" if cuda else f"{about(layers, hidden)['model']}, float32"
    return {
        "about": {**about(layers, hidden), "model": model_shape},
        "rows": {name: len(facts) for name, facts in sets.sets.items()},
        "answers": answers[0],
        "new_tokens": sets.new_tokens,
        "seconds": spent,
        "answer_tokens_per_second": answers[0] * sets.new_tokens / spent["generation"],
        "largest_batch": max(largest),
        "rouge_rows": sum(len(part.generation or ()) for part in log.sets.values()),
    }


def whole_table(report: dict[str, Any]) -> str:
    """The report for people."""
    seconds, rate = report["seconds"], report["answer_tokens_per_second"]
    return "\n".join(
        [
            f"{report['about']['device']}; {report['about']['model']}; random weights",
            f"a TOFU evaluation of {sum(report['rows'].values())} rows: {seconds['all']:.1f} s",
            f"  scoring {seconds['scoring']:.1f} s",
            f"  {report['answers']} answers of at most {report['new_tokens']} tokens {seconds['generation']:.1f} s, "
            f"up to {rate:,.0f} tokens a second, at most {report['largest_batch']} at a time",
        ]
    )


def _medians(values: dict[str, list[float]]) -> float:
    return statistics.median(values["usual"]) / statistics.median(values["ours"])


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def about(layers: int, hidden: int) -> dict[str, Any]:
    """Machine and versions."""
    cuda = torch.cuda.is_available()
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        "dtype": "bfloat16 autocast" if cuda else "float32",
        "model": f"Llama, {layers} layers, hidden {hidden}, vocabulary {VOCABULARY}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    medians = {name: statistics.median(values) for name, values in report["seconds"].items()}
    share = report["positions"]["usual"] / report["positions"]["ours"]
    return "\n".join(
        [
            f"{report['about']['device']}, {report['about']['dtype']}; {report['about']['model']}",
            f"{report['rows']} questions, {report['answers']} answers, {report['rounds']} rounds; median seconds",
            f"  ours {medians['ours']:.1f}, the usual way {medians['usual']:.1f}",
            f"  {report['times_as_fast']:.2f} times as fast, {report['times_as_fast_in_processor_time']:.2f} in "
            f"processor time; the target of {TARGET:g} {'holds' if report['holds'] else 'does not hold'}",
            f"  the usual way computes {share:.2f} times as many positions",
            f"  largest relative difference between losses {report['loss_gap']:.1e}",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run as a command; exit code 1 where the two ways do not give the same losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--whole", action="store_true", help="measure a whole evaluation, and nothing else")
    parser.add_argument("--limit", type=int, help="with --whole: only so many rows of each set")
    parser.add_argument("--rows", type=int, default=400, help="questions of forget10 (default 400, all of them)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256, help="a multiple of 64")
    parser.add_argument("--threads", type=int, default=1, help="threads on a CPU (default 1)")
    args = parser.parse_args(argv)
    if not data_folder().is_dir():
        print(f"skipped: {data_folder()} is not there; set ALIGN_TEST_DATA to the folder that holds tofu")
        return 0
    if not torch.cuda.is_available():
        torch.set_num_threads(args.threads)
    if args.whole:
        whole = measure_whole(args.limit, args.layers, args.hidden)
        print(json.dumps(whole, indent=1) if args.json else whole_table(whole))
        return 0
    report = measure(args.rows, args.rounds, args.layers, args.hidden)
    print(json.dumps(report, indent=1) if args.json else table(report))
    return 0 if report["same_losses"] else 1


if __name__ == "__main__":
    sys.exit(main())
