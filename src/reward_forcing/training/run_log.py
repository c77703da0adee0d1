"""What a run leaves to look at: log.jsonl, TensorBoard events, config.yaml and grids of sampled clips."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch import Tensor

from reward_forcing.logs import JsonLines


class Averages:
    """Means of named numbers; tensors are read only in `take`, so adding them waits for no device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor | float) -> None:
        """Count one value in."""
        value = value.detach().float() if isinstance(value, Tensor) else value
        self._sums[name] = self._sums.get(name, 0.0) + value
        self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means since the last call and start again."""
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


class RunLog:
    """Writes a run's records into its folder; only the first process has one."""

    def __init__(self, out: Path, settings: Mapping[str, Any], first_step: int) -> None:
        self.out = out
        self._lines = JsonLines(out / "log.jsonl")
        self._lines.truncate_after(first_step)
        (out / "config.yaml").write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._board = None
        else:
            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=first_step + 1)

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of a step."""
        self._lines.append({"step": step, **{name: float(f"{value:.6g}") for name, value in values.items()}})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def samples(self, step: int, clips: Mapping[str, Tensor]) -> None:
        """Write each named set of clips as a grid of frames: samples/step_<step>_<name>.png."""
        for name, frames in clips.items():
            folder = self.out / "samples"
            folder.mkdir(exist_ok=True)
            Image.fromarray(frame_grid(frames).numpy()).save(folder / f"step_{step:08d}_{name}.png")

    def close(self) -> None:
        """Flush what is buffered."""
        if self._board is not None:
            self._board.close()


def frame_grid(frames: Tensor) -> Tensor:
    """Return clips [n, T, 3, H, W] (uint8, or float in [0, 1]) as one uint8 image [n * H, T * W, 3], a clip per row."""
    if frames.ndim != 5 or frames.shape[2] != 3:
        raise ValueError(f"expected sample frames [n, T, 3, H, W], got {tuple(frames.shape)}")
    if frames.dtype != torch.uint8:
        frames = (frames.float().clamp(0, 1) * 255).round().to(torch.uint8)
    n, count, _, height, width = frames.shape
    return frames.permute(0, 3, 1, 4, 2).reshape(n * height, count * width, 3).cpu().contiguous()
