"""What the quickstart says about its own numbers: a table, a sentence for each method, samples, and the limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align.data.rows.world import Row
    from align.recipes.quickstart.measure import Masses

SHOWN = "P(chosen) rises from DPO to Flex-DPO to RPO, and DPO leaks most to other text"
LIMITS = (
    "A toy, at a rate high enough that 48 steps show it. Every chosen answer began as the unlikeliest of twelve and so",
    "became likelier: this shows where DPO's push goes, not the fall of a chosen answer that was likely at the start.",
)


def summary(
    masses: Mapping[str, Masses], said: Mapping[str, Sequence[str]], pair: Row, accuracies: Mapping[str, float]
) -> list[str]:
    """Lines for the terminal. ``masses`` begin with ``start``; ``said`` are samples for the prompt of ``pair``.

    ``accuracies`` are preference accuracies on held-out pairs by method.
    """
    start, methods = masses["start"], [title for title in masses if title != "start"]
    question = pair["prompt"].removeprefix("Question: ").removesuffix("\nAnswer:")
    return [
        "",
        "  Where the probability is (of whole answers, mean over the training prompts)",
        f"  {'':<10}{'chosen':>9}{'rejected':>10}{'other answers':>15}{'any other text':>16}   change in nats",
        *(_row(title, start, now) for title, now in masses.items()),
        "",
        *(f"  {title:<10}{sentence(start, masses[title])}" for title in methods),
        f"  {unseen(accuracies)}",
        "",
        f"  Three samples each: {question}  (chosen {pair['chosen'].strip()!r}, rejected {pair['rejected'].strip()!r})",
        *(f"  {title:<10}{'  |  '.join(text or '(nothing)' for text in texts)}" for title, texts in said.items()),
        "",
        f"  {order(masses)}",
        *(f"  {line}" for line in LIMITS),
    ]


def _row(title: str, start: Masses, now: Masses) -> str:
    change = ""
    if now is not start:
        up, down = now.chosen_logp - start.chosen_logp, now.rejected_logp - start.rejected_logp
        change = f"   chosen {up:+.1f}, rejected {down:+.1f}"
    return f"  {title:<10}{now.chosen:>9.3f}{now.rejected:>10.3f}{now.others:>15.3f}{now.elsewhere:>16.3f}{change}"


def sentence(start: Masses, now: Masses) -> str:
    """Where the probability went, in one sentence that is true of any numbers."""
    parts = {"the chosen answer": now.chosen, "the world's other answers": now.others, "other text": now.elsewhere}
    most = max(parts, key=lambda part: parts[part])
    fell = "fell" if now.rejected < start.rejected else "did not fall"
    rest = ""
    if most != "the chosen answer":
        rest = f", {_share(now.chosen)} on the chosen answer"
    elif now.elsewhere > start.elsewhere:
        rest = f", {_share(now.elsewhere)} on other text ({_share(start.elsewhere)} at the start)"
    return f"The rejected answer {fell}; {_share(parts[most])} of the probability is now on {most}{rest}."


def unseen(accuracies: Mapping[str, float]) -> str:
    """The usual number, and whether it tells these methods apart."""
    listed = ", ".join(f"{title} {value:.2f}" for title, value in accuracies.items())
    alike = max(accuracies.values()) - min(accuracies.values()) < 0.02
    return f"Preference accuracy on held-out pairs: {listed}{'; it sees none of this' if alike else ''}."


def _share(part: float) -> str:
    """A probability in whole per cent that never rounds to none or all."""
    return "under 1%" if part < 0.005 else "over 99%" if part > 0.995 else f"{part:.0%}"


def order(masses: Mapping[str, Masses]) -> str:
    """Whether this run came out in the order that was seen before."""
    if as_shown(masses):
        return f"{SHOWN}, as on seeds 0, 1 and 2."
    return f"This run differs from seeds 0, 1 and 2, where this held: {SHOWN}."


def as_shown(masses: Mapping[str, Masses]) -> bool:
    """Whether ``SHOWN`` holds."""
    dpo, flex, rpo = (masses[title] for title in ("DPO", "Flex-DPO", "RPO"))
    return dpo.chosen < flex.chosen < rpo.chosen and dpo.elsewhere > max(flex.elsewhere, rpo.elsewhere)
