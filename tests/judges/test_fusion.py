"""RewardFusion: numbers worked by hand, what it must leave unchanged, its corpus, and what is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.data.rows.embedding import Embedder
from align.data.tokens.samples import Prompt
from align.errors import UserError
from align.judges.fusion import RewardFusion, corpus_of, whole
from align.judges.judge import ScoreJudge
from align.judges.loading import early_judge, load_judge
from align.recipe.sampling import Fusion, Judge
from align.recipe.sections import Source

# cosines with x: a 1, b 0.96, c 0.8; of b with c 0.936
VECTORS = {"x": (1, 0), "a": (2, 0), "b": (0.96, 0.28), "c": (0.8, 0.6), "far": (0, 1)}
REWARDS = {"x": 1.0, "a": 4.0, "b": -2.0, "c": 10.0, "far": 7.0}


class Table(ScoreJudge):
    """Scores by a function of the whole text, and notes what it was asked."""

    name = "table"

    def __init__(self, function: Callable[[str], float] = REWARDS.__getitem__) -> None:
        self.function = function
        self.asked: list[list[str]] = []

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        texts = [whole(*pair) for pair in zip(prompts, responses, strict=True)]
        self.asked.append(texts)
        return [self.function(text) for text in texts]


def by_hand(texts: Sequence[str]) -> np.ndarray:
    rows = np.array([VECTORS[text] for text in texts], dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


PLANE = Embedder("plane", by_hand)


def silent(_: str) -> None:
    pass


def made(corpus: str, judge: ScoreJudge | None = None, **options: Any) -> RewardFusion:
    """Corpus texts are given by name, separated by spaces; the prompt is empty."""
    options = {"say": silent, **options}
    return RewardFusion(judge or Table(), [("", text) for text in corpus.split()], PLANE, **options)


def scores(fusion: RewardFusion, texts: str) -> list[float]:
    return fusion.score([""] * len(texts.split()), texts.split())


@pytest.mark.parametrize(
    ("corpus", "options", "expected"),
    [
        ("a b c far", {}, (1 + 1 * 4 + 0.96 * -2) / (1 + 1 + 0.96)),  # c is less than 0.9
        ("a b c far", {"similarity": 0.79}, (1 + 4 - 0.96 * 2 + 0.8 * 10) / 3.76),
        ("a b c far", {"similarity": 0.79, "neighbours": 2}, (1 + 4 - 0.96 * 2) / 2.96),  # the nearest two
        ("c b", {"neighbours": 1}, (1 - 0.96 * 2) / 1.96),
        ("c far", {}, 1.0),  # no neighbour: its own score
        ("a a b a", {}, (1 + 4 - 0.96 * 2) / 2.96),  # a text that comes again counts once
        ("x a", {}, (1 + 4) / 2),  # x itself is no neighbour
        ("x", {}, 1.0),
        ("x a b", {"neighbours": 2}, (1 + 4 - 0.96 * 2) / 2.96),  # nor does it take a neighbour's place
    ],
)
def test_worked_numbers(corpus: str, options: dict[str, Any], expected: float) -> None:
    assert scores(made(corpus, **options), "x") == pytest.approx([expected], rel=1e-12)


def clouds(seed: int) -> tuple[Embedder, list[str], list[str], dict[str, float], dict[str, np.ndarray]]:
    """Forty corpus texts and thirty others in three dimensions, five of them in both, with random rewards."""
    source = np.random.default_rng(seed)
    names = [f"t{i}" for i in range(65)]
    vectors = dict(zip(names, source.normal(size=(65, 3)), strict=True))
    vectors = {name: v / np.linalg.norm(v) for name, v in vectors.items()}
    rewards = dict(zip(names, source.normal(size=65).tolist(), strict=True))
    return Embedder("cloud", lambda t: np.array([vectors[n] for n in t])), names[:40], names[35:], rewards, vectors


@pytest.mark.parametrize("seed", range(5))
def test_a_search_of_all_pairs_gives_the_same_within_the_range_of_what_is_averaged(seed: int) -> None:
    embedder, corpus, texts, rewards, vectors = clouds(seed)
    found = RewardFusion(Table(rewards.__getitem__), [("", c) for c in corpus], embedder, similarity=0.9, say=silent)
    fused = found.score([""] * len(texts), texts)
    averaged = 0
    for text, value in zip(texts, fused, strict=True):
        near = sorted(((float(vectors[text] @ vectors[c]), c) for c in corpus if c != text), reverse=True)[:5]
        near = [(1.0, text), *((s, c) for s, c in near if s >= 0.9)]
        expected = sum(s * rewards[c] for s, c in near) / sum(s for s, _ in near)
        assert value == pytest.approx(expected, abs=1e-9)
        around = [rewards[c] for _, c in near]
        assert min(around) - 1e-9 <= value <= max(around) + 1e-9
        averaged += len(near) > 1
    assert 5 < averaged < len(texts)  # both kinds occur
    assert found.with_neighbours == averaged


def test_constant_rewards_stay_and_an_affine_change_of_rewards_changes_fused_ones_alike() -> None:
    embedder, corpus, texts, rewards, _ = clouds(9)

    def fuse(function: Callable[[str], float]) -> list[float]:
        judge = RewardFusion(Table(function), [("", c) for c in corpus], embedder, similarity=0.7, say=silent)
        return judge.score([""] * len(texts), texts)

    assert fuse(lambda _: 0.25) == pytest.approx([0.25] * len(texts), rel=1e-12)
    plain = fuse(rewards.__getitem__)
    assert plain != pytest.approx([rewards[text] for text in texts], abs=0.01)
    assert fuse(lambda text: 3 - 2 * rewards[text]) == pytest.approx([3 - 2 * value for value in plain], abs=1e-9)


def test_only_neighbours_are_scored_and_each_once() -> None:
    judge = Table()
    fusion = made("a b far", judge)
    first = scores(fusion, "x c")
    assert judge.asked == [["x", "c"], ["a", "b"]]
    assert scores(fusion, "x") == first[:1]
    assert judge.asked[2:] == [["x"]]
    assert fusion.score([], []) == []


def test_scores_do_not_depend_on_order_or_company() -> None:
    together = scores(made("a b c far", similarity=0.7), "x c far b")
    assert scores(made("far c b a", similarity=0.7), "b far c x") == pytest.approx(together[::-1], rel=1e-12)
    assert [scores(made("a b c far", similarity=0.7), t)[0] for t in ("x", "c", "far", "b")] == pytest.approx(together)


def test_what_is_said_afterwards() -> None:
    said: list[str] = []
    fusion = made("a b", say=said.append)
    scores(fusion, "x far")
    scores(fusion, "x")
    assert said == [
        "judge table with RewardFusion: 1 of 2 answers (50%) had neighbours of similarity 0.9 or more among 2 corpus "
        "texts; the others keep their scores",
        "judge table with RewardFusion: 2 of 3 answers (67%) had neighbours of similarity 0.9 or more among 2 corpus "
        "texts; the others keep their scores",
    ]


def test_a_corpus_text_that_cannot_be_scored_is_told_as_one() -> None:
    def fails(text: str) -> float:
        if text == "a":
            raise UserError("judge.reward: too long.")
        return 0.0

    with pytest.raises(UserError) as told:
        scores(made("a", Table(fails)), "x")
    assert str(told.value) == "A corpus text of judge.fusion cannot be scored: judge.reward: too long."


# ---- the corpus


def write(file: Path, *rows: dict[str, Any]) -> Source:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(path=file.name)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


USER = turn("user", "Who wrote it?")


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        ([{"prompt": "Q:", "chosen": " yes", "rejected": " no"}], {}, [("Q:", " yes")]),
        ([{"prompt": "Q:", "completion": " yes"}], {}, [("Q:", " yes")]),
        (
            [
                {"prompt": "Q:", "completion": " yes", "label": True},
                {"prompt": "Q:", "completion": " no", "label": False},
            ],
            {},
            [("Q:", " yes")],
        ),
        (
            [{"chosen": [USER, turn("assistant", "A")], "rejected": [USER, turn("assistant", "B")]}],
            {"system": "Be short."},
            [([turn("system", "Be short."), USER], "A")],
        ),
        (  # as the loss reads them: below one half the rejected answer is the better one, one half is a tie
            [
                {"prompt": f"{p}:", "chosen": " yes", "rejected": " no", "preference": p}
                for p in (0.9, 0.1, 0.5, None, 2.0)
            ],
            {},
            [("0.9:", " yes"), ("0.1:", " no"), ("None:", " yes")],
        ),
        (  # what comes before the last turn of an answer is what is answered
            [{"messages": [USER, turn("assistant", "Who?"), turn("user", "He."), turn("assistant", "A")]}],
            {},
            [([USER, turn("assistant", "Who?"), turn("user", "He.")], "A")],
        ),
    ],
)
def test_the_preferred_answers_of_every_format(
    rows: list[dict[str, Any]], options: dict[str, Any], expected: list[Any], tmp_path: Path
) -> None:
    source = write(tmp_path / "rows.jsonl", *rows).model_copy(update=options)
    corpus, _ = corpus_of(Fusion(corpus=source), base=tmp_path, say=silent)
    assert corpus == expected


def test_what_is_said_of_the_corpus(tmp_path: Path) -> None:
    pair = {"prompt": "Which?", "chosen": " this one", "rejected": " that one"}
    tie = {**pair, "preference": 0.5}
    source = write(tmp_path / "rows.jsonl", pair, {**pair, "chosen": None}, pair, {**pair, "prompt": "What?"}, tie)
    said: list[str] = []
    corpus_of(Fusion(corpus=source), base=tmp_path, say=said.append)
    assert said == [
        "RewardFusion: 2 preferred answers of rows.jsonl, without 1 that come again and 1 that cannot be read "
        "and 1 tie",
        "texts are compared by the words that they share (TF-IDF, 4 words), since no sentence encoder is given: "
        "rewordings count as different",
    ]


@pytest.mark.parametrize(
    ("row", "options", "sentence"),
    [
        (
            {"prompt": "Which?"},
            {},
            "judge.fusion.corpus: the rows of rows.jsonl are prompts only, standard; RewardFusion needs texts with "
            "preferred answers: prompt with chosen, or prompt with completion.",
        ),
        (
            {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]},
            {},
            "judge.fusion.corpus: the rows of rows.jsonl are already tokenised (prompt_ids, chosen_ids, rejected_ids); "
            "RewardFusion needs texts with preferred answers: prompt with chosen, or prompt with completion.",
        ),
        (
            {"prompt": "Which?", "completion": " this", "label": False},
            {},
            "judge.fusion.corpus: no row of rows.jsonl has a preferred answer that can be used.",
        ),
        (
            {"prompt": "Which?", "completion": " this"},
            {"system": "Be short."},
            "judge.fusion.corpus.system: the rows of rows.jsonl are no conversations; remove it.",
        ),
    ],
)
def test_a_corpus_without_answers_is_refused(
    row: dict[str, Any], options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "rows.jsonl", row).model_copy(update=options)
    with pytest.raises(UserError) as told:
        corpus_of(Fusion(corpus=source), base=tmp_path, say=silent)
    assert str(told.value) == sentence


# ---- the judge of a recipe

REWARDS_FILE = """
def length(prompts, responses):
    return [len(text) for text in responses]

def shorter(prompts, a, b):
    return [0.5 for _ in a]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> tuple[Path, str]:
    """A folder with a corpus and a module of rewards, and that module's name."""
    write(tmp_path / "rows.jsonl", {"prompt": "Who wrote the book?", "completion": " A person wrote the book"})
    name = f"rewards_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(REWARDS_FILE)
    return tmp_path, name


def test_a_recipe_gives_a_fused_judge_also_before_anything_is_drawn(recipe: tuple[Path, str]) -> None:
    base, module = recipe
    settings = Judge(function=f"{module}:length", fusion=Fusion(corpus=Source(path="rows.jsonl"), similarity=0.5))
    for load in (load_judge, early_judge):
        judge = load(settings, base=base, allow_code=True, say=silent)
        assert isinstance(judge, RewardFusion)
        # the same words of two letters or more: similarity 1
        assert judge.score(["Who wrote the book?"], [" the book wrote person"]) == pytest.approx([(22 + 24) / 2])


def test_a_function_that_compares_is_refused(recipe: tuple[Path, str]) -> None:
    base, module = recipe
    settings = Judge(function=f"{module}:shorter", fusion=Fusion(corpus=Source(path="rows.jsonl")))
    with pytest.raises(UserError) as told:
        load_judge(settings, base=base, allow_code=True, say=silent)
    assert str(told.value) == (f"judge.fusion: scores are averaged, and {module}:shorter compares answers; remove it.")
