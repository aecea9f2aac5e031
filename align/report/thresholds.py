"""Where the words of verdicts on pairs and on reward models begin; see ``docs/diagnostics.md``."""

from __future__ import annotations

CHOSEN_DROP_NATS = 20.0  # suppression: per answer; a recipe's watch.chosen_drop_nats takes its place
CHOSEN_DROP_NATS_PER_TOKEN = 0.5  # suppression: the same for short answers, whose sums are small
REJECTED_DROP_NATS_PER_TOKEN = 1.0  # drop: rejected tokens e times less likely on average
MAJORITY = 0.5  # degradation: share of pairs whose chosen answer is below the reference
DRIFT_NATS_PER_TOKEN = 0.25  # dispersion and drift of answers that no pair names
ASTRAY = 0.5  # astray: share of the model's own answers that are rarer than what is known
ASTRAY_PARTLY = 0.1  # the same, from where on it is said at all: of what is known, 0.05 is as rare
SAME_TO_ALL = 0.3  # collapse: METEOR between own answers to different prompts
FEW_DISTINCT = 0.5  # collapse: share of different texts among own answers
SPENT = 0.5  # signal: share of pairs on which hardly any pull is left
ALIKE = 0.5  # imitation: both sides rose, and the rejected one by at least this share of the chosen one
LENGTH_CHANGE = 0.25  # generated answers longer or shorter by this share
STILL_NATS = 1.0  # neither side moved by this much per answer ...
STILL_NATS_PER_TOKEN = 0.05  # ... nor by this much per token: the run hardly trained
FEW_PAIRS = 30  # fewer held-out pairs say nothing about what was learned
WIDE_ACCURACY = 0.1  # half width of the accuracy's interval beyond which more pairs are the first advice
NO_MARGIN = 0.01  # start and reference are one model up to rounding: accuracy at the start is chance
# of reward models
MISCALIBRATED = 0.05  # confidence: mean confidence and accuracy differ by this much, and not by chance
WILD_SCORES = 5.0  # scores: their centre lies this many margins from 0 (margins below 1 count as 1)
OVERFIT = 0.1  # overfit: accuracy on training pairs above that on held-out ones
