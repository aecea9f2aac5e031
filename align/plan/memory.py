"""What a run holds on each process's device at its fullest, part by part: the model of ``align plan``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from align.compat import checkpoints_layers
from align.engine.reads import Hidden, Read
from align.engine.scoring import causal_model
from align.models.batches import BATCH, sequence_bytes
from align.plan import head, step
from align.plan.device import Device
from align.plan.shares import Held, Launch, held, optimizer
from align.plan.trace import Layer, trace
from align.plan.weights import Weights, layers_of, policy, weigh
from align.runs.quiet import hushed
from align.trainers.policy import switch_dropout_off

if TYPE_CHECKING:
    from align.plan.batches import Batches
    from align.recipe import Recipe

_ANSWER = 256  # tokens of the longest answers that a run writes by itself: those of a test suite, of fixed prompts
Parts = dict[str, int]


@dataclass(frozen=True)
class Memory:
    """Bytes on each process's device.

    Attributes:
        phases: what is held while a run does one thing, by the parts that hold it.
        host: held on the host beside it, all processes together.
        followed: whether the layers' own code was followed; else activations are estimated by their widths.
        weights: how many there are, how many are trained.
        copied: whether there is a frozen copy of the policy.
        computes_reference: whether the reference runs, and ``compares_whole`` whether for more than log-probs, which
            no store keeps.
        optimizer: bytes of the optimizer's state, of all processes together.
    """

    phases: Mapping[str, Parts]
    host: int
    followed: bool
    weights: Weights
    copied: bool
    computes_reference: bool
    compares_whole: bool
    optimizer: int

    @property
    def phase(self) -> str:
        """What it does when it holds the most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def parts(self) -> Parts:
        """What holds it then."""
        return self.phases[self.phase]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def memory_of(
    recipe: Recipe, args: Any, batches: Batches, launch: Launch, device: Device, *, stored: bool = False
) -> Memory:
    """What a recipe holds.

    Args:
        args: its training arguments.
        batches: what it reads; see ``plan.batches``.
        stored: whether the store has all reference log-probs.

    Raises:
        UserError: where the model cannot be made without weights.
    """
    model = policy(recipe, device.kind)
    switch_dropout_off(model)
    weights = weigh(model, recipe.model.load_in)
    run = _Run(recipe, args, batches, launch, device, model, weights, stored)
    layers, followed = run.layers()
    phases = dict(run.phases(layers))
    overhead = device.overhead(max(sum(parts.values()) for parts in phases.values()))
    phases = {name: {**parts, "context and fragmentation": overhead} for name, parts in phases.items()}
    about = (run.copied, run.computes_reference, run.compares_whole, run.held.states)
    return Memory(phases, run.held.host, followed, weights, *about)


class _Run:
    """A recipe's phases, from its weights, its batches and its launch."""

    def __init__(
        self,
        recipe: Recipe,
        args: Any,
        batches: Batches,
        launch: Launch,
        device: Device,
        model: Any,
        weights: Weights,
        stored: bool,
    ) -> None:
        self.recipe, self.args, self.batches, self.launch, self.device = recipe, args, batches, launch, device
        self.model, self.weights = model, weights
        self.autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        self.objective = recipe.objective_value()
        self.reads = tuple(read for read in self.objective.reads() if isinstance(read, Read))
        self.all_states = any(isinstance(read, Hidden) and read.layer != -1 for read in self.objective.reads())
        compares = self.objective.needs_reference and recipe.reference.rows is None and recipe.rounds is None
        self.compares_whole = any(r.needs_reference or isinstance(r, Hidden) for r in self.objective.reads())
        self.computes_reference = compares and (self.compares_whole or not stored)
        asked = recipe.watch.probe_answers > 0 and bool(recipe.watch.probe_pairs) and not recipe.data.forget
        own = recipe.model.lora is not None and recipe.model.lora.adapter is None
        copy = recipe.reference.strategy == "copy" or not own
        self.copied = compares and copy and (self.computes_reference or asked)
        how = optimizer(str(getattr(args.optim, "value", args.optim)), device.kind)
        narrow, on_cpu = self.autocast is not None, device.kind == "cpu"
        self.held: Held = held(weights, launch, how, self._reference(), narrow, on_cpu=on_cpu)

    def _reference(self) -> int:
        """Bytes of a frozen copy; in one process and under DDP layers are kept no wider than they compute.

        Embedding and head are where rounding loses nothing, which weights alone tell: they are counted as they are.
        """
        if not self.copied:
            return 0
        trained = self.weights.sum("trained_bytes") if self.recipe.model.lora is not None else 0
        size = self.weights.sum("bytes") - trained  # an adapter is not copied
        narrow = self.autocast is not None and self.launch.kind in ("one", "ddp")
        if not narrow or self.recipe.reference.sync_every is not None:
            return size
        return size - sum(max(0, part.bytes - 2 * part.elements) for part in self.weights.layers)

    def layers(self) -> tuple[list[Layer], bool]:
        """What each layer takes, and whether its code was followed."""
        if self.autocast is not None and self.launch.kind not in ("one", "ddp"):
            self.model.to(self.autocast)  # weights are gathered, or kept, in 16 bits: autocast casts none
        try:
            # torch reports code that it cannot follow as an error; here that is no news
            with hushed("torch._subclasses.fake_tensor", logging.CRITICAL):
                return trace(self.model, self.batches.largest, self.autocast, self.device.kind), True
        except Exception:
            return _by_width(self.model, self.batches.tokens), False

    def phases(self, layers: list[Layer]) -> Iterator[tuple[str, Parts]]:
        """Every phase with its parts."""
        about = self.held
        stays = {"weights": about.weights, "reference": about.reference, "optimizer state": about.optimizer}
        stays |= {"gradient exchange": about.buckets, "gathered weights": about.gathered}
        states = self._states(self.batches.tokens)
        taken = self._head(len(self.batches.largest.targets))
        accumulated = self.batches.micro > 1
        before = about.gradients if accumulated else 0
        if self.computes_reference:
            share = 1.0
            if set(self.objective.reference_branches) < set(self.objective.branches) and not self._keeps_reference():
                share = self.batches.largest.only(self.objective.reference_branches).input_ids.shape[1]
                share /= self.batches.tokens
            takes = step.silent(layers, taken, states, share, self.all_states)
            yield "the reference's forward", {**stays, "gradients": before, "activations": takes}
        top = step.peak(self._micro(layers, taken, states, accumulated))
        yield (
            "forward and backward",
            {**stays, "gradients": top.gradients, "activations": top.activations, "vocabulary head": top.head},
        )
        yield "the optimizer's step", {**stays, "gradients": about.gradients, "optimizer at work": about.stepping}
        if self.batches.held_out is not None:
            held_out = self.batches.held_out
            share = held_out.input_ids.shape[1] / self.batches.tokens
            head_takes = self._head(len(held_out.targets))
            yield "an evaluation", {**stays, "activations": step.silent(layers, head_takes, states, share)}
        if writes := self._writes():
            yield "sampling", {**stays, "samples": writes}
        if self.device.kind == "cpu":
            yield "saving", {**stays, "a copy of what is saved": self._saved()}

    def _keeps_reference(self) -> bool:
        return any(read.needs_reference for read in self.reads)

    def _states(self, tokens: int) -> int:
        """Bytes of hidden states [T, H] in float32."""
        return 4 * tokens * int(causal_model(self.model).config.get_text_config().hidden_size)

    def _head(self, tokens: int) -> head.Taken:
        """What the reads of so many targets take."""
        module: Any = causal_model(self.model).get_output_embeddings()
        if module is None or not self.reads:
            return head.Taken(0, 0, 0)
        vocabulary, width = module.weight.shape
        own = module.weight.element_size()
        factor = min(own, 2 if self.autocast is not None else own) if self.device.kind == "cuda" else 4
        trained = module.weight.requires_grad
        about = head.Head(vocabulary, width, own, trained, own, factor, self.device.area)
        return head.taken(about, tokens, self.reads, self.device.kind)

    def _micro(self, layers: list[Layer], taken: head.Taken, states: int, accumulated: bool) -> step.Micro:
        module: Any = causal_model(self.model).get_output_embeddings()
        trained = module is not None and module.weight.requires_grad
        scale = self.held.gradients / max(self.weights.sum("trained_bytes"), 1)  # the share that a process keeps
        own = int(scale * module.weight.nbytes) if trained else 0
        tied = self.weights.tied
        around = int(scale * (self.weights.embedding.trained_bytes + self.weights.rest.trained_bytes))
        kept = 0
        if self._keeps_reference():  # hidden states at the targets, and of weights that are shared out a whole copy
            kept = states * len(self.batches.largest.targets) // self.batches.tokens
            kept += module.weight.nbytes if self.launch.shares_weights else 0
        return step.Micro(
            layers,
            taken,
            states,
            [int(scale * part.trained_bytes) for part in self.weights.layers],
            around if tied else around - own,
            own,
            tied,
            checkpoints_layers(self.args),
            accumulated,
            kept,
        )

    def _writes(self) -> int:
        """What samples take, of the objective's own, of the probes and of a test suite."""
        recipe = self.recipe
        most = 0
        prompt = max(len(tree.prompt) for example in self.batches.largest.examples for tree in example.trees)
        if recipe.sampling is not None and self.batches.samples:
            rows = min(recipe.sampling.batch_size or BATCH, self.batches.samples)
            most = rows * sequence_bytes(self.model, prompt, recipe.sampling.max_new_tokens)
        if recipe.evaluate is not None or (recipe.watch.probe_answers and recipe.watch.probe_pairs):
            rows = BATCH if recipe.evaluate is not None else min(BATCH, recipe.watch.probe_answers)
            most = max(most, rows * sequence_bytes(self.model, prompt, _ANSWER))
        return most

    def _saved(self) -> int:
        """Bytes of the model's file, which is put together in memory before it is written."""
        adapter = self.recipe.model.lora is not None
        return self.weights.sum("trained_bytes" if adapter else "bytes")


def _by_width(model: Any, tokens: int) -> list[Layer]:
    """Layers whose code cannot be followed: what goes in and out of their linear maps, and four hidden states."""
    inner = causal_model(model)
    config, size = inner.config.get_text_config(), inner.dtype.itemsize
    active = (getattr(config, "num_experts_per_tok", None) or 1) / (getattr(config, "num_local_experts", None) or 1)
    out = []
    for layer in layers_of(inner):
        maps = [module for module in layer.modules() if isinstance(module, nn.Linear)]
        keeps = int(tokens * size * active * sum(m.in_features + m.out_features for m in maps))
        enters = tokens * size * config.hidden_size
        out.append(Layer(keeps + 4 * enters, enters, keeps + 6 * enters, keeps // 2 + 2 * enters, keeps + 4 * enters))
    return out
