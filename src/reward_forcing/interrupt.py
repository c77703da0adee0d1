"""Stopping a run from outside: the first stop signal asks for an orderly end after the current step."""

import os
import signal
from collections.abc import Sequence
from types import FrameType, TracebackType


class Interrupt:
    """Within its with-block, the number of the first of `signals` received, or None.

    A second SIGINT (Ctrl-C twice) ends a single process at once; under torchrun repeats are expected and ignored.
    """

    def __init__(self, signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT)) -> None:
        self.signal: int | None = None
        self._signals = signals
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT and "WORLD_SIZE" not in os.environ:
            raise KeyboardInterrupt
        self.signal = self.signal or number
