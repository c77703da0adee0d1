"""A folder of videos made elsewhere as the source of a suite's clips: the same prompts and seeds as any model's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reward_forcing.data.video_reader import look_at
from reward_forcing.evaluation.metrics import Rhythm
from reward_forcing.evaluation.sources import MadeWith, hash_once
from reward_forcing.evaluation.suites import SEED_STRIDE, Suite, prompts_of_videos, wording
from reward_forcing.streaming.stream import VideoChunk
from reward_forcing.streaming.video_io import read_video


@dataclass(frozen=True)
class VideoSource:
    """Clips that exist already; what is longer than wanted is cut off. fps: of all of them.

    videos: (prompt, seconds of its set) -> the files of its clips, one after the other.
    """

    folder: Path
    videos: dict[tuple[str, float], tuple[Path, ...]]
    fps: float

    streams = False
    size = None

    @property
    def place(self) -> tuple[str, ...]:
        """The folder."""
        return (str(self.folder),)

    @property
    def notes(self) -> tuple[str, ...]:
        """None is known."""
        return ()

    @property
    def rhythm(self) -> Rhythm:
        """The rate; metrics of borders take the chunks of `WAN_RHYTHM`."""
        return Rhythm(self.fps)

    def frames_for(self, seconds: float) -> int:
        """The fewest frames that last `seconds`."""
        return math.ceil(round(seconds * self.fps, 6))

    def made_with(self) -> MadeWith:
        """The hash of all videos together."""
        videos = hash_once([file for files in self.videos.values() for file in files])
        return MadeWith(weights=None, parts={}, settings={"videos": videos})

    def load(self) -> None:
        """Nothing."""

    def chunks(
        self,
        loaded: None,
        prompts: Sequence[str],
        seeds: Sequence[int],
        seconds: float,
        at: Sequence[tuple[float, str]] = (),
    ) -> Iterator[VideoChunk]:
        """One piece, the whole clip as uint8; raises ValueError for a video that cannot be read or is too short."""
        assert len(prompts) == len(seeds) == 1, (prompts, seeds)
        assert not at, at
        file, wanted = self.videos[prompts[0], seconds][seeds[0] // SEED_STRIDE], self.frames_for(seconds)
        frames, _ = read_video(file)
        if len(frames) < wanted:
            raise ValueError(f"'{file}' has {len(frames)} of the {wanted} frames that {seconds:g} s take")
        yield VideoChunk(0, frames[None, :wanted], 0, 0.0, tuple(prompts), {})


def videos_for(suite: Suite, folder: Path) -> VideoSource:
    """The videos of a folder, read as `suite_of_folder` does, that show a suite's prompts; others are left alone.

    A prompt's clips are its videos that last long enough, the shortest first, and by name. Prompts are compared without
    regard to case and spaces. Raises ValueError where videos are missing, and for videos of several rates.
    """
    prompts, held = prompts_of_videos(folder), dict[str, list[tuple[int, Path]]]()
    looked = {file: look_at(file) for file in prompts}
    for file, text in prompts.items():
        held.setdefault(wording(text), []).append((round(looked[file].seconds), file))
    videos: dict[tuple[str, float], tuple[Path, ...]] = {}
    for one in suite.sets:
        for prompt in one.prompts:
            files = [file for _, file in sorted(held.get(wording(prompt), []))]
            lasting = [file for file in files if looked[file].seconds >= one.seconds - 0.5 / looked[file].fps]
            if len(lasting) < one.seeds:
                raise ValueError(
                    f"'{folder}' has {len(lasting)} videos of at least {one.seconds:g} s of the prompt '{prompt}'; set "
                    f"'{one.name}' needs {one.seeds}"
                )
            videos[prompt, one.seconds] = tuple(lasting[: one.seeds])
    rates = {file: looked[file].fps for files in videos.values() for file in files}
    first, fps = next(iter(rates.items()))
    if other := next((file for file, rate in rates.items() if not math.isclose(rate, fps, rel_tol=1e-3)), None):
        raise ValueError(f"'{other}' has {rates[other]:g} frames per second, '{first}' {fps:g}; give equal ones")
    return VideoSource(folder, videos, round(fps, 3))
