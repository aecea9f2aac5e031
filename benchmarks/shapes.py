"""Named shapes of models with random weights, and how many floating point operations a step of them takes.

The count is the usual one: two operations for each weight and token in a forward, twice that in a backward. Weights are
those of the linear layers without embeddings, tokens the nodes of the batch's token trie (a shared prompt once, no
padding); the head counts for each answer token. Attention is not counted, nor is what a way computes twice, save for
checkpointing, whose second forward is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rows import Row, trie_nodes
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """A Llama of random weights and how it is trained; ``batches`` says how many pairs of which rows make a step."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool
    batches: dict[str, int]
    grid: tuple[tuple[int, int], ...] = ()  # (prompt, answer) lengths in tokens
    dtype: str = "float32"
    lora: int = 0  # rank of the adapter, 0 for none
    checkpointing: bool = False

    def backbone(self) -> int:
        """Weights of the linear layers."""
        keys = self.hidden * self.key_heads // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * keys
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    def passes(self, *, reference: bool) -> int:
        """Products with every weight: the forward, its gradients (with an adapter only those of inputs), and so on."""
        return (2 if self.lora else 3) + self.checkpointing + reference

    def step_operations(self, batch: list[Row]) -> float:
        """Floating point operations of a step: policy forward and backward, reference forward."""
        passes = self.passes(reference=True)
        answers = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in batch)
        head = 2 * self.hidden * self.vocabulary * answers * (passes - self.checkpointing)
        return 2 * self.backbone() * trie_nodes(batch) * passes + head

    def ideal_ratio(self, prompt: int, answer: int) -> float:
        """How many times as long a pair takes with its prompt computed for each answer as with the prompt once.

        From counts alone, forward and backward: linear layers by position, attention by pairs of query and key, of
        which a causal kernel skips half, and the head by answer token.
        """
        linear = 2 * self.backbone() * self.passes(reference=False)
        attention = 4 * self.hidden * self.layers * (3 + self.checkpointing)
        head = 2 * self.hidden * self.vocabulary * (2 if self.lora else 3) * 2 * answer
        once = linear * (prompt + 2 * answer) + attention * (prompt**2 / 2 + 2 * (answer * prompt + answer**2 / 2))
        twice = linear * 2 * (prompt + answer) + attention * (prompt + answer) ** 2
        return (twice + head) / (once + head)

    def model(self, device: torch.device) -> PreTrainedModel:
        """The model, its weights drawn on ``device``; the same ones at every call."""
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            max_position_embeddings=32768,
            tie_word_embeddings=self.tied,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
            attn_implementation="sdpa",
        )
        with device:
            return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, self.dtype))


BATCHES = {"uf": 8, "hh": 16, "tldr": 8}
# the lengths that flash-preference reports sharing prompts with
GRID = ((1024, 256), (2048, 512), (4096, 512), (16384, 64))

SHAPES = {
    shape.name: shape
    for shape in (
        # Llama 3.2 1B, all weights trained: float32 weights under bf16 autocast
        Shape("1b", 2048, 8192, 16, 32, 8, 128256, tied=True, batches=BATCHES),
        # Llama 7B under an adapter, weights in bf16
        Shape(
            "7b-lora", 4096, 11008, 32, 32, 32, 32000, tied=False, batches=BATCHES, grid=GRID,
            dtype="bfloat16", lora=16, checkpointing=True,
        ),
        # for a rehearsal of the benchmark itself on a CPU
        Shape("tiny", 64, 96, 2, 4, 2, 512, tied=True, batches={"uf": 2, "tldr": 2}, grid=((96, 16), (64, 32))),
    )
}  # fmt: skip
