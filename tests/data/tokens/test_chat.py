"""Conversations: chat templates, system messages, tools, and answers of several turns."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import Dataset, disable_progress_bars
from sample_rows import PAIR, assistant, pair, talk_rows, user
from tiny import CHATML_MARKED, tiny_tokenizer

from align.data.rows.sources import from_rows
from align.data.tokens.tokenize import prepare
from align.errors import UserError

disable_progress_bars()


class TestSeveralTurns:
    """An answer may hold turns of the user or of a tool; their tokens are no targets."""

    answer = (
        assistant("Three apples."),
        user("Are they green?"),
        assistant("Yes, they are."),
    )

    def masks(self, tokenizer, rows):
        ours, account = prepare(from_rows(rows), tokenizer, PAIR)
        assert account.rows_kept == len(rows), account.summary()
        return ours

    def spoken(self, tokenizer, row, name):
        ids, mask = np.array(row[f"{name}_ids"]), np.array(row[f"{name}_mask"], dtype=bool)
        return tokenizer.decode(ids[mask]), tokenizer.decode(ids[~mask])

    def row(self):
        return {"prompt": [user("How many?")], "chosen": list(self.answer), "rejected": [assistant("None.")]}

    def test_mask_from_the_template_alone(self):
        tokenizer = tiny_tokenizer()
        ours = self.masks(tokenizer, [self.row()])
        target, rest = self.spoken(tokenizer, ours[0], "chosen")
        assert target == "Three apples.<|im_end|>\nYes, they are.<|im_end|>\n"
        assert rest == "<|im_start|>user\nAre they green?<|im_end|>\n<|im_start|>assistant\n"
        assert set(ours[0]["rejected_mask"]) == {1}
        whole = tokenizer.apply_chat_template([user("How many?"), *self.answer], return_dict=True)["input_ids"]
        assert ours[0]["prompt_ids"] + ours[0]["chosen_ids"] == whole

    def test_mask_from_generation_markers(self):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = CHATML_MARKED
        target, rest = self.spoken(tokenizer, self.masks(tokenizer, [self.row()])[0], "chosen")
        assert target == "Three apples.<|im_end|>Yes, they are.<|im_end|>"
        assert rest == "\n<|im_start|>user\nAre they green?<|im_end|>\n<|im_start|>assistant\n\n"

    def test_a_tokenizer_in_python_does_without_generation_markers(self, monkeypatch):
        """It cannot say which characters its tokens are."""
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = CHATML_MARKED
        monkeypatch.setattr(type(tokenizer), "is_fast", property(lambda _: False))
        monkeypatch.setattr("align.data.tokens.chat._marked", None)
        target, _ = self.spoken(tokenizer, self.masks(tokenizer, [self.row()])[0], "chosen")
        assert target == "Three apples.<|im_end|>\nYes, they are.<|im_end|>\n"

    def test_tool_turns_and_calls(self):
        call = {"type": "function", "function": {"name": "count", "arguments": {"of": "apples"}}}
        row = self.row()
        row["chosen"] = [
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "3"},
            assistant("There are three."),
        ]
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = tokenizer.chat_template.replace(
            "(message['content'] or '')", "message.get('content', '')"
        )
        target, rest = self.spoken(tokenizer, self.masks(tokenizer, [row])[0], "chosen")
        assert json.dumps(call) in target
        assert target.endswith("There are three.<|im_end|>\n")
        assert rest == "<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n"

    def test_a_template_that_words_earlier_turns_anew(self):
        """Reasoning templates drop the thoughts of all turns but the last; then no prefix says where a turn ends."""
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = (
            "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
            "{%- if message['role'] == 'assistant' and not loop.last %}{{ message['content'].split('##')[-1] }}"
            "{%- else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
            "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        )
        row = self.row()
        row["chosen"][0] = assistant("thought##Three apples.")
        with pytest.raises(UserError, match=r"words earlier turns differently .* generation"):
            prepare(from_rows([row]), tokenizer, PAIR)

    def test_rows_without_such_turns_keep_all_targets(self):
        ours = self.masks(tiny_tokenizer(), [self.row(), talk_rows()[0]])
        assert min(ours[1]["chosen_mask"]) == 1

    def test_conversations_in_one_column(self):
        rows = [{"messages": [user("How many?"), *self.answer]}]
        tokenizer = tiny_tokenizer()
        ours, account = prepare(from_rows(rows), tokenizer, ("completion",))
        assert account.format == "conversations (messages), every assistant turn a target"
        assert self.spoken(tokenizer, ours[0], "completion")[0] == "Three apples.<|im_end|>\nYes, they are.<|im_end|>\n"


class TestConversations:
    def test_system_goes_first_unless_there_is_one(self):
        tokenizer = tiny_tokenizer()
        ours, _ = prepare(from_rows(talk_rows()[:2]), tokenizer, PAIR, system="Speak French.")
        first, second = (tokenizer.decode(row["prompt_ids"]) for row in ours)
        assert first.startswith("<|im_start|>system\nSpeak French.<|im_end|>\n<|im_start|>user\nWhat")
        assert "French" not in second

    def test_system_is_refused_for_plain_text(self):
        with pytest.raises(UserError, match="system is given, but the rows are not conversations"):
            prepare(from_rows([pair()]), tiny_tokenizer(), PAIR, system="Speak French.")

    def test_no_chat_template(self):
        with pytest.raises(UserError, match=r"has no chat template. Set model.chat_template to a Jinja file"):
            prepare(from_rows(talk_rows()), tiny_tokenizer(chat=False), PAIR)

    def test_rows_that_the_template_refuses(self):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = (
            "{%- for message in messages %}{% if message['role'] == 'system' %}"
            "{{ raise_exception('System role not supported') }}{% endif %}{% endfor %}" + tokenizer.chat_template
        )
        ours, account = prepare(from_rows(talk_rows()), tokenizer, PAIR)
        assert ours["row"][:] == [0, 2, 3]
        reason = "the chat template refuses the conversation (System role not supported)"
        assert account.dropped[reason].first == [1]

    def test_tools_keep_the_order_of_their_keys(self):
        """Whatever rows are rendered together: a template prints them as they come."""
        tools = [{"name": "look", "description": "d"}]
        rows = [
            row | {"tools": json.dumps(one)}
            for row in talk_rows()[:1]
            for one in (tools, [dict(sorted(tools[0].items()))])
        ]
        tokenizer = tiny_tokenizer()
        ours, _ = prepare(from_rows(rows), tokenizer, PAIR)
        alone = [prepare(from_rows([row]), tokenizer, PAIR)[0][0]["prompt_ids"] for row in rows]
        assert ours["prompt_ids"][:] == alone
        assert alone[0] != alone[1]

    def test_keys_of_other_rows_do_not_reach_the_template(self):
        """Arrow fills struct fields that a row does not have with None."""
        rows = talk_rows()
        rows[0]["tools"] = [{"name": "one", "parameters": {"a": 1}}]
        rows[1]["tools"] = [{"name": "two", "parameters": {"b": 2}}]
        tokenizer = tiny_tokenizer()
        ours, _ = prepare(Dataset.from_list(rows[:2]), tokenizer, PAIR)
        assert '{"name": "one", "parameters": {"a": 1}}' in tokenizer.decode(ours[0]["prompt_ids"])

    def test_prompts_only(self):
        rows = [{"prompt": [user("How many?")]}, {"prompt": [user("How many?"), assistant("At least")]}]
        tokenizer = tiny_tokenizer()
        ours, account = prepare(from_rows(rows), tokenizer, ())
        assert account.format == "prompts only, conversational"
        assert tokenizer.decode(ours[0]["prompt_ids"]).endswith("<|im_start|>assistant\n")
        assert tokenizer.decode(ours[1]["prompt_ids"]).endswith("<|im_start|>assistant\nAt least")
