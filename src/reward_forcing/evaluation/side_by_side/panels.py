"""Clips beside each other in one video: the prompt and the time above all, a strip with the name above each.

Files are read picture by picture, so that a long comparison needs no more memory than a short one. H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from reward_forcing.data.video_reader import pictures_of
from reward_forcing.evaluation.metrics.clips import Pixels
from reward_forcing.evaluation.side_by_side.columns import Wanted
from reward_forcing.streaming.contact_sheet import contact_sheet
from reward_forcing.streaming.video_io import open_writer, viewing_scale

SHAPE = 16 / 9
"""The shape that a grid of panels comes close to."""
GAP = 8
TEXT, LEAST_TEXT = 26, 14  # pixels
STRIP = 2 * TEXT - 10
PAPER, STRIPES, INK, FAINT = (24, 24, 24), (58, 58, 58), (245, 245, 245), (185, 185, 185)
ENDED = 0.35
SHEET_FRAMES = 6


@dataclass(frozen=True)
class Grid:
    """Where panels of height x width stand: row after row, each under its strip, all under that of the prompt."""

    rows: int
    columns: int
    height: int
    width: int

    @classmethod
    def of(cls, count: int, height: int, width: int) -> Grid:
        """The grid for `count` panels whose shape is nearest to 16:9, empty places counted against it."""

        def cost(columns: int) -> float:
            rows = -(-count // columns)
            shape = columns * width / (rows * (height + STRIP))
            return abs(math.log(shape / SHAPE)) + (rows * columns - count) / count

        columns = min(range(1, count + 1), key=cost)
        return cls(-(-count // columns), columns, height, width)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the whole picture."""
        return STRIP + self.rows * (STRIP + self.height + GAP), GAP + self.columns * (self.width + GAP)

    def place(self, number: int) -> tuple[int, int]:
        """Top and left of a panel's picture; its strip stands right above."""
        row, column = divmod(number, self.columns)
        return STRIP + row * (STRIP + self.height + GAP) + STRIP, GAP + column * (self.width + GAP)


def write_side_by_side(path: Path, sheet: Path, clips: Sequence[tuple[str, Path]], wanted: Wanted) -> None:
    """`path`, a video of the clips (name, file) in the comparison's form, and `sheet`, frames of it in one picture.

    A clip that ends before the others stays, darkened, at its last frame.
    """
    scale = viewing_scale(*wanted.form.size)
    height, width = (side * scale for side in wanted.form.size)
    grid, fps = Grid.of(len(clips), height, width), wanted.form.fps
    streams = [_lasting(pictures_of(file, fps, (height, width))) for _, file in clips]
    names = tuple(name for name, _ in clips)
    chosen = set(np.linspace(0, wanted.frames - 1, SHEET_FRAMES).round().astype(int).tolist())
    kept: list[Tensor] = []
    with open_writer(path, fps, grid.size, title=wanted.prompt, comment="rforce compare", overwrite=True) as writer:
        for number in range(wanted.frames):
            prompt = [text for time, text in wanted.prompts if time <= number / fps][-1]
            frame = _canvas(grid, prompt, math.floor(number / fps), names).copy()
            for panel, stream in enumerate(streams):
                top, left = grid.place(panel)
                frame[top : top + height, left : left + width] = next(stream)
            frames = torch.from_numpy(frame).permute(2, 0, 1)[None]
            writer.write(frames)
            if number in chosen:
                kept.append(frames)
    contact_sheet(torch.cat(kept), 2, gap=GAP).save(sheet)


def _lasting(pictures: Iterator[Pixels]) -> Iterator[Pixels]:
    """The pictures, and then the last one, darkened, without end."""
    picture = next(pictures)
    yield picture
    for picture in pictures:
        yield picture
    yield from repeat((picture * ENDED).astype(np.uint8))


@lru_cache(maxsize=2)
def _canvas(grid: Grid, prompt: str, second: int, names: tuple[str, ...]) -> Pixels:
    """The picture without its clips."""
    height, width = grid.size
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    time = f"{second} s"
    time_width = round(draw.textlength(time, _font(TEXT))) + 1
    _write(draw, f"\u201c{prompt}\u201d", (GAP, 0), width - 3 * GAP - time_width, FAINT)
    _write(draw, time, (width - GAP - time_width, 0), time_width, FAINT)
    for number, name in enumerate(names):
        top, left = grid.place(number)
        draw.rectangle((left, top - STRIP, left + grid.width - 1, top - 1), STRIPES)
        _write(draw, name, (left + GAP, top - STRIP), grid.width - 2 * GAP, INK)
    return np.asarray(image)


def _write(
    draw: ImageDraw.ImageDraw, text: str, corner: tuple[int, int], width: int, ink: tuple[int, int, int]
) -> None:
    """A line of text in a strip, `corner` its left and top: smaller where it is too long, in the end with its middle
    left out, for what tells long names apart may stand at either end."""
    size = next(
        (size for size in range(TEXT, LEAST_TEXT, -1) if draw.textlength(text, _font(size)) <= width), LEAST_TEXT
    )
    font, kept, shown = _font(size), len(text), text
    while kept > 2 and draw.textlength(shown, font) > width:
        kept -= 1
        shown = f"{text[: -(-kept // 2)]}...{text[len(text) - kept // 2 :]}"
    draw.text((corner[0], corner[1] + STRIP // 2), shown, ink, font, anchor="lm")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
