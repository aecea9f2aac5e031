"""Suites that ask a judge: AlpacaEval, where it compares answers, and consistency, where it is what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.data.tokens.samples import Prompt
from align.errors import UserError
from align.eval.alpaca_eval import interval
from align.eval.alpaca_rows import read_annotations, reference_outputs
from align.eval.alpaca_run import ANNOTATIONS, Setup, evaluate
from align.eval.answers import Drawing, likeliest
from align.eval.consistency import probe
from align.eval.contrast import Contrasts, Form, read_pairs
from align.eval.contrast_build import build_pairs
from align.eval.kept import Kept
from align.eval.result import Result
from align.eval.suites.measuring import Measured, Measuring, digest_of_rows
from align.eval.suites.sections import Alpaca, Consistency
from align.judges.judge import ScoreJudge
from align.judges.loading import judging, load_judge
from align.probes.consistency import margins
from align.probes.consistency_verdict import verdict
from align.recipe.sampling import Judge
from align.stats import Interval

_ALPACA = ("win_rate", "length_controlled_winrate")


def alpaca(settings: Alpaca, now: Measuring) -> Measured | None:
    """AlpacaEval; answers and verdicts are kept beside the result. None on all processes but the first.

    Raises:
        UserError: where no judge is named, or the judge, an answer or a file cannot be had.
    """
    judge = _judge(settings, now)
    named = {key: getattr(settings, key) for key in ("reference", "difficulty", "anchors")}
    places = {key: None if name is None else now.suite.place(name) for key, name in named.items()}
    reference = reference_outputs(places["reference"])
    limit = now.limit if now.limit is not None and now.limit < len(reference) else None
    drawing = Drawing(likeliest(settings.max_new_tokens, settings.temperature), settings.seed)
    setup = Setup(reference, now.own, drawing, limit=limit)
    found = evaluate(
        setup,
        now.model,
        judge,
        places["difficulty"],
        places["anchors"],
        base=now.suite.base if settings.judge is not None else Path(),
        allow_code=now.allow_code,
        world=now.world,
        say=now.say,
    )
    if found is None:
        return None
    result = Result(found.title, {"reference": found.reference, "judge": found.judge}, limit=limit)
    result.notes = list(found.notes)
    wins, controlled = found.wins, found.controlled
    _enter(result, "win_rate", wins.win_rate, interval(wins.win_rate, wins.standard_error, wins.n_total))
    if controlled is None:
        result.missing["length_controlled_winrate"] = found.missing
    else:
        count = len(setup.instructions)
        span = interval(controlled.win_rate, controlled.standard_error, count)
        _enter(result, "length_controlled_winrate", controlled.win_rate, span)
    result.values |= {"discrete_win_rate": wins.discrete_win_rate, "avg_length": float(found.average_length)}
    rows = read_annotations(now.own / ANNOTATIONS)
    result.items["win_rate"] = {
        digest_of_rows(text): 100 * float(value)
        for text, value in zip(rows.instructions, rows.preference, strict=True)
        if value == value  # not NaN, which was not judged
    }
    return Measured(result, _ALPACA, about={"unjudged": found.unjudged, "official": found.official})


def _judge(settings: Alpaca, now: Measuring) -> Judge:
    """The judge of the suite file, else that of the command line. Raises ``UserError`` where there is none."""
    judge = settings.judge or now.judge
    if judge is None:
        raise UserError(
            f"suite {now.suite.name}: nobody judges: give --judge, such as endpoint:URL#MODEL, or name one in a copy "
            "of the suite file."
        )
    return judge


def require(settings: Alpaca, now: Measuring) -> None:
    """Refuse what cannot go on: nobody who judges. Raises ``UserError``."""
    _judge(settings, now)


def _enter(result: Result, name: str, value: float, span: Interval | None) -> None:
    result.values[name] = value
    if span is not None:
        result.intervals[name] = span


class KeptJudge(ScoreJudge):
    """A judge whose scores are kept on disk; ``weights`` is its digest."""

    def __init__(self, judge: ScoreJudge, kept: Kept, weights: str) -> None:
        self.name, self._judge, self._kept, self._weights = judge.name, judge, kept, weights

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        rows = [list(row) for row in zip(prompts, responses, strict=True)]

        def work(some: Sequence[int]) -> list[float]:
            return self._judge.score([prompts[i] for i in some], [responses[i] for i in some])

        return self._kept(rows, ["scores", self._weights], work, what="answers scored", done="answers scored")

    def fits(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[bool]:
        return self._judge.fits(prompts, responses)


def consistency(settings: Consistency, now: Measuring) -> Measured:
    """C_res and C_ins of a reward model. Raises ``UserError`` where it is none, or no pair can be had."""
    with judging():
        judge: Any = load_judge(Judge(reward=now.model), device=now.world.device, say=now.say)
        contrasts = _contrasts(settings, now, Form.of(judge.tokenizer, None))
        limit = now.limit if now.limit is not None and now.limit < len(contrasts.pairs) else None
        contrasts = Contrasts(**{**vars(contrasts), "pairs": contrasts.pairs[:limit]})
        found = probe(KeptJudge(judge, now.kept, now.weights), contrasts, now.say)
    result = Result(f"consistency of {now.model}", {"source": contrasts.source, "form": contrasts.form}, limit=limit)
    for figure in found.found.figures:
        result.values[figure.name] = figure.share.greater.value
        result.intervals[figure.name] = figure.share.greater
    for metric in ("C_res", "C_ins"):
        right = (margins(found.scores, metric) > 0).mean(axis=1)
        keys = [digest_of_rows(sorted(pair.sides())) for pair in found.contrasts.pairs]
        result.items[f"{metric}, both"] = dict(zip(keys, right.tolist(), strict=True))
    said = verdict(found.found)
    return Measured(result, tuple(result.values), about={"verdict": said})


def _contrasts(settings: Consistency, now: Measuring, form: Form) -> Contrasts:
    if settings.pairs is not None:
        return read_pairs(Path(now.suite.place(settings.pairs)), form)
    if settings.preferences is not None:
        return build_pairs(now.source(settings.preferences), form, say=now.say)
    first, *others = now.held_out()
    if others:
        now.say(f"note: contrast pairs are built from the first of {1 + len(others)} held-out sources")
    recipe = now.run.recipe
    return build_pairs(first, form, base=recipe.base if recipe is not None else None, say=now.say)
