"""Owns scenes whose prompt is switched: the same video before and after, as an edit of one scene into another.

What the second prompt names changes at once; what it leaves out stays, and the object goes on from where it was. A
prompt switched while streaming is meant to do exactly this (LongLive; Reward Forcing, interactive generation).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from reward_forcing.data.captions import UNSAID, Caption, caption
from reward_forcing.data.dataset import SPLITS, Split, clip, is_held_out, world_scene
from reward_forcing.data.palette import stands_out
from reward_forcing.data.scenes import FPS, KINDS, PLACES, Scene, sample_scene, sprites

EDITS = ("colour", "shape", "background", "direction")
UNREMARKABLE = ("medium", "normal", "")
WORDINGS_TRIED = 100


@dataclass(frozen=True)
class Switch:
    """One scene until a moment and another from then on; the pixel frame of the moment is the reader's choice."""

    before: Scene
    after: Scene

    def clip(self, at: int, frames: int, size: int = 64) -> Tensor:
        """Frames [T, 3, H, W] in [0, 1]; frame `at` is the first of `after`. Raises ValueError if it is not inside."""
        if not 0 < at < frames:
            raise ValueError(f"the switch must lie within the clip's {frames} frames, got frame {at}")
        return torch.cat([clip(self.before, at, size), clip(self.after, frames - at, size, start=at)])


def switched_scene(index: int, split: Split = "train", at: int = 0) -> Switch:
    """Switch number `index` of a split, whose second scene carries on from pixel frame `at` of the first.

    Half of them change one or more traits of the scene, half go over to another kind of scene.
    """
    before = world_scene(index, split)
    rng = np.random.default_rng([SPLITS[split], index, 1])
    while True:
        after = _edited(before, rng) if rng.random() < 0.5 else _replaced(before, rng)
        if after is not None and not is_held_out(after):
            return Switch(before, _moved(after, before, at / FPS, rng))


def switch_captions(switch: Switch, seed: int) -> tuple[Caption, Caption]:
    """A caption of each half, chosen by `seed`; the second says all that it changes."""
    rng = np.random.default_rng([seed, switch.before.seed])
    first = caption(switch.before, rng)
    changed = changes(switch)
    for _ in range(WORDINGS_TRIED):
        second = caption(switch.after, rng)
        if all(second.says[trait] != UNSAID for trait in changed):
            return first, second
    return first, caption(switch.after, rng, held_out=True)


def changes(switch: Switch) -> dict[str, str]:
    """The traits that the second scene shows and the first did not, by their names in `captions.TRAITS`."""
    before, after = shown(switch.before), shown(switch.after)
    return {trait: value for trait, value in after.items() if before.get(trait) != value and value not in UNREMARKABLE}


def shown(scene: Scene) -> dict[str, str]:
    """What can be seen of a scene: trait of `captions.TRAITS` -> value, without the traits that it does not have."""
    traits = {"kind": scene.kind, "setting": scene.setting, "direction": scene.direction, "speed": scene.speed}
    if scene.setting != "land":
        traits["background"] = scene.background
    if KINDS[scene.kind].has_object:
        traits |= {"shape": scene.shape, "colour": scene.colour, "size": scene.size}
    if scene.second is not None:
        traits |= {"second_shape": scene.second[0], "second_colour": scene.second[1]}
    return traits


def _edited(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """The scene with some of its traits changed; None if that cannot be seen or told apart."""
    other = sample_scene(rng, scene.kind)
    traits = [trait for trait in EDITS if rng.random() < 0.4 and getattr(other, trait) != getattr(scene, trait)]
    after = replace(scene, **{trait: getattr(other, trait) for trait in traits})
    clear = all(stands_out(colour, after.background, after.setting == "floor") for colour in _colours(after))
    distinct = len(set(_colours(after))) == len(_colours(after))
    visible = shown(after) != shown(scene)
    return after if visible and clear and distinct else None


def _replaced(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """A scene of another kind, which keeps the colours of the first half of the time; None if it cannot be told."""
    other = replace(sample_scene(rng), speed=scene.speed, pace=scene.pace)
    if other.kind == scene.kind:
        return None
    if KINDS[other.kind].has_object and KINDS[scene.kind].has_object and rng.random() < 0.5:
        shape = scene.shape if scene.shape in KINDS[other.kind].shapes else other.shape
        size = "medium" if other.kind == "two" and scene.size == "big" else scene.size
        other = replace(other, colour=scene.colour, shape=shape, size=size, background=scene.background)
    colours = _colours(other)
    clear = all(stands_out(colour, other.background, other.setting == "floor") for colour in colours)
    return other if clear and len(set(colours)) == len(colours) else None


def _colours(scene: Scene) -> list[str]:
    """The colours of a scene's objects."""
    if not KINDS[scene.kind].has_object:
        return []
    return [scene.colour, *([scene.second[1]] if scene.second else [])]


def _moved(after: Scene, before: Scene, t: float, rng: np.random.Generator) -> Scene:
    """`after` begun where its first object is nearest to that of `before` at time `t`."""
    if not (KINDS[after.kind].has_object and KINDS[before.kind].has_object):
        return after
    if after.kind == before.kind and after.direction == before.direction:
        return replace(after, x=before.x, y=before.y, phase=before.phase)
    there = _centre(before, t)
    starts = [
        replace(after, x=float(rng.uniform(*PLACES)), y=float(rng.uniform(*PLACES)), phase=float(rng.uniform(0, 1)))
        for _ in range(64)
    ]
    return min(starts, key=lambda scene: float(np.square(_centre(scene, t) - there).sum()))


def _centre(scene: Scene, t: float) -> np.ndarray:
    """x and y of a scene's first object at time `t`."""
    sprite = next(sprite for sprite in sprites(scene, np.array([t])) if sprite.shape != "rod")
    return np.array([sprite.x[0], sprite.y[0]])
