"""Owns the words for scenes: many natural wordings for each, some of which leave attributes out on purpose.

`caption` draws one wording for training; `held_out=True` uses sentence patterns that training never sees, made of words
that it does. `TRAITS` lists what a caption can say, for a text encoder that learns to read it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reward_forcing.data.palette import BACKGROUND_COLOURS, OBJECT_COLOURS
from reward_forcing.data.scenes import KINDS, SHAPES, SIZES, SPEEDS, Scene

UNSAID = "unsaid"

SHAPE_WORDS = {
    "ball": ("ball", "ball", "ball", "circle", "disc", "sphere"),
    "square": ("square", "square", "square", "box", "cube", "block"),
    "triangle": ("triangle", "triangle", "triangle", "pyramid"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium": ("medium",), "big": ("big", "large", "huge")}
SPEED_WORDS = {"slow": ("slowly",), "normal": ("steadily",), "fast": ("quickly", "fast")}

VERBS = {
    "bounce": (("bounces", "bouncing"), ("bounces", "bouncing"), ("jumps up and down", "jumping up and down"),
               ("bounces up and down", "bouncing up and down"), ("hops", "hopping")),
    "slide": (("moves", "moving"), ("slides", "sliding"), ("rolls", "rolling"), ("drives", "driving")),
    "climb": (("moves", "moving"), ("floats", "floating"), ("drifts", "drifting")),
    "orbit": (("orbits", "orbiting"), ("circles", "circling"), ("moves in a circle", "moving in a circle"),
              ("goes around", "going around"), ("travels around", "travelling around")),
    "swing": (("swings", "swinging"), ("swings on a rope", "swinging on a rope"),
              ("swings back and forth", "swinging back and forth"), ("hangs and swings", "hanging and swinging"),
              ("swings like a pendulum", "swinging like a pendulum")),
    "pulse": (("pulses", "pulsing"), ("grows and shrinks", "growing and shrinking"),
              ("gets bigger and smaller", "getting bigger and smaller"), ("pulsates", "pulsating")),
    "spin": (("spins", "spinning"), ("rotates", "rotating"), ("turns", "turning"),
             ("spins in place", "spinning in place")),
    "wander": (("wanders around", "wandering around"), ("bounces off the walls", "bouncing off the walls"),
               ("moves diagonally", "moving diagonally"), ("flies around", "flying around"),
               ("drifts from edge to edge", "drifting from edge to edge")),
    "two": (("bounce", "bouncing"), ("bounce", "bouncing"), ("jump up and down", "jumping up and down"),
            ("hop", "hopping"), ("bounce up and down", "bouncing up and down")),
}  # fmt: skip

# A direction in words; '{}' stands for the verb. Some replace the verb by one that already says the direction.
DIRECTIONS = {
    ("slide", "left"): ("{} to the left", "{} to the left", "{} left", "{} from right to left", "{} leftward"),
    ("slide", "right"): ("{} to the right", "{} to the right", "{} right", "{} from left to right", "{} rightward"),
    ("climb", "up"): ("{} up", "{} upward", "{} from bottom to top", "rises", "goes up"),
    ("climb", "down"): ("{} down", "{} downward", "{} from top to bottom", "falls", "sinks", "goes down"),
    ("orbit", "clockwise"): ("{} clockwise",),
    ("orbit", "counterclockwise"): ("{} counterclockwise", "{} anticlockwise"),
    ("spin", "clockwise"): ("{} clockwise",),
    ("spin", "counterclockwise"): ("{} counterclockwise", "{} anticlockwise"),
}
GERUNDS = {"rises": "rising", "goes up": "going up", "falls": "falling", "sinks": "sinking", "goes down": "going down"}

FLOORS = ("over a {} floor", "on a {} floor", "above a {} floor", "on the {} floor", "over {} ground")
PLAINS = ("on a {} background", "against a {} background", "in front of a {} wall", "over a {} background", "on {}")

PATTERNS = (
    "{noun} {verb} {where}", "{noun} {verb} {where}", "{noun} {verb} {where}", "{noun} {verb} {where}",
    "{noun} is {gerund} {where}", "{noun} {gerund} {where}", "a video of {noun} {gerund} {where}",
    "{where} {noun} {verb}", "a clip of {noun} that {verb} {where}", "there is {noun} {gerund} {where}",
    "{gerund} {where} is {noun}", "we see {noun} {gerund} {where}",
)  # fmt: skip
HELD_OUT_PATTERNS = (
    "{where} there is {noun} that {verb}",
    "we see {where} {noun} that {verb}",
    "{where} is {noun} {gerund}",
)

SNOW = {
    "pattern": ("snow {verb} {where}", "white snow {verb} {where}", "snow is {gerund} {where}", "{where} snow {verb}",
                "a video of snow {gerund} {where}", "snowflakes {gerund} {where}", "it is snowing {where}"),
    "held_out": ("we see snow {gerund} {where}", "there is snow that {verb} {where}"),
}  # fmt: skip
DAY = {
    "pattern": ("day turns to night", "day and night", "the sun rises and sets", "the sun moves over a green field",
                "the sun and the moon move over a green field", "a video of day turning to night", "night turns to day",
                "the sky turns from day to night over a field", "sunrise and sunset"),
    "held_out": ("we see the sun that rises and sets over a field",
                 "a clip of day turning to night over a green field"),
}  # fmt: skip
PAN = {
    "pattern": ("the camera pans {} over green hills", "the camera moves to the {} over hills and trees",
                "a landscape with hills and trees, the camera pans to the {}", "camera pan to the {} over a landscape",
                "hills and trees, the camera pans {}", "a video of hills and trees, the camera moves {}",
                "the camera moves {} past trees"),
    "held_out": ("we see trees and green hills, the camera pans to the {}",
                 "a clip of a landscape, the camera moves {}"),
}  # fmt: skip

TRAITS: dict[str, tuple[str, ...]] = {
    "kind": tuple(KINDS),
    "shape": (UNSAID, *SHAPES),
    "colour": (UNSAID, *OBJECT_COLOURS),
    "size": (UNSAID, *SIZES),
    "speed": (UNSAID, *SPEEDS),
    "direction": (UNSAID, "left", "right", "up", "down", "clockwise", "counterclockwise"),
    "background": (UNSAID, *BACKGROUND_COLOURS),
    "setting": (UNSAID, "floor", "plain", "land"),
    "second_shape": (UNSAID, *SHAPES),
    "second_colour": (UNSAID, *OBJECT_COLOURS),
}


@dataclass(frozen=True)
class Caption:
    """A wording of a scene. says: what it tells, a value of TRAITS for every trait ('unsaid' where it is silent)."""

    text: str
    says: dict[str, str]


def caption(scene: Scene, rng: np.random.Generator, held_out: bool = False) -> Caption:
    """A random wording of `scene`. Held-out wordings name kind, colour, shape, direction and background every time."""
    says = dict.fromkeys(TRAITS, UNSAID) | {"kind": scene.kind}
    chance = _Chance(rng, held_out)
    if scene.kind in ("day", "pan"):
        text = _landscape(scene, chance, says)
    elif scene.kind == "snow":
        options = SNOW["held_out" if held_out else "pattern"]
        where, verb = _where(scene, chance, says), _paced(scene, ("falls", "falling"), chance, says)
        pattern = chance.pick(options)
        text = pattern.format(verb=verb[0], gerund=verb[1], where=where)
        if "verb" not in pattern and "gerund" not in pattern:
            says["speed"] = UNSAID
    else:
        where = _where(scene, chance, says)
        noun = _nouns(scene, chance, says)
        verb, gerund = _paced(scene, _verb(scene, chance, says), chance, says)
        options = HELD_OUT_PATTERNS if held_out else PATTERNS
        if scene.kind == "two":
            options = (
                tuple(option for option in options if "is " not in option and "that" not in option) or PATTERNS[:1]
            )
        if not where:
            options = tuple(option for option in options if not option.startswith("{where}") and "} is" not in option)
        text = chance.pick(options).format(noun=noun, verb=verb, gerund=gerund, where=where)
    return Caption(" ".join(text.replace(" ,", ",").split()), says)


@dataclass(frozen=True)
class _Chance:
    """Random choices of one caption; with `complete`, what identifies the scene is always said."""

    rng: np.random.Generator
    complete: bool

    def pick(self, options: tuple[str, ...]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def says(self, probability: float) -> bool:
        return self.complete or self.rng.random() < probability


def _where(scene: Scene, chance: _Chance, says: dict[str, str]) -> str:
    if not chance.says(0.85):
        return ""
    says["background"], says["setting"] = scene.background, scene.setting
    return chance.pick(FLOORS if scene.setting == "floor" else PLAINS).format(scene.background)


def _noun(scene: Scene, shape: str, colour: str, chance: _Chance, says: dict[str, str], prefix: str = "") -> str:
    words = []
    says_size = chance.rng.random() < (0.15 if scene.size == "medium" else 0.7)
    if says_size and not prefix:
        says["size"] = scene.size
        words.append(chance.pick(SIZE_WORDS[scene.size]))
    if chance.says(0.92):
        says[f"{prefix}colour"] = colour
        words.append(colour)
    says[f"{prefix}shape"] = shape
    words.append(chance.pick(SHAPE_WORDS[shape]))
    article = "the" if chance.rng.random() < 0.06 else "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def _nouns(scene: Scene, chance: _Chance, says: dict[str, str]) -> str:
    first = _noun(scene, scene.shape, scene.colour, chance, says)
    if scene.second is None:
        return first
    return f"{first} and {_noun(scene, *scene.second, chance, says, prefix='second_')}"


def _verb(scene: Scene, chance: _Chance, says: dict[str, str]) -> tuple[str, str]:
    present, gerund = VERBS[scene.kind][int(chance.rng.integers(len(VERBS[scene.kind])))]
    must_say = scene.kind in ("slide", "climb")  # 'moves' alone would name neither
    if not scene.direction or not (must_say or chance.says(0.9)):
        return present, gerund
    says["direction"] = scene.direction
    wording = chance.pick(DIRECTIONS[scene.kind, scene.direction])
    if "{}" not in wording:
        return wording, GERUNDS[wording]
    return wording.format(present), wording.format(gerund)


def _paced(scene: Scene, verb: tuple[str, str], chance: _Chance, says: dict[str, str]) -> tuple[str, str]:
    if chance.rng.random() >= (0.2 if scene.speed == "normal" else 0.75) or not scene.speed_can_be_told:
        return verb
    says["speed"] = scene.speed
    adverb = chance.pick(SPEED_WORDS[scene.speed])
    if adverb != "fast" and chance.rng.random() < 0.3:
        return f"{adverb} {verb[0]}", f"{adverb} {verb[1]}"
    return f"{verb[0]} {adverb}", f"{verb[1]} {adverb}"


def _landscape(scene: Scene, chance: _Chance, says: dict[str, str]) -> str:
    says["setting"] = "land"
    options = (DAY if scene.kind == "day" else PAN)["held_out" if chance.complete else "pattern"]
    if scene.kind == "pan":
        says["direction"] = scene.direction
    text = chance.pick(options).format(scene.direction)
    return _paced(scene, (text, text), chance, says)[0] if scene.kind == "pan" else text


def vocabulary() -> list[str]:
    """Every word a caption can hold, sorted: what the miniature understands."""
    texts = [" ".join(p) for verbs in VERBS.values() for p in verbs]
    texts += [*GERUNDS, *GERUNDS.values(), "falls falling a an the is and two it"]
    for wordings in (*DIRECTIONS.values(), *SHAPE_WORDS.values(), *SIZE_WORDS.values(), *SPEED_WORDS.values()):
        texts += wordings
    texts += [*FLOORS, *PLAINS, *PATTERNS, *HELD_OUT_PATTERNS, *OBJECT_COLOURS, *BACKGROUND_COLOURS]
    for group in (SNOW, DAY, PAN):
        texts += [*group["pattern"], *group["held_out"]]
    words = " ".join(texts).replace(",", " ").split()
    return sorted({word for word in words if "{" not in word} | {"left", "right"})
