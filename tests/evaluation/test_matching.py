"""Clips of any size and rate in one form: the frames nearest in time, cropped around the middle."""

from pathlib import Path

import numpy as np
import pytest
import torch

from reward_forcing.data.video_reader import pictures_of
from reward_forcing.evaluation.matching import Form, matched
from reward_forcing.streaming.video_io import open_writer, read_video


def numbered(frames: int, height: int = 16, width: int = 16) -> np.ndarray:
    """A clip [T, H, W, 3] whose frame n is of grey n."""
    return np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, height, width, 3)).copy()


@pytest.mark.parametrize(
    ("fps", "wanted", "numbers"),
    [
        (24, 12, [0, 2, 4, 6]),
        (8, 16, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]),
        (24, 16, [0, 1, 3, 4, 6]),  # 1.5 and 4.5 are as near to the frame before as to that after
        (25, 16, [0, 2, 3, 5, 6]),
    ],
)
def test_another_rate_takes_the_frames_nearest_in_time(fps: float, wanted: float, numbers: list[int]) -> None:
    clip = matched(numbered(8), fps, Form(height=16, width=16, fps=wanted))
    assert clip[:, 0, 0, 0].tolist() == numbers


def test_a_clip_of_the_form_is_left_as_it_is() -> None:
    clip = numbered(3)
    assert matched(clip, 16, Form(height=16, width=16, fps=16)) is clip


def test_a_wide_clip_is_cropped_around_its_middle() -> None:
    clip = np.zeros((1, 32, 96, 3), np.uint8)
    clip[:, :, 32:64] = 200
    small = matched(clip, 16, Form(height=16, width=16, fps=16))
    assert small.shape == (1, 16, 16, 3)
    assert np.abs(small[:, :, 1:-1].astype(int) - 200).max() < 5  # the black beside it reaches a pixel inwards


def test_a_file_and_its_frames_are_matched_by_one_rule(tmp_path: Path) -> None:
    frames = torch.rand(9, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(9, 3, 32, 48)
    with open_writer(tmp_path / "clip.mp4", 24, (32, 48)) as writer:
        writer.write(frames)
    form = Form(height=16, width=16, fps=16)
    held, fps = read_video(tmp_path / "clip.mp4")
    ours = matched(held.permute(0, 2, 3, 1).numpy(), fps, form)
    assert len(ours) == 6
    assert np.array_equal(ours, np.stack(list(pictures_of(tmp_path / "clip.mp4", form.fps, form.size))))
