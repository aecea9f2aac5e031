"""The last line of a verdict on pairs: the first thing to do about what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.report.thresholds import FEW_PAIRS, WIDE_ACCURACY
from align.report.verdict import NOT_MEASURED, Finding
from align.stats import finite

_MORE_PULL_ON_CHOSEN = {
    "dpo": "try objective.name=rpo, flex_dpo with a smaller beta_minus, or a larger beta",
    "flex_dpo": "lower objective.beta_minus by a fifth, or try objective.name=rpo",
    "rpo": "raise objective.eta, or lower train.learning_rate",
    "simpo": "lower train.learning_rate, or add {name: nll, weight: 0.1} to the objective",
}
_SUPPRESSION_ADVICE = "add {name: nll, weight: 0.1} to the objective, or lower train.learning_rate"
_MORE_PREFERENCE = {
    "flex_dpo": "raise objective.beta_minus towards beta_plus, or try objective.name=dpo",
    "rpo": "lower objective.eta, or try objective.name=dpo",
}
_IMITATION_ADVICE = "lower the weight of the likelihood term if there is one, or try objective.name=dpo"
# words under which a finding asks to be looked at
_NOTABLE = {
    "suppression": ("yes", "mild", "reversed"),
    "drop": ("yes",),
    "degradation": ("yes", "still falling"),
    "dispersion": ("yes", "mild", "drift"),
    "astray": ("partly",),
}


def advice(found: Mapping[str, Finding], end: Mapping[str, Any], objective: str) -> str:
    """The first rule that applies; they stand in the order of harm. ``end`` is the last reading of the probe."""
    if "learned" not in found:
        return _on_loss(found["loss"])
    return _on_model(found, end, objective) or _on_accuracy(found["learned"]) or _on_the_rest(found)


def _on_loss(loss: Finding) -> str:
    if loss.word == NOT_MEASURED:
        return "set data.held_out, so that the next run can be judged"
    if loss.word == "not lower":
        return "the held-out loss did not fall: lower train.learning_rate, or train for fewer steps"
    return "read some answers: a lower loss does not say that they are better"


def _on_model(found: Mapping[str, Finding], end: Mapping[str, Any], objective: str) -> str:
    """What happened to the log-probs."""
    learned, suppression = found["learned"].word, found["suppression"].word
    if not end:
        return "set data.held_out, so that the next run can be judged"
    if finite((end.get("chosen") or {}).get("value")) is None:
        return "the run diverged: lower train.learning_rate, or set train.max_grad_norm"
    if found["moved"].word == "no":
        return "the model hardly moved: raise train.learning_rate or train longer"
    if suppression == "reversed" or learned == "worse":
        return "see whether chosen and rejected are swapped: align check"
    if suppression == "yes":
        return _MORE_PULL_ON_CHOSEN.get(objective, _SUPPRESSION_ADVICE)
    if found["imitation"].word == "yes":
        return _MORE_PREFERENCE.get(objective, _IMITATION_ADVICE)
    if found["collapse"].word == "yes":
        return "the model says the same to everybody: lower train.learning_rate, or raise beta"
    if found["astray"].word == "yes":
        return f"read some answers; then {_MORE_PULL_ON_CHOSEN.get(objective, _SUPPRESSION_ADVICE)}"
    if found["dispersion"].word in ("yes", "drift"):
        return "lower train.learning_rate, train for fewer steps, or raise beta"
    return ""


def _on_accuracy(learned: Finding) -> str:
    """Whether a preference was shown."""
    if learned.word == NOT_MEASURED:
        return "set data.held_out: accuracy on training pairs does not show what was learned"
    span = learned.facts["accuracy"]
    if learned.word == "too few to say":
        few = "1 held-out pair is" if span["n"] == 1 else f"{span['n']} held-out pairs are"
        return f"{few} too few to say: hold out {FEW_PAIRS} or more (data.held_out)"
    if learned.word != "not shown":
        return ""
    if (span["high"] - span["low"]) / 2 > WIDE_ACCURACY:
        return f"{span['n']} pairs are too few to tell: raise watch.probe_pairs or evaluate on more"
    if span["low"] > learned.facts["start"]:
        return "length alone does as well: compare lengths in align check, or try objective.name=simpo"
    return "train longer, or look at the pairs: align check"


def _on_the_rest(found: Mapping[str, Finding]) -> str:
    """What stands out beside that; only where nothing does is it said that nothing does."""
    length = found["length"].facts
    if length.get("changed") and length["growth"] > 0:
        return "answers grew: try objective.name=simpo, or ipo with reduction=per_token"
    if length.get("changed"):
        return "answers became shorter: read some of them, and lower train.learning_rate or train for fewer steps"
    notable = [f"{name} ({found[name].word})" for name, words in _NOTABLE.items() if found[name].word in words]
    if notable:
        return f"look at {', '.join(notable)}: align explain {notable[0].partition(' ')[0]}"
    return "nothing stands out in what was measured; read some answers before trusting it"
