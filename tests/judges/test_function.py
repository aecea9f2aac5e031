"""Judges that are a function of the user's: what they may return, and what is said where they fail."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from align.data.tokens.samples import Prompt
from align.errors import UserError
from align.judges.function import FunctionComparison, FunctionJudge
from align.judges.loading import load_judge
from align.recipe.sampling import Judge

FRANCE = "What is the capital of France?"
BOOK: list[dict[str, str]] = [{"role": "user", "content": "Who wrote the book?"}]
PROMPTS: list[Prompt] = [FRANCE, BOOK, FRANCE]
RESPONSES = [" Paris.", "A person", ""]
CODE = """
from helper import LIMIT

def length(prompts, responses):
    return [len(text) for text in responses]

def changing(prompts, responses):
    prompts.clear(); responses[0] = ""
    return [1]

def shorter(prompts, a, b):
    return [float(len(x) < len(y)) for x, y in zip(a, b)]

def picky(prompts, responses):
    return [1 / (len(text) - LIMIT) for text in responses]

def several(prompts, responses):
    if len(responses) > 1:
        raise RuntimeError
    return [1.0]

def loud(prompts, a, b):
    return [2.0 for _ in a]

returns = {"one": 1.0, "few": [1.0], "text": ["1.0", 2], "nan": [0, float("nan")], "none": [None, 1]}
one, few, text, nan, none = ((lambda prompts, responses, v=v: v) for v in returns.values())
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Iterator[Path]:
    """A folder with a module of rewards, its names gone from Python's table afterwards."""
    names = ("rewards_here", "helper", "broken", "needy", "calendar")
    kept = {name: sys.modules.pop(name, None) for name in names}
    (tmp_path / "rewards_here.py").write_text(CODE)
    (tmp_path / "helper.py").write_text("LIMIT = 4\n")
    (tmp_path / "broken.py").write_text("raise ValueError('over\\nand out.')\n")
    (tmp_path / "needy.py").write_text("import no_such_package\n")
    yield tmp_path
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update({name: found for name, found in kept.items() if found is not None})


def test_functions_score_and_compare(recipe: Path) -> None:
    path = list(sys.path)
    judge = load_judge(Judge(function="rewards_here:length"), base=recipe, allow_code=True)
    assert isinstance(judge, FunctionJudge)
    assert judge.score(PROMPTS, RESPONSES) == [len(text) for text in RESPONSES]
    assert judge.score([], []) == []
    better = load_judge(Judge(function="rewards_here:shorter"), base=recipe, allow_code=True)
    assert isinstance(better, FunctionComparison)
    # of two as long as each other neither is shorter, in either order
    assert better.compare([FRANCE] * 3, ["a", "aaa", "aa"], ["aa", "aa", "aa"]) == [1.0, 0.0, 0.5]
    assert better.position_bias == pytest.approx(-0.5 / 3)
    prompts, responses = [BOOK], ["x"]
    assert FunctionJudge("rewards_here:changing", recipe).score(prompts, responses) == [1.0]
    assert (prompts, responses) == ([BOOK], ["x"])
    assert sys.path == path


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("picky", "rewards_here:picky failed at row 1: ZeroDivisionError: division by zero."),
        ("several", "rewards_here:several failed over 2 rows together, though not over each alone: RuntimeError."),
        (
            "one",
            "rewards_here:one returned float, but a list of 2 numbers was expected: it is called with lists, of "
            "prompts and of answers.",
        ),
        ("few", "rewards_here:few returned 1 numbers for 2 rows."),
        ("text", "rewards_here:text returned '1.0' for row 0; a finite number was expected."),
        ("nan", "rewards_here:nan returned 'nan' for row 1; a finite number was expected."),
        ("none", "rewards_here:none returned 'None' for row 0; a finite number was expected."),
    ],
)
def test_what_a_function_does_wrong_is_told(recipe: Path, function: str, sentence: str) -> None:
    judge = FunctionJudge(f"rewards_here:{function}", recipe)
    with pytest.raises(UserError) as error:
        judge.score(["p", "q"], ["abc", "abcd"])
    assert str(error.value) == f"judge.function: {sentence}"


def test_a_probability_is_one(recipe: Path) -> None:
    with pytest.raises(UserError, match="loud returned 2 for row 0; a function of a and b returns the probability"):
        FunctionComparison("rewards_here:loud", recipe).compare(["p"], ["x"], ["y"])


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("rewards_here", "'rewards_here' names no function; write MODULE:FUNCTION, such as rewards:length."),
        ("../evil:f", "'../evil:f' names no function; write MODULE:FUNCTION, such as rewards:length."),
        ("reward_here:f", "no module reward_here, in {base} or installed. Did you mean 'rewards_here'?"),
        ("rewards_here:lenght", "lenght does not exist in {base}/rewards_here.py. Did you mean 'length'?"),
        ("rewards_here:LIMIT", "LIMIT is no function in {base}/rewards_here.py."),
        ("broken:f", "importing broken failed: ValueError: over and out."),
        ("needy:f", "needy imports no_such_package, which is not installed."),
        ("calendar:f", "{base}/calendar.py cannot be imported, since another module is called calendar already"),
    ],
)
def test_names_of_functions(recipe: Path, spec: str, sentence: str) -> None:
    if spec.startswith("calendar"):
        import calendar  # noqa: F401

        (recipe / "calendar.py").write_text("def f(prompts, responses): ...\n")
    with pytest.raises(UserError) as error:
        load_judge(Judge(function=spec), base=recipe, allow_code=True)
    assert sentence.format(base=recipe) in str(error.value)
    assert str(error.value).startswith("judge.function: ")


def test_the_section_names_one_judge_and_code_is_allowed_first(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"^judge\.function: broken:f is Python code.*then add --allow-code"):
        load_judge(Judge(function="broken:f"), base=recipe)
    assert "broken" not in sys.modules
    for settings, found in ((Judge(), "none of them"), (Judge(reward="x/y", pair="x/y"), "reward and pair")):
        with pytest.raises(UserError, match=f"exactly one of reward, pair, endpoint and function; found {found}"):
            load_judge(settings, base=recipe)
