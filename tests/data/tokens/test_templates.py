"""A chat template works in a process of its own, which may take so long and so much memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest
from tiny import CHATML, CHATML_MARKED, tiny_tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from align.data.tokens import templates
from align.data.tokens.arguments import keep_arguments
from align.data.tokens.chat import Request, render
from align.data.tokens.templates import Refusal, Text, rendered
from align.errors import UserError

TALK = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "That."}]
AGAIN = (
    "as none should: it is refused. Look into it before you use it, or set model.chat_template to a file with another."
)


def test_the_same_text_and_marks_as_in_this_process() -> None:
    for template in (CHATML, CHATML_MARKED):
        how = {"add_generation_prompt": False, "return_assistant_tokens_mask": template is CHATML_MARKED}
        texts, marks = render_jinja_template([TALK, TALK[:1]], chat_template=template, **how)
        found = rendered(template, [TALK, TALK[:1]], how)
        assert [one.text for one in found if isinstance(one, Text)] == texts
        if marks:
            assert [[tuple(mark) for mark in one.marked] for one in found if isinstance(one, Text)] == marks
            start, stop = marks[0][0]
            assert texts[0][start:stop] == "That.<|im_end|>"


LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set n = namespace(x='aaaa') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
LONG = "{% for i in range(90000) %}" + "a" * 400 + "{% endfor %}"
MEMORY = "needs more than 512 MiB of memory for one conversation"


@pytest.mark.parametrize(
    ("template", "what"),
    [
        (LOOPS, "works for more than 1 s on one conversation"),
        ("{{ 'a' * 99999999999 }}", MEMORY),
        ("{{ 'a'|center(9999999999) }}", MEMORY),
        (DOUBLING, MEMORY),
        (LONG, "makes more than 8,388,608 characters of one conversation"),
        ("a" * (1 << 20 | 1), "has more than 1,048,576 characters"),
    ],
    ids=["loops", "times", "centre", "doubling", "long", "large"],
)
def test_a_template_without_end_is_refused(template: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "range(99999)" in template:
        monkeypatch.setattr(templates, "TEMPLATE_SECONDS", 1.0)
    with pytest.raises(UserError) as error:
        rendered(template, [TALK], {})
    assert str(error.value) == f"The chat template {what}, {AGAIN}"
    assert [one.text for one in rendered("a", [TALK], {}) if isinstance(one, Text)] == ["a"]  # in a new process


def test_a_template_that_is_slow_for_each_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four hundred that take some thousandths of a second each, where half a second is allowed for all of them."""
    monkeypatch.setattr(templates, "TEMPLATE_SECONDS", 0.5)
    monkeypatch.setattr(templates, "TEMPLATE_MEAN_SECONDS", 1e-6)
    slow = "{% for i in range(60000) %}{% set x = i * 2 %}{% endfor %}"
    with pytest.raises(
        UserError, match=r"^The chat template works for \d s on \d+ conversations, as none should: it is"
    ):
        rendered(slow, [TALK] * 400, {})


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in range(999999999) %}{% endfor %}", "Range too big. The sandbox blocks ranges larger than"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "maximum recursion depth exceeded"),
        ("{{ raise_exception('roles  must alternate') }}", "roles must alternate"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_a_template_that_fails_refuses_one_conversation(template: str, reason: str) -> None:
    fine, bad = rendered("{% if messages|length > 1 %}" + template + "{% endif %}", [TALK[:1], TALK], {})
    assert fine == Text("", [])
    assert isinstance(bad, Refusal)
    assert bad.reason.startswith(reason)


def test_a_template_without_grammar_refuses_every_conversation() -> None:
    """Also where a date is to be written into it, for which it is taken apart before it is rendered."""
    tokenizer = tiny_tokenizer()
    for template, reason in (("{# no end", "Missing end of comment tag"), ("{% for %}", "Expected an expression, got")):
        tokenizer.chat_template = template
        for arguments in ({}, {"strftime_now": "2024-07-26"}):
            keep_arguments(tokenizer, arguments)
            (found,) = render(tokenizer, [Request(TALK)])
            assert str(found).startswith(f"the chat template refuses the conversation ({reason}")


def test_files_and_python_are_out_of_reach(tmp_path: Path) -> None:
    for template in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        f"{{% include '{__file__}' %}}",
        f"{{{{ cycler.__init__.__globals__.os.system('touch {tmp_path}/x') }}}}",
    ):
        (found,) = rendered(template, [TALK], {})
        assert isinstance(found, Refusal)
    assert not list(tmp_path.iterdir())


def test_the_process_ends_with_this_one() -> None:
    rendered("a", [TALK], {})
    process = templates._process()
    assert process.parent == os.getpid()
    child = psutil.Process(process._pid)
    assert child.parent() == psutil.Process()
    process._ours.close()  # as the end of this process does
    until = time.monotonic() + 10
    while child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.05)
    assert child.status() == psutil.STATUS_ZOMBIE
    process.end()
