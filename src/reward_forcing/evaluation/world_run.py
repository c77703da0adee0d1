"""Judges a source of clips on the world's held-out prompts, in blocks, and goes on where it was stopped.

    OUT/recipe.json            what determines the numbers; a folder holds clips of one recipe only
    OUT/samples/0000.json      what was seen of each clip, whether it is right, and its features
    OUT/samples/0000.png       about ten frames of it, of the first clips
    OUT/results.json, sheet.png    written by whoever finds all clips done

Clips are made in blocks whose members never change, so the numbers do not depend on how the work was divided.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reward_forcing.config import Settings
from reward_forcing.data.scenes import FPS
from reward_forcing.evaluation import environment
from reward_forcing.evaluation.recipe import claim, write_settings
from reward_forcing.evaluation.results import ALIGNED, RESULTS
from reward_forcing.evaluation.world_clips import ClipMaker, TeacherSampling, ends_of
from reward_forcing.evaluation.world_distance import beside_rendered, features_of, window_frames
from reward_forcing.evaluation.world_suite import Prompt, by_kind, held_out_prompts, judge, summarise
from reward_forcing.logs import StepProgress

SHEET = "sheet.png"
SHOWN_FRAMES = 10


class WorldRecipe(Settings):
    """What determines the numbers. source: what makes the clips. weights: part -> SHA-256 of those that it uses.

    sheet: clips shown in the contact sheet; it determines no number, but which pictures a folder holds. decoder: the
    file of a tiny decoder that makes a student's frames.
    """

    source: str
    model: str
    weights: dict[str, str]
    streaming: dict[str, Any]
    sampling: TeacherSampling | None = None
    prompts: int
    seconds: float
    seed: int
    batch: int
    sheet: int
    decoder: str | None = None

    @property
    def frames(self) -> int:
        """Frames of each clip."""
        return round(self.seconds * FPS)


class JudgedPart(Settings):
    """The verdict on one part of a clip; see `world_clips.ends_of` and `world_suite.judge`."""

    right: dict[str, bool]
    seen: dict[str, Any]
    features: tuple[float, ...]


class JudgedClip(Settings):
    """A clip's verdict by part, and its prompt."""

    index: int
    prompt: str
    kind: str
    parts: dict[str, JudgedPart]


def evaluate_world(
    load: Callable[[], ClipMaker],
    recipe: WorldRecipe,
    out: Path,
    share: tuple[int, int] = (0, 1),
    command: str = "",
) -> dict[str, Any] | None:
    """The results, also in `out`/results.json; None while clips of other shares are missing.

    load: what reads the weights, called only if clips are missing. share: (i, n) makes every n-th block from the i-th
    on. Raises ValueError if `out` holds another recipe.
    """
    claim(out, recipe)
    prompts = held_out_prompts(recipe.prompts)
    blocks = [prompts[first : first + recipe.batch] for first in range(0, recipe.prompts, recipe.batch)]
    mine = [block for block in blocks[share[0] :: share[1]] if not all(_record(out, one).is_file() for one in block)]
    if mine:
        source, done = load(), 0
        with StepProgress("clips", 0, sum(map(len, mine))) as progress:
            for block in mine:
                _judge_block(source, block, recipe, out)
                done += len(block)
                progress.advance(done)
    if not all(_record(out, prompt).is_file() for prompt in prompts):
        return None
    clips = [JudgedClip.model_validate_json(_record(out, prompt).read_text(encoding="utf-8")) for prompt in prompts]
    results = {
        "provenance": {
            "command": command,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": environment.commit(),
            "versions": environment.versions(),
            "machine": environment.machine(),
        },
        "recipe": recipe.model_dump(mode="json"),
        "parts": {part: _score(part, clips, prompts, recipe) for part in clips[0].parts},
        "clips": [clip.model_dump(mode="json") for clip in clips],
    }
    (out / RESULTS).write_text(json.dumps(results, indent=1), encoding="utf-8")
    rows = [np.asarray(Image.open(_picture(out, prompt))) for prompt in prompts[: recipe.sheet]]
    if rows:
        Image.fromarray(np.concatenate(rows, axis=0)).save(out / SHEET)
    return results


def _judge_block(source: ClipMaker, block: Sequence[Prompt], recipe: WorldRecipe, out: Path) -> None:
    parts = ends_of(source.pieces(block, recipe.frames), recipe.frames)
    for number, prompt in enumerate(block):
        clip = {part: frames[number] for part, frames in parts.items()}
        if prompt.index < recipe.sheet:
            shown = clip.get("end", clip.get("whole"))
            assert shown is not None, list(clip)
            row = np.concatenate(list(shown[:: max(1, len(shown) // SHOWN_FRAMES)][:SHOWN_FRAMES]), axis=1)
            Image.fromarray(row).save(_picture(out, prompt))
        judged = {part: _judge_part(prompt, part, frames) for part, frames in clip.items()}
        record = JudgedClip(index=prompt.index, prompt=prompt.text, kind=prompt.scene.kind, parts=judged)
        claim(out, recipe)  # again: another one may have found the new folder as empty
        write_settings(_record(out, prompt), record)  # last: with it, the clip is done


def _judge_part(prompt: Prompt, part: str, frames: NDArray[np.uint8]) -> JudgedPart:
    """The verdict on 5 seconds (all of a short clip), and features of those with the frame at their end."""
    seen_frames = {"start": frames[:-1], "end": frames[1:]}.get(part, frames)
    verdict = judge(prompt, seen_frames)
    features = features_of(frames[: window_frames(FPS)])
    return JudgedPart(right=verdict.right, seen=verdict.seen_as_json(), features=features)


def _score(part: str, clips: Sequence[JudgedClip], prompts: Sequence[Prompt], recipe: WorldRecipe) -> dict[str, Any]:
    """Rates of what is right, over all and by kind, and distances beside those of rendered clips."""
    rights = [clip.parts[part].right for clip in clips]
    start = (recipe.frames - window_frames(FPS)) / FPS if part == "end" else 0.0
    features = [[clip.parts[part].features] for clip in clips]
    distances = beside_rendered(features, [prompt.scene for prompt in prompts], start)
    return {
        "summary": summarise(rights),
        "by_kind": by_kind([clip.kind for clip in clips], rights),
        "distances": {
            f"{prefix}{name}": {"value": one.value, "low": one.low, "high": one.high, "count": one.count}
            for prefix, found in distances.items()
            for name, one in found.items()
        },
    }


def table(part: Mapping[str, Any]) -> str:
    """The numbers of a part of the results as lines: attributes, kinds of scene, distances."""
    lines = []
    for name, of in part["summary"].items():
        rate, low, high = (100 * of[key] for key in ("rate", "low", "high"))
        lines.append(f"  {name:22s} {rate:5.1f} %   {f'[{low:.0f}, {high:.0f}]':10s} of {of['count']}")
    columns = {"motion_and_direction": "motion"} | {name: name for name in ("colour", "shape", "count", ALIGNED)}
    header = "".join(f"{title:>11s}" for title in columns.values())
    lines += ["", f"  {'right in %, by kind':22s}{header}   clips"]
    for kind, summary in part["by_kind"].items():
        rates = "".join(f"{100 * summary[name]['rate']:11.1f}" if name in summary else f"{'':11s}" for name in columns)
        lines.append(f"  {kind:22s}{rates}   {summary[ALIGNED]['count']:.0f}")
    lines.append("")
    for name, of in part["distances"].items():
        lines.append(f"  {name:28s} {of['value']:8.3f}   [{of['low']:.3f}, {of['high']:.3f}]")
    return "\n".join(lines)


def _record(out: Path, prompt: Prompt) -> Path:
    return out / "samples" / f"{prompt.index:04d}.json"


def _picture(out: Path, prompt: Prompt) -> Path:
    return _record(out, prompt).with_suffix(".png")
