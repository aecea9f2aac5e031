"""Pairs of a round with the four log-probs that training reads: both answers under two earlier policies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from align.engine.probe import probe
from align.engine.scoring import ScoringEngine, attach
from align.errors import UserError
from align.judges.judge import undecided_warning
from align.models.subject import Subject
from align.recipe import Recipe
from align.rounds.policy import is_sharded, loaded
from align.rounds.stages import Round
from align.runs.processes import World
from align.sampling.files import by_prompt, write_table

_BLIND = 0.45  # position bias of a judge that looks at little else than the order
_IDS = pa.list_(pa.int32())
_LOGPS = [f"{branch}_logp_{model}" for model in ("initial", "previous") for branch in ("chosen", "rejected")]
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("prompt_ids", _IDS),
        ("chosen_ids", _IDS),
        ("rejected_ids", _IDS),
        *((name, pa.float64()) for name in _LOGPS),  # nats, of whole answers
    ]
)


def dropped(round: Round) -> Counter[str]:
    """Prompts that gave no pair, and samples that were left aside, by reason."""
    total: Counter[str] = Counter()
    for notes in round.notes():
        total.update(notes["dropped"])
    return total


def position_bias(round: Round) -> float | None:
    """Mean of P(first shown is better) - 1/2 over the judge's comparisons; None where it made none."""
    notes = [note.get("bias", (0.0, 0)) for note in round.notes()]
    compared = sum(count for _, count in notes)
    return sum(total for total, _ in notes) / compared if compared else None


def undecided(round: Round) -> tuple[int, int]:
    """The judge's answers that named neither response, and all of them."""
    notes = [note.get("undecided", (0, 0)) for note in round.notes()]
    return sum(neither for neither, _ in notes), sum(answers for _, answers in notes)


def make_pairs(recipe: Recipe, run: Path, round: Round, world: World, say: Callable[[str], Any]) -> None:
    """Score the chosen pairs under the round's policy and the initial one, one model at a time, and write them.

    Raises:
        UserError: where no pair is left.
    """
    lines = round.lines("judged")
    pairs = _chosen(lines)
    why = ", ".join(f"{count:,} {reason}" for reason, count in dropped(round).most_common())
    if not pairs:
        raise UserError(
            f"Round {round.number}: no pair is left of {len(round.prompts):,} prompts ({why}). {_cure(round)}"
        )
    cut = sum(line["finish"] == "length" for line in lines)
    say(
        f"{len(pairs):,} pairs of {len(round.prompts):,} prompts"
        + (f"; dropped: {why}" if why else "")
        + (f"; {cut:,} of {len(lines):,} samples end at the length limit" if cut else "")
    )
    if warning := undecided_warning(undecided(round)):
        say(f"warning: {warning}.")
    cut_up = is_sharded(recipe, world)
    with loaded(recipe, run, round.number, world, say) as policy:
        subject = _subject(policy, world, say, cut_up)
        previous = _logps(subject, pairs)
        del subject
    initial = previous
    if round.number > 1:
        with loaded(recipe, run, 1, world, say) as policy:
            initial = _logps(_subject(policy, world, say, cut_up), pairs)
    if world.rank == 0:
        rows = [
            {**pair, **_named(before, "initial"), **_named(of, "previous")}
            for pair, before, of in zip(pairs, initial, previous, strict=True)
        ]
        write_table(round.pairs, rows, SCHEMA)


def _cure(round: Round) -> str:
    """What to do where no pair is left."""
    bias = position_bias(round)
    if bias is not None and abs(bias) > _BLIND:
        return (
            f"The judge prefers what it is shown {'first' if bias > 0 else 'last'} in nearly every question (position "
            f"bias {bias:+.3f}), whatever the answers are: take another judge."
        )
    return (
        "The judge must tell answers apart: draw more of them (sampling.samples), longer ones, or at a higher "
        "temperature."
    )


def _chosen(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Prompt and both answers of every pair, in the order of the prompts."""
    found = []
    for group in by_prompt(lines):
        picked = {f"{line['selected']}_ids": line["ids"] for line in group if line["selected"]}
        if picked:
            found.append({"row": group[0]["row"], "prompt_ids": group[0]["prompt_ids"], **picked})
    return found


def _named(logps: Mapping[str, float], model: str) -> dict[str, float]:
    return {f"{branch}_logp_{model}": value for branch, value in logps.items()}


def _subject(policy: Sequence[Any], world: World, say: Callable[[str], Any], cut_up: bool) -> Subject:
    """A model and its tokenizer under our engine."""
    model, tokenizer = policy
    attach(model)
    engine = ScoringEngine(sharded=cut_up)
    with world.autocast():  # as it will be scored
        probe(engine, model, world.device, world.agree)
    return Subject(
        model,
        tokenizer,
        engine,
        device=world.device,
        rank=world.rank,
        world=world.size,
        autocast=world.autocast,
        say=say,
    )


def _logps(subject: Subject, pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Summed log-probs, in nats, of both answers of every pair."""
    branches = [{name: pair[f"{name}_ids"] for name in ("chosen", "rejected")} for pair in pairs]
    values = subject.score([pair["prompt_ids"] for pair in pairs], branches, where="pair")
    return [{name: float(reads["logp"].sum()) for name, reads in row.items()} for row in values]
