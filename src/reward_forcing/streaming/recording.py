"""A stream into a file: frames are encoded in a thread of their own, and what the whole took is measured."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from queue import Queue
from threading import Thread
from types import TracebackType
from typing import Any, Protocol, Self

from torch import Tensor

from reward_forcing.streaming.stream import VideoChunk

INCLUDED = "text encoding, transformer passes, cache commits, VAE decoding and video encoding; not loading the model"
"""What the frames per second of a `Recording` count."""


class FrameWriter(Protocol):
    """What takes frames [T, 3, H, W] in order; `close` follows the last."""

    def write(self, frames: Tensor) -> None:
        """Append frames."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


@dataclass
class Recording:
    """What `record` measured: frames, wall seconds until all were encoded, seconds until the first chunk and by stage.

    given: frames among them that the video began with; the first chunk is the first that was made. stages: see
    `stream.STAGES`; video encoding runs beside them. interrupted: by Ctrl-C.
    """

    frames: int = 0
    given: int = 0
    wall: float = 0.0
    first_chunk: float = 0.0
    stages: Counter[str] = field(default_factory=Counter)
    interrupted: bool = False

    @property
    def fps(self) -> float:
        """Frames made per second of wall time; what this counts is `INCLUDED`."""
        return (self.frames - self.given) / self.wall if self.wall else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name, for JSON."""
        return {
            "fps": round(self.fps, 3),
            "fps_includes": INCLUDED,
            "wall_seconds": round(self.wall, 3),
            "first_chunk_seconds": round(self.first_chunk, 3),
            "stage_seconds": {stage: round(seconds, 3) for stage, seconds in self.stages.items()},
        }


def record(
    chunks: Iterable[VideoChunk], writer: FrameWriter, on_chunk: Callable[[VideoChunk, Recording], None]
) -> Recording:
    """Write the first sample of every chunk and finish the file, at Ctrl-C too; returns what was measured.

    on_chunk: told each chunk, and what is measured so far, once it waits to be encoded. Whatever the writer raises is
    raised here.
    """
    recording, started = Recording(), time.perf_counter()
    try:
        with BackgroundWriter(writer) as background:
            for chunk in chunks:
                background.write(chunk.frames[0])
                recording.frames += chunk.frames.shape[1]
                recording.given += chunk.frames.shape[1] if chunk.given else 0
                recording.wall = time.perf_counter() - started
                if not chunk.given:
                    recording.first_chunk = recording.first_chunk or recording.wall
                recording.stages.update(chunk.seconds)
                on_chunk(chunk, recording)
    except KeyboardInterrupt:
        recording.interrupted = True
    recording.wall = time.perf_counter() - started
    return recording


class BackgroundWriter:
    """Hands frames to `writer` in a thread of its own; leaving the `with` block waits for the last and closes it.

    depth: chunks that may wait. A writer that falls behind holds `write` up, so memory stays bounded. What the thread
    raises is raised by the next `write` or by leaving the block; later frames are dropped.
    """

    def __init__(self, writer: FrameWriter, depth: int = 2) -> None:
        self._writer = writer
        self._queue: Queue[Tensor | None] = Queue(depth)
        self._error: BaseException | None = None
        self._thread = Thread(target=self._work, name="video-writer", daemon=True)
        self._thread.start()

    def write(self, frames: Tensor) -> None:
        """Append frames [T, 3, H, W] once those before them are written."""
        self._raise_error()
        self._queue.put(frames)

    def close(self) -> None:
        """Write what waits, and finish; raises what the thread raised."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        try:
            self._writer.close()
        finally:
            self._raise_error()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _work(self) -> None:
        while (frames := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._writer.write(frames)
                except BaseException as error:
                    self._error = error

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
