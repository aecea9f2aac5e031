"""A whole DPO step in several ways, on equal weights: ours, TRL's, and padded rows with our head."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import trl.trainer.utils
from datasets import Dataset
from rows import Row
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from align.compat import training_config
from align.objectives import DPO
from align.reference.store import LogProbStore
from align.trainers.preference import PreferenceTrainer

ROW = {"prompt_ids": [2, 3], "chosen_ids": [4, 1], "rejected_ids": [5, 1]}


def llama(vocabulary: int, seed: int = 0) -> PreTrainedModel:
    """Llama with 8 layers, hidden size 512, random weights in float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    return AutoModelForCausalLM.from_config(config)


def common(folder: str) -> dict[str, Any]:
    """Arguments of every trainer here."""
    cuda = torch.cuda.is_available()
    return {
        "output_dir": folder,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_steps": 1,
        # the optimizer does all of its work and changes nothing, so every way computes the same step in every round
        "learning_rate": 0.0,
        "gradient_checkpointing": False,
        "bf16": cuda,
        "use_cpu": not cuda,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
    }


def tokenizer() -> PreTrainedTokenizerFast:
    """Rows come as token ids; the trainers only ask for special tokens."""
    vocabulary = models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(vocabulary), pad_token="<pad>", eos_token="</s>")


class Step(NamedTuple):
    """What a step took. ``cpu_seconds`` adds up the threads of this process; it says more where others share the cores.

    ``positions`` are those that the policy's forward computed.
    """

    seconds: float
    cpu_seconds: float
    loss: float
    positions: int


class Way:
    """One trainer and its optimizer; ``step`` is forward, reference, backward, optimizer."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.device = trainer.args.device
        trainer.create_optimizer()
        # as `train` would: from here on a forward computes in the precision of the arguments
        trainer.model_wrapped = trainer.accelerator.prepare_model(trainer.model)
        trainer.optimizer = trainer.accelerator.prepare_optimizer(trainer.optimizer)
        trainer.current_gradient_accumulation_steps = 1
        self.positions = 0
        embedding = trainer.model.get_input_embeddings()
        embedding.register_forward_pre_hook(lambda _, args: self._count(args[0]))

    def _count(self, ids: torch.Tensor) -> None:
        self.positions += ids.numel()

    def collate(self, rows: list[Row]) -> dict:
        return self.trainer.data_collator([dict(row) for row in rows])

    def step(self, rows: list[Row], mode: str) -> Step:
        """One whole step on a batch."""
        with self.mode(mode):
            inputs = self.collate(rows)
            self.positions = 0
            cpu, start = time.process_time(), _now()
            samples, count = self.trainer.get_batch_samples(iter([inputs]), 1, self.device)
            loss = self.trainer.training_step(self.trainer.model_wrapped, samples[0], count)
            self.trainer.optimizer.step()
            self.trainer.optimizer.zero_grad(set_to_none=True)
            seconds, cpu = _now() - start, time.process_time() - cpu
        return Step(seconds, cpu, loss.item(), self.positions)

    def mode(self, mode: str) -> contextlib.AbstractContextManager:
        raise NotImplementedError


class Trl(Way):
    """TRL's DPOTrainer as it is (``trl``), or with its head at answer positions only, as on CUDA (``trl_compact``)."""

    def __init__(self, policy: PreTrainedModel, reference: PreTrainedModel, folder: str) -> None:
        raw = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
        config = DPOConfig(max_length=None, **common(folder))
        super().__init__(
            DPOTrainer(model=policy, ref_model=reference, args=config, train_dataset=raw, processing_class=tokenizer())
        )

    def mode(self, mode: str) -> contextlib.AbstractContextManager:
        if mode == "trl":
            return contextlib.nullcontext()
        return patch.object(trl.trainer.utils, "_use_triton", lambda device: True)


class Ours(Way):
    """Our trainer: trees (``ours``), with a warm store (``ours_warm``), or length-sorted padded rows (``padded``)."""

    def __init__(self, policy: PreTrainedModel, reference: PreTrainedModel, folder: str) -> None:
        start = copy.deepcopy(reference)  # the reference is the policy as it is handed over
        trainer = PreferenceTrainer(
            start, DPO(), training_config(**common(folder)), train_dataset=Dataset.from_list([ROW]),
            processing_class=tokenizer(),
        )  # fmt: skip
        super().__init__(trainer)
        self.store = LogProbStore(folder, "benchmark")
        self.step([ROW], "ours")  # the start-up probe
        start.load_state_dict(policy.state_dict())

    def warm(self, rows: list[Row]) -> None:
        """Put the reference log-probs of a batch into the store."""
        with self.mode("ours_warm"):
            batch = self.collate(rows)["tree"].to(self.device)
            autocast = self.trainer.accelerator.autocast
            self.trainer.reference.scores(self.trainer.model, batch, compute=True, keep=False, autocast=autocast)

    @contextlib.contextmanager
    def mode(self, mode: str) -> Iterator[None]:
        engine, reference = self.trainer.engine, self.trainer.reference
        engine.mode = "padded" if mode.startswith("padded") else "tree"
        if mode.startswith("padded:"):
            engine.rows_per_chunk = int(mode.split(":")[1])
        reference.store = self.store if mode == "ours_warm" else None
        yield
        engine.mode, reference.store = "tree", None


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
