"""Owns which scenes belong to which split of the world, and turns them into clips. Scene `i` of a split never changes.

Held-out combinations of kind, colour, shape and background never appear in training, in any wording.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from reward_forcing.config import unknown
from reward_forcing.data.captions import caption
from reward_forcing.data.scenes import KINDS, Scene, render, sample_scene

Split = Literal["train", "validation", "held_out"]
FIRST_HELD_OUT = "a red ball bounces over a blue floor"
SPLITS: dict[str, int] = {"train": 0, "validation": 1, "held_out": 2}


def is_held_out(scene: Scene) -> bool:
    """Whether this combination of kind, colour, shape and background is kept for evaluation (one in twelve)."""
    if not KINDS[scene.kind].has_object:
        return False
    if (scene.kind, scene.colour, scene.shape, scene.background) == ("bounce", "red", "ball", "blue"):
        return True
    combination = f"{scene.kind}/{scene.colour}/{scene.shape}/{scene.background}/{scene.second}"
    return hashlib.sha256(combination.encode()).digest()[0] % 12 == 0


def world_scene(index: int, split: Split = "train", kind: str | None = None) -> Scene:
    """Scene number `index` of a split; 'train' and 'validation' hold no held-out combination, 'held_out' only such."""
    if split not in SPLITS:
        raise ValueError(unknown("split", split, SPLITS))
    rng = np.random.default_rng([SPLITS[split], index])
    if split == "held_out" and index == 0 and kind in (None, "bounce"):
        return Scene("bounce", shape="ball", colour="red", background="blue", setting="floor", phase=0.5)
    kind = kind or sample_scene(rng).kind  # first, so that rejection does not change how often a kind comes
    while True:
        scene = sample_scene(rng, kind)
        if is_held_out(scene) == (split == "held_out" and KINDS[kind].has_object):
            return scene


def clip(scene: Scene, frames: int, size: int = 64, start: int = 0) -> Tensor:
    """Frames [T, 3, H, W] float32 in [0, 1] of a scene from frame number `start` on."""
    pixels = torch.from_numpy(render(scene, frames, size, start))
    return pixels.permute(0, 3, 1, 2).float() / 255


def wording(index: int, split: Split = "train", seed: int = 0, kind: str | None = None) -> str:
    """A caption of scene `index` of a split, chosen by `seed`; held-out scenes get held-out wordings.

    kind: as in `world_scene`. The first held-out caption is always FIRST_HELD_OUT.
    """
    if split == "held_out" and index == 0 and kind in (None, "bounce"):
        return FIRST_HELD_OUT
    rng = np.random.default_rng([seed, index])
    return caption(world_scene(index, split, kind), rng, held_out=split == "held_out").text
