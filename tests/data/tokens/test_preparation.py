"""Limits on length, the account of what was dropped, streams, and loading a tokenizer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from datasets import disable_progress_bars
from sample_rows import PAIR, assistant, decoded, hh_rows, pair, user
from tiny import tiny_tokenizer

from align.data.rows.sources import from_rows
from align.data.tokens.preparation import Preparation
from align.data.tokens.tokenize import load_tokenizer, prepare, prepare_rows
from align.errors import UserError

disable_progress_bars()


class TestTruncation:
    """Lengths are known exactly: one token per character outside the training texts."""

    prompt, chosen, rejected = list(range(10, 20)), list(range(30, 38)), list(range(50, 54))

    def cut(self, truncation, limit, tokenizer=None, **columns):
        row = {"prompt_ids": self.prompt, "chosen_ids": self.chosen, "rejected_ids": self.rejected} | columns
        ours, account = prepare(
            from_rows([row]), tokenizer or tiny_tokenizer(), PAIR, max_length=limit, truncation=truncation
        )
        return ours[0], account

    def test_what_fits_is_left_alone(self):
        row, account = self.cut("keep_start", 18)
        assert (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) == (self.prompt, self.chosen, self.rejected)
        assert account.truncated.count == 0

    def test_drop(self):
        with pytest.raises(UserError, match=r"No row of 1 can be used: longer than 17 tokens \(1 row\)\.$"):
            self.cut("drop", 17)

    def test_keep_start_as_trl_does(self):
        row, account = self.cut("keep_start", 13)
        assert (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) == (self.prompt, [30, 31, 32], [50, 51, 52])
        assert account.truncated_share == 1.0

    def test_keep_start_where_the_prompt_fills_everything(self):
        with pytest.raises(UserError, match="the prompt alone fills 10 tokens"):
            self.cut("keep_start", 10)

    def test_keep_end_cuts_the_shared_prompt_first(self):
        row, _ = self.cut("keep_end", 12)
        assert (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) == (
            [16, 17, 18, 19],
            self.chosen,
            self.rejected,
        )
        row, _ = self.cut("keep_end", 6)
        assert (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) == (
            [19],
            [33, 34, 35, 36, 37],
            self.rejected,
        )

    def test_prompt_left_keeps_bos_and_never_cuts_an_answer(self):
        tokenizer = tiny_tokenizer(bos=True)
        bos = tokenizer.bos_token_id
        row, _ = self.cut("prompt_left", 12, tokenizer, prompt_ids=[bos, *self.prompt])
        assert (row["prompt_ids"], row["chosen_ids"]) == ([bos, 17, 18, 19], self.chosen)
        row, _ = self.cut("prompt_left", 12)
        assert row["prompt_ids"] == [16, 17, 18, 19]
        with pytest.raises(UserError, match="leaves no room for the prompt within 9 tokens"):
            self.cut("prompt_left", 9, tokenizer, prompt_ids=[bos, *self.prompt])

    def test_masks_are_cut_along_and_a_row_without_targets_goes(self):
        mask = [0, 0, 0, 0, 0, 1, 1, 1]
        row, _ = self.cut("keep_start", 16, chosen_mask=mask)
        assert row["chosen_mask"] == [0, 0, 0, 0, 0, 1]
        assert row["rejected_mask"] == [1, 1, 1, 1]
        with pytest.raises(UserError, match="chosen has no target token left"):
            self.cut("keep_start", 15, chosen_mask=mask)

    def test_a_mask_loses_its_beginning_with_its_answer(self):
        answer = {"chosen_ids": list(range(30, 36)), "chosen_mask": [1, 0, 0, 1, 1, 0]}
        row, _ = self.cut("keep_end", 5, prompt_ids=[10, 11, 12], **answer)
        assert (row["prompt_ids"], row["chosen_ids"]) == ([12], [32, 33, 34, 35])
        assert row["chosen_mask"] == [0, 1, 1, 0]

    def test_answers_that_become_equal(self):
        with pytest.raises(UserError, match="equal once they are cut"):
            self.cut("keep_start", 12, rejected_ids=[30, 31, 99])

    @pytest.mark.parametrize("truncation", ["drop", "keep_start", "keep_end", "prompt_left"])
    @pytest.mark.parametrize("limit", [24, 40, 64, 100])
    def test_every_policy_on_real_rows(self, truncation, limit):
        rows = hh_rows(40)
        tokenizer = tiny_tokenizer([row["prompt"] for row in rows], vocab=2000, chat=False, bos=True)
        whole, _ = prepare(from_rows(rows), tokenizer, PAIR)
        try:
            ours, account = prepare(from_rows(rows), tokenizer, PAIR, max_length=limit, truncation=truncation)
        except UserError:
            return
        assert account.rows_in == 40
        assert account.rows_kept == len(ours)
        assert sum(tally.count for tally in account.dropped.values()) == 40 - len(ours)
        for row in ours:
            longest = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
            assert 1 <= len(row["prompt_ids"]) <= limit - longest
            assert min(len(row["chosen_ids"]), len(row["rejected_ids"])) >= 1
            if truncation == "prompt_left":
                before = whole[row["row"]]
                assert row["prompt_ids"][0] == tokenizer.bos_token_id
                assert (row["chosen_ids"], row["rejected_ids"]) == (before["chosen_ids"], before["rejected_ids"])

    def test_an_unknown_policy(self):
        with pytest.raises(UserError, match="'middle' is not known; expected one of drop, keep_start, keep_end"):
            self.cut("middle", 10)

    def test_a_limit_without_room_is_refused_by_every_policy(self):
        for truncation in ("drop", "keep_start", "keep_end", "prompt_left"):
            with pytest.raises(UserError, match=r"data\.max_length: 1 leaves no room; expected at least 2 tokens"):
                self.cut(truncation, 1)


class TestAccount:
    def test_faulty_rows_are_dropped_and_counted_with_their_reason(self):
        rows = [pair(), pair(chosen=""), pair(chosen=None), pair(rejected=3), pair(rejected=" blue."), pair(prompt=" ")]
        ours, account = prepare(from_rows(rows), tiny_tokenizer(chat=False), PAIR)
        assert ours["row"][:] == [0, 5]
        assert {reason: tally.first for reason, tally in account.dropped.items()} == {
            "chosen is empty": [1],
            "chosen is missing": [2],
            "rejected is not text": [3],
            "chosen equals rejected": [4],
        }
        assert account.summary()[:2] == ["Format: preference, standard, explicit prompt.", "2 rows of 6 kept."]

    def test_a_chat_template_that_is_not_used_is_told(self):
        def told(row: dict, chat: bool, branches: tuple[str, ...] = PAIR) -> bool:
            _, account = prepare(from_rows([row]), tiny_tokenizer(chat=chat), branches)
            assert Preparation.of_record(account.record()) == account
            return any(line.startswith("warning: the rows are plain text, so the") for line in account.summary())

        turn = [{"role": "user", "content": "The sky is"}]
        answers = {key: [{"role": "assistant", "content": key}] for key in PAIR}
        assert told(pair(), True)
        assert not told(pair(), False)  # of a base model nothing is left out
        assert not told({"prompt": turn, **answers}, True)
        assert not told({"text": "The sky is blue."}, True, ("completion",))

    def test_words_that_run_together_are_told(self):
        rows = [pair("A game tonight", "This one", " That one"), pair("A game tonight ", "This one", "That one")]
        _, account = prepare(from_rows(rows), tiny_tokenizer(chat=False), PAIR)
        assert account.to_dict()["run_together"] == {"count": 1, "first": [0]}
        assert (
            "Warning: in 1 row the last word of the prompt and the first one of an answer become one word (row 0); "
            "end prompts with a blank or a line break."
        ) in account.summary()

    def test_lengths(self):
        tokenizer = tiny_tokenizer(chat=False)
        ours, account = prepare(from_rows([pair(), pair("It is", " a", " the book")]), tokenizer, PAIR)
        lengths = [len(ids) for ids in ours["chosen_ids"]]
        assert account.lengths["chosen"].total == sum(lengths)
        assert account.lengths["chosen"].longest == max(lengths)
        assert account.lengths["chosen"].quantile(0.5) == min(lengths)
        assert account.to_dict()["tokens"]["chosen"]["mean"] == pytest.approx(np.mean(lengths))

    def test_streams_count_as_they_are_read(self):
        rows = [pair(), pair(chosen=""), pair("It is", " a", " the book"), pair("Who", " is it?", " is that?")]
        tokenizer = tiny_tokenizer(chat=False)
        whole, _ = prepare(from_rows(rows), tokenizer, PAIR)
        stream, account = prepare(from_rows(rows).to_iterable_dataset(), tokenizer, PAIR)
        assert account.rows_in == 0
        assert list(stream) == whole.to_list()
        assert (account.rows_in, account.rows_kept) == (4, 3)
        assert account.dropped["chosen is empty"].first == [1]

    def test_streams_say_what_is_left_out_as_it_grows(self, capsys):
        """A stream has no end at which it could be said: at the first row, the tenth, the hundredth."""
        rows = [pair(), *[pair(chosen="")] * 149, *[pair("It is", " a", " the book")] * 300]
        stream, account = prepare(from_rows(rows).to_iterable_dataset(), tiny_tokenizer(chat=False), PAIR)
        assert capsys.readouterr().err == ""
        assert len(list(stream)) == 301
        said = capsys.readouterr().err.splitlines()
        assert [line.split(": chosen is empty")[0] for line in said] == [
            f"The stream so far: 1 row of {read} kept. {read - 1} rows dropped" for read in (64, 128)
        ]
        assert account.dropped["chosen is empty"].count == 149

    def test_a_stream_of_which_nothing_is_left_is_refused(self, monkeypatch):
        stream = from_rows([pair(chosen="")] * 70).to_iterable_dataset()
        with pytest.raises(UserError, match=r"^No row of 70 can be used: chosen is empty \(70 rows\)\.$"):
            prepare(stream, tiny_tokenizer(chat=False), PAIR)
        monkeypatch.setattr("align.data.tokens.tokenize._HOPELESS", 64)
        with pytest.raises(UserError, match=r"^No row of 64 can be used"):
            prepare(stream, tiny_tokenizer(chat=False), PAIR)

    def test_columns_are_what_the_collator_reads(self):
        rows = from_rows([pair() | {"margin": 2, "note": "x"}, pair() | {"margin": None, "note": "y"}])
        ours, account = prepare(rows, tiny_tokenizer(chat=False), PAIR, values=["margin"])
        assert ours.column_names == ["prompt_ids", "chosen_ids", "rejected_ids", "margin", "row"]
        assert ours["margin"][:] == [2.0, None]
        assert account.unread == ["note"]

    def test_numbers_that_nobody_asked_for_are_said_to_be_unread(self):
        ours, account = prepare(from_rows([pair() | {"margin": 2}]), tiny_tokenizer(chat=False), PAIR)
        assert "margin" not in ours.column_names
        assert account.unread == ["margin"]

    @pytest.mark.parametrize(
        ("value", "reasons"),
        [
            (0.5, []),
            (None, []),
            (1.5, ["preference is not between 0 (rejected is better) and 1 (chosen is better)"]),
            ("A", ["preference is not a finite number"]),
            (True, ["preference is not a finite number"]),
        ],
    )
    def test_a_preference_is_a_probability(self, value, reasons):
        rows = from_rows([pair() | {"preference": value}])
        _, account = prepare_rows(rows, tiny_tokenizer(chat=False), PAIR, values=["preference"])
        assert list(account.dropped) == reasons

    def test_any_branch_that_an_objective_names(self):
        rows = [{"prompt": "Who is it?", "forget": " Anna.", "alternate": " Nobody knows."}]
        tokenizer = tiny_tokenizer(chat=False)
        ours, account = prepare(from_rows(rows), tokenizer, ("forget", "alternate"))
        assert account.format == "prompt with forget and alternate, standard"
        assert decoded(tokenizer, ours[0], "forget", "alternate") == [
            " Anna.<|endoftext|>",
            " Nobody knows.<|endoftext|>",
        ]

    def test_one_branch_of_a_pair(self):
        ours, _ = prepare(from_rows([pair()]), tiny_tokenizer(chat=False), ("chosen",))
        assert ours.column_names == ["prompt_ids", "chosen_ids", "row"]

    def test_no_eos_token(self):
        tokenizer = tiny_tokenizer(chat=False)
        tokenizer.eos_token = None
        with pytest.raises(UserError, match="has no EOS token"):
            prepare(from_rows([pair()]), tokenizer, PAIR)


class TestLoadTokenizer:
    def section(self, **fields):
        return SimpleNamespace(**({"id": "", "tokenizer": None, "revision": None, "chat_template": None} | fields))

    def test_pad_falls_back_to_eos_and_eos_stays(self, tmp_path):
        tokenizer = tiny_tokenizer(chat=False)
        tokenizer.pad_token = None
        tokenizer.save_pretrained(tmp_path)
        loaded = load_tokenizer(self.section(id=str(tmp_path)))
        assert loaded.pad_token == loaded.eos_token == "<|endoftext|>"
        ours, _ = prepare(from_rows([pair()]), loaded, PAIR)
        assert ours[0]["chosen_ids"][-1] == loaded.eos_token_id

    def test_a_template_of_ones_own(self, tmp_path):
        tiny_tokenizer(chat=False).save_pretrained(tmp_path / "model")
        (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m['content'] }}|{% endfor %}", encoding="utf-8")
        section = self.section(id="model", chat_template="chat.jinja")
        loaded = load_tokenizer(section, base=tmp_path)
        assert loaded.apply_chat_template([user("a"), assistant("b")], tokenize=False) == "a|b|"
        with pytest.raises(UserError, match=r"model.chat_template: .*other.jinja cannot be read"):
            load_tokenizer(self.section(id="model", chat_template="other.jinja"), base=tmp_path)

    def test_nothing_to_load(self, tmp_path):
        with pytest.raises(UserError, match=r"no tokenizer could be loaded from .*nowhere"):
            load_tokenizer(self.section(id=str(tmp_path / "nowhere")))
