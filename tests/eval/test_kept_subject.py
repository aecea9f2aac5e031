"""A model whose scores and texts are kept: those of the plain model, by what was asked of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer
from zoo import tiny_model

from align.engine.reads import LogProb
from align.engine.scoring import ScoringEngine, attach
from align.errors import UserError
from align.eval.kept import Kept
from align.eval.kept_subject import KeptSubject
from align.eval.membership import TOKEN_READS
from align.models.subject import Subject
from align.runs.processes import World

PROMPTS = [[3 + i, 4, 5] for i in range(7)]
BRANCHES = [{"a": [6, 7 + i], "b": [9]} for i in range(7)]


@pytest.fixture(scope="module")
def plain() -> Subject:
    tokenizer = tiny_tokenizer(chat=False)
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=16)
    attach(model)
    return Subject(model, tokenizer, ScoringEngine(), say=lambda _: None)


def kept(plain: Subject, folder: Path) -> KeptSubject:
    return KeptSubject(plain, Kept(folder, World(0, 1, torch.device("cpu")), lambda _: None, size=3), "w")


def test_other_reads_of_the_same_rows_are_other_parts(plain: Subject, tmp_path: Path) -> None:
    subject = kept(plain, tmp_path)
    for reads in ((LogProb(),), TOKEN_READS, (LogProb(),)):
        found, expected = (one.score(PROMPTS, BRANCHES, reads) for one in (subject, plain))
        for row, wanted in zip(found, expected, strict=True):
            assert {name: set(of) for name, of in row.items()} == {name: {r.name for r in reads} for name in "ab"}
            for name, of in wanted.items():
                for read, values in of.items():
                    np.testing.assert_allclose(row[name][read], values, rtol=1e-5, atol=1e-6)
    assert len(list(tmp_path.iterdir())) == 6  # three parts with either reads


def test_texts_by_how_they_end(plain: Subject, tmp_path: Path) -> None:
    subject = kept(plain, tmp_path)
    for tokens, stop in ((4, ()), (2, ()), (4, ("e",)), (4, ())):
        assert subject.generate(PROMPTS, tokens, stop) == plain.generate(PROMPTS, tokens, stop)
    assert len(list(tmp_path.iterdir())) == 9


def test_a_row_that_is_too_long_is_named_by_its_own_number(plain: Subject, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^pair 6 has 18 tokens, but the model reads 16 at most\.$"):
        kept(plain, tmp_path).score(PROMPTS, [*BRANCHES[:6], {"a": [6] * 15}], where="pair")
    assert not list(tmp_path.iterdir())
