"""The words that tasks write with, our own. Lists do not overlap, so no key and no value occurs by chance.

Changing a list changes every example: the golden digest in the tests then changes too.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in text.split("/"))


ADJECTIVES = _words(
    """
    amber brave calm clever cosy dainty eager fancy fluffy gentle giant golden hasty hollow humble jolly
    kindly lazy lucky mellow merry mighty nimble noble placid proud rapid rustic shiny silent silver sleepy
    sturdy sunny tidy tiny velvet vivid witty young
    """
)
"""First halves of keys."""

NOUNS = _words(
    """
    anchor badger beetle candle canyon castle cedar comet cricket dolphin dragon eagle falcon feather forest
    glacier hammer harbor island jacket kettle kitten lantern lizard maple meadow mirror orchid otter panther
    pebble pepper pirate rabbit rocket saddle salmon tiger violin walnut
    """
)
"""Second halves of keys."""

VALUE_WORDS = _words(
    """
    acorn apple basket blanket bottle bread bucket butter button camel carpet carrot cheese cherry clover
    coffee copper cotton desert diamond doctor engine finger flower garlic ginger guitar hockey honey insect
    jungle ladder lemon magnet marble needle novel ocean onion oxygen palace paper pencil pillow planet pocket
    poetry potato prince pumpkin puzzle ribbon rubber sailor shadow shield spider spring statue sugar temple
    ticket tunnel turtle wagon whistle window winter yellow zebra
    """
)
"""Values of ``value_type='words'``."""

SUBJECTS = _phrases(
    """
    The wind / A small boat / The old clock / A grey cat / The morning light / The river / A quiet road /
    The gardener / A passing cloud / The baker / A narrow stream / The last train / A wooden cart /
    The church bell / A flock of geese / The evening fog
    """
)
"""Beginnings of noise sentences."""

VERBS = _phrases(
    """
    moves slowly past / rests beside / turns towards / waits near / drifts over / comes back to /
    is seen from / fades behind / never reaches / stays close to / passes again by / is lost beyond
    """
)
"""Middles of noise sentences."""

PLACES = _phrases(
    """
    the stone wall / the empty field / the bakery / the narrow bridge / the tall trees / the village square /
    the mill / the far shore / the open gate / the long hill / the school yard / the market hall /
    the low barn / the harvest fair / the garden path / the busy station
    """
)
"""Ends of noise sentences."""

FILLERS = ("so", "a", "on", "of", "I")
"""Short words, one token each in most vocabularies, that bring a prompt to its exact length."""

LIST_WORDS = _words(
    """
    actor album alarm ankle apron arrow author award badge ballad bamboo banner barrel beacon beard beaver bench
    berry bishop blade blossom board bonnet border branch brass breeze brick broom brush bubble buckle bugle bundle
    cabin cable cactus campus canal canvas cargo carol cattle cellar cello chalk chapel charm chart chess chimney
    circle circus cliff closet coast cobbler cocoa comedy compass concert cookie corner cottage couch cousin cradle
    crane crayon crown crystal cup curtain cushion cymbal daisy dance dairy dawn decade deputy dinner donkey drawer
    dream drum duke dusk easel echo editor elbow ember empire envelope evergreen fabric factory family farmer
    fashion fence ferry fiddle figure flame flask flute forum fossil fountain frame freight frost galaxy gallery
    garage garment gazette ghost glove goblet gossip grain grape gravel grocer guest gutter hamlet handle hazel
    hedge helmet herald hinge hobby horizon hotel icicle idea inkwell iron ivory jelly jewel judge jury kayak kernel
    kiosk knight label lagoon lamp laundry lawyer leader leather ledger legend letter lever library linen lobby
    locket lodge lumber lunch major mansion manual march margin mason match mayor medal melody memory menu merchant
    meteor midnight minute mistake moment monk motor mountain muffin museum music mustard nation nephew nickel
    notebook nurse oasis oatmeal office olive opera orange outfit oyster package paddle painter parade parcel parent
    parsley passage pastry patch pattern peach peasant pedal penny piano picnic pigeon pillar pilot plaster plateau
    plaza plum pocketknife policy pond porch portrait powder prairie prize program propeller quarry quartz queen
    quilt radar raft railway raisin ranch raven reason recipe record reef region reporter rescue reward rhyme rice
    ridge riddle robin roof rope rose route sandal satin sauce scarf scholar science scout sculptor season senate
    sermon shelf shepherd shovel sketch slipper soldier spice sponge squirrel stable stadium stamp steeple stencil
    stitch storm story student studio summit surgeon swallow syrup tailor tavern teacher theater thimble throne
    timber toaster tobacco tomato tower tractor treaty trellis tribe trophy trumpet tulip turbine tutor umbrella
    uncle uniform valley vapor veil velour veteran vinegar virtue visitor vowel waffle walrus warehouse weaver wharf
    wheat wizard wool workshop yarn zipper
    """
)
"""Words of lists, beside the three lists above; noise says none of them."""

SYLLABLES = tuple(first + second for first in "bdfgklmnprstvz" for second in "aeiou")
"""What invented words and names are made of."""

FIRST_NAMES = _words(
    """
    Ada Alma Anton Asta Bela Bruno Carla Cyril Dora Edgar Elsa Emil Enid Felix Flora Frida Gustav Hanna Hugo Ida Igor
    Irma Jonas Karla Konrad Lena Linus Lotte Magda Martin Mila Nadia Oskar Otto Paula Petra Rosa Rudolf Selma Tilda
    Ulrich Vera Viktor Wanda Yvonne
    """
)
"""Of people who never lived."""

TOWNS = _words(
    """
    Aldermoor Ashwick Birkdale Brackford Coldmere Dunhollow Eastlow Elmbury Farleigh Fennick Glenbarrow Greyport Harwick
    Highmarsh Inverlow Kelbrook Larkhill Linmouth Marwood Millhaven Norwick Oakensea Pinebury Ravensey Redmoor Saltby
    Stonewell Thornley Underhill Westerby Whitcombe Wolford
    """
)
"""Towns that are on no map."""

TRADES = _words(
    """
    architect astronomer baker beekeeper bookbinder botanist carpenter chemist clockmaker cook dentist engraver
    geologist glassblower historian journalist librarian locksmith mathematician mechanic midwife musician photographer
    physicist potter printer shoemaker surveyor translator weaver
    """
)
"""What these people did for a living."""

INSTRUMENTS = _words(
    "accordion bagpipe banjo bassoon cello clarinet flute harp horn lute mandolin oboe organ piano trombone viola"
)
"""What they played."""
