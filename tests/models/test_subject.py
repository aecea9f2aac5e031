"""The model that is measured: values against its own logits, generation against its own, one row at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny import tiny_tokenizer
from zoo import tiny_model, token_ids

from align.compat import training_config
from align.engine.reads import ArgmaxHit, Entropy, LogProb
from align.engine.scoring import ScoringEngine, attach
from align.errors import UserError
from align.eval.membership import LogProbVariance, gradient_norms
from align.models.subject import Subject
from align.objectives import NLL
from align.runs.directory import RunDirectory
from align.trainers.base import AlignTrainer

READS = (LogProb(), ArgmaxHit(), Entropy(), LogProbVariance())


def _subject(name: str = "llama", **options: Any) -> Subject:
    tokenizer = tiny_tokenizer()
    model = tiny_model(name, vocab_size=len(tokenizer), **options)
    attach(model)
    return Subject(model, tokenizer, ScoringEngine())


def _rows(seed: int = 3) -> tuple[list[list[int]], list[dict[str, list[int]]]]:
    """Prompts with one to four answers, of lengths in no order."""
    ids = token_ids(seed)
    shapes = [(9, (7, 11, 1)), (1, (3,)), (14, (5, 2, 8, 6)), (3, (6, 6)), (20, (1,)), (2, (9, 4))]
    return [ids(p) for p, _ in shapes], [{f"answer {k}": ids(n) for k, n in enumerate(a)} for _, a in shapes]


def _own(model: Any, prompt: list[int], ids: list[int]) -> dict[str, np.ndarray]:
    """The same values from the model's own logits of one unpadded row."""
    logits = model(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    logp = logits.detach().double().log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    values = {
        "logp": logp.gather(1, torch.tensor(ids)[:, None])[:, 0],
        "argmax_hit": (logits.argmax(-1) == torch.tensor(ids)).double(),
        "entropy": entropy,
        "logp_variance": (logp.exp() * logp**2).sum(-1) - entropy**2,
    }
    return {name: value.numpy() for name, value in values.items()}


@pytest.mark.parametrize(
    ("mode", "dtype", "tolerance"),
    [("tree", torch.float64, 1e-9), ("padded", torch.float64, 1e-9), ("tree", torch.float32, 1e-5)],
)
def test_values_are_those_of_the_models_own_logits(
    mode: Any, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("align.models.batches._PACK", 40)  # several packs
    subject = _subject(dtype=dtype)
    subject.engine.mode = mode
    prompts, branches = _rows()
    found = subject.score(prompts, branches, READS)
    for prompt, named, values in zip(prompts, branches, found, strict=True):
        assert list(values) == list(named)
        for name, ids in named.items():
            for read, expected in _own(subject.model, prompt, ids).items():
                np.testing.assert_allclose(values[name][read], expected, rtol=tolerance, atol=tolerance)
                assert values[name][read].dtype == np.float64
    assert not any(p.grad is not None for p in subject.model.parameters())


def test_packs_do_not_depend_on_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank's share, put together, is what one process computes: not a bit differs."""
    monkeypatch.setattr("align.models.batches._PACK", 40)
    prompts, branches = _rows()
    alone = _subject()
    whole = alone.score(prompts, branches, READS)
    shares: list[Any] = []
    monkeypatch.setattr(Subject, "in_order", lambda self, mine, count: shares.append((self.engine.tokens, mine)))
    for rank in range(3):
        part = _subject()
        part.rank, part.world = rank, 3
        part.score(prompts, branches, READS)
    together = {row: values for _, mine in shares for row, values in mine}
    assert sum(len(mine) for _, mine in shares) == len(prompts)
    for row, values in enumerate(whole):
        for name, reads in values.items():
            for read, array in reads.items():
                assert np.array_equal(together[row][name][read], array)


def test_processes_on_unlike_devices_plan_the_same_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("align.models.subject.pack_positions", lambda model, device: 40)
    monkeypatch.setattr("accelerate.utils.gather_object", lambda mine: [*mine, 25])
    subject, (prompts, branches) = _subject(), _rows()
    counted: list[int] = []
    subject.model.get_input_embeddings().register_forward_pre_hook(lambda _, given: counted.append(given[0].numel()))
    subject.world = 2
    monkeypatch.setattr(Subject, "in_order", lambda self, mine, count: [])
    subject.score(prompts, branches, READS)
    assert max(counted) == 34  # the longest row, in a pack of its own
    assert all(count <= 25 or count == 34 for count in counted)


def test_a_row_beyond_the_models_positions_is_refused() -> None:
    subject = _subject(max_position_embeddings=20)
    with pytest.raises(UserError, match="answer row 1 has 21 tokens, but the model reads 20 at most"):
        subject.score([[3], [3] * 15], [{"a": [4]}, {"a": [4, 5], "b": [4] * 6}], where="answer row")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_generation_is_that_of_one_prompt_at_a_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("align.models.batches.BATCH", 3)
    # in float64 padding cannot move a tie
    subject = _subject(kind, dtype=torch.float64, seed=5)
    # what a checkpoint says of sampling must not matter
    subject.model.generation_config.do_sample = True
    subject.model.generation_config.repetition_penalty = 1.8
    prompts = _rows()[0]
    eos = subject.tokenizer.eos_token_id
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) < len(prompt) + 25 and (len(ids) == len(prompt) or ids[-1] != eos):
            ids.append(int(subject.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        new = [i for i in ids[len(prompt) :] if i != eos]
        expected.append(subject.tokenizer.decode(new, skip_special_tokens=True).strip())
    assert len(set(expected)) > 3
    assert subject.generate(prompts, 25) == expected
    stop = expected[0][4]
    assert subject.generate(prompts, 25, (stop,)) == [text.split(stop)[0].strip() for text in expected]


def test_a_text_ends_at_the_end_token(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = _subject(dtype=torch.float64, seed=5)
    prompt = [[10, 11, 12]]
    free = subject.generate(prompt, 8)[0]
    first = int(subject.model(input_ids=torch.tensor(prompt), use_cache=False).logits[0, -1].argmax())
    subject.model.generation_config.eos_token_id = [first]
    assert free != ""
    assert subject.generate(prompt, 8) == [""]


def test_what_does_not_fit_into_the_positions_is_said() -> None:
    said: list[str] = []
    subject = _subject(max_position_embeddings=20)
    subject.say = said.append
    assert len(subject.generate([[5] * 17, [6] * 3], 10)) == 2
    assert "end before 10 new tokens" in said[0]
    with pytest.raises(UserError, match="row 0 has a prompt of 20 tokens"):
        subject.generate([[5] * 20, [6] * 3], 10)
    assert subject.generate([], 10) == []


def test_gradient_norms_are_means_over_parameter_tensors() -> None:
    subject = _subject(dtype=torch.float64)
    prompts, branches = _rows()
    replies = [named["answer 0"] for named in branches]
    kept = [max(1, len(r) - 1) for r in replies]
    for parameter in subject.model.model.layers[0].parameters():
        parameter.requires_grad_(False)
    found = gradient_norms(subject, prompts, replies, kept)
    assert not any(p.requires_grad for p in subject.model.model.layers[0].parameters())
    assert all(p.grad is None for p in subject.model.parameters())
    for parameter in subject.model.parameters():
        parameter.requires_grad_(True)
    for row in range(len(prompts)):
        subject.model.zero_grad()
        ids = [*prompts[row], *replies[row]]
        labels = torch.tensor([[-100] * len(prompts[row]) + replies[row][: kept[row]]])
        logits = subject.model(input_ids=torch.tensor([ids[: labels.shape[1]]]), use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:]).backward()
        norms = [p.grad.norm() for p in subject.model.parameters()]
        assert found[row] == pytest.approx(torch.stack(norms).mean().item(), rel=1e-9, abs=0)


# ---- where models come from


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_folder_run_and_adapter_are_loaded(saved: Path, tmp_path: Path) -> None:
    said: list[str] = []
    prompts, branches = _rows()
    plain = Subject.load(str(saved), echo=said.append)
    assert "prompts shared" in said[0]
    expected = plain.score(prompts, branches)
    run = tmp_path / "run"
    RunDirectory(run).write_lock({"recipe": {}})
    with pytest.raises(UserError, match="a run without a model"):
        Subject.load(str(run))
    saved.rename(run / "model")
    again = Subject.load(str(run), echo=said.append).score(prompts, branches)
    assert np.array_equal(again[2]["answer 1"]["logp"], expected[2]["answer 1"]["logp"])

    base = Subject.load(str(run / "model"), echo=said.append).model
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        own = _own(adapted.eval(), prompts[0], branches[0]["answer 0"])["logp"]
    found = Subject.load(str(tmp_path / "adapter"), echo=said.append).score(prompts, branches)[0]["answer 0"]["logp"]
    np.testing.assert_allclose(found, own, rtol=1e-5, atol=1e-5)
    assert np.abs(found - expected[0]["answer 0"]["logp"]).max() > 0.01


def test_a_named_type_is_used(saved: Path) -> None:
    assert next(Subject.load(str(saved), echo=str).model.parameters()).dtype == torch.float32
    assert next(Subject.load(str(saved), "bfloat16", echo=str).model.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("{}/save", "no such folder. Did you mean 'saved'"),
        ("{}/saved/config.json", "is a file; a model is a folder"),
        ("{}", "cannot be loaded"),
        ("nobody/nothing", r"nobody/nothing cannot be loaded .*a Hub id that can be reached"),
        ("{}/adapter", "gone, which the adapter .*adapter was trained on, cannot be loaded"),
    ],
)
def test_bad_names_are_said(
    saved: Path, tmp_path: Path, name: str, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "nobody/gone"}')
    with pytest.raises(UserError, match=match):
        Subject.load(name.format(tmp_path))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning")  # TRL's names, as in pyproject.toml
def test_the_policy_of_a_trainer_before_and_after_training(saved: Path, tmp_path: Path) -> None:
    prompts, branches = _rows()
    rows = [{"prompt_ids": p, "forget_ids": b["answer 0"]} for p, b in zip(prompts, branches, strict=True)]
    args = training_config(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=3, max_steps=2, learning_rate=1e-2,
        report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True, bf16=False,
    )  # fmt: skip
    trainer = AlignTrainer(str(saved), NLL(branch="forget"), args, train_dataset=Dataset.from_list(rows))
    trainer.echo = lambda _: None
    before = Subject.of(trainer).score(prompts, branches)
    np.testing.assert_allclose(
        before[0]["answer 1"]["logp"],
        Subject.load(str(saved), echo=str).score(prompts, branches)[0]["answer 1"]["logp"],
        rtol=1e-5,
    )
    trainer.train()
    subject = Subject.of(trainer)
    trainer.model.train()
    after = subject.score(prompts, branches)
    texts = subject.generate(prompts, 12)
    assert trainer.model.training
    np.testing.assert_allclose(
        after[0]["answer 1"]["logp"], _own(trainer.model.eval(), prompts[0], branches[0]["answer 1"])["logp"], rtol=1e-4
    )
    assert np.abs(after[0]["answer 0"]["logp"] - before[0]["answer 0"]["logp"]).max() > 1e-3
    trainer.save_model(str(tmp_path / "trained"))
    assert Subject.load(str(tmp_path / "trained"), echo=str).generate(prompts, 12) == texts
