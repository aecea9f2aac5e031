"""RewardFusion: a judge's score averaged with those of training answers that say about the same (arXiv 2309.16155)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.data.rows.embedding import Embedder, load_embedder
from align.data.rows.sources import load_source, naming, source_name
from align.data.rows.values import BadRow, preferred, with_system
from align.data.tokens.preparation import plural
from align.data.tokens.samples import Prompt
from align.data.tokens.tokenize import recognise_dataset
from align.errors import UserError
from align.judges.judge import ScoreJudge

if TYPE_CHECKING:
    from align.recipe.sampling import Fusion
    from align.recipe.sections import Source

Say = Callable[[str], Any]
Answered = tuple[Prompt, str]  # a prompt and an answer to it


class RewardFusion(ScoreJudge):
    """Averages the scores of a judge over neighbours in a corpus of preferred answers.

    A neighbour of x, which is a prompt with its answer, is one of the ``neighbours`` corpus texts of the highest cosine
    similarity s to it, where s >= ``similarity``. With weight 1 for x itself,

        R_fused(x) = (R(x) + sum_i s_i R(x_i)) / (1 + sum_i s_i),

    as in the authors' ``reward_fusion.py``. So an answer without neighbours keeps its score. A corpus text that is
    identical to x is no neighbour of it, since its score is R(x) already; identical corpus texts count once. Texts are
    compared without the special tokens of a template.

    A corpus text is scored when it is a neighbour for the first time, and its score is kept.

    Args:
        judge: who scores.
        corpus: prompts with their preferred answers, at least one.
        embedder: how texts become vectors.
        say: told after each call how many answers had neighbours so far.

    Attributes:
        answers: scored so far.
        with_neighbours: those of them that had neighbours.
    """

    def __init__(
        self,
        judge: ScoreJudge,
        corpus: Sequence[Answered],
        embedder: Embedder,
        *,
        neighbours: int = 5,
        similarity: float = 0.9,
        say: Say = print,
    ) -> None:
        from sklearn.neighbors import NearestNeighbors

        self.judge, self.embedder, self.say = judge, embedder, say
        self.neighbours, self.similarity = neighbours, similarity
        self.name = f"{judge.name} with RewardFusion"
        self.answers = self.with_neighbours = 0
        distinct: dict[str, Answered] = {}
        for answered in corpus:
            distinct.setdefault(whole(*answered), answered)
        self._texts, self._corpus = list(distinct), list(distinct.values())
        self._scores: dict[int, float] = {}
        # one more, since an identical text may be among them
        nearest = NearestNeighbors(n_neighbors=min(neighbours + 1, len(distinct)), metric="cosine", algorithm="brute")
        self._nearest = nearest.fit(embedder.encode(self._texts))

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """One fused score for each response. Raises ``UserError`` as the judge does."""
        if not prompts:
            return []
        own = self.judge.score(prompts, responses)
        near = self._near([whole(*answered) for answered in zip(prompts, responses, strict=True)])
        self._score_corpus(sorted({number for found in near for number in found} - self._scores.keys()))
        self.answers += len(own)
        self.with_neighbours += sum(map(bool, near))
        self.say(self.summary())
        return [
            (value + sum(s * self._scores[number] for number, s in found.items())) / (1 + sum(found.values()))
            for value, found in zip(own, near, strict=True)
        ]

    def fits(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[bool]:
        """What fits the judge."""
        return self.judge.fits(prompts, responses)

    def summary(self) -> str:
        """One sentence about everything scored so far."""
        share = self.with_neighbours / self.answers if self.answers else 0.0
        return (
            f"judge {self.name}: {self.with_neighbours:,} of {plural(self.answers, 'answer')} ({share:.0%}) had "
            f"neighbours of similarity {self.similarity:g} or more among {plural(len(self._texts), 'corpus text')}; "
            "the others keep their scores"
        )

    def _near(self, texts: Sequence[str]) -> list[dict[int, float]]:
        """The neighbours of each text: numbers of corpus texts with their similarities."""
        distances, numbers = self._nearest.kneighbors(self.embedder.encode(texts))
        near = []
        for text, row, found in zip(texts, distances.tolist(), numbers.tolist(), strict=True):
            others = [(i, min(1 - d, 1.0)) for d, i in zip(row, found, strict=True) if self._texts[i] != text]
            near.append({i: s for i, s in others[: self.neighbours] if s >= self.similarity})
        return near

    def _score_corpus(self, numbers: Sequence[int]) -> None:
        if not numbers:
            return
        prompts, responses = zip(*(self._corpus[i] for i in numbers), strict=True)
        try:
            self._scores.update(zip(numbers, self.judge.score(prompts, responses), strict=True))
        except UserError as error:
            raise UserError(f"A corpus text of judge.fusion cannot be scored: {error}") from error


def fused(judge: ScoreJudge, settings: Fusion, *, base: Path | None = None, say: Say = print) -> RewardFusion:
    """A judge with RewardFusion as a recipe's section asks for it; says what the corpus is. Raises ``UserError``."""
    corpus, embedder = corpus_of(settings, base=base, say=say)
    return RewardFusion(
        judge, corpus, embedder, neighbours=settings.neighbours, similarity=settings.similarity, say=say
    )


def corpus_of(settings: Fusion, *, base: Path | None = None, say: Say = print) -> tuple[list[Answered], Embedder]:
    """Prompts with their preferred answers, and what turns them into vectors.

    Raises:
        UserError: where there is no such corpus, it has no answers that can be used, or there is no such encoder.
    """
    corpus = _preferred(settings.corpus, base or Path(), say)
    return corpus, load_embedder(settings.encoder, [whole(*answered) for answered in corpus], base=base, say=say)


def whole(prompt: Prompt, response: str) -> str:
    """The text by which a prompt and its answer are compared with others: turns of a conversation are put on lines."""
    if isinstance(prompt, str):
        return prompt + response
    return "\n".join([*(message["content"] for message in prompt), response])


def _preferred(source: Source, base: Path, say: Say) -> list[Answered]:
    """The preferred answers of a source: ``chosen`` of pairs, or ``rejected`` where ``preference`` says so.

    Of other rows it is the completion, unless its label is false.
    """
    name = source_name(source)
    rows = load_source(source, base=base)
    with naming(source):
        form = recognise_dataset(rows, ())
    if form.tokenised or not form.branches:
        raise UserError(
            f"judge.fusion.corpus: the rows of {name} are {form.name}; RewardFusion needs texts with preferred "
            "answers: prompt with chosen, or prompt with completion."
        )
    if source.system is not None and not form.conversational:
        raise UserError(f"judge.fusion.corpus.system: the rows of {name} are no conversations; remove it.")
    corpus: list[Answered] = []
    unusable = ties = 0
    for row in rows:
        try:
            canonical = form.canonical(row)
            side = preferred(row) if "rejected" in form.branches else form.branches[0]
            if side is None:
                ties += 1
            elif canonical.get("label") is not False:
                corpus.append(_last_answer(canonical["prompt"], canonical[side], source.system))
        except BadRow:
            unusable += 1
    if not corpus:
        raise UserError(f"judge.fusion.corpus: no row of {name} has a preferred answer that can be used.")
    distinct = len({whole(*answered) for answered in corpus})
    left_out = [f"{len(corpus) - distinct:,} that come again"] if len(corpus) > distinct else []
    left_out += [f"{unusable:,} that cannot be read"] if unusable else []
    left_out += [plural(ties, "tie")] if ties else []
    without = f", without {' and '.join(left_out)}" if left_out else ""
    say(f"RewardFusion: {plural(distinct, 'preferred answer')} of {name}{without}")
    return corpus


def _last_answer(prompt: Any, answer: Any, system: str | None) -> Answered:
    """Prompt and answer as judges are asked; what comes before the last turn of an answer belongs to the prompt.

    Raises:
        BadRow: where the last turn is not the assistant's, or a turn has no text.
    """
    if isinstance(answer, str):
        return prompt, answer
    talk: list[dict[str, Any]] = [*(prompt if system is None else with_system(prompt, system)), *answer]
    turns, last = talk[:-1], talk[-1]
    if last["role"] != "assistant" or any("content" not in turn for turn in talk):
        raise BadRow("the last turn is no answer in words")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns], last["content"]
