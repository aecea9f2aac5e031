"""Tiny models of many architectures, batches of trees, and the oracle: the untouched model on one row at a time."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from align.engine.layout import Branch, Example, Tree, TreeBatch, pack
from align.objectives import OBJECTIVES, Objective

VOCABULARY = 97
MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.1,
}
MIXED = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}

# What makes an architecture itself is switched on and far from 1, so that forgetting it would show.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "gemma2": ("gemma2", {**MIXED, "attn_logit_softcapping": None, "final_logit_softcapping": 1.5}),
    "gemma2-softcap": ("gemma2", {**MIXED, "attn_logit_softcapping": 0.7, "final_logit_softcapping": 1.5}),
    "gemma3": ("gemma3_text", MIXED),
    "phi3": ("phi3", {"sliding_window": 6}),
    "phi-head-bias": ("phi", {}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt2": ("gpt2", {}),
    "opt": ("opt", {}),
    "olmo2": ("olmo2", {}),
    "granite": (
        "granite",
        {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.5, "residual_multiplier": 0.7},
    ),
    "qwen3_moe": ("qwen3_moe", MOE),
    "cohere2": ("cohere2", {**MIXED, "logit_scale": 0.3}),
}

_COMMON = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings")

HYBRID = (
    "qwen3_next",
    {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 16,
        **MOE,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.0,  # it is one of each micro-batch, which would hide what padding changes
    },
)


def tiny_config(kind: str, **changes: Any) -> Any:
    """Two layers of width 32 over 97 tokens, initialised so that attention and logits are far from uniform."""
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
    }
    if kind == "gpt2":
        values = {k: v for k, v in values.items() if k in _COMMON} | {"n_embd": 32, "n_layer": 2, "n_head": 4}
        values |= {"n_positions": 128, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
        values["initializer_range"] = 0.2
    elif kind == "opt":
        names = (*_COMMON, "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
        values = {k: v for k, v in values.items() if k in names}
        values |= {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0, "init_std": 0.2}
    elif kind in ("gpt_neox", "phi3", "phi"):
        values.pop("head_dim")
        if kind == "gpt_neox":
            values.pop("num_key_value_heads")
    return AutoConfig.for_model(kind, **{**values, **changes})


def tiny_model(name: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model of ``ARCHITECTURES`` (or a transformers model type) with random weights, biases included."""
    kind, settings = ARCHITECTURES.get(name, (name, {})) if name != "qwen3_next" else HYBRID
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **{**settings, **changes}))
    return stirred(model, seed).to(dtype).eval()


def tiny_classifier(name: str = "llama", *, seed: int = 0, **changes: Any) -> Any:
    """A tiny sequence classifier of an architecture, or of one of transformers' names; one label by default."""
    kind, settings = HYBRID if name == "qwen3_next" else ARCHITECTURES.get(name, (name, {}))
    torch.manual_seed(seed)
    config = tiny_config(kind, **{**settings, "num_labels": 1, **changes})
    return stirred(AutoModelForSequenceClassification.from_config(config)).eval()


def stirred(model: nn.Module, seed: int = 0) -> Any:
    """Noise on biases and norm weights, which are constants after initialisation."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def lora(model: nn.Module) -> Any:
    """``model`` under an adapter that changes what it computes."""
    import peft

    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:  # zero at the start, which would hide the adapter
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return wrapped.eval()


def token_ids(seed: int) -> Callable[[int], list[int]]:
    """A source of random ids that are no special token."""
    source = random.Random(seed)
    return lambda n: [source.randrange(3, VOCABULARY) for _ in range(n)]


def examples(seed: int = 1) -> list[Example]:
    """Pairs longer than the windows above, a prompt and an answer of one token, masked targets, two trees."""
    ids = token_ids(seed)
    return [
        Example((Tree(ids(9), (Branch("chosen", ids(7)), Branch("rejected", ids(11)))),)),
        Example((Tree(ids(1), (Branch("chosen", ids(1)), Branch("rejected", ids(3)))),)),
        Example((Tree(ids(14), (Branch("chosen", ids(5), [1, 0, 1, 1, 0]), Branch("rejected", ids(2)))),)),
        Example((Tree(ids(4), (Branch("chosen", ids(6)),)), Tree(ids(3), (Branch("rejected", ids(8)),)))),
    ]


def small(name: str) -> Objective:
    """An objective with its default fields, save for a layer that these models have."""
    return OBJECTIVES[name](**{"layer": 0} if name == "rmu" else {})


def tree_batch(seed: int = 1, *, feed_last: bool = False) -> TreeBatch:
    return pack(examples(seed), feed_last=feed_last)


def own_rows(model: nn.Module, batch: TreeBatch) -> list[Tensor]:
    """Log-probs [T_i] of each branch's target tokens by the model's own ``.logits``, one unpadded row at a time."""
    out = []
    for tree, branch in batch.branches():
        logits = own_logits(model, tree, branch)
        logp = logits.log_softmax(-1).gather(1, torch.tensor(branch.ids, device=logits.device)[:, None])[:, 0]
        out.append(logp[kept(branch).to(logits.device)])
    return out


def own_logits(model: nn.Module, tree: Tree, branch: Branch) -> Tensor:
    """The model's own logits [T, V] that predict every token of a branch."""
    row = torch.tensor([[*tree.prompt, *branch.ids]], device=next(model.parameters()).device)
    logits = model(input_ids=row, use_cache=False).logits[0]
    logits = logits.double() if logits.dtype == torch.float64 else logits.float()
    return logits[len(tree.prompt) - 1 : -1]


def kept(branch: Branch) -> Tensor:
    """Which tokens of a branch are targets, as a boolean [T]."""
    return torch.ones(len(branch.ids), dtype=torch.bool) if branch.mask is None else torch.tensor(branch.mask).bool()


def coefficients(count: int) -> Tensor:
    """Upstream gradients of both signs, one per target token."""
    return torch.linspace(-1.0, 2.0, count, dtype=torch.float64)


def gradients(model: nn.Module, values: Tensor) -> dict[str, Tensor]:
    """Gradients of a weighted sum of per-token values, by parameter; the model's own are cleared."""
    model.zero_grad()
    (values * coefficients(len(values)).to(values)).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Norm of the difference of two gradients relative to the norm of the second."""
    assert set(a) == set(b)
    size = sum(g.double().square().sum() for g in b.values()) ** 0.5
    return float(sum((a[n] - b[n]).double().square().sum() for n in b) ** 0.5 / size)
