"""Template arguments: what the template is given, on which day, and what is said of arguments that it never reads."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from datasets import Dataset
from tiny import CHATML, tiny_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from align.data.rows.formats import BadRow
from align.data.tokens.arguments import keep_arguments, kept_arguments, unused_arguments
from align.data.tokens.chat import Rendered, Request, render
from align.data.tokens.tokenize import prepare
from align.errors import UserError
from align.recipe.template_arguments import dated

# as Llama 3's templates ask for the date
DATED = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{ 'Today Date: ' + date_string + '\n' }}" + CHATML
)
MESSAGES = [{"role": "user", "content": "Who wrote the book?"}]


def dated_tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = DATED
    return tokenizer


def first_line(tokenizer: PreTrainedTokenizerBase, **own: object) -> str:
    rendered = render(tokenizer, [Request(MESSAGES, prompt=True, kwargs=own)])[0]
    assert isinstance(rendered, Rendered)
    return tokenizer.decode(rendered.ids).split("\n")[0]


def test_the_date_of_a_tokenizer_is_rendered_on_any_day() -> None:
    tokenizer = dated_tokenizer()
    assert first_line(tokenizer) == f"Today Date: {datetime.now():%d %b %Y}"
    keep_arguments(tokenizer, dated({"strftime_now": "2024-07-26"}))
    assert first_line(tokenizer) == "Today Date: 26 Jul 2024"
    keep_arguments(tokenizer, {"strftime_now": "2024-07-26T23:59:58"})
    tokenizer.chat_template = "\n  {{ strftime_now('%Y-%m-%d %H:%M:%S') + '\n' }}" + CHATML
    rendered = render(tokenizer, [Request(MESSAGES)])[0]
    assert isinstance(rendered, Rendered)
    assert tokenizer.decode(rendered.ids) == (
        "\n  2024-07-26 23:59:58\n<|im_start|>user\nWho wrote the book?<|im_end|>\n"
    )
    tokenizer.chat_template = "{{ strftime_now('%d' ~ '%m') }}" + CHATML
    assert str(render(tokenizer, [Request(MESSAGES)])[0]) == (
        "the chat template refuses the conversation (its date has a format that is put together while rendering)"
    )


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ strftime_now(format='%d %b') }}", "26 Jul"),  # the name of the argument in transformers
        ("{{ 'of this\n100% sure, ' + strftime_now(\"%d o'clock\") }}", "of this\n100% sure, 26 o'clock"),
        ("{%- set now = strftime_now %}{{ now('%Y\\u5e74') }}", "2024\u5e74"),
        ("{%- macro day() %}{{ strftime_now('%A') }}{% endmacro %}{{ day() | upper }}", "FRIDAY"),
    ],
)
def test_a_date_is_rendered_however_a_template_asks_for_it(template: str, text: str) -> None:
    tokenizer = dated_tokenizer()
    tokenizer.chat_template = template
    keep_arguments(tokenizer, {"strftime_now": "2024-07-26"})
    rendered = render(tokenizer, [Request(MESSAGES)])[0]
    assert isinstance(rendered, Rendered)
    assert rendered.text == text


def test_each_of_several_templates_gets_the_date() -> None:
    tokenizer = tiny_tokenizer()
    use = '{% if strftime_now is defined %}{{ strftime_now("%j") }}{% endif %}'
    tokenizer.chat_template = {"default": "a" + use, "tool_use": "b" + use}
    keep_arguments(tokenizer, {"strftime_now": "2024-02-01"})
    tool = {"type": "function", "function": {"name": "look"}}
    plain, tools = render(tokenizer, [Request(MESSAGES), Request(MESSAGES, tools=[tool])])
    assert isinstance(plain, Rendered)
    assert isinstance(tools, Rendered)
    assert (tokenizer.decode(plain.ids), tokenizer.decode(tools.ids)) == ("a032", "b032")


def test_a_variable_for_the_date_wins_over_the_clock_and_a_row_over_both() -> None:
    tokenizer = dated_tokenizer()
    keep_arguments(tokenizer, {"strftime_now": "2024-07-26", "date_string": "1 May 1999"})
    assert first_line(tokenizer) == "Today Date: 1 May 1999"
    assert first_line(tokenizer, date_string="2 June 2001") == "Today Date: 2 June 2001"
    keep_arguments(tokenizer, {"strftime_now": "2024-07-26"})
    assert first_line(tokenizer, strftime_now="1990-01-02") == "Today Date: 02 Jan 1990"
    refused = render(tokenizer, [Request(MESSAGES, kwargs={"strftime_now": "yesterday"})])[0]
    assert isinstance(refused, BadRow)
    assert "Invalid isoformat string: 'yesterday'" in str(refused)


def test_arguments_are_saved_with_the_tokenizer_and_replaced_as_a_whole(tmp_path: Path) -> None:
    tokenizer = dated_tokenizer()
    assert kept_arguments(tokenizer) == {}
    keep_arguments(tokenizer, {"enable_thinking": False, "strftime_now": "2024-07-26"})
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert kept_arguments(again) == {"enable_thinking": False, "strftime_now": "2024-07-26"}
    assert first_line(again) == "Today Date: 26 Jul 2024"
    keep_arguments(again, {"date_string": "now"})
    assert kept_arguments(again) == {"date_string": "now"}


def test_rows_prepared_under_other_arguments_are_not_taken_from_the_cache(tmp_path: Path) -> None:
    row = {"prompt": MESSAGES, "completion": [{"role": "assistant", "content": "A person."}]}
    Dataset.from_list([row]).to_json(tmp_path / "rows.jsonl")
    seen = []
    for date in ("2024-07-26", "2024-07-27", "2024-07-26"):
        tokenizer = dated_tokenizer()
        keep_arguments(tokenizer, {"strftime_now": date})
        rows = Dataset.from_json(str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "cache"))
        prepared, _ = prepare(rows, tokenizer, ("completion",))
        seen.append(tokenizer.decode(next(iter(prepared))["prompt_ids"]).split("\n")[0])
    assert seen == [f"Today Date: {day} Jul 2024" for day in (26, 27, 26)]


def test_an_argument_that_the_template_never_reads_is_said() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{# add_comment #}a_text" + CHATML
    given = {"enable_thinkin": True, "enable_thinking": True, "strftime_now": "2024-07-26", "add_comment": 1}
    assert unused_arguments(tokenizer, {**given, "a_text": 1}) == [
        "the template argument enable_thinkin changes nothing: the chat template never reads it. "
        "Did you mean 'enable_thinking'?",
        "the template argument add_comment changes nothing: the chat template never reads it.",
        "the template argument a_text changes nothing: the chat template never reads it.",
    ]
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ enable_thinking }}"}
    assert unused_arguments(tokenizer, {"enable_thinking": True}) == []
    plain = tiny_tokenizer(chat=False)
    assert unused_arguments(plain, given)[0] == (
        "the template argument enable_thinkin changes nothing: the tokenizer of the model has no chat template"
    )


def test_a_run_is_dated_by_its_start_unless_it_names_a_date() -> None:
    before = datetime.now().replace(microsecond=0)
    found = dated({"enable_thinking": False})
    assert before <= datetime.fromisoformat(found.pop("strftime_now")) <= datetime.now()
    assert found == {"enable_thinking": False}
    assert dated({"strftime_now": "2024-07-26"}) == {"strftime_now": "2024-07-26"}
    with pytest.raises(UserError, match="template_arguments: tools is set from the rows and cannot be a template"):
        dated({"tools": []})
