"""Batches of raw rows to token ids: the part of preparation that runs inside ``datasets.map``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from align.data.rows.formats import BadRow, Format
from align.data.rows.values import number, with_system
from align.data.tokens.chat import (
    Rendered,
    Request,
    common_prefix,
    has_generation_markers,
    render,
    turn_mask,
    turn_requests,
)
from align.data.tokens.endings import marks, text_end, turn_end
from align.data.tokens.ids import ids_of
from align.data.tokens.preparation import BOUNDARY, DOUBLE_BOS, DOUBLE_EOS, RUN_TOGETHER, TRUNCATED
from align.data.tokens.truncation import fit
from align.data.tokens.unseen import lines_of, speaks, unknown_arguments, unseen

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# columns of every encoded row: the reason to drop it, the bits of its flags, and what the model does not see of it
STATUS, FLAGS, UNSEEN = "_status", "_flags", "_unseen"
SAME_ANSWERS = "chosen equals rejected"
SAME_AFTER_CUT = "the answers are equal once they are cut"
CUT_ANCHOR = "it would be cut, and its log-probs are those of whole answers"
LEFT_EMPTY = "the chat template leaves nothing of {name}: it is empty"
NO_START = "prompt is empty and the answers do not start alike, so there is no token to start from"
_OPENING = 16  # tokens of an answer in which it nearly always says something


@dataclass(frozen=True)
class Encoder:
    """Batches of raw rows to prepared rows; every row comes out, a dropped one with its reason in ``_status``."""

    form: Format
    tokenizer: PreTrainedTokenizerBase
    branches: tuple[str, ...]
    max_length: int | None
    truncation: str
    system: str | None
    columns: tuple[str, ...]
    values: tuple[str, ...] = ()  # columns with a number that prepared rows keep
    _words: dict[int, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    # looked up once, since a tokenizer searches its vocabulary for them
    @cached_property
    def bos(self) -> int | None:
        """The token that starts a text."""
        return self.tokenizer.bos_token_id

    @cached_property
    def eos(self) -> int | None:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    def __call__(self, batch: Mapping[str, list], indices: list[int]) -> dict[str, list]:
        names = list(batch)
        canonical = [
            self._canonical(dict(zip(names, values, strict=True))) for values in zip(*batch.values(), strict=True)
        ]
        numbers = batch.get("row", indices)
        if self.form.tokenised:
            encoded = [row if isinstance(row, BadRow) else self._given(row) for row in canonical]
        elif self.form.conversational:
            encoded = self._conversations(canonical)
        else:
            encoded = self._texts(canonical)
        out: dict[str, list] = {name: [] for name in (*self.columns, STATUS, FLAGS, UNSEEN)}
        for row, ids, place in zip(canonical, encoded, numbers, strict=True):
            finished, flags = (ids, 0) if isinstance(ids, BadRow) else self._finish(ids)
            bad = isinstance(finished, BadRow)
            values: dict[str, Any] = {} if isinstance(finished, BadRow) else dict(finished)
            if not isinstance(row, BadRow):
                values |= {name: row[name] for name in row if name in ("label", *self.values) or "_logp_" in name}
                if not bad and flags & TRUNCATED and any("_logp_" in name for name in row):
                    bad, finished = True, BadRow(CUT_ANCHOR)
            for name in self.columns:
                empty: Any = [] if name.endswith(("_ids", "_mask")) else None
                out[name].append(place if name == "row" else values.get(name, empty))
            out[STATUS].append(str(finished) if bad else "")
            out[FLAGS].append(0 if bad else flags)
            out[UNSEEN].append([] if isinstance(ids, BadRow) else ids.unseen)
        return out

    def _canonical(self, row: Mapping[str, Any]) -> dict[str, Any] | BadRow:
        try:
            numbers = {name: number(row, name) for name in self.values if row.get(name) is not None}
            out = self.form.canonical(row) | numbers
        except BadRow as bad:
            return bad
        if self.system is not None:
            out["prompt"] = with_system(out["prompt"], self.system)
        return out

    def _given(self, row: Mapping[str, Any]) -> _Ids:
        masks = {name: row[f"{name}_mask"] for name in self.branches if f"{name}_mask" in row}
        return _Ids(row["prompt_ids"], {name: row[f"{name}_ids"] for name in self.branches}, masks)

    def _texts(self, rows: Sequence[dict[str, Any] | BadRow]) -> list[_Ids | BadRow]:
        """Tokenise rows of plain text, all texts of the batch in one call."""
        ends = text_end(self.tokenizer)
        end, closed = ends or "", ends == ""
        texts: list[str] = []
        for row in rows:
            if isinstance(row, BadRow):
                continue
            texts.append(row["prompt"])
            for name in self.branches:
                text = row["prompt"] + row[name]
                texts.append(text if row[name].endswith(end) else text + end)
        encoded = iter(ids_of(self.tokenizer, texts))
        out: list[_Ids | BadRow] = []
        for row in rows:
            if not isinstance(row, BadRow):
                prompt = next(encoded)
                if closed:  # what the tokenizer puts behind a text does not stand behind a prompt that is answered
                    prompt = prompt[:-1]
                ids = _joined(prompt, {name: next(encoded) for name in self.branches})
                ids.run_together = any(_run_together(row["prompt"], row[name]) for name in self.branches)
            out.append(row if isinstance(row, BadRow) else ids)
        return out

    def _conversations(self, rows: Sequence[dict[str, Any] | BadRow]) -> list[_Ids | BadRow]:
        """Render and tokenise conversations, all of the batch together."""
        # a tokenizer in Python does not know which characters its tokens are
        marked = has_generation_markers(self.tokenizer) and self.tokenizer.is_fast
        requests: list[Request] = []
        spans: list[tuple[int, dict[str, tuple[int, int]]]] = []
        for row in rows:
            if isinstance(row, BadRow):
                spans.append((0, {}))
                continue
            tools, kwargs = row.get("tools"), row.get("chat_template_kwargs") or {}
            continued = not self.branches and row["prompt"][-1]["role"] == "assistant"
            at = len(requests)
            extra = {"continue_final_message": True} if continued else {}
            requests.append(Request(row["prompt"], not continued, False, tools, {**kwargs, **extra}))
            parts: dict[str, tuple[int, int]] = {}
            for name in self.branches:
                answer = row[name]
                several = any(message["role"] != "assistant" for message in answer)
                start = len(requests)
                requests.append(Request(row["prompt"] + answer, False, several and marked, tools, kwargs))
                if several and not marked:
                    requests += turn_requests(row["prompt"], answer, tools, kwargs)
                parts[name] = (start, len(requests))
            spans.append((at, parts))
        rendered = render(self.tokenizer, requests)
        encoded = [
            row
            if isinstance(row, BadRow)
            else self._row(rendered[at], {n: rendered[a:b] for n, (a, b) in parts.items()})
            for row, (at, parts) in zip(rows, spans, strict=True)
        ]
        wholes: list[Mapping[str, Rendered | BadRow]] = [
            {name: rendered[start] for name, (start, _) in parts.items()} or {"prompt": rendered[at]}
            if not isinstance(row, BadRow)
            else {}
            for row, (at, parts) in zip(rows, spans, strict=True)
        ]
        self._compare(rows, encoded, wholes)
        return encoded

    def _compare(
        self,
        rows: Sequence[dict[str, Any] | BadRow],
        encoded: Sequence[_Ids | BadRow],
        wholes: Sequence[Mapping[str, Rendered | BadRow]],
    ) -> None:
        """Note in ``encoded`` what rows say and their renderings, prompt and branch together, leave out."""
        suspects: list[tuple[_Ids, str, Rendered]] = []
        requests: list[Request] = []
        for row, ids, whole in zip(rows, encoded, wholes, strict=True):
            if isinstance(row, BadRow) or isinstance(ids, BadRow):
                continue
            tools, kwargs = row.get("tools"), row.get("chat_template_kwargs") or {}
            left_out: set[str] = set()
            before = lines_of(row["prompt"], tools)
            for name, rendering in whole.items():
                assert isinstance(rendering, Rendered)  # as `ids` are
                answer = row[name] if name in self.branches else []
                after = lines_of(answer)
                left_out |= unseen(before + after, rendering.text)
                if answer and not speaks(after, before, rendering.text):
                    suspects.append((ids, name, rendering))
                    requests.append(Request(row["prompt"] + _silent(answer), tools=tools, kwargs=kwargs))
            unknown = unknown_arguments(self.tokenizer, tools, kwargs)
            ids.unseen = [f"the chat template leaves out {what}" for what in sorted(left_out)]
            ids.unseen += [f"the chat template does not know {name} of chat_template_kwargs" for name in unknown]
        for (ids, name, rendering), silent in zip(suspects, render(self.tokenizer, requests), strict=True):
            if isinstance(silent, Rendered) and silent.text == rendering.text:
                ids.nothing_of = ids.nothing_of or name

    def _row(self, prompt: Rendered | BadRow, parts: Mapping[str, Sequence[Rendered | BadRow]]) -> _Ids | BadRow:
        if isinstance(prompt, BadRow):
            return prompt
        full: dict[str, list[int]] = {}
        masks: dict[str, list[int]] = {}
        for name, (whole, *turns) in parts.items():
            if isinstance(whole, BadRow):
                return whole
            full[name] = whole.ids
            if whole.mask is not None:
                masks[name] = whole.mask
            elif turns:
                try:
                    masks[name] = turn_mask(self.tokenizer, whole.ids, turns)
                except BadRow as bad:
                    return bad
        return _joined(prompt.ids, full, masks)

    def _finish(self, ids: _Ids) -> tuple[dict[str, Any] | BadRow, int]:
        """Flags, the first token, the limit on length and the last checks of one row."""
        flags = self._flags(ids)
        if ids.nothing_of:
            return BadRow(LEFT_EMPTY.format(name=ids.nothing_of)), flags
        for name in () if self.form.tokenised else self.branches:
            targets = ids.targets(name)
            if targets and self._blank(targets):
                return BadRow(f"{name} is empty"), flags
        if self.branches and not ids.prompt and not ids.move_first():
            return BadRow(NO_START), flags
        if not self.branches and not ids.prompt:
            return BadRow("prompt is empty"), flags
        if {"chosen", "rejected"} <= set(self.branches) and ids.branches["chosen"] == ids.branches["rejected"]:
            return BadRow(SAME_ANSWERS), flags
        lengths = {name: len(branch) for name, branch in ids.branches.items()}
        cut = fit(ids.prompt, lengths, max_length=self.max_length, truncation=self.truncation, bos=self.bos)
        if isinstance(cut, str):
            return BadRow(cut), flags
        out: dict[str, Any] = {"prompt_ids": cut.prompt}
        for name, branch in ids.branches.items():
            kept = branch[cut.spans[name]]
            mask = ids.masks.get(name, [1] * len(branch))[cut.spans[name]]
            if not any(mask):
                return BadRow(f"{name} has no target token left" if branch else f"{name} is empty"), flags
            out[f"{name}_ids"], out[f"{name}_mask"] = kept, mask
        if cut.truncated and "chosen_ids" in out and out["chosen_ids"] == out.get("rejected_ids"):
            return BadRow(SAME_AFTER_CUT), flags
        return out, flags | (TRUNCATED if cut.truncated else 0)

    def _blank(self, targets: Sequence[int]) -> bool:
        """Whether an answer is white space and end tokens alone. Other special tokens count as text, as labels may."""
        if any(map(self._word, targets[:_OPENING])):
            return False
        if self.tokenizer.decode(targets[:_OPENING], skip_special_tokens=True).strip():
            return False
        named = self.tokenizer
        ends = {named.eos_token_id, named.bos_token_id, named.pad_token_id, turn_end(named)}
        if set(targets[:_OPENING]) & (marks(named) - ends):
            return False
        return len(targets) <= _OPENING or self._blank(targets[_OPENING:])

    def _word(self, token: int) -> bool:
        """Whether a token alone has a letter or digit of ASCII, which stays what it is beside any other token."""
        if token not in self._words:
            text = self.tokenizer.decode([token], skip_special_tokens=True)
            self._words[token] = any(sign.isascii() and sign.isalnum() for sign in text)
        return self._words[token]

    def _flags(self, ids: _Ids) -> int:
        bos, eos = self.bos, self.eos
        flags = BOUNDARY if ids.parted else 0
        start = ids.prompt[:2]
        starts = [start + ids.branches[name][: 2 - len(start)] for name in self.branches] or [start]
        if bos is not None and [bos, bos] in starts:
            flags |= DOUBLE_BOS
        if eos is not None and eos != bos and any(branch[-2:] == [eos, eos] for branch in ids.branches.values()):
            flags |= DOUBLE_EOS
        return flags | (RUN_TOGETHER if ids.run_together else 0)


@dataclass
class _Ids:
    """Token ids of one row; ``parted`` where the prompt alone is tokenised otherwise than before an answer.

    ``unseen`` is what the model does not see of the row, ``nothing_of`` a branch of which nothing is left,
    ``run_together`` whether an answer goes on in the prompt's last word.
    """

    prompt: list[int]
    branches: dict[str, list[int]]
    masks: dict[str, list[int]]
    parted: bool = False
    unseen: list[str] = field(default_factory=list)
    nothing_of: str = ""
    run_together: bool = False

    def targets(self, name: str) -> list[int]:
        """The tokens of a branch that are trained on."""
        ids = self.branches[name]
        if name not in self.masks:
            return ids
        return [token for token, flag in zip(ids, self.masks[name], strict=True) if flag]

    def move_first(self) -> bool:
        """Make the first token of the branches the prompt, since nothing can predict it; False where they differ."""
        firsts = {branch[0] if branch else None for branch in self.branches.values()}
        if len(firsts) != 1 or None in firsts:
            return False
        self.prompt = [token for token in firsts if token is not None]
        self.branches = {name: branch[1:] for name, branch in self.branches.items()}
        self.masks = {name: mask[1:] for name, mask in self.masks.items()}
        return True


def _joined(prompt: list[int], full: Mapping[str, list[int]], masks: Mapping[str, list[int]] | None = None) -> _Ids:
    """Split each prompt + branch where it parts from the prompt alone, at the earliest place over the branches."""
    cut = min((common_prefix(prompt, ids) for ids in full.values()), default=len(prompt))
    branches = {name: ids[cut:] for name, ids in full.items()}
    return _Ids(prompt[:cut], branches, {n: mask[cut:] for n, mask in (masks or {}).items()}, cut < len(prompt))


def _run_together(prompt: str, answer: str) -> bool:
    """Whether a Latin letter meets another; many scripts write words without blanks."""
    meeting = prompt[-1:] + answer[:1]
    return len(meeting) == 2 and meeting.isascii() and meeting.isalpha()


def _silent(answer: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same turns, with nothing in those of the assistant."""
    return [{"role": "assistant", "content": ""} if turn["role"] == "assistant" else dict(turn) for turn in answer]
