"""What the quickstart says about its unlearning: a table, answers, what the numbers show and what they do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.report.unlearning import number

if TYPE_CHECKING:
    from align.data.rows.world import World

SHOWN = "gradient ascent ruins the model, NPO with retained rows keeps it and comes closer to retain"
LIMITS = (
    "Forget quality is a p-value: above 0.05, these few questions show no difference from the retain model. Runs pass",
    "through a peak of it, ruined ones too, so it counts beside utility and at the last step, never at the best. Where",
    "P(forgotten answer) is below the retain model's, answers were suppressed, not unlearned; relearning is not tried.",
    "Rates and weights were chosen on seeds 0 and 1, NPO's beta on seed 2 as well: forget quality there is a fit, not",
    "a ranking. All people are asked the same questions, which is hard on methods without retained rows.",
)
Reading = dict[str, float]  # metrics by the names of align.recipe.stop_rule.METRICS, with the step


@dataclass(frozen=True)
class Unlearned:
    """``retain``: the reading of the model that never saw the six people; ``runs``: all readings by method, in order.

    Every run starts from the full model, so the first reading of each is that model's. ``answers`` are greedy answers
    to one question about a forgotten and one about a retained person, of the retain model and of each method's last.
    """

    retain: Reading
    runs: dict[str, list[Reading]]
    answers: dict[str, tuple[str, str]]

    @property
    def full(self) -> Reading:
        return next(iter(self.runs.values()))[0]


def unlearning_summary(done: Unlearned, made: World) -> list[str]:
    """Lines for the terminal."""
    steps = max(int(readings[-1]["step"]) for readings in done.runs.values())
    size, forgotten, retained = made.size, made.forget[0], made.retain[0]
    return [
        "",
        f"  What was forgotten, and what it cost ({size.forgotten} of {size.people} people, after {steps} steps)",
        f"  {'':<15}{'forget quality':>14}{'utility':>10}{'on retained people':>21}{'P(forgotten answer)':>22}",
        _row("full model", done.full),
        _row("retain model", done.retain, quality="itself"),
        *(_row(title, readings[-1]) for title, readings in done.runs.items()),
        "",
        f"  {'Asked':<15}{forgotten['question']:<50}{retained['question']}",
        f"  {'true':<15}{forgotten['answer']:<50}{retained['answer']}",
        *(f"  {title:<15}{_cut(one):<50}{_cut(two)}" for title, (one, two) in done.answers.items()),
        "",
        f"  {outcome(done)}",
        *(f"  {line}" for line in LIMITS),
    ]


def _row(title: str, now: Reading, quality: str | None = None) -> str:
    shown = quality or number(now["forget_quality"])
    values = f"{now['utility']:>10.3f}{now['utility_retain']:>21.3f}{now['forget_probability']:>22.3f}"
    return f"  {title:<15}{shown:>14}{values}"


def _cut(text: str, most: int = 46) -> str:
    """One line of characters that any terminal shows."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text.replace("\ufffd", "?")).split())
    return (line if len(line) <= most else f"{line[: most - 4]} ...") or "(nothing)"


def outcome(done: Unlearned) -> str:
    """Whether this run came out as those before it."""
    if as_shown(done):
        return f"Shown, as on seeds 0, 1 and 2: {SHOWN}."
    return f"This run differs from seeds 0, 1 and 2, where this held: {SHOWN}."


def as_shown(done: Unlearned) -> bool:
    """Whether ``SHOWN`` holds."""
    ascent, npo = (done.runs[title][-1] for title in ("GradAscent", "NPO + retain"))
    ruined, kept = ascent["utility"] < 0.05, npo["utility"] > 0.8 * done.full["utility"]
    return ruined and kept and npo["forget_quality"] > 1e5 * done.full["forget_quality"]
