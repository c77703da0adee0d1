"""A folder of captioned videos of one's own: which files count, what is said of each, and the clips cut from them.

Owns captions and the plan of clips. Decodes nothing (`video_reader` does), knows no VAE and no training.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reward_forcing.config import nearest
from reward_forcing.data.video_reader import VideoInfo, frames_in, look_at

VIDEO_SUFFIXES = (".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
                  ".ogv", ".ts", ".webm", ".wmv", ".y4m")  # fmt: skip
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
LISTS = ("captions.csv", "captions.jsonl")


@dataclass(frozen=True)
class Video:
    """A file that can be used. name: its path below the folder, with '/'. captions: any one of them describes it."""

    name: str
    info: VideoInfo
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Skipped:
    """A file that cannot be used, or the clip of it that begins at second `start`, and why."""

    name: str
    reason: str
    start: float | None = None

    def __str__(self) -> str:
        where = "" if self.start is None else f" at {self.start:.2f} s"
        return f"{self.name}{where}: {self.reason}"


@dataclass(frozen=True)
class VideoFolder:
    """What a folder holds. others: how many files of each suffix are neither videos nor captions."""

    path: Path
    videos: tuple[Video, ...]
    skipped: tuple[Skipped, ...]
    others: Mapping[str, int]


@dataclass(frozen=True)
class Clip:
    """A stretch of a video of `VideoFolder`, from second `start` on, with the video's captions."""

    name: str
    start: float
    captions: tuple[str, ...]


def open_video_folder(folder: Path, captioned: bool = True) -> VideoFolder:
    """The videos and images in a folder and below it, by name; hidden files do not count.

    Captions of clip.mp4 are the rows for it in captions.csv or captions.jsonl at the top of the folder (`file`,
    `caption`; several rows are several captions), else the lines of clip.txt beside it, else the title stored in it.
    captioned: skip what has no caption. What cannot be read is skipped, too.
    Raises FileNotFoundError for a missing folder, ValueError for lists that cannot be read or name files that are not
    there, and if nothing is left.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder '{folder}'")
    visible = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _is_hidden(path, folder)]
    files = {path.relative_to(folder).as_posix(): path for path in visible if _is_picture(path)}
    listed = _listed_captions(folder, list(files))
    videos, skipped = [], []
    for name, path in files.items():
        try:
            info = look_at(path)
        except ValueError as error:
            skipped.append(Skipped(name, str(error)))
            continue
        captions = listed.get(name) or _captions_beside(path) or ((info.title,) if info.title else ())
        if captioned and not captions:
            skipped.append(Skipped(name, f"no caption; write {path.stem}.txt beside it"))
        else:
            videos.append(Video(name, info, captions))
    texts = {path.with_suffix(".txt") for path in files.values()} | {folder / name for name in LISTS}
    others = Counter(path.suffix for path in visible if not _is_picture(path) and path not in texts)
    if not videos:
        why = f"{len(skipped)} files cannot be used, the first: {skipped[0]}" if skipped else "no file is a video"
        raise ValueError(f"nothing to use in '{folder}': {why}")
    return VideoFolder(folder, tuple(videos), tuple(skipped), dict(others))


def cut(folder: VideoFolder, frames: int, fps: float, stride: int) -> tuple[list[Clip], list[Skipped]]:
    """The clips of `frames` frames at `fps` that begin at every `stride`-th frame, and the videos too short for one.

    What is left at a video's end, less than a clip, is not used.
    """
    clips, short = [], []
    for video in folder.videos:
        count = frames_in(video.info.seconds, fps)
        starts = range(0, count - frames + 1, stride)
        clips += [Clip(video.name, start / fps, video.captions) for start in starts]
        if not starts:
            short.append(Skipped(video.name, f"too short: {count} frames at {fps:g} fps, a clip has {frames}"))
    return clips, short


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES + IMAGE_SUFFIXES


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _captions_beside(path: Path) -> tuple[str, ...]:
    text = path.with_suffix(".txt")
    return _clean(_read(text).splitlines()) if text.is_file() else ()


def _clean(captions: Sequence[str]) -> tuple[str, ...]:
    """Captions of one line each, without the empty ones, each once."""
    return tuple(dict.fromkeys(" ".join(caption.split()) for caption in captions if caption.strip()))


def _listed_captions(folder: Path, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """File name -> captions, of the folder's lists; empty without any."""
    found: dict[str, list[str]] = {}
    for path in (folder / name for name in LISTS):
        rows = (_csv_rows if path.suffix == ".csv" else _json_rows)(path) if path.is_file() else ()
        for number, row in rows:
            file, caption = row.get("file"), row.get("caption")
            if not (isinstance(file, str) and isinstance(caption, str)):
                raise ValueError(f"'{path}', line {number}: expected a file and a caption, got {row}")
            if file not in names:
                near = nearest(file, names)
                hint = f"; did you mean '{near}'?" if near else ""
                raise ValueError(f"'{path}', line {number}: no video '{file}' in the folder{hint}")
            found.setdefault(file, []).append(caption)
    return {file: _clean(captions) for file, captions in found.items()}


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    reader = csv.DictReader(_read(path).splitlines(keepends=True), restkey="more", restval=None)
    if not {"file", "caption"} <= set(reader.fieldnames or ()):
        raise ValueError(f"'{path}' must begin with a line that names the columns: file,caption")
    for row in reader:
        yield reader.line_num, row


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(_read(path).splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"'{path}', line {number} is not valid JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"'{path}', line {number}: expected a file and a caption, got {row}")
            yield number, row


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"'{path}' is not UTF-8 text") from None
