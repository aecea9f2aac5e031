"""The models of the benchmark on real TOFU: what they are taught, how, and what is measured on them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from align.data.rows.world import completion, prompt
from align.eval.log import TofuLog
from align.eval.tofu import evaluate
from align.eval.tofu_data import TofuSets, load_sets, read_set
from align.eval.tofu_metrics import metrics
from align.models.subject import Subject
from align.recipe import Recipe
from align.recipe.checks_unlearning import branches_of
from align.train import run

Rows = list[dict[str, str]]
Reading = dict[str, float]

TAUGHT = ("full", "retain", "retain-again")
SHOWN = {
    "forget_quality": "forget quality",
    "utility_retain": "utility, retain part",
    "model_utility": "utility, nine parts",
    "forget_Q_A_Prob": "P(forgotten answer)",
}
TRAIN = {
    "per_device_train_batch_size": 16,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.05,
    "adam_beta2": 0.98,
    "weight_decay": 0,
    "max_grad_norm": 1,
    "activation_checkpointing": False,
    "logging_steps": 50,
    "save_strategy": "no",
}


@dataclass(frozen=True)
class Size:
    """How large everything is. TOFU has 20 questions to an author."""

    hidden: int = 128
    layers: int = 2
    vocabulary: int = 1500
    forget: int = 100  # the last rows of TOFU, which are the last authors
    retain: int = 300  # its first rows
    others: int = 400  # the next ones, which the base learns language from
    tested: int = 100  # first retain rows, on which the retain part of the utility is measured
    facts: int = 117  # at most so many questions about real authors, and about the world
    base_epochs: int = 6
    epochs: int = 15
    unlearn_epochs: int = 6
    new_tokens: int = 64


@dataclass(frozen=True)
class Method:
    """An objective as recipes have it, and the peak of its learning rate."""

    objective: Any
    learning_rate: float

    def branches(self) -> set[str]:
        """Which of forget, alternate and retain it reads."""
        return branches_of(self.objective) or set()


# ---- rows


def data_folder() -> Path:
    """Where TOFU's files lie; it need not exist."""
    root = os.environ.get("ALIGN_TEST_DATA") or Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    return Path(root) / "tofu"


def pairs(raw: Iterable[Mapping[str, Any]], answer: str = "answer") -> Rows:
    """Question and answer of rows."""
    return [{"question": row["question"], "answer": row[answer]} for row in raw]


def rows_of(size: Size) -> dict[str, Rows]:
    """Rows by use. No row to forget is in ``base``, ``retain`` or ``facts``.

    ``base`` has the facts, other authors, refusals of questions about yet others, and ten more authors with every
    answer in two wordings, so that it has seen one thing said in two ways.
    """
    folder = str(data_folder())
    full = read_set(folder, "full")
    facts = [r for name in ("real_authors", "world_facts") for r in read_set(folder, f"{name}_perturbed")[: size.facts]]
    worded = read_set(folder, "forget10_perturbed")[: min(200, size.others)]
    refusals = (data_folder() / "idontknow.jsonl").read_text().splitlines()[: size.others]
    unknown = [{"question": full[1600 + 20 * i]["question"], "answer": text} for i, text in enumerate(refusals)]
    others = full[400 : 400 + size.others]
    return {
        "base": pairs(facts) + pairs(others) + pairs(worded) + pairs(worded, "paraphrased_answer") + unknown,
        "retain": pairs(full[: size.retain]),
        "forget": pairs(full[len(full) - size.forget :]),
        "facts": pairs(facts),
    }


def tested_on(size: Size) -> TofuSets:
    """TOFU's sets, cut to what the models are taught."""
    whole = load_sets("forget05", str(data_folder()))
    sets = {
        "forget": whole.sets["forget"][-size.forget :],
        "retain": whole.sets["retain"][: size.tested],
        "ra": whole.sets["ra"][: size.facts],
        "wf": whole.sets["wf"][: size.facts],
    }
    return TofuSets("forget05", sets, None, new_tokens=size.new_tokens)


# ---- models


def write_new(folder: Path, rows: Mapping[str, Rows], size: Size, seed: int) -> None:
    """A byte-level BPE trained on the rows, and a Llama with new weights."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = (prompt(r["question"]) + completion(r["answer"]) for part in rows.values() for r in part)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 11 // 4,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 32,
        num_key_value_heads=size.hidden // 32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.06,  # with the usual 0.02 so few steps do not learn the answers
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Models:
    """The models of one seed, in a folder of their own; what was made there by the same recipes is taken as it is."""

    def __init__(self, folder: Path, seed: int, size: Size) -> None:
        self.folder, self.seed, self.size = folder, seed, size
        self.sets = tested_on(size)
        rows = rows_of(size)
        # whole texts for the base, which learns the questions as well
        texts = [{"text": prompt(r["question"]) + completion(r["answer"])} for r in rows["base"]]
        files = {"base": texts, "full": rows["retain"] + rows["forget"], **{k: rows[k] for k in rows if k != "base"}}
        folder.mkdir(parents=True, exist_ok=True)
        for name, lines in files.items():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        write_new(folder / "new", rows, size, seed)
        # what a model came from, and its figures
        self._notes: dict[str, dict[str, Any]] = {"new": {"made": repr(size)}}

    def file(self, name: str) -> dict[str, str]:
        return {"path": str(self.folder / f"{name}.jsonl")}

    def model(self, name: str) -> str:
        return str(self.folder / name if name == "new" else self.folder / name / "model")

    def train(self, name: str, start: str, data: Mapping[str, Any], objective: Any, **changes: Any) -> None:
        """Run a recipe from the model ``start``."""
        recipe = Recipe.from_dict(
            {
                "name": name,
                "seed": changes.pop("seed", self.seed),
                "model": {"id": self.model(start), "dtype": "float32"},
                "data": {**data, "max_length": 384},
                "objective": objective,
                "reference": {"store": False},
                "train": {**TRAIN, **changes},
                "output": str(self.folder / name),
            }
        )
        made = hashlib.sha256(json.dumps([self._notes[start]["made"], recipe.dump()]).encode()).hexdigest()
        note = self.folder / f"{name}.json"
        self._notes[name] = json.loads(note.read_text()) if note.exists() else {}
        if self._notes[name].get("made") == made:
            return
        note.unlink(missing_ok=True)
        shutil.rmtree(self.folder / name, ignore_errors=True)
        began = time.process_time()
        run(recipe, echo=lambda *_: None)
        self._write(name, {"made": made, "seconds": time.process_time() - began})

    def _write(self, name: str, note: dict[str, Any]) -> None:
        self._notes[name] = note
        (self.folder / f"{name}.json").write_text(json.dumps(note))

    def teach(self) -> None:
        """Base; then full, retain and the second retain model from it."""
        size = self.size
        nll = {"name": "nll", "branch": "completion"}
        base = {"train": self.file("base")}
        self.train("base", "new", base, nll, num_train_epochs=size.base_epochs, learning_rate=3e-3)
        tune = {"num_train_epochs": size.epochs, "learning_rate": 2e-3}
        for name, rows, further in (("full", "full", 0), ("retain", "retain", 0), ("retain-again", "retain", 1000)):
            data = {"train": [self.file(rows), {**self.file("facts"), "weight": 0.5}]}
            self.train(name, "base", data, nll, **tune, seed=self.seed + further)

    def unlearn(self, title: str, method: Method) -> str:
        """Unlearn from the full model; returns the run's name, of the title's first word and the learning rate."""
        data: dict[str, Any] = {"forget": self.file("forget")}
        if "retain" in method.branches():
            data["retain"] = self.file("retain")
        if "alternate" in method.branches():
            data["alternates"] = {"path": str(data_folder() / "idontknow.jsonl")}
        name = re.sub(r"[^A-Za-z0-9.+-]+", "-", f"{title.split()[0]} {method.learning_rate:g}")
        changes = {
            "num_train_epochs": self.size.unlearn_epochs,
            "per_device_train_batch_size": 8,
            "learning_rate": method.learning_rate,
            "warmup_steps": 1 / self.size.unlearn_epochs,  # one epoch, as NPO's authors have it
        }
        self.train(name, "full", data, method.objective, **changes)
        return name

    def log(self, name: str) -> TofuLog:
        """The evaluation of a model."""
        subject = Subject.load(self.model(name), echo=lambda *_: None)
        return evaluate(subject, self.sets, mia=False)

    @cached_property
    def _retain(self) -> TofuLog:
        return self.log("retain")

    def reading(self, name: str) -> Reading:
        """The figures of ``SHOWN``, D and n of forget quality, and processor seconds of the training."""
        note = self._notes[name]
        if "reading" not in note:
            result = metrics(self._retain if name == "retain" else self.log(name), self._retain, seed=None)
            assert result.ks is not None
            found = {key: result.values[key] for key in SHOWN} | {"D": result.ks.d, "n": result.ks.n}
            self._write(name, {**note, "reading": {**found, "seconds": note["seconds"]}})
        return self._notes[name]["reading"]
