"""Judges and files that a probe, a training or a recipe's judge cannot use: one sentence each, and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from judges.test_models import TOKENIZER, save_pair, save_reward
from peft import LoraConfig, get_peft_model
from tiny import tiny_tokenizer
from transformers import AutoModelForSequenceClassification
from zoo import tiny_model

from align.cli.main import main

PAIR = {"prompt": "Who wrote the book?", "chosen": " A person", "rejected": " Nobody at all"}
CONTRAST = {"instruction_j": "a b", "response_j": "c", "instruction_k": "d e", "response_k": "f"}
RM_BENCH = {"prompt": "why", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "chat"}
FILES = {
    "pairs": PAIR,
    "contrast": CONTRAST,
    "rm_bench": RM_BENCH,
    "bench": {**PAIR, "subset": "donotanswer"},
    "empty_pairs": {**PAIR, "chosen": " "},
    "empty_contrast": {**CONTRAST, "response_j": ""},
    "empty_bench": {**PAIR, "subset": "donotanswer", "rejected": ""},
}
REWARD = "{{name: {name}, model: {{id: {model}}}, data: {{train: {{path: {file}.jsonl}}}}, "
TRAIN = REWARD + "objective: {{name: bradley_terry}}, train: {{max_steps: 1}}}}"
DPO = REWARD + "objective: {{name: dpo}}, train: {{max_steps: 1}}}}"
SUPERHF = (
    "{{name: {name}, model: {{id: causal}}, data: {{train: {{path: pairs.jsonl}}}}, objective: {{name: superhf}}, "
    "sampling: {{max_new_tokens: 4}}, judge: {{reward: {model}}}, train: {{max_steps: 1}}}}"
)
RECIPES = {
    "train_two": TRAIN.format(name="a", model="two", file="pairs"),
    "train_other": TRAIN.format(name="b", model="other", file="other"),
    "train_empty": TRAIN.format(name="c", model="rm", file="empty_pairs"),
    "train_rm_bench": TRAIN.format(name="d", model="rm", file="rm_bench"),
    "dpo": DPO.format(name="e", model="rm", file="pairs"),
    "judge_two": SUPERHF.format(name="f", model="two"),
    "judge_causal": SUPERHF.format(name="g", model="causal"),
}
TWO = "judge.reward: two gives 2 numbers (num_labels); a reward model gives one."
CAUSAL = "judge.reward: causal is a LlamaForCausalLM; a reward model is a ...ForSequenceClassification with one label."
LANGUAGE = (
    "rm is a LlamaForSequenceClassification, which scores answers and writes none: name a language model. A reward "
    "model is trained with objective: {name: bradley_terry} and judges as judge.reward."
)
TOKEN = (
    "judge.reward: the tokenizer of other gives the token {0}, and the model knows {0}: it is the tokenizer of another "
    "model. Put the model's own into its folder."
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    save_reward(folder / "rm")
    save_reward(folder / "two", num_labels=2)
    save_reward(folder / "other")
    longer = tiny_tokenizer()
    longer.add_tokens(["zyx"])
    longer.save_pretrained(folder / "other")
    save_pair(folder / "pair")
    tiny_model(vocab_size=len(TOKENIZER)).save_pretrained(folder / "causal")
    TOKENIZER.save_pretrained(folder / "causal")
    adapted = AutoModelForSequenceClassification.from_pretrained(folder / "causal", num_labels=1)
    get_peft_model(adapted, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])).save_pretrained(folder / "lora")
    rows = {**FILES, "other": {**PAIR, "chosen": " zyx"}, "other_contrast": {**CONTRAST, "response_j": "zyx"}}
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("probe consistency causal --pairs contrast.jsonl", CAUSAL),
        ("probe stability two --pairs pairs.jsonl", TWO),
        ("probe benchmark two --data bench.jsonl", TWO),
        ("probe consistency other --pairs other_contrast.jsonl", TOKEN.format(len(TOKENIZER))),
        ("probe stability other --pairs other.jsonl", TOKEN.format(len(TOKENIZER))),
        (
            "probe stability --pair rm --pairs pairs.jsonl",
            "judge.pair: rm is a LlamaForSequenceClassification, which scores single answers: name it as judge.reward.",
        ),
        (
            "probe benchmark --pair pair --data rm_bench.jsonl",
            "pair compares two answers, and rows of RM-Bench have more: take a judge that scores one answer.",
        ),
        (
            "probe stability rm --pair pair --pairs pairs.jsonl",
            "A probe asks one judge: name RM, --function MODULE:NAME or, for stability and benchmark, --pair MODEL.",
        ),
        (
            "probe consistency rm --pairs rm_bench.jsonl",
            "rm_bench.jsonl: row 0: these are the columns of a benchmark with several chosen and rejected answers, "
            "such as RM-Bench (prompt, chosen, rejected, domain), not contrast pairs: align probe benchmark "
            "reads them.",
        ),
        (
            "probe stability rm --pairs rm_bench.jsonl",
            "rm_bench.jsonl: none of its rows can be used as a pair: chosen is not text (2 rows).",
        ),
        (
            "probe benchmark rm --data contrast.jsonl",
            "contrast.jsonl: holds contrast pairs (instruction_j, response_j, instruction_k, response_k), no "
            "benchmark: align probe consistency.",
        ),
        (
            "probe consistency rm --pairs empty_contrast.jsonl",
            "empty_contrast.jsonl: row 0: response_j is empty; mend or remove the row.",
        ),
        (
            "probe stability rm --pairs empty_pairs.jsonl",
            "empty_pairs.jsonl: none of its rows can be used as a pair: chosen is empty (2 rows).",
        ),
        (
            "probe benchmark rm --data empty_bench.jsonl",
            "empty_bench.jsonl: every row has an empty answer; there is nothing to judge.",
        ),
        ("train train_two.yaml", "model.id: two gives 2 numbers (num_labels); a reward model gives one."),
        (
            "train train_other.yaml",
            f"2 rows (first: 0, 1) hold token ids outside 0 to {len(TOKENIZER) - 1}, for which the model has no "
            "embedding. Take the model's own tokenizer, or give the model rows for added tokens "
            "(resize_token_embeddings); -100 marks labels and is no token.",
        ),
        ("train train_empty.yaml", "empty_pairs.jsonl: No row of 2 can be used: chosen is empty (2 rows)."),
        ("train train_rm_bench.yaml", "rm_bench.jsonl: No row of 2 can be used: chosen is not text (2 rows)."),
        ("train dpo.yaml", f"model.id: {LANGUAGE}"),
        ("check dpo.yaml", f"model.id: {LANGUAGE}"),
        ("train judge_two.yaml", TWO),
        ("train judge_causal.yaml", CAUSAL),
        ("eval tofu rm", f"model: {LANGUAGE}"),
        ("sample pairs.jsonl --model rm --out drawn.jsonl", f"model: {LANGUAGE}"),
        (
            "sample pairs.jsonl --model lora --out drawn.jsonl",
            "model: lora is the adapter of a reward model, which scores answers and writes none: name that of a "
            "language model. A reward model judges as judge.reward.",
        ),
    ],
)
def test_one_sentence(
    command: str, sentence: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    capfd.readouterr()
    code = main(command.split())
    err = capfd.readouterr().err
    assert code == 2
    assert err.splitlines()[-1] == sentence
    assert "Traceback" not in err
    assert "MISSING" not in err


def test_a_judge_that_compares_is_probed_by_name(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    capfd.readouterr()
    assert main(("probe", "stability", "--pair", "pair", "--pairs", "pairs.jsonl", "--json")) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["pairs"], found["position_bias"]["n"], found["too_long"]) == (2, 2, 0)
    assert main(("probe", "benchmark", "--pair", "pair", "--data", "bench.jsonl", "--json")) == 0
    figure = json.loads(capfd.readouterr().out)["figures"]["Safety"]
    assert (figure["n"], figure["longest"]) == (2, 0.0)
