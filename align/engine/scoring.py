"""The scoring engine: one forward of the wrapped model per micro-batch, per-token reads out.

``attach`` extends a model's forward with a ``scoring`` argument. The engine then calls the model as it is wrapped
(DDP, FSDP2, DeepSpeed, PEFT), so every wrapper sees an ordinary forward, once.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.engine.attention import use_tree_attention
from align.engine.head import HeadJob, ReferenceHead, finish_of, read_head
from align.engine.kernels.kernel import Run
from align.engine.kernels.segments import segments
from align.engine.layout import TreeBatch
from align.engine.own import own_scores
from align.engine.reads import AnyRead, HeadGradients, Hidden, LogProb, Read, Score
from align.engine.scores import Scores
from align.engine.tiles import no_autocast, wide
from align.errors import UserError

Mode = Literal["tree", "padded", "own"]


class ScoringJob:
    """One request to a model, and what it leaves beside its output. No dataclass, for the reason given at ``Layout``.

    Args:
        rows_per_chunk: in padded mode, sequences per forward of the backbone; None for all at once.
        kernel: of attention in tree mode.
        keep: leave hidden states and head in ``kept``, the weight as a copy with ``copy_weight``.
    """

    def __init__(
        self,
        batch: TreeBatch,
        reads: tuple[AnyRead, ...],
        mode: Mode = "tree",
        rows_per_chunk: int | None = None,
        reference: ReferenceHead | None = None,
        *,
        kernel: Run = segments,
        keep: bool = False,
        copy_weight: bool = False,
    ) -> None:
        self.batch, self.reads, self.mode, self.rows_per_chunk = batch, reads, mode, rows_per_chunk
        self.kernel = kernel
        self.reference, self.keep, self.copy_weight = reference, keep, copy_weight
        self.kept: ReferenceHead | None = None


def causal_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside any stack of wrappers (data parallel, DeepSpeed, PEFT)."""
    inner: Any = model
    while hasattr(inner, "module"):
        inner = inner.module
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    if not isinstance(inner, PreTrainedModel):
        raise UserError(f"align scores transformers models; {type(inner).__name__} is none.")
    return inner


def attach(model: nn.Module) -> PreTrainedModel:
    """Teach a model the ``scoring`` argument and switch it to tree attention. Does nothing the second time."""
    inner = causal_model(model)
    if "_align_forward" in inner.__dict__:
        return inner
    head: Any = _head_of(inner)
    heads: list[Any] = [head]
    if hasattr(head, "modules_to_save"):  # PEFT trains a copy
        heads = [head.original_module, *head.modules_to_save.values()]
    if not all(isinstance(one, nn.Linear) for one in heads):
        raise UserError(
            f"The output head is a {type(head).__name__}, but scoring needs a plain linear layer: remove it from the "
            "adapter's target modules (lora.targets) and do not quantise it."
        )
    if inner.base_model is inner:
        raise UserError(
            f"{type(inner).__name__} does not say which part of it is the backbone, so it cannot be scored."
        )
    if inner._can_set_attn_implementation():
        use_tree_attention(inner)
    inner._align_forward = inner.forward
    inner.forward = types.MethodType(_with_scoring(type(inner)), inner)
    for one in heads:
        one.forward = types.MethodType(_head_forward, one)
    return inner


def scores_answers(model: nn.Module) -> bool:
    """Whether this is a reward model: a sequence classifier, which has no head over the vocabulary."""
    return causal_model(model).get_output_embeddings() is None


def packs(model: nn.Module) -> bool:
    """Whether a reward model's head is a linear ``score`` layer over a backbone, as of every decoder of transformers.

    Of any other the engine knows no more than its own forward.
    """
    inner = causal_model(model)
    head: Any = getattr(inner, "score", None)
    head = getattr(head, "original_module", head)
    return isinstance(head, nn.Linear) and inner.base_model is not inner


def _with_scoring(kind: Any) -> Any:
    # the signature stays the model's own: `generate` checks its arguments against it
    @functools.wraps(kind.forward)
    def forward(self: PreTrainedModel, *args: Any, scoring: ScoringJob | None = None, **kwargs: Any) -> Any:
        if scoring is None:
            return self.__dict__["_align_forward"](*args, **kwargs)
        # adapters pass every argument of a causal model on, most of them None
        return _score(self, scoring, input_ids=kwargs["input_ids"], position_ids=kwargs["position_ids"])

    return forward


def _head_forward(self: nn.Linear, x: Tensor, job: HeadJob | None = None, *, exact: bool = False) -> Tensor:
    if exact:  # a score in 16 bits has three digits, and near ties are many
        with no_autocast(x):
            bias = None if self.bias is None else self.bias.to(wide(x.dtype))
            return nn.functional.linear(x.to(wide(x.dtype)), self.weight.to(wide(x.dtype)), bias)
    if job is None:
        return type(self).forward(self, x)
    return read_head(self, x, job)


def _head_of(model: PreTrainedModel) -> nn.Module:
    head = model.get_output_embeddings() or getattr(model, "score", None)
    if head is None:
        raise UserError(f"{type(model).__name__} has neither a language-model head nor a `score` head to read.")
    return head


def _score(model: PreTrainedModel, job: ScoringJob, **kwargs: Any) -> dict[str, Tensor]:
    """Run the backbone, then the head at the target positions only."""
    hidden, states, router = _backbone(model, job, **kwargs)
    out: dict[str, Tensor] = {}
    vocabulary = tuple(r for r in job.reads if isinstance(r, Read))
    head = _head_of(model)
    if vocabulary:
        head_job = HeadJob(
            job.batch.targets,
            vocabulary,
            finish_of(model.config.get_text_config()),
            job.reference,
            keep=job.keep,
            copy_weight=job.copy_weight,
            pairs=next((_pairs(job.batch, r) for r in job.reads if isinstance(r, HeadGradients)), None),
        )
        values = head(hidden.index_select(0, job.batch.positions), job=head_job)
        job.kept = head_job.kept
        # copies: FSDP2 warns of views among the outputs of a module
        out |= {read.name: values[i].clone() for i, read in enumerate(vocabulary)}
    for read in job.reads:
        if isinstance(read, Hidden):
            out[read.name] = _hidden(read, job.batch, hidden, states)
        elif isinstance(read, HeadGradients):
            assert head_job.products is not None
            out[read.name] = head_job.products
        elif isinstance(read, Score):
            if not job.batch.feeds_last:
                raise ValueError("a score is read at the last token of each branch: make the batch with feed_last=True")
            out[read.name] = head(hidden[job.batch.ends], exact=True)[:, 0].clone()
    if router is not None:
        out["aux_loss"] = _router_loss(model, router)
    return out


def _pairs(batch: TreeBatch, read: HeadGradients) -> list[tuple[slice, slice]]:
    """The target tokens of both branches of every example. From the examples, since they are not on the device."""
    places: dict[str, list[slice]] = {name: [] for name in read.branches}
    start = 0
    for _, branch in batch.branches():
        stop = start + branch.targets()
        if branch.name in places:
            places[branch.name].append(slice(start, stop))
        start = stop
    first, second = read.branches
    return list(zip(places[first], places[second], strict=True))


def _hidden(read: Hidden, batch: TreeBatch, last: Tensor, states: list[Tensor]) -> Tensor:
    """Hidden states [N, H] of one layer, where ``read`` wants them."""
    if read.layer >= len(states) and read.layer != -1:
        raise UserError(
            f"The objective reads hidden states after {read.layer} layers, but the model has only {len(states) - 1}: "
            "set a lower objective.layer."
        )
    if read.at == "target" and not batch.feeds_last:
        raise ValueError("hidden states at the targets include each branch's last token: use feed_last=True")
    # in a branch the target stands right behind the position that predicts it
    places = batch.positions + int(read.at == "target")
    return (last if read.layer == -1 else states[read.layer]).index_select(0, places)


def _backbone(model: PreTrainedModel, job: ScoringJob, **kwargs: Any) -> tuple[Tensor, list[Tensor], Any]:
    """Final hidden states by place in the packed row [T, H], all layers' likewise where asked for, router logits."""
    router = bool(getattr(model.config.get_text_config(), "output_router_logits", False))
    wants_layers = any(isinstance(r, Hidden) and r.layer != -1 for r in job.reads)
    options: dict[str, Any] = {"use_cache": False} | ({"output_router_logits": True} if router else {})
    options |= {"output_hidden_states": True} if wants_layers else {}
    if job.mode == "tree":
        # a 4D placeholder stops transformers from building a mask of its own, which would cut branches off their prompt
        placeholder = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=kwargs["input_ids"].device)
        options |= {"layout": job.batch.layout, "kernel": job.kernel}
        output = model.base_model(attention_mask=placeholder, **options, **kwargs)
        states = [s[0] for s in output.hidden_states] if wants_layers else []
        return output.last_hidden_state[0], states, output.router_logits if router else None
    return _padded(model, job, options, wants_layers, kwargs["input_ids"].device)


def _padded(
    model: PreTrainedModel, job: ScoringJob, options: dict, wants_layers: bool, device: torch.device
) -> tuple[Tensor, list[Tensor], Any]:
    """The fallback: every branch as a row of its own behind its prompt, sorted by length, right-padded.

    Results are put where the packed row would have had them, so everything after is the same.
    """
    pairs = job.batch.branches()
    rows = [list(tree.prompt) + list(branch.ids if job.batch.feeds_last else branch.ids[:-1]) for tree, branch in pairs]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    step = job.rows_per_chunk or len(rows)
    ends = job.batch.ends.tolist()
    total: list[Tensor] = []
    router: list = []
    for start in range(0, len(order), step):
        chosen = order[start : start + step]
        width = len(rows[chosen[0]])
        ids = torch.tensor([rows[i] + [0] * (width - len(rows[i])) for i in chosen], device=device)
        # no mask: padding stands to the right, where causal models never look, and plain causal kernels are faster
        output = model.base_model(input_ids=ids, **options)
        layers = [output.last_hidden_state, *(output.hidden_states if wants_layers else ())]
        place, source = _places(pairs, rows, chosen, ends, width, device)
        picked = [layer.flatten(0, 1)[source] for layer in layers]
        if not total:
            total = [part.new_zeros(job.batch.input_ids.shape[1], part.shape[1]) for part in picked]
        total = [whole.index_copy(0, place, part) for whole, part in zip(total, picked, strict=True)]
        if output.get("router_logits") is not None:
            # all chunks together and no padding, so that their number and widths change nothing
            sizes = torch.tensor([len(rows[i]) for i in chosen], device=device)
            real = (torch.arange(width, device=device) < sizes[:, None]).flatten()
            router.append([logits.reshape(-1, logits.shape[-1])[real] for logits in output.router_logits])
    routed = tuple(torch.cat(parts) for parts in zip(*router, strict=True)) if router else None
    return total[0], total[1:], routed


def _places(
    pairs: list, rows: list[list[int]], chosen: list[int], ends: list[int], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Where the branch positions of padded rows belong in the packed row: (places [n], flat padded indices [n])."""
    place: list[int] = []
    source: list[int] = []
    for k, i in enumerate(chosen):
        length = len(rows[i])
        fed = length - len(pairs[i][0].prompt) + 1  # the branch's positions: the last prompt token and what follows
        place += range(ends[i] - fed + 1, ends[i] + 1)
        source += range(k * width + length - fed, k * width + length)
    return torch.tensor(place, device=device), torch.tensor(source, device=device)


def _router_loss(model: PreTrainedModel, router: Any) -> Tensor:
    """The architecture's own load-balancing loss times its coefficient. The shared prompt is counted once."""
    config = model.config.get_text_config()
    loss = inspect.getmodule(type(model)).load_balancing_loss_func  # type: ignore[union-attr]
    experts = getattr(config, "num_local_experts", None) or config.num_experts
    return config.router_aux_loss_coef * loss(router, experts, config.num_experts_per_tok)


class ScoringEngine:
    """``engine(model, batch, reads) -> Scores``: one forward of the wrapped model.

    ``mode`` starts as ``tree`` and is set to ``padded`` when the start-up probe finds that this model cannot share
    prompts exactly, and to ``own`` where a reward model's scores come of its own forward of padded rows alone;
    ``kernel`` is the attention of tree mode, which the probe chooses. ``sharded`` says that parameters
    live in pieces between forwards: kept weights are then copied, and the padded fallback runs in one piece so that
    ranks stay in step.
    """

    def __init__(self, *, sharded: bool = False, rows_per_chunk: int = 8) -> None:
        self.mode: Mode = "tree"
        self.kernel: Run = segments
        self.sharded = sharded
        self.rows_per_chunk = rows_per_chunk
        self.tokens = 0  # positions computed so far, prompts once; for throughput

    def __call__(
        self,
        model: nn.Module,
        batch: TreeBatch,
        reads: tuple[AnyRead, ...] = (LogProb(),),
        *,
        reference: ReferenceHead | None = None,
        keep: bool = False,
    ) -> Scores:
        """Score a batch that is on the model's device.

        Args:
            reads: what to read at every target token.
            reference: hidden states and head of the reference, for reads that compare distributions.
            keep: also return such hidden states and head of this model, as ``Scores.head``.
        """
        if self.mode == "own":
            self.tokens += sum(len(tree.prompt) + len(branch.ids) for tree, branch in batch.branches())
            return _scores({"score": own_scores(model, batch)}, batch)
        job = ScoringJob(
            batch,
            reads,
            self.mode,
            None if self.sharded else self.rows_per_chunk,
            reference,
            kernel=self.kernel,
            keep=keep,
            copy_weight=self.sharded,
        )
        out = model(input_ids=batch.input_ids, position_ids=batch.position_ids, scoring=job)
        self.tokens += batch.input_ids.shape[1]
        aux = out.get("aux_loss")
        tokens = {read.name: out[read.name] for read in reads}
        return _scores(tokens, batch, aux, job.kept)


def _scores(
    tokens: dict[str, Tensor], batch: TreeBatch, aux: Tensor | None = None, kept: ReferenceHead | None = None
) -> Scores:
    addresses = (batch.owner, batch.sequences, batch.lengths)
    return Scores(tokens, *addresses, aux, kept, batch.anchors, batch.places, values=batch.values)
