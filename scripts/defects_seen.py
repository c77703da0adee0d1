"""What the distance to rendered clips and the tracked motion make of defects whose strength is known.

Rendered held-out clips of the procedural world, 5 seconds each, are damaged in every way of `metrics.defects`. Writes
defects_seen.json and defects_seen.md.
"""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import typer

from reward_forcing.data.scenes import FPS, render
from reward_forcing.evaluation.metrics.clips import Pixels
from reward_forcing.evaluation.metrics.defects import DEFECTS, add_flicker, add_noise, blur, freeze
from reward_forcing.evaluation.world_distance import FRECHET, KERNEL, distances, features_of, window_frames
from reward_forcing.evaluation.world_suite import Prompt, held_out_prompts
from reward_forcing.evaluation.world_tracking import tracked_motion

LENGTH = window_frames(FPS)


def slowed(frames: Pixels) -> Pixels:
    """At half the speed, each frame shown twice."""
    return np.repeat(frames, 2, axis=0)[: len(frames)]


TRACKED: dict[str, Callable[[Pixels], Pixels]] = {
    "as rendered": lambda frames: frames,
    "frozen": lambda frames: freeze(frames, 1),
    "frozen, noise of 16 levels": lambda frames: add_noise(freeze(frames, 1), 16),
    "frozen, flicker of 16 levels": lambda frames: add_flicker(freeze(frames, 1), 16),
    "half the speed, each frame twice": slowed,
    "blur, sigma 1.5": lambda frames: blur(frames, 1.5),
}


def distance_rows(clips: list[Pixels]) -> list[dict[str, Any]]:
    """Both distances of the clips as they are, and under every defect at each of its strengths."""
    cases = [("none", 0.0, "", clips)]
    for defect in DEFECTS.values():
        cases += [
            (defect.name, level, defect.unit, [defect.apply(clip, level) for clip in clips])
            for level in defect.levels
            if level
        ]
    rows = []
    for name, level, unit, damaged in cases:
        found = distances([[features_of(clip)] for clip in damaged])
        told = {key: found[key].value for key in (FRECHET, KERNEL)}
        rows.append({"defect": name, "strength": level, "unit": unit, **told})
    return rows


def tracked_rows(prompts: list[Prompt], clips: list[Pixels]) -> list[dict[str, Any]]:
    """The mean tracked motion of each kind of motion, as rendered and damaged."""
    rows = []
    for name, damage in TRACKED.items():
        motion: dict[str, list[float]] = defaultdict(list)
        for prompt, clip in zip(prompts, clips, strict=True):
            motion[prompt.scene.kind].append(float(tracked_motion(damage(clip), prompt).mean()))
        rows.append({"clips": name, "kinds": {kind: fmean(values) for kind, values in sorted(motion.items())}})
    return rows


def markdown(distance: list[dict[str, Any]], tracked: list[dict[str, Any]]) -> str:
    """Both tables; of a kind of motion the lowest and the highest mean."""
    lines = ["| defect | strength | Frechet distance | kernel distance |", "|---|---|---|---|"]
    for row in distance:
        strength = f"{row['strength']:g} {row['unit']}".strip() if row["unit"] else ""
        lines.append(f"| {row['defect']} | {strength} | {row[FRECHET]:.1f} | {row[KERNEL]:.2f} |")
    lines += ["", "| clips | tracked motion: lowest kind | highest kind |", "|---|---|---|"]
    for row in tracked:
        low, high = min(row["kinds"].values()), max(row["kinds"].values())
        lines.append(f"| {row['clips']} | {low:.2f} | {high:.2f} |")
    return "\n".join(lines) + "\n"


def main(
    out: Annotated[Path, typer.Option(help="Folder for defects_seen.json and defects_seen.md.")],
    clips: Annotated[int, typer.Option(min=50, help="Held-out clips of the world.")] = 64,
) -> None:
    """Distance and tracked motion of damaged clips."""
    out.mkdir(parents=True, exist_ok=True)
    prompts = held_out_prompts(clips)
    rendered = [render(prompt.scene, LENGTH) for prompt in prompts]
    distance, tracked = distance_rows(rendered), tracked_rows(prompts, rendered)
    record = {"clips": clips, "frames": LENGTH, "distance": distance, "tracked": tracked}
    (out / "defects_seen.json").write_text(json.dumps(record, indent=1))
    (out / "defects_seen.md").write_text(markdown(distance, tracked))
    typer.echo(markdown(distance, tracked))


if __name__ == "__main__":
    typer.run(main)
