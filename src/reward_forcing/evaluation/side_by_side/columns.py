"""What stands in a comparison: the prompt that all columns show, and what makes each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_forcing.checkpoints.files import files_hash
from reward_forcing.config import Settings
from reward_forcing.data.video_reader import look_at
from reward_forcing.evaluation.matching import Form
from reward_forcing.evaluation.sources import Source, StreamedSource
from reward_forcing.evaluation.suites import prompts_of_videos, wording
from reward_forcing.streaming.prompts import Timeline
from reward_forcing.streaming.stream import last_start

EMPTY = "nothing to compare: name methods, pipelines or folders with a video of the prompt"


class Wanted(Settings):
    """What every column shows, and the form in which it is measured. at: later prompts, from their second on."""

    prompt: str
    at: tuple[tuple[float, str], ...] = ()
    seconds: float
    seed: int
    form: Form

    @property
    def frames(self) -> int:
        """Frames of the clip in the common form."""
        return math.ceil(round(self.seconds * self.form.fps, 6))

    @property
    def prompts(self) -> list[tuple[float, str]]:
        """Every prompt with the time from which it counts."""
        return [(0.0, self.prompt), *self.at]


@dataclass(frozen=True)
class Column:
    """One column under its name. source: what makes the clip, or a video made elsewhere."""

    name: str
    source: Source | Path

    def made_with(self) -> dict[str, Any]:
        """What determines the clip besides what all columns share; reads files to hash them."""
        if isinstance(self.source, Path):
            return {"video": files_hash([self.source])}
        return self.source.made_with().model_dump(mode="json", exclude_defaults=True)


def check_columns(columns: Sequence[Column], wanted: Wanted) -> None:
    """Raise ValueError for no column, two of one name, and prompts that a column cannot follow or would never show.

    Also for a video that cannot be read.
    """
    names = [column.name for column in columns]
    if not names:
        raise ValueError(EMPTY)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two columns are called '{twice}'; give one of them another name, such as {twice}2=...")
    for column in columns:
        if isinstance(column.source, Path):
            look_at(column.source)
    for column in columns if wanted.at else ():
        if not isinstance(column.source, StreamedSource):
            raise ValueError(f"the prompt can change only where a model streams; leave --at out, or {column.name}")
        last = last_start(column.source.folder.geometry, wanted.seconds)
        Timeline.of(wanted.prompt, wanted.at).check_reached(last)


def form_like(columns: Sequence[Column]) -> Form:
    """The form of the first column's clip as it is made; raises ValueError where that is not known before."""
    if not columns:
        raise ValueError(EMPTY)
    column = columns[0]
    if isinstance(column.source, Path):
        held = look_at(column.source)
        return Form(height=held.height, width=held.width, fps=held.fps)
    if column.source.size is None:
        raise ValueError(f"what size the clips of '{column.name}' have is not known before; give --size and --fps")
    height, width = column.source.size
    return Form(height=height, width=width, fps=column.source.rhythm.fps)


def video_of(folder: Path, prompt: str) -> Path | None:
    """The video of a prompt in a folder as `suite_of_folder` reads it, the first by name; None if there is none."""
    videos = prompts_of_videos(folder)
    return next((file for file, text in videos.items() if wording(text) == wording(prompt)), None)
