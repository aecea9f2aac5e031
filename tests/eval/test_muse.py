"""MUSE on a tiny model, with small files of its columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TEXTS, tiny_tokenizer
from zoo import tiny_model

from align.engine.scoring import ScoringEngine, attach
from align.errors import UserError
from align.eval import muse
from align.eval.muse import MuseSets, evaluate, few_shot, load_sets
from align.models.subject import Subject


def _subject(*, bos: bool = True, **options: Any) -> Subject:
    tokenizer = tiny_tokenizer(chat=False, bos=bos)
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=512, **options)
    attach(model)
    return Subject(model, tokenizer, ScoringEngine(), name="tiny")


def _qa(tag: str, count: int) -> list[dict[str, str]]:
    return [{"question": f"What of {tag} {i}?", "answer": f"{tag} {i} is a book"} for i in range(count)]


def _folder(path: Path) -> Path:
    texts = [text for line in TEXTS for text in line.split(". ")]
    files = {
        "knowmem/forget_qa": _qa("fox", 3),
        "knowmem/retain_qa": _qa("dog", 2),
        "knowmem/forget_qa_icl": _qa("sea", 2),
        "knowmem/retain_qa_icl": _qa("cat", 1),
        "verbmem/forget": [{"prompt": text[:20], "gt": text[20:]} for text in TEXTS[:3]],
        "privleak/forget": [{"text": text} for text in texts[:4]],
        "privleak/holdout": [{"text": text} for text in texts[4:7]],
    }
    for name, rows in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / f"{name}.json").write_text(json.dumps(rows))
    return path


@pytest.fixture
def sets(tmp_path: Path) -> MuseSets:
    return load_sets(str(_folder(tmp_path)))


def test_the_sets_are_read_in_order(sets: MuseSets) -> None:
    assert {name: len(rows) for name, rows in sets.knowmem.items()} == {
        "forget_qa": 3,
        "retain_qa": 2,
        "forget_qa_icl": 2,
        "retain_qa_icl": 1,
    }
    assert sets.verbmem[1] == {"prompt": TEXTS[1][:20], "gt": TEXTS[1][20:]}
    assert list(sets.privleak) == ["forget", "holdout"]


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = _folder(tmp_path)
    (folder / "verbmem" / "forget.json").write_text('[{"prompt": "a"}]')
    with pytest.raises(UserError, match=r"verbmem/forget, row 0 has no text in the column 'gt'; it has: prompt"):
        load_sets(str(folder))
    (folder / "knowmem").rename(folder / "knowmen")
    with pytest.raises(UserError, match="no folder knowmem"):
        load_sets(str(folder))
    with pytest.raises(UserError, match="no such folder"):
        load_sets(str(folder / "absent"))
    with pytest.raises(UserError, match="nobody/MUSE: not in the local cache"):
        load_sets("nobody/MUSE")


def test_worked_examples_stand_before_the_question(sets: MuseSets, monkeypatch: pytest.MonkeyPatch) -> None:
    shots = few_shot(sets.knowmem["forget_qa_icl"])
    assert shots == (
        "Question: What of sea 0?\nAnswer: sea 0 is a book\n\nQuestion: What of sea 1?\nAnswer: sea 1 is a book\n\n"
    )
    calls: list[Any] = []

    def generate(self: Subject, prompts: Any, new: int, stop: Any) -> list[str]:
        calls.append(([self.tokenizer.decode(p, skip_special_tokens=True) for p in prompts], new, stop))
        return ["fox 0 is", "nothing", "fox 2 is a book"][: len(prompts)]

    monkeypatch.setattr(Subject, "generate", generate)
    log = evaluate(_subject(), sets)
    assert calls[0][0][0] == shots + "Question: What of fox 0?\nAnswer: "
    assert calls[0][1:] == (32, ("\n\n", "\nQuestion", "Question:"))
    assert calls[2] == ([row["prompt"] for row in sets.verbmem], 128, ())
    # recall 3 of 5 words, precision 1
    np.testing.assert_allclose(log.sets["forget_knowmem"].rougeL_f1, [2 * 0.6 / 1.6, 0.0, 1.0])
    np.testing.assert_allclose(log.sets["forget_knowmem"].rougeL_recall, [0.6, 0.0, 1.0])
    assert list(log.sets) == ["forget_knowmem", "retain_knowmem", "forget_verbmem"]


def test_knowledge_alone_has_no_scores_of_memory(sets: MuseSets) -> None:
    log = evaluate(_subject(), MuseSets(knowmem=sets.knowmem))
    assert log.scores == {}
    assert log.mia == {}


@pytest.mark.parametrize("last", ["drop", "keep"])
@pytest.mark.parametrize("bos", [True, False])
def test_scores_of_texts_without_an_end_token(sets: MuseSets, last: Any, bos: bool) -> None:
    subject = _subject(bos=bos, dtype=torch.float64)
    only = MuseSets(verbmem=sets.verbmem, privleak=sets.privleak)
    log = evaluate(subject, only, last_token=last)

    def own(text: str, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = subject.tokenizer(text, return_tensors="pt")["input_ids"]
        logp = subject.model(input_ids=ids, use_cache=False).logits[0].detach().log_softmax(-1)
        return logp[start - 1 : -1], ids[0, start:]

    cut = 1 if last == "drop" else 0
    for row, text in enumerate(sets.verbmem):
        joined = text["gt"] if text["gt"][0] == " " or text["prompt"][-1] == " " else f" {text['gt']}"
        whole = subject.tokenizer(text["prompt"] + joined)["input_ids"]
        prompt = subject.tokenizer(text["prompt"])["input_ids"]
        start = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
        logp, targets = own(text["prompt"] + joined, start)
        hits = (logp.argmax(-1) == targets).double()[: len(targets) - cut]
        assert log.scores["exact_memorization"][row] == pytest.approx(hits.mean().item())
    for side, name in enumerate(("forget", "holdout")):
        for row, text in enumerate(sets.privleak[name]):
            logp, targets = own(text["text"], 1)
            token = logp.gather(1, targets[:, None])[:, 0]
            assert log.mia["mia_loss"][side][row] == pytest.approx(-token.mean().item(), rel=1e-9, abs=0)
            kept = token[: len(token) - cut].sort().values
            expected = -kept[: max(1, int(0.4 * len(kept)))].mean().item()
            assert log.mia["mia_min_k"][side][row] == pytest.approx(expected, rel=1e-9, abs=0)


def test_a_long_continuation_is_scored_on_its_first_128_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = Subject.score

    def score(self: Subject, prompts: Any, branches: Any, reads: Any, **options: Any) -> Any:
        seen.extend(len(ids) for named in branches for ids in named.values())
        return real(self, prompts, branches, reads, **options)

    monkeypatch.setattr(Subject, "score", score)
    monkeypatch.setattr(muse, "VERBMEM_TOKENS", 20)
    evaluate(_subject(), MuseSets(verbmem=[{"prompt": "The quick", "gt": " ".join(TEXTS)}]))
    assert seen == [20]


def test_a_text_of_one_token_is_refused() -> None:
    with pytest.raises(UserError, match="privleak/forget row 1 "):
        evaluate(_subject(bos=False), MuseSets(privleak={"forget": [{"text": "ab c"}, {"text": "a"}], "holdout": []}))
