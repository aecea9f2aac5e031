"""The policy's own answers while it trains: drawn by itself, compared with what the reference would write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from align.data.tokens.samples import Sample, prompt_key
from align.engine.reads import Entropy, LogProb, Read
from align.models.subject import Subject, Values, positions
from align.objectives.base import FRESH
from align.probes.own_text import Against, OwnSamples, rare, read_own_text
from align.probes.probe_set import choose_prompts, longest_answer
from align.probes.scores import ProbeScores
from align.recipe.sampling import Sampling
from align.reference.policy import adapter_off
from align.runs.damage import reading
from align.runs.directory import RunDirectory
from align.sampling.sampler import Sampler
from align.sampling.similarity import among
from align.trainers.drawing import draw

UNSEEN = "unseen.json"
_EACH = 2  # samples of a prompt
_MOST_TOKENS = 64  # of a sample
_COMPARED = 64  # pairs of samples whose likeness is measured
_SAME = 0.01  # nats per token: the adapter is off and the model is the one at the start, up to rounding

Drawn = list[list[Sample]]


class OwnAnswers:
    """Draws the policy's answers to prompts of the probe set; those of the start are kept, as answers no pair names.

    Draws depend on the seed, the step and the prompt, so neither on batches nor on processes.

    Attributes:
        start: those of the starting policy, by prompt; None before ``begin`` or where none were kept.
        start_logp: their log-probs under it, nats per sample, [P, K].
    """

    def __init__(self, trainer: Any, run: RunDirectory, rows: Sequence[Mapping[str, Any]], count: int) -> None:
        self.trainer, self.run = trainer, run
        self.limit = min(_MOST_TOKENS, 2 * longest_answer(rows)) if rows else 0
        reach = positions(trainer.model)
        prompts = choose_prompts(rows, count, trainer.args.seed)
        self.prompts = [p for p in prompts if reach is None or len(p) + self.limit <= reach]
        self.start: Drawn | None = None
        self.start_logp: np.ndarray | None = None
        settings = Sampling(samples=_EACH, max_new_tokens=max(1, self.limit))
        self._sampler = Sampler(settings, trainer.processing_class, trainer.args.seed, say=trainer.say)

    def begin(self) -> None:
        """Draw those of the start and keep them in the run directory, so that a resumed run has the same ones."""
        if not self.prompts:
            return
        self.start = self.draw(0)
        self.start_logp = _sums(self.score(self.trainer.model_wrapped, self.start), "logp")
        lines = [
            {"prompt": place, "ids": sample.ids, "text": sample.text, "finish": sample.finish, "logp": logp}
            for place, (group, logps) in enumerate(zip(self.start, self.start_logp.tolist(), strict=True))
            for sample, logp in zip(group, logps, strict=True)
        ]
        self.run.write_json(UNSEEN, {"samples": lines})

    def restore(self) -> None:
        """Take up what ``begin`` kept."""
        file = self.run.path / UNSEEN
        if not file.exists():
            return  # of a version that kept none
        with reading(file):
            lines = json.loads(file.read_bytes())["samples"]
            groups = [lines[i : i + _EACH] for i in range(0, len(lines), _EACH)]
            self.start = [
                [Sample(i, tuple(line["ids"]), line["text"], line["finish"]) for i, line in enumerate(group)]
                for group in groups
            ]
            self.start_logp = np.array([[line["logp"] for line in group] for group in groups], dtype=np.float64)
            if self.start_logp.shape != (len(self.prompts), _EACH):
                raise ValueError(f"it holds {len(lines)} samples and not {len(self.prompts) * _EACH}")

    def draw(self, step: int) -> Drawn:
        """Samples of the policy as it is now, by prompt; processes share the work and all get the result."""
        subject = Subject.of(self.trainer)
        mine = list(range(subject.rank, len(self.prompts), subject.world))
        prompts = [self.prompts[i] for i in mine]
        drawn = draw(self.trainer, self._sampler, prompts, [prompt_key(p, 0) for p in prompts], step)
        return subject.in_order(list(zip(mine, drawn, strict=True)), len(self.prompts))

    def score(self, model: nn.Module, drawn: Drawn, reads: tuple[Read, ...] = (LogProb(),)) -> list[Values]:
        """What ``reads`` see in samples under a model wrapped as the policy is."""
        branches = [{str(sample.index): sample.ids for sample in group} for group in drawn]
        return _subject(self.trainer, model).score(self.prompts, branches, reads, where="sample")

    def unseen(self) -> dict[str, torch.Tensor]:
        """Log-probs of the start's samples under the policy now, as columns of ``ProbeScores``; {} where none are."""
        if not self.start:
            return {}
        logp = _sums(self.score(self.trainer.model_wrapped, self.start), "logp").sum(1)
        tokens = [sum(len(sample.ids) for sample in group) for group in self.start]
        return {"unseen": torch.from_numpy(logp), "unseen_tokens": torch.tensor(tokens)}


class OwnText:
    """A probe: what the policy writes by itself, as ``read_own_text`` sees it.

    Args:
        trainer: the trainer whose policy is asked.
        answers: draws them.
        pairs: the probe of pairs, whose answers at the start are text that people wrote.
    """

    name, title = "own_text", "the model's own text"

    def __init__(self, trainer: Any, answers: OwnAnswers, pairs: Any) -> None:
        self.trainer, self.answers, self.pairs = trainer, answers, pairs
        # an objective that draws in every step tells most of it itself
        self.between = not set(FRESH) & set(trainer.objective.branches)
        self._compares: tuple[Against, str] | None = None

    def read(self, step: int) -> dict[str, Any]:
        """Draws and scores; those of step 0 are the samples that are kept."""
        answers = self.answers
        drawn = answers.draw(step) if step or answers.start is None else answers.start
        seen = answers.score(self.trainer.model_wrapped, drawn, (LogProb(), Entropy()))
        against, why = self._against()
        samples = OwnSamples(
            tokens=np.array([[len(sample.ids) for sample in group] for group in drawn], dtype=np.float64),
            logp=_sums(seen, "logp"),
            entropy=_sums(seen, "entropy"),
            cut=np.array([[sample.truncated for sample in group] for group in drawn], dtype=np.float64),
            reference=self._under(against, drawn),
        )
        first = [group[0].text for group in drawn]
        reading = read_own_text(
            samples,
            [sample.text for group in drawn for sample in group],
            likeness=among(first, _COMPARED, self.trainer.args.seed),
            limit=answers.limit,
            bar=self._bar(),
            against=against,
            why=why,
            seed=self.trainer.args.seed,
        )
        return reading.to_json()

    def restore(self) -> None:
        self.answers.restore()

    def _against(self) -> tuple[Against, str]:
        """What the answers can be compared with, or why with nothing; settled once."""
        if self._compares is None:
            self._compares = self._found()
        return self._compares

    def _found(self) -> tuple[Against, str]:
        reference = self.trainer.reference
        if self.answers.start is None or self.answers.start_logp is None:
            return "", "no samples of the start were kept"
        if reference is not None:
            if reference.moves:
                return "", "the reference moves"
            return ("reference", "") if reference.at_hand else ("", "no reference model is kept")
        if not hasattr(self.trainer.model, "peft_config"):
            return "", "no model of the start is kept"
        with adapter_off(self.trainer.model_wrapped):
            off = _sums(self.answers.score(self.trainer.model_wrapped, self.answers.start), "logp")
        tokens = sum(len(sample.ids) for group in self.answers.start for sample in group)
        same = bool(np.abs(off - self.answers.start_logp).sum() <= _SAME * tokens)
        return ("start", "") if same else ("", "the model without its adapter is not that of the start")

    def _under(self, against: Against, drawn: Drawn) -> np.ndarray | None:
        """Log-probs of samples under what they are compared with, [P, K]."""
        policy = self.trainer.model_wrapped
        if against == "reference":
            with self.trainer.reference.asked(policy) as model:
                return _sums(self.answers.score(model, drawn), "logp")
        if against == "start":
            with adapter_off(policy):
                return _sums(self.answers.score(policy, drawn), "logp")
        return None

    def _bar(self) -> float:
        """See ``rare``: of the pairs' answers and of the policy's own, both at the start."""
        start: ProbeScores = self.pairs.displacement.start
        written = [start.chosen / start.chosen_tokens, start.rejected / start.rejected_tokens]
        kinds = [torch.cat(written).numpy()]
        if self.answers.start is not None and self.answers.start_logp is not None:
            tokens = np.array([[len(sample.ids) for sample in group] for group in self.answers.start])
            kinds.append((self.answers.start_logp / tokens).ravel())
        return rare(*kinds)


def _subject(trainer: Any, model: nn.Module) -> Subject:
    """A model wrapped as the policy is, to be scored as the policy is."""
    accelerator = trainer.accelerator
    return Subject(
        model,
        trainer.processing_class,
        trainer.engine,
        device=trainer.args.device,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        autocast=accelerator.autocast,
        say=trainer.say,
    )


def _sums(values: Sequence[Values], read: str) -> np.ndarray:
    """A read added up over each sample's tokens, [P, K]."""
    return np.array([[row[str(k)][read].sum() for k in range(_EACH)] for row in values], dtype=np.float64)
