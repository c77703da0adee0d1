"""Frames are encoded beside the computing, in order; whatever goes wrong in the thread comes out."""

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from reward_forcing.streaming.recording import BackgroundWriter, Recording, record
from reward_forcing.streaming.stream import VideoChunk


class Collector:
    """Keeps what it is given; fails at frame number `fails_at`, holds on while `gate` is closed."""

    def __init__(self, fails_at: int | None = None, gate: threading.Event | None = None) -> None:
        self.frames: list[float] = []
        self.closed = 0
        self._fails_at = fails_at
        self._gate = gate

    def write(self, frames: Tensor) -> None:
        if self._gate is not None:
            assert self._gate.wait(10)
        if len(self.frames) == self._fails_at:
            raise OSError("no space left on device")
        self.frames += frames.flatten(1).mean(1).tolist()

    def close(self) -> None:
        self.closed += 1


def picture(value: float) -> Tensor:
    return torch.full((1, 3, 2, 2), float(value))


def chunks(count: int, then: BaseException | None = None) -> Iterator[VideoChunk]:
    for index in range(count):
        yield VideoChunk(index, picture(index)[None], index, index / 16, ("a ball",), {"dit": 0.5})
    if then is not None:
        raise then


def ignore(chunk: VideoChunk, recording: Recording) -> None:
    pass


def test_every_frame_is_written_in_order_before_the_file_is_closed() -> None:
    writer = Collector()
    recording = record(chunks(20), writer, ignore)
    assert writer.frames == list(range(20))
    assert writer.closed == 1
    assert (recording.frames, recording.stages["dit"], recording.interrupted) == (20, 10.0, False)
    assert 0 < recording.first_chunk <= recording.wall
    assert recording.fps == 20 / recording.wall


def test_an_interrupt_finishes_the_file() -> None:
    writer = Collector()
    recording = record(chunks(3, then=KeyboardInterrupt()), writer, ignore)
    assert recording.interrupted
    assert (writer.frames, writer.closed, recording.frames) == ([0, 1, 2], 1, 3)


def test_an_error_of_the_stream_finishes_the_file_and_comes_out() -> None:
    writer = Collector()
    with pytest.raises(RuntimeError, match="lost"):
        record(chunks(2, then=RuntimeError("lost")), writer, ignore)
    assert (writer.frames, writer.closed) == ([0, 1], 1)


@pytest.mark.parametrize("fails_at", [0, 2, 9])
def test_an_error_of_the_writer_comes_out(fails_at: int) -> None:
    writer = Collector(fails_at)
    with pytest.raises(OSError, match="no space left"):
        record(chunks(10), writer, ignore)
    assert (len(writer.frames), writer.closed) == (fails_at, 1)


def test_a_slow_writer_holds_the_stream_up() -> None:
    gate = threading.Event()
    writer = Collector(gate=gate)
    taken: list[int] = []

    def run() -> None:
        with BackgroundWriter(writer, depth=2) as background:
            for number in range(8):
                background.write(picture(number))
                taken.append(number)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    assert len(taken) <= 3  # one in the writer's hands and two that wait
    gate.set()
    thread.join(10)
    assert writer.frames == list(range(8))
