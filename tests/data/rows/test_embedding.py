"""Texts as vectors: lengths, likeness, and what is said of either way."""

import numpy as np
import pytest

from align.data.rows.embedding import load_embedder
from align.errors import UserError

TEXTS = ["red apples and pears", "pears and red apples", "the river in the north", "?!"]


def test_words_that_are_shared_count_and_their_order_does_not():
    said = []
    words = load_embedder(None, TEXTS, say=said.append)
    vectors = words.encode(TEXTS).toarray()
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1, 0], abs=1e-12)
    cosine = vectors @ vectors.T
    assert cosine[0, 1] == pytest.approx(1, abs=1e-12)
    assert cosine[0, 2] == 0
    assert said == [
        "texts are compared by the words that they share (TF-IDF, 8 words), since no sentence encoder is given: "
        "rewordings count as different"
    ]


def test_words_that_the_corpus_lacks_count_for_nothing():
    words = load_embedder(None, TEXTS[:1], say=lambda _: None)
    assert np.linalg.norm(words.encode(["mountains"]).toarray()) == 0


def test_texts_without_words_are_refused():
    with pytest.raises(UserError, match=r"^The texts have no words to compare them by"):
        load_embedder(None, ["?", "!"], say=lambda _: None)


def test_an_encoder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^The sentence encoder '.*nowhere' cannot be loaded"):
        load_embedder(str(tmp_path / "nowhere"), TEXTS)
