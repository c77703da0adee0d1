"""Reads what a caption of the world says: the inverse of `captions.caption`, for rewards, which see only the words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

from reward_forcing.data.captions import (
    DIRECTIONS,
    FLOORS,
    GERUNDS,
    PLAINS,
    SHAPE_WORDS,
    SIZE_WORDS,
    SPEED_WORDS,
    TRAITS,
    UNSAID,
    VERBS,
)
from reward_forcing.data.palette import BACKGROUND_COLOURS, OBJECT_COLOURS

LANDSCAPES = {"pan": ("hills", "landscape", "camera"), "day": ("sun", "day", "night", "sunrise")}
SNOW_WORDS = ("snow", "snowflakes", "snowing")
WAYS = {
    "left": ("to the left", "from right to left", "leftward", "left"),
    "right": ("to the right", "from left to right", "rightward", "right"),
    "up": ("upward", "from bottom to top", "up"),
    "down": ("downward", "from top to bottom", "down"),
    "clockwise": ("clockwise",),
    "counterclockwise": ("counterclockwise", "anticlockwise"),
}


def read_caption(text: str) -> dict[str, str]:
    """What a caption says, a value of TRAITS for every trait, 'unsaid' where it is silent.

    Raises ValueError for a text that names no kind of scene of the world.
    """
    says = dict.fromkeys(TRAITS, UNSAID)
    rest = " ".join(text.lower().replace(",", " ").split())
    says["speed"], rest = _take(_inverse(SPEED_WORDS), rest)
    for kind, words in LANDSCAPES.items():
        if _find(words, rest):
            way, _ = _take(_inverse(WAYS), rest) if kind == "pan" else (UNSAID, rest)
            return says | {"kind": kind, "setting": "land", "direction": way}
    rest = _read_where(rest, says)
    if _find(SNOW_WORDS, rest):
        return says | {"kind": "snow"}
    kinds, way, rest = _read_verb(rest)
    nouns = re.findall(_noun(), rest)
    for prefix, (size, colour, shape) in zip(("", "second_"), nouns, strict=False):
        says[f"{prefix}shape"] = _inverse(SHAPE_WORDS)[shape]
        says[f"{prefix}colour"] = colour.strip() or UNSAID
        if size and not prefix:
            says["size"] = _inverse(SIZE_WORDS)[size.strip()]
    if "two" in kinds and len(nouns) > 1:
        return says | {"kind": "two"}
    fitting = [kind for kind in kinds if kind != "two" and (way == UNSAID or (kind, way) in DIRECTIONS)]
    if not fitting or not nouns:
        raise ValueError(f"the caption '{text}' names no scene of the world")
    return says | {"kind": fitting[0], "direction": way}


def _read_where(text: str, says: dict[str, str]) -> str:
    """Note background and setting; returns the text without the words for them."""
    for setting, templates in (("floor", FLOORS), ("plain", PLAINS)):
        for template in sorted(set(templates), key=len, reverse=True):
            found = re.search(rf"\b{template.format(f'({_any(BACKGROUND_COLOURS)})')}\b(?! (?:floor|background))", text)
            if found:
                says["background"], says["setting"] = found[1], setting
                return f"{text[: found.start()]}{text[found.end() :]}"
    return text


def _read_verb(text: str) -> tuple[list[str], str, str]:
    """The kinds that the longest verb in the text can mean, its direction, and the text without both."""
    for phrase, (kinds, way) in _verbs().items():
        found = re.search(rf"\b{phrase}\b", text)
        if found:
            rest = f"{text[: found.start()]} | {text[found.end() :]}"
            if way == UNSAID:
                way, rest = _take(_inverse(WAYS), rest)
            return list(kinds), way, rest
    return [], UNSAID, text


@cache
def _verbs() -> dict[str, tuple[tuple[str, ...], str]]:
    """Every verb, longest first -> the kinds it can mean, and the direction that it says by itself."""
    found: dict[str, tuple[tuple[str, ...], str]] = {}
    for kind, forms in VERBS.items():
        for phrase in (phrase for pair in forms for phrase in pair):
            kinds, _ = found.get(phrase, ((), UNSAID))
            found[phrase] = (*dict.fromkeys((*kinds, kind)),), UNSAID
    for (kind, way), wordings in DIRECTIONS.items():
        for wording in wordings:
            if "{}" not in wording:
                found |= dict.fromkeys((wording, GERUNDS[wording]), ((kind,), way))
    return dict(sorted(found.items(), key=lambda item: len(item[0]), reverse=True))


@cache
def _noun() -> str:
    """A noun with its size and colour, either of which may be missing."""
    sizes, shapes = (_any(_inverse(words)) for words in (SIZE_WORDS, SHAPE_WORDS))
    return rf"\b((?:{sizes}) )?((?:{_any(OBJECT_COLOURS)}) )?({shapes})\b"


def _inverse(words: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {word: value for value, options in words.items() for word in options}


def _any(words: Iterable[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


def _find(words: Iterable[str], text: str) -> re.Match[str] | None:
    return re.search(rf"\b(?:{_any(words)})\b", text)


def _take(values: Mapping[str, str], text: str) -> tuple[str, str]:
    """The value of the longest of the words that the text holds, and the text without them; 'unsaid' without any."""
    found = _find(values, text)
    if found is None:
        return UNSAID, text
    return values[found[0]], " ".join(f"{text[: found.start()]}{text[found.end() :]}".split())
