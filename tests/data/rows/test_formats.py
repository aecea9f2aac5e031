"""Recognising formats by name, bringing them to one form, and the sentence where that cannot be done."""

from __future__ import annotations

import gzip
import json

import pytest
from sample_rows import assistant, real, system, user

from align.data.rows.formats import recognise, to_canonical
from align.data.rows.text import common_messages, split_hh, split_shared_text
from align.data.rows.values import BadRow
from align.errors import UserError

PAIR = ("chosen", "rejected")
ASK, YES, NO = user("Is it?"), assistant("Yes."), assistant("No.")


def canonical(row, branches=()):
    return to_canonical(row, recognise(row, branches=branches))


class TestNames:
    @pytest.mark.parametrize(
        ("row", "name"),
        [
            ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference, standard, explicit prompt"),
            ({"chosen": "a b", "rejected": "a c"}, "preference, standard, implicit prompt"),
            ({"prompt": [ASK], "chosen": [YES], "rejected": [NO]}, "preference, conversational, explicit prompt"),
            ({"chosen": [ASK, YES], "rejected": [ASK, NO]}, "preference, conversational, implicit prompt"),
            (
                {
                    "prompt": "Is it?",
                    "chosen": [ASK, YES],
                    "rejected": [ASK, NO],
                    "score_chosen": 1.0,
                    "messages": [ASK, YES],
                },
                "preference, conversational, implicit prompt (the prompt column repeats the first turn)",
            ),
            (
                {"prompt": [ASK], "chosen": [ASK, YES], "rejected": [ASK, NO]},
                "preference, conversational, explicit prompt (repeated in the answers, taken off)",
            ),
            (
                {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
                "preference, HH-RLHF transcripts",
            ),
            (
                {
                    "conversations": [{"from": "human", "value": "a"}],
                    "chosen": {"from": "gpt", "value": "b"},
                    "rejected": "c",
                },
                "preference, ShareGPT (conversations with chosen and rejected)",
            ),
            ({"prompt": "a", "completion": "b"}, "prompt and completion, standard"),
            ({"prompt": [ASK], "completion": [YES]}, "prompt and completion, conversational"),
            ({"prompt": "a", "completion": "b", "label": True}, "unpaired preference, standard"),
            (
                {"messages": [ASK, YES], "label": False},
                "unpaired preference, conversational (messages with a label on the last answer)",
            ),
            ({"messages": [ASK, YES]}, "conversations (messages), every assistant turn a target"),
            ({"text": "a"}, "plain text (text), all of it a target"),
            ({"prompt": "a"}, "prompts only, standard"),
            ({"prompt": [ASK]}, "prompts only, conversational"),
            (
                {
                    "prompt_ids": [1],
                    "chosen_ids": [2],
                    "rejected_ids": [3],
                    "prompt": "a",
                    "chosen": "b",
                    "rejected": "c",
                },
                "already tokenised (prompt_ids, chosen_ids, rejected_ids)",
            ),
            ({"prompt_ids": [1], "completion_ids": [2]}, "already tokenised (prompt_ids, completion_ids)"),
        ],
    )
    def test_said_aloud(self, row, name):
        assert recognise(row).name == name

    def test_the_objective_decides_where_a_row_offers_several(self):
        row = {"prompt": "a", "chosen": "b", "rejected": "c", "completion": "d", "label": 1, "forget": "e"}
        assert recognise(row, branches=PAIR).kind == "preference"
        assert recognise(row, branches=("chosen",)).kind == "preference"
        assert recognise(row, branches=("completion",)).kind == "unpaired"
        assert recognise(row, branches=("forget", "chosen")).branches == ("forget", "chosen")
        assert recognise({"prompt_ids": [1], "forget_ids": [2]}, branches=("forget",)).tokenised


class TestCanonical:
    def test_implicit_conversation(self):
        row = {"chosen": [system("s"), ASK, YES], "rejected": [system("s"), ASK, NO]}
        assert canonical(row) == {"prompt": [system("s"), ASK], "chosen": [YES], "rejected": [NO]}

    def test_one_conversation_goes_on_where_the_other_ends(self):
        row = {"chosen": [ASK, YES], "rejected": [ASK, YES, user("Sure?"), NO]}
        assert canonical(row) == {"prompt": [ASK], "chosen": [YES], "rejected": [YES, user("Sure?"), NO]}

    def test_prompt_as_text_and_answers_as_messages(self):
        assert canonical({"prompt": "Is it?", "chosen": [YES], "rejected": [NO]})["prompt"] == [ASK]
        assert canonical({"prompt": [ASK], "chosen": "Yes.", "rejected": "No."})["chosen"] == [YES]

    def test_prompt_repeated_in_the_answers(self):
        row = {"prompt": [ASK], "chosen": [ASK, YES], "rejected": [ASK, NO]}
        assert canonical(row) == {"prompt": [ASK], "chosen": [YES], "rejected": [NO]}

    @pytest.mark.parametrize("key", ["id", "timestamp", "annotator", "weight", "metadata"])
    def test_keys_that_no_template_renders_may_differ(self, key):
        def talk(number, answer):
            return [ASK | {key: number}, YES | {key: number + 1}, ASK | {key: None}, answer | {key: number + 2}]

        row = {"chosen": talk(1, YES), "rejected": talk(5, NO)}
        out = canonical(row)
        assert len(out["prompt"]) == 3
        assert (out["prompt"][0], out["chosen"]) == (ASK | {key: 1}, [YES | {key: 3}])
        named = row | {"prompt": talk(9, YES)[:3]}
        assert recognise(named).name.endswith("explicit prompt (repeated in the answers, taken off)")
        assert canonical(named)["rejected"] == [NO | {key: 7}]

    @pytest.mark.parametrize("key", ["name", "reasoning_content", "tool_calls", "tool_call_id"])
    def test_keys_that_templates_render_count(self, key):
        row = {"chosen": [ASK, YES | {key: "a"}, ASK, YES], "rejected": [ASK, YES | {key: "b"}, ASK, NO]}
        assert canonical(row)["prompt"] == [ASK]
        with pytest.raises(BadRow, match="share no prompt"):
            recognise(row).canonical({"chosen": [ASK | {key: "a"}, YES], "rejected": [ASK | {key: "b"}, NO]})

    def test_sharegpt(self):
        row = {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "Is it?"},
                {"from": "gpt", "value": "Yes."},
                {"from": "human", "value": "Is it?"},
            ],
            "chosen": {"from": "gpt", "value": "Yes."},
            "rejected": {"from": "gpt", "value": "No."},
        }
        assert canonical(row) == {"prompt": [system("s"), ASK, YES, ASK], "chosen": [YES], "rejected": [NO]}

    def test_label_on_the_last_answer(self):
        row = {"messages": [ASK, NO, ASK, YES], "label": 1}
        assert canonical(row) == {"prompt": [ASK, NO, ASK], "completion": [YES], "label": True}

    @pytest.mark.parametrize(("given", "label"), [(True, True), (0, False), ("False", False), ("1", True)])
    def test_labels(self, given, label):
        assert canonical({"prompt": "a", "completion": "b", "label": given})["label"] is label

    def test_tools_and_template_arguments(self):
        tools = [{"name": "f", "parameters": {"a": None, "b": 1}}]
        row = {
            "prompt": [ASK],
            "completion": [YES],
            "tools": json.dumps(tools),
            "chat_template_kwargs": {"x": 1, "y": None},
        }
        out = canonical(row)
        assert out["tools"] == [{"name": "f", "parameters": {"b": 1}}]
        assert out["chat_template_kwargs"] == {"x": 1}
        assert "tools" not in canonical(row | {"tools": []})

    def test_keys_that_arrow_filled_in(self):
        filled = {"tool_calls": None, "name": None}
        row = {"prompt": [ASK | filled], "chosen": [YES | filled], "rejected": [NO | filled], "label": None}
        assert canonical(row) == {"prompt": [ASK], "chosen": [YES], "rejected": [NO]}

    def test_text_in_parts(self):
        parts = [{"type": "text", "text": "Is "}, {"type": "text", "text": "it?", "image": None}]
        assert canonical({"prompt": [{"role": "user", "content": parts}], "completion": [YES]})["prompt"] == [ASK]

    def test_real_sharegpt_and_kto_rows(self):
        with gzip.open(real("text/llamafactory_dpo_en_demo.json.gz"), "rt") as file:
            pairs = [canonical(row) for row in json.load(file)]
        assert {len(row["chosen"]) for row in pairs} == {1}
        assert {row["prompt"][-1]["role"] for row in pairs} == {"user"}
        with gzip.open(real("text/llamafactory_kto_en_demo.json.gz"), "rt") as file:
            labelled = [canonical(row) for row in json.load(file)]
        assert len(labelled) == 300
        assert {row["completion"][0]["role"] for row in labelled} == {"assistant"}

    def test_real_transcripts(self):
        good, bad = 0, {}
        with gzip.open(real("hh_rlhf/original/helpful-base/test.jsonl.gz"), "rt") as lines:
            rows = [json.loads(line) for line in lines]
        form = recognise(rows[0])
        for row in rows:
            try:
                out = form.canonical(row)
            except BadRow as reason:
                bad[str(reason)] = bad.get(str(reason), 0) + 1
                continue
            good += 1
            assert out["prompt"].endswith("\n\nAssistant:")
            assert out["prompt"] + out["chosen"] == row["chosen"]
            assert "\n\nHuman:" not in out["chosen"] + out["rejected"]
        assert (good, bad) == (2350, {"rejected is empty": 4})


class TestBadRows:
    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"prompt": [ASK], "chosen": None, "rejected": [NO]}, "chosen is missing"),
            ({"prompt": [ASK], "chosen": [], "rejected": [NO]}, "chosen has no messages"),
            ({"prompt": [ASK], "chosen": [{"content": "x"}], "rejected": [NO]}, "a message of chosen has no role"),
            ({"prompt": [ASK], "chosen": ["x"], "rejected": [NO]}, "chosen is not a list of messages"),
            ({"prompt": [ASK], "chosen": [user("x")], "rejected": [NO]}, "chosen holds no assistant turn"),
            ({"prompt": [ASK], "chosen": [assistant(" ")], "rejected": [NO]}, "chosen is empty"),
            (
                {"prompt": [ASK], "chosen": [assistant(None)], "rejected": [NO]},
                "a message of chosen has no text in content",
            ),
            ({"prompt": [ASK], "chosen": [YES], "rejected": [NO], "tools": "{"}, "tools is not valid JSON"),
            (
                {"prompt": [ASK | {"content": [{"type": "image"}]}], "chosen": [YES], "rejected": [NO]},
                "a message of prompt holds something other than text (images are not supported)",
            ),
        ],
    )
    def test_conversations(self, row, reason):
        form = recognise({"prompt": [ASK], "chosen": [YES], "rejected": [NO]})
        with pytest.raises(BadRow) as error:
            form.canonical(row)
        assert str(error.value) == reason

    @pytest.mark.parametrize(
        ("good", "row", "reason"),
        [
            (
                {"chosen": [ASK, YES], "rejected": [ASK, NO]},
                {"chosen": [ASK, YES], "rejected": [user("?"), NO]},
                "share no prompt",
            ),
            ({"messages": [ASK, YES]}, {"messages": [ASK]}, "messages holds no assistant turn"),
            (
                {"messages": [ASK, YES]},
                {"messages": [YES, ASK]},
                "starts with an assistant turn, so there is no prompt",
            ),
            (
                {"prompt": "a", "completion": "b", "label": True},
                {"prompt": "a", "completion": "b", "label": "perhaps"},
                "label is none of true, false, 1 and 0",
            ),
            (
                {"prompt_ids": [1], "completion_ids": [2]},
                {"prompt_ids": [1], "completion_ids": [2, 3], "completion_mask": [1]},
                "completion_mask and completion_ids differ in length",
            ),
            (
                {"prompt_ids": [1], "completion_ids": [2]},
                {"prompt_ids": ["a"], "completion_ids": [2]},
                "not a list of token ids",
            ),
            *(
                ({"prompt_ids": [1], "completion_ids": [2]}, {"prompt_ids": [1], "completion_ids": ids}, reason)
                for ids, reason in (
                    ([2, -100], r"completion_ids holds a number that is no token id \(-100 marks labels\)"),
                    ([2**40], "completion_ids holds a number that is no token id"),
                    ([2.0], "completion_ids is not a list of token ids"),
                    ([None, 2], "completion_ids is not a list of token ids"),
                    ([True], "completion_ids is not a list of token ids"),
                )
            ),
            (
                {"prompt_ids": [1], "completion_ids": [2]},
                {"prompt_ids": [1], "completion_ids": [2], "completion_mask": 1},
                "differ in length",
            ),
        ],
    )
    def test_others(self, good, row, reason):
        with pytest.raises(BadRow, match=reason):
            recognise(good).canonical(row)

    @pytest.mark.parametrize(
        ("chosen", "rejected", "reason"),
        [
            ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: x\n\nAssistant: b", "share no prompt"),
            ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant:", "rejected is empty"),
            (
                "\n\nHuman: a\n\nAssistant: b",
                "\n\nHuman: a\n\nAssistant: c\n\nHuman: d\n\nAssistant: e",
                "rejected goes on with a further Human turn",
            ),
        ],
    )
    def test_transcripts(self, chosen, rejected, reason):
        form = recognise({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"})
        with pytest.raises(BadRow, match=reason):
            form.canonical({"chosen": chosen, "rejected": rejected})


class TestUnrecognised:
    def test_question_and_answer_need_a_mapping(self):
        row = {"question": "a", "answer": "b", "row": 0}
        with pytest.raises(UserError) as error:
            recognise(row, branches=("completion",))
        assert str(error.value) == (
            "The format of the rows is not known (columns: question, answer). Expected prompt and completion, each "
            "text or a list of messages. Where they have other names, map them: "
            "columns: {prompt: question, completion: answer}."
        )

    def test_pairs_under_other_names(self):
        row = {"instruction": "a", "better": "b", "worse": "c"}
        with pytest.raises(UserError, match=r"columns: \{prompt: instruction, chosen: better, rejected: worse\}"):
            recognise(row, branches=PAIR)

    def test_other_branches_than_the_objective_scores(self):
        with pytest.raises(UserError) as error:
            recognise({"prompt": "a", "completion": "b"}, branches=PAIR)
        assert str(error.value).startswith(
            "The objective scores chosen and rejected, but the rows are: prompt and completion, standard "
            "(columns: prompt, completion). Expected prompt, chosen and rejected"
        )
        with pytest.raises(UserError, match=r"\. Answers with labels are trained on with objective: \{name: kto\}\.$"):
            recognise({"prompt": "a", "completion": "b", "label": True}, branches=PAIR)

    def test_messages_written_into_a_string(self):
        row = {"prompt": '[{"role": "user", "content": "a"}]', "chosen": "b", "rejected": "c"}
        with pytest.raises(UserError, match="column prompt holds messages written into a string"):
            recognise(row)

    def test_nothing_there(self):
        with pytest.raises(UserError, match=r"\(columns: none\)"):
            recognise({"row": 0})


class TestShared:
    def test_equal_strings_leave_something_to_both(self):
        prompt, chosen, rejected = split_shared_text("The sky is blue", "The sky is blue")
        assert (prompt, chosen, rejected) == ("The sky is", " blue", " blue")

    @pytest.mark.parametrize(
        ("left", "right"), [("", ""), ("a", ""), ("word", "words"), ("\n\n", "\n\nx"), (" a", " b")]
    )
    def test_nothing_is_lost(self, left, right):
        prompt, chosen, rejected = split_shared_text(left, right)
        assert (prompt + chosen, prompt + rejected) == (left, right)

    def test_transcripts_split_at_the_last_shared_answer(self):
        start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
        assert split_hh(start + " d", start + " e") == (start, " d", " e")
        assert split_hh("x", "y") is None

    def test_messages(self):
        assert common_messages([ASK, YES], [ASK, NO]) == 1
        assert common_messages([ASK], [ASK]) == 0
        assert common_messages([], [ASK]) == 0
