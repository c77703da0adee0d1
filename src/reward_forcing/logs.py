"""What a long command says while it works: progress bars, JSON lines, and where the time goes. Knows no model."""

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


@cache
def console() -> Console:
    """Return the console for progress and messages: stderr, so that results on stdout can be piped."""
    return Console(stderr=True, highlight=False)


def silence_imports() -> None:
    """Keep off the terminal what diffusers and torchao say of each other as they are imported; errors still show."""
    for name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(name).setLevel(logging.ERROR)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items under a progress bar; silent when nobody watches (stderr is not a terminal)."""
    with _bar(TextColumn("{task.fields[note]}")) as bar:
        size = total if total is not None else len(items) if hasattr(items, "__len__") else None  # type: ignore[arg-type]
        task = bar.add_task(description, total=size, note="")
        for item in items:
            yield item
            bar.advance(task)


def _bar(*extra: TextColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        *extra,
        console=console(),
        disable=not console().is_terminal,
    )


class StepProgress:
    """A bar over numbered steps with a note beside it; one plain line per note where there is no terminal."""

    def __init__(self, description: str, first: int, total: int, quiet: bool = False) -> None:
        self._quiet = quiet
        self._first, self._total = first, total
        self._started = time.monotonic()
        self._bar = _bar(TextColumn("{task.fields[note]}"))
        self._bar.disable = self._bar.disable or quiet
        self._task = self._bar.add_task(description, total=total, completed=first, note="")
        self._description = description

    def __enter__(self) -> "StepProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Say that `step` steps are done."""
        self._bar.update(self._task, completed=step)

    def note(self, step: int, text: str) -> None:
        """Show a note: beside the bar, or as a line with the step and the time left."""
        self._bar.update(self._task, note=text)
        if not self._quiet and not console().is_terminal:
            done = max(1, step - self._first)
            left = (time.monotonic() - self._started) / done * (self._total - step)
            line = f"{self._description} {step}/{self._total}  {text}  left {duration(left)}"
            console().print(line, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class Clock:
    """Seconds by name. Nested measurements are exclusive: the inner time is not counted in the outer name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time of a with-block to `name`."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed - self._inner.pop()
            if self._inner:
                self._inner[-1] += elapsed

    def take(self) -> dict[str, float]:
        """Return the seconds since the last call and start again from zero."""
        taken, self.seconds = self.seconds, {}
        return taken


class JsonLines:
    """An append-only file of JSON objects, one per line, flushed line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one line. Non-finite numbers become null, as JSON has none."""
        clean = {
            k: None if isinstance(v, float) and (v != v or v in (float("inf"), -float("inf"))) else v
            for k, v in row.items()
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """Return all whole lines; a line torn by a crash is left out."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows

    def truncate_after(self, step: int) -> None:
        """Drop the lines whose "step" is past `step`: they come again when a run continues from there."""
        kept = [row for row in self.rows() if row.get("step", 0) <= step]
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(temporary, self.path)
