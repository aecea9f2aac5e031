"""A small generated world of invented people: questions, answers, paraphrases, wrong answers, preference candidates.

It stands in for TOFU and for a preference set where nothing can be downloaded: the quickstart, the tests and the
benchmarks learn it within seconds. Its fact rows have TOFU's columns (arXiv 2401.06121), which are ``question``,
``answer``, ``paraphrased_question``, ``paraphrased_answer`` and ``perturbed_answer``, and beside them ``subject``,
``attribute`` and ``value``.

Everything is a pure function of seed and size; each part draws from a generator of its own. Standard library only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from align.data.rows.world_tables import (
    COUNTRIES,
    COUNTRY_NAMES,
    FIRST_NAMES,
    IGNORANCE,
    LAST_NAMES,
    PEOPLE,
    STRANGER,
    Attribute,
)
from align.errors import UserError

Row = dict[str, Any]
Policy = Literal["on", "off"]


@dataclass(frozen=True)
class Size:
    """How many people there are, and how long the two training stages are.

    ``people`` are taught in the second stage, ``forgotten`` of them make the forget set; ``background`` people and the
    countries are taught in the first; nobody is ever taught about ``strangers``.
    """

    people: int = 24
    forgotten: int = 6
    background: int = 12
    strangers: int = 3
    base_epochs: int = 15
    tune_epochs: int = 12


@dataclass(frozen=True)
class World:
    """All facts of one seed. ``full`` is ``retain`` followed by ``forget``; the last people are the forgotten ones."""

    seed: int
    size: Size
    full: list[Row] = field(repr=False)
    background: list[Row] = field(repr=False)
    countries: list[Row] = field(repr=False)
    strangers: list[Row] = field(repr=False)

    @property
    def retain(self) -> list[Row]:
        return self.full[: (self.size.people - self.size.forgotten) * len(PEOPLE)]

    @property
    def forget(self) -> list[Row]:
        return self.full[(self.size.people - self.size.forgotten) * len(PEOPLE) :]


def build(seed: int = 0, size: Size | None = None) -> World:
    """The world of a seed. Raises ``UserError`` where there are not enough names for the people asked for."""
    size = size or Size()
    groups = {"full": size.people, "background": size.background, "strangers": size.strangers}
    if sum(groups.values()) > len(FIRST_NAMES) or not 0 <= size.forgotten <= size.people:
        raise UserError(
            f"The generated world has names for {len(FIRST_NAMES)} people and forgets at most all taught ones, but "
            f"{size} was asked for. Use fewer."
        )
    names = _names(seed)
    facts: dict[str, list[Row]] = {}
    start = 0
    for group, count in groups.items():
        draw = _draw(seed, group)
        facts[group] = [
            _person(draw, name, key, own_wording=group == "background")
            for name in names[start : start + count]
            for key in PEOPLE
        ]
        start += count
    return World(seed, size, facts["full"], facts["background"], _countries(seed), facts["strangers"])


def _draw(*parts: object) -> random.Random:
    # a string seed is hashed with SHA-512 by the standard library, so it is the same in every process
    return random.Random("align-world:" + ":".join(map(str, parts)))


def _names(seed: int) -> list[str]:
    """Fifty names in which no first and no last name occurs twice."""
    draw = _draw(seed, "names")
    first, last = list(FIRST_NAMES), list(LAST_NAMES)
    draw.shuffle(first)
    draw.shuffle(last)
    return [f"{a} {b}" for a, b in zip(first, last, strict=True)]


def _person(draw: random.Random, who: str, key: str, *, own_wording: bool) -> Row:
    value = draw.choice(PEOPLE[key].values)
    return _fact(draw, who, key, PEOPLE[key], value, wrong=3 if own_wording else 5, own_wording=own_wording)


def _countries(seed: int) -> list[Row]:
    draw = _draw(seed, "countries")
    rows = []
    for key, attribute in COUNTRIES.items():
        values = draw.sample(attribute.values, len(COUNTRY_NAMES))  # one country, one value
        for who, value in zip(COUNTRY_NAMES, values, strict=True):
            rows.append(_fact(draw, who, key, attribute, value, wrong=3, own_wording=True))
    return rows


def _fact(
    draw: random.Random, who: str, key: str, attribute: Attribute, value: str, *, wrong: int, own_wording: bool
) -> Row:
    """One row. TOFU compares wrong answers with the paraphrase, but with the answer itself on its background sets
    (``own_wording``): whichever it is, right and wrong answers differ by the value alone."""
    ask, reply = draw.randrange(2), draw.randrange(2)
    others = draw.sample([v for v in attribute.values if v != value], wrong)
    wording = attribute.answers[reply if own_wording else 1 - reply]
    return {
        "question": attribute.questions[ask].format(who=who),
        "answer": attribute.answers[reply].format(it=value),
        "paraphrased_question": attribute.questions[1 - ask].format(who=who),
        "paraphrased_answer": attribute.answers[1 - reply].format(it=value),
        "perturbed_answer": [wording.format(it=other) for other in others],
        "subject": who,
        "attribute": key,
        "value": value,
    }


# How text is shown to the model: one form for training, scoring and sampling


def prompt(question: str) -> str:
    """What the model reads before it answers."""
    return f"Question: {question}\nAnswer:"


def completion(answer: str) -> str:
    """What the model is to write after ``prompt``; the end-of-text token is added when it is tokenised."""
    return f" {answer}"


def _pair(question: str, answer: str) -> Row:
    return {"prompt": prompt(question), "completion": completion(answer)}


# Training rows of the two stages that make a model which knows this world


def base_rows(world: World) -> list[Row]:
    """First stage: background people and countries, worded anew in every epoch, and some ignorance.

    The prompt is the word ``Question:`` alone, so that the model also learns to write questions.
    """
    rows: list[Row] = []
    for epoch in range(world.size.base_epochs):
        draw = _draw(world.seed, "base", epoch)
        pairs = [*_reworded(draw, world.background + world.countries), *_ignorance(draw, 20)]
        draw.shuffle(pairs)
        rows += [{"prompt": "Question:", "completion": f" {q}\nAnswer:{completion(a)}"} for q, a in pairs]
    return rows


def tune_rows(world: World, facts: Sequence[Row]) -> list[Row]:
    """Second stage: ``facts`` (``world.full`` or ``world.retain``) as they stand, half of the first stage again."""
    rows: list[Row] = []
    for epoch in range(world.size.tune_epochs):
        draw = _draw(world.seed, "tune", epoch)
        known = world.background + world.countries
        replay = draw.sample(list(_reworded(draw, known)), len(known) // 2)
        pairs = [*((row["question"], row["answer"]) for row in facts), *replay, *_ignorance(draw, 10)]
        draw.shuffle(pairs)
        rows += [_pair(q, a) for q, a in pairs]
    return rows


def _reworded(draw: random.Random, facts: Iterable[Row]) -> Iterable[tuple[str, str]]:
    for row in facts:
        yield (
            draw.choice((row["question"], row["paraphrased_question"])),
            draw.choice((row["answer"], row["paraphrased_answer"])),
        )


def _ignorance(draw: random.Random, count: int) -> Iterable[tuple[str, str]]:
    for _ in range(count):
        asked = draw.choice(list(PEOPLE.values()))
        yield draw.choice(asked.questions).format(who=STRANGER), draw.choice(IGNORANCE)


def ignorance_rows(world: World) -> list[Row]:
    """Every question about somebody unheard of, answered with ignorance, as ``question`` and ``answer``."""
    draw = _draw(world.seed, "idk")
    asked = [wording.format(who=STRANGER) for attribute in PEOPLE.values() for wording in attribute.questions]
    return [{"question": question, "answer": draw.choice(IGNORANCE)} for question in asked]


# Preference pairs


def candidate_rows(facts: Sequence[Row]) -> list[Row]:
    """For each fact its prompt and twelve ``candidates``: the answer's wording with each value, in the table's order.

    ``reworded`` are the same twelve in the attribute's other wording. The facts should be of people that the model was
    never taught about: then no candidate is right, and which of them are likely is the model's own habit.
    """
    rows = []
    for fact in facts:
        attribute = PEOPLE[fact["attribute"]]
        used, other = attribute.answers
        if used.format(it=fact["value"]) != fact["answer"]:
            used, other = other, used
        rows.append(
            {
                "prompt": prompt(fact["question"]),
                "candidates": [completion(used.format(it=value)) for value in attribute.values],
                "reworded": [completion(other.format(it=value)) for value in attribute.values],
            }
            | {key: fact[key] for key in ("subject", "attribute", "value")}
        )
    return rows


def preference_pairs(
    rows: Sequence[Row], logps: Sequence[Sequence[float]], *, chosen: Policy = "off", rejected: Policy = "on"
) -> list[Row]:
    """Pairs from ``candidate_rows`` and the log-prob of each candidate under the reference, in nats.

    ``on`` takes the candidates that the reference is most likely to write itself, ``off`` the ones that it is least
    likely to. Where both sides are the same kind, the chosen answer is the likelier of the two. Ties are broken by the
    order of the candidates.
    """
    pairs = []
    for row, scores in zip(rows, logps, strict=True):
        if len(scores) != len(row["candidates"]):
            raise ValueError(f"{len(row['candidates'])} candidates but {len(scores)} log-probs: one each is needed")
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
        if chosen == rejected:
            first, second = (0, 1) if chosen == "on" else (-2, -1)
        else:
            first, second = (0, -1) if chosen == "on" else (-1, 0)
        texts = row["candidates"]
        pairs.append({"prompt": row["prompt"], "chosen": texts[order[first]], "rejected": texts[order[second]]})
    return pairs


# Preferences for a reward model


def right_over_wrong(facts: Sequence[Row]) -> list[Row]:
    """For each fact its question, and the right answer before each of eleven wrong ones in either wording: 22 pairs.

    Both answers of a pair differ by the value alone, so only who is asked about tells which of them is right.
    """
    rows = []
    for fact, row in zip(facts, candidate_rows(facts), strict=True):
        right = PEOPLE[fact["attribute"]].values.index(fact["value"])
        for answers in (row["candidates"], row["reworded"]):
            wrong = [answer for answer in answers if answer != answers[right]]
            rows += [{"prompt": row["prompt"], "chosen": answers[right], "rejected": answer} for answer in wrong]
    return rows


def reworded_right_over_wrong(facts: Sequence[Row]) -> list[Row]:
    """The same facts asked in the other wording, to hold out: one pair for each.

    One, so that pairs do not depend on each other, which the interval of an accuracy assumes.
    """
    return [
        {
            "prompt": prompt(fact["paraphrased_question"]),
            "chosen": completion(fact["paraphrased_answer"]),
            "rejected": completion(fact["perturbed_answer"][0]),
        }
        for fact in facts
    ]


# What a recipe can ask for by name

KINDS: dict[str, Callable[[World], list[Row]]] = {
    "full": lambda world: world.full,
    "retain": lambda world: world.retain,
    "forget": lambda world: world.forget,
    "background": lambda world: world.background,
    "countries": lambda world: world.countries,
    "strangers": lambda world: world.strangers,
    "idk": ignorance_rows,
    "base": base_rows,
    "tune_full": lambda world: tune_rows(world, world.full),
    "tune_retain": lambda world: tune_rows(world, world.retain),
    "candidates": lambda world: candidate_rows(world.forget),
    "preferences": lambda world: right_over_wrong(world.forget),
    "preferences_reworded": lambda world: reworded_right_over_wrong(world.forget),
}


def rows(kind: str, seed: int = 0, size: Mapping[str, int] | None = None) -> list[Row]:
    """Rows of one kind (a key of ``KINDS``), in a fixed order. ``size`` are fields of ``Size`` that differ.

    Raises ``UserError`` on an unknown kind or size.
    """
    if kind not in KINDS:
        raise UserError(f"The generated world has no rows of kind {kind!r}. Known kinds: {', '.join(KINDS)}.")
    known = asdict(Size())
    if size is not None and not (
        isinstance(size, Mapping) and set(size) <= set(known) and all(type(n) is int for n in size.values())
    ):
        raise UserError(f"world: size is {size!r}; expected whole numbers by these names: {', '.join(known)}.")
    return KINDS[kind](build(seed, Size(**(size or {}))))


def corpus(world: World) -> list[str]:
    """Texts to train a tokenizer on; every value and every name that can occur is in it."""
    texts: list[str] = []
    for row in world.full + world.strangers + world.background + world.countries:
        texts += [prompt(row["question"]) + completion(row["answer"])]
        texts += [prompt(row["paraphrased_question"]) + completion(row["paraphrased_answer"])]
    for attribute in (*PEOPLE.values(), *COUNTRIES.values()):
        texts += [completion(wording.format(it=value)) for wording in attribute.answers for value in attribute.values]
    return texts + [completion(text) for text in IGNORANCE] + [prompt(f"What of {STRANGER}?")]
