"""A folder of videos: where captions come from, what is skipped and why, and how clips are cut."""

import shutil
from pathlib import Path

import pytest
from data.videos import write_levels

from reward_forcing.data.video_folder import Clip, cut, open_video_folder


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 3 seconds with a title."""
    return write_levels(tmp_path_factory.mktemp("video") / "a.mp4", title="the title")


def test_captions_come_from_a_list_then_from_beside_the_video_then_from_its_title(tmp_path: Path, video: Path) -> None:
    for name in ("listed.mp4", "beside.mp4", "below/titled.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(video, tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("a red ball\n\n a   blue\tball \na red ball\n")
    (tmp_path / "below/titled.txt").unlink()
    (tmp_path / "captions.csv").write_text('file,caption\nlisted.mp4,"a ball, green"\nlisted.mp4,a white ball\n')
    (tmp_path / "notes.srt").write_text("nothing")
    (tmp_path / ".hidden.mp4").write_text("nothing")
    found = open_video_folder(tmp_path)
    assert {one.name: one.captions for one in found.videos} == {
        "below/titled.mp4": ("the title",),
        "beside.mp4": ("a red ball", "a blue ball"),
        "listed.mp4": ("a ball, green", "a white ball"),
    }
    assert (found.skipped, found.others) == ((), {".srt": 1})


def test_json_lines_name_captions_too(tmp_path: Path, video: Path) -> None:
    shutil.copy(video, tmp_path / "a.mp4")
    (tmp_path / "captions.jsonl").write_text('{"file": "a.mp4", "caption": "a", "width": 3}\n')
    assert open_video_folder(tmp_path).videos[0].captions == ("a",)


def test_what_cannot_be_used_is_told_with_the_reason(tmp_path: Path, video: Path) -> None:
    shutil.copy(video, tmp_path / "good.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    write_levels(tmp_path / "silent.mp4", frames=4)
    found = open_video_folder(tmp_path)
    assert [one.name for one in found.videos] == ["good.mp4"]
    assert "not a video" in str(found.skipped[0])
    assert str(found.skipped[1]) == "silent.mp4: no caption; write silent.txt beside it"
    assert len(open_video_folder(tmp_path, captioned=False).videos) == 2


def test_clips_begin_at_every_stride_and_what_is_too_short_is_told(tmp_path: Path, video: Path) -> None:
    shutil.copy(video, tmp_path / "a.mp4")
    write_levels(tmp_path / "b.mp4", frames=8, title="b")
    found = open_video_folder(tmp_path)
    clips, short = cut(found, frames=17, fps=16, stride=12)
    assert clips == [Clip("a.mp4", start, ("the title",)) for start in (0.0, 0.75, 1.5)]
    assert str(short[0]) == "b.mp4: too short: 16 frames at 16 fps, a clip has 17"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("captions.csv", "name,caption\na.mp4,b\n", "names the columns: file,caption"),
        ("captions.csv", "file,caption\na.mp5,b\n", "line 2: no video 'a.mp5' in the folder; did you mean 'a.mp4'"),
        ("captions.csv", "file,caption\na.mp4\n", "line 2: expected a file and a caption"),
        ("captions.jsonl", '{"file": "a.mp4"}\n', "line 1: expected a file and a caption"),
        ("captions.jsonl", "[\n", "line 1 is not valid JSON"),
        ("captions.jsonl", "[]\n", "line 1: expected a file and a caption"),
    ],
)
def test_a_bad_list_names_the_line(tmp_path: Path, video: Path, name: str, text: str, says: str) -> None:
    shutil.copy(video, tmp_path / "a.mp4")
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=says):
        open_video_folder(tmp_path)


def test_a_folder_without_anything_to_use_says_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_video_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="no file is a video"):
        open_video_folder(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"1 files cannot be used, the first: a\.mp4: .*not a video"):
        open_video_folder(tmp_path)
