"""Texts as vectors, to find those that mean about the same: by a sentence encoder, or by the words that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.data.rows.sources import quiet_hub
from align.errors import UserError, loading, told
from align.runs.models import hub_options, located

_FEWEST = 2  # characters of a word that counts


@dataclass(frozen=True)
class Embedder:
    """How texts become vectors.

    Attributes:
        name: what it is called in messages and results.
        encode: texts to rows of length 1, [n, d], so that a product of two is their cosine; a numpy array of an
            encoder, a sparse scipy matrix of TF-IDF. A text of no known word is a row of zeros, like nothing else.
    """

    name: str
    encode: Callable[[Sequence[str]], Any]


def load_embedder(
    name: str | None, corpus: Sequence[str], *, base: Path | None = None, say: Callable[[str], Any] = print
) -> Embedder:
    """The sentence encoder ``name``, or TF-IDF of the words of ``corpus`` where it is None, which is said.

    Args:
        name: a folder or Hub id that sentence-transformers reads. Of a plain encoder it takes the mean over tokens.
        corpus: the texts whose words count, and how rare each is; an encoder does not look at it.
        base: where relative folders start.

    Raises:
        UserError: where there is no such encoder, its package is missing, or the corpus has no word.
    """
    return _words(corpus, say) if name is None else _encoder(name, base)


def _words(corpus: Sequence[str], say: Callable[[str], Any]) -> Embedder:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=rf"(?u)\b\w{{{_FEWEST},}}\b")
    try:
        vectorizer.fit(corpus)
    except ValueError as error:
        raise UserError(
            "The texts have no words to compare them by. Give a sentence encoder, such as "
            "sentence-transformers/all-MiniLM-L6-v2."
        ) from error
    say(
        f"texts are compared by the words that they share (TF-IDF, {len(vectorizer.vocabulary_):,} words), since no "
        "sentence encoder is given: rewordings count as different"
    )
    return Embedder("TF-IDF", vectorizer.transform)


def _encoder(name: str, base: Path | None) -> Embedder:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(
            f"The encoder {name} needs sentence-transformers: pip install sentence-transformers. Without an encoder, "
            "texts are compared by the words that they share."
        ) from error
    source = located(name, base)

    def not_loaded(error: Exception) -> str:
        return (
            f"The sentence encoder {name!r} cannot be loaded ({told(error)}). It must be a folder or a Hub id that "
            "sentence-transformers reads (HF_HUB_OFFLINE is honoured)."
        )

    with loading(not_loaded), quiet_hub():
        model = SentenceTransformer(
            source, trust_remote_code=False, model_kwargs={"use_safetensors": True}, **hub_options(source)
        )

    def encode(texts: Sequence[str]) -> Any:
        return model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)

    return Embedder(name, encode)
