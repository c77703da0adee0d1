"""Owns the procedural world: what a scene is, how it moves, and how it is drawn. Knows nothing of captions or tensors.

Every scene is analytic in time: any stretch of any length can be rendered, and the truth of every attribute is known.
Lengths are in frame widths, times in seconds, x to the right, y down. Peak speeds stay near 3 pixels a frame at 64 x 64
and 16 fps, which a VAE with fourfold temporal compression can carry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reward_forcing.config import unknown
from reward_forcing.data.palette import (
    BACKGROUND_COLOURS,
    GRASS,
    OBJECT_COLOURS,
    SKY_DAY,
    SKY_NIGHT,
    WALL,
    Colour,
    stands_out,
)

Array = NDArray[np.floating]

FPS = 16
FLOOR_TOP = 0.78
SHAPES = ("ball", "square", "triangle")
SIZES = {"small": 0.14, "medium": 0.18, "big": 0.23}
SPEEDS = {"slow": 0.62, "normal": 1.0, "fast": 1.5}
NAMED_PACES = (1 / 1.2, 1.2)
"""Range of paces at which a scene's speed may be named: no two speeds meet there."""
PACES = {"slow": NAMED_PACES, "normal": (1 / 1.6, 1.6), "fast": NAMED_PACES}
"""Range of a scene's own pace, by which its speed is multiplied, for each speed; evenly distributed by ratio. What is
neither slow nor fast is anything in between."""
ORBIT_PERIOD, SWING_PERIOD, SPIN_PERIOD = 4.6, 4.0, 9.0  # seconds, at normal speed
PLACES = (0.36, 0.64)
"""Range of x and of y where a scene's object begins."""
SIZE_SCALE = {"orbit": 0.9, "swing": 0.9, "spin": 1.4}
"""Kinds that draw an object smaller or larger than SIZES says; what turns in place needs room for its corners."""
ROD: Colour = (70, 66, 64)
SUN: Colour = (252, 226, 70)
MOON: Colour = (240, 240, 232)


@dataclass(frozen=True)
class Scene:
    """The full recipe of one video of the world; `render` draws any stretch of it.

    kind: a key of KINDS. direction: one of KINDS[kind].directions ('' where the kind has none). setting: 'floor' (a
    wall above a floor), 'plain' (one colour all over) or 'land' (sky and ground, no background colour). second: (shape,
    colour) of the second object of 'two', else None. x, y, phase: where and when in its cycle it begins. pace: what its
    speed is multiplied by. reach: share of the greatest hop, circle, swing or pulse. No caption tells these two:
    they are what a prompt leaves open about the amount of motion.
    """

    kind: str
    shape: str = "ball"
    colour: str = "red"
    size: str = "medium"
    speed: str = "normal"
    direction: str = ""
    background: str = "gray"
    setting: str = "plain"
    second: tuple[str, str] | None = None
    x: float = 0.5
    y: float = 0.5
    phase: float = 0.0
    seed: int = 0
    pace: float = 1.0
    reach: float = 1.0

    @property
    def rate(self) -> float:
        """How fast everything goes, in normal speeds."""
        return SPEEDS[self.speed] * self.pace

    @property
    def speed_can_be_told(self) -> bool:
        """Whether a prompt may name its speed: what is called steady is neither nearly slow nor nearly fast."""
        return NAMED_PACES[0] <= self.pace <= NAMED_PACES[1]

    @property
    def usual(self) -> Scene:
        """The scene with as much motion as its prompt means on average."""
        return replace(self, pace=1.0, reach=(KINDS[self.kind].least_reach + 1) / 2)


@dataclass(frozen=True)
class Sprite:
    """One drawn object over time: shape, colour, centre x and y, radius and angle, each array [T]."""

    shape: str
    colour: Colour
    x: Array
    y: Array
    radius: Array
    angle: Array


@dataclass(frozen=True)
class Kind:
    """A kind of scene: how its objects move, and which attributes it has.

    phases: the range in its cycle where a scene begins, in turns. What turns begins so far before upright, or the top
    of its circle: begun anywhere, the two directions look alike under noise, and no network here told them apart.
    least_reach: the smallest `Scene.reach`, at which its motion can still be named: a small circle may be a wandering.
    """

    sprites: Callable[[Scene, Array], list[Sprite]]
    directions: tuple[str, ...] = ()
    phases: tuple[float, float] = (0.0, 1.0)
    settings: tuple[str, ...] = ("plain",)
    shapes: tuple[str, ...] = SHAPES
    has_object: bool = True
    weight: float = 1.0
    least_reach: float = 1.0


def _sprite(scene: Scene, x: Array, y: Array, scale: Array | float = 1.0, angle: Array | float = 0.0) -> Sprite:
    size = SIZES[scene.size] * SIZE_SCALE.get(scene.kind, 1.0)
    radius = np.broadcast_to(np.asarray(size * scale, np.float32), x.shape)
    turned = np.broadcast_to(np.asarray(angle, np.float32), x.shape)
    return Sprite(scene.shape, OBJECT_COLOURS[scene.colour], x, np.broadcast_to(y, x.shape), radius, turned)


def _ground(scene: Scene) -> float:
    return FLOOR_TOP if scene.setting == "floor" else 0.93


def _hop(t: Array, phase: float, period: float) -> Array:
    """Height of a ball that bounces without loss, in [0, 1]: a parabola repeated."""
    u = (t / period + phase) % 1.0
    return (4 * u * (1 - u)).astype(np.float32)


def _bounce(scene: Scene, t: Array) -> list[Sprite]:
    radius, height = SIZES[scene.size], 0.33 if scene.speed == "fast" else 0.40
    room = _ground(scene) - 2 * radius - 0.03
    height = scene.reach * min(height, room)
    y = _ground(scene) - radius - height * _hop(t, scene.phase, 2.4 / scene.rate**0.7)
    return [_sprite(scene, np.full_like(t, scene.x), y)]


def _wrapped(t: Array, speed: float, start: float, radius: float) -> Array:
    """A coordinate that crosses the frame, leaves it whole and comes back on the other side."""
    span = 1 + 2 * radius
    return ((start + radius + speed * t) % span - radius).astype(np.float32)


def _slide(scene: Scene, t: Array) -> list[Sprite]:
    sign = 1 if scene.direction == "right" else -1
    radius = SIZES[scene.size]
    x = _wrapped(t, sign * 0.23 * scene.rate, scene.x - sign * 0.3, radius)
    y = FLOOR_TOP - radius if scene.setting == "floor" else scene.y
    return [_sprite(scene, x, np.full_like(t, y))]


def _climb(scene: Scene, t: Array) -> list[Sprite]:
    sign = 1 if scene.direction == "down" else -1
    y = _wrapped(t, sign * 0.23 * scene.rate, scene.y - sign * 0.3, SIZES[scene.size])
    return [_sprite(scene, np.full_like(t, scene.x), y)]


def _turns(scene: Scene, t: Array, period: float) -> Array:
    """Angle from upright in radians; positive is clockwise on the screen, because y points down."""
    sign = 1 if scene.direction == "clockwise" else -1
    return (2 * np.pi * (scene.phase + sign * t * scene.rate / period)).astype(np.float32)


def _orbit(scene: Scene, t: Array) -> list[Sprite]:
    angle = _turns(scene, t, ORBIT_PERIOD)
    radius = 0.26 * scene.reach
    return [_sprite(scene, 0.5 + radius * np.sin(angle), 0.5 - radius * np.cos(angle))]


def _swing(scene: Scene, t: Array) -> list[Sprite]:
    amplitude = scene.reach * (0.48 if scene.speed == "fast" else 0.62)
    angle = amplitude * np.sin(2 * np.pi * (t * scene.rate**0.8 / SWING_PERIOD + scene.phase))
    length = 0.58
    x, y = 0.5 + length * np.sin(angle), 0.06 + length * np.cos(angle)
    rod = Sprite("rod", ROD, np.full_like(t, 0.5), np.full_like(t, 0.06), np.full_like(t, length), -angle)
    return [rod, _sprite(scene, x.astype(np.float32), y.astype(np.float32))]


def _pulse(scene: Scene, t: Array) -> list[Sprite]:
    scale = 1.0 + 0.42 * scene.reach * np.sin(2 * np.pi * (t * scene.rate / 2.6 + scene.phase))
    return [_sprite(scene, np.full_like(t, scene.x), np.full_like(t, scene.y), scale=scale)]


def _spin(scene: Scene, t: Array) -> list[Sprite]:
    """Near the middle of the frame, where even a big object's corners stay inside."""
    x, y = 0.4 + 0.2 * scene.x, 0.4 + 0.2 * scene.y
    return [_sprite(scene, np.full_like(t, x), np.full_like(t, y), angle=_turns(scene, t, SPIN_PERIOD))]


def _reflected(u: Array, low: float, high: float) -> Array:
    span = high - low
    u = (u - low) % (2 * span)
    return (low + np.where(u > span, 2 * span - u, u)).astype(np.float32)


def _wander(scene: Scene, t: Array) -> list[Sprite]:
    radius = SIZES[scene.size]
    angle = np.pi * (0.5 * np.floor(scene.phase * 4) + 0.20)
    x = scene.x + 0.30 * scene.rate * np.cos(angle) * t
    y = scene.y + 0.30 * scene.rate * np.sin(angle) * t
    return [_sprite(scene, _reflected(x, radius, 1 - radius), _reflected(y, radius, 1 - radius))]


def _two(scene: Scene, t: Array) -> list[Sprite]:
    assert scene.second is not None, scene
    left = replace(scene, x=0.25)
    right = replace(scene, x=0.75, shape=scene.second[0], colour=scene.second[1], phase=scene.phase + 0.5)
    return _bounce(left, t) + _bounce(right, t)


def _snow(scene: Scene, t: Array) -> list[Sprite]:
    rng = np.random.default_rng(scene.seed)
    flakes = []
    for _ in range(16):
        x, y, radius, sway = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.032, 0.046), rng.uniform(0, 1)
        fall = _wrapped(t, 0.22 * scene.rate * (0.8 + 10 * (radius - 0.032)), y, radius)
        drift = x + 0.03 * np.sin(2 * np.pi * (t / 4 + sway))
        full = np.full_like(t, radius)
        flakes.append(Sprite("ball", OBJECT_COLOURS["white"], drift.astype(np.float32), fall, full, 0 * full))
    return flakes


def _nothing(scene: Scene, t: Array) -> list[Sprite]:
    return []


KINDS: dict[str, Kind] = {
    "bounce": Kind(_bounce, settings=("floor", "floor", "plain"), weight=1.5, least_reach=0.6),
    "slide": Kind(_slide, directions=("left", "right"), settings=("floor", "plain"), weight=1.4),
    "climb": Kind(_climb, directions=("up", "down"), weight=1.2),
    "orbit": Kind(
        _orbit, directions=("clockwise", "counterclockwise"), phases=(0.08, 0.17), weight=1.2, least_reach=0.85
    ),
    "swing": Kind(_swing, weight=1.0, least_reach=0.55),
    "pulse": Kind(_pulse, weight=1.0, least_reach=0.85),
    "spin": Kind(
        _spin,
        directions=("clockwise", "counterclockwise"),
        phases=(0.04, 0.09),
        shapes=("square", "triangle"),
        weight=1.0,
    ),
    "wander": Kind(_wander, weight=1.0),
    "two": Kind(_two, settings=("floor", "plain"), weight=0.8, least_reach=0.6),
    "snow": Kind(_snow, has_object=False, weight=0.5),
    "day": Kind(_nothing, has_object=False, settings=("land",), weight=0.5),
    "pan": Kind(_nothing, directions=("left", "right"), has_object=False, settings=("land",), weight=0.5),
}


def untold(rng: np.random.Generator, kind: str, speed: str) -> dict[str, float]:
    """A random `pace` and `reach` of a scene of a kind and speed: how much it moves beyond what its prompt tells."""
    pace, reach = np.exp(rng.uniform(*np.log(PACES[speed]))), rng.uniform(KINDS[kind].least_reach, 1.0)
    return {"pace": float(pace), "reach": float(reach)}


def sample_scene(rng: np.random.Generator, kind: str | None = None) -> Scene:
    """A random scene in which every object stands out from what is behind it. Raises ValueError for an unknown kind."""
    if kind is not None and kind not in KINDS:
        raise ValueError(unknown("scene kind", kind, KINDS))
    names = list(KINDS)
    weights = np.array([KINDS[name].weight for name in names])
    kind = kind or names[rng.choice(len(names), p=weights / weights.sum())]
    traits = KINDS[kind]

    def pick(options: tuple[str, ...] | list[str]) -> str:
        return options[int(rng.integers(len(options)))]

    setting = pick(traits.settings)
    background = pick(["gray", "black", "blue", "purple", "green"] if kind == "snow" else list(BACKGROUND_COLOURS))
    on_wall = setting == "floor"
    clear = [name for name in OBJECT_COLOURS if stands_out(name, background, on_wall)]
    colour = pick(clear)
    second = None
    if kind == "two":
        second = (pick(traits.shapes), pick([name for name in clear if name != colour]))
    shape = pick(traits.shapes)
    size = pick(("small", "medium")) if kind == "two" else pick(tuple(SIZES))
    speed = pick(("slow", "normal", "normal", "fast"))
    direction = pick(traits.directions) if traits.directions else ""
    x, y, phase = (float(rng.uniform(*span)) for span in (PLACES, PLACES, traits.phases))
    seed = int(rng.integers(2**31))
    motion = untold(np.random.default_rng([seed, 1]), kind, speed)
    return Scene(
        kind=kind,
        shape=shape,
        colour=colour,
        size=size,
        speed=speed,
        direction=direction,
        background=background,
        setting=setting,
        second=second,
        x=x,
        y=y,
        phase=-phase if direction == "clockwise" else phase,
        seed=seed,
        **motion,
    )


def sprites(scene: Scene, t: Array) -> list[Sprite]:
    """The objects of a scene at times `t` [T] seconds: the truth that a detector is measured against."""
    return KINDS[scene.kind].sprites(scene, np.asarray(t, np.float32))


def _signed_distance(sprite: Sprite, px: Array, py: Array) -> Array:
    """Distance in widths to the sprite's edge, negative inside; px, py [1, H, W] -> [T, H, W]."""
    column = (slice(None), None, None)
    dx, dy = px - sprite.x[column], py - sprite.y[column]
    cos, sin, radius = np.cos(sprite.angle)[column], np.sin(sprite.angle)[column], sprite.radius[column]
    u, v = cos * dx + sin * dy, -sin * dx + cos * dy
    if sprite.shape == "ball":
        return np.hypot(u, v) - radius
    if sprite.shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.86 * radius
    if sprite.shape == "triangle":
        v = v - 0.16 * radius  # an upright triangle looks centred when it is lowered a little
        return np.maximum(np.abs(u) * 0.8660254 - v * 0.5, v) - 0.70 * radius
    if sprite.shape == "rod":  # from the pivot downwards, `radius` long
        return np.maximum(np.abs(u) - 0.022, np.maximum(-v, v - radius))
    raise ValueError(unknown("shape", sprite.shape, (*SHAPES, "rod")))


def _mix(frames: Array, colour: Colour | Array, alpha: Array) -> Array:
    return frames + alpha[..., None] * (np.asarray(colour, np.float32) - frames)


def _fill(t: Array, size: int, colour: Colour) -> Array:
    return np.broadcast_to(np.asarray(colour, np.float32), (len(t), size, size, 3)).copy()


def _backdrop(scene: Scene, t: Array, px: Array, py: Array, size: int) -> Array:
    if scene.setting == "plain":
        return _fill(t, size, BACKGROUND_COLOURS[scene.background])
    if scene.setting == "floor":
        floor = np.clip((py - FLOOR_TOP) * size + 0.5, 0, 1)
        wall = _fill(t, size, WALL)
        return _mix(wall, BACKGROUND_COLOURS[scene.background], np.broadcast_to(floor, wall.shape[:3]))
    return _day(scene, t, px, py, size) if scene.kind == "day" else _hills(scene, t, px, py, size)


def _day(scene: Scene, t: Array, px: Array, py: Array, size: int) -> Array:
    """Day and night in turn: sun and moon rise on the left and set on the right, and the sky follows the sun."""
    cycle = t * scene.rate / 8.0 + scene.phase
    height = np.sin(2 * np.pi * cycle)[:, None, None]
    light = np.clip(0.5 + 0.9 * height, 0, 1)
    frames = _mix(_fill(t, size, SKY_NIGHT), SKY_DAY, np.broadcast_to(light, (len(t), size, size)))
    for colour, shift in ((SUN, 0.0), (MOON, 0.5)):
        arc = 2 * np.pi * (cycle + shift)
        x, y = 0.5 - 0.34 * np.cos(arc), 0.72 - 0.5 * np.sin(arc)
        full = np.full_like(t, 0.12)
        disc = Sprite("ball", colour, x.astype(np.float32), y.astype(np.float32), full, 0 * full)
        frames = _mix(frames, colour, np.clip(0.5 - _signed_distance(disc, px, py) * size, 0, 1))
    ground = np.broadcast_to(np.clip((py - 0.75) * size + 0.5, 0, 1), frames.shape[:3])
    dark = np.asarray(GRASS, np.float32) * (0.3 + 0.7 * light[..., None])
    return _mix(frames, dark, ground)


def _hills(scene: Scene, t: Array, px: Array, py: Array, size: int) -> Array:
    """A camera that moves over hills and trees; nearer layers move faster. Directions name the camera's own motion."""
    sign = 1 if scene.direction == "right" else -1
    travel = (sign * t * scene.rate)[:, None, None] + 10 * scene.phase
    frames = _fill(t, size, SKY_DAY)
    far = 0.52 + 0.09 * np.sin(2 * np.pi * (px + 0.08 * travel) / 0.9)
    frames = _mix(frames, (118, 142, 168), np.clip((py - far) * size + 0.5, 0, 1))
    near = 0.72 + 0.05 * np.sin(2 * np.pi * (px + 0.2 * travel) / 0.7)
    frames = _mix(frames, GRASS, np.clip((py - near) * size + 0.5, 0, 1))
    along = (px + 0.2 * travel) % 0.7 - 0.35
    trunk = np.maximum(np.abs(along) - 0.03, np.abs(py - 0.70) - 0.10)
    frames = _mix(frames, (96, 62, 36), np.clip(0.5 - trunk * size, 0, 1))
    crown = np.hypot(along, py - 0.52) - 0.13
    return _mix(frames, (30, 88, 44), np.clip(0.5 - crown * size, 0, 1))


def render(scene: Scene, frames: int, size: int = 64, start: float = 0, fps: float = FPS) -> NDArray[np.uint8]:
    """Frames [T, size, size, 3] uint8 of a scene, from frame number `start` on; edges are anti-aliased."""
    t = ((start + np.arange(frames)) / fps).astype(np.float32)
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    px, py = centres[None, None, :], centres[None, :, None]
    out = _backdrop(scene, t, px, py, size)
    for sprite in sprites(scene, t):
        out = _mix(out, sprite.colour, np.clip(0.5 - _signed_distance(sprite, px, py) * size, 0, 1))
    return np.clip(out + 0.5, 0, 255).astype(np.uint8)
