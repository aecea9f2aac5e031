"""The first section of a report: the words of the verdict, each with what it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align.report.limits import ending
from align.report.page.blocks import Block, Section, Text, Tone, Word, Words
from align.report.record import RunRecord

# a word is praise only where a run that learned nothing, or ruined the model, would not get it
_GOOD = {"learned": ("yes",), "ranks": ("yes",)}
_BAD = {
    "learned": ("worse",),
    "suppression": ("yes", "reversed"),
    "dispersion": ("yes", "drift"),
    "ranks": ("reversed", "worse"),
    "utility": ("collapsed",),
    "alike": ("collapsed",),
    "durability": ("came back",),
    "reward": ("fell",),
    "astray": ("yes",),
    "collapse": ("yes",),
}
_LOOK = {
    "learned": ("not shown", "too few to say"),
    "moved": ("no",),
    "imitation": ("yes",),
    "suppression": ("mild",),
    "drop": ("yes",),
    "degradation": ("yes", "still falling"),
    "dispersion": ("mild",),
    "loss": ("not lower",),
    "ranks": ("not shown", "too few to say"),
    "confidence": ("overconfident", "underconfident"),
    "scores": ("run away",),
    "overfit": ("yes",),
    "utility": ("damaged",),
    "forgetting": ("differs",),
    "durability": ("rose",),
    "astray": ("partly",),
    "signal": ("spent",),
    "entanglement": ("both down", "both up", "reversed"),
}


def verdict(run: RunRecord) -> Section:
    """The end block of a run, then what else was found; of a run that has not ended, how far it came."""
    if run.verdict is None:
        return Section("Verdict", [Text(text) for text in ending(run)])
    findings = dict(run.verdict.get("findings") or {})
    if (attacked := run.evaluations.get("durability")) is not None:  # tested after the run had ended
        text = "relearning, rounded weights, other questions, many samples: see Evaluation"
        findings["durability"] = {"word": attacked.get("word"), "text": text}
    if not findings:
        return Section("Verdict", [Text("Nothing is claimed from training alone: evaluate the model.")])
    first = run.verdict.get("shown") or [*findings]
    shown = [name for name in first if name in findings]
    blocks: list[Block] = [Words(words(findings, shown))]
    if rest := [name for name in findings if name not in shown]:
        blocks += [Text("Also measured:", quiet=True), Words(words(findings, rest))]
    return Section("Verdict", blocks)


def words(findings: Mapping[str, Any], names: Sequence[str]) -> tuple[Word, ...]:
    """Findings of ``verdict.json`` by their names; nothing is praised beside one that is bad.

    A model that was ruined may still order the pairs right.
    """
    kept = str((findings.get("utility") or {}).get("word"))
    tones = {name: tone(name, found, kept) for name, found in findings.items()}
    ruined = "bad" in tones.values()
    return tuple(
        Word(
            name,
            str(findings[name].get("word", "")),
            str(findings[name].get("text", "")),
            "plain" if ruined and tones[name] == "good" else tones[name],
        )
        for name in names
    )


def tone(name: str, found: Mapping[str, Any], utility: str = "") -> Tone:
    """How a word is to be taken. ``utility`` is its word in an unlearning run: a ruined model forgets well."""
    word = found.get("word")
    if word in _GOOD.get(name, ()) or (name, word, utility) == ("forgetting", "like retain", "kept"):
        return "good"
    if word in _BAD.get(name, ()):
        return "bad"
    if word in _LOOK.get(name, ()) or found.get("changed") is True:
        return "look"
    return "plain"
