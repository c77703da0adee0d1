"""What a video begins with: files and tensors brought to a model's size and rate, by stated rules, or refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.videos import CODECS, numbers_of, write_levels
from PIL import Image
from torch import Tensor

from reward_forcing.geometry import Geometry
from reward_forcing.streaming.given import Given, open_given, read_picture
from reward_forcing.streaming.video_io import open_writer

GEOMETRY = Geometry(32, 32, chunk_frames=2)
WIDE = Geometry(32, 64, chunk_frames=2)


def given(geometry: Geometry = GEOMETRY, **sources: Any) -> Given:
    """What is given, with what holds for all: it is there, of the geometry's size, and fills its latent frames."""
    found = open_given(geometry, 4, **sources)
    assert found is not None
    assert tuple(found.content.shape[2:]) == (3, geometry.height, geometry.width)
    assert found.content.shape[1] == geometry.frames_of(found.latent_frames)
    return found


def numbers(found: Given) -> list[int]:
    """Of frames that `write_levels` wrote, their numbers."""
    return numbers_of(found.content[0].float() / 255)


@pytest.mark.parametrize("suffix", CODECS)
def test_the_last_frames_of_a_video_are_given_at_the_models_rate(tmp_path: Path, suffix: str) -> None:
    path = write_levels(tmp_path / f"a{suffix}", frames=24, fps=16)
    assert numbers(given(video=path)) == list(range(3, 24)), "21 of 24: 1 + 4 k"
    assert numbers(given(video=path, seconds=1.0)) == list(range(11, 24)), "13 of 16"
    slower = write_levels(tmp_path / f"b{suffix}", frames=24, fps=8)
    assert numbers(given(video=slower, seconds=0.5))[-3:] == [22, 22, 23]
    faster = write_levels(tmp_path / f"c{suffix}", frames=24, fps=32)
    assert numbers(given(video=faster)) == [7, 9, 11, 13, 15, 17, 19, 21, 23]


def test_a_folder_of_images_is_given_as_a_video_is(tmp_path: Path) -> None:
    frames = torch.arange(24, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32) * 8
    with open_writer(tmp_path / "a", 8, (32, 32)) as writer:
        writer.write(frames)
    assert [int(frame[0, 0, 0]) // 8 for frame in given(video=tmp_path / "a").content[0]][-4:] == [21, 22, 22, 23]
    assert given(video=tmp_path / "a", seconds=2).content.shape[1] == 29


def test_frames_of_another_shape_are_cropped_around_their_middle(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "a.mp4", size=(32, 48), fps=16)  # with stripes at both sides
    square, wide = (given(shape, video=path).content.float() / 255 for shape in (GEOMETRY, Geometry(32, 48)))
    assert square[0, -1].min() > 0.25
    assert wide[0, -1, ..., :2].max() < 0.1
    rows = torch.linspace(0, 1, 64)[:, None].expand(3, 64, 64)
    assert given(WIDE, image=rows).content[0, 0].float().mul(1 / 255).sub(0.5).abs().max() < 0.26, "the middle half"


def test_frames_of_the_right_size_are_given_as_they_are() -> None:
    frames = torch.rand(9, 3, 32, 32)
    assert given(video=frames).content.data_ptr() == frames.data_ptr()
    assert torch.equal(given(video=frames, seconds=0.5).content[0], frames[-5:])
    assert given(image=frames).batch == 9
    assert given(image=frames[0], shown=False).hidden_frames == 1
    assert given(image=frames[0]).hidden_frames == 0


def test_what_is_given_is_the_argument_that_gives_it() -> None:
    for name, value in {"image": torch.rand(2, 3, 32, 32), "video": torch.rand(1, 5, 3, 32, 32)}.items():
        found = given(**{name: value})
        assert found.as_argument.keys() == {name}
        assert torch.equal(found.as_argument[name], value)


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_a_picture_is_read_upright_without_transparency_and_in_8_bits(tmp_path: Path) -> None:
    halves = Image.fromarray(np.uint8([[255, 0]] * 2).repeat(16, 0).repeat(16, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the left half is the upper one
    turned = np.asarray(read_picture(save(halves, tmp_path / "a.jpg", exif=exif)))
    assert turned[:14].min() > 250
    assert turned[-14:].max() < 5
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert np.asarray(read_picture(save(clear, tmp_path / "a.png"))).min() == 255
    deep = Image.fromarray(np.full((4, 4), 0x8000, np.uint16))
    assert np.asarray(read_picture(save(deep, tmp_path / "b.png"))).max() == 0x80


def picture_of(tmp_path: Path, kind: str) -> Path:
    """A file that is no whole picture."""
    path = tmp_path / "a.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "video":
        write_levels(tmp_path / "a.mp4").rename(path)
    elif kind != "missing":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
        whole = path.read_bytes()
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "header": whole[:30]}[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("folder", "is a folder, not a picture"),
        ("video", r"is not a picture that can be read \(it is of no format that is known\); a video goes in as video"),
        ("cut", "is not a picture that can be read"),
        ("empty", "is not a picture that can be read"),
        ("header", "is not a picture that can be read"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, kind: str, message: str) -> None:
    path = picture_of(tmp_path, kind)
    with pytest.raises(ValueError, match=message) as raised:
        open_given(GEOMETRY, 4, image=path)
    assert str(path) in str(raised.value)


def video_of(tmp_path: Path, kind: str) -> Path:
    """A file or folder that is no video to continue."""
    path = tmp_path / "a.mp4"
    if kind == "folder":
        path.mkdir()
    elif kind == "picture":
        Image.new("RGB", (32, 32)).save(path, format="png")
    elif kind != "missing":
        write_levels(path, frames={"short": 4}.get(kind, 24), fps=16)
        whole = path.read_bytes()
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b""}.get(kind, whole))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("folder", "holds no frames"),
        (
            "picture",
            r"gives 1 frames at 16 per second, and a video to continue needs 5 \(0\.31 s\); give .* as an image",
        ),
        ("short", "gives 4 frames at 16 per second, and a video to continue needs 5"),
        ("cut", "is not a video that can be read"),
        ("empty", "is not a video that can be read"),
    ],
)
def test_what_is_no_video_to_continue_is_refused(tmp_path: Path, kind: str, message: str) -> None:
    path = video_of(tmp_path, kind)
    with pytest.raises(ValueError, match=message) as raised:
        open_given(GEOMETRY, 4, video=path)
    assert str(path) in str(raised.value)


FRAMES, LATENTS = torch.rand(9, 3, 32, 32), torch.randn(1, 2, 4, 4, 4)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"image": FRAMES[0], "video": FRAMES}, "give an image, a video or latents, not several"),
        ({"image": FRAMES[0], "latents": LATENTS}, "give an image, a video or latents, not several"),
        ({"seconds": 1.0}, "the seconds to take of a video need a video"),
        ({"image": FRAMES[0], "seconds": 1.0}, "the seconds to take of a video need a video"),
        ({"video": FRAMES, "seconds": 0.0}, "must be positive and finite, got 0"),
        ({"video": FRAMES, "seconds": 2.0}, "the video lasts 0.56 s, shorter than the 2 s to take of it"),
        ({"video": FRAMES, "seconds": 0.25}, "gives 4 frames at 16 per second"),
        ({"video": FRAMES[0]}, r"expected the video as \[T, 3, H, W\] or \[B, T, 3, H, W\], got \[3, 32, 32\]"),
        ({"video": FRAMES[:, :1]}, r"expected the video as .*, got \[9, 1, 32, 32\]"),
        ({"image": FRAMES[0, 0]}, r"expected the image as \[3, H, W\] or \[B, 3, H, W\], got \[32, 32\]"),
        ({"image": FRAMES[0] * 2 - 1}, r"floats in \[0, 1\] or uint8, got values from -[\d.]+ to 0\.\d+"),
        ({"image": FRAMES[0] * float("nan")}, r"floats in \[0, 1\] or uint8, got values from nan to nan"),
        ({"image": torch.ones(3, 32, 32, dtype=torch.int64)}, "or uint8, got torch.int64"),
        ({"latents": LATENTS[:, :, :3]}, r"expected the latents as \[1 or B, F, 4, 4, 4\], got \[1, 2, 3, 4, 4\]"),
        ({"latents": LATENTS[0]}, r"expected the latents as .*, got \[2, 4, 4, 4\]"),
        ({"latents": LATENTS / 0}, "expected the latents as finite floats"),
    ],
)
def test_what_makes_no_beginning_is_refused(sources: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_given(GEOMETRY, 4, **sources)


def test_nothing_given_is_none() -> None:
    assert open_given(GEOMETRY, 4) is None


def test_pieces_are_whole_chunks_after_what_is_left() -> None:
    latents: Tensor = torch.randn(1, 5, 4, 4, 4)
    pieces = list(Given("latents", latents, 5).pieces(None, GEOMETRY, 3))  # pyright: ignore[reportArgumentType]
    assert [piece.shape[:2] for piece in pieces] == [(3, 1), (3, 2), (3, 2)]
    assert torch.equal(torch.cat(pieces, dim=1), latents.expand(3, -1, -1, -1, -1))
