"""Scores clips of held-out prompts against what their scene should show, attribute by attribute.

Where a prompt leaves an attribute out, anything is right and nothing is counted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward_forcing.config import unknown
from reward_forcing.data.captions import UNSAID, Caption, caption
from reward_forcing.data.dataset import FIRST_HELD_OUT, world_scene
from reward_forcing.data.scenes import KINDS, Scene
from reward_forcing.data.switches import changes, switch_captions, switched_scene
from reward_forcing.evaluation.results import ALIGNED
from reward_forcing.evaluation.statistics import wilson_interval
from reward_forcing.evaluation.world_vision import Seen, see

OMITTED = ("background", "colour")
"""Traits that a wording of a single object may leave out although they are seen from the first frame on."""
ATTRIBUTES = ("colour", "shape", "count", "motion", "direction", "background", "moves", "size", "speed")


@dataclass(frozen=True)
class Prompt:
    """A prompt of the world: its scene's number, its wording, what it says, and the scene it was worded from."""

    index: int
    text: str
    says: dict[str, str]
    scene: Scene


@dataclass(frozen=True)
class Verdict:
    """What was seen in one clip, and for every attribute that the prompt names whether it is right."""

    prompt: Prompt
    seen: Seen
    right: dict[str, bool]

    def seen_as_json(self) -> dict[str, Any]:
        """What was seen as plain values; a residual that is not known is None."""
        return asdict(self.seen) | {"residual": None if math.isnan(self.seen.residual) else self.seen.residual}

    def as_json(self) -> dict[str, object]:
        """Plain values for a results file."""
        return {"index": self.prompt.index, "prompt": self.prompt.text, "scene": asdict(self.prompt.scene),
                "seen": self.seen_as_json(), "right": self.right}  # fmt: skip


def held_out_prompts(count: int, first: int = 0) -> list[Prompt]:
    """Held-out prompts `first`, `first` + 1, ...: combinations and wordings that training never saw."""
    return [_prompt(index) for index in range(first, first + count)]


def _prompt(index: int) -> Prompt:
    scene = world_scene(index, "held_out")
    worded = caption(scene, np.random.default_rng([0, index]), held_out=True)
    if index == 0:
        says = worded.says | {"size": UNSAID, "speed": UNSAID}
        worded = Caption(FIRST_HELD_OUT, says)
    return Prompt(index, worded.text, worded.says, scene)


def validation_prompts(count: int, first: int = 0) -> list[Prompt]:
    """Prompts of validation scenes `first`, `first` + 1, ...: other clips of combinations and wordings of training."""
    scenes = [(index, world_scene(index, "validation")) for index in range(first, first + count)]
    worded = [(index, scene, caption(scene, np.random.default_rng(index))) for index, scene in scenes]
    return [Prompt(index, one.text, one.says, scene) for index, scene, one in worded]


def underspecified_prompts(count: int, left_out: Sequence[Sequence[str]]) -> list[Prompt]:
    """Prompts of held-out combinations with one object that leave traits out, so that a long clip may drift in them.

    left_out: what the prompts leave out, in turn, such as [("background",), ("background", "colour")]; all else that
    the wording draws is said. Wordings are of patterns that training has seen, for held-out ones leave nothing out.
    Raises ValueError for traits that wordings never leave out.
    """
    for name in (name for names in left_out for name in names):
        if name not in OMITTED:
            raise ValueError(unknown("trait to leave out", name, OMITTED))
    scenes = ((index, world_scene(index, "held_out")) for index in itertools.count())
    single = ((index, scene) for index, scene in scenes if KINDS[scene.kind].has_object and scene.second is None)
    cases = zip(itertools.islice(single, count), itertools.cycle(left_out), strict=False)
    return [_silent_prompt(index, scene, names) for (index, scene), names in cases]


def _silent_prompt(index: int, scene: Scene, left_out: Sequence[str]) -> Prompt:
    """The first wording of a scene that leaves out these of `OMITTED` and no other."""
    rng = np.random.default_rng([1, index])
    while True:
        worded = caption(scene, rng)
        if all((worded.says[name] == UNSAID) == (name in left_out) for name in OMITTED):
            return Prompt(index, worded.text, worded.says, scene)


@dataclass(frozen=True)
class SwitchPrompt:
    """A switch of prompts: the first wording, the second prompt, and which attributes change."""

    first: str
    second: Prompt
    changed: tuple[str, ...]


def switch_prompts(count: int, at: int, first: int = 0) -> list[SwitchPrompt]:
    """Switches `first`, `first` + 1, ... of scenes that training never saw, at pixel frame `at`."""
    return [_switch_prompt(index, at) for index in range(first, first + count)]


def _switch_prompt(index: int, at: int) -> SwitchPrompt:
    switch = switched_scene(index, "validation", at)
    before, after = switch_captions(switch, seed=index)
    names = {"kind": "motion"} | {name: name for name in ATTRIBUTES}
    changed = tuple(names[trait] for trait in changes(switch) if trait in names)
    return SwitchPrompt(before.text, Prompt(index, after.text, after.says, switch.after), changed)


def judge_switch(prompt: SwitchPrompt, frames: NDArray[np.uint8]) -> Verdict:
    """The verdict on the frames [T, H, W, 3] uint8 after a switch, on the attributes that it changed."""
    verdict = judge(prompt.second, frames)
    return replace(verdict, right={name: verdict.right[name] for name in prompt.changed if name in verdict.right})


def judge(prompt: Prompt, frames: NDArray[np.uint8]) -> Verdict:
    """The verdict on a clip [T, H, W, 3] uint8 of a prompt.

    'motion' is the kind of motion, 'moves' that the clip is not still. For two objects, both must be right.
    """
    seen, scene, says = see(frames), prompt.scene, prompt.says
    right = {"motion": seen.kind == scene.kind, "moves": not seen.still}
    if KINDS[scene.kind].has_object:
        wanted = [(scene.shape, scene.colour), *([scene.second] if scene.second else [])]
        right["count"] = seen.count == len(wanted)
        if says["colour"] != UNSAID:
            right["colour"] = sorted(seen.colours) == sorted(colour for _, colour in wanted)
        right["shape"] = sorted(seen.shapes) == sorted(shape for shape, _ in wanted)
    if says["direction"] != UNSAID:
        right["direction"] = seen.direction == scene.direction
    if says["background"] != UNSAID:
        right["background"] = seen.background == scene.background
    if says["size"] != UNSAID:
        right["size"] = seen.size == scene.size
    if says["speed"] != UNSAID:
        right["speed"] = seen.speed == scene.speed
    return Verdict(prompt, seen, {name: right[name] for name in ATTRIBUTES if name in right})


def summarise(rights: Sequence[Mapping[str, bool]]) -> dict[str, dict[str, float]]:
    """For every attribute the rate of right clips, how many were counted, and Wilson's 95 % interval of the rate.

    rights: `Verdict.right` of each clip. 'motion_and_direction' counts a clip whose kind of motion and, where named,
    direction are both right; 'aligned' one on which all that its prompt names is right.
    """
    cases = {name: [right[name] for right in rights if name in right] for name in ATTRIBUTES}
    moving = [right for right in rights if "motion" in right]
    cases["motion_and_direction"] = [right["motion"] and right.get("direction", True) for right in moving]
    cases[ALIGNED] = [all(right.values()) for right in rights if right]
    return {name: _rate(outcomes) for name, outcomes in cases.items() if outcomes}


def by_kind(kinds: Sequence[str], rights: Sequence[Mapping[str, bool]]) -> dict[str, dict[str, dict[str, float]]]:
    """The summary of the clips of every kind of scene. kinds: of each clip's scene."""
    groups: dict[str, list[Mapping[str, bool]]] = {}
    for kind, right in zip(kinds, rights, strict=True):
        groups.setdefault(kind, []).append(right)
    return {kind: summarise(groups[kind]) for kind in KINDS if kind in groups}


def _rate(outcomes: Sequence[bool]) -> dict[str, float]:
    rate = wilson_interval(sum(outcomes), len(outcomes))
    return {"rate": rate.value, "count": rate.count, "low": rate.low, "high": rate.high}
