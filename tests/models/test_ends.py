"""Which tokens end a text: EOS, what the model names, and what the chat template closes an answer with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from tiny import CHATML, tiny_tokenizer
from training import arguments
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerBase
from zoo import tiny_model

from align.cli.check_rows import check_rows
from align.data.tokens.endings import count_ends, open_end, turn_end
from align.data.tokens.tokenize import prepare
from align.models.ends import end_ids, name_ends
from align.models.load import load_checkpoint
from align.objectives import NLL
from align.trainers.base import AlignTrainer

EOS, START, END = 0, 1, 2  # <|endoftext|>, <|im_start|>, <|im_end|>
ROWS = [
    {
        "prompt": [{"role": "user", "content": f"What is the capital of {place}?"}],
        "completion": [{"role": "assistant", "content": "The capital is Paris."}],
    }
    for place in ("France", "the north")
]


def base_tokenizer(template: str = CHATML) -> PreTrainedTokenizerBase:
    """As of a base model: EOS is <|endoftext|>, and the chat template is the recipe's."""
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.chat_template = template
    return tokenizer


def prepared(tokenizer: PreTrainedTokenizerBase, rows: list[dict] = ROWS, **limits: Any) -> Dataset:
    return prepare(Dataset.from_list(rows), tokenizer, ("completion",), **limits)[0]


def model_with(ends: int | list[int] | None) -> Any:
    model = tiny_model(vocab_size=400)
    model.generation_config = GenerationConfig(eos_token_id=ends)
    return model


def test_the_end_of_turn_ends_a_text_beside_eos_and_what_the_model_names() -> None:
    tokenizer = base_tokenizer()
    assert turn_end(tokenizer) == END
    assert end_ids(model_with(None), tokenizer) == [EOS, END]
    assert end_ids(model_with([7, 5]), tokenizer) == [EOS, END, 5, 7]
    assert end_ids(model_with(5), tiny_tokenizer(chat=False)) == [EOS, 5]


@pytest.mark.parametrize(
    ("closing", "end", "behind"),
    [
        ("{{ '<|im_end|>\n\n' }}", END, None),
        ("{{ '<|im_end|>' + eos_token }}", EOS, None),
        ("{{ '</turn>\n' }}", None, "</turn>\n"),  # several tokens
        ("{{ '\n' }}", None, "\n"),
        ("", None, ""),
    ],
)
def test_what_closes_an_answer_is_found_behind_blanks(closing: str, end: int | None, behind: str | None) -> None:
    tokenizer = base_tokenizer(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}" + closing + "{% endfor %}"
    )
    assert (turn_end(tokenizer), open_end(tokenizer)) == (end, behind)


def test_an_added_token_that_is_not_marked_special_closes_answers_too() -> None:
    tokenizer = base_tokenizer("{% for m in messages %}{{ m['content'] + '<end_of_turn>\n' }}{% endfor %}")
    assert turn_end(tokenizer) is None
    tokenizer.add_tokens(["<end_of_turn>"])
    assert turn_end(tokenizer) == tokenizer.convert_tokens_to_ids("<end_of_turn>")


def test_a_template_that_refuses_or_is_absent_closes_with_nothing_known() -> None:
    tokenizer = base_tokenizer("{{ raise_exception('a system message is needed') }}")
    assert (turn_end(tokenizer), open_end(tokenizer)) == (None, None)
    plain = tiny_tokenizer(chat=False)
    assert (turn_end(plain), open_end(plain)) == (None, None)


def test_ends_of_rows_are_counted_without_the_line_break_behind() -> None:
    tokenizer = base_tokenizer()
    assert count_ends(prepared(tokenizer), tokenizer) == {END: 2}
    texts = [{"prompt": "Who?", "completion": " Me."}] * 3
    assert count_ends(prepared(tokenizer, texts), tokenizer) == {EOS: 3}
    pairs = Dataset.from_list([{"prompt_ids": [9], "chosen_ids": [8, END], "rejected_ids": [8, 8, 7]}])
    assert count_ends(pairs, tokenizer) == {END: 1, 7: 1}
    assert count_ends(Dataset.from_list([{"prompt_ids": [9]}]), tokenizer) == {}


def test_the_generation_config_names_what_answers_end_in() -> None:
    tokenizer = base_tokenizer()
    model = model_with(EOS)
    said = name_ends(model, tokenizer, [prepared(tokenizer)])
    assert said == [
        "warning: 2 answers end in <|im_end|>, but generation stops at <|endoftext|> alone: <|im_end|> becomes an end "
        "of text in the generation config of what is saved, and ends samples here"
    ]
    assert model.generation_config.eos_token_id == [EOS, END]
    assert name_ends(model, tokenizer, [prepared(tokenizer)]) == []  # as of Gemma and Llama 3, which name both


@pytest.mark.parametrize(
    ("rows", "ends", "expected"),
    [
        ([{"prompt": "Who?", "completion": " Me."}], EOS, EOS),
        (ROWS, [EOS, END, 9], [EOS, END, 9]),
        (ROWS, 9, [EOS, END, 9]),
        (ROWS, None, [EOS, END]),
    ],
)
def test_what_is_named_stays_and_texts_that_end_in_eos_change_nothing(rows: Any, ends: Any, expected: Any) -> None:
    tokenizer, model = base_tokenizer(), model_with(ends)
    name_ends(model, tokenizer, [prepared(tokenizer, rows)])
    assert model.generation_config.eos_token_id == expected


def test_prompts_without_answers_are_sampled_to_the_end_of_turn_which_is_saved_too() -> None:
    tokenizer, model = base_tokenizer(), model_with(EOS)
    said = name_ends(model, tokenizer, [Dataset.from_list([{"prompt_ids": [9, 8]}])])
    assert said == [
        "<|im_end|> becomes an end of text in the generation config of what is saved, and ends samples here"
    ]
    assert model.generation_config.eos_token_id == [EOS, END]


@pytest.mark.parametrize("lora", [False, True])
def test_a_trained_model_and_an_adapter_stop_at_the_end_of_turn(tmp_path: Path, lora: bool) -> None:
    tokenizer = base_tokenizer()
    model = model_with(EOS)
    model.save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    said: list[str] = []
    trainer = AlignTrainer(
        model,
        NLL(branch="completion"),
        arguments(tmp_path / "out", max_steps=1),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
        peft_config=LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM") if lora else None,
    )
    trainer.echo = said.append
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert next(line for line in said if "<|im_end|>" in line).startswith("warning: 2 answers end in <|im_end|>, but ")
    loaded, again = load_checkpoint(str(tmp_path / "saved"))
    assert end_ids(loaded, again) == [EOS, END]
    if not lora:
        assert GenerationConfig.from_pretrained(tmp_path / "saved").eos_token_id == [EOS, END]


def test_check_names_ends_that_stop_nothing() -> None:
    tokenizer = base_tokenizer()
    found = {f.code: f.text for f in check_rows(ROWS, tokenizer, ("completion",), ends={EOS}).findings}
    assert found["other_end"] == (
        "2 answers end in <|im_end|>, but generation stops at <|endoftext|> alone: align train adds it to the "
        "generation config of what it saves"
    )
    assert "other_end" not in {f.code for f in check_rows(ROWS, tokenizer, ("completion",), ends={END}).findings}
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '</turn>\n' }}{% endfor %}"
    report = check_rows(ROWS, tokenizer, ("completion",), ends={EOS})
    said = (
        "the chat template closes answers with '</turn>', which is no token of its own, so generation will not stop: "
        "add it to the tokenizer as a special token, or let the template (model.chat_template) end turns with EOS"
    )
    assert [f.text for f in report.findings if f.code == "no_end"] == [said]
    assert f"warning: 2 rows: {said}." in report.preparation.summary()
