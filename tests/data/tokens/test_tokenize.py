"""Token ids against TRL's own trainers, and what preparation does where TRL has no answer."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from datasets import Dataset, disable_progress_bars
from huggingface_hub import constants
from sample_rows import PAIR, decoded, hh_rows, pair, talk_rows
from tiny import tiny_tokenizer
from trl import SFTConfig

from align.data.tokens.tokenize import load_tokenizer, prepare
from align.errors import UserError

disable_progress_bars()
# its name since transformers 5.23, and before
CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if name in SFTConfig.__dataclass_fields__
)


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    )


class Oracle:
    """TRL's trainers as tokenisers: what they hold as their training set."""

    def __init__(self, model, folder):
        self.model, self.folder = model, folder

    def options(self):
        return {
            "output_dir": str(self.folder),
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
            CHECKPOINTING: False,
            "max_length": None,
        }

    def dpo(self, rows, tokenizer):
        from trl import DPOConfig, DPOTrainer

        trainer = DPOTrainer(
            model=self.model,
            ref_model=self.model.__class__(self.model.config),
            args=DPOConfig(**self.options()),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        return trainer.train_dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]).to_list()

    def sft(self, rows, tokenizer):
        from trl import SFTConfig, SFTTrainer

        trainer = SFTTrainer(
            model=self.model,
            args=SFTConfig(**self.options()),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        return trainer.train_dataset.select_columns(["input_ids", "labels"]).to_list()

    def kto(self, rows, tokenizer):
        from trl import KTOConfig, KTOTrainer

        trainer = KTOTrainer(
            model=self.model,
            ref_model=self.model.__class__(self.model.config),
            args=KTOConfig(**self.options()),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        return trainer.train_dataset.select_columns(["prompt_ids", "completion_ids", "label"]).to_list()


@pytest.fixture(scope="module")
def oracle(model, tmp_path_factory):
    return Oracle(model, tmp_path_factory.mktemp("trl"))


def ids_of(dataset, *names):
    return dataset.select_columns([f"{name}_ids" for name in ("prompt", *names)]).to_list()


class TestAgainstTRL:
    @pytest.mark.parametrize("bos", [False, True])
    def test_real_pairs_of_plain_text(self, oracle, bos):
        rows = hh_rows(60)
        tokenizer = tiny_tokenizer([row["prompt"] + row["chosen"] for row in rows], vocab=700, chat=False, bos=bos)
        ours, account = prepare(Dataset.from_list(rows), tokenizer, PAIR)
        assert account.rows_kept == 60
        assert ids_of(ours, *PAIR) == oracle.dpo(rows, tokenizer)

    def test_tokens_that_merge_across_the_boundary(self, oracle):
        rows = [pair("the quick brow", "n fox jumps", "n dog"), pair("Who wro", "te the book?", "ng")]
        rows += [pair("There are twelve", " apples", " ap"), pair("Ends with eos", " now<|endoftext|>", "")]
        rows[-1]["rejected"] = " then"
        tokenizer = tiny_tokenizer(chat=False)
        ours, account = prepare(Dataset.from_list(rows), tokenizer, PAIR)
        assert account.boundary.count >= 2
        assert account.boundary.first[0] == 0
        assert ids_of(ours, *PAIR) == oracle.dpo(rows, tokenizer)
        assert all(row["chosen_ids"][-1] == tokenizer.eos_token_id for row in ours)
        assert ours[3]["chosen_ids"][-2] != tokenizer.eos_token_id

    def test_conversations(self, oracle):
        rows = talk_rows()
        tokenizer = tiny_tokenizer()
        ours, account = prepare(Dataset.from_list(rows), tokenizer, PAIR)
        assert account.format == "preference, conversational, explicit prompt"
        assert ids_of(ours, *PAIR) == oracle.dpo(rows, tokenizer)
        assert "chosen_mask" not in ours.column_names

    def test_conversations_with_the_prompt_inside_the_answers(self, oracle):
        rows = [{name: row["prompt"] + row[name] for name in PAIR} for row in talk_rows()]
        tokenizer = tiny_tokenizer()
        ours, account = prepare(Dataset.from_list(rows), tokenizer, PAIR)
        assert account.format == "preference, conversational, implicit prompt"
        assert ids_of(ours, *PAIR) == oracle.dpo(rows, tokenizer)

    def test_tools_and_template_arguments(self, oracle):
        tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
        extra = {"tools": json.dumps([tool]), "chat_template_kwargs": {"enable_thinking": False}}
        rows = [row | extra for row in talk_rows()]
        tokenizer = tiny_tokenizer()
        ours, account = prepare(Dataset.from_list(rows), tokenizer, PAIR)
        assert ids_of(ours, *PAIR) == oracle.dpo(rows, tokenizer)
        # the header alone ends with an empty thought, which the whole conversation has not: TRL's reason for prefixes
        assert account.boundary.count == len(rows)
        assert "look_up" in tokenizer.decode(ours[0]["prompt_ids"])

    @pytest.mark.parametrize("bos", [False, True])
    def test_prompt_and_completion(self, oracle, bos):
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in hh_rows(20)]
        tokenizer = tiny_tokenizer(chat=False, bos=bos)
        ours, _ = prepare(Dataset.from_list(rows), tokenizer, ("completion",))
        joined = [row["prompt_ids"] + row["completion_ids"] for row in ours]
        labels = [[-100] * len(row["prompt_ids"]) + row["completion_ids"] for row in ours]
        theirs = oracle.sft(rows, tokenizer)
        assert joined == [row["input_ids"] for row in theirs]
        assert labels == [row["labels"] for row in theirs]

    def test_conversational_completion(self, oracle):
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in talk_rows()]
        tokenizer = tiny_tokenizer()
        ours, _ = prepare(Dataset.from_list(rows), tokenizer, ("completion",))
        theirs = oracle.sft(rows, tokenizer)
        assert [row["prompt_ids"] + row["completion_ids"] for row in ours] == [row["input_ids"] for row in theirs]
        assert [[-100] * len(r["prompt_ids"]) + r["completion_ids"] for r in ours] == [row["labels"] for row in theirs]

    def test_unpaired(self, oracle):
        talks = enumerate(talk_rows())
        rows = [{"prompt": row["prompt"], "completion": row["chosen"], "label": i % 2 == 0} for i, row in talks]
        tokenizer = tiny_tokenizer()
        ours, account = prepare(Dataset.from_list(rows), tokenizer, ("completion",))
        assert account.format.startswith("unpaired")
        theirs = oracle.kto(rows, tokenizer)
        assert ours.select_columns(["prompt_ids", "completion_ids", "label"]).to_list() == [
            {key: row[key] for key in ("prompt_ids", "completion_ids", "label")} for row in theirs
        ]

    def test_a_data_set_that_trl_prepared_comes_through_unchanged(self, oracle):
        tokenizer = tiny_tokenizer()
        theirs = oracle.dpo(talk_rows(), tokenizer)
        ours, account = prepare(Dataset.from_list(theirs), tokenizer, PAIR, max_length=512)
        assert account.format == "already tokenised (prompt_ids, chosen_ids, rejected_ids)"
        assert ids_of(ours, *PAIR) == theirs


class TestImplicitPrompts:
    """TRL cuts strings at the first character that differs; that may be inside a word or a token."""

    @pytest.mark.parametrize(
        ("chosen", "rejected", "prompt", "answers"),
        [
            ("The sky is blue.", "The sky is black.", "The sky is", (" blue.", " black.")),
            ("Q: one\nA: yes", "Q: one\nA: no", "Q: one\nA:", (" yes", " no")),
            ("Q: one\nyes", "Q: one\nno", "Q: one\n", ("yes", "no")),
            ("The sky", "The sky is blue", "The", (" sky", " sky is blue")),
            ("Is it late? Yes!", "Is it late? Yes.", "Is it late? Yes", ("!", ".")),
            ("\u5929\u7a7a\u662f\u84dd", "\u5929\u7a7a\u662f\u9ed1", "\u5929\u7a7a\u662f", ("\u84dd", "\u9ed1")),
            ("caf\u00e9 cafe\u0301s x", "caf\u00e9 cafes x", "caf\u00e9", (" cafe\u0301s x", " cafes x")),
        ],
    )
    def test_the_cut_is_between_words(self, chosen, rejected, prompt, answers):
        tokenizer = tiny_tokenizer(chat=False)
        ours, _ = prepare(Dataset.from_list([{"chosen": chosen, "rejected": rejected}]), tokenizer, PAIR)
        assert tokenizer.decode(ours[0]["prompt_ids"]) == prompt
        assert decoded(tokenizer, ours[0], *PAIR) == [answer + "<|endoftext|>" for answer in answers]

    def test_no_shared_word_starts_from_bos(self):
        rows = [{"chosen": "Yes indeed.", "rejected": "No way."}]
        tokenizer = tiny_tokenizer(chat=False, bos=True)
        ours, _ = prepare(Dataset.from_list(rows), tokenizer, PAIR)
        assert ours[0]["prompt_ids"] == [tokenizer.bos_token_id]

    def test_no_shared_word_and_no_bos_is_dropped_and_said(self):
        rows = [{"chosen": "Yes indeed.", "rejected": "No way."}, {"chosen": "It is so.", "rejected": "It is not."}]
        ours, account = prepare(Dataset.from_list(rows), tiny_tokenizer(chat=False), PAIR)
        assert ours["row"][:] == [1]
        assert any("no token to start from (row 0)" in line for line in account.summary())


class TestFirstToken:
    def test_without_bos_the_first_token_of_a_text_becomes_the_prompt(self):
        tokenizer = tiny_tokenizer(chat=False)
        ours, _ = prepare(Dataset.from_list([{"text": "The capital of France"}]), tokenizer, ("completion",))
        whole = tokenizer("The capital of France<|endoftext|>")["input_ids"]
        assert ours[0]["prompt_ids"] == whole[:1]
        assert ours[0]["completion_ids"] == whole[1:]

    def test_an_empty_prompt_that_trl_prepared(self):
        row = {"prompt_ids": [], "chosen_ids": [7, 8, 9], "rejected_ids": [7, 6], "chosen_mask": [0, 1, 0]}
        ours, _ = prepare(Dataset.from_list([row]), tiny_tokenizer(), PAIR)
        assert ours[0] == {
            "prompt_ids": [7],
            "chosen_ids": [8, 9],
            "chosen_mask": [1, 0],
            "rejected_ids": [6],
            "rejected_mask": [1],
            "row": 0,
        }

    def test_an_empty_prompt_with_bos(self):
        tokenizer = tiny_tokenizer(chat=False, bos=True)
        ours, account = prepare(Dataset.from_list([pair("", "Paris", "Lyon")]), tokenizer, PAIR)
        assert ours[0]["prompt_ids"] == [tokenizer.bos_token_id]
        assert account.double_bos.count == 0

    def test_two_bos_tokens_are_counted(self):
        rows = [pair(), pair("<s>The sky is")]
        _, account = prepare(Dataset.from_list(rows), tiny_tokenizer(chat=False, bos=True), PAIR)
        assert (account.double_bos.count, account.double_bos.first) == (1, [1])
        assert "Two BOS tokens at the start of 1 row (row 1)." in account.summary()


class TestNoTokenizer:
    """Sentences about a model that is not there; what loads is in test_preparation.py."""

    def refused(self, name, base, **fields):
        model = SimpleNamespace(**({"id": name, "tokenizer": None, "revision": None, "chat_template": None} | fields))
        with pytest.raises(UserError) as caught:
            load_tokenizer(model, base=base)
        return str(caught.value)

    def test_a_folder_that_is_missing(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "models" / "small-model").mkdir(parents=True)
        (tmp_path / "models" / "small-modem.txt").write_text("a file is no model")
        start = "model.id: no tokenizer could be loaded from"
        name = f"{tmp_path}/models/smal-model"
        assert self.refused(name, None) == f"{start} {name!r}: no such folder. Did you mean 'small-model'?"
        said = self.refused("./models/smal-model", tmp_path)
        assert said == f"{start} './models/smal-model': no such folder. Did you mean 'small-model'?"
        assert self.refused("../nowhere/else", tmp_path) == f"{start} '../nowhere/else': no such folder."
        said = self.refused("m", tmp_path, tokenizer="./t")
        assert said == "model.tokenizer: no tokenizer could be loaded from './t': no such folder."

    def test_a_name_that_may_be_either(self, tmp_path):
        """``owner/name`` is asked for on the Hub even where a folder ``owner`` exists."""
        (tmp_path / "owner" / "model-a").mkdir(parents=True)
        assert self.refused("owner/model-b", tmp_path) == (
            "model.id: no tokenizer could be loaded from 'owner/model-b': no such folder, nor a model that the Hub or "
            "its local cache gives. Did you mean 'model-a'?"
        )

    def test_a_folder_without_a_tokenizer(self, tmp_path):
        said = self.refused(str(tmp_path), None)
        assert said.startswith(f"model.id: no tokenizer could be loaded from {str(tmp_path)!r}: ")
        assert said.endswith(". It must be a folder with tokenizer files or a Hub id.")

    @pytest.mark.skipif(not constants.HF_HUB_OFFLINE, reason="needs HF_HUB_OFFLINE=1")
    def test_a_model_on_the_hub_without_a_network(self, tmp_path):
        assert self.refused("no-such-owner/no-such-model", tmp_path) == (
            "model.id: no tokenizer could be loaded from 'no-such-owner/no-such-model': it is not in the local cache, "
            "and the network is switched off (HF_HUB_OFFLINE). Load it once with the network on, or name a folder "
            "that holds the model."
        )
