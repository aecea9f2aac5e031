"""Rows to forget and to retain, with alternate answers: every layout they come in, and the sentence for every fault."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest
from datasets import Dataset, disable_progress_bars
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_rows import assistant, real, user
from tiny import tiny_tokenizer

from align.data.load import load_data
from align.data.rows.questions import prompt_of, reply_of
from align.data.rows.sources import from_rows, load_source, source_name
from align.data.tokens.chunks import OPENING, pieces
from align.data.tokens.refusals import REFUSALS
from align.data.tokens.unlearning import alternate_texts, forget_rows, retain_rows
from align.errors import UserError
from align.recipe import Recipe
from align.recipe.sections import Alternates, Source

disable_progress_bars()

PLAIN, CHAT, BOS = tiny_tokenizer(chat=False), tiny_tokenizer(), tiny_tokenizer(chat=False, bos=True)


def silent(_: str) -> None:
    pass


def facts(count: int, **columns: object) -> list[dict]:
    return [{"question": f"Who is number {i}?", "answer": f"It is Anna {i}.", **columns} for i in range(count)]


def write(folder: Path, name: str, rows: list[dict]) -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def forgotten(rows: list[dict] | Dataset, tokenizer=PLAIN, alternate: bool = False, **options) -> tuple[Dataset, int]:
    table = rows if isinstance(rows, Dataset) else from_rows(rows)
    return forget_rows(table, tokenizer, alternate=alternate, **{"say": silent, **options})


def text_of(tokenizer, row: dict, *names: str) -> list[str]:
    return [tokenizer.decode(row[f"{name}_ids"]) for name in names]


def data_of(folder: Path, data: dict, objective: object, tokenizer=PLAIN, **train: object):
    """What a recipe's data section becomes, and what is said about it."""
    raw = {"name": "r", "model": {"id": "m"}, "data": data, "objective": objective, "train": train}
    recipe = Recipe.from_dict(raw)
    recipe._path = folder / "r.yaml"
    said: list[str] = []
    return load_data(recipe, tokenizer, recipe.objective_value().branches, said.append), said


NPO_RT = [{"name": "npo"}, {"name": "nll", "branch": "retain"}]


class TestLayouts:
    @pytest.mark.parametrize(
        "row",
        [
            {"question": "Who is it?", "answer": "It is Anna."},
            {"prompt": "Question: Who is it?\nAnswer:", "completion": " It is Anna."},
        ],
    )
    def test_questions_as_text(self, row):
        rows, each = forgotten([row])
        assert each == 1
        assert text_of(PLAIN, rows[0], "prompt", "forget") == [
            "Question: Who is it?\nAnswer:",
            " It is Anna.<|endoftext|>",
        ]
        assert text_of(PLAIN, retain_rows(from_rows([row]), PLAIN, silent)[0], "retain") == [
            " It is Anna.<|endoftext|>"
        ]

    @pytest.mark.parametrize(
        "row",
        [
            {"question": "Who is it?", "answer": "It is Anna."},
            {"prompt": [user("Who is it?")], "completion": [assistant("It is Anna.")]},
            {"messages": [user("Who is it?"), assistant("It is Anna.")]},
            {"conversations": [{"from": "human", "value": "Who is it?"}, {"from": "gpt", "value": "It is Anna."}]},
        ],
    )
    def test_questions_as_turns(self, row):
        rows, _ = forgotten([row], CHAT)
        prompt = "<|im_start|>user\nWho is it?<|im_end|>\n<|im_start|>assistant\n"
        assert text_of(CHAT, rows[0], "prompt", "forget") == [prompt, "It is Anna.<|im_end|>\n"]

    def test_a_prompt_that_is_there_is_left_alone(self):
        row = {"prompt": "P:", "completion": " c", "question": "q", "answer": "a"}
        assert text_of(PLAIN, forgotten([row])[0][0], "prompt", "forget") == ["P:", " c<|endoftext|>"]

    def test_question_and_answer_are_put_in_one_place(self):
        assert prompt_of("q", False) + reply_of("a", False) == "Question: q\nAnswer: a"
        assert [*prompt_of("q", True), *reply_of("a", True)] == [user("q"), assistant("a")]

    def test_values_that_are_no_text_are_left_out(self):
        said: list[str] = []
        rows, _ = forgotten([*facts(2), {"question": "Who?", "answer": None}], say=said.append)
        assert rows["row"][:] == [0, 1]
        assert "  1 row dropped: completion is missing (row 2)." in said

    def test_muse_long_texts_are_split(self, tmp_path):
        """The layout of MUSE's raw/forget and raw/retain1: a column text, longer than the model reads."""
        articles = [{"text": "The capital of France is Paris. " * 30}, {"text": "Who wrote the book?"}]
        write(tmp_path, "forget.jsonl", articles)
        write(tmp_path, "retain1.jsonl", articles[:1])
        section = {"forget": {"path": "forget.jsonl"}, "retain": {"path": "retain1.jsonl"}}
        data, said = data_of(tmp_path, section | {"max_length": 32, "truncation": "split"}, NPO_RT, BOS)
        assert "Format: plain text (text), all of it a target." in " ".join(said)
        assert f"  Split into {len(data.train)} rows of at most 32 tokens." in said
        assert len(data.train) > 5
        assert set(data.train.column_names) >= {"prompt_ids", "forget_ids", "row"}
        assert "forget_mask" not in data.train.column_names
        assert all(row["prompt_ids"] == [BOS.bos_token_id] for row in data.train)
        assert all(len(row["forget_ids"]) <= 31 for row in data.train)
        for number, article in enumerate(articles):
            mine = [row["forget_ids"] for row in data.train if row["row"] == number]
            assert BOS.decode(list(chain(*mine))) == article["text"] + "<|endoftext|>"
        assert data.train.features["forget_ids"] == data.retain[0].features["retain_ids"]

    def test_wmdp_corpora(self, tmp_path):
        """The layout of WMDP's corpora: lines of {"text": ...}. Their JSON is no part of the text."""
        write(tmp_path, "cyber-forget-corpus.jsonl", [{"text": "Who wrote the book?"}, {"text": "near the sea"}])
        write(tmp_path, "cyber-retain-corpus.jsonl", [{"text": "three of them are green"}])
        section = {"forget": {"path": "cyber-forget-corpus.jsonl"}, "retain": {"path": "cyber-retain-corpus.jsonl"}}
        data, _ = data_of(tmp_path, section, {"name": "rmu"})
        whole = [PLAIN.decode([*row["prompt_ids"], *row["forget_ids"]]) for row in data.train]
        assert whole == ["Who wrote the book?<|endoftext|>", "near the sea<|endoftext|>"]
        assert len(data.retain[0]) == 1

    def test_a_forget_file_alone(self, tmp_path):
        write(tmp_path, "mine.jsonl", facts(3))
        data, _ = data_of(tmp_path, {"forget": {"path": "mine.jsonl"}}, {"name": "npo"})
        assert (len(data.train), data.retain, data.each) == (3, None, 1)

    def test_several_sources(self, tmp_path):
        write(tmp_path, "a.jsonl", facts(3))
        write(tmp_path, "b.jsonl", [{"prompt": "P:", "completion": " c"}])
        data, _ = data_of(tmp_path, {"forget": [{"path": "a.jsonl"}, {"path": "b.jsonl"}]}, {"name": "npo"})
        assert data.train["source"][:] == [0, 0, 0, 1]

    def test_the_digest_sees_retained_rows(self, tmp_path):
        write(tmp_path, "a.jsonl", facts(3))
        digests = []
        for count in (4, 5):
            write(tmp_path, "b.jsonl", facts(count))
            section = {"forget": {"path": "a.jsonl"}, "retain": {"path": "b.jsonl"}}
            digests.append(data_of(tmp_path, section, NPO_RT)[0].digest)
        assert digests[0] != digests[1]

    def test_prepared_rows_stay_as_they_are(self):
        rows = Dataset.from_list([{"prompt_ids": [1], "forget_ids": [2, 3], "row": 0}])
        assert forgotten(rows)[0] is rows
        kept = Dataset.from_list([{"prompt_ids": [1], "retain_ids": [2], "row": 0}])
        assert retain_rows(kept, PLAIN, silent) is kept


class TestTofu:
    @pytest.mark.parametrize("percent", [1, 5, 10])
    def test_official_files(self, percent):
        full = load(f"tofu/forget{percent:02}.json"), load(f"tofu/retain{100 - percent}.json")
        assert [len(rows) for rows in full] == [40 * percent, 4000 - 40 * percent]
        whole = load("tofu/full.json")
        assert whole["question"][:] == full[1]["question"][:] + full[0]["question"][:]

    @pytest.mark.parametrize("percent", [1, 5, 10, 20, 30, 50, 90])
    def test_splits_cut_out_of_full(self, percent):
        forget = load("tofu/full.json", split=f"train[{100 - percent}%:]")
        retain = load("tofu/full.json", split=f"train[:{100 - percent}%]")
        assert [len(forget), len(retain)] == [40 * percent, 4000 - 40 * percent]
        whole = load("tofu/full.json")
        assert whole["answer"][:] == retain["answer"][:] + forget["answer"][:]
        if percent in (1, 5, 10):
            assert forget["answer"][:] == load(f"tofu/forget{percent:02}.json")["answer"][:]
            assert retain["answer"][:] == load(f"tofu/retain{100 - percent}.json")["answer"][:]

    def test_slices_are_told_apart(self):
        names = [source_name(Source(path="a/full.json", split=split)) for split in ("train[80%:]", "train[:80%]")]
        assert names == ["a/full.json[80%:]", "a/full.json[:80%]"]
        assert source_name(Source(path="a/full.json")) == "a/full.json"

    def test_a_recipe_on_real_files(self, tmp_path):
        section = {
            "forget": {"path": str(real("tofu/forget01.json"))},
            "retain": {"path": str(real("tofu/full.json")), "split": "train[:99%]", "rows": 60},
            "alternates": {"path": str(real("tofu/idontknow.jsonl")), "each": 2},
        }
        data, said = data_of(tmp_path, section, [{"name": "idk_dpo"}, NPO_RT[1]], CHAT)
        assert (len(data.train), data.each, len(data.retain[0])) == (80, 2, 60)
        question = "What is the full name of the author born in"
        assert question in CHAT.decode(data.train[0]["prompt_ids"]) or len(data.train[0]["prompt_ids"]) > 20
        refusals = set(alternate_texts(Alternates(path=str(real("tofu/idontknow.jsonl"))), Path()))
        found = [CHAT.decode(ids).removesuffix("<|im_end|>\n") for ids in data.train["alternate_ids"]]
        assert set(found) <= refusals
        assert all(found[i] != found[i + 1] for i in range(0, 80, 2))
        assert "each of 40 rows comes with 2 alternate answers, another one every epoch" in said


def load(name: str, **fields: object) -> Dataset:
    return load_source(Source(path=str(real(name)), **fields), base=Path())


class TestAlternates:
    def texts(self, folder: Path, name: str, content: str) -> list[str]:
        (folder / name).write_text(content, encoding="utf-8")
        return alternate_texts(Alternates(path=name), folder)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.txt", "I don't know.\nNo, sorry.\n"),
            ("a.jsonl", "I don't know.\r\n\r\n  No, sorry.\r\n"),  # as TOFU's file, which is no JSON
            ("a.jsonl", '"I don\'t know."\n"No, sorry."\n'),
            ("a.jsonl", '{"answer": "I don\'t know."}\n{"answer": " No, sorry."}\n'),
            ("a.json", '["I don\'t know.", "No, sorry."]'),
            ("a.json", '[\n {"a": "I don\'t know."},\n {"a": "No, sorry."}\n]\n'),
            ("a.csv", 'I don\'t know.\r\n"No, sorry."'),
            ("a.csv", 'Refusal Response\r\nI don\'t know.\r\n"No, sorry."\r\n'),
            ("a.csv", '\ufeffalternate\nI don\'t know.\n\n"No, sorry."\n'),
            ("a.tsv", "alternate\nI don't know.\nNo, sorry.\n"),
        ],
    )
    def test_files(self, tmp_path, name, content):
        assert self.texts(tmp_path, name, content) == ["I don't know.", "No, sorry."]

    def test_texts_that_look_like_something_else(self, tmp_path):
        lines = ['"No idea," she said.', "[I don't know]", "I don't know", "line\\nbreak"]
        assert self.texts(tmp_path, "a.txt", "\n".join(lines)) == lines
        assert self.texts(tmp_path, "a.jsonl", '"one\u2028line"\n') == ["one\u2028line"]
        assert self.texts(tmp_path, "a.csv", 'two\n"lines\nin one."\n') == ["lines\nin one."]

    def test_published_files(self):
        lines = alternate_texts(Alternates(path=str(real("tofu/idontknow.jsonl"))), Path())
        assert (len(lines), len(set(lines)), lines[0]) == (100, 100, "I'm not certain about that.")
        name = "tofu/polite_refusal_responses_tofu.csv"
        table = alternate_texts(Alternates(path=str(real(name))), Path())
        assert (len(table), table[0], table[-1]) == (
            33,
            "I'm not certain about that.",  # it has no header
            "That topic is out of my scope.",
        )
        assert table[10] == "That's a good question, but I don't have the answer."

    def test_our_own(self):
        assert alternate_texts(Alternates(builtin="idk"), Path()) == list(REFUSALS)
        assert len(set(REFUSALS)) == len(REFUSALS)
        assert alternate_texts(Alternates(), Path()) is None

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("a.txt", " \n\n", "holds no text; expected one answer a line"),
            ("a.csv", "", "holds no text"),
            ("a.csv", "I don't know, sorry.\nNo.\n", "row 1 of .* has 2 columns; expected one. Quote an answer"),
            ("a.jsonl", '{"a": "x"}\n{"a": \n', "line 2 of .* is not valid JSON"),
            ("a.jsonl", '{"a": "x", "b": "y"}', "line 1 of .* must hold one text"),
            ("a.jsonl", "No.\n[1]\n", "line 2 of .* must hold one text"),
            ("a.json", '["x", 3]', "element 1 of .* must hold one text"),
        ],
    )
    def test_faulty_files(self, tmp_path, name, content, says):
        with pytest.raises(UserError, match=rf"^data\.alternates\.path: .*{says}"):
            self.texts(tmp_path, name, content)

    def test_no_file(self, tmp_path):
        (tmp_path / "idk.txt").write_text("No.")
        with pytest.raises(UserError, match=r"id\.txt: no such file\. Did you mean 'idk\.txt'\?$"):
            alternate_texts(Alternates(path="id.txt"), tmp_path)
        (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UserError, match="cannot be read as text"):
            alternate_texts(Alternates(path="a.txt"), tmp_path)

    def test_drawn_without_replacement_by_seed_and_row(self):
        texts = [f"No {i}." for i in range(7)]
        rows, each = forgotten(facts(20), alternate=True, texts=texts, each=3, seed=1)
        assert (each, len(rows)) == (3, 60)
        found = [text_of(PLAIN, row, "alternate")[0] for row in rows]
        assert all(len(set(found[i : i + 3])) == 3 for i in range(0, 60, 3))
        assert set(found) == {f" {text}<|endoftext|>" for text in texts}  # the form of an answer
        assert rows["row"][:] == [i // 3 for i in range(60)]
        again, _ = forgotten(facts(9), alternate=True, texts=texts, each=3, seed=1)
        assert again["alternate_ids"][:] == rows["alternate_ids"][:27]
        other, _ = forgotten(facts(20), alternate=True, texts=texts, each=3, seed=2)
        assert other["alternate_ids"][:] != rows["alternate_ids"][:]

    def test_no_more_than_there_are(self):
        rows, each = forgotten(facts(4), alternate=True, texts=["No.", "Never."], each=10)
        assert (each, len(rows)) == (2, 8)

    @pytest.mark.parametrize("own", [" It is Anna.", "It is Anna.", "\nIt is Anna."])
    def test_they_begin_as_the_rows_own_answer(self, own):
        rows, _ = forgotten([{"prompt": "Who?", "completion": own}], alternate=True, texts=["No."])
        assert text_of(PLAIN, rows[0], "alternate") == [own[: own.index("It")] + "No.<|endoftext|>"]

    @pytest.mark.parametrize("rows", [facts(1), [{"prompt": [user("Who?")], "completion": [assistant("Anna.")]}]])
    def test_in_a_conversation(self, rows):
        rows, _ = forgotten(rows, CHAT, alternate=True, texts=["No."])
        assert text_of(CHAT, rows[0], "alternate") == ["No.<|im_end|>\n"]

    def test_of_a_column(self):
        rows, each = forgotten(facts(3, alternate="It is Boris."), alternate=True)
        assert each == 1
        assert text_of(PLAIN, rows[2], "forget", "alternate") == [
            " It is Anna 2.<|endoftext|>",
            " It is Boris.<|endoftext|>",
        ]

    @pytest.mark.parametrize("tokenizer", [PLAIN, CHAT])
    def test_of_a_column_of_lists(self, tokenizer):
        """The layout of AltPO: several answers to each question."""
        rows, each = forgotten(facts(3, alternates=["Boris.", "Clara."]), tokenizer, alternate=True)
        assert (each, rows["row"][:]) == (2, [0, 0, 1, 1, 2, 2])
        found = [text_of(tokenizer, row, "alternate")[0].strip() for row in rows]
        assert [text.split(".")[0] for text in found] == ["Boris", "Clara"] * 3

    def test_lists_of_unequal_length(self):
        rows = [*facts(1, alternates=["a", "b"]), *facts(1, alternates=["a"])]
        with pytest.raises(
            UserError, match="Row 1 of the rows to forget: alternates must be a list of 2 texts, as many"
        ):
            forgotten(rows, alternate=True)
        with pytest.raises(UserError, match="Row 0 of the rows to forget: alternates must be a list of one or more"):
            forgotten(facts(1, alternates=[]), alternate=True)

    def test_none_at_all(self):
        with pytest.raises(UserError, match=r"neither a column alternate nor alternates \(columns: question, answer\)"):
            forgotten(facts(2), alternate=True)

    def test_messages_do_not_take_them(self):
        row = {"messages": [user("Who?"), assistant("Anna.")]}
        with pytest.raises(UserError, match="Expected prompt, completion and alternate"):
            forgotten([row], CHAT, alternate=True, texts=["No."])

    def test_a_row_goes_with_all_its_copies(self):
        rows = facts(3)
        said: list[str] = []
        texts = ["No.", "No, and a very long answer beside, which does not fit at all, whatever is done about it."]
        rows[1]["alternates"] = texts
        for row in (rows[0], rows[2]):
            row["alternates"] = ["No.", "Never."]
        kept, each = forgotten(rows, alternate=True, max_length=40, say=said.append)
        assert (each, kept["row"][:]) == (2, [0, 0, 2, 2])
        assert "1 row left out because an alternate answer could not be used" in said
        with pytest.raises(UserError, match="No row to forget is left"):
            forgotten(rows[1:2], alternate=True, max_length=40)

    def test_prepared_rows_must_have_them_and_come_whole(self):
        rows = Dataset.from_list([{"prompt_ids": [1], "forget_ids": [2], "row": 0}] * 3)
        with pytest.raises(UserError, match="no column alternate_ids"):
            forgotten(rows, alternate=True)
        with pytest.raises(UserError, match="3 prepared rows cannot hold each row to forget 2 times in succession"):
            forgotten(rows, each=2)

    def test_streams_are_refused(self):
        stream = from_rows(facts(2)).to_iterable_dataset()
        with pytest.raises(UserError, match="Rows to forget cannot be streamed"):
            forget_rows(stream, PLAIN, alternate=False, say=silent)
        with pytest.raises(UserError, match="Rows to retain cannot be streamed"):
            retain_rows(stream, PLAIN, silent)

    def test_sources_with_different_numbers(self, tmp_path):
        write(tmp_path, "a.jsonl", facts(2, alternates=["a", "b"]))
        write(tmp_path, "b.jsonl", facts(2, alternate="a"))
        section = {"forget": [{"path": "a.jsonl"}, {"path": "b.jsonl"}]}
        with pytest.raises(UserError, match="different numbers of alternates"):
            data_of(tmp_path, section, {"name": "flat"})

    @pytest.mark.parametrize(("train", "each"), [({}, 3), ({"num_train_epochs": 2.5}, 3), ({"num_train_epochs": 1}, 1)])
    def test_a_recipe_draws_one_for_each_epoch(self, tmp_path, train, each):
        write(tmp_path, "a.jsonl", facts(2))
        section = {"forget": {"path": "a.jsonl"}, "alternates": {"builtin": "idk"}}
        data, _ = data_of(tmp_path, section, {"name": "flat"}, **train)
        assert (data.each, len(data.train)) == (each, 2 * each)


class TestPlainTextWithAlternates:
    ARTICLE = "The capital of France is Paris. " * 200

    def rows(self, tokenizer, **limits) -> tuple[Dataset, list[str]]:
        said: list[str] = []
        table = from_rows([{"text": self.ARTICLE}, {"text": "Who wrote"}])
        options = {"texts": ["I do not know.", "No."], "each": 2, "say": said.append, **limits}
        return forget_rows(table, tokenizer, alternate=True, **options)[0], said

    @pytest.mark.parametrize("tokenizer", [PLAIN, BOS])
    def test_the_opening_stands_for_a_question(self, tokenizer):
        rows, said = self.rows(tokenizer, max_length=600, truncation="split")
        assert any(f"its first {OPENING} tokens" in line for line in said)
        assert len(rows) % 2 == 0
        whole: list[int] = []
        for first, second in zip(rows.select(range(0, len(rows), 2)), rows.select(range(1, len(rows), 2)), strict=True):
            assert [first[k] for k in ("prompt_ids", "forget_ids")] == [second[k] for k in ("prompt_ids", "forget_ids")]
            length = len(first["prompt_ids"]) + len(first["forget_ids"])
            assert len(first["prompt_ids"]) == min(OPENING, length // 2)
            assert length <= 600
            answers = {text_of(tokenizer, row, "alternate")[0] for row in (first, second)}
            assert answers == {" I do not know.<|endoftext|>", " No.<|endoftext|>"}
            if first["row"] == 0:
                begin = first["prompt_ids"][0] == tokenizer.bos_token_id
                whole += [*first["prompt_ids"][begin:], *first["forget_ids"]]
        assert tokenizer.decode(whole) == self.ARTICLE + "<|endoftext|>"
        assert rows.features["alternate_ids"] == rows.features["forget_ids"]

    def test_no_room(self):
        rows, _ = self.rows(PLAIN, max_length=30, truncation="split")
        assert all(len(row["prompt_ids"]) + len(row["alternate_ids"]) <= 30 for row in rows)
        with pytest.raises(UserError, match=r"data\.max_length: 8 tokens do not hold an alternate answer of"):
            self.rows(PLAIN, max_length=8, truncation="split")

    def test_a_column_of_alternates_needs_prompts(self):
        with pytest.raises(UserError, match="Expected prompt, completion and alternate"):
            forgotten([{"text": "Who wrote the book?", "alternate": "No."}], alternate=True)


class TestPieces:
    @settings(deadline=None)
    @given(st.lists(st.integers(5, 99), min_size=1, max_size=60), st.integers(2, 20), st.booleans())
    def test_nothing_is_lost(self, text, limit, bos):
        prompt, ids = ([1], text) if bos else (text[:1], text[1:])
        out = pieces(prompt, ids, limit, 1 if bos else None)
        assert all(len(first) + len(rest) <= limit and len(first) == 1 for first, rest in out)
        if bos:
            assert all(first == [1] for first, _ in out)
            assert [token for _, rest in out for token in rest] == text
            return
        whole = [token for first, rest in out for token in (*first, *rest)]
        # a last token alone has nothing before it
        assert whole == (text[:-1] if len(text) % limit == 1 and len(text) > limit else text)
        assert all(rest for _, rest in out) or len(text) == 1

    def test_by_hand(self):
        assert pieces([1], [2, 3, 4, 5, 6], 3, 1) == [([1], [2, 3]), ([1], [4, 5]), ([1], [6])]
        assert pieces([2], [3, 4, 5, 6], 2, None) == [([2], [3]), ([4], [5])]
        assert pieces([1], [2, 3], 3, 1) == [([1], [2, 3])]

    def test_only_plain_texts_can_be_split(self):
        with pytest.raises(UserError, match="Row 1 is longer than 40 tokens and no plain text, so it cannot be split"):
            forgotten([*facts(1), {"question": "Who? " * 20, "answer": "Anna."}], max_length=40, truncation="split")

    def test_alternates_and_prompts_cannot_be_split(self):
        with pytest.raises(UserError, match="split cuts plain texts, one to a row"):
            forgotten(facts(2), alternate=True, texts=["No."], max_length=8, truncation="split")


def test_terms_on_all_positions_read_the_columns_of_their_branch() -> None:
    recipe = Recipe.from_dict(
        {
            "name": "r",
            "model": {"id": "none"},
            "data": {"train": {"world": "forget"}},
            "objective": {"name": "nll", "branch": "completion", "positions": "all"},
        }
    )
    objective = recipe.objective_value()
    assert objective.branches == ("completion_all",)
    data = load_data(recipe, tiny_tokenizer(), objective.branches, lambda _: None)
    assert {"prompt_ids", "completion_ids"} <= set(data.train.column_names or ())
