"""`rforce generate --image` and `--video` as a user calls them."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from commands import rforce
from data.videos import write_levels
from PIL import Image

from reward_forcing.streaming.methods import METHODS
from reward_forcing.streaming.pipeline import StreamingVideoPipeline
from reward_forcing.streaming.video_io import read_metadata, read_video

pytestmark = pytest.mark.usefixtures("workplace")

PROMPT = "a red ball bounces"


@pytest.fixture
def tiny(tiny_model_folder: Path) -> tuple[str, ...]:
    return ("generate", PROMPT, "--model", str(tiny_model_folder), "--seed", "3", "--scale", "1")


@pytest.fixture
def clip(workplace: Path) -> Path:
    """24 frames at 16 per second."""
    return write_levels(workplace / "clip.mp4", fps=16)


@pytest.fixture
def photo(workplace: Path) -> Path:
    Image.radial_gradient("L").convert("RGB").save(workplace / "photo.png")
    return workplace / "photo.png"


@pytest.mark.parametrize("method", METHODS)
def test_a_video_is_continued_and_told(
    tiny: tuple[str, ...], clip: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ("--video", clip, "--video-seconds", 1, "--method", method, "--seconds", 2, "--out", "a")
    assert rforce(*tiny, *how, "--json") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    digest = hashlib.sha256(clip.read_bytes()).hexdigest()
    expected = {"kind": "video", "path": str(clip), "sha256": digest, "frames": 13, "seconds": 13 / 16, "shown": True}
    assert report["given"] == expected
    assert report["frames"] == 32
    assert captured.err.count("nothing says that this model's weights were trained to go on from given frames") == 1
    comment = read_metadata("a")["comment"]
    assert comment.endswith(f"begins with the last 13 frames (0.81 s) of clip.mp4, sha256 {digest}")


def test_the_written_video_begins_with_the_given_frames_or_leaves_them_out(
    tiny: tuple[str, ...], tiny_model_folder: Path, clip: Path
) -> None:
    assert rforce(*tiny, "--video", clip, "--seconds", 2, "--out", "whole") == 0
    assert rforce(*tiny, "--video", clip, "--seconds", "0.6875", "--only-new", "--out", "new") == 0
    whole, new = read_video("whole")[0], read_video("new")[0]
    assert whole[21:].equal(new)
    pipeline = StreamingVideoPipeline.from_pretrained(tiny_model_folder, device="cpu")
    made = pipeline.generate(PROMPT, 2, video=clip, seed=3)[0]
    assert whole.equal(made.mul(255).round().to(torch.uint8))
    assert "goes on from the last 21 frames (1.31 s) of clip.mp4" in read_metadata("new")["comment"]


@pytest.mark.parametrize("name", ["whole.mp4", "whole"])
def test_what_the_command_wrote_can_be_continued(tiny: tuple[str, ...], name: str) -> None:
    assert rforce(*tiny, "--seconds", 1, "--out", name) == 0
    assert rforce(*tiny, "--video", name, "--seconds", 2, "--out", "more") == 0
    assert len(read_video("more")[0]) == 32


def test_a_picture_begins_a_video_of_any_size(
    tiny: tuple[str, ...], photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rforce(*tiny, "--image", photo, "--size", "64x32", "--seconds", 1, "--out", "a") == 0
    assert read_video("a")[0].shape == (16, 3, 32, 64)
    assert "\n  begins with photo.png\n" in capsys.readouterr().out


def test_five_new_seconds_follow_unless_a_length_is_asked_for(
    tiny: tuple[str, ...], clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rforce(*tiny, "--video", clip, "--out", "a", "--json") == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 21 + 80
    assert rforce(*tiny, "--video", clip, "--out", "b", "--only-new", "--json") == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 80


def test_a_prompt_changes_at_the_time_of_the_written_video(tiny: tuple[str, ...], clip: Path) -> None:
    at = ("--video", clip, "--at", "1.5s: a blue square slides")
    assert rforce(*tiny, "--video", clip, "--seconds", 2.5, "--out", "plain") == 0
    assert rforce(*tiny, *at, "--seconds", 2.5, "--out", "changed") == 0
    plain, changed = read_video("plain")[0], read_video("changed")[0]
    assert plain[:29].equal(changed[:29]), "chunks begin at the frames 21 and 29"
    assert not plain[29:].equal(changed[29:])


def test_a_model_trained_for_it_is_not_warned_of(
    tiny: tuple[str, ...], photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = ("--set", "trained_to_continue=true")
    assert rforce(*tiny, *trained, "--image", photo, "--seconds", 0.5, "--out", "a", "--json") == 0
    assert capsys.readouterr().err == ""


BAD = [
    (["--image", "photo.png", "--video", "clip.mp4"], "give an image, a video or latents, not several of them"),
    (["--image", "absent.png"], "'absent.png' does not exist"),
    (["--image", "clip.mp4"], "'clip.mp4' is not a picture that can be read (it is of no format that is known)"),
    (["--image", "."], "'.' is a folder, not a picture"),
    (["--video", "absent.mp4"], "'absent.mp4' does not exist"),
    (["--video", "photo.png"], "'photo.png' gives 1 frames at 16 per second, and a video to continue needs 5"),
    (["--video", "broken.mp4"], "'broken.mp4' is not a video that can be read"),
    (["--video", "clip.mp4", "--video-seconds", "9"], "'clip.mp4' lasts 1.50 s, shorter than the 9 s to take of it"),
    (["--video", "clip.mp4", "--video-seconds", "0.1"], "'clip.mp4' gives 1 frames at 16 per second"),
    (["--video", "clip.mp4", "--video-seconds", "-1"], "must be positive and finite, got -1"),
    (["--video", "clip.mp4", "--seconds", "1"], "the given frames last 1.31 s, and the video with them is to last 1 s"),
    (["--video", "clip.mp4", "--seconds", "2", "--at", "1.9s: a ball"], "the last chunk of the video begins at 1.81 s"),
    (["--video-seconds", "1"], "the seconds to take of a video need a video"),
    (["--only-new"], "--only-new leaves out an --image or a --video, and none is given"),
    (["--image", "photo.png", "--size", "64x50"], "height must be a positive multiple of 16, got 50"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
@pytest.mark.usefixtures("clip", "photo")
def test_bad_input_is_one_line_before_any_weights_load(
    tiny: tuple[str, ...], workplace: Path, arguments: list[str], message: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def no_weights(*_: object) -> None:
        raise AssertionError("weights were about to be read")

    monkeypatch.setattr(StreamingVideoPipeline, "load", no_weights)
    (workplace / "broken.mp4").write_bytes((workplace / "clip.mp4").read_bytes()[:500])
    assert rforce(*tiny, *arguments, "--out", "out.mp4") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert not (workplace / "out.mp4").exists()
