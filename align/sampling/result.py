"""What ``align sample`` came to, in numbers and in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from align.judges.judge import undecided_warning
from align.report.progress import duration


@dataclass
class Mean:
    """A mean of scores, as they come."""

    n: int = 0
    total: float = 0.0

    def add(self, value: float) -> None:
        self.n += 1
        self.total += value

    @property
    def value(self) -> float | None:
        return self.total / self.n if self.n else None


@dataclass
class Result:
    """Counts of one call, resumed parts included; only ``tokens`` and ``seconds`` are of the last process alone.

    Attributes:
        rows: of the data set.
        finishes: samples by how they ended.
        blank: samples without any text.
        dropped: samples or prompts that were left out, by reason.
        scores: mean score of ``all`` samples, and of those ``kept``, ``chosen`` and ``rejected``.
        cut: kept samples that ended at the limit on length.
        otherwise: rows whose texts tokenise to something else than was sampled.
        unusable: rows that a recipe's preparation drops, by reason.
        bias: sum of P(the first shown is better) - 1/2 over comparisons, and their number.
        undecided: a judge's answers that named neither response, and all of them.
        tokens, seconds: drawn, and how long that took.
    """

    out: str
    keep: str
    prompts: int
    rows: int = 0
    finishes: Counter[str] = field(default_factory=Counter)
    blank: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    scores: dict[str, Mean] = field(default_factory=dict)
    cut: int = 0
    otherwise: int = 0
    unusable: dict[str, int] = field(default_factory=dict)
    comparisons: int = 0
    ties: int = 0
    bias: tuple[float, int] = (0.0, 0)
    undecided: tuple[int, int] = (0, 0)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def samples(self) -> int:
        return self.finishes.total()

    @property
    def position_bias(self) -> float | None:
        """Mean of P(the first shown is better) - 1/2; None where nothing was compared."""
        return self.bias[0] / self.bias[1] if self.bias[1] else None

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.tokens and self.seconds > 0 else None

    def add(self, line: Mapping[str, Any]) -> None:
        """Count one sample, a line of a table."""
        self.finishes[line["finish"]] += 1
        self.blank += not line["text"].strip()
        kept = bool(line["selected"]) or self.keep == "all"
        self.cut += kept and line["finish"] == "length"
        if line["score"] is None:
            return
        for name in ("all", line["selected"]):
            if name:
                self.scores.setdefault(name, Mean()).add(line["score"])

    def add_notes(self, notes: Mapping[str, Any]) -> None:
        """Count what was kept beside a part."""
        self.dropped.update(notes.get("dropped", {}))
        self.comparisons += notes.get("comparisons", 0)
        self.ties += notes.get("ties", 0)
        total, count = notes.get("bias", (0.0, 0))
        self.bias = (self.bias[0] + total, self.bias[1] + count)
        neither, answers = notes.get("undecided", (0, 0))
        self.undecided = (self.undecided[0] + neither, self.undecided[1] + answers)

    def reasons(self) -> str:
        """What was left out, by reason."""
        return "; ".join(f"{reason}: {count:,}" for reason, count in self.dropped.most_common()) or "no reason noted"

    def to_json(self) -> dict[str, Any]:
        """Plain values for scripts."""
        return {
            "out": self.out,
            "keep": self.keep,
            "prompts": self.prompts,
            "rows": self.rows,
            "samples": self.samples,
            "ended": self.finishes["end"],
            "stopped": self.finishes["stop"],
            "truncated": self.finishes["length"],
            "blank": self.blank,
            "judged": self.scores["all"].n if "all" in self.scores else 0,
            "scores": {name: {"mean": mean.value, "n": mean.n} for name, mean in self.scores.items()},
            "dropped": dict(self.dropped),
            "kept_truncated": self.cut,
            "tokenised_otherwise": self.otherwise,
            "unusable": self.unusable,
            "comparisons": self.comparisons,
            "ties": self.ties,
            "position_bias": self.position_bias,
            "undecided": self.undecided[0] / self.undecided[1] if self.undecided[1] else None,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
        }

    def lines(self) -> list[str]:
        """Sentences for people."""
        ends = self.finishes
        out = [
            f"{self.out}: {self.rows:,} rows of {self.prompts:,} prompts, keep {self.keep}",
            f"  {self.samples:,} samples: {ends['end']:,} ended, {ends['stop']:,} ended by a stop text, "
            f"{ends['length']:,} cut at the limit; {self.blank:,} blank",
        ]
        if self.scores:
            means = ", ".join(f"{name} {mean.value:.4g} (n {mean.n:,})" for name, mean in self.scores.items())
            out.append(f"  judged; mean score: {means}")
        if self.position_bias is not None:
            out.append(
                f"  judged by {self.comparisons:,} comparisons, each in both orders, {self.ties:,} of them ties; "
                f"position bias {self.position_bias:+.3f} (the first shown is preferred so much above a half)"
            )
        if self.dropped:
            out.append(f"  left out: {self.reasons()}")
        if self.tokens_per_second is not None:
            speed = f"{self.tokens_per_second:,.0f} tokens per second"
            out.append(f"  {self.tokens:,} tokens drawn in {duration(self.seconds)}: {speed}")
        return out + self._warnings()

    def _warnings(self) -> list[str]:
        out = []
        if warning := undecided_warning(self.undecided):
            out.append(f"  warning: {warning}")
        if self.cut:
            out.append(f"  warning: {self.cut:,} kept samples were cut: training on them teaches to end there")
        if self.otherwise:
            out.append(
                f"  warning: {self.otherwise:,} of {self.rows:,} rows tokenise to something else than was sampled"
            )
        for reason, count in self.unusable.items():
            out.append(f"  warning: a recipe will drop {count:,} rows: {reason}")
        return out
