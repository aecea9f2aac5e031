"""Words of ``align compare``."""

from __future__ import annotations

from align.cli.terms import Explanation
from align.report.thresholds import FEW_PAIRS

COMPARISON: dict[str, Explanation] = {
    "paired": Explanation(
        "How two runs differ on the same items (align compare), every run against the first.",
        "Item by item the run's value minus the first run's, and a bootstrap over items: what makes an item hard for "
        "both cancels. Items are the probe's pairs, known by a digest of their tokens, or the items of a suite "
        "of align eval. differs: the interval of 95 % leaves out 0. not shown: it does not. too few to say: fewer than "
        f"{FEW_PAIRS} shared items. The intervals are not adjusted for their number.",
        "Hold out more pairs and keep seed and data.held_out alike, so that more of them are shared. One seed each "
        "says nothing of other seeds: repeat both.",
    ),
}
