"""Who is denoised when: a schedule is an iterator of passes, each one forward of the network.

Owns the order of noise levels over chunks. Knows no tensors. Chunks are numbered from 0 in the order they finish;
noise levels are sigmas in [0, 1].
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import cast

from reward_forcing.config import named
from reward_forcing.flow import TIMESTEPS


@dataclass(frozen=True)
class Pass:
    """One forward: the chunks denoised jointly, oldest first, and the noise level of each before and after.

    chunks: consecutive chunk numbers. sigma, sigma_next: one entry per chunk; sigma_next None, allowed for the oldest,
    means that the chunk is finished by this pass and yielded. grad: the pass takes part in training. fresh_noise: the
    noise of the next level is drawn anew, as few-step samplers do; otherwise it is the one that the pass foresaw, which
    makes the pass an Euler step of the flow ODE. is_exit: training looks at what this pass predicts of its chunks,
    finished or not; of a chunk without such a pass it looks at the finished one.
    Raises ValueError for entries that do not belong together.
    """

    chunks: tuple[int, ...]
    sigma: tuple[float, ...]
    sigma_next: tuple[float | None, ...]
    grad: bool = False
    fresh_noise: bool = True
    is_exit: bool = False

    def __post_init__(self) -> None:
        if not self.chunks or not len(self.chunks) == len(self.sigma) == len(self.sigma_next):
            raise ValueError(f"a pass needs one sigma and one sigma_next for each of its chunks, got {self}")
        if self.chunks != tuple(range(self.chunks[0], self.chunks[0] + len(self.chunks))):
            raise ValueError(f"a pass denoises consecutive chunks, oldest first, got {self.chunks}")
        if None in self.sigma_next[1:]:
            raise ValueError(f"only the oldest chunk of a pass can finish, got sigma_next={self.sigma_next}")

    @property
    def finishes(self) -> bool:
        """Whether the oldest chunk is finished by this pass."""
        return self.sigma_next[0] is None


def chunkwise(
    sigmas: Sequence[float], grad_from: int | None = None, fresh_noise: bool = True, *, chunks: int | None = None
) -> Iterator[Pass]:
    """Passes that denoise one chunk after the other through `sigmas` (all methods but rolling).

    After every pass but a chunk's last, x0 is re-noised to the next sigma: with fresh noise, or without along the ODE,
    whose many steps are `chunkwise(ode_sigmas(48, 5.0)[:-1].tolist(), fresh_noise=False)`. grad_from: the first chunk
    whose last pass takes part in training, None for none. Self Forcing's random exit step is a shorter list of sigmas:
    `chunkwise(sigmas[: exit_step + 1], grad_from=0)`. chunks: how many, None without end; the longer schedule begins
    with the shorter one.
    Raises ValueError unless the sigmas decrease strictly within (0, 1], and for no chunks.
    """
    _check(sigmas, chunks)
    return _chunkwise(tuple(sigmas), grad_from, fresh_noise, chunks)


def rolling(
    sigmas: Sequence[float], exit_window: int | None = None, grad_from: int = 0, *, chunks: int | None = None
) -> Iterator[Pass]:
    """Passes that denoise as many chunks jointly as there are `sigmas`, each chunk noisier than the one before it.

    Rolling Forcing: with T sigmas, pass w holds chunks max(0, w - T + 1) .. w, and chunk b is at step w - b, so every
    chunk goes through all sigmas and one chunk is finished by every pass from the T-th on. The first windows grow from
    a single chunk. chunks: how many, None without end; the last windows then shrink to a single chunk, and any number
    will do, also fewer than T. After every pass but a chunk's last, x0 is re-noised with fresh noise to the next sigma.

    The first `chunks` passes of every longer schedule, the endless one included, are the same, and with them chunks
    0 .. chunks - T. The last T - 1 chunks are not: nothing follows them here, where there they see their successors.

    exit_window: for training, a number in 0 .. T - 1, None for none. The passes w with w mod T = exit_window are exits:
    each chunk is in exactly one of them, so they tile the video, and a tile has its chunks at different noise levels.
    An exit whose last chunk is `grad_from` or later takes part in training. With `chunks`, the last exit is the last
    pass: the same passes as without exits up to there, but what they would still finish is left unfinished.
    Raises ValueError unless the sigmas decrease strictly within (0, 1], for no chunks, and for no such exit window.
    """
    _check(sigmas, chunks)
    if exit_window is not None and not 0 <= exit_window < len(sigmas):
        raise ValueError(f"exit_window must be in 0 .. {len(sigmas) - 1} for {len(sigmas)} sigmas, got {exit_window}")
    return _rolling(tuple(sigmas), chunks, exit_window, grad_from)


Schedule = Callable[..., Iterator[Pass]]
"""A function of the sigmas and, by name, the number of `chunks` (None: without end) that yields passes."""

SCHEDULES: dict[str, Schedule] = {"chunkwise": chunkwise, "rolling": rolling}
"""Every schedule of this package by the name that settings call it."""


def schedule_named(name: str) -> Schedule:
    """The schedule that settings call `name`: one of `SCHEDULES`, or a function from outside, `package.module:name`.

    Raises ValueError for an unknown name, and for what cannot be called as a schedule; what it yields is checked by
    `check_passes`.
    """
    schedule = named("schedule", name, SCHEDULES)
    if not (callable(schedule) and _takes_sigmas_and_chunks(schedule)):
        wanted = f"def {name.rpartition(':')[2]}(sigmas, *, chunks=None)"
        raise ValueError(f"'{name}' is not a schedule; write it as a generator of passes, `{wanted}`")
    return cast(Schedule, schedule)


def _takes_sigmas_and_chunks(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind((1.0,), chunks=1)
    except (TypeError, ValueError):  # the latter: a function that tells nothing of its parameters
        return False
    return True


PATIENCE = 1000
"""Passes after which a chunk that is still unfinished is taken for one that never will be."""


def check_passes(passes: Iterable[Pass], chunks: int, schedule: str) -> None:
    """Raise ValueError unless `passes`, of the schedule called so, finish `chunks` chunks once, in order, and end."""
    wrong = f"the schedule '{schedule}', asked for {chunks} chunks,"
    if not isinstance(passes, Iterable):
        raise ValueError(f"{wrong} must yield passes, got {passes!r}")
    done = unfinished = 0
    for step in passes:
        if not isinstance(step, Pass):
            raise ValueError(f"{wrong} must yield passes (reward_forcing.rollout.Pass), got {step!r}")
        if step.chunks[-1] >= chunks:
            raise ValueError(f"{wrong} goes on to chunk {step.chunks[-1]}; chunks are numbered from 0")
        if step.chunks[0] != done:
            raise ValueError(f"{wrong} must begin every pass with the oldest unfinished chunk, {done}, got {step}")
        done, unfinished = (done + 1, 0) if step.finishes else (done, unfinished + 1)
        if unfinished == PATIENCE:
            break
    if done < chunks:
        raise ValueError(f"{wrong} does not finish chunk {done}; the sigma_next of a chunk's last pass is None")


def chunks_at_once(schedule: Iterable[Pass]) -> int:
    """The most chunks that one pass of a finite schedule denoises jointly."""
    return max(len(step.chunks) for step in schedule)


def _check(sigmas: Sequence[float], chunks: int | None) -> None:
    if not sigmas or not all(a > b for a, b in zip((2.0, *sigmas), (*sigmas, 0.0), strict=True)) or sigmas[0] > 1:
        raise ValueError(f"sigmas must decrease strictly within (0, 1], the final 0 left out, got {list(sigmas)}")
    if chunks is not None and chunks < 1:
        raise ValueError(f"a schedule needs at least one chunk, or None for no end, got {chunks}")


def _chunkwise(
    sigmas: tuple[float, ...], grad_from: int | None, fresh_noise: bool, chunks: int | None
) -> Iterator[Pass]:
    steps = _steps(sigmas)
    for chunk in count() if chunks is None else range(chunks):
        for sigma, sigma_next in steps:
            grad = grad_from is not None and chunk >= grad_from and sigma_next is None
            yield Pass((chunk,), (sigma,), (sigma_next,), grad, fresh_noise)


def _rolling(sigmas: tuple[float, ...], chunks: int | None, exit_window: int | None, grad_from: int) -> Iterator[Pass]:
    steps = _steps(sigmas)
    for window in count() if chunks is None else range(_windows(len(steps), chunks, exit_window)):
        last = window if chunks is None else min(window, chunks - 1)
        inside = tuple(range(max(0, window - len(steps) + 1), last + 1))
        sigma, sigma_next = zip(*(steps[window - chunk] for chunk in inside), strict=True)
        is_exit = window % len(steps) == exit_window
        yield Pass(inside, sigma, sigma_next, grad=is_exit and last >= grad_from, is_exit=is_exit)


def _windows(steps: int, chunks: int, exit_window: int | None) -> int:
    """How many windows finish `chunks` chunks, or how many there are up to the last exit."""
    windows = chunks + steps - 1
    return windows if exit_window is None else windows - (windows - 1 - exit_window) % steps


def _steps(sigmas: tuple[float, ...]) -> list[tuple[float, float | None]]:
    """The noise level before and after each of a chunk's passes."""
    return list(zip(sigmas, (*sigmas[1:], None), strict=True))


def timetable(schedule: Iterable[Pass], passes: int | None = None) -> list[list[float | None]]:
    """Timesteps (1000 sigma) of the first `passes` passes: a row for each chunk, None where a pass leaves it out.

    passes None: of all of a finite schedule.
    """
    columns = list(islice(schedule, passes))
    chunks = 1 + max((chunk for column in columns for chunk in column.chunks), default=-1)
    rows: list[list[float | None]] = [[None] * len(columns) for _ in range(chunks)]
    for position, column in enumerate(columns):
        for chunk, sigma in zip(column.chunks, column.sigma, strict=True):
            rows[chunk][position] = TIMESTEPS * sigma
    return rows


def format_timetable(rows: Sequence[Sequence[float | None]]) -> str:
    """A timetable as text: one line for each chunk, one column for each pass, a dot where the chunk rests."""
    lines = [f"{'chunk':>5}" + "".join(f"{f'pass {index}':>9}" for index in range(len(rows[0]) if rows else 0))]
    for chunk, row in enumerate(rows):
        lines.append(f"{chunk:>5}" + "".join(f"{'.' if step is None else f'{step:.1f}':>9}" for step in row))
    return "\n".join(lines)
