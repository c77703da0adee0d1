"""Makes the README's pictures with the bundled miniature: python scripts/readme_pictures.py [--seed N] [--out FOLDER].

stream.webp: four clips side by side, playing. mini.png: their frames, a clip in each row. switches.png: clips whose
prompt changes, a dark line where it does. The prompts are those named here, and the seed is one for all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from reward_forcing import StreamingVideoPipeline
from reward_forcing.streaming.contact_sheet import contact_sheet
from reward_forcing.streaming.video_io import enlarge, to_uint8

CLIPS = (
    "a red ball bounces over a blue floor",
    "a green square moves to the right on a black background",
    "a white ball swings on a rope on a purple background",
    "a yellow triangle moves in a circle clockwise in front of a gray wall",
)
SWITCHES = (
    ("a red ball bounces over a blue floor", "a yellow ball bounces over a blue floor"),
    (
        "a green square moves to the right on a black background",
        "a green square moves to the right on a white background",
    ),
    (
        "a white ball moves down in front of a blue wall",
        "a white square moves in a circle clockwise in front of a blue wall",
    ),
)
SECONDS, SWITCHED_AT, EVERY, COLUMNS, GAP = 5.0, 45 / 16, 8, 10, 3


def frames_of(pipeline: StreamingVideoPipeline, prompt: str, seed: int, then: str | None = None) -> Tensor:
    """Frames [T, 3, H, W] of a clip, uint8; `then`: the prompt from `SWITCHED_AT` on."""
    at = {} if then is None else {SWITCHED_AT: then}
    return to_uint8(pipeline.generate(prompt, SECONDS, at=at, seed=seed)[0])


def rows(clips: list[Tensor]) -> Image.Image:
    """Every eighth frame of each clip in a row of its own."""
    return contact_sheet(torch.cat([clip[::EVERY][:COLUMNS] for clip in clips]), COLUMNS, gap=GAP)


def playing(clips: list[Tensor], scale: int = 3) -> list[Image.Image]:
    """The frames of all clips side by side."""
    gap = torch.full((clips[0].shape[0], 3, clips[0].shape[2], 1), 255, dtype=torch.uint8)
    beside = torch.cat([part for clip in clips for part in (clip, gap)][:-1], dim=3)
    return [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in enlarge(beside, scale)]


def main() -> None:
    """Write the three pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    chosen = parser.parse_args()
    pipeline = StreamingVideoPipeline.from_pretrained("mini")
    clips = [frames_of(pipeline, prompt, chosen.seed) for prompt in CLIPS]
    rows(clips).save(chosen.out / "mini.png", optimize=True)
    first, *others = playing(clips)
    first.save(chosen.out / "stream.webp", save_all=True, append_images=others, duration=1000 // 16, loop=0, quality=70)
    switched = [frames_of(pipeline, first, chosen.seed, then) for first, then in SWITCHES]
    sheet = rows(switched)
    side = switched[0].shape[3] + GAP
    x = side * -(-int(SWITCHED_AT * 16) // EVERY) - GAP // 2 - 1
    ImageDraw.Draw(sheet).line([(x, 0), (x, sheet.height)], fill=(20, 20, 20), width=GAP)
    sheet.save(chosen.out / "switches.png", optimize=True)


if __name__ == "__main__":
    main()
