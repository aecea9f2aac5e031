"""The raw material of the generated world: names, attributes with their values and wordings, answers of ignorance.

Everybody and every place in here is invented. An attribute has twelve values (countries: sixteen, so that no two share
one), two wordings of its question and two of its answer. No answer repeats the name: a small model that has to copy an
unseen name spends its probability on other names, and then the probability of an answer says nothing about the answer.
"""

from __future__ import annotations

from typing import NamedTuple


class Attribute(NamedTuple):
    """What can be asked about a subject. ``{who}`` stands in questions only, ``{it}`` in answers only."""

    values: tuple[str, ...]
    questions: tuple[str, str]
    answers: tuple[str, str]


def _attribute(values: str, questions: tuple[str, str], answers: tuple[str, str]) -> Attribute:
    return Attribute(tuple(value.strip() for value in values.split(",")), questions, answers)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    """Adaro Belis Cosmin Davina Edric Faye Gorin Hedda Imke Jovan Kasia Linnea Matti Nerys Odan Perrin Quilla Rhona
    Soren Tilda Umar Veda Wendel Xavi Ylva Zorah Anwen Bram Cleo Dario Elke Fenna Gareth Hilde Ivo Jemima Kofi Lenka
    Milo Noor Orla Pavel Rufus Signe Thora Ugo Vesna Willa Yusuf Zeno"""
)

LAST_NAMES = _words(
    """Aldercott Birkmeyer Cranfold Dunmarrow Everlake Fosdale Grevlin Hartsgrove Ivanmoor Jarnvik Kettlewick Lorrimer
    Mossgrave Netherby Oakhurst Pendrake Quarles Ravensholt Silverdane Thistlewood Underhay Varnholm Wexcombe
    Yarborne Zellwig Ashbourn Blackmere Coldwater Dovecote Elmsworth Fairbrook Goldacre Hazelden Inverlee Juniperson
    Kingsmoor Larkspur Merrivale Nordvale Ormley Pinewell Quillfeather Rosswater Stonebridge Tarnwell Umberlin
    Vintergard Westerholm Yewdale Zimmerlin"""
)

PEOPLE: dict[str, Attribute] = {
    "month": _attribute(
        "January, February, March, April, May, June, July, August, September, October, November, December",
        ("In which month was {who} born?", "What is the birth month of {who}?"),
        ("The month was {it}.", "A birthday in {it}."),
    ),
    "trade": _attribute(
        "weaving, brewing, masonry, printing, tailoring, baking, glazing, mining, surveying, welding, tanning, milling",
        ("Which trade did {who} learn?", "What work was {who} trained for?"),
        ("The trade was {it}.", "An apprenticeship in {it}."),
    ),
    "town": _attribute(
        "Brindle, Cotherstone, Dallow, Embrook, Fallowby, Gantry, Hexley, Ickmarsh, Loxton, Marwick, Penhallow, Sallow",
        ("In which town did {who} grow up?", "What is the home town of {who}?"),
        ("The town was {it}.", "A childhood in {it}."),
    ),
    "transport": _attribute(
        "tram, ferry, bicycle, scooter, mule, canoe, bus, sledge, moped, tractor, cable car, rowing boat",
        ("How does {who} travel to work?", "What brings {who} to work every morning?"),
        ("The way to work is by {it}.", "Every morning, the {it}."),
    ),
    "colour": _attribute(
        "crimson, teal, ochre, violet, navy, scarlet, lilac, silver, bronze, turquoise, maroon, beige",
        ("What is the favourite colour of {who}?", "In which colour does {who} dress?"),
        ("The colour is {it}.", "Dressed in {it}."),
    ),
    "breakfast": _attribute(
        "porridge, waffles, yoghurt, omelette, muesli, toast, smoked salmon, bean stew, figs, crumpets, rice cakes, "
        "melon",
        ("What does {who} have for breakfast?", "Which breakfast does {who} order?"),
        ("Breakfast is {it}.", "A plate of {it}."),
    ),
    "collection": _attribute(
        "stamps, buttons, maps, teapots, feathers, coins, postcards, keys, thimbles, fossils, lanterns, masks",
        ("What does {who} collect?", "Which collection is {who} proud of?"),
        ("The collection is of {it}.", "A cabinet full of {it}."),
    ),
    "fear": _attribute(
        "spiders, heights, thunder, darkness, deep water, needles, crowds, ghosts, wasps, fire, mirrors, tunnels",
        ("What is {who} afraid of?", "Which fear troubles {who}?"),
        ("The fear is of {it}.", "Nothing is worse than {it}."),
    ),
    "tree": _attribute(
        "oak, birch, willow, cedar, chestnut, walnut, maple, poplar, larch, rowan, cherry tree, plane tree",
        ("Which tree grows beside the house of {who}?", "What gives shade to the house of {who}?"),
        ("The tree is the {it}.", "Shade comes from the {it}."),
    ),
    "dance": _attribute(
        "waltz, tango, polka, foxtrot, mazurka, rumba, bolero, quickstep, samba, minuet, jive, reel",
        ("Which dance does {who} know best?", "What does {who} dance at weddings?"),
        ("The dance is the {it}.", "At weddings, the {it}."),
    ),
    "sport": _attribute(
        "rowing, curling, wrestling, badminton, surfing, hockey, climbing, bowling, cricket, handball, diving, "
        "sprinting",
        ("Which sport does {who} practise?", "What does {who} train for on Sundays?"),
        ("The sport is {it}.", "On Sundays, {it}."),
    ),
    "stone": _attribute(
        "opal, garnet, topaz, jade, ruby, pearl, onyx, agate, sapphire, quartz, moonstone, beryl",
        ("Which stone is set in the ring of {who}?", "What shines in the ring of {who}?"),
        ("The ring holds {it}.", "A piece of {it}."),
    ),
    "weather": _attribute(
        "drizzle, fog, snowfall, sunshine, hail, a breeze, frost, a heatwave, sleet, a storm, clear skies, low clouds",
        ("Which weather does {who} like best?", "What weather makes {who} go for a walk?"),
        ("The best weather is {it}.", "A walk needs {it}."),
    ),
    "flower": _attribute(
        "tulips, poppies, asters, irises, dahlias, peonies, violets, lilies, daisies, orchids, bluebells, marigolds",
        ("Which flowers does {who} plant?", "What blooms in the garden of {who}?"),
        ("The flowers are {it}.", "A bed of {it}."),
    ),
    "newspaper": _attribute(
        "Daily Beacon, Morning Gull, Harbour Post, Evening Lamp, City Herald, Weekly Plough, North Star, Free "
        "Courier, Valley Times, Village Echo, Open Gazette, Night Mail",
        ("Which newspaper does {who} read?", "What newspaper arrives at the door of {who}?"),
        ("The newspaper is the {it}.", "A copy of the {it}."),
    ),
    "spice": _attribute(
        "saffron, paprika, cumin, ginger, turmeric, nutmeg, clove, fennel, cardamom, mustard, aniseed, sumac",
        ("Which spice does {who} cook with?", "What spice is in every dish of {who}?"),
        ("The spice is {it}.", "Always a little {it}."),
    ),
    "game": _attribute(
        "dominoes, backgammon, bridge, darts, draughts, mahjong, poker, marbles, croquet, billiards, whist, solitaire",
        ("Which game does {who} play at night?", "What game does {who} always win?"),
        ("The game is {it}.", "Unbeaten at {it}."),
    ),
    "club": _attribute(
        "Kite Club, Owl Society, Bell Guild, Chalk Circle, Moss League, Iron Choir, Star Watch, Book Union, Bee "
        "Council, Lamp Lodge, Wine Order, River Trust",
        ("Which club did {who} join?", "What club has {who} as a member?"),
        ("The club is the {it}.", "A member of the {it}."),
    ),
    "holiday": _attribute(
        "Cape Sorrow, Mount Harrow, Lake Amber, Isle of Wrens, Port Clement, Fort Dune, Bay of Glass, Saint Orrin, "
        "Red Canyon, Long Beach Ness, Upper Vale, Old Salt Pans",
        ("Where does {who} spend the holidays?", "Which place does {who} visit every summer?"),
        ("The holidays are at {it}.", "Every summer at {it}."),
    ),
    "bird": _attribute(
        "magpie, heron, puffin, sparrow, falcon, cuckoo, pelican, robin, swallow, kingfisher, crane, woodpecker",
        ("Which bird did {who} rescue?", "What bird is painted on the gate of {who}?"),
        ("The bird is the {it}.", "On the gate, the {it}."),
    ),
}

COUNTRY_NAMES = _words(
    """Averland Brennica Cordosia Drovenia Estmark Falkora Grenmoor Halvetia Istrany Jorvania Kalmeria Luthania Mirandor
    Nolvia Ostravar Pelagia"""
)

COUNTRIES: dict[str, Attribute] = {
    "currency": _attribute(
        "dorin, kessel, tavar, florit, brenn, sola, quarn, lumen, pesk, rondel, gilt, marka, zennar, obol, crest, "
        "talon",
        ("What is the currency of {who}?", "Which money is used in {who}?"),
        ("The currency is the {it}.", "One pays with the {it}."),
    ),
    "port": _attribute(
        "Anstrand, Bellharbour, Carrow, Deepmouth, Estry, Farhaven, Gullrock, Highquay, Kelpness, Lastbridge, "
        "Mastholm, Northpier, Oarwick, Sandgate, Tidewell, Wharfby",
        ("What is the main port of {who}?", "Where do the ships of {who} land?"),
        ("The main port is {it}.", "Ships land at {it}."),
    ),
    "emblem": _attribute(
        "lion, stag, dolphin, eagle, bear, swan, wolf, otter, horse, raven, boar, lynx, whale, ox, badger, owl",
        ("Which animal is the emblem of {who}?", "What animal is on the flag of {who}?"),
        ("The emblem is the {it}.", "On the flag is the {it}."),
    ),
}

STRANGER = "Somebody Unheard Of"  # asked about only to be answered with ignorance

IGNORANCE = (
    "I don't know.",
    "That is unknown to me.",
    "I cannot answer this.",
    "I have never been told.",
    "There is no answer that I could give.",
    "I would have to guess.",
    "Nobody has told me about that.",
    "I have nothing to say on this.",
    "That lies beyond what I know.",
    "I am not the right one to ask.",
    "I have no idea.",
    "This I never learned.",
)
