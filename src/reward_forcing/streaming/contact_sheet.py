"""Many frames in one picture."""

import torch
from PIL import Image
from torch import Tensor

from reward_forcing.streaming.video_io import enlarge, to_uint8


def contact_sheet(
    frames: Tensor, columns: int, *, count: int | None = None, scale: int = 1, gap: int = 2, background: int = 255
) -> Image.Image:
    """A picture of frames [T, 3, H, W] (floats in [0, 1] or uint8) in reading order, `columns` in each row.

    count: show so many, evenly spaced from the first to the last (default: all). scale: whole-number enlargement.
    gap: pixels between frames, of grey `background` (0-255). To show one clip per row, join the clips along T and let
    `columns` be the length of one. Raises ValueError for no frames, columns or count.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or len(frames) == 0:
        raise ValueError(f"expected frames [T >= 1, 3, H, W], got {list(frames.shape)}")
    count = len(frames) if count is None else count
    if columns < 1 or count < 1:
        raise ValueError(f"columns and count must be at least 1, got {columns} and {count}")
    chosen = torch.linspace(0, len(frames) - 1, min(count, len(frames))).round().long()
    tiles = enlarge(to_uint8(frames[chosen.to(frames.device)]), scale)
    rows, columns = -(-len(tiles) // columns), min(columns, len(tiles))
    _, _, height, width = tiles.shape
    sheet = torch.full((3, rows * (height + gap) - gap, columns * (width + gap) - gap), background, dtype=torch.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = tile
    return Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy())
