"""The gradient products of held-out pairs, measured now and then while a model trains.

Exact: the gradients of both log-probs over the adapter's weights, or over the last block's where there is no adapter,
by autograd on a few pairs. From the head's inputs: the same over the head's weight, without a backward pass, on more.
Neither touches ``.grad``, the optimizer or a random state, and no hook of a wrapper that gathers gradients is called:
the model inside of it is asked, and gradients are handed over, not accumulated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from align.compat import unwrap_model_for_generation
from align.data.batches.packing import sequential_packs
from align.engine.layout import TreeBatch
from align.engine.reads import HeadGradients
from align.engine.scoring import causal_model
from align.engine.tiles import wide
from align.objectives.base import FRESH, Objective
from align.objectives.entanglement import SIDES, Products, pulls_of
from align.objectives.own import failures_told
from align.probes.entanglement import entanglement_reading, same_case
from align.probes.probe_set import choose_rows
from align.runs.memory import answered, explained

HEAD_PAIRS = 2  # so many times as many pairs are read from the head's inputs
_PACK = 8
_CURE = "Set watch.entanglement_pairs: 0 to go without."

Row = Mapping[str, Any]


class Weights(NamedTuple):
    """The weights that gradients are taken of, and what readings call them."""

    of: str
    block: str  # which one, where it is a block
    tensors: list[nn.Parameter]


class Exact(NamedTuple):
    """Products of exact gradients, and the same as Adam scales weights, where its state is at hand."""

    weights: Weights
    parameters: int
    products: Products
    scaled: Products | None


class Measured(NamedTuple):
    """Of the rows that are read: products over the head, both pulls, and products over the weights of some of them."""

    over_head: Products
    pulls: tuple[Tensor, Tensor]
    rows: Sequence[int]  # which of them have exact gradients
    exact: Exact | None

    def to_json(self, *, seed: int) -> dict[str, Any]:
        """Plain JSON, as of ``entanglement_reading``."""
        head = entanglement_reading("head", self.over_head, self.pulls, seed=seed)
        if self.exact is None:
            return head | {"note": "no block of the model is trained, so these are gradients over the head alone"}
        some = torch.tensor(self.rows, device=self.pulls[0].device)
        pulls = (self.pulls[0][some], self.pulls[1][some])
        over_head = Products(*(column[some] for column in self.over_head))
        weights, parameters, products, scaled = self.exact
        reading = entanglement_reading(weights.of, products, pulls, seed=seed)
        reading |= {"block": weights.block, "parameters": parameters}
        if scaled is not None:
            adam = entanglement_reading(f"{weights.of}, as Adam scales them", scaled, pulls, seed=seed)
            reading["adam"] = {key: adam[key] for key in ("of", "n", "cosine", "cases") if key in adam}
        return reading | {"head": head | {"same_case": same_case(products, over_head, pulls)}}


class EntanglementProbe:
    """Reads ``entanglement_reading`` for the objective's own pulls.

    Args:
        rows: prepared pairs; the ones that are read are drawn of them by the trainer's seed.
        pairs: how many pairs have exact gradients.
    """

    name, title = "entanglement", "gradient entanglement"

    def __init__(self, trainer: Any, rows: Sequence[Row], pairs: int) -> None:
        seed = trainer.args.seed
        self.trainer = trainer
        self.rows = [dict(rows[i]) for i in choose_rows(len(rows), HEAD_PAIRS * pairs, seed)]
        self.exact = choose_rows(len(self.rows), pairs, seed)

    def read(self, step: int) -> dict[str, Any]:
        """The exact measure, with the head's under ``head``; or the head's alone, and why."""
        began = time.monotonic()
        reading = self.measure().to_json(seed=self.trainer.args.seed)
        return reading | {"seconds": round(time.monotonic() - began, 3)}

    def restore(self) -> None:
        """Nothing is kept: the pairs follow from the rows and the seed."""

    def measure(self) -> Measured:
        """Both measures, pair by pair; all ranks get all of it."""
        model = self.trainer.model_wrapped
        was_training = model.training
        model.eval()
        with answered(explained("while gradients of held-out pairs were compared", _CURE)):
            table = self._from_head(model)
            exact = self._by_autograd(model)
        model.train(was_training)
        return Measured(Products(*table[:, :3].unbind(1)), (table[:, 3], table[:, 4]), self.exact, exact)

    def _from_head(self, model: nn.Module) -> Tensor:
        """|g_w|^2, |g_l|^2, <g_w, g_l>, pull_w and pull_l of every row, [n, 5]; ranks share the work."""
        trainer, objective = self.trainer, self.trainer.objective
        reads = tuple(dict.fromkeys((*objective.reads(), HeadGradients())))
        table = torch.zeros(len(self.rows), 5, device=trainer.args.device)
        world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        with torch.no_grad(), trainer.accelerator.autocast():
            for pack in sequential_packs([1] * len(self.rows), _PACK, rank=rank, world=world):
                batch = self._batch(pack)
                (missing,) = trainer.needs_reference_pass([batch])
                policy, reference = trainer.policy_and_reference(model, batch, reads, compute_reference=missing)
                with failures_told(objective):
                    pulls = pulls_of(objective, policy, reference)
                columns = (*policy.tokens["head_gradients"].unbind(1), *pulls)
                rows = torch.tensor(pack, dtype=torch.long, device=table.device)
                table[rows] = torch.stack([column.to(table) for column in columns], 1)
        return trainer.sum_over_ranks(table)

    def _by_autograd(self, wrapped: nn.Module) -> Exact | None:
        """Products of exact gradients; None where no block is trained.

        Ranks share the pairs. Where FSDP has cut up the weights, all of them work on each pair, and products of the
        pieces are added up.
        """
        trainer = self.trainer
        world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        with _inside(trainer, wrapped) as model:
            if (weights := trained_weights(model)) is None:
                return None
            sharded = any(map(_is_sharded, weights.tensors))
            everything = list(model.parameters())
            mine = range(len(self.exact)) if sharded else range(rank, len(self.exact), world)
            scales = adam_scales(trainer.optimizer, weights.tensors)
            kinds = 1 if scales is None else 2
            table = torch.zeros(len(self.exact), 3 * kinds, device=trainer.args.device)
            with nullcontext() if sharded else _trained_alone(everything, weights.tensors):
                for place in mine:
                    batch = self._batch([self.exact[place]])
                    touched = everything if sharded else []
                    both = [self._gradient(model, batch, side, weights.tensors, touched) for side in SIDES]
                    copies = world if sharded else 1
                    found = [_products(both[0], both[1], scale, copies) for scale in (None, scales)[:kinds]]
                    table[place] = torch.cat(found).to(table)
            parameters = sum(weight.numel() for weight in weights.tensors)
        table = trainer.sum_over_ranks(table)
        products = [Products(*table[:, 3 * k : 3 * k + 3].unbind(1)) for k in range(kinds)]
        return Exact(weights, parameters, products[0], products[1] if scales else None)

    def _gradient(
        self, model: nn.Module, batch: TreeBatch, side: str, weights: list[nn.Parameter], touched: list[nn.Parameter]
    ) -> list[Tensor]:
        """The gradient of one answer's summed log-prob.

        FSDP leaves its pieces of a gradient in ``.grad`` alone: there a backward pass is made, and ``touched``, all
        weights that it reaches, have their ``.grad`` back afterwards. FSDP takes the mean over ranks, which have equal
        gradients here.
        """
        with self.trainer.accelerator.autocast():
            total = self.trainer.engine(model, batch.only((side,))).sum(side).sum()
        if not touched:
            return list(torch.autograd.grad(total, weights, materialize_grads=True))
        kept = [weight.grad for weight in touched]
        for weight in touched:
            weight.grad = None
        total.backward()
        found = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        for weight, gradient in zip(touched, kept, strict=True):
            weight.grad = gradient
        return found

    def _batch(self, places: Sequence[int]) -> TreeBatch:
        batch: TreeBatch = self.trainer.data_collator([self.rows[i] for i in places])["tree"]
        return batch.to(self.trainer.args.device)


def can_be_read(objective: Objective, rows: Sequence[Row]) -> bool:
    """Whether ``rows`` are pairs as the objective compares them: with a prompt and all that it reads of a row."""
    branches = set(objective.branches) - set(FRESH)
    anchored = all(f"{side}_logp_{who}" in row for row in rows[:1] for side in SIDES for who in objective.anchors)
    return bool(rows) and set(SIDES) <= branches and not objective.scores_answers and anchored


def trained_weights(model: Any) -> Weights | None:
    """An adapter's weights; without one, those of the last block of which any are trained."""
    if hasattr(model, "peft_config"):
        kinds = {str(getattr(config.peft_type, "value", config.peft_type)) for config in model.peft_config.values()}
        of = "LoRA weights" if kinds == {"LORA"} else "adapter weights"
        return Weights(of, "", [weight for weight in model.parameters() if weight.requires_grad])
    inner = causal_model(model)
    kinds = set(getattr(inner, "_no_split_modules", None) or ())
    for name, module in reversed(list(inner.named_modules())):
        # FSDP puts its own name before a block's
        if {kind.__name__ for kind in type(module).__mro__} & kinds:
            weights = [weight for weight in module.parameters() if weight.requires_grad]
            if weights:
                return Weights("last block", name, weights)
    return None


@contextmanager
def _inside(trainer: Any, wrapped: nn.Module) -> Iterator[Any]:
    """The model in its wrapper; ZeRO-3 brings all of its weights together for as long, as it does to generate."""
    if any(hasattr(weight, "ds_id") for weight in wrapped.parameters()):
        with unwrap_model_for_generation(wrapped, trainer.accelerator) as model:
            yield model
    else:
        model = trainer.accelerator.unwrap_model(wrapped)
        for module in model.modules():
            if hasattr(module, "reshard"):  # FSDP leaves some weights whole after a forward without gradients
                module.reshard()
        yield model


@contextmanager
def _trained_alone(everything: Sequence[nn.Parameter], weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Only ``weights`` take gradients, so that nothing is computed for the others."""
    mine = {id(weight) for weight in weights}
    others = [weight for weight in everything if weight.requires_grad and id(weight) not in mine]
    for weight in others:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in others:
            weight.requires_grad_(True)


def _products(
    chosen: Sequence[Tensor], rejected: Sequence[Tensor], scales: Sequence[Tensor] | None, copies: int
) -> Tensor:
    """|g_w|^2, |g_l|^2 and <g_w, g_l>, [3], with every weight times its scale; this process's part of them.

    ``copies``: how many processes have what is not cut up, so that their sum counts it once.
    """
    total = torch.zeros(3, device=chosen[0].device)
    for i, pair in enumerate(zip(chosen, rejected, strict=True)):
        up, down = (_piece(gradient).flatten().to(wide(gradient.dtype)) for gradient in pair)
        scale = 1 if scales is None else scales[i].flatten().to(up)
        found = torch.stack([up.dot(up * scale), down.dot(down * scale), up.dot(down * scale)])
        total = total + found / _copies(pair[0], copies)
    return total


def adam_scales(optimizer: Any, weights: Sequence[nn.Parameter]) -> list[Tensor] | None:
    """1 / (sqrt(v) + eps) of every weight, as in Adam's last step; None where no such state lies beside the weights.

    DeepSpeed keeps it in pieces of one long vector, and optimizers of 8 bits keep codes.
    """
    if optimizer is None:  # before training
        return None
    groups = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    scales = []
    for weight in weights:
        state = optimizer.state.get(weight, {})
        square = state.get("exp_avg_sq")
        if square is None or square.shape != weight.shape or id(weight) not in groups:
            return None
        group = groups[id(weight)]
        corrected = _piece(square) / (1 - group["betas"][1] ** float(state["step"]))
        scales.append(1 / (corrected.sqrt() + group["eps"]))
    return scales


def _is_sharded(weight: Tensor) -> bool:
    return hasattr(weight, "to_local")


def _piece(tensor: Any) -> Tensor:
    """This process's part of a tensor that FSDP has cut up."""
    return tensor.to_local() if _is_sharded(tensor) else tensor


def _copies(tensor: Any, plain: int) -> int:
    """How many processes hold the same piece."""
    if not _is_sharded(tensor):
        return plain
    sizes = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
    return math.prod(size for placement, size in sizes if placement.is_replicate())
