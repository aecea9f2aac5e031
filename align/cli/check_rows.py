"""What is wrong with the rows of one data set, for training on them: findings, each with the rows concerned."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from align.cli.check_model import reading
from align.cli.check_parts import as_table
from align.cli.findings import Finding, SetReport, first_counted
from align.cli.traits import Keys, Traits, collect
from align.data.rows.cache import let_go
from align.data.rows.formats import Format
from align.data.rows.questions import asked
from align.data.rows.sources import is_table
from align.data.rows.values import ROLES
from align.data.tokens.arguments import kept_arguments, unused_arguments
from align.data.tokens.encode import SAME_AFTER_CUT, SAME_ANSWERS
from align.data.tokens.endings import count_ends
from align.data.tokens.preparation import APART, NO_TURNS, TOGETHER, UNSEEN_NOTE, Preparation, plural
from align.data.tokens.preview import preview
from align.data.tokens.tokenize import prepare_rows, recognise_dataset
from align.data.tokens.truncation import is_length_reason
from align.models.ends import unnamed_ends
from align.objectives.base import LABELLED
from align.recipe.template_arguments import DATE

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from align.cli.check_parts import Rows

# what the rows that rows of a role are compared with are called, and why they must not be the same
_SHARED = {
    "train": ("held-out", "held-out figures would measure memory"),
    "forget": ("retained", "they would be forgotten and kept at once"),
}
LENGTH_BIAS = 0.2  # difference of the mean lengths, relative to the rejected answers', from which a bias is named
_ENOUGH = 30  # pairs, fewer are too few to say
_UNITS = {"preference": "pair", "prompt-only": "prompt"}


def check_rows(
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    branches: Sequence[str],
    *,
    max_length: int | None = None,
    truncation: str = "drop",
    system: str | None = None,
    held_out: Rows | Keys | None = None,
    name: str = "rows",
    role: str = "train",
    colour: bool = False,
    config: Any = None,
    ends: Collection[int] | None = None,
    values: Sequence[str] = (),
) -> SetReport:
    """Findings on raw rows for an objective that scores ``branches``; ``held_out`` are rows to compare them with.

    ``config`` is the configuration of the model that shall read them and ``ends`` are the token ids that it stops at;
    None where the model is not known. With ``role`` ``forget`` ``held_out`` are the rows to retain. Of a stream the
    first rows are looked at.
    Raises ``UserError`` where the rows have no known format.
    """
    table = asked(as_table(rows), tokenizer, branches)
    form = recognise_dataset(table, branches)
    prepared, account = prepare_rows(
        table, tokenizer, branches, max_length=max_length, truncation=truncation, system=system, values=values
    )
    assert is_table(prepared)  # as `table` is
    keys, traits = collect(table, form, prompts=not branches, compared=held_out is not None)
    findings = [*_dropped(account), *_tokens(account), *_arguments(form, tokenizer)]
    if config is not None and len(prepared):
        findings += reading(config, prepared, branches)
    let_go()
    findings += _ends(account, prepared, tokenizer, ends)
    # answers that are not read have no faults
    findings += [*_doubles(keys, form), *_traits(traits, account)] if branches else _same_prompts(keys)
    others_are, why = _SHARED.get(role, _SHARED["train"])
    if held_out is not None:
        if not isinstance(held_out, Keys):
            others = as_table(held_out)
            held_out, _ = collect(others, recognise_dataset(others, branches), compared=True)
        findings += _overlap(keys, held_out, others_are, why)
    findings += [*_labels(account), *_lengths(account, prepared)]
    findings += _fine(findings, account, form, None if held_out is None else others_are)
    shown = preview(prepared[0], tokenizer, branches, colour=colour) if len(prepared) else []
    return SetReport(
        name, f"{role}, {form.name}", _UNITS.get(form.kind, "row") if branches else "prompt", findings, account, shown
    )


def _dropped(account: Preparation) -> Iterator[Finding]:
    """Rows that preparation left out. Length is the recipe's choice, everything else a fault of the row."""
    for reason, tally in account.dropped.items():
        if reason == SAME_AFTER_CUT:
            yield Finding.of("warning", "equal_after_cut", reason, tally, "left out")
        elif is_length_reason(reason):
            share = f"{tally.count / account.rows_in:.1%} left out (truncation: {account.truncation})"
            yield Finding.of("warning", "too_long", reason, tally, share)
        elif reason == SAME_ANSWERS:
            yield Finding.of("error", "equal_branches", reason, tally, "left out")
        elif reason.endswith("is empty"):
            yield Finding.of("error", "empty", reason, tally, "left out")
        else:
            yield Finding.of("error", "malformed", reason, tally, "left out")
    if account.rows_kept == 0:
        yield Finding("error", "nothing_left", "no row can be used")


def _tokens(account: Preparation) -> Iterator[Finding]:
    if account.missed:
        yield Finding("warning", "missed", account.missed)
    elif account.unread:
        yield Finding("ok", "unread", f"columns that the model does not see: {', '.join(account.unread)}")
    if account.skips_template:
        yield Finding("warning", "no_turns", NO_TURNS)
    for what, tally in account.unseen.items():
        yield Finding.of("warning", "unseen", what, tally, UNSEEN_NOTE)
    if account.truncated.count:
        text = f"longer than {account.max_length:,} tokens"
        note = f"{account.truncated_share:.1%} cut (truncation: {account.truncation})"
        yield Finding.of("warning", "truncated", text, account.truncated, note)
    if account.pieces is not None and account.pieces != account.rows_kept:
        pieces = f"{plural(account.rows_kept, 'text')} split into {account.pieces:,} rows"
        yield Finding("ok", "split", f"{pieces} of at most {account.max_length:,} tokens")
    if account.double_bos.count:
        note = "take BOS out of the text or of the chat template"
        yield Finding.of("error", "double_bos", "starts with two BOS tokens", account.double_bos, note)
    if account.double_eos.count:
        note = "take EOS out of the text"
        yield Finding.of("warning", "double_eos", "ends with two EOS tokens", account.double_eos, note)
    if account.run_together.count:
        yield Finding.of("warning", "run_together", TOGETHER, account.run_together, APART)
    if account.boundary.count:
        note = "the answer starts where the two part, as in TRL; end prompts on a token boundary"
        text = "prompt is no prefix of prompt + answer"
        yield Finding.of("warning", "boundary", text, account.boundary, note)


def _arguments(form: Format, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """Template arguments that change nothing."""
    given = {name: value for name, value in kept_arguments(tokenizer).items() if name != DATE}
    if given and not form.conversational:
        yield Finding("warning", "argument", "template arguments change nothing: the rows are no conversations")
        return
    for sentence in unused_arguments(tokenizer, given):
        yield Finding("warning", "argument", sentence)


def _ends(
    account: Preparation, prepared: Dataset, tokenizer: PreTrainedTokenizerBase, ends: Collection[int] | None
) -> Iterator[Finding]:
    """Answers whose end stops nothing."""
    if account.open_end is not None:
        yield Finding("warning", "no_end", account.never_stops)
    if ends is None or not len(prepared):
        return
    for sentence in unnamed_ends(count_ends(prepared, tokenizer), tokenizer, ends).values():
        note = "align train adds it to the generation config of what it saves"
        yield Finding("warning", "other_end", f"{sentence}: {note}")


def _doubles(keys: Keys, form: Format) -> Iterator[Finding]:
    whole = keys.rows.again()
    if len(whole):
        yield Finding.of("warning", "duplicate", "the same row again", first_counted(whole))
    elsewhere = keys.answers.again()
    elsewhere = elsewhere[~np.isin(elsewhere, whole)]
    if len(elsewhere):
        text = "the same answers under another prompt"
        yield Finding.of("warning", "duplicate_answers", text, first_counted(elsewhere))
    against = keys.swapped.shared(keys.rows)
    if len(against) and form.kind == "unpaired":
        note = "the same answer is also there with the other label"
        yield Finding.of("warning", "contradiction", "the label contradicts another row", first_counted(against), note)
    elif len(against):
        note = "the same pair is also there the other way round"
        text = "chosen and rejected contradict another row"
        yield Finding.of("warning", "contradiction", text, first_counted(against), note)


def _same_prompts(keys: Keys) -> Iterator[Finding]:
    again = keys.prompts.again()
    if len(again):
        yield Finding.of("warning", "duplicate", "the same prompt again", first_counted(again))


def _overlap(keys: Keys, held_out: Keys, what: str, why: str) -> Iterator[Finding]:
    rows = np.unique(keys.facts.shared(held_out.facts))
    if len(rows):
        yield Finding.of("error", "overlap_rows", f"the same row in {what}", first_counted(rows), why)
    prompts = np.setdiff1d(keys.prompts.shared(held_out.prompts), rows)
    if len(prompts):
        yield Finding.of("warning", "overlap_prompts", f"the same prompt in {what}", first_counted(prompts))


def _traits(traits: Traits, account: Preparation) -> Iterator[Finding]:
    if traits.roles.count:
        text = f"unusual roles: {', '.join(sorted(traits.strange))}"
        yield Finding.of("warning", "roles", text, traits.roles, f"usual are {', '.join(ROLES)}")
    if traits.alternation.count:
        yield Finding.of("warning", "alternation", "user and assistant do not alternate", traits.alternation)
    if traits.repeats.count:
        note = "the model would be shown the prompt twice; take it out of the answers"
        yield Finding.of("warning", "repeated_prompt", "the answers repeat the prompt", traits.repeats, note)
    if traits.touching.count > traits.seen / 2:
        note = "texts are joined as they are; put a space or line break between them"
        yield Finding.of("warning", "touching", "no space between prompt and answer", traits.touching, note)


def _labels(account: Preparation) -> Iterator[Finding]:
    """How many answers there are of each label, and mismatched ones that were cut."""
    if account.labels is None:
        return
    note = "chosen and rejected answers of pairs taken apart" if "chosen" in account.branches else ""
    desirable, undesirable = account.labels
    text = f"{desirable:,} desirable and {undesirable:,} undesirable answers"
    yield Finding("ok", "labels", f"{text}: {note}" if note else text)
    if account.mismatch_cut.count:
        text = f"with a mismatched answer longer than {account.max_length:,} tokens"
        yield Finding.of("ok", "mismatch_cut", text, account.mismatch_cut, "its end is cut")


def _lengths(account: Preparation, prepared: Dataset) -> Iterator[Finding]:
    """Whether the better answers tend to be longer: what preference training then learns first is length."""
    better, worse = LABELLED if account.labels is not None else ("chosen", "rejected")
    if not {f"{better}_ids", f"{worse}_ids"} <= set(prepared.column_names):
        return
    import pyarrow.compute as pc

    table = prepared.with_format("arrow")
    columns = (pc.drop_null(pc.list_value_length(table[f"{name}_ids"])) for name in (better, worse))
    lengths = [np.asarray(column, dtype=np.int64) for column in columns]
    if not all(map(len, lengths)):
        return
    means = [float(tokens.mean()) for tokens in lengths]
    growth = (means[0] - means[1]) / means[1]
    biased = min(map(len, lengths)) >= _ENOUGH and abs(growth) >= LENGTH_BIAS
    word = "longer" if growth > 0 else "shorter"
    note = f"mean {means[0]:,.0f} and {means[1]:,.0f} tokens"
    if not growth:
        yield Finding("ok", "length_bias", f"{better} as long as {worse}", amount="+0%", note=note)
        return
    if account.labels is None:
        share = float(np.mean(lengths[0] > lengths[1] if growth > 0 else lengths[0] < lengths[1]))
        note += f", {word} in {share:.0%} of the pairs"
    if biased:
        note += f": expect {word} outputs"
    text = f"{better} {word} than {worse}"
    yield Finding("warning" if biased else "ok", "length_bias", text, amount=f"{growth:+.0%}", note=note)


def _fine(found: Sequence[Finding], account: Preparation, form: Format, compared: str | None) -> Iterator[Finding]:
    """What was looked for and not found."""
    codes = {finding.code for finding in found}
    rows = plural(account.rows_in, "row")
    if not account.rows_kept:
        return
    if not codes & {"double_bos", "boundary"} and account.branches and not form.tokenised:
        yield Finding("ok", "tokens", f"one BOS at most, prompt is a prefix of prompt + answer in all of {rows}")
    if not codes & {"malformed", "empty", "equal_branches", "nothing_left"}:
        turns = ", roles alternate" if form.conversational and not codes & {"roles", "alternation"} else ""
        yield Finding("ok", "rows", f"nothing missing, empty or of a wrong type{turns}")
    if not codes & {"duplicate", "duplicate_answers", "contradiction"}:
        yield Finding("ok", "duplicates", "no row twice")
    if compared and not codes & {"overlap_rows", "overlap_prompts"}:
        yield Finding("ok", "overlap", f"no prompt in common with the {compared} rows")
    if not codes & {"too_long", "truncated", "split"} and account.max_length is not None:
        yield Finding("ok", "length", f"every row fits into {account.max_length:,} tokens")
