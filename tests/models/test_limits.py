"""Token ids and positions that a model does not have: refused before a step, with the rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset, concatenate_datasets
from training import arguments, pairs, word_tokenizer
from transformers import AutoConfig
from zoo import VOCABULARY

from align.errors import UserError
from align.models.limits import (
    beyond_positions,
    beyond_vocabulary,
    has_position_table,
    positions_of,
    refuse_beyond,
    skeleton,
    vocabulary_of,
)
from align.objectives import DPO
from align.trainers.preference import PreferenceTrainer

PAIR = ("chosen", "rejected")


def model(kind: str = "llama", **options: object) -> object:
    from transformers import AutoModelForCausalLM

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**small, "vocab_size": 50, **options}))


def rows(*chosen: list, **columns: list) -> Dataset:
    given = {"prompt_ids": [[1, 2]] * len(chosen), "chosen_ids": list(chosen), "rejected_ids": [[4]] * len(chosen)}
    return Dataset.from_dict(given | columns)


def test_ids_that_are_counted_with_their_rows():
    data = rows([3], [3, 50], [49], [-100], [None, 3], row=[10, 11, 12, 13, 14])
    tally = beyond_vocabulary(data, PAIR, 50)
    assert (tally.count, tally.first) == (3, [11, 13, 14])
    assert beyond_vocabulary(data, ("rejected",), 50).count == 0
    assert beyond_vocabulary(rows([3], [None, 3]), PAIR, 50).first == [1]
    assert beyond_vocabulary(data.select([2, 1]), PAIR, 50).first == [11]
    parts = concatenate_datasets([rows([3], [4]), rows([5], [50]), rows([3], [60])])  # lies in pieces
    assert beyond_vocabulary(parts, PAIR, 50).first == [3, 5]


def test_a_prompt_of_its_own_counts():
    data = rows([3] * 4, [3] * 5, chosen_prompt_ids=[[1] * 6, [1]])
    tally, most = beyond_positions(data, ("chosen",), 9)
    assert (tally.first, most) == ([0], 10)
    tally, most = beyond_positions(data.remove_columns("chosen_prompt_ids"), ("chosen",), 6)
    assert (tally.first, most) == ([1], 7)


@pytest.mark.parametrize(("chosen", "kind"), [([1.5], "double"), (["a"], "string"), (3, "int64")])
def test_columns_of_something_else(chosen, kind):
    with pytest.raises(UserError, match=rf"column chosen_ids of the prepared rows holds .*{kind}.*; expected lists"):
        beyond_vocabulary(rows(chosen), PAIR, 50)


@pytest.mark.parametrize(
    ("kind", "table"),
    [("gpt2", True), ("opt", True), ("gptj", True), ("llama", False), ("xglm", False), ("bloom", False)],
)
def test_which_positions_end(kind, table):
    config = AutoConfig.for_model(kind)
    assert has_position_table(skeleton(config)) is table
    assert (positions_of(config) is None) == (kind == "bloom")
    assert vocabulary_of(skeleton(config)) == config.vocab_size
    assert {weight.device.type for weight in skeleton(config).parameters()} == {"meta"}


def test_refused_with_the_whole_sentence():
    with pytest.raises(UserError) as refused:
        refuse_beyond(model(), rows([3], [50], [-100]), PAIR)
    assert str(refused.value) == (
        "2 rows (first: 1, 2) hold token ids outside 0 to 49, for which the model has no embedding. Take the model's "
        "own tokenizer, or give the model rows for added tokens (resize_token_embeddings); -100 marks labels and is no "
        "token."
    )
    long = rows([3] * 22, [3] * 23, [3] * 30)
    with pytest.raises(UserError) as refused:
        refuse_beyond(model("gpt2", n_positions=24, bos_token_id=0, eos_token_id=0), long, PAIR)
    assert str(refused.value) == (
        "2 rows (first: 1, 2) are longer than the 24 positions that the model has; the longest has 32 tokens. Set "
        "data.max_length to 24 or less."
    )
    refuse_beyond(model(max_position_embeddings=24), long, PAIR)  # rotary positions go on
    refuse_beyond(model("gpt2", n_positions=32, bos_token_id=0, eos_token_id=0), long, PAIR)


@pytest.mark.parametrize("where", ["train_dataset", "eval_dataset"])
def test_a_trainer_refuses_before_the_first_step(where: str, tmp_path: Path):
    bad = pairs(3).to_list()
    bad[1]["rejected_ids"][0] = VOCABULARY
    data = {"train_dataset": pairs(3), where: Dataset.from_list(bad)}
    with pytest.raises(UserError, match=r"^1 row \(row 1\) holds token ids outside 0 to"):
        PreferenceTrainer(
            model(vocab_size=VOCABULARY), DPO(), arguments(tmp_path), processing_class=word_tokenizer(), **data
        )
