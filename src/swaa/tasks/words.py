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
