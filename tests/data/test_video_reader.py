"""Frames of files come at the wanted rate, from the wanted time, cropped around the middle, whatever the container."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from data.videos import CODECS, numbers_of, write_levels
from PIL import Image

from reward_forcing.data.video_reader import frames_in, look_at, read_clip


@pytest.mark.parametrize("suffix", CODECS)
def test_frames_are_those_nearest_in_time_from_any_container(tmp_path: Path, suffix: str) -> None:
    path = write_levels(tmp_path / f"a{suffix}")  # 24 frames at 8 fps
    assert look_at(path).seconds == pytest.approx(3, abs=0.15)
    assert look_at(path).last == pytest.approx(23 / 8, abs=0.01)
    assert numbers_of(read_clip(path, 0, 5, 8, (32, 32))) == [0, 1, 2, 3, 4]
    assert numbers_of(read_clip(path, 1.5, 4, 8, (32, 32))) == [12, 13, 14, 15], "seeks between key frames"
    assert numbers_of(read_clip(path, 0, 6, 4, (32, 32))) == [0, 2, 4, 6, 8, 10]
    assert numbers_of(read_clip(path, 1, 4, 16, (32, 32))) == [8, 8, 9, 9]
    assert numbers_of(read_clip(path, 2.875, 2, 16, (32, 32))) == [23, 23], "the last frame lasts as long as any"


def test_a_clip_beyond_the_end_is_refused(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"a.mp4' ends 2 frames before 3.25 s"):
        read_clip(path, 2.0, 10, 8, (32, 32))


def test_frames_are_cropped_around_the_middle_and_resized(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "a.mp4", size=(32, 48))
    square = read_clip(path, 1, 1, 8, (16, 16))
    assert square.shape == (1, 3, 16, 16)
    assert square.min() > 0.25, "the stripes at both sides are cut off"
    wide = read_clip(path, 1, 1, 8, (16, 24))
    assert wide[..., :2].max() < 0.1
    assert wide[..., -2:].max() < 0.1


def test_a_turned_video_is_turned_back(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "a.mp4", size=(32, 48), rotation=90)
    tall = read_clip(path, 1, 1, 8, (24, 16))
    assert tall[:, :, :2].max() < 0.1
    assert tall[:, :, -2:].max() < 0.1
    assert tall[:, :, 6:-6].min() > 0.25


def test_pixels_that_are_not_square_count_as_they_are_shown(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "a.mp4", size=(32, 48), sample_aspect_ratio=Fraction(2, 3))  # shown as 32 x 32
    square = read_clip(path, 1, 1, 8, (32, 32))
    assert square[..., :4].max() < 0.1
    assert square[..., -4:].max() < 0.1


def test_an_image_is_a_clip_of_one_frame(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "a.png")
    assert frames_in(look_at(tmp_path / "a.png").seconds, 16) == 1
    assert torch.equal(
        read_clip(tmp_path / "a.png", 0, 1, 16, (16, 16))[0], torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 16, 16)
    )


def test_whole_frames_are_counted() -> None:
    assert [frames_in(seconds, 16) for seconds in (0, 1, 5.0624999, 5.0)] == [1, 16, 81, 80]


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"nothing" * 100)
    with pytest.raises(ValueError, match=r"a.mp4' is not a video that can be read"):
        look_at(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"b.mp4' does not exist"):
        read_clip(tmp_path / "b.mp4", 0, 1, 16, (16, 16))
    whole = write_levels(tmp_path / "c.mkv").read_bytes()
    (tmp_path / "c.mkv").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"c.mkv' (ends|is not a video)"):
        read_clip(tmp_path / "c.mkv", 0, 24, 8, (32, 32))
