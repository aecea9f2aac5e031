"""MUSE's metrics (arXiv 2407.06460) from a log, under the names of open-unlearning (commit d3d7cf9).

- ``forget_knowmem_ROUGE``, ``retain_knowmem_ROUGE``, ``forget_verbmem_ROUGE``: mean ROUGE-L F1 from 0 to 1, with the
  stemmer, as open-unlearning has it. MUSE's own code has no stemmer and reports 100 times the value.
- ``exact_memorization``, ``extraction_strength``: means over the rows of verbatim memory.
- ``mia_X``: area under the curve with holdout as the positive class; MUSE's own is 1 minus that. ``privleak`` is the
  relative difference of MUSE's areas on min-k, so the orientation does not matter to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from align.eval.log import MUSE_SETS, SCORES, MuseLog, SetLog
from align.eval.mia import ATTACKS, add_privacy
from align.eval.result import Result, number


@dataclass
class MuseResult(Result):
    """MUSE's metrics; what is forgotten is never shown without what is retained."""

    def headline(self) -> list[str]:
        """Memory of the forget set, what leaks of it, and memory of the retain set, in one line."""
        shown = (
            ("forget knowledge", "forget_knowmem_ROUGE"),
            ("forget verbatim", "forget_verbmem_ROUGE"),
            ("privacy leak", "privleak"),
            ("retain knowledge", "retain_knowmem_ROUGE"),
        )
        parts = [f"{title} {number(self.values[n]) if n in self.values else 'not computed'}" for title, n in shown]
        return [f"MUSE, {self.name}", "; ".join(parts)]


def metrics(log: MuseLog, retain_log: MuseLog | None = None, *, seed: int | None = 0) -> MuseResult:
    """Every metric that the items of ``log`` allow; what they do not allow is in ``missing`` with the reason.

    ``retain_log`` is the evaluation of a model trained without the forget set. ``seed`` is the bootstrap's; None
    computes no intervals.
    """
    settings = {"retain_log": retain_log.name if retain_log else None}
    result = MuseResult(name=log.name, settings=settings, notes=list(log.notes), limit=log.limit)
    for name in MUSE_SETS:
        items = log.sets.get(name, SetLog())
        scores = items.rouge_scores()[1]
        result.add_mean(f"{name}_ROUGE", scores, f"the log has no ROUGE-L F1 of the {name} rows", seed)
    for name in SCORES[:3]:
        result.add_mean(name, log.scores.get(name), f"the log has no {name} of the forget rows", seed)
    add_privacy(result, log.mia, retain_log.mia if retain_log else None)
    result.drop_small(("privleak", "rel_diff", *ATTACKS))
    result.order((*(f"{name}_ROUGE" for name in MUSE_SETS), "privleak", *SCORES, "rel_diff", *ATTACKS))
    return result
