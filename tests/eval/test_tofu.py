"""TOFU on a tiny model, against padded forwards and greedy loops written out here."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from zoo import tiny_model

from align.engine.scoring import ScoringEngine, attach
from align.errors import UserError
from align.eval import tofu
from align.eval.log_read import read_log
from align.eval.tofu import evaluate
from align.eval.tofu_data import TofuSets, load_sets
from align.eval.tofu_metrics import metrics
from align.models.subject import Subject


def _subject(*, chat: bool = False, seed: int = 0, **options: Any) -> Subject:
    tokenizer = tiny_tokenizer(chat=chat)
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=512, seed=seed, **options)
    attach(model)
    return Subject(model, tokenizer, ScoringEngine(), name="tiny")


@pytest.fixture(scope="module")
def sets() -> TofuSets:
    """A few rows of the generated world, of unequal counts."""
    whole = load_sets("forget", "world:1")
    counts = {"forget": 7, "retain": 5, "ra": 4, "wf": 3}
    assert whole.holdout is not None
    return replace(whole, sets={n: whole.sets[n][:k] for n, k in counts.items()}, holdout=whole.holdout[:6])


def _padded(subject: Subject, questions: Sequence[str], answers: Sequence[str]) -> list[torch.Tensor]:
    """Log-softmax rows [T, V] and targets of each answer, from one right-padded batch of whole texts."""
    tokenizer = subject.tokenizer
    if tokenizer.chat_template:
        prompts = [f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n" for q in questions]
        texts = [f"{p}{a}<|im_end|>\n" for p, a in zip(prompts, answers, strict=True)]
    else:
        prompts = [f"Question: {q}\nAnswer:" for q in questions]
        texts = [f"{p} {a}<|endoftext|>" for p, a in zip(prompts, answers, strict=True)]
    starts = [len(tokenizer(p)["input_ids"]) for p in prompts]
    rows = [tokenizer(t)["input_ids"] for t in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        logp = subject.model(input_ids=ids, attention_mask=mask, use_cache=False).logits.double().log_softmax(-1)
    return [
        (logp[i, start - 1 : len(row) - 1], torch.tensor(row[start:]))
        for i, (row, start) in enumerate(zip(rows, starts, strict=True))
    ]


def _loss(pair: Any) -> float:
    logp, targets = pair
    return -logp.gather(1, targets[:, None]).mean().item()


@pytest.mark.parametrize(
    ("chat", "dtype", "tolerance"),
    [(False, torch.float64, 1e-9), (True, torch.float64, 1e-9), (False, torch.float32, 1e-5)],
)
def test_losses_are_those_of_padded_batches(sets: TofuSets, chat: bool, dtype: torch.dtype, tolerance: float) -> None:
    subject = _subject(chat=chat, dtype=dtype)
    log = evaluate(subject, sets, generate=False, mia=False)
    assert log.name == "tiny"
    assert log.mia == {}
    for name, facts in sets.sets.items():
        questions = [f.question for f in facts]
        items = log.sets[name]
        expected = [_loss(p) for p in _padded(subject, questions, [f.answer for f in facts])]
        np.testing.assert_allclose(items.loss, expected, rtol=tolerance)
        wrong = [[_loss(p) for p in _padded(subject, [f.question] * len(f.wrong), f.wrong)] for f in facts]
        np.testing.assert_allclose(items.wrong_loss, wrong, rtol=tolerance)
        assert items.wrong_loss.shape == (len(facts), 5 if name in ("forget", "retain") else 3)
        if name in ("ra", "wf"):
            assert items.para_loss is None
        else:
            pairs = _padded(subject, questions, [str(f.paraphrased_answer) for f in facts])
            np.testing.assert_allclose(items.para_loss, [_loss(p) for p in pairs], rtol=tolerance)
        assert items.generation is None


@pytest.mark.parametrize("chat", [False, True])
def test_memorisation_and_membership_leave_the_end_token_out(sets: TofuSets, chat: bool) -> None:
    subject = _subject(chat=chat, dtype=torch.float64)
    log = evaluate(subject, sets, generate=False)
    facts = sets.sets["forget"]
    pairs = _padded(subject, [f.question for f in facts], [f.answer for f in facts])
    tail = 2 if chat else 1  # ChatML closes with <|im_end|> and a line break
    for row, (logp, targets) in enumerate(pairs):
        hits = (logp.argmax(-1) == targets)[: len(targets) - tail].tolist()
        prefix = next(k for k in range(len(hits) + 1) if all(hits[k:]))
        assert log.scores["exact_memorization"][row] == pytest.approx(sum(hits) / len(hits))
        assert log.scores["extraction_strength_corrected"][row] == pytest.approx(1 - prefix / len(hits))
        assert log.scores["extraction_strength"][row] == pytest.approx(max(1 - prefix / len(hits), 1 / len(hits)))
    assert sets.holdout is not None
    for side, rows in enumerate((facts, sets.holdout)):
        for row, (logp, targets) in enumerate(_padded(subject, [f.question for f in rows], [f.answer for f in rows])):
            token = logp.gather(1, targets[:, None])[:, 0]
            loss = -token.mean().item()
            found = {name: scores[side][row] for name, scores in log.mia.items()}
            assert found["mia_loss"] == pytest.approx(loss, rel=1e-9, abs=0)
            size = len(zlib.compress(rows[row].answer.encode()))
            assert found["mia_zlib"] == pytest.approx(loss / size, rel=1e-9, abs=0)
            kept = token[: len(token) - tail]
            count = max(1, int(0.4 * len(kept)))
            assert found["mia_min_k"] == pytest.approx(-kept.sort().values[:count].mean().item(), rel=1e-9, abs=0)
            p = logp.exp()[: len(kept)]
            mu = (p * logp[: len(kept)]).sum(-1)
            sigma = ((p * logp[: len(kept)] ** 2).sum(-1) - mu**2).clamp(min=1e-6).sqrt()
            standard = ((kept - mu) / sigma).sort().values[:count].mean().item()
            assert found["mia_min_k_plus_plus"] == pytest.approx(-standard, rel=1e-8, abs=0)
    assert log.lacks == [n for n in log.lacks if "ROUGE" in n or n in ("mia_gradnorm", "mia_reference")]


def test_extraction_strength_is_that_of_greedy_decoding(sets: TofuSets) -> None:
    """A model that recites: from the prefix that the score names greedy decoding writes the rest, and not before."""
    subject = _subject(dtype=torch.float64)
    facts = sets.sets["forget"][:3]
    prompt = subject.tokenizer(f"Question: {facts[0].question}\nAnswer:")["input_ids"]
    ids = list(prompt)
    for _ in range(12):
        ids.append(int(subject.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    mixed = [*(i + 1 for i in ids[len(prompt) : len(prompt) + 2]), 30, 31]
    for _ in range(6):
        row = torch.tensor([[*prompt, *mixed]])
        mixed.append(int(subject.model(input_ids=row, use_cache=False).logits[0, -1].argmax()))
    values = subject.score([prompt, prompt], [{"a": ids[len(prompt) :]}, {"a": mixed}], tofu.TOKEN_READS)
    recited, half = (v["a"]["argmax_hit"] for v in values)
    assert tofu.extraction_strength(recited) == tofu.exact_memorization(recited) == 1.0
    assert tofu.extraction_strength(half) == 6 / 10
    assert tofu.exact_memorization(half) < 1


def test_generations_and_their_rouge(sets: TofuSets, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = replace(sets, new_tokens=12)
    subject = _subject(dtype=torch.float64, seed=4)
    log = evaluate(subject, sets, mia=False)
    for name, facts in sets.sets.items():
        items = log.sets[name]
        assert items.ground_truth == [f.answer for f in facts]
        for fact, text in zip(facts, items.generation, strict=True):
            prompt = f"Question: {fact.question}\nAnswer:"
            ids = subject.tokenizer(prompt, return_tensors="pt")["input_ids"]
            out = subject.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
            assert text == subject.tokenizer.decode(out, skip_special_tokens=True).strip()
    # ROUGE against the answer, by hand: repeat an answer and a part of one
    texts = iter([f.answer for f in sets.sets["forget"]] + ["nothing"] * 99)
    monkeypatch.setattr(Subject, "generate", lambda self, prompts, new: [next(texts) for _ in prompts])
    log = evaluate(subject, sets, mia=False)
    assert log.sets["forget"].rougeL_recall.tolist() == log.sets["forget"].rougeL_f1.tolist() == [1.0] * 7
    assert log.sets["wf"].rougeL_recall.tolist() == [0.0] * 3


def test_paraphrased_questions_reference_and_gradient_norms(sets: TofuSets) -> None:
    # float64: beside other reads log-probs are summed in another order
    subject, other = _subject(dtype=torch.float64), _subject(seed=9, dtype=torch.float64)
    plain = evaluate(subject, sets, generate=False, reference=other, gradnorm=True)
    theirs = evaluate(other, sets, generate=False)
    for side in (0, 1):
        expected = plain.mia["mia_loss"][side] - theirs.mia["mia_loss"][side]
        np.testing.assert_allclose(plain.mia["mia_reference"][side], expected, rtol=1e-12)
        assert (plain.mia["mia_gradnorm"][side] > 0).all()
    assert len(plain.mia["mia_gradnorm"][0]) == 7
    asked = evaluate(subject, sets, generate=False, question_key="paraphrased_question")
    facts = sets.sets["forget"]
    pairs = _padded(subject, [str(f.paraphrased_question) for f in facts], [f.answer for f in facts])
    np.testing.assert_allclose(asked.sets["forget"].loss, [_loss(p) for p in pairs], rtol=1e-5)
    assert not np.allclose(asked.sets["forget"].loss, plain.sets["forget"].loss, rtol=1e-3)
    bare = replace(sets, sets={**sets.sets, "retain": [replace(f, paraphrased_question=None) for f in facts]})
    with pytest.raises(UserError, match="retain row 0 has no paraphrased_question"):
        evaluate(subject, bare, generate=False, question_key="paraphrased_question")


def test_a_row_is_called_by_what_it_asks_about(sets: TofuSets) -> None:
    for key, called in (("ra", "real author"), ("wf", "world fact"), ("retain", "retain")):
        facts = [*sets.sets[key][:1], replace(sets.sets[key][1], question="Who? " * 400)]
        with pytest.raises(UserError, match=rf"^{called} row 1 has \d+ tokens, but the model reads 512 at most\.$"):
            evaluate(_subject(), replace(sets, sets={**sets.sets, key: facts}), generate=False)


def test_an_answer_that_merges_with_the_prompt_moves_no_other(sets: TofuSets) -> None:
    """Where one answer makes the tokenizer split the prompt otherwise, the rest are scored as if it were not there."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=270,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([": X"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")
    subject = _subject(dtype=torch.float64)
    subject.tokenizer = tokenizer
    facts = sets.sets["forget"]
    plain, merged = "Nothing", "Xerxes"
    assert len(tokenizer("Answer: X")["input_ids"]) < len(tokenizer("Answer:")["input_ids"]) + 1

    def losses(extra: str) -> Any:
        changed = [replace(f, wrong=(*f.wrong[:4], extra)) for f in facts]
        log = evaluate(subject, replace(sets, sets={**sets.sets, "forget": changed}), generate=False, mia=False)
        return log.sets["forget"]

    before, after = losses(plain), losses(merged)
    np.testing.assert_allclose(after.loss, before.loss, rtol=1e-12)
    np.testing.assert_allclose(after.wrong_loss[:, :4], before.wrong_loss[:, :4], rtol=1e-12)
    assert np.isfinite(after.wrong_loss[:, 4]).all()


def test_the_log_is_written_and_read_again(sets: TofuSets, tmp_path: Any) -> None:
    log = evaluate(_subject(), sets, generate=False)
    (tmp_path / "log.json").write_text(json.dumps(log.to_json()))
    again = read_log(tmp_path / "log.json")
    np.testing.assert_allclose(again.sets["forget"].wrong_loss, log.sets["forget"].wrong_loss, rtol=1e-12)
    np.testing.assert_allclose(again.mia["mia_min_k"][1], log.mia["mia_min_k"][1], rtol=1e-12)
    mine, theirs = metrics(log, again).values, metrics(again, log).values
    assert mine["forget_quality"] == theirs["forget_quality"] == 1.0
    assert mine["forget_Q_A_Prob"] == pytest.approx(np.exp(-log.sets["forget"].loss).mean())
