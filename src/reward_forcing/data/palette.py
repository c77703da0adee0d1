"""Owns the colours of the procedural world: what each colour word looks like on objects and on backgrounds.

Object colours lie at least 85 apart in RGB (Euclidean, 0..255) from one another, so that they stay apart after a small
VAE; backgrounds are muted, so that an object stands out from a background of the same name.
"""

from __future__ import annotations

Colour = tuple[int, int, int]

OBJECT_COLOURS: dict[str, Colour] = {
    "red": (222, 28, 34),
    "orange": (246, 130, 22),
    "yellow": (248, 228, 62),
    "green": (38, 188, 72),
    "cyan": (48, 216, 226),
    "blue": (36, 72, 228),
    "purple": (142, 40, 186),
    "pink": (252, 138, 192),
    "white": (250, 250, 250),
    "black": (14, 14, 18),
}

BACKGROUND_COLOURS: dict[str, Colour] = {
    "gray": (126, 128, 132),
    "black": (20, 20, 24),
    "white": (236, 236, 234),
    "blue": (40, 62, 132),
    "green": (48, 96, 62),
    "brown": (134, 96, 56),
    "red": (128, 44, 56),
    "yellow": (206, 184, 104),
    "purple": (82, 60, 112),
}

WALL: Colour = (172, 180, 192)
"""The neutral wall above a named floor."""

SKY_DAY: Colour = (130, 190, 240)
SKY_NIGHT: Colour = (14, 18, 48)
GRASS: Colour = (64, 132, 66)


def distance(a: Colour, b: Colour) -> float:
    """Euclidean RGB distance of two colours, each 0..255."""
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5


def stands_out(colour: str, background: str, on_wall: bool) -> bool:
    """Whether an object of `colour` is easy to see: at least 85 from its background and, if before a wall, from it."""
    rgb = OBJECT_COLOURS[colour]
    far_from_wall = not on_wall or distance(rgb, WALL) >= 85
    return distance(rgb, BACKGROUND_COLOURS[background]) >= 85 and far_from_wall
