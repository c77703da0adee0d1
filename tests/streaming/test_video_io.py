"""Video files: what is written comes back, survives a kill of its writer, and never replaces another by accident."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image

from reward_forcing.streaming.contact_sheet import contact_sheet
from reward_forcing.streaming.video_io import (
    FORMATS,
    check_output,
    enlarge,
    free_path,
    open_writer,
    read_metadata,
    read_video,
    to_uint8,
)

SUFFIXES = list(FORMATS)
LOSS = {".mp4": 6, ".webm": 8, ".gif": 4, "": 0}  # mean error in levels of 255
SIZE = (32, 48)


def clip(frames=12, height=SIZE[0], width=SIZE[1]):
    """Smooth frames [T, 3, H, W] with saturated colours; a bright bar moves one pixel per frame."""
    rows = torch.linspace(0, 1, height)[:, None].expand(height, width)
    video = torch.stack([rows, 1 - rows, torch.full((height, width), 0.2)]).repeat(frames, 1, 1, 1)
    for i in range(frames):
        video[i, 2, :, i % (width - 8) : i % (width - 8) + 8] = 0.9
    return video


def write(path, video, fps=16, **options):
    with open_writer(path, fps, tuple(video.shape[2:]), **options) as writer:
        for part in video.split(5):
            writer.write(part)
    return writer


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_frames_come_back_in_number_size_and_colour(tmp_path, suffix):
    video = clip(60)
    writer = write(tmp_path / f"clip{suffix}", video)
    frames, fps = read_video(writer.path)
    assert writer.frames == 60
    assert (frames.shape, frames.dtype) == (video.shape, torch.uint8)
    assert fps == pytest.approx(16, rel=0.02)
    error = (frames.float() - 255 * video).abs()
    assert error.mean() < LOSS[suffix] + 0.5
    # A wrong colour matrix moves whole areas; the mean colour of a frame stays within two levels.
    assert (frames.float() - 255 * video).mean(dim=(0, 2, 3)).abs().max() < 2.5


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_frames_keep_their_order(tmp_path, suffix):
    grey = torch.linspace(0, 1, 20)[:, None, None, None].expand(20, 3, *SIZE)
    write(tmp_path / f"clip{suffix}", grey)
    frames, _ = read_video(tmp_path / f"clip{suffix}")
    torch.testing.assert_close(frames.float().mean(dim=(1, 2, 3)) / 255, grey[:, 0, 0, 0], atol=0.02, rtol=0)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_uint8_and_float_frames_write_the_same(tmp_path, suffix):
    video = clip(5)
    write(tmp_path / f"a{suffix}", video)
    write(tmp_path / f"b{suffix}", to_uint8(video))
    assert torch.equal(read_video(tmp_path / f"a{suffix}")[0], read_video(tmp_path / f"b{suffix}")[0])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_title_and_comment_are_stored(tmp_path, suffix):
    recipe = '{"prompt": "a red ball; \\u00e9=\\n", "seed": 7}' * 50
    write(tmp_path / f"clip{suffix}", clip(3), title="A red ball", comment=recipe)
    if suffix == ".gif":
        assert read_metadata(tmp_path / "clip.gif").get("title") is None  # the format has no place for them
        return
    metadata = read_metadata(tmp_path / f"clip{suffix}")
    assert (metadata["title"], metadata["comment"]) == ("A red ball", recipe)


@pytest.mark.parametrize("fps", [8, 12.5, 24, 29.97])
def test_rate_comes_back(tmp_path, fps):
    write(tmp_path / "clip.mp4", clip(4), fps=fps)
    assert read_video(tmp_path / "clip.mp4")[1] == pytest.approx(fps, rel=1e-3)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_odd_sizes_are_written(tmp_path, suffix):
    video = clip(3, 33, 47)
    write(tmp_path / f"clip{suffix}", video)
    frames, _ = read_video(tmp_path / f"clip{suffix}")
    expected = (34, 48) if suffix in (".mp4", ".webm") else (33, 47)
    assert frames.shape[2:] == expected
    assert (frames[:, :, :33, :47].float() - 255 * video).abs().mean() < 10


@pytest.mark.parametrize("resample", ["nearest", "bicubic"])
def test_scale_enlarges_by_a_whole_number(tmp_path, resample):
    write(tmp_path / "frames", clip(2), scale=3, resample=resample)
    frames, _ = read_video(tmp_path / "frames")
    assert frames.shape[2:] == (96, 144)
    assert torch.equal(frames, enlarge(to_uint8(clip(2)), 3, resample))


def test_nearest_repeats_every_pixel():
    small = to_uint8(clip(1))
    assert torch.equal(enlarge(small, 4)[:, :, 1::4, 2::4], small)


KILLED = """
import contextlib, os, signal, sys, torch
from reward_forcing.streaming.video_io import FORMATS, open_writer
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a test run in the background
with contextlib.ExitStack() as stack:
    writers = [stack.enter_context(open_writer(sys.argv[1] + suffix, 16, (32, 48))) for suffix in FORMATS]
    for i in range(20):
        for writer in writers:
            writer.write(torch.rand(6, 3, 32, 48, generator=torch.Generator().manual_seed(i)))
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    signal.pause()
"""


def write_until(name, folder):
    """Write 120 frames to a video of each format in another process, which then receives the named signal."""
    command = [sys.executable, "-c", KILLED, str(folder / "clip"), name]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_killed_writer_leaves_a_video_that_plays(tmp_path):
    assert write_until("SIGKILL", tmp_path).returncode == -signal.SIGKILL
    for suffix in SUFFIXES:
        frames, fps = read_video(tmp_path / f"clip{suffix}")
        assert 108 <= len(frames) <= 120, suffix  # at most three quarters of a second are lost
        assert fps == pytest.approx(16, rel=0.02), suffix


def test_ctrl_c_keeps_every_frame(tmp_path):
    assert "KeyboardInterrupt" in write_until("SIGINT", tmp_path).stderr
    assert [len(read_video(tmp_path / f"clip{suffix}")[0]) for suffix in SUFFIXES] == [120] * len(SUFFIXES)


def top_level_boxes(data):
    names, start = [], 0
    while start < len(data):
        names.append(data[start + 4 : start + 8])
        start += int.from_bytes(data[start : start + 4], "big")
    return names


def test_a_finished_mp4_is_no_longer_in_fragments(tmp_path):
    write(tmp_path / "clip.mp4", clip(40))
    boxes = top_level_boxes((tmp_path / "clip.mp4").read_bytes())
    assert (boxes.count(b"moov"), boxes.count(b"moof")) == (1, 0)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_another_video_is_not_replaced(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    write(path, clip(4))
    with pytest.raises(ValueError, match=r"exists; choose another name, such as .*clip-2"):
        open_writer(path, 16, SIZE)
    assert len(read_video(path)[0]) == 4


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_another_video_is_replaced_when_allowed(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    write(path, clip(9))
    write(path, clip(4), overwrite=True)
    assert len(read_video(path)[0]) == 4


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_replacement_leaves_the_old_video(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    write(path, clip(4))
    with pytest.raises(RuntimeError), open_writer(path, 16, SIZE, overwrite=True):
        raise RuntimeError
    assert len(read_video(path)[0]) == 4


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_writer_without_frames_leaves_nothing(tmp_path, suffix):
    open_writer(tmp_path / f"clip{suffix}", 16, SIZE).close()
    assert os.listdir(tmp_path) == []


def test_a_name_is_taken_when_the_writer_opens(tmp_path):
    with open_writer(tmp_path / "clip.mp4", 16, SIZE), pytest.raises(ValueError, match="exists"):
        open_writer(tmp_path / "clip.mp4", 16, SIZE)


def test_free_path_counts_on(tmp_path):
    assert free_path(tmp_path / "clip.mp4") == tmp_path / "clip.mp4"
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "clip-2.mp4").touch()
    assert free_path(tmp_path / "clip.mp4") == tmp_path / "clip-3.mp4"


def test_missing_folders_are_made(tmp_path):
    write(tmp_path / "a" / "b" / "clip.gif", clip(2))
    assert len(read_video(tmp_path / "a" / "b" / "clip.gif")[0]) == 2


def test_an_unknown_format_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"unknown video format '\.mp5'; did you mean '\.mp4'\?"):
        check_output(tmp_path / "clip.mp5")


def test_a_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not a folder"):
        check_output(tmp_path / "file" / "clip.mp4")


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, who may write anywhere
    with pytest.raises(ValueError, match="no permission to write"):
        check_output(tmp_path / "clip.mp4")


def test_a_folder_named_like_a_video_is_refused(tmp_path):
    (tmp_path / "clip.mp4").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        check_output(tmp_path / "clip.mp4", overwrite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "fps must be above 0"),
        ({"scale": 0}, "size and scale must be at least 1"),
        ({"resample": "bicubik"}, "did you mean 'bicubic'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_made(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        open_writer(tmp_path / "clip.mp4", **({"fps": 16, "size": SIZE} | options))
    assert os.listdir(tmp_path) == []


def test_a_gif_cannot_be_fast(tmp_path):
    with pytest.raises(ValueError, match="at most 50 frames per second"):
        open_writer(tmp_path / "clip.gif", 60, SIZE)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(2, 3, 16, 48), r"expected frames \[T, 3, 32, 48\], got \[2, 3, 16, 48\]"),
        (torch.zeros(2, 3, 32, 48, dtype=torch.int64), "floats in \\[0, 1\\] or uint8"),
        (torch.full((2, 3, 32, 48), torch.nan), "NaN"),
    ],
)
def test_wrong_frames_are_refused(tmp_path, frames, message):
    with open_writer(tmp_path / "clip.mp4", 16, SIZE) as writer, pytest.raises(ValueError, match=message):
        writer.write(frames)


def test_a_closed_writer_takes_no_more(tmp_path):
    writer = write(tmp_path / "clip.mp4", clip(2))
    with pytest.raises(ValueError, match="is closed"):
        writer.write(clip(1))


def test_reading_what_is_no_video_says_so(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    for name, message in [("missing.mp4", "does not exist"), ("text.mp4", "not a video"), ("empty", "no frames")]:
        with pytest.raises(ValueError, match=message):
            read_video(tmp_path / name)


def test_a_contact_sheet_shows_frames_in_reading_order():
    video = torch.arange(6.0)[:, None, None, None].expand(6, 3, 4, 5) / 10
    sheet = contact_sheet(video, columns=3, gap=1)
    assert isinstance(sheet, Image.Image)
    assert sheet.size == (3 * 5 + 2, 2 * 4 + 1)
    pixels = [sheet.getpixel((6 * column, 5 * row))[0] for row in range(2) for column in range(3)]
    assert pixels == to_uint8(video)[:, 0, 0, 0].tolist()
    assert sheet.getpixel((5, 0)) == (255, 255, 255)


def test_a_contact_sheet_picks_evenly_from_first_to_last():
    video = torch.arange(9.0)[:, None, None, None].expand(9, 3, 2, 2) / 8
    sheet = contact_sheet(video, columns=8, count=3, gap=0, scale=2)
    assert sheet.size == (12, 4)
    assert [sheet.getpixel((x, 0))[0] for x in (0, 4, 8)] == [0, 128, 255]


def test_an_empty_contact_sheet_is_refused():
    with pytest.raises(ValueError, match="T >= 1"):
        contact_sheet(torch.zeros(0, 3, 4, 4), columns=2)
