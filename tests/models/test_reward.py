"""Reward models as they are loaded: what is new in them, and that it is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from training import arguments, pairs, word_tokenizer
from transformers import AutoModel
from zoo import tiny_config

from align import RewardModelTrainer
from align.errors import UserError
from align.judges.reward import RewardModel
from align.models.reward import check_new_weights, read_reward_model


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One without a pooler, as it comes from masked language modelling."""
    folder = tmp_path_factory.mktemp("encoder")
    AutoModel.from_config(tiny_config("bert"), add_pooling_layer=False).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def adapted(encoder: Path, **options: Any) -> Any:
    lora = LoraConfig(target_modules=["query"], task_type="SEQ_CLS", **options)
    return get_peft_model(read_reward_model(str(encoder)), lora)


def test_a_new_pooler_beside_an_adapter_must_be_saved_with_it(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as found:
        RewardModelTrainer(
            str(encoder),
            args=arguments(tmp_path),
            train_dataset=pairs(4),
            processing_class=word_tokenizer(),
            peft_config=LoraConfig(target_modules=["query"], task_type="SEQ_CLS"),
        )
    assert str(found.value) == (
        "The checkpoint has no weights for bert.pooler.dense.bias, bert.pooler.dense.weight, which are new and random, "
        "and a model with an adapter saves the adapter alone: name their modules in modules_to_save, [pooler] (in a "
        "recipe model.lora.modules_to_save), or train all weights."
    )
    # and that is what is wrong with it: nothing can judge with what was saved
    adapted(encoder).save_pretrained(tmp_path / "without")
    with pytest.raises(UserError, match=r"has no weights for bert\.pooler\.dense\.bias"):
        RewardModel(str(tmp_path / "without"), say=lambda _: None)
    mended = adapted(encoder, modules_to_save=["pooler"])
    check_new_weights(mended)
    mended.save_pretrained(tmp_path / "with")
    word_tokenizer().save_pretrained(tmp_path / "with")
    assert len(RewardModel(str(tmp_path / "with"), say=lambda _: None).score(["w1 w2"], [" w3"])) == 1
