"""The words that rewrites exchange: synonyms, contractions, numbers, keys that lie side by side.

English alone. Words stand here in lower case, since a word with a capital may be a name.
"""

from __future__ import annotations


def _pairs(lines: str) -> dict[str, str]:
    """``one = other`` from entries divided by semicolons or lines."""
    entries = (entry.split("=") for entry in lines.replace("\n", ";").split(";") if entry.strip())
    return {one.strip(): other.strip() for one, other in entries}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# either may stand for the other
_EITHER_WAY = _pairs(
    """
    someone = somebody; anyone = anybody; everyone = everybody; no one = nobody; each other = one another
    maybe = perhaps; nearly = almost; often = frequently; usually = normally; quickly = rapidly; therefore = thus
    additionally = furthermore; toward = towards; afterward = afterwards; for example = for instance
    kind of = sort of; kinds of = sorts of; immediately = right away; make sure that = ensure that
    photo = photograph; photos = photographs; bicycle = bike; bicycles = bikes; lots of = a lot of
    enormous = huge; wonderful = marvelous; terrible = awful; rarely = seldom; sofa = couch; bought = purchased
    entirely = completely; mostly = mainly; buying = purchasing
    color = colour; colors = colours; favorite = favourite; flavor = flavour; flavors = flavours; neighbor = neighbour
    neighbors = neighbours; behavior = behaviour; traveling = travelling; gray = grey; center = centre
    organize = organise; realize = realise; recognize = recognise; apologize = apologise
    """
)

# the second may stand for the first; the first would not do for every sense of the second
_ONE_WAY = _pairs(
    """
    in order to = to; prior to = before; due to the fact that = because; owing to = because of; at once = immediately
    whether or not = whether; as soon as possible = as quickly as possible; at the present time = now
    begin = start; begins = starts; began = started; commence = start; purchase a = buy a; purchase the = buy the
    assistance = help; assisting = helping; utilize = use; utilizes = uses; utilizing = using; obtain = get
    obtaining = getting; automobile = car; automobiles = cars; movie = film; movies = films; difficult = hard
    children = kids; incorrect = wrong; numerous = many; entire = whole; crucial = vital; tiny = very small
    although = though; until = till; amongst = among; whilst = while; approximately = about; attempting = trying
    selecting = choosing; demonstrate = show; demonstrates = shows; additional = further; residence = home
    physician = doctor; physicians = doctors; attorney = lawyer; attorneys = lawyers
    individuals = people; inexpensive = cheap
    intelligent = clever; beverage = drink; beverages = drinks; moreover = besides; consequently = as a result
    remainder = rest; speak with = talk to; inquire = ask; permitted = allowed; resides = lives
    """
)

SYNONYMS = _EITHER_WAY | {other: one for one, other in _EITHER_WAY.items()} | _ONE_WAY

# whole and contracted; "he's" and "he'd" have two whole forms each, and so are left alone
CONTRACTIONS = _pairs(
    """
    is not = isn't; are not = aren't; was not = wasn't; were not = weren't; do not = don't; does not = doesn't
    did not = didn't; have not = haven't; has not = hasn't; had not = hadn't; cannot = can't; could not = couldn't
    should not = shouldn't; would not = wouldn't; will not = won't; i am = i'm; you are = you're; we are = we're
    they are = they're; i will = i'll; you will = you'll; we will = we'll; they will = they'll
    """
)

DIGITS = _words("zero one two three four five six seven eight nine ten eleven twelve")
NUMBER_WORDS = frozenset(
    _words(
        """
    three seven eight eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty
    forty fifty sixty seventy eighty ninety hundred thousand million billion first second third fourth fifth sixth
    seventh eighth ninth tenth
    """
    )
)

# letters beside each letter on a QWERTY keyboard, in the same row
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEIGHBOURS = {
    key: row[max(place - 1, 0) : place] + row[place + 1 : place + 2] for row in _ROWS for place, key in enumerate(row)
}

# words that one slip makes of others which begin and end alike; no slip may give one of them
OTHER_WORDS = frozenset(
    _words(
        """
    abut angel angle bead beard board boast brad bread broad carful cares casual causal case cause chair char
    cheap cheep chef chief chose choose coast cold comma conservation conversation cost court course curse curt
    dairy desert dessert diary diner dinner fiend filed filled form from fund grand ground heart heat hoping
    hopping horse hose house later latter loose loses losses march marital martial match month moth mouth paint
    pant pants plant planed planned pint point poser power quiet quite reed robed robbed sacred scared scent shirt
    shooting shouting sight slight silver sliver spit split sport spot stared starred start stat staring starring
    steam stem super supper taping tapping thee their there these those though thought thorough through tree
    trough tried tired trail trial united untied wander where were while white whole wold wonder word world wound
    write wrote
    """
    )
)
