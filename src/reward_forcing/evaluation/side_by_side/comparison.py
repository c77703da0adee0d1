"""Makes the columns of a comparison, measures them, and goes on where it was stopped.

    OUT/recipe.json         what all columns show; a folder holds one comparison
    OUT/clips/NAME.mp4      each column's clip as it was made
    OUT/samples/NAME.json   what was measured of it, written last: with it, the column is done
    OUT/side_by_side.mp4    all columns under their names; sheet.png shows frames of it
    OUT/results.json, table.md

Columns may be added to a folder later. T frames, H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from os.path import relpath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reward_forcing.config import Settings
from reward_forcing.data.video_reader import look_at, pictures_of
from reward_forcing.evaluation import environment
from reward_forcing.evaluation.matching import matched
from reward_forcing.evaluation.metrics import Rhythm
from reward_forcing.evaluation.metrics.clips import Pixels
from reward_forcing.evaluation.recipe import claim, differences, write_settings
from reward_forcing.evaluation.results import RESULTS
from reward_forcing.evaluation.side_by_side.columns import Column, Wanted, check_columns
from reward_forcing.evaluation.side_by_side.measures import ColumnRecord, Speed, measure_column, truths_of
from reward_forcing.evaluation.side_by_side.panels import write_side_by_side
from reward_forcing.evaluation.side_by_side.table import markdown
from reward_forcing.evaluation.sources import Source
from reward_forcing.logs import StepProgress
from reward_forcing.streaming.recording import Recording, record
from reward_forcing.streaming.stream import VideoChunk
from reward_forcing.streaming.video_io import VideoWriter, open_writer, to_uint8, viewing_scale

logger = logging.getLogger(__name__)

VIDEO, SHEET, TABLE = "side_by_side.mp4", "sheet.png", "table.md"
FILES = (VIDEO, SHEET, TABLE, RESULTS)
"""What a comparison writes last, into its folder."""


class Comparison(Settings):
    """A whole comparison; `results.json`.

    left_out: column -> why it is not there. unjudged: why text alignment was not judged, '' where it was.
    """

    wanted: Wanted
    columns: tuple[ColumnRecord, ...]
    left_out: dict[str, str]
    unjudged: str
    command: str
    created: str
    commit: str
    versions: dict[str, str]


def compare(
    wanted: Wanted,
    columns: Sequence[Column],
    out: Path,
    *,
    left_out: Mapping[str, str] | None = None,
    command: str = "",
    quiet: bool = False,
) -> Comparison:
    """The comparison, also in `out`; columns that are there already are kept.

    left_out: columns that cannot be there -> why, for the record.
    Raises ValueError, before weights load, for columns that do not fit together, if `out` holds another comparison, and
    for a column that was made otherwise.
    """
    check_columns(columns, wanted)
    claim(out, wanted)
    made_with = {column.name: column.made_with() for column in columns}
    missing = [column for column in columns if not _is_done(out, column, made_with[column.name])]
    loaded, place = None, None
    for column in missing:
        notes = () if isinstance(column.source, Path) else tuple(column.source.notes)
        if isinstance(column.source, Path):
            made = _read(column.source, wanted, out)
        else:
            if column.source.place != place:
                loaded = None  # before the next weights are read
                loaded, place = column.source.load(), column.source.place
            for note in column.source.notes:
                logger.warning("%s: %s", column.name, note)
            made = _make(column.name, column.source, loaded, wanted, out, quiet)
        made |= {"notes": notes, "machine": environment.machine(), "made_with": made_with[column.name]}
        done = ColumnRecord(name=column.name, **made)
        write_settings(_record(out, column.name), done)
    records = [_read_record(out, column.name) for column in columns]
    truths = truths_of(wanted)
    comparison = Comparison(
        wanted=wanted,
        columns=tuple(records),
        left_out=dict(left_out or {}),
        unjudged=truths if isinstance(truths, str) else "",
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=environment.commit(),
        versions=environment.versions(),
    )
    clips = [(one.name, out / one.file) for one in records]
    write_side_by_side(out / VIDEO, out / SHEET, clips, wanted)
    (out / TABLE).write_text(markdown(comparison), encoding="utf-8")
    write_settings(out / RESULTS, comparison)
    return comparison


def _record(out: Path, name: str) -> Path:
    return out / "samples" / f"{name}.json"


def _read_record(out: Path, name: str) -> ColumnRecord:
    return ColumnRecord.model_validate_json(_record(out, name).read_text(encoding="utf-8"))


def _is_done(out: Path, column: Column, made_with: dict[str, Any]) -> bool:
    """Whether the column's record and clip are there; raises ValueError if they were made otherwise."""
    if not _record(out, column.name).is_file():
        return False
    held = _read_record(out, column.name)
    if held.made_with != made_with:
        changes = differences(held.made_with, made_with)
        raise ValueError(
            f"column '{column.name}' of '{out}' was made otherwise ({changes}); give it another name, or take another "
            "folder"
        )
    return (out / held.file).is_file()


class _ClipWriter:
    """A video file that is opened with the first frames, of whose size it is; clip: all frames so far."""

    def __init__(self, path: Path, fps: float, wanted: Wanted) -> None:
        self.clip: list[Pixels] = []
        self._path, self._fps, self._wanted = path, fps, wanted
        self._writer: VideoWriter | None = None

    def write(self, frames: Tensor) -> None:
        """Append frames [T, 3, H, W]."""
        pictures = to_uint8(frames)
        if self._writer is None:
            size = (pictures.shape[2], pictures.shape[3])
            self._writer = open_writer(
                self._path,
                self._fps,
                size,
                scale=viewing_scale(*size),
                resample="bicubic",
                title=self._wanted.prompt,
                comment=f"rforce compare, seed {self._wanted.seed}",
                overwrite=True,
            )
        self._writer.write(pictures)
        self.clip.append(pictures.permute(0, 2, 3, 1).numpy())

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()


def _make(name: str, source: Source, loaded: Any, wanted: Wanted, out: Path, quiet: bool) -> dict[str, Any]:
    """A column made now: the fields of its record."""
    file, rhythm, frames = f"clips/{name}.mp4", source.rhythm, source.frames_for(wanted.seconds)
    prompt = [wanted.prompt], [wanted.seed]
    if source.streams:  # two chunks that nobody counts: first calls are slow, and the first column would pay for all
        for _ in source.chunks(loaded, *prompt, (rhythm.first_chunk_frames + 1) / rhythm.fps):
            pass
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    writer = _ClipWriter(out / file, rhythm.fps, wanted)
    with StepProgress(name, 0, frames, quiet) as progress:

        def show(_: VideoChunk, so_far: Recording) -> None:
            progress.advance(so_far.frames)

        recording = record(source.chunks(loaded, *prompt, wanted.seconds, wanted.at), writer, show)
        progress.note(recording.frames, f"{recording.fps:.1f} frames per second")
    if recording.interrupted:
        raise KeyboardInterrupt
    clip = np.concatenate(writer.clip)
    speed = Speed(
        fps=recording.fps,
        first_seconds=recording.first_chunk,
        wall_seconds=recording.wall,
        peak_memory=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    )
    form = wanted.form
    measured = rhythm if rhythm.fps == form.fps else Rhythm(form.fps)
    frames, height, width, _ = clip.shape
    return {
        "file": file, "frames": frames, "fps": rhythm.fps, "height": height, "width": width,
        "speed": speed, "measures": measure_column(matched(clip, rhythm.fps, form), measured, wanted),
    }  # fmt: skip


def _read(video: Path, wanted: Wanted, out: Path) -> dict[str, Any]:
    """A column of a video made elsewhere: the fields of its record. What is longer than wanted is not measured."""
    form, held = wanted.form, look_at(video)
    clip = np.stack(list(islice(pictures_of(video, form.fps, form.size), wanted.frames)))
    file = Path(relpath(video.resolve(), out.resolve())).as_posix()
    return {
        "file": file, "frames": held.frames, "fps": held.fps, "height": held.height, "width": held.width,
        "speed": None, "measures": measure_column(clip, Rhythm(form.fps), wanted),
    }  # fmt: skip
