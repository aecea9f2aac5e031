"""What the model sees of a row is compared with what the row says, after rendering."""

from __future__ import annotations

import json

import pytest
from datasets import disable_progress_bars
from sample_rows import PAIR, assistant, pair, system, talk_rows, user
from tiny import CHATML, CHATML_MARKED, tiny_tokenizer

from align.data.rows.sources import from_rows
from align.data.tokens.tokenize import prepare_rows

disable_progress_bars()

CONTENT = "(message['content'] or '')"
NO_SYSTEM = "{%- for message in messages if message['role'] != 'system' %}" + CHATML.split("messages %}", 1)[1]
NO_CALLS = CHATML.replace("message.get('tool_calls') or []", "[]")
NO_TOOLS = CHATML.replace("if tools", "if false")
THOUGHTS = CHATML.replace(
    "(message['content'] or '')", "message.get('reasoning_content', '') + (message['content'] or '')"
)
CUT_THOUGHTS = CHATML.replace(CONTENT, CONTENT + ".split('</think>')[-1].strip()")
FRAMED = CHATML.replace(
    CONTENT,
    "('<think>\n\n</think>\n\n' if message['role'] == 'assistant' else '') + " + CONTENT + ".split('##')[-1]",
)

TOOL = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "finds a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": 'such as "Rome"'}}},
    },
}


def call(arguments: object) -> dict:
    return {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "find", "arguments": arguments}}]}


def row(prompt: str = "Where is Paris?", chosen: dict | None = None, **columns: object) -> dict:
    return {
        "prompt": [user(prompt)],
        "chosen": [chosen or assistant("In France.")],
        "rejected": [assistant("Nobody knows.")],
        **columns,
    }


def account_of(rows: list[dict], template: str = CHATML, **options: object):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return prepare_rows(from_rows(rows), tokenizer, PAIR, **options)[1]


def left_out(rows: list[dict], template: str = CHATML, **options: object) -> dict[str, list[int]]:
    found = account_of(rows, template, **options).unseen
    return {what.removeprefix("the chat template leaves out "): tally.first for what, tally in found.items()}


class TestLeftOut:
    def test_system_text_of_the_row_and_of_the_recipe(self):
        rows = [row(), row()]
        rows[1]["prompt"] = [system("Be brief."), user("Where is Paris?")]
        account = account_of(rows, NO_SYSTEM)
        sentence = "Warning: the chat template leaves out system text, in 1 row (row 1); the model does not see it."
        assert sentence in account.summary()
        assert account.to_dict()["unseen"] == {"the chat template leaves out system text": {"count": 1, "first": [1]}}
        assert left_out(rows, NO_SYSTEM, system="Speak French.") == {"system text": [0, 1]}

    def test_a_text_that_stands_elsewhere_as_well(self):
        rows = [row("Be brief.")]
        rows[0]["prompt"].insert(0, system("Be brief."))
        assert len(left_out(rows, NO_SYSTEM)) == 1

    def test_tool_calls_whose_words_are_in_the_definitions_and_the_question(self):
        rows = [row(chosen=call({"city": "Paris"}) | {"content": "I look."}, tools=[TOOL])]
        assert left_out(rows, NO_CALLS) == {"tool calls": [0]}

    def test_tool_definitions(self):
        assert left_out([row(tools=[TOOL]), row()], NO_TOOLS) == {"tool definitions": [0]}

    @pytest.mark.parametrize("key", ["reasoning_content", "reasoning_text", "thinking", "thought"])
    def test_reasoning(self, key):
        rows = [row(), row(chosen=assistant("In France.") | {key: "Paris is a capital."})]
        assert left_out(rows) == {"reasoning": [1]}

    def test_thoughts_inside_the_content(self):
        rows = [row(chosen=assistant("<think>\nParis is a capital.\n</think>\n\nIn France.")), row()]
        assert left_out(rows, CUT_THOUGHTS) == {"assistant text": [0]}

    def test_a_stream(self):
        rows = from_rows([row() | {"prompt": [system("Be brief."), user("Where?")]}]).to_iterable_dataset()
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = NO_SYSTEM
        stream, account = prepare_rows(rows, tokenizer, PAIR)
        assert len(list(stream)) == 1
        assert [tally.count for tally in account.unseen.values()] == [1]

    def test_a_prompt_without_answers(self):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = NO_SYSTEM
        _, account = prepare_rows(from_rows([{"prompt": [system("Be brief."), user("Where?")]}]), tokenizer, ())
        assert list(account.unseen) == ["the chat template leaves out system text"]


class TestColumns:
    def test_a_system_column_opens_a_conversation(self):
        rows = [row(system="Be brief."), row(system=""), row(system="Be long.")]
        rows[2]["prompt"].insert(0, system("Speak French."))
        tokenizer = tiny_tokenizer()
        prepared, account = prepare_rows(from_rows(rows), tokenizer, PAIR, system="Be kind.")
        opened = [tokenizer.decode(ids).split("<|im_end|>")[0] for ids in prepared["prompt_ids"][:]]
        assert opened == [f"<|im_start|>system\n{text}" for text in ("Be brief.", "Be kind.", "Speak French.")]
        assert account.unread == []

    def test_one_beside_plain_text_is_not_seen(self):
        rows = [pair() | {"system": "Be brief.", "question": "The sky is", "id": 7, "note": None}]
        account = prepare_rows(from_rows(rows), tiny_tokenizer(chat=False), PAIR)[1]
        assert account.summary()[2:4] == [
            "Columns that the model does not see: system, id.",
            "Warning: system looks like a part of the prompt, but the model does not see it: write the text into the "
            "prompt, or map the column (columns: {prompt: ...}).",
        ]
        assert account.to_dict()["unread"] == ["system", "id"]

    def test_one_called_source_is_named_as_any_other(self):
        rows = [pair() | {"source": "crowd", "id": 7}]  # UltraFeedback's rows have such a column
        account = prepare_rows(from_rows(rows), tiny_tokenizer(chat=False), PAIR)[1]
        assert account.summary()[2] == "Columns that the model does not see: source, id."

    def test_a_column_that_a_bad_row_alone_leaves_aside(self):
        rows = [row(tools=[TOOL]) | {"chosen": None}, row(tools=[TOOL])]
        assert account_of(rows).unread == []


class TestNoFalseAlarm:
    @pytest.mark.parametrize("template", [CHATML, CHATML_MARKED, CUT_THOUGHTS])
    def test_rows_whose_texts_all_occur(self, template):
        assert left_out(talk_rows(), template) == {}

    def test_white_space_and_parts(self):
        stripped = CHATML.replace(CONTENT, CONTENT + " | trim | indent(2)")
        parts = [{"type": "text", "text": "One line.\n\n  And "}, {"type": "text", "text": "another.  \n"}]
        assert left_out([row("  Where is it?\n"), row(chosen={"role": "assistant", "content": parts})], stripped) == {}

    @pytest.mark.parametrize("arguments", [{"city": 'S\u00e3o "Paulo"\n', "count": 3}, {"deep": {"list": ["a\\b"]}}])
    @pytest.mark.parametrize("ascii", ["", "(ensure_ascii=true)"])
    def test_arguments_escaped_once_and_twice(self, arguments, ascii):
        template = CHATML.replace("call | tojson", f"call | tojson{ascii}")
        rows = [row(chosen=call(arguments), tools=[TOOL]), row(chosen=call(json.dumps(arguments)), tools=[TOOL])]
        assert left_out(rows[:1], template) == {}
        assert left_out(rows[1:], template) == {}

    def test_texts_in_another_order(self):
        moved = (
            "{%- for message in messages if message['role'] != 'system' %}{{ message['role'] + ': ' }}"
            "{%- if loop.first %}{{ messages[0]['content'] + ' / ' + (tools or []) | tojson }}{% endif %}"
            "{{ message['content'] | tojson }}\n{% endfor %}"
        )
        rows = [row('He said "find".', tools=[TOOL])]
        rows[0]["prompt"].insert(0, system("find a city"))
        assert left_out(rows, moved) == {}

    def test_types_of_tools_spelled_otherwise(self):
        typed = CHATML.replace(
            "tool | tojson", "tool.function.name + ': ' + tool.function.description + ' (city: str) '"
        )
        assert (
            left_out([row(tools=[TOOL | {"function": {"name": "find", "description": "finds a city"}}])], typed) == {}
        )


class TestTemplateArguments:
    def test_one_that_the_template_does_not_mention(self):
        rows = [row(chat_template_kwargs={"enable_thinkin": False})]
        assert account_of(rows).summary()[2] == (
            "Warning: the chat template does not know enable_thinkin of chat_template_kwargs, in 1 row (row 0); the "
            "model does not see it."
        )

    def test_one_that_it_knows(self):
        assert account_of([row(chat_template_kwargs={"enable_thinking": True})]).unseen == {}


class TestEmptyAnswers:
    def dropped(self, rows, template=CHATML):
        account = account_of(rows, template)
        return {reason: tally.first for reason, tally in account.dropped.items()}

    def test_a_call_that_is_not_rendered(self):
        rows = [row(), row(chosen=call({"city": "Paris"}), tools=[TOOL])]
        assert self.dropped(rows, NO_CALLS) == {"the chat template leaves nothing of chosen: it is empty": [1]}
        assert self.dropped(rows) == {}

    def test_thoughts_and_nothing_else(self):
        rows = [row(chosen=assistant("<think>\nParis.\n</think>\n")), row()]
        assert self.dropped(rows, CUT_THOUGHTS) == {"the chat template leaves nothing of chosen: it is empty": [0]}

    def test_the_template_s_own_words_are_no_answer(self):
        rows = [row(chosen=assistant("one##")), row(chosen=assistant("one##two"))]
        assert self.dropped(rows, FRAMED) == {"the chat template leaves nothing of chosen: it is empty": [0]}

    def test_reasoning_that_is_rendered_is_an_answer(self):
        rows = [row(chosen=assistant("") | {"reasoning_content": "Paris is a capital."})]
        assert self.dropped(rows, THOUGHTS) == {}
        assert self.dropped(rows) == {"the chat template leaves nothing of chosen: it is empty": [0]}

    def test_special_tokens_alone(self):
        assert self.dropped([row(chosen=assistant("<|im_end|>")), row()]) == {"chosen is empty": [0]}
        rows = [pair(), pair(chosen="<|endoftext|>"), pair(rejected=" " * 40 + "x")]
        _, account = prepare_rows(from_rows(rows), tiny_tokenizer(chat=False), PAIR)
        assert {reason: tally.first for reason, tally in account.dropped.items()} == {"chosen is empty": [1]}

    def test_a_special_token_that_is_a_label_is_an_answer(self):
        tokenizer = tiny_tokenizer(chat=False)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|yes|>", "<|no|>"]})
        rows = from_rows([pair(chosen="<|yes|>", rejected="<|no|>"), pair(chosen="<|endoftext|>", rejected="<|no|>")])
        prepared, account = prepare_rows(rows, tokenizer, PAIR)
        assert {reason: tally.first for reason, tally in account.dropped.items()} == {"chosen is empty": [1]}
        assert tokenizer.decode(prepared[0]["chosen_ids"]) == "<|yes|><|endoftext|>"
