"""Checks the detector of the procedural world on clips whose truth is known, clean and degraded.

For held-out clips, the share in which `see` reads each attribute rightly: as rendered, blurred, with noise, after H.264
and, on request, after the bundled VAE. Writes accuracy.json, with every wrong reading, and accuracy.md.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import torch
import typer

from reward_forcing.checkpoints.hub import bundled
from reward_forcing.data.dataset import world_scene
from reward_forcing.data.scenes import FPS, KINDS, Scene, render
from reward_forcing.evaluation.metrics.clips import Pixels
from reward_forcing.evaluation.metrics.defects import add_noise, blur
from reward_forcing.evaluation.statistics import wilson_interval
from reward_forcing.evaluation.world_vision import Seen, see
from reward_forcing.models.vae import StreamingVAE

GOAL = 0.98
"""Least accuracy on clean clips; what is below it is marked."""
UNCHANGING = "unchanging"
"""Attribute that is right where no change is seen in a clip without one."""


def encoded(frames: Pixels, crf: int) -> Pixels:
    """The frames after H.264 at a constant rate factor; higher is coarser."""
    store = io.BytesIO()
    with av.open(store, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    store.seek(0)
    with av.open(store, "r") as container:
        pictures = [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]
    return np.stack(pictures).astype(np.uint8)


def through_vae(name: str) -> Callable[[Pixels], Pixels]:
    """A function that encodes and decodes frames with the VAE of a bundled model."""
    vae = StreamingVAE.from_pretrained(bundled()[name] / "vae", dtype=torch.float32)

    def apply(frames: Pixels) -> Pixels:
        latents, _ = vae.encode(torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float() / 255)
        decoded, _ = vae.decode(latents)
        return (decoded[0].clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()

    return apply


CONDITIONS: dict[str, Callable[[Pixels], Pixels]] = {
    "clean": lambda frames: frames,
    "blur, sigma 1": lambda frames: blur(frames, 1),
    "blur, sigma 2": lambda frames: blur(frames, 2),
    "H.264, crf 28": lambda frames: encoded(frames, 28),
    "H.264, crf 38": lambda frames: encoded(frames, 38),
    "noise, sigma 8": lambda frames: add_noise(frames, 8),
}


def wanted(scene: Scene) -> dict[str, Any]:
    """What the detector should read in a clip of a scene, for every attribute that the scene has."""
    truth: dict[str, Any] = {"motion": scene.kind, UNCHANGING: []}
    if scene.speed_can_be_told:
        truth["speed"] = scene.speed
    if KINDS[scene.kind].directions:
        truth["direction"] = scene.direction
    if scene.setting != "land":
        truth["background"] = scene.background
    if KINDS[scene.kind].has_object:
        objects = [(scene.shape, scene.colour), *([scene.second] if scene.second else [])]
        shapes, colours = (sorted(names) for names in zip(*objects, strict=True))
        truth |= {"colour": colours, "shape": shapes, "count": len(objects), "size": scene.size}
    return truth


def read(seen: Seen) -> dict[str, Any]:
    """The detector's reading under the names of `wanted`."""
    return {"colour": sorted(seen.colours), "shape": sorted(seen.shapes), "count": seen.count, "size": seen.size,
            "motion": seen.kind, "direction": seen.direction, "speed": seen.speed, "background": seen.background,
            UNCHANGING: list(seen.changes)}  # fmt: skip


NAMES = ("colour", "shape", "count", "size", "motion", "direction", "speed", "background", UNCHANGING)


def examine(condition: str, clips: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy of each attribute with Wilson's 95 % interval, the median residual and the wrong readings."""
    rates, misses = {}, []
    for name in NAMES:
        cases = [clip for clip in clips if name in clip["wanted"]]
        wrong = [clip for clip in cases if clip["read"][name] != clip["wanted"][name]]
        if cases:
            rate = wilson_interval(len(cases) - len(wrong), len(cases))
            rates[name] = {"rate": rate.value, "count": rate.count, "low": rate.low, "high": rate.high}
        misses += [{"clip": c["index"], "kind": c["wanted"]["motion"], "attribute": name, "read": c["read"][name],
                    "wanted": c["wanted"][name]} for c in wrong]  # fmt: skip
    known = [clip["residual"] for clip in clips if not np.isnan(clip["residual"])]
    residual = float(np.median(known)) if known else None
    return {"condition": condition, "accuracy": rates, "median_residual": residual, "misses": misses}


def markdown(results: list[dict[str, Any]]) -> str:
    """A table with one row for each condition; a clean accuracy below the goal is marked with an asterisk."""
    lines = ["Share of clips in %, by what is read; residual: median, in thousandths of the frame's width.", ""]
    names = [name for name in NAMES if name in results[0]["accuracy"]]
    lines += [f"| clips | {' | '.join(names)} | residual |", "|---" * (len(names) + 2) + "|"]
    for row in results:
        rates = [row["accuracy"][name]["rate"] for name in names]
        cells = [f"{100 * rate:.1f}{'*' * (row['condition'] == 'clean' and rate < GOAL)}" for rate in rates]
        residual = "" if row["median_residual"] is None else f"{1000 * row['median_residual']:.1f}"
        lines.append(f"| {row['condition']} | {' | '.join(cells)} | {residual} |")
    return "\n".join(lines) + "\n"


def main(
    out: Annotated[Path, typer.Option(help="Folder for accuracy.json and accuracy.md.")],
    clips: Annotated[int, typer.Option(min=1, help="Held-out clips of the world.")] = 300,
    frames: Annotated[int, typer.Option(min=17, help="Frames of each clip; 81 are 5 seconds.")] = 81,
    size: Annotated[int, typer.Option(min=32, help="Height and width in pixels.")] = 64,
    vae: Annotated[bool, typer.Option(help="Also encode and decode with the bundled VAE; slow.")] = False,
) -> None:
    """Accuracy of the detector on rendered clips, clean and degraded."""
    if vae and (frames - 1) % 4:
        raise typer.BadParameter(f"the VAE takes 1 + 4 n frames, got --frames {frames}")
    conditions = CONDITIONS | ({"bundled VAE": through_vae("mini")} if vae else {})
    found: dict[str, list[dict[str, Any]]] = {condition: [] for condition in conditions}
    for index in range(clips):
        scene = world_scene(index, "held_out")
        clean = render(scene, frames, size)
        for condition, degrade in conditions.items():
            seen = see(degrade(clean))
            one = {"index": index, "wanted": wanted(scene), "read": read(seen), "residual": seen.residual}
            found[condition].append(one)
    results = [examine(condition, rows) for condition, rows in found.items()]
    settings = {"clips": clips, "frames": frames, "size": size, "split": "held_out"}
    out.mkdir(parents=True, exist_ok=True)
    (out / "accuracy.json").write_text(json.dumps({"settings": settings, "results": results}, indent=1) + "\n")
    (out / "accuracy.md").write_text(markdown(results))
    typer.echo(markdown(results))


if __name__ == "__main__":
    typer.run(main)
