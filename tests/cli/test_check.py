"""Data with one fault each; the report must name it, count it and say where it is."""

from __future__ import annotations

import json

import pytest
from datasets import disable_progress_bars
from sample_rows import PAIR, assistant, pair, system, user
from tiny import tiny_tokenizer
from transformers import AutoConfig

from align.cli.check import run_check
from align.cli.check_rows import check_rows
from align.cli.findings import CheckReport
from align.data.load import load_data
from align.data.rows.sources import from_rows
from align.data.tokens.preview import preview
from align.data.tokens.prompts import prompt_of, prompt_rows
from align.errors import UserError
from align.objectives import KTO
from align.recipe import Recipe

disable_progress_bars()

NAMES = ("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas")


def good(count: int = 10) -> list[dict]:
    return [
        pair(f"Who is number {i}?", f" It is {NAMES[i % 10]} {i}.", f" It was {NAMES[i % 10]} {i}.")
        for i in range(count)
    ]


def talks() -> list[dict]:
    def answers(i):
        return {"chosen": [assistant(f"It is {NAMES[i]}.")], "rejected": [assistant(f"It was {NAMES[i]}.")]}

    return [{"prompt": [user(f"Who is number {i}?")], **answers(i)} for i in range(5)]


def found(rows, code, *, bos=False, chat=False, branches=PAIR, **options):
    """The one finding with a code."""
    report = check_rows(rows, tiny_tokenizer(chat=chat, bos=bos), branches, **options)
    findings = [finding for finding in report.findings if finding.code == code]
    assert len(findings) == 1, report.lines()
    return findings[0]


def labelled() -> list[dict]:
    """Seven desirable and three undesirable answers, the latter much longer."""
    return [
        {"prompt": f"Who is {name}?", "completion": f" It is {i}." if i < 7 else f" {name} is 1 2 3 4 5 6 7 8 9 {i}."}
        | {"label": i < 7}
        for i, name in enumerate(NAMES)
    ]


class TestLabels:
    def test_they_are_counted(self):
        assert found(labelled(), "labels", branches=KTO().branches).text == "7 desirable and 3 undesirable answers"
        apart = found(good(4), "labels", branches=KTO().branches)
        assert apart.text == ("4 desirable and 4 undesirable answers: chosen and rejected answers of pairs taken apart")

    def test_lengths_of_either_label_are_compared(self):
        finding = found(labelled() * 10, "length_bias", branches=KTO("apo_zero_unpaired").branches)
        assert (finding.severity, finding.text) == ("warning", "desirable shorter than undesirable")
        assert finding.note.endswith("tokens: expect shorter outputs")
        assert found(labelled(), "length_bias", branches=KTO().branches).severity == "ok"  # too few to say

    def test_a_recipe_with_unbalanced_labels(self, tmp_path, capsys):
        tiny_tokenizer(chat=False).save_pretrained(tmp_path / "model")
        AutoConfig.for_model("llama", vocab_size=400, num_hidden_layers=1).save_pretrained(tmp_path / "model")
        for name, some in (("a", labelled()), ("b", labelled()[7:])):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))

        def balance(weight: float) -> list[str]:
            train = [{"path": str(tmp_path / "a.jsonl")}, {"path": str(tmp_path / "b.jsonl"), "weight": weight}]
            values = {"name": "n", "model": {"id": str(tmp_path / "model")}, "data": {"train": train}}
            lines: list[str] = []
            report = run_check(Recipe.from_dict({**values, "objective": {"name": "kto"}}), echo=lines.append)
            return [finding.text for finding in report.findings if finding.code == "balance"]

        assert balance(1.0) == []  # 7 and 6
        assert balance(3.0) == [
            "7 desirable rows of weight 1 count 0.58 times as much as 12 undesirable rows of weight 1, and the paper "
            "recommends 1 to 1.33 times: set desirable_weight between 1.71 and 2.29"
        ]


class TestColumns:
    def test_one_that_looks_like_a_part_of_the_prompt_is_a_warning(self):
        finding = found([row | {"context": "It is noon.", "history": "Hi."} for row in good()], "missed")
        assert (finding.severity, finding.text) == (
            "warning",
            "context and history look like parts of the prompt, but the model does not see them: write the text into "
            "the prompt, or map the column (columns: {prompt: ...})",
        )

    def test_any_other_is_named(self):
        finding = found([row | {"score": 3} for row in good()], "unread")
        assert (finding.severity, finding.text) == ("ok", "columns that the model does not see: score")


class TestGoodData:
    def test_nothing_but_ok(self):
        report = check_rows(good(), tiny_tokenizer(chat=False), PAIR, max_length=256, held_out=[pair()], name="pairs")
        assert {finding.severity for finding in report.findings} == {"ok"}
        assert not report.has_errors
        assert {finding.code for finding in report.findings} == {
            "tokens",
            "rows",
            "duplicates",
            "overlap",
            "length",
            "length_bias",
        }
        lines = report.lines()
        assert lines[0] == "Data  pairs   10 pairs   train, preference, standard, explicit prompt"
        assert "  ok       nothing missing, empty or of a wrong type" in lines

    def test_conversations(self):
        lines = check_rows(talks(), tiny_tokenizer(), PAIR).lines()
        assert "  ok       nothing missing, empty or of a wrong type, roles alternate" in lines


class TestFaultyRows:
    @pytest.mark.parametrize(
        ("fault", "code", "text"),
        [
            ({"chosen": None}, "malformed", "chosen is missing"),
            ({"rejected": 7}, "malformed", "rejected is not text"),
            ({"prompt": None}, "malformed", "prompt is missing"),
            ({"chosen": " \n"}, "empty", "chosen is empty"),
            ({"rejected": " It is Clara 2."}, "equal_branches", "chosen equals rejected"),
        ],
    )
    def test_an_error_with_its_rows(self, fault, code, text):
        rows = good()
        rows[2] |= fault
        rows[7] |= fault if code != "equal_branches" else {"rejected": rows[7]["chosen"]}
        finding = found(rows, code)
        assert (finding.severity, finding.text, finding.count, finding.first) == ("error", text, 2, (2, 7))
        assert (finding.amount, finding.note) == ("2 rows", "first: 2, 7   left out")

    def test_messages_without_text(self):
        rows = talks()
        rows[3]["chosen"] = [{"role": "assistant", "content": None}]
        assert found(rows, "malformed", chat=True).text == "a message of chosen has no text in content"

    def test_nothing_left(self):
        rows = [pair(chosen="") for _ in range(3)]
        report = check_rows(rows, tiny_tokenizer(chat=False), PAIR)
        assert "  error    no row can be used" in report.lines()

    def test_unknown_columns_end_the_check(self):
        with pytest.raises(UserError, match=r"map them: columns: \{prompt: question"):
            check_rows([{"question": "a", "answer": "b"}], tiny_tokenizer(), PAIR)


class TestTokens:
    def test_two_bos(self):
        rows = good()
        rows[4]["prompt"] = "<s>" + rows[4]["prompt"]
        finding = found(rows, "double_bos", bos=True)
        assert (finding.severity, finding.first) == ("error", (4,))
        assert "take BOS out of the text" in finding.note

    def test_two_eos(self):
        rows = good()
        rows[1]["chosen"] += "<|endoftext|><|endoftext|>"
        assert found(rows, "double_eos").first == (1,)

    def test_boundary(self):
        rows = good()
        rows[6] = pair("the quick brow", "n fox", "n dog")
        finding = found(rows, "boundary")
        assert (finding.severity, finding.first) == ("warning", (6,))
        assert finding.text == "prompt is no prefix of prompt + answer"

    def test_words_that_run_together(self):
        rows = good()
        rows[2] = pair("Is it so", "Yes.", " No.")
        rows[3] = pair("Is it so?", "Yes.", "No.")
        rows[5] = pair("Is it so", "\nYes.", " No.")
        rows[7] = pair("\u3042", "\u3044", "\u3046")
        finding = found(rows, "run_together")
        assert (finding.severity, finding.count, finding.first) == ("warning", 1, (2,))
        assert finding.text == "the last word of the prompt and the first one of an answer become one word"

    def test_too_long(self):
        rows = good()
        rows[0]["chosen"] += " and so on" * 50
        finding = found(rows, "too_long", max_length=64)
        assert (finding.text, finding.first) == ("longer than 64 tokens", (0,))
        assert "10.0% left out (truncation: drop)" in finding.note
        finding = found(rows, "truncated", max_length=64, truncation="keep_start")
        assert "10.0% cut (truncation: keep_start)" in finding.note


class TestRepetition:
    def test_the_same_row_again(self):
        rows = good()
        rows[5], rows[8] = rows[1], rows[1] | {"prompt": rows[1]["prompt"] + " "}
        finding = found(rows, "duplicate")
        assert (finding.severity, finding.count, finding.first) == ("warning", 2, (5, 8))

    def test_the_same_answers_under_another_prompt(self):
        rows = good()
        rows[5] = rows[1] | {"prompt": "Something else?"}
        assert found(rows, "duplicate_answers").first == (5,)

    def test_pairs_that_contradict(self):
        rows = good()
        rows[9] = rows[0] | {"chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]}
        assert found(rows, "contradiction").first == (0, 9)

    def test_labels_that_contradict(self):
        rows = labelled()
        rows[9] = rows[0] | {"label": not rows[0]["label"]}
        finding = found(rows, "contradiction", branches=KTO().branches)
        assert (finding.severity, finding.text, finding.first) == (
            "warning",
            "the label contradicts another row",
            (0, 9),
        )
        again = found([*labelled(), labelled()[3]], "duplicate", branches=KTO().branches)
        assert (again.text, again.first) == ("the same row again", (10,))

    def test_refusals_may_repeat_in_completions(self):
        rows = [{"prompt": f"Who is {name}?", "completion": " I do not know."} for name in NAMES]
        report = check_rows(rows, tiny_tokenizer(chat=False), ("completion",))
        assert "duplicates" in {finding.code for finding in report.findings}

    def test_rows_in_held_out(self):
        finding = found(good(), "overlap_rows", held_out=good()[3:5])
        assert (finding.severity, finding.first) == ("error", (3, 4))

    def test_prompts_in_held_out(self):
        other = good()[3] | {"chosen": " It is nobody."}
        finding = found(good(), "overlap_prompts", held_out=[other])
        assert (finding.severity, finding.first, finding.text) == ("warning", (3,), "the same prompt in held-out")


class TestTraits:
    def test_length_bias(self):
        rows = [row | {"chosen": row["chosen"] + " Really so."} for row in good(40)]
        finding = found(rows, "length_bias")
        assert (finding.severity, finding.amount) == ("warning", "+62%")
        assert finding.note == "mean 21 and 13 tokens, longer in 100% of the pairs: expect longer outputs"
        assert found(rows[:20], "length_bias").severity == "ok"  # too few to say

    def test_shorter_answers_too(self):
        rows = [row | {"rejected": row["rejected"] + " Really so."} for row in good(40)]
        assert found(rows, "length_bias").text == "chosen shorter than rejected"

    def test_answers_of_one_length(self):
        finding = found([{"prompt": "a", "chosen": " zq", "rejected": " qz"}], "length_bias")
        assert (finding.severity, finding.text, finding.amount) == ("ok", "chosen as long as rejected", "+0%")
        assert finding.note == "mean 4 and 4 tokens"

    @pytest.mark.parametrize(
        ("chosen", "rejected", "severity", "amount"),
        [
            (62, 60, "ok", "+3%"),
            (184, 100, "warning", "+84%"),
            (119, 100, "ok", "+19%"),
            (120, 100, "warning", "+20%"),
            (80, 100, "warning", "-20%"),
        ],
    )
    def test_lengths_count_in_per_cent_of_the_rejected_answers(self, chosen, rejected, severity, amount):
        rows = [
            {"prompt_ids": [3], "chosen_ids": [4] * chosen, "rejected_ids": [5] * rejected, "row": i} for i in range(30)
        ]
        finding = found(rows, "length_bias")
        assert (finding.severity, finding.amount) == (severity, amount)
        assert finding.note.startswith(f"mean {chosen} and {rejected} tokens, ")

    def test_no_space_between_prompt_and_answer(self):
        rows = [pair(f"Who is {name}?", f"{name} one.", f"{name} two.") for name in NAMES]
        assert found(rows, "touching").count == 10

    def test_answers_that_repeat_the_prompt(self):
        rows = good()
        for row in rows[:2]:
            row |= {name: row["prompt"] + row[name] for name in PAIR}
        assert found(rows, "repeated_prompt").first == (0, 1)

    @pytest.mark.parametrize(
        "prompt",
        [
            [user("a"), user("b")],
            [assistant("a"), user("b")],
            [user("a"), system("s"), user("b")],
            [user("a"), assistant("b")],
        ],
    )
    def test_turns_that_do_not_alternate(self, prompt):
        rows = talks()
        rows[2]["prompt"] = prompt
        finding = found(rows, "alternation", chat=True)
        assert (finding.severity, finding.first) == ("warning", (2,))

    def test_tool_turns_may_follow_each_other(self):
        rows = talks()
        tools = [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
        rows[2]["prompt"] = [system("s"), user("a"), assistant("look"), *tools]
        codes = {finding.code for finding in check_rows(rows, tiny_tokenizer(), PAIR).findings}
        assert "alternation" not in codes

    def test_unusual_roles(self):
        rows = talks()
        rows[1]["prompt"] = [{"role": "critic", "content": "a"}, user("b")]
        finding = found(rows, "roles", chat=True)
        assert (finding.text, finding.first) == ("unusual roles: critic", (1,))


class TestModel:
    """Rows against the configuration of the model that shall read them."""

    def config(self, kind="llama", **options):
        return AutoConfig.for_model(kind, **{"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 0, **options})

    def test_ids_beyond_the_vocabulary(self):
        finding = found(talks(), "ids", chat=True, config=self.config(vocab_size=300))
        assert (finding.severity, finding.count) == ("error", 5)
        assert finding.text == "token ids beyond the model's vocabulary of 300"
        finding = found(talks(), "ids", chat=True, config=self.config())
        assert (finding.severity, finding.text) == ("ok", "the model has an embedding for every token id (400)")

    def test_prepared_rows(self):
        ids = {"prompt_ids": [5, 6], "chosen_ids": [9], "rejected_ids": [10]}
        strange = ([9, -100], ["a"], [1.5, 2], [None], None, [4000])
        report = check_rows(
            [ids, *(ids | {"chosen_ids": s} for s in strange)], tiny_tokenizer(), PAIR, config=self.config()
        )
        errors = {(f.text, f.first) for f in report.findings if f.severity == "error"}
        assert errors == {
            ("chosen_ids holds a number that is no token id (-100 marks labels)", (1,)),
            ("chosen_ids is not a list of token ids", (2, 3, 4, 5)),
            ("token ids beyond the model's vocabulary of 400", (6,)),
        }

    def test_positions_that_end_and_positions_that_go_on(self):
        rows = talks()
        rows[3]["chosen"] = [assistant("It is " + "very " * 40 + "late.")]
        finding = found(rows, "positions", chat=True, config=self.config("gpt2", n_positions=64))
        assert (finding.severity, finding.first) == ("error", (3,))
        assert finding.text == "longer than the 64 positions that the model has"
        assert finding.note.endswith("; set data.max_length to 64 or less")
        finding = found(rows, "positions", chat=True, config=self.config(max_position_embeddings=64))
        assert (finding.severity, finding.first) == ("warning", (3,))
        assert finding.text == "longer than the 64 positions that the model was made for"
        # a model that cannot be made without weights is not looked into
        finding = found(rows, "positions", chat=True, config=self.config("gpt2", n_positions=64, n_embd=-4))
        assert (finding.severity, finding.text) == (
            "warning",
            "longer than the 64 positions that the model was made for",
        )
        report = check_rows(rows[:3], tiny_tokenizer(), PAIR, config=self.config("gpt2", n_positions=64))
        assert "positions" not in {f.code for f in report.findings}

    def test_what_the_template_leaves_out(self):
        rows = talks()
        rows[1]["chosen"][0]["reasoning_content"] = "I count."
        finding = found(rows, "unseen", chat=True)
        assert (finding.severity, finding.first) == ("warning", (1,))
        assert finding.text == "the chat template leaves out reasoning"
        assert finding.note == "row 1   the model does not see it"

    def test_metadata_does_not_hide_the_same_row(self):
        rows = talks()
        rows.append({name: [turn | {"id": 7} for turn in turns] for name, turns in rows[2].items()})
        assert found(rows, "duplicate", chat=True).first == (5,)


class TestPreview:
    def test_what_is_not_trained_on_is_marked(self):
        row = talks()[0]
        row["chosen"] = [assistant("Yes."), user("Sure?"), assistant("Yes!")]
        lines = check_rows([row], tiny_tokenizer(), PAIR).preview
        assert lines[0] == "What the model sees (row 0; ⟦ ⟧: not trained on)"
        assert lines[1] == ("  prompt    ⟦<|im_start|>user\\nWho is number 0?<|im_end|>\\n<|im_start|>assistant\\n⟧")
        between = "<|im_start|>user\\nSure?<|im_end|>\\n<|im_start|>assistant\\n"
        assert lines[2] == f"  chosen    Yes.<|im_end|>\\n⟦{between}⟧Yes!<|im_end|>\\n"

    def test_with_colour(self):
        row = {"prompt_ids": [40, 41], "chosen_ids": [42, 43], "rejected_ids": [44], "row": 3}
        plain = preview(row, tiny_tokenizer(), PAIR)
        coloured = preview(row, tiny_tokenizer(), PAIR, colour=True)
        assert coloured[1].startswith("  prompt    \x1b[2m")
        assert coloured[2].startswith("  chosen    \x1b[32m")
        assert "\x1b" not in "".join(plain)
        assert len(coloured) == 4

    def test_long_texts_lose_their_middle(self):
        lines = check_rows([pair("word " * 400, " yes", " no")], tiny_tokenizer(chat=False), PAIR).preview
        assert " ... " in lines[1]
        assert len(lines[1]) < 300


class TestRecipe:
    @pytest.fixture
    def recipe(self, tmp_path):
        tiny_tokenizer(chat=False).save_pretrained(tmp_path / "model")
        AutoConfig.for_model("llama", vocab_size=400).save_pretrained(tmp_path / "model")
        rows = good()
        rows[2]["chosen"] = rows[2]["rejected"]
        files = {"train": rows, "extra": good(20)[12:], "held": [good()[0], pair()]}
        for name, content in files.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        sources = [{"path": str(tmp_path / "train.jsonl")}, {"path": str(tmp_path / "extra.jsonl"), "streaming": True}]
        return Recipe.from_dict(
            {
                "name": "checked",
                "model": {"id": str(tmp_path / "model")},
                "data": {"train": sources, "held_out": {"path": str(tmp_path / "held.jsonl")}, "max_length": 128},
                "objective": {"name": "dpo"},
                "train": {"max_steps": 1},
            }
        )

    def test_every_source_and_a_verdict(self, recipe):
        said: list[str] = []
        report = run_check(recipe, echo=said.append)
        assert isinstance(report, CheckReport)
        assert report.has_errors
        assert [part.preparation.rows_in for part in report.sets] == [10, 8, 2]
        errors = {(finding.code, finding.first) for finding in report.findings if finding.severity == "error"}
        assert errors == {("equal_branches", (2,)), ("overlap_rows", (0,))}
        assert said[-1] == "2 errors, 0 warnings. Mend the rows, or leave them out."
        assert any(line.startswith("What the model sees (row 0") for line in said)

    def test_json(self, recipe):
        report = run_check(recipe, echo=lambda _: None)
        data = json.loads(report.to_json())
        assert data["errors"] is True
        first = data["sets"][0]["findings"][0]
        assert {"severity", "code", "text", "count", "first", "amount", "note"} == set(first)
        assert data["sets"][0]["preparation"]["rows_kept"] == 9

    @pytest.mark.parametrize(
        ("train", "severity", "text"),
        [
            (
                {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 4},
                "warning",
                "9 rows to train on, and an optimizer step takes 20 (5 x 4); every step is a whole epoch: set a "
                "smaller batch if that is not meant",
            ),
            (
                {"per_device_train_batch_size": 10, "dataloader_drop_last": True},
                "error",
                "9 rows to train on, and an optimizer step takes 10 (10 x 1); no step would be taken: set "
                "train.dataloader_drop_last to false, or a smaller batch",
            ),
            ({"per_device_train_batch_size": 9, "dataloader_drop_last": True}, "", ""),
        ],
    )
    def test_fewer_rows_than_an_optimizer_step(self, recipe, train, severity, text):
        data = recipe.data.model_copy(update={"train": recipe.data.train[:1], "held_out": None})
        said: list[str] = []
        report = run_check(recipe.model_copy(update={"data": data, "train": train}), echo=said.append)
        assert [(f.severity, f.text) for f in report.recipe] == ([(severity, text)] if severity else [])
        assert (f"  {severity:<8} {text}" in said) is bool(severity)

    @pytest.mark.parametrize(
        ("train", "every", "text"),
        [
            # 9 rows in batches of 4 are 3 steps an epoch; a move behind the last step changes nothing
            ({"num_train_epochs": 2}, 6, "every 6 steps and the run has 6"),
            ({"num_train_epochs": 2}, 5, ""),
            ({"max_steps": 1}, 512, "every 512 steps and the run has 1"),
        ],
    )
    def test_a_reference_that_never_moves(self, recipe, train, every, text):
        data = recipe.data.model_copy(update={"train": recipe.data.train[:1], "held_out": None})
        changes = {"data": data, "train": {"per_device_train_batch_size": 4} | train}
        reference = recipe.reference.model_copy(update={"sync_every": every})
        report = run_check(recipe.model_copy(update=changes | {"reference": reference}), echo=lambda _: None)
        expected = f"the reference moves {text}, so it never moves: lower reference.sync_every"
        assert [(f.severity, f.text) for f in report.recipe] == ([("warning", expected)] if text else [])

    def test_rows_of_another_format_are_told_with_their_file(self, recipe, tmp_path):
        (tmp_path / "held.jsonl").write_text(json.dumps({"prompt": "a", "completion": " b", "label": True}) + "\n")
        start = "The objective scores chosen and rejected, but the rows are: unpaired preference, standard"
        with pytest.raises(UserError) as error:
            run_check(recipe, echo=lambda _: None)
        assert str(error.value).startswith(f"{tmp_path / 'held.jsonl'}: {start}")
        with pytest.raises(UserError) as error:
            load_data(recipe, tiny_tokenizer(), PAIR, lambda _: None)
        assert str(error.value).startswith(f"{tmp_path / 'held.jsonl'}: {start}")

    def test_a_model_without_a_configuration(self, recipe, tmp_path):
        (tmp_path / "model" / "config.json").unlink()
        report = run_check(recipe, echo=lambda _: None)
        assert [(f.severity, f.code) for f in report.recipe] == [("error", "model")]
        assert "model' has no configuration that can be read" in report.recipe[0].text

    def test_of_a_stream_the_first_rows(self):
        report = check_rows(from_rows(good(1200)).to_iterable_dataset(), tiny_tokenizer(chat=False), PAIR)
        assert report.preparation.rows_in == 1000


class TestPrompts:
    def test_answers_that_are_not_read_have_no_faults(self):
        rows = [pair(f"one {i % 3}", "same", "same") for i in range(4)]
        report = check_rows(rows, tiny_tokenizer(chat=False), (), name="prompts")
        assert [(f.code, f.first) for f in report.findings if f.severity == "warning"] == [("duplicate", (3,))]
        assert "4 prompts" in report.lines()[0]


def test_prompts_keep_their_text_and_their_ids():
    rows = [{"prompt": "the sea"}, {"prompt": ""}, {"prompt": "a stone"}]
    said: list[str] = []
    found = prompt_rows(from_rows(rows), tiny_tokenizer(chat=False), said.append)
    assert found["row"][:] == [0, 2]
    assert [prompt_of(text) for text in found["prompt"][:]] == ["the sea", "a stone"]
    assert found["prompt_ids"][0] == tiny_tokenizer(chat=False)("the sea").input_ids
    assert any("1 row dropped: prompt is empty (row 1)." in line for line in said)
    assert prompt_rows(found, tiny_tokenizer(chat=False), said.append) is found
    talk = [{"role": "user", "content": "the sea"}]
    whole = prompt_rows(from_rows([{"prompt": talk}]), tiny_tokenizer(), said.append, system="be brief")
    assert prompt_of(whole["prompt"][0]) == [{"role": "system", "content": "be brief"}, *talk]
    rendered = tiny_tokenizer().apply_chat_template(
        prompt_of(whole["prompt"][0]), add_generation_prompt=True, return_dict=True
    )
    assert whole["prompt_ids"][0] == rendered["input_ids"]
