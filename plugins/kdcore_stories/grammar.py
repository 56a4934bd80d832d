"""The grammar: words, plots, and the facts that every story keeps."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence


def _words(several: str) -> list[str]:
    return several.split()


_GIRLS = _words("Ada Cleo Elsa Greta Isla Lotte")
_BOYS = _words("Bruno Cyril Emil Felix Ivo Jonas")
_FRIENDS = _words("badger beaver crow donkey goose hare mole snail")
_THINGS = _words("button lantern ring scarf shell spoon wheel whistle")
COLOURS = _words("black gold green pink red silver")
_PLACES = (
    "at the mill",
    "behind the stable",
    "by the brook",
    "in the orchard",
    "on the dune",
    "under the bridge",
)

_OPENINGS = ("One morning", "Long ago", "Last summer", "On a rainy day", "Before breakfast")

_BEGINNINGS = (
    "{opening}, {hero} met a {friend} {place} and showed it a {colour} {thing}.",
    "{opening}, a {friend} came to {hero} {place} and brought a {colour} {thing}.",
    "{opening}, {hero} and a {friend} sat {place} and polished a {colour} {thing}.",
)

_PLOTS = (
    (
        (
            "But a gust of wind carried the {colour} {thing} away from {hero}.",
            "But {hero} looked up at a bird, and the {colour} {thing} rolled off.",
        ),
        (
            '"Where is the {colour} {thing}?" asked the {friend}.',
            '"What became of the {colour} {thing}?" asked the {friend}.',
        ),
        (
            '"I lost it," said {hero}, and {he} began to cry.',
            '"It is gone," said {hero}, and {his} heart was heavy.',
        ),
        (
            "The {friend} turned over every stone, and there was the {colour} {thing}.",
            "The {friend} had sharp eyes and saw the {colour} {thing} in a bush.",
        ),
        (
            '"You clever {friend}!" cried {hero}.',
            "{hero} hugged the {friend} and laughed out loud.",
        ),
    ),
    (
        (
            "The {friend} could not stop staring at the {colour} {thing}.",
            "The {friend} touched the {colour} {thing} again and again.",
        ),
        (
            '"May I borrow the {colour} {thing}, {hero}?" it asked.',
            '"I never had a {colour} {thing} like that, {hero}," it said.',
        ),
        (
            "{hero} hid the {colour} {thing} behind {his} back.",
            "{hero} was afraid that the {colour} {thing} would break.",
        ),
        (
            "Then {he} saw how the {friend} hung its head.",
            "Then the {friend} said goodbye, and {he} felt lonely.",
        ),
        (
            '"Take the {colour} {thing} until tonight," said {hero} to the {friend}.',
            '"We can share the {colour} {thing}," said {hero} to the {friend}.',
        ),
    ),
    (
        (
            "But {hero} stumbled, and the {colour} {thing} cracked.",
            "But the {colour} {thing} fell on a rock, and {hero} wept.",
        ),
        (
            '"Let me see it, {hero}," said the {friend}.',
            '"I have mended worse things, {hero}," said the {friend}.',
        ),
        (
            "{He} gave the {colour} {thing} to the {friend}.",
            "{He} held the {colour} {thing} while the {friend} tied a string around it.",
        ),
        (
            "All afternoon {hero} and the {friend} worked with glue and {colour} paint.",
            "The {friend} never hurried, and {hero} stirred the {colour} paint.",
        ),
        (
            "In the end, the {colour} {thing} was stronger than before.",
            "When it was dry, nobody could find the crack in the {colour} {thing}.",
        ),
    ),
    (
        (
            "Then fog came up, and {hero} could not see the {friend} any more.",
            "Then the {friend} went for a swim, and {hero} heard it call for help.",
        ),
        (
            "{hero} tied the {colour} {thing} to a long stick.",
            "{hero} raised the {colour} {thing} as high as {he} could.",
        ),
        (
            '"Follow the {colour} {thing}!" {he} called to the {friend}.',
            '"Look for the {colour} {thing}!" {he} called to the {friend}.',
        ),
        (
            "Step by step, the {friend} came nearer to {hero}.",
            "Slowly the {friend} found the way back to {hero}.",
        ),
        (
            '"Without the {colour} {thing} I would be lost," said the {friend}.',
            '"I shall never forget the {colour} {thing}," said the {friend}.',
        ),
    ),
)

_ENDINGS = (
    "That night {hero} hung the {colour} {thing} above {his} bed and dreamed of the {friend}.",
    "Since then, {hero} and the {friend} share the {colour} {thing}.",
    "And {hero} still meets the {friend} {place} to talk about the {colour} {thing}.",
)

_FACTS: Mapping[str, Sequence[str]] = {
    "hero": _GIRLS + _BOYS,
    "friend": _FRIENDS,
    "thing": _THINGS,
    "colour": COLOURS,
    "place": [place.split()[-1] for place in _PLACES],
}


def tell(rng: random.Random) -> str:
    """A story of three paragraphs, about 150 tokens long."""
    girl = rng.random() < 0.5
    words = {
        "opening": rng.choice(_OPENINGS),
        "hero": rng.choice(_GIRLS if girl else _BOYS),
        "he": "she" if girl else "he",
        "He": "She" if girl else "He",
        "his": "her" if girl else "his",
        "friend": rng.choice(_FRIENDS),
        "thing": rng.choice(_THINGS),
        "colour": rng.choice(COLOURS),
        "place": rng.choice(_PLACES),
    }
    plot = " ".join(map(rng.choice, rng.choice(_PLOTS)))
    return "\n".join([rng.choice(_BEGINNINGS), plot, rng.choice(_ENDINGS)]).format(**words)


def facts(story: str) -> Mapping[str, Sequence[str]]:
    """Every mention of hero, friend, thing, colour and place in a story."""
    words = re.findall(r"\w+", story)
    return {fact: [word for word in words if word in known] for fact, known in _FACTS.items()}


def keeps_facts(story: str) -> bool:
    """Whether a story keeps one hero, one friend, one thing and one colour throughout.

    Each must be named at least twice, and no other of its kind at all. Every story of the grammar
    passes.
    """
    found = facts(story)
    return all(
        len(found[fact]) > 1 and len(set(found[fact])) == 1
        for fact in ("hero", "friend", "thing", "colour")
    )
