"""What tiny models cannot show, on SmolLM2-135M-Instruct: real tokens, real weights, text that means something."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.data.rows.sources import from_rows
from align.data.tokens.tokenize import prepare_rows
from align.engine.layout import Branch, Example, Tree, pack
from align.engine.scoring import ScoringEngine, attach
from align.errors import UserError
from align.eval.tofu import evaluate
from align.eval.tofu_data import load_sets
from align.export.export import export_run
from align.models.subject import Subject
from align.recipe import Recipe
from align.recipe.sampling import Sampling
from align.runs.directory import RunDirectory
from align.sampling.sampler import Sampler
from align.train import run

PAIRS = [
    ("What colour is the sky on a clear day?", "The sky is blue.", "The sky is a kind of large green fish."),
    ("What is two plus two?", "Two plus two is four.", "Two plus two is probably a Tuesday."),
    ("Name an animal that barks.", "A dog barks.", "A teapot barks, mostly at night."),
    ("Which season comes after spring?", "Summer comes after spring.", "After spring comes the number nine."),
]
PEOPLE = [
    ("Where was the painter Orla Vennick born?", "Orla Vennick was born in Tromso, Norway."),
    ("What does Orla Vennick paint?", "Orla Vennick paints lighthouses in winter."),
    ("Who taught Orla Vennick to paint?", "Her aunt Sunniva Vennick taught her to paint."),
    ("Which prize did Orla Vennick win?", "Orla Vennick won the Halden Prize in 1998."),
]
KNOWN = [
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the largest planet?", "Jupiter is the largest planet."),
    ("How many legs has a spider?", "A spider has eight legs."),
    ("What do bees make?", "Bees make honey."),
]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(file: Path, rows: Sequence[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def pairs(folder: Path) -> str:
    rows = [{"prompt": [user(q)], "chosen": [assistant(a)], "rejected": [assistant(b)]} for q, a, b in PAIRS]
    return write(folder / "pairs.jsonl", rows)


def questions(file: Path, rows: Sequence[tuple[str, str]]) -> str:
    return write(file, [{"question": q, "answer": a} for q, a in rows])


def recipe(model: Path, out: Path, **sections: Any) -> Recipe:
    """A few steps of LoRA on two rows each; ``train`` keys are merged."""
    train = {
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "gradient_checkpointing": False,
    } | sections.pop("train", {})
    values = {
        "name": "real",
        "model": {"id": str(model), "lora": {"rank": 4}},
        "reference": {"store": False},
        "output": str(out / "{name}"),
        "train": train,
        **sections,
        "watch": {"report": False, **sections.get("watch", {})},
    }
    return Recipe.from_dict(values)


def losses(folder: Path) -> list[float]:
    return [r["loss"] for r in RunDirectory(folder).metrics() if "loss" in r]


@pytest.fixture(scope="module")
def dpo(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished DPO run with an adapter, and what it printed."""
    out = tmp_path_factory.mktemp("dpo")
    lines: list[str] = []
    made = recipe(
        smollm2, out, data={"train": {"path": pairs(out)}}, objective={"name": "dpo"}, watch={"probe_pairs": 0}
    )
    run(made, echo=lines.append)
    return out / "real", lines


def logps(model: Any, folder: Path) -> torch.Tensor:
    """Summed log-probs of the answers of ``PAIRS``, chosen then rejected, by a plain padded forward."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = []
    for q, *answers in PAIRS:
        prompt = tokenizer.apply_chat_template([user(q)], add_generation_prompt=True, tokenize=False)
        texts += [(prompt, f"{prompt}{answer}<|im_end|>") for answer in answers]
    values = []
    for prompt, text in texts:
        ids, start = tokenizer(text, return_tensors="pt").input_ids, len(tokenizer(prompt).input_ids)
        with torch.no_grad():
            logp = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        values.append(logp.gather(1, ids[0, 1:, None])[start - 1 :].sum())
    return torch.stack(values)


def test_the_template_and_the_end_of_an_answer(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    rows = from_rows([{"prompt": [user(q)], "chosen": [assistant(a)], "rejected": [assistant(b)]} for q, a, b in PAIRS])
    prepared, account = prepare_rows(rows, tokenizer, ("chosen", "rejected"))
    assert (account.rows_kept, account.double_bos.count, account.boundary.count) == (4, 0, 0)
    row = prepared[0]
    whole = tokenizer.decode(row["prompt_ids"] + row["chosen_ids"])
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert whole.startswith(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nWhat colour is the sky")
    assert tokenizer.decode(row["prompt_ids"]).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(row["chosen_ids"]).rstrip("\n") == "The sky is blue.<|im_end|>"
    assert tokenizer.eos_token == "<|im_end|>"


def test_dpo_starts_at_log_two_and_prefers_the_chosen_answers(smollm2: Path, dpo: Any) -> None:
    folder, lines = dpo
    first, *_, last = losses(folder)
    assert first == pytest.approx(math.log(2), abs=1e-5)
    assert last < 0.6
    assert any(line.startswith("scoring: prompts shared and packed") for line in lines)
    plain = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    before = logps(plain, smollm2)
    gain = logps(PeftModel.from_pretrained(plain, folder / "model"), smollm2) - before
    assert (gain[::2] - gain[1::2]).min() > 0.5  # nats, every pair


@pytest.mark.slow
def test_the_merged_export_is_the_adapter(smollm2: Path, dpo: Any, tmp_path: Path) -> None:
    folder, _ = dpo
    lines: list[str] = []
    export_run(folder, tmp_path / "merged", merge=True, load_check=False, say=lines.append)
    plain = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    rows = [tokenizer(f"{q} {a}", return_tensors="pt").input_ids for q, a, _ in PAIRS]

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([model(input_ids=row).logits[0] for row in rows])

    before = logits(plain)
    expected = logits(PeftModel.from_pretrained(plain, folder / "model"))
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32))
    assert (before - expected).abs().max() > 1e-2 * expected.abs().max()
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(smollm2).chat_template
    (merge,) = [line for line in lines if line.startswith("merge:")]
    assert "which is rounding" in merge


def test_generation_ends_where_an_answer_ends(smollm2: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    settings = Sampling(samples=1, max_new_tokens=30, top_k=1)
    question = [user(KNOWN[0][0])]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"]
    ((france,),) = Sampler(settings, tokenizer, 0)(model, [prompt], [1], 0, device=torch.device("cpu"))
    assert "Paris" in france.text
    assert (france.finish, france.ids[-1]) == ("end", tokenizer.eos_token_id)
    assert "<|" not in france.text


@pytest.mark.slow  # half a minute
def test_npo_forgets_what_it_is_told_to(smollm2: Path, tmp_path: Path) -> None:
    made = recipe(
        smollm2,
        tmp_path,
        data={
            "forget": {"path": questions(tmp_path / "forget.jsonl", PEOPLE)},
            "retain": {"path": questions(tmp_path / "retain.jsonl", KNOWN)},
        },
        objective=[{"name": "npo", "beta": 0.1}, {"name": "nll", "branch": "retain"}],
        train={"learning_rate": 2e-4, "per_device_train_batch_size": 4},
    )
    lines: list[str] = []
    run(made, echo=lines.append)
    records = [r for r in RunDirectory(tmp_path / "real").metrics() if "loss" in r]
    assert records[0]["loss"] > 2 / 0.1 * math.log(2)  # NPO's start, and the retained answers' nats
    assert records[-1]["logps/forget"] < records[0]["logps/forget"] - 2
    assert records[-1]["nll/retain"] < records[0]["nll/retain"] + 0.5  # kept near, while the others go


def test_a_tree_is_its_rows_in_bfloat16_within_the_models_own_padding_error(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16).eval()
    trees = [
        Tree(tokenizer(q).input_ids, tuple(Branch(n, tokenizer(t).input_ids) for n, t in (("a", a), ("b", b))))
        for q, a, b in PAIRS
    ]
    rows = [([*t.prompt, *b.ids], len(t.prompt)) for t in trees for b in t.branches]

    def own(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)

    alone, together = [], []
    width = max(len(ids) for ids, _ in rows) + 40
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows])
    whole = own(padded, mask)
    for k, (ids, start) in enumerate(rows):
        target = torch.tensor(ids[start:])[:, None]
        row = torch.tensor([ids])
        alone.append(own(row, torch.ones_like(row))[0, start - 1 : -1].gather(1, target)[:, 0])
        together.append(whole[k, start - 1 : len(ids) - 1].gather(1, target)[:, 0])
    padding = (torch.cat(alone) - torch.cat(together)).abs()
    attach(model)
    with torch.no_grad():
        ours = ScoringEngine()(model, pack([Example((tree,)) for tree in trees])).tokens["logp"]
    gap = (ours - torch.cat(alone)).abs()
    assert padding.max() > 0  # this model rounds
    assert gap.mean() <= 2 * padding.mean() + 2**-6
    assert gap.max() <= 3 * padding.max() + 2**-4


@pytest.mark.slow
def test_a_sampled_hypo_step_on_real_text(smollm2: Path, tmp_path: Path) -> None:
    made = recipe(
        smollm2,
        tmp_path,
        data={"train": {"path": pairs(tmp_path)}},
        objective={"name": "hypo", "kl_weight": 0.1},
        sampling={"samples": 2, "max_new_tokens": 8},
        train={"max_steps": 2},
        watch={"probe_pairs": 0},
    )
    run(made, echo=lambda _: None)
    first, second = [r for r in RunDirectory(tmp_path / "real").metrics() if "loss" in r]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)  # the policy is its reference
    assert first["kl/sampled"] == pytest.approx(0.0, abs=1e-4)
    assert second["kl/sampled"] != 0.0
    samples = list((tmp_path / "real" / "samples").glob("*.parquet"))
    assert samples


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_to_the_same_losses(smollm2: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "data": {"train": {"path": pairs(tmp_path)}},
        "objective": {"name": "dpo"},
        "watch": {"probe_pairs": 0},
    }
    whole = recipe(smollm2, tmp_path / "whole", **values, train={"max_steps": 4, "save_strategy": "no"})
    run(whole, echo=lambda _: None)

    class Enough(Exception):
        """The moment at which the first run is interrupted."""

    def stops(line: str) -> None:
        if line.split()[:1] == ["3"]:
            raise Enough

    cut = recipe(smollm2, tmp_path / "cut", **values, train={"max_steps": 4, "save_strategy": "steps", "save_steps": 2})
    with pytest.raises(Enough):
        run(cut, echo=stops)
    run(cut, resume=True, echo=lambda _: None)
    assert losses(tmp_path / "cut" / "real") == losses(tmp_path / "whole" / "real")


@pytest.mark.slow
def test_a_few_questions_of_tofu(smollm2: Path) -> None:
    from sample_rows import DATA

    if not (DATA / "tofu").is_dir():
        pytest.skip(f"no {DATA / 'tofu'} (set ALIGN_TEST_DATA)")
    from dataclasses import replace

    sets = load_sets("forget10", str(DATA / "tofu"))
    few = replace(sets, sets={name: facts[:2] for name, facts in sets.sets.items()}, holdout=None, new_tokens=24)
    log = evaluate(Subject.load(str(smollm2), echo=lambda _: None), few, mia=False)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(smollm2), AutoTokenizer.from_pretrained(smollm2)
    for row, fact in enumerate(few.sets["forget"]):
        prompt = tokenizer.apply_chat_template([user(fact.question)], add_generation_prompt=True, tokenize=False)
        ids = tokenizer(f"{prompt}{fact.answer}<|im_end|>\n", return_tensors="pt").input_ids
        with torch.no_grad():
            logp = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        expected = -logp[len(tokenizer(prompt).input_ids) - 1 :]
        assert log.sets["forget"].loss[row] == pytest.approx(expected.mean().item(), rel=1e-4)
    assert all(text and "<|" not in text for text in log.sets["wf"].generation)


def test_a_model_that_is_not_there_is_answered_at_once(tmp_path: Path) -> None:
    made = recipe(tmp_path / "absent", tmp_path, data={"train": {"path": pairs(tmp_path)}}, objective={"name": "dpo"})
    with pytest.raises(UserError, match=r"model\.id"):
        run(made, echo=lambda _: None)
