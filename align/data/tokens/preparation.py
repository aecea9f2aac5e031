"""What preparation did to the rows: what was kept, dropped and cut, and how long the rest is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from align.data.rows.unread import prompt_like
from align.errors import UserError

FIRST = 5  # row numbers that are remembered of each sort

UNSEEN_NOTE = "the model does not see it"
TOGETHER = "the last word of the prompt and the first one of an answer become one word"
APART = "end prompts with a blank or a line break"

BOUNDARY, DOUBLE_BOS, DOUBLE_EOS, TRUNCATED, RUN_TOGETHER = 1, 2, 4, 8, 16  # bits of the flags of a row


@dataclass
class Tally:
    """How many rows, and the numbers of the first few."""

    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, row: int) -> None:
        """Count one row."""
        self.count += 1
        if len(self.first) < FIRST:
            self.first.append(int(row))

    def join(self, later: Tally) -> None:
        """Count the rows of a tally of rows behind these."""
        self.count += later.count
        self.first += later.first[: FIRST - len(self.first)]


@dataclass
class Lengths:
    """Lengths in tokens, counted."""

    counts: Counter[int] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        """How many lengths were counted."""
        return self.counts.total()

    @property
    def total(self) -> int:
        """All tokens together."""
        return sum(length * count for length, count in self.counts.items())

    @property
    def mean(self) -> float:
        """Mean length; 0 where nothing was counted."""
        return self.total / self.rows if self.rows else 0.0

    @property
    def longest(self) -> int:
        """The greatest length; 0 where nothing was counted."""
        return max(self.counts, default=0)

    def quantile(self, share: float) -> int:
        """The smallest length that at least ``share`` of the rows do not exceed."""
        seen = 0
        for length in sorted(self.counts):
            seen += self.counts[length]
            if seen >= share * self.rows:
                return length
        return 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "total": self.total,
            "mean": round(self.mean, 3),
            "median": self.quantile(0.5),
            "p95": self.quantile(0.95),
            "longest": self.longest,
        }


NO_TURNS = (
    "the rows are plain text, so the model's chat template is not used: a chat model is asked in turns, and learns "
    "little from prompts without them. Give messages (role and content), or call the column question and not prompt"
)


@dataclass
class Preparation:
    """The account of ``prepare``. For a stream it grows while the stream is read, in the process that reads it; a
    second pass is counted again.

    ``dropped`` maps a reason to its rows, ``unseen`` what the model does not see of a row to its rows (dropped ones,
    too). Lengths are those of the kept rows, after cutting, per branch and ``prompt``.
    """

    format: str
    branches: tuple[str, ...] = ()
    max_length: int | None = None
    truncation: str = "drop"
    rows_in: int = 0
    rows_kept: int = 0
    dropped: dict[str, Tally] = field(default_factory=dict)
    truncated: Tally = field(default_factory=Tally)
    boundary: Tally = field(default_factory=Tally)
    double_bos: Tally = field(default_factory=Tally)
    double_eos: Tally = field(default_factory=Tally)
    run_together: Tally = field(default_factory=Tally)  # rows whose answer goes on in the prompt's last word
    unseen: dict[str, Tally] = field(default_factory=dict)
    lengths: dict[str, Lengths] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)  # columns that the format does not look at
    open_end: str | None = None  # what a chat template closes answers with, where that is no token of its own
    skips_template: bool = False  # whether the model has a chat template, and the rows are put without it
    pieces: int | None = None  # rows after splitting, where long texts are split; lengths are those before
    labels: tuple[int, int] | None = None  # desirable and undesirable answers, where rows are told apart by label
    mismatch_cut: Tally = field(default_factory=Tally)  # rows whose mismatched answer had to be cut

    @property
    def rows_dropped(self) -> int:
        """Rows that were left out, for whatever reason."""
        return self.rows_in - self.rows_kept

    @property
    def examples(self) -> int:
        """Rows that came out: pieces of split texts, labelled answers of pairs, else the kept rows."""
        if self.labels is not None:
            return sum(self.labels)
        return self.rows_kept if self.pieces is None else self.pieces

    @property
    def remarks(self) -> int:
        """How often something was to be said about a row."""
        flagged = (self.truncated, self.boundary, self.double_bos, self.double_eos, self.run_together)
        return sum(tally.count for tally in (*self.dropped.values(), *self.unseen.values(), *flagged))

    def nothing_left(self) -> UserError:
        """The sentence where no row can be used."""
        why = "; ".join(f"{reason} ({plural(tally.count, 'row')})" for reason, tally in self.dropped.items())
        return UserError(f"No row of {self.rows_in:,} can be used: {why or 'there are no rows'}.")

    @property
    def truncated_share(self) -> float:
        """Share of the kept rows of which something was cut."""
        return self.truncated.count / self.rows_kept if self.rows_kept else 0.0

    @property
    def missed(self) -> str:
        """The clause about unread columns that look like a part of the prompt; empty where there are none."""
        names = prompt_like(self.unread)
        if not names:
            return ""
        belong = "looks like a part of the prompt" if len(names) == 1 else "look like parts of the prompt"
        return (
            f"{' and '.join(names)} {belong}, but the model does not see {'it' if len(names) == 1 else 'them'}: write "
            "the text into the prompt, or map the column (columns: {prompt: ...})"
        )

    @property
    def never_stops(self) -> str:
        """The clause about a template that closes answers with no token of its own."""
        end = f"{self.open_end.strip()!r}" if self.open_end and self.open_end.strip() else "nothing"
        return (
            f"the chat template closes answers with {end}, which is no token of its own, so generation will not stop: "
            "add it to the tokenizer as a special token, or let the template (model.chat_template) end turns with EOS"
        )

    def count(
        self,
        rows: Sequence[int],
        reasons: Iterable[str],
        flags: Sequence[int],
        unseen: Sequence[Sequence[str]],
        lengths: Mapping[str, Sequence[int]],
    ) -> None:
        """Add rows: number, reason to drop (empty: kept), flags, what is unseen, lengths of prompt and branches."""
        kept = []
        for index, reason in enumerate(reasons):
            self.rows_in += 1
            for what in unseen[index]:
                self.unseen.setdefault(what, Tally()).add(rows[index])
            if reason:
                self.dropped.setdefault(reason, Tally()).add(rows[index])
                continue
            kept.append(index)
            flag = flags[index]
            if flag:
                for bit, tally in (
                    (BOUNDARY, self.boundary),
                    (DOUBLE_BOS, self.double_bos),
                    (DOUBLE_EOS, self.double_eos),
                    (TRUNCATED, self.truncated),
                    (RUN_TOGETHER, self.run_together),
                ):
                    if flag & bit:
                        tally.add(rows[index])
        self.rows_kept += len(kept)
        for name, values in lengths.items():
            self.lengths.setdefault(name, Lengths()).counts.update(values[index] for index in kept)

    def summary(self) -> list[str]:
        """Plain sentences for people, the most general first."""
        out = [f"Format: {self.format}.", f"{plural(self.rows_kept, 'row')} of {self.rows_in:,} kept."]
        for reason, tally in sorted(self.dropped.items(), key=lambda item: -item[1].count):
            out.append(f"{plural(tally.count, 'row')} dropped: {reason} ({first_rows(tally)}).")
        for what, tally in self.unseen.items():
            out.append(f"Warning: {what}, in {plural(tally.count, 'row')} ({first_rows(tally)}); {UNSEEN_NOTE}.")
        if self.unread:
            out.append(f"Columns that the model does not see: {', '.join(self.unread)}.")
        if self.missed:
            out.append(f"Warning: {self.missed}.")
        if self.pieces is not None and self.pieces != self.rows_kept:
            out.append(f"Split into {plural(self.pieces, 'row')} of at most {self.max_length:,} tokens.")
        if self.truncated.count:
            out.append(
                f"{plural(self.truncated.count, 'row')} ({self.truncated_share:.1%}) cut to {self.max_length:,} tokens "
                f"({self.truncation}; {first_rows(self.truncated)})."
            )
        if self.labels is not None:
            out += self._labelled(*self.labels)
        if self.boundary.count:
            out.append(
                f"In {plural(self.boundary.count, 'row')} the tokenised prompt is not a prefix of prompt and answer "
                f"together; the answer starts where they part ({first_rows(self.boundary)})."
            )
        if self.run_together.count:
            out.append(
                f"Warning: in {plural(self.run_together.count, 'row')} {TOGETHER} ({first_rows(self.run_together)}); "
                f"{APART}."
            )
        for what, tally in (("BOS tokens at the start", self.double_bos), ("EOS tokens at the end", self.double_eos)):
            if tally.count:
                out.append(f"Two {what} of {plural(tally.count, 'row')} ({first_rows(tally)}).")
        if self.skips_template and self.rows_kept:
            out.append(f"warning: {NO_TURNS}.")
        if self.open_end is not None and self.rows_kept:
            out.append(f"warning: {plural(self.rows_kept, 'row')}: {self.never_stops}.")
        for name, lengths in self.lengths.items():
            if lengths.rows:
                out.append(
                    f"Tokens of {name}: mean {lengths.mean:,.0f}, half at most {lengths.quantile(0.5):,}, "
                    f"95% at most {lengths.quantile(0.95):,}, longest {lengths.longest:,}."
                )
        return out

    def _labelled(self, desirable: int, undesirable: int) -> list[str]:
        """Sentences about answers that are told apart by their label."""
        out = [f"Labels: {desirable:,} desirable, {undesirable:,} undesirable."]
        if "chosen" in self.branches:
            out.insert(
                0,
                f"{plural(self.rows_kept, 'pair')} taken apart into {plural(self.examples, 'row')}: chosen answers are "
                "desirable, rejected ones undesirable.",
            )
        if self.mismatch_cut.count:
            out.append(
                f"The mismatched answers of {plural(self.mismatch_cut.count, 'row')} cut to {self.max_length:,} tokens "
                f"with the prompt ({first_rows(self.mismatch_cut)})."
            )
        return out

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        tallies = {"truncated": self.truncated, "boundary": self.boundary}
        tallies |= {"double_bos": self.double_bos, "double_eos": self.double_eos, "run_together": self.run_together}
        return {
            "format": self.format,
            "rows_in": self.rows_in,
            "rows_kept": self.rows_kept,
            **({} if self.labels is None else {"labels": list(self.labels)}),
            "dropped": {reason: _tally_dict(tally) for reason, tally in self.dropped.items()},
            **{name: _tally_dict(tally) for name, tally in tallies.items()},
            "unread": list(self.unread),
            "unseen": {what: _tally_dict(tally) for what, tally in self.unseen.items()},
            "tokens": {name: lengths.to_dict() for name, lengths in self.lengths.items()},
        }

    def record(self) -> dict[str, Any]:
        """The whole account as plain JSON, from which ``of_record`` makes an equal one."""
        return {name: _plain(value) for name, value in vars(self).items()}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Preparation:
        """The account that ``record`` came of."""
        values = dict(record)
        for name in ("truncated", "boundary", "double_bos", "double_eos", "run_together", "mismatch_cut"):
            values[name] = Tally(**record[name])
        for name in ("dropped", "unseen"):
            values[name] = {what: Tally(**tally) for what, tally in record[name].items()}
        values["lengths"] = {name: Lengths(Counter(dict(pairs))) for name, pairs in record["lengths"].items()}
        labels = record["labels"] and tuple(record["labels"])
        return cls(
            **{**values, "branches": tuple(record["branches"]), "labels": None if labels is None else (*labels,)}
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Lengths):
        return sorted(value.counts.items())
    if isinstance(value, Tally):
        return _tally_dict(value)
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def _tally_dict(tally: Tally) -> dict[str, Any]:
    return {"count": tally.count, "first": list(tally.first)}


def plural(count: int, noun: str) -> str:
    """``1 row``, ``1,204 rows``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def first_rows(tally: Tally) -> str:
    """``row 4`` or ``first: 4, 17, 23``."""
    if tally.count == 1:
        return f"row {tally.first[0]}"
    return "first: " + ", ".join(str(row) for row in tally.first)
