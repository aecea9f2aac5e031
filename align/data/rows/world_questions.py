"""Questions of the generated world in which the person is not named: through an alias, and over two hops.

An alias says what else is known of somebody: "the person whose trade is weaving and whose home town is Brindle". Two
hops start at somebody else: "the person who shares the home town of Adaro Aldercott", which takes that person's town
and whose town it is besides. Each describes exactly one of the people that a model can know, in as few facts as the
order of the attributes gives, and never by the fact that is asked for. No number is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from align.data.rows.world_tables import PEOPLE

Row = dict[str, Any]
People = dict[str, dict[str, str]]  # name -> attribute -> value

# what an attribute is called in "the person whose ... is"
NAMES = {
    "month": "birth month",
    "trade": "trade",
    "town": "home town",
    "transport": "way to work",
    "colour": "favourite colour",
    "breakfast": "breakfast",
    "collection": "collection",
    "fear": "greatest fear",
    "tree": "tree beside the house",
    "dance": "favourite dance",
    "sport": "sport",
    "stone": "ring stone",
    "weather": "favourite weather",
    "flower": "choice of flowers",
    "newspaper": "newspaper",
    "spice": "favourite spice",
    "game": "game",
    "club": "club",
    "holiday": "holiday place",
    "bird": "rescued bird",
}


def alias_questions(facts: Sequence[Row], known: Sequence[Row]) -> list[str | None]:
    """The question of each fact about "the person whose ... is ..."; None where nothing tells that person apart.

    Args:
        facts: rows about people.
        known: rows about everybody among whom the description must fit one alone; all of ``facts`` are among them.
    """
    people = _people(known)
    return [_asked(fact, "the person", people, [], _others(fact)) for fact in facts]


def two_hop_questions(facts: Sequence[Row], known: Sequence[Row]) -> list[str | None]:
    """The question of each fact about "the person who shares the ... of" somebody else; as ``alias_questions``.

    It takes the attribute that the fewest others share, and the first of them, in the order of ``known``. None where
    nobody shares anything, too.
    """
    people = _people(known)
    return [_over_two_hops(fact, people) for fact in facts]


def _over_two_hops(fact: Row, people: People) -> str | None:
    own = people[fact["subject"]]
    sharing = {
        key: [who for who, theirs in people.items() if theirs[key] == own[key] and who != fact["subject"]]
        for key in _others(fact)
    }
    shared = min((key for key in sharing if sharing[key]), key=lambda key: len(sharing[key]), default=None)
    if shared is None:
        return None
    bridge = sharing[shared][0]
    # the bridge is not one that shares the value with itself
    rest = {who: theirs for who, theirs in people.items() if who != bridge}
    others = [key for key in _others(fact) if key != shared]
    start = f"the person who shares the {NAMES[shared]} of {bridge}"
    return _asked(fact, start, rest, [shared], others)


def _asked(fact: Row, start: str, people: People, given: list[str], others: Sequence[str]) -> str | None:
    """The fact's question with its subject described: ``start``, then values of ``others`` until one person is left.

    ``given`` are attributes that ``start`` has settled.
    """
    own = people[fact["subject"]]

    def fitting(keys: Sequence[str]) -> list[str]:
        return [who for who, theirs in people.items() if all(theirs[key] == own[key] for key in keys)]

    count = next((n for n in range(not given, len(others) + 1) if len(fitting([*given, *others[:n]])) == 1), None)
    if count is None:
        return None
    clauses = " and ".join(f"whose {NAMES[key]} is {own[key]}" for key in others[:count])
    joined = f"{start} and {clauses}" if given and clauses else f"{start} {clauses}".rstrip()
    return str(fact["question"]).replace(fact["subject"], joined)


def _others(fact: Row) -> list[str]:
    """All attributes but the one asked for, from the next one on."""
    keys = list(PEOPLE)
    place = keys.index(fact["attribute"])
    return [*keys[place + 1 :], *keys[:place]]


def _people(rows: Sequence[Row]) -> People:
    people: People = {}
    for row in rows:
        people.setdefault(row["subject"], {})[row["attribute"]] = row["value"]
    return people
